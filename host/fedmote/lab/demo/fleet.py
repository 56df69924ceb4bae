# SPDX-License-Identifier: Apache-2.0
"""Processes of the demonstration: the real commands, in a work directory, none of which can outlive the demonstration.

Each is supervised: when we are done, or died in whatever way, it is ended, politely first. So an interrupt leaves no broker, no
emulator and no partner behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedmote import supervised
from fedmote.errors import DeviceError, FedmoteError, RoundError

# A process that ignores SIGTERM for so long is killed.
_GRACE_S = 5
_POLL_S = 0.05
# How much of a log stands in an error message.
_QUOTE_CHARACTERS = 800
_ENTRY = "import sys; from fedmote.cli import main; sys.exit(main(sys.argv[1:]))"


class Process:
    """One command with its output in two files.

    Attributes:
        name: of the process, and of its files.
        out, log: paths of what it wrote to stdout and stderr.
    """

    def __init__(self, name: str, arguments: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        """Start `fedmote` with arguments."""
        self.name = name
        self.out, self.log = directory / f"{name}.out", directory / f"{name}.log"
        command = [sys.executable, "-c", _ENTRY, *arguments]
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self._process = supervised.start(command, out, log, grace_s=_GRACE_S, environment=environment)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """Let it end; does not wait."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def stop(self) -> None:
        """End it and wait until it is gone."""
        self.ask_to_end()
        self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """Its exit code; DeviceError, after ending it, where it runs on."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise DeviceError(f"{self.name} did not end within {timeout_s:.0f} s: {self.quote()}") from None

    def quote(self) -> str:
        """The end of what it said."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-_QUOTE_CHARACTERS:].strip()

    def first_line(self, timeout_s: float) -> str:
        """The first line on its stdout; DeviceError where there is none in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            text = self.out.read_text(encoding="utf-8", errors="replace")
            if "\n" in text:
                return text.splitlines()[0]
            if self.exit_code is not None:
                break
            time.sleep(_POLL_S)
        raise DeviceError(f"{self.name} said nothing within {timeout_s:.0f} s: {self.quote()}")


class Fleet:
    """Processes that end together. Use as a context manager.

    Args:
        directory: of their files.
        python_path: directories that their Python finds modules in, beside ours.
    """

    def __init__(self, directory: Path, python_path: Sequence[Path] = ()) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        paths = [*(str(path) for path in python_path), *(path for path in sys.path if path)]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        self._processes: list[Process] = []

    def start(self, name: str, *arguments: str | Path) -> Process:
        """Start `fedmote ARGUMENTS` beside us."""
        process = Process(name, [str(one) for one in arguments], self.directory, self._environment)
        self._processes.append(process)
        return process

    def run(self, name: str, timeout_s: float, *arguments: str | Path) -> str:
        """Run `fedmote ARGUMENTS` to its end and return its stdout.

        Raises:
            FedmoteError: it failed; the message is its own.
        """
        process = self.start(name, *arguments)
        if process.wait(timeout_s) != 0:
            raise FailedCommandError(name, process)
        return process.out.read_text(encoding="utf-8")

    def watch(self, leader: Process, timeout_s: float, talk: Callable[[str], None] | None = None) -> None:
        """Wait for one process while the others must live.

        Args:
            leader: the process.
            timeout_s: it is given up after this time.
            talk: gets each line that the leader says on stderr.

        Raises:
            RoundError: the leader does not end in time.
            FailedCommandError: one of the others ended, or the leader failed.
        """
        deadline = time.monotonic() + timeout_s
        num_said = 0
        while leader.exit_code is None:
            num_said = _pass_on(leader, num_said, talk)
            for process in self._processes:
                if process is not leader and process.exit_code not in (None, 0):
                    raise FailedCommandError(process.name, process)
            if time.monotonic() > deadline:
                raise RoundError(f"{leader.name} did not end within {timeout_s:.0f} s: {leader.quote()}")
            time.sleep(_POLL_S)
        _pass_on(leader, num_said, talk)
        if leader.exit_code != 0:
            raise FailedCommandError(leader.name, leader)

    def close(self) -> None:
        """End all processes, the youngest first."""
        for process in reversed(self._processes):
            process.ask_to_end()
        for process in reversed(self._processes):
            process.stop()
        self._processes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _pass_on(process: Process, num_said: int, talk: Callable[[str], None] | None) -> int:
    """Pass on whole lines of a log behind the first `num_said`; how many there are now."""
    if talk is None:
        return 0
    lines = process.log.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for line in lines[num_said:]:
        talk(f"  {line}")
    return len(lines)


class FailedCommandError(FedmoteError):
    """A command of the demonstration failed; it ends with that command's exit code."""

    def __init__(self, name: str, process: Process) -> None:
        code = process.exit_code or 0
        super().__init__(f"{name} ended with exit code {code}: {process.quote() or 'no words'} (log: {process.log})")
        self.exit_code = code if code in (1, 2, 3) else 4
