# SPDX-License-Identifier: Apache-2.0
"""`fedmote serve` as a process of its own: to be killed, stopped, measured and read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmote.supervised import Group
from fedmote_hil.faults.matrix import VainError

_ENTRY = "import sys; from fedmote.cli import main; sys.exit(main(sys.argv[1:]))"
_QUOTE_CHARACTERS = 500
_POLL_S = 0.01


def command(*arguments: str | Path) -> list[str]:
    """`fedmote ARGUMENTS`, by this Python."""
    return [sys.executable, "-c", _ENTRY, *(str(one) for one in arguments)]


def environment(**changes: str) -> dict[str, str]:
    """Ours, with a Python that finds what we find."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **changes}


class Serving:
    """One coordinator process.

    Attributes:
        began: monotonic seconds of its start.
        log, out: paths of what it says on standard error and on standard output.
    """

    def __init__(self, group: Group, words: Sequence[str], stem: Path, variables: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            group: what it ends with.
            words: the command.
            stem: path of its output files without their suffix.
            variables: of its environment, beside ours.
        """
        self.out, self.log = stem.with_suffix(".out"), stem.with_suffix(".log")
        self.began = time.monotonic()
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self._process: subprocess.Popen[bytes] = group.start(words, out, log, environment(**(variables or {})))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; harmless after its end."""
        if self.is_running:
            os.kill(self.pid, number)

    def kill9(self) -> None:
        """End it at once."""
        self.send(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """Its exit code, -n after signal n.

        Raises:
            VainError: it runs on; it is killed then.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise VainError(f"the coordinator did not end within {timeout_s:g} s: {self.quote()}") from None

    def finish(self, timeout_s: float) -> dict[str, Any]:
        """Its result, once it ended as it should; VainError otherwise."""
        code = self.wait(timeout_s)
        if code != 0:
            raise VainError(f"the coordinator ended with exit code {code}: {self.quote()}")
        return self.result()

    def result(self) -> dict[str, Any]:
        """The JSON object that it printed."""
        found: dict[str, Any] = json.loads(self.out.read_text(encoding="utf-8"))
        return found

    def words(self) -> str:
        """All that it said."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def quote(self) -> str:
        """The end of what it said."""
        return self.words()[-_QUOTE_CHARACTERS:].strip()

    def wait_for_words(self, words: str, timeout_s: float) -> float:
        """Wait until it said something; seconds since its start.

        Raises:
            VainError: it did not say so, or ended before.
        """
        while words not in self.words():
            if not self.is_running or time.monotonic() - self.began > timeout_s:
                raise VainError(f"the coordinator did not say {words!r} within {timeout_s:g} s: {self.quote()}")
            time.sleep(_POLL_S)
        return time.monotonic() - self.began

    @property
    def rss_bytes(self) -> int:
        """Memory that it holds now."""
        return memory_bytes(self.pid, "VmRSS")

    @property
    def peak_rss_bytes(self) -> int:
        """The most that it held so far."""
        return memory_bytes(self.pid, "VmHWM")

    @property
    def num_descriptors(self) -> int:
        """Descriptors that it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


def memory_bytes(pid: int, name: str) -> int:
    """A line of a process's status in bytes; 0 where the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0


def proportional_bytes(pid: int) -> int:
    """Memory of a process, pages that it shares with others counted in proportion; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0
