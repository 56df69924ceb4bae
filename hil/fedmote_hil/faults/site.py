# SPDX-License-Identifier: Apache-2.0
"""Broker, packages, coordinator and devices of one row, in one directory. Everything that it starts ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedmote.config import CellConfig, Credentials, load
from fedmote.config.write import write_toml
from fedmote.fleet.enrolment import Enrolment
from fedmote.fleet.registry import Registry
from fedmote.supervised import Group, free_tcp_port
from fedmote.transport.broker import PrivateBroker, find_mosquitto
from fedmote.wire.regions import identity_region, samples_region
from fedmote.wire.schema import Role
from fedmote_hil.faults.fleet import Device, Fleet, image
from fedmote_hil.faults.matrix import NotRunError
from fedmote_hil.faults.model import Model, make_model
from fedmote_hil.faults.serving import Serving, command

SITE = "faults"
STREET = "street"
KEEP_ALIVE_S = 10
# Of all runs, unless a row says otherwise. Every member counts, so that the set of accepted updates is the same in every run.
WINDOWS: Mapping[str, Any] = {"selection_s": 60.0, "report_s": 120.0, "min_fraction": 1.0, "wait_ms": 200}
STRATEGY: Mapping[str, Any] = {"alpha": 0.0, "beta": 0.0, "epochs": 2, "batch": 8}


def device_names(count: int) -> list[str]:
    """Names of so many devices."""
    return [f"device-{number:04}" for number in range(count)]


class Site:
    """Use as a context manager.

    Args:
        directory: for everything.
        num_devices: that are known to broker and coordinator.
        has_broker: start Mosquitto; otherwise the coordinator listens.
        partners: names of cells that also have a partner, by the number of their device.
        padding: see `make_model`.
        has_keys: devices are enrolled, and messages are sealed.
        num_masked: so many of them, the first ones, are the group `STREET`, whose updates are summed under masks.

    Attributes:
        model: what is learned.
        names: ids of the devices.
        group: what all processes end with.
    """

    def __init__(
        self,
        directory: Path,
        num_devices: int,
        *,
        has_broker: bool = True,
        partners: Mapping[int, str] | None = None,
        padding: int = 0,
        has_keys: bool = False,
        num_masked: int = 0,
    ) -> None:
        if has_broker and find_mosquitto() is None:
            raise NotRunError("mosquitto is not installed; on Debian: apt install mosquitto")
        self.directory = directory
        self.model: Model = make_model(directory / "model", padding)
        self.names = device_names(num_devices)
        self.cells = [
            CellConfig(f"cell-{number:04}", (name,), (partners or {}).get(number)) for number, name in enumerate(self.names)
        ]
        self.group = Group()
        self.broker = PrivateBroker(directory / "broker", SITE, self.cells) if has_broker else None
        self.tcp_port = free_tcp_port()
        self.has_keys = has_keys or num_masked > 0
        self._num_masked = num_masked
        self._num_served = 0

    def __enter__(self) -> Self:
        if self.broker is not None:
            self.broker.start()
        if self.has_keys:
            with Registry.open(self.registry, is_made=True) as registry:
                enrolment = Enrolment(registry, SITE, None if self.broker is None else self.broker.files.directory)
                for cell in self.cells:
                    for device in cell.devices:
                        enrolment.add(device, Role.DEVICE, cell.name)
                if self._num_masked:
                    enrolment.group(STREET, self.names[: self._num_masked])
        return self

    @property
    def registry(self) -> Path:
        """Directory of the registry, where there are keys."""
        return self.directory / "registry"

    def login(self, name: str) -> Credentials:
        """Credentials of a device."""
        return load(Credentials, self.credentials(name))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.group.close()
        if self.broker is not None:
            self.signal_broker(signal.SIGCONT)
            self.broker.kill9()

    # ---- devices ------------------------------------------------------------------------------------------------------

    def fleet(
        self,
        numbers: Iterable[int] | None = None,
        *,
        link: Sequence[str] | None = None,
        options: Sequence[str] = (),
        keep_alive_s: int = KEEP_ALIVE_S,
        is_sending_samples: bool = False,
    ) -> Fleet:
        """Native devices, with their files; none is on yet.

        Args:
            numbers: which; all where None.
            link: options of their stream; None: the broker, or the coordinator's own address.
            options: further ones.
            keep_alive_s: of their sessions.
            is_sending_samples: whether their firmware allows it.
        """
        program = image()
        devices = []
        for number in range(len(self.names)) if numbers is None else numbers:
            name = self.names[number]
            directory = self.directory / name
            directory.mkdir(exist_ok=True)
            (directory / "samples.bin").write_bytes(samples_region(*self.model.samples(100 + number)))
            (directory / "identity.bin").write_bytes(self.identity(name, keep_alive_s, is_sending_samples, link))
            devices.append(Device(self.group, program, directory, name, link or ["--connect", self.address()], options))
        return Fleet(devices)

    def twin(self, device: Device, directory: Path) -> Device:
        """Another board with a device's id, on a copy of its files."""
        return Device(self.group, image(), directory, device.id, device.link, device.options)

    def identity(self, name: str, keep_alive_s: int, is_sending_samples: bool, link: Sequence[str] | None) -> bytes:
        """Identity region of a device."""
        login = self.login(name)
        is_serial = self.broker is None or (link is not None and link[0] != "--connect")
        return identity_region(
            name,
            SITE,
            "serial" if is_serial else "mqtt",
            "" if is_serial else name,
            "" if is_serial else login.password,
            is_sending_samples,
            keep_alive_s,
            login.key_bytes,
            login.cell_key_bytes,
            group_key=login.group_key_bytes,
        )

    def address(self) -> str:
        """HOST:PORT that devices connect to."""
        return f"127.0.0.1:{self.tcp_port}" if self.broker is None else self.broker.url.removeprefix("mqtt://")

    # ---- broker -------------------------------------------------------------------------------------------------------

    def signal_broker(self, number: signal.Signals) -> None:
        """Send Mosquitto itself a signal: to stand still (SIGSTOP), to go on (SIGCONT)."""
        if self.broker is None:
            return
        configuration = str(self.broker.files.configuration).encode()
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (directory / "cmdline").read_bytes().split(b"\0")
                if Path(words[0].decode()).name == "mosquitto" and configuration in words:
                    os.kill(int(directory.name), number)

    # ---- coordinator --------------------------------------------------------------------------------------------------

    def configure(
        self,
        name: str,
        rounds: int = 1,
        *,
        state: Path | None = None,
        run: Mapping[str, Any] | None = None,
        windows: Mapping[str, Any] | None = None,
        strategy: Mapping[str, Any] | None = None,
        numbers: Iterable[int] | None = None,
    ) -> Path:
        """Write a `coordinator.toml`; runs of one name go on with each other.

        Args:
            name: of the run, its file and its state directory.
            rounds: merges to make.
            state: another state directory.
            run: keys of their table beside those of all runs.
            windows: the same.
            strategy: the same.
            numbers: devices that take part; all where None.
        """
        path = self.directory / f"{name}.toml"
        table = {
            "site": SITE,
            "name": name,
            "state_directory": str(state or self.state(name)),
            "partition_directory": str(self.model.partition),
            "test_data": str(self.model.test),
            "rounds": rounds,
            "seed": 7,
            **(run or {}),
        }
        cells = self.cells if numbers is None else [self.cells[number] for number in numbers]
        content = {
            "run": table,
            **self.way_in(),
            **({"security": self._security()} if self.has_keys else {}),
            "strategy": {**STRATEGY, **(strategy or {})},
            "windows": {**WINDOWS, **(windows or {})},
            "cells": [
                {"name": one.name, "devices": list(one.devices), **({"partner": one.partner} if one.partner else {})}
                for one in cells
            ],
        }
        write_toml(path, content)
        return path

    def _security(self) -> dict[str, str]:
        files = {} if self.broker is None else {"broker_files": str(self.broker.files.directory)}
        return {"registry": str(self.registry), **files}

    def way_in(self) -> dict[str, Any]:
        """How the coordinator is reached."""
        if self.broker is None:
            return {"listen": f"tcp://127.0.0.1:{self.tcp_port}"}
        password = self.broker.files.password_file("coordinator")
        return {"broker": {"url": self.broker.url, "username": "coordinator", "password_file": str(password)}}

    def serve(
        self, config: Path, wrapper: Sequence[str] = (), variables: Mapping[str, str] | None = None, options: Sequence[str] = ()
    ) -> Serving:
        """Start a coordinator.

        Args:
            config: its file.
            wrapper: a command that runs it, such as `setpriv ...`.
            variables: of its environment, beside ours.
            options: of the command, beside the file.
        """
        return self.run(command("serve", config, "--json", *options), wrapper, variables)

    def run(self, words: Sequence[str], wrapper: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> Serving:
        """Start a command that serves; see `serve`."""
        self._num_served += 1
        return Serving(self.group, [*wrapper, *words], self.directory / f"serve-{self._num_served}", variables)

    def state(self, name: str) -> Path:
        """State directory of a run."""
        return self.directory / f"state-{name}"

    def ledger(self, name: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of a run's ledger; none before there is one."""
        path = self.state(name) / "ledger.sqlite"
        if not path.exists():
            return []
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0) as connection:
            try:
                return connection.execute(statement, values).fetchall()
            except sqlite3.OperationalError:  # the tables are being made
                return []

    def num_counted(self, name: str, round: int) -> int:
        """Updates that count in a round."""
        rows = self.ledger(name, 'SELECT count(*) FROM "update" WHERE round = ?', round)
        return int(rows[0][0]) if rows else 0

    def num_planned(self, name: str, round: int) -> int:
        """Participants that have a plan in a round."""
        rows = self.ledger(name, "SELECT count(DISTINCT participant) FROM plan WHERE round = ?", round)
        return int(rows[0][0]) if rows else 0

    def round_states(self, name: str) -> list[str]:
        """States of the rounds, in order."""
        return [str(row[0]) for row in self.ledger(name, "SELECT state FROM round ORDER BY round")]

    def checkpoint(self, name: str, version: int) -> bytes:
        """Bytes of a checkpoint."""
        return (self.state(name) / "checkpoints" / f"checkpoint-{version:06}.safetensors").read_bytes()

    def credentials(self, name: str) -> Path:
        """A device's login, as a relay takes it."""
        if self.broker is not None:
            return self.broker.files.credentials_file(name)
        if self.has_keys:
            return self.registry / "credentials" / f"{name}.toml"
        path = self.directory / f"{name}.credentials.toml"
        write_toml(path, {"id": name, "site": SITE, "username": name, "password": "none"})
        path.chmod(0o600)
        return path
