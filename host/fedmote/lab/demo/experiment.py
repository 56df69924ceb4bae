# SPDX-License-Identifier: Apache-2.0
"""One run of the demonstration with the real commands, and what its coordinator says at the end.

    cell a   device, MQTT by itself (an emulated UART joined to the broker)      partner on MQTT
    cell b   device on a serial line (pty) of its partner                        partner relays the coordinator channel
    cell c   device, MQTT by itself                                              no partner

Without a broker the coordinator listens, and so do the partners for their devices: the same frames over TCP on loopback.
Messages are sealed, but where one of the boards cannot count its boots in the emulator; then it is said.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedmote.config import CellConfig, Credentials, load
from fedmote.config.write import write_toml
from fedmote.fleet import Registry
from fedmote.fleet.broker_files import BrokerFiles, write_credentials
from fedmote.fleet.enrolment import Enrolment
from fedmote.lab.demo.data import CELLS
from fedmote.lab.demo.fleet import Fleet, Process
from fedmote.lab.demo.prepare import Materials
from fedmote.lab.demo.settings import DemoSettings
from fedmote.package.boards import Board
from fedmote.private_files import make_private_directory
from fedmote.supervised import free_tcp_port
from fedmote.transport.broker import PrivateBroker

SITE = "demo"
HAS_PARTNER = {"a": True, "b": True, "c": False}
# Compiling an image on a loaded machine is the longest thing that a device does before it speaks.
_PORT_TIMEOUT_S = 180.0

Ignore = Literal["none", "devices", "partners"]
Talk = Callable[[str], None]


@dataclass(frozen=True)
class Scene:
    """Who runs where.

    Attributes:
        boards: of each cell's device, by name of the cell.
        has_broker: MQTT and a pty as above, or direct tcp links.
        preset: of the strategy.
        ignore: "none", or the tier that a baseline leaves out of the merge.
    """

    boards: Mapping[str, str]
    has_broker: bool
    preset: str = "centaur"
    ignore: Ignore = "none"

    def link(self, cell: str) -> str:
        """Words for a device's link."""
        if not self.has_broker:
            return "tcp through partner" if HAS_PARTNER[cell] else "tcp"
        return "serial (pty), relayed by partner" if cell == "b" else "mqtt"

    @property
    def is_sealed(self) -> bool:
        """Whether every virtual board can have keys."""
        return all(Board.load(board).can_count_boots for board in self.boards.values())


def cells_of_demo() -> tuple[CellConfig, ...]:
    """The three cells."""
    return tuple(CellConfig(name, (f"device-{name}",), f"partner-{name}" if HAS_PARTNER[name] else None) for name in CELLS)


def play(directory: Path, materials: Materials, settings: DemoSettings, scene: Scene, talk: Talk) -> dict[str, Any]:
    """Run coordinator, partners and devices to the end; the coordinator's result as `fedmote serve --json` prints it.

    Raises:
        FedmoteError: a command failed or did not end in time; everything is ended then.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(Fleet(directory, [materials.directory]))
        files = _enrol(directory, scene)
        if not scene.is_sealed:
            talk("messages are not sealed: one of the boards cannot count its boots in the emulator, which keys need")
        if scene.has_broker:
            broker = stack.enter_context(PrivateBroker(directory / "broker", SITE, cells_of_demo()))
            talk(f"broker at {broker.url}, keys and passwords generated, access lists per participant")
            stage: _Stage = _BrokerStage(fleet, directory, materials, settings, scene, files, broker)
        else:
            stage = _DirectStage(fleet, directory, materials, settings, scene, files)
        coordinator = stage.start()
        fleet.watch(coordinator, settings.run_s, talk)
        result: dict[str, Any] = json.loads(coordinator.out.read_text(encoding="utf-8"))
        return result


def _enrol(directory: Path, scene: Scene) -> BrokerFiles:
    """Keys and credentials of everybody, in the broker's directory where there is one."""
    broker = directory / "broker" if scene.has_broker else None
    if broker is not None:
        make_private_directory(broker)
    with Registry.open(directory / "fleet", is_made=True) as registry:
        enrolment = Enrolment(registry, SITE, broker)
        if not registry.entries():  # in a directory that was played in before, everybody is there
            enrolment.add_cells(cells_of_demo())
    if not scene.is_sealed:
        for file in (enrolment.files.credentials_file(device) for cell in cells_of_demo() for device in cell.devices):
            write_credentials(file, replace(load(Credentials, file), key=None, cell_key=None))
    return enrolment.files


