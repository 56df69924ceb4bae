# SPDX-License-Identifier: Apache-2.0
"""A private Mosquitto on loopback, for demos and tests; what is in its files, `fedmote.fleet.broker_files` says."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedmote import supervised
from fedmote.config import CellConfig
from fedmote.errors import TransportError
from fedmote.fleet.broker_files import Binding, BrokerFiles, write_broker_files

READY_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0

_PORT_ATTEMPTS = 5
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # not on everybody's PATH


def find_mosquitto() -> Path | None:
    """The broker's program, or None."""
    found = shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES]))
    return Path(found) if found else None


class PrivateBroker:
    """A Mosquitto of our own on a free loopback port; ends with us, whatever happens to us.

    Args:
        directory: for its files and its log; kept.
        site: of the fleet.
        cells: who may log in, beside the coordinator.

    Use as a context manager, or call `start` and `stop`.
    """

    def __init__(self, directory: Path, site: str, cells: Sequence[CellConfig]) -> None:
        self._directory = Path(directory)
        self._site = site
        self._cells = tuple(cells)
        self._files: BrokerFiles | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def files(self) -> BrokerFiles:
        """Its files, once it was started."""
        if self._files is None:
            raise TransportError("the private broker was not started")
        return self._files

    @property
    def url(self) -> str:
        """Where it listens; the same after a restart."""
        return self.files.url

    @property
    def log(self) -> Path:
        """What it said."""
        return self._directory / "mosquitto.log"

    @property
    def is_running(self) -> bool:
        """Does its process live?"""
        return self._process is not None and self._process.poll() is None

    def password(self, user: str) -> str:
        """Password of a user."""
        return self.files.password(user)

    def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            TransportError: there is no mosquitto, or it does not come up; the message quotes its log.
        """
        program = find_mosquitto()
        if program is None:
            raise TransportError("mosquitto is not installed; on Debian: apt install mosquitto")
        is_first = self._files is None
        for _ in range(_PORT_ATTEMPTS if is_first else 1):
            if is_first:  # another process may take a port between our look and the broker's
                # Tests and tools connect several times as one user.
                binding = Binding(tcp_port=supervised.free_tcp_port(), is_one_connection_per_user=False)
                self._files = write_broker_files(self._directory, self._site, self._cells, binding=binding)
            self._launch(program)
            if self._is_accepting():
                return
            self.kill9()
        words = self.log.read_text(encoding="utf-8", errors="replace")[-500:].strip()
        raise TransportError(f"mosquitto did not come up at {self.url}: {words}")

    def stop(self) -> None:
        """End it in order, or at once where it does not go within a few seconds."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.stdin.write(b"\n")
                self._process.wait(STOP_TIMEOUT_S)
        self.kill9()

    def kill9(self) -> None:
        """End it at once. It keeps nothing on disk, so sessions, queues and retained messages are gone."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Kill it and start it again at the same address, with nothing remembered."""
        self.kill9()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _launch(self, program: Path) -> None:
        with self.log.open("ab") as log:
            self._process = supervised.start([program, "-c", self.files.configuration], log, log)

    def _is_accepting(self) -> bool:
        host, tcp_port = self.url.removeprefix("mqtt://").split(":")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self.is_running and time.monotonic() < deadline:
            try:
                with socket.create_connection((host, int(tcp_port)), timeout=1.0):
                    return self.is_running
            except OSError:
                time.sleep(0.02)
        return False
