# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor (QMP, the QEMU Machine Protocol): a running emulator is stopped, reset, and its memory read."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from fedmote.errors import RigError

_ANSWER_S = 10.0


class Monitor:
    """Commands to one emulator."""

    def __init__(self, path: Path, is_running: Callable[[], bool]) -> None:
        """Nothing is connected yet.

        Args:
            path: of the socket on which the emulator listens, soon after its start.
            is_running: whether it still can.
        """
        self._path, self._is_running = path, is_running

    def execute(self, *commands: tuple[str, dict[str, Any]]) -> None:
        """Executes commands, (name, arguments) each, one after the other.

        Raises:
            RigError: the emulator does not answer, or refuses one of them.
        """
        try:
            with self._connect() as connection, connection.makefile("rw", encoding="utf-8") as stream:
                stream.readline()  # its greeting
                for name, arguments in (("qmp_capabilities", {}), *commands):
                    stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                    stream.flush()
                    _take_answer(stream, name)
        except (OSError, ValueError) as error:
            raise RigError(f"{self._path}: the emulator's monitor does not answer: {error}") from error

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + _ANSWER_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(_ANSWER_S)
            try:
                connection.connect(str(self._path))
            except OSError:  # it does not listen yet
                connection.close()
                if time.monotonic() > deadline or not self._is_running():
                    raise
                time.sleep(0.01)
            else:
                return connection


def _take_answer(stream: TextIO, name: str) -> None:
    """Reads up to the answer of a command; events may come before it."""
    while line := stream.readline():
        answer = json.loads(line)
        if "error" in answer:
            raise RigError(f"the emulator refuses {name}: {answer['error'].get('desc', answer['error'])}")
        if "return" in answer:
            return
    raise RigError(f"the emulator ended instead of answering {name}")
