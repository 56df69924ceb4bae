# SPDX-License-Identifier: Apache-2.0
"""A wall clock that is wrong, or steps, for one process: `wall_clock.c`, compiled when it is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fedmote.errors import RigError
from fedmote_hil.build import find_tool

HOUR_S = 3600
YEAR_S = 31_557_600
_SOURCE = Path(__file__).with_suffix(".c")


class WallClock:
    """The time of day of processes that are started with `variables`.

    Args:
        directory: for its files.
    """

    def __init__(self, directory: Path) -> None:
        self._library, self._offset = directory / "wall_clock.so", directory / "wall_clock.offset"
        self.set(0)
        command = [find_tool("gcc"), "-shared", "-fPIC", "-O1", "-o", str(self._library), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise RigError(f"{_SOURCE.name} does not compile: {done.stderr[-300:]}")

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment."""
        return {"LD_PRELOAD": str(self._library), "FEDMOTE_WALL_CLOCK": str(self._offset)}

    def set(self, offset_s: int) -> None:
        """From now on the time of day is off by so many seconds."""
        with self._offset.open("r+b" if self._offset.exists() else "w+b") as file:
            file.write(offset_s.to_bytes(8, "little", signed=True))
