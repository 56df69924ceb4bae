# SPDX-License-Identifier: Apache-2.0
"""`kill -9` of a real coordinator at named places, with a fleet of native C devices over direct links.

    fleet = CrashFleet(directory)
    quiet = fleet.run("quiet")                                    # nothing happens
    killed = fleet.run("killed", [Kill("round-closed", 1)])       # dies there, is started again, goes on to the end
    assert killed.checkpoint == quiet.checkpoint                  # byte for byte

`fedmote serve` runs as a process; devices are the SDK's own program, started anew for each run, and go on when their stream
breaks. Each of them trains on samples of its own, everybody is needed in every round, and all draws come from the seeds: so two
runs end with the same bytes if no update was lost, counted twice, or merged into another base. The places are those of
`fedmote.coordinator.crash`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmote import supervised
from fedmote.coordinator.crash import VARIABLE
from fedmote.errors import RigError
from fedmote.package.boards import Board
from fedmote.package.partition import Partition
from fedmote.package.specimen import random_samples
from fedmote.store import LEDGER, Ledger
from fedmote.wire.regions import identity_region, samples_region
from fedmote_hil.build import build
from fedmote_hil.models import transfer_package
from fedmote_hil.virtual import VirtualDevice

NUM_DEVICES = 20
_PACKAGE_BYTES = 4096
_NUM_SAMPLES = 16
_TIMEOUT_S = 120.0
_POLL_S = 0.01
_KILLED = 128 + 9
_ENTRY = "import sys; from fedmote.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Kill:
    """One end of a coordinator: at the n-th passing of a place after its start."""

    place: str
    occurrence: int = 1


@dataclass(frozen=True)
class CrashRun:
    """What a run came to.

    Attributes:
        checkpoint: bytes of the last checkpoint's file.
        kills: that happened.
        ready_s: from the start of each process to the line that says that it listens.
        seconds: of the whole run.
        num_updates: that count, by round.
    """

    checkpoint: bytes
    kills: tuple[Kill, ...]
    ready_s: tuple[float, ...]
    seconds: float
    num_updates: tuple[int, ...]


class CrashFleet:
    """A partition, a configuration and the samples of a fleet.

    Args:
        directory: of all files; runs get directories of their own below it.
        num_devices: of the fleet, each a cell of one.
        rounds: merges of a run.
    """

    def __init__(self, directory: Path, num_devices: int = NUM_DEVICES, rounds: int = 2) -> None:
        self._directory = directory
        self._rounds = rounds
        self._names = [f"device-{number:03}" for number in range(num_devices)]
        self._board = Board.load("posix")
        build(self._board)
        package = transfer_package(self._board, _PACKAGE_BYTES)
        (directory / "partition").mkdir(parents=True)
        Partition({self._board.name: package}).save(directory / "partition")
        self._graph = package.graph

    def run(self, name: str, kills: Sequence[Kill] = ()) -> CrashRun:
        """Serves to the end; the coordinator dies at each of the kills in turn, and is started again.

        Raises:
            RigError: a place was not reached, or the run took more than two minutes without an end.
        """
        home = self._directory / name
        home.mkdir()
        port = supervised.free_tcp_port()
        config = self._write_config(home, port)
        began = time.monotonic()
        ready: list[float] = []
        with ExitStack() as devices:
            for index, kill in enumerate([*kills, None]):
                is_first = index == 0
                with _Server(home / f"serve-{index}", config, kill) as server:
                    ready.append(server.await_listening())
                    if is_first:
                        self._start_devices(devices, home, port)
                    server.await_end(_KILLED if kill is not None else 0)
        state = home / "state"
        with Ledger.open(state / LEDGER, is_read_only=True) as ledger:
            rounds = [entry for entry in ledger.rounds() if entry.state == "committed"]
            num_updates = tuple(len(ledger.updates(entry.plan.round)) for entry in rounds)
            version = ledger.checkpoints()[-1].version
        checkpoint = (state / "checkpoints" / f"checkpoint-{version:06}.safetensors").read_bytes()
        return CrashRun(checkpoint, tuple(kills), tuple(ready), time.monotonic() - began, num_updates)

    def _write_config(self, home: Path, port: int) -> Path:
        path = home / "coordinator.toml"
        cells = "".join(f'[[cells]]\nname = "{name}"\ndevices = ["{name}"]\n' for name in self._names)
        path.write_text(
            f'listen = "tcp://127.0.0.1:{port}"\n[run]\nsite = "crash"\nname = "crash"\nstate_directory = "state"\n'
            f'partition_directory = "../partition"\nrounds = {self._rounds}\nseed = 5\n'
            "[strategy]\nalpha = 0\nbeta = 0\n"  # every sample is trained on: fewer than sixteen are refused
            "[windows]\nselection_s = 60\nreport_s = 60\nmin_fraction = 1.0\nwait_ms = 100\nmax_failed_rounds = 1\n"
            f'after_failures = "end"\n{cells}',
            encoding="utf-8",
        )
        return path

    def _start_devices(self, devices: ExitStack, home: Path, port: int) -> None:
        for number, name in enumerate(self._names):
            x = random_samples(self._graph, _NUM_SAMPLES, number).reshape(_NUM_SAMPLES, -1)
            samples = samples_region(x, (np.arange(_NUM_SAMPLES) + number) % 10)
            identity = identity_region(name, "crash", "serial")
            device = VirtualDevice(self._board, name, samples, identity, f"tcp://127.0.0.1:{port}", directory=home / name)
            devices.enter_context(device)


class _Server:
    """One process of `fedmote serve`."""

    def __init__(self, stem: Path, config: Path, kill: Kill | None) -> None:
        self._log = stem.with_suffix(".log")
        self._kill = kill
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        environment.pop(VARIABLE, None)
        if kill is not None:
            environment[VARIABLE] = f"{kill.place}#{kill.occurrence}"
        self._began = time.monotonic()
        with self._log.open("wb") as log, stem.with_suffix(".out").open("wb") as out:
            command = [sys.executable, "-c", _ENTRY, "serve", str(config)]
            self._process = supervised.start(command, out, log, environment=environment)

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def await_listening(self) -> float:
        """Seconds until it listened; of a process that died before that, until its death."""
        while time.monotonic() - self._began < _TIMEOUT_S:
            if "listening at" in self._text() or self._process.poll() is not None:
                return time.monotonic() - self._began
            time.sleep(_POLL_S)
        raise RigError(f"{self._log}: no coordinator within {_TIMEOUT_S:g} s: {self._text()}")

    def await_end(self, expected: int) -> None:
        """Until it ends with this code."""
        try:
            code = self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RigError(f"{self._log}: no end within {_TIMEOUT_S:g} s: {self._text()}") from None
        if code != expected:
            where = "" if self._kill is None else f" at {self._kill.place}#{self._kill.occurrence}"
            raise RigError(f"{self._log}: ended with {code}, {expected} was expected{where}: {self._text()}")

    def _text(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-800:]
