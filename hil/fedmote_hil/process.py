# SPDX-License-Identifier: Apache-2.0
"""Programs of devices and emulators: children that cannot outlive us, ended as by a power cut."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from fedmote import supervised
from fedmote.errors import RigError


class Child:
    """One running program with its output in two files.

    Attributes:
        command: what was started.
        stdout, stderr: paths of the output files.
    """

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        """Starts `command`; its output goes to `directory`.

        Raises:
            RigError: it cannot be started.
        """
        self.command = tuple(command)
        self.stdout, self.stderr = directory / "stdout.txt", directory / "stderr.txt"
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            try:
                self._process = supervised.start(command, out, err)
            except OSError as error:
                raise RigError(f"{command[0]} cannot be started: {error}") from error

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, 128 + n after signal n, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int:
        """Waits for its end and returns the exit code.

        Raises:
            RigError: it runs on; it is killed then.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RigError(f"{Path(self.command[0]).name} did not end within {timeout_s} s: {self.text()}") from None

    def kill(self) -> None:
        """Ends it at once, as a power cut would (SIGKILL), and waits until it is gone. Harmless after its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def text(self) -> str:
        """What it said on standard error so far."""
        return self.stderr.read_text(encoding="utf-8", errors="replace").strip()
