# SPDX-License-Identifier: Apache-2.0
"""Child processes that cannot outlive us.

Devices and emulators are started under a few lines of shell that hold the reading end of a pipe. When the writing end closes,
because we asked or because this process died in whatever way, the shell kills its child. Unlike the kernel's
parent-death signal this does not depend on which thread started the child.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from fedmote.errors import RigError

# stdin becomes descriptor 3, which only the watcher reads: it ends when the last writer is gone.
_SUPERVISOR = """
exec 3<&0 0</dev/null
"$@" 3<&- &
child=$!
( read -r line <&3; kill -9 $child ) 2>/dev/null &
watcher=$!
wait $child
status=$?
kill $watcher 2>/dev/null
exit $status
"""


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
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _SUPERVISOR, "fedmote", *command],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,  # an interrupt at the terminal is ours to handle
                )
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