class _Stage:
    """Starts the processes of a run; links are the children's matter."""

    def __init__(
        self, fleet: Fleet, directory: Path, materials: Materials, settings: DemoSettings, scene: Scene, files: BrokerFiles
    ) -> None:
        self.files = files
        self.fleet = fleet
        self.directory = directory
        self.materials = materials
        self.settings = settings
        self.scene = scene

    def start(self) -> Process:
        raise NotImplementedError

    def serve(self, way_in: Mapping[str, Any]) -> Process:
        """Start the coordinator; `way_in` is its [broker] table or its `listen` key."""
        path = self.directory / "coordinator.toml"
        security = {"security": {"registry": str(self.directory / "fleet")}} if self.scene.is_sealed else {}
        ways = {**way_in, **security}
        write_toml(path, coordinator_tables(self.materials, self.settings, self.scene, self.directory / "state", ways))
        return self.fleet.start("serve", "serve", path, "--json")

    def partner(self, cell: str, way_up: Mapping[str, Any], device: Mapping[str, Any]) -> None:
        """Start the partner of a cell."""
        name = f"partner-{cell}"
        tables = {
            "id": name,
            "site": SITE,
            "model": self.materials.model.spec,
            "state_directory": str(self.directory / name),
            "seed": self.settings.seed,
            **({"credentials_file": str(self.files.keys_file(name))} if self.scene.is_sealed else {}),
            **way_up,
            "devices": [{"id": f"device-{cell}", **device}],
        }
        write_toml(self.directory / f"{name}.toml", tables)
        self.fleet.start(name, "partner", self.directory / f"{name}.toml")

    def device(self, cell: str, *link: str) -> Process:
        """Start the device of a cell."""
        name = f"device-{cell}"
        credentials = self.files.credentials_file(name)
        arguments: list[str | Path] = ["--board", self.scene.boards[cell], "--id", name, "--data", self.materials.devices[cell]]
        keep: list[str | Path] = ["--state", self.directory / name]
        if HAS_PARTNER[cell]:  # the firmware's policy: without a partner there is nobody to send samples to
            keep.append("--send-samples")
        return self.fleet.start(name, "device", *arguments, "--credentials", credentials, *keep, *link)


class _BrokerStage(_Stage):
    def __init__(
        self,
        fleet: Fleet,
        directory: Path,
        materials: Materials,
        settings: DemoSettings,
        scene: Scene,
        files: BrokerFiles,
        broker: PrivateBroker,
    ) -> None:
        super().__init__(fleet, directory, materials, settings, scene, files)
        self.broker = broker

    def start(self) -> Process:
        """Devices, then partners (one needs the name of the pty), then the coordinator."""
        processes = {cell: self.device(cell, *self._link(cell)) for cell in CELLS}
        for cell in CELLS:
            if not HAS_PARTNER[cell]:
                continue
            device: dict[str, Any] = {"link": "mqtt"}
            if cell == "b":
                port = processes[cell].first_line(_PORT_TIMEOUT_S)
                device = {"link": "serial", "port": port, "credentials_file": str(self.files.credentials_file(f"device-{cell}"))}
            self.partner(cell, {"broker": self._broker_table(f"partner-{cell}")}, device)
        return self.serve({"broker": self._broker_table("coordinator")})

    def _link(self, cell: str) -> Sequence[str]:
        return ("--serial", "pty") if cell == "b" else ("--broker", self.broker.url)

    def _broker_table(self, user: str) -> dict[str, Any]:
        return {"url": self.broker.url, "username": user, "password_file": str(self.files.password_file(user))}


class _DirectStage(_Stage):
    def start(self) -> Process:
        """The coordinator, partners that listen for their devices, devices."""
        port = free_tcp_port()
        coordinator = self.serve({"listen": f"tcp://127.0.0.1:{port}"})
        for cell in CELLS:
            device_port = port
            if HAS_PARTNER[cell]:
                device_port = free_tcp_port()
                device = {"link": "serial", "port": f"listen://127.0.0.1:{device_port}"}
                self.partner(cell, {"coordinator": f"tcp://127.0.0.1:{port}"}, device)
            self.device(cell, "--serial", f"tcp://127.0.0.1:{device_port}")
        return coordinator


def coordinator_tables(
    materials: Materials, settings: DemoSettings, scene: Scene, state: Path, way_in: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `coordinator.toml`; `way_in` has [broker] or `listen`, and [security]."""
    learning = settings.federation
    cells = [
        {"name": cell.name, "devices": list(cell.devices), **({"partner": cell.partner} if cell.partner else {})}
        for cell in cells_of_demo()
    ]
    strategy: dict[str, Any] = {
        "preset": scene.preset,
        "form": learning.form,
        "alpha": learning.alpha,
        "beta": learning.beta,
        "epochs": learning.epochs,
        "batch": learning.batch,
        "learning_rate": learning.learning_rate,
        "momentum": learning.momentum,
        "partner_epochs": learning.epochs,
        "partner_batch": learning.batch,
        "partner_learning_rate": learning.partner_learning_rate,
        "partner_momentum": learning.partner_momentum,
        "is_sending_samples": True,
        "ignore": scene.ignore,
    }
    return {
        **{key: value for key, value in way_in.items() if not isinstance(value, Mapping)},
        "run": {
            "site": SITE,
            "name": f"demo-{scene.ignore}",
            "state_directory": str(state),
            "partition_directory": str(materials.partition),
            "test_data": str(materials.test),
            "rounds": settings.rounds,
            "seed": settings.seed,
        },
        **{key: value for key, value in way_in.items() if isinstance(value, Mapping)},
        "strategy": strategy,
        # Everybody is expected in every round: a demonstration that quietly went on with two of three would not be one.
        "windows": {
            "selection_s": settings.report_s,
            "report_s": settings.report_s,
            "min_fraction": 1.0,
            "wait_ms": 200,
            "after_failures": "end",
        },
        "cells": cells,
    }
