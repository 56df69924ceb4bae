# SPDX-License-Identifier: Apache-2.0
"""A stage for whole rounds: a real broker, `fedmote serve` and `fedmote partner` as processes, the C device on its boards.

A test says who takes part and where; the stage writes the files and starts the parts. Devices are `VirtualDevice` objects,
so that a test can pull a board's plug and put it back.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmote.config import CellConfig
from fedmote.config.write import write_toml
from fedmote.fleet.registry import Registry
from fedmote.lab.demo.data import load, split
from fedmote.lab.demo.fleet import Fleet, Process
from fedmote.lab.demo.prepare import Materials, ModelChoice, prepare
from fedmote.lab.demo.settings import DemoSettings, PretrainingSettings, SplitSettings
from fedmote.store.checkpoints import Checkpoint
from fedmote.transport.broker import PrivateBroker
from fedmote.wire.regions import identity_region, samples_region
from fedmote.wire.schema import Role
from fedmote_hil.virtual import VirtualDevice

SITE = "stage"
PATIENCE_S = 240.0
_ENTRY = "import sys; from fedmote.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Part:
    """A cell of the stage, "a", "b" or "c" by whose data its device holds.

    Attributes:
        cell: its name.
        board: of its device; None: a partner alone, with samples of its own.
        link: of the device: "mqtt", or "serial": a pty, relayed by the partner.
        has_partner: whether there is one.
    """

    cell: str
    board: str | None
    link: str = "mqtt"
    has_partner: bool = False

    @property
    def config(self) -> CellConfig:
        devices = () if self.board is None else (f"device-{self.cell}",)
        return CellConfig(self.cell, devices, f"partner-{self.cell}" if self.has_partner else None)


def make_materials(
    directory: Path, model: ModelChoice | None = None, cut: str = "last", boards: Sequence[str] = ("posix", "stm32f405")
) -> Materials:
    """Digits, a first model that has seen five classes, packages for the boards; small, so that a round takes seconds."""
    settings = DemoSettings(
        split=SplitSettings(majority_samples=12, minority_samples=4, pretraining_samples=20, test_samples=10),
        pretraining=PretrainingSettings(epochs=2),
    )
    data = load("digits")
    with Fleet(directory / "commands") as fleet:
        parts = split(data, settings.split, 0, 256)
        return prepare(data, parts, settings, list(boards), directory / "materials", fleet.run, model=model, cut=cut)


class Stage:
    """Use as a context manager; everything that it started ends with it.

    Attributes:
        is_sealed: whether everybody has keys and messages are sealed.
        token_s: seconds for which the keys of the devices are valid, one-time tokens; None: they last.
        cell_keys: of the devices, by id.
        identities: identity regions of the devices that were started, by cell.
    """

    def __init__(
        self,
        directory: Path,
        materials: Materials,
        parts: Sequence[Part],
        strategy: Mapping[str, Any],
        *,
        is_sealed: bool = True,
        token_s: float | None = None,
        **windows: Any,
    ) -> None:
        self.is_sealed = is_sealed
        self.token_s = token_s
        self.cell_keys: dict[str, bytes] = {}
        self.identities: dict[str, bytes] = {}
        self._keys: dict[str, bytes] = {}
        self.directory = directory
        self.materials = materials
        self.parts = parts
        is_sending = any(part.has_partner and part.board is not None for part in parts)
        self.strategy = {
            "epochs": 2,
            "partner_epochs": 2,
            "partner_learning_rate": 0.02,
            "is_sending_samples": is_sending,
            "min_examples": 0,  # sets of a few dozen samples, of which partners get a part
            **strategy,
        }
        self.windows = {
            "selection_s": 60.0,
            "report_s": 120.0,
            "min_fraction": 1.0,
            "wait_ms": 200,
            "after_failures": "end",
            **windows,
        }
        self.state = directory / "state"
        self.devices: dict[str, VirtualDevice] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.broker = self._stack.enter_context(
            PrivateBroker(self.directory / "broker", SITE, [part.config for part in self.parts])
        )
        self.fleet = self._stack.enter_context(Fleet(self.directory / "processes", [self.materials.directory]))
        if self.is_sealed:
            self._enrol()
        return self

    def _enrol(self) -> None:
        with Registry.open(self.directory / "registry", is_made=True) as registry:
            for cell in (part.config for part in self.parts):
                for device in cell.devices:
                    self._keys[device] = registry.add(device, Role.DEVICE, cell.name, token_s=self.token_s)
                    self.cell_keys[device] = secrets.token_bytes(32)
                if cell.partner is not None:
                    self._keys[cell.partner] = registry.add(cell.partner, Role.PARTNER, cell.name)

    def __exit__(self, *exception: object) -> None:
        for device in self.devices.values():
            device.kill()
        self._stack.close()

    # ---- parts -------------------------------------------------------------------------------------------------------

    def samples(self, cell: str) -> np.ndarray:
        """Samples of a cell's device as it stores them, int8 (N, bytes)."""
        with np.load(self.materials.devices[cell]) as arrays:
            return arrays["x"].reshape(len(arrays["x"]), -1)

    def start_devices(self, ways: Mapping[str, str] | None = None, *, is_provisioned: bool = True) -> None:
        """Start them.

        Args:
            ways: by cell, where a device finds the broker instead of at its own address.
            is_provisioned: whether boards have the identity that `identities` has for them; else the region is erased.
        """
        for part in self.parts:
            if part.board is None:
                continue
            name = f"device-{part.cell}"
            with np.load(self.materials.devices[part.cell]) as arrays:
                samples = samples_region(arrays["x"], arrays["y"])
            keys = self._keys.get(name), self.cell_keys.get(name)
            identity = identity_region(name, SITE, part.link, name, self.broker.password(name), True, 10, *keys)
            link = (ways or {}).get(part.cell, self.broker.url) if part.link == "mqtt" else "pty"
            self.identities[part.cell] = identity
            known = identity if is_provisioned else None
            device = VirtualDevice(part.board, name, samples, known, link, directory=self.directory / name)
            device.start()
            self.devices[part.cell] = device

    def start_partners(self) -> None:
        for part in self.parts:
            if not part.has_partner:
                continue
            name = f"partner-{part.cell}"
            tables: dict[str, Any] = {
                "id": name,
                "site": SITE,
                "model": self.materials.model.spec,
                "state_directory": str(self.directory / name),
                "broker": self.broker_table(name),
            }
            if part.board is None:
                tables["data"] = str(self.materials.directory / "calibration.npz")
            else:
                tables["devices"] = [self._device_entry(part)]
            if self.is_sealed:
                tables["credentials_file"] = str(self._write_partner_keys(part))
            write_toml(self.directory / f"{name}.toml", tables)
            self.fleet.start(name, "partner", self.directory / f"{name}.toml")

    def _write_partner_keys(self, part: Part) -> Path:
        cell = part.config
        path = self.directory / f"{cell.partner}.keys.toml"
        path.touch(0o600)
        cell_keys = [{"id": device, "key": self.cell_keys[device].hex()} for device in cell.devices]
        key = self._keys[str(cell.partner)].hex()
        write_toml(path, {"id": cell.partner, "site": SITE, "key": key, "cell_keys": cell_keys})
        return path

    def _device_entry(self, part: Part) -> dict[str, str]:
        """What a partner's file says about its device."""
        device = f"device-{part.cell}"
        if part.link == "mqtt":
            return {"id": device, "link": "mqtt"}
        credentials = str(self.broker.files.credentials_file(device))
        return {"id": device, "link": "serial", "port": self.devices[part.cell].port, "credentials_file": credentials}

    def write_config(self, rounds: int) -> Path:
        path = self.directory / "coordinator.toml"
        run = {
            "site": SITE,
            "name": "stage",
            "state_directory": str(self.state),
            "partition_directory": str(self.materials.partition),
            "test_data": str(self.materials.test),
            "rounds": rounds,
        }
        cells = [
            {"name": one.name, "devices": list(one.devices), **({"partner": one.partner} if one.partner else {})}
            for one in (part.config for part in self.parts)
        ]
        tables = {"run": run, "broker": self.broker_table("coordinator"), "strategy": self.strategy, "windows": self.windows}
        security = {"security": {"registry": str(self.directory / "registry")}} if self.is_sealed else {}
        write_toml(path, {**tables, **security, "cells": cells})
        return path

    def serve(self, rounds: int) -> Process:
        """Start the coordinator; the fleet ends it where the test does not."""
        return self.fleet.start("serve", "serve", self.write_config(rounds), "--json")

    def serve_bare(self, rounds: int) -> subprocess.Popen[bytes]:
        """Start the coordinator as a direct child, for tests that kill it."""
        path = self.write_config(rounds)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with (self.directory / "serve-bare.log").open("ab") as log:
            command = [sys.executable, "-c", _ENTRY, "serve", str(path), "--json"]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        self._stack.callback(end_child, child)
        return child

    def broker_table(self, user: str) -> dict[str, Any]:
        return {"url": self.broker.url, "username": user, "password_file": str(self.broker.files.password_file(user))}

    # ---- looking -----------------------------------------------------------------------------------------------------

    def finish(self, process: Process) -> dict[str, Any]:
        """The coordinator's result; its words where it failed."""
        self.fleet.watch(process, PATIENCE_S)
        return json.loads(process.out.read_text())

    def ledger(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the ledger; none before there is one."""
        path = self.state / "ledger.sqlite"
        if not path.exists():
            return []
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            try:
                return connection.execute(statement, values).fetchall()
            except sqlite3.OperationalError:  # the tables are being made
                return []

    def wait_for(self, what: str, is_there: Callable[[], bool]) -> None:
        """Poll until something is there; the test fails with `what` where it does not come."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_there():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.02)

    def checkpoint(self, version: int) -> Checkpoint:
        return Checkpoint.from_bytes(self.checkpoint_bytes(version))

    def checkpoint_bytes(self, version: int) -> bytes:
        return (self.state / "checkpoints" / f"checkpoint-{version:06d}.safetensors").read_bytes()


def end_child(child: subprocess.Popen[bytes]) -> None:
    """End a child that may have ended."""
    if child.poll() is None:
        child.send_signal(signal.SIGKILL)
    child.wait()
