# SPDX-License-Identifier: Apache-2.0
"""Boards in QEMU: the image of the real part, its flash regions loaded from files, its serial line joined to something here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fedmote.errors import ConfigError, RigError
from fedmote.package.boards import Board
from fedmote_hil.build import find_tool
from fedmote_hil.monitor import Monitor
from fedmote_hil.process import Child


def serial_device(link: str) -> str:
    """QEMU's name for the other end of the serial line.

    Args:
        link: "tcp://host:port" or "mqtt://host:port" (a connection that is made again after a loss), "unix:PATH" (once),
            "pty" (a new pseudo terminal), or the path of a serial port.
    """
    if link == "pty":
        return "pty"
    if link.startswith("unix:"):
        return f"socket,path={_escaped(link.removeprefix('unix:'))},server=off"
    if "://" in link:
        parts = urlsplit(link)
        if parts.hostname is None or parts.port is None:
            raise ConfigError(f"{link}: expected {parts.scheme}://HOST:PORT")
        return f"socket,host={parts.hostname},port={parts.port},server=off,nodelay=on,reconnect=1"
    return f"serial,path={_escaped(link)}"


def _escaped(path: str) -> str:
    """QEMU doubles commas inside option values."""
    return path.replace(",", ",,")


class Emulator(Child):
    """A running emulated board."""

    def __init__(
        self,
        board: Board,
        image: Path,
        regions: Mapping[str, Path],
        link: str,
        directory: Path,
        is_counting: bool = False,
    ) -> None:
        """Starts it.

        Args:
            board: the board; must have an emulated machine.
            image: ELF file.
            regions: files by the board's names of its regions ("identity", "samples", ...), loaded before the core starts.
            link: see serial_device().
            directory: for its output files.
            is_counting: time passes by instructions, which the board's counters then count, instead of by the clock on the wall.

        Raises:
            RigError: no emulator for this board, QEMU is missing, or a file is larger than its region.
        """
        if board.emulator is None:
            raise RigError(f"board {board.name} has no emulator")
        self._board, self._loaded = board, frozenset(regions)
        command = [find_tool("qemu-system-arm"), "-M", board.emulator.machine, "-kernel", str(image)]
        command += ["-display", "none", "-nodefaults"]
        # A directory of its own: the path of a socket has 107 bytes at most.
        self._sockets = tempfile.TemporaryDirectory(prefix="fedmote-monitor-")
        socket = Path(self._sockets.name) / "qmp"
        self._monitor = Monitor(socket, lambda: self.is_running)
        command += ["-qmp", f"unix:{_escaped(str(socket))},server=on,wait=off"]
        command += ["-semihosting-config", "enable=on,target=native"]
        command += ["-chardev", f"{self._chardev(link)}", "-serial", "chardev:line"]
        if is_counting:
            command += ["-icount", f"shift={board.emulator.icount_shift}"]
        for name, path in regions.items():
            region, size = board.region(name), path.stat().st_size
            if size > region.bytes:
                raise RigError(f"{path} has {size} bytes, region {name} of {board.name} holds {region.bytes}")
            command += ["-device", f"loader,file={_escaped(str(path))},addr={region.address:#x},force-raw=on"]
        super().__init__(command, directory)

    def reset(self) -> None:
        """Resets the board, as its watchdog would: the serial line stays, memory keeps its contents.

        Regions that were loaded from files hold what is in the files again, the image among them.

        Raises:
            RigError: it does not run.
        """
        self._monitor.execute(("system_reset", {}))

    def is_loaded(self, names: Iterable[str]) -> bool:
        """Whether one of these regions was loaded from a file."""
        return not self._loaded.isdisjoint(names)

    def save(self, names: Iterable[str], directory: Path) -> None:
        """Stops the core between two instructions for good and writes regions to `directory`, NAME.bin each.

        Raises:
            RigError: it does not run, or a file cannot be written.
        """
        partial = directory / "region.partial"
        self._monitor.execute(("stop", {}))
        try:
            for name in names:
                region = self._board.region(name)
                # As the core sees it: the memory of some chips is no part of QEMU's system memory.
                self._monitor.execute(
                    ("memsave", {"val": region.address, "size": region.bytes, "filename": str(partial.resolve())})
                )
                partial.replace(directory / f"{name}.bin")
        finally:
            partial.unlink(missing_ok=True)

    def kill(self) -> None:
        """Ends it at once; see `Child`."""
        super().kill()
        self._sockets.cleanup()

    @staticmethod
    def _chardev(link: str) -> str:
        backend, _, rest = serial_device(link).partition(",")
        return f"{backend},id=line" + (f",{rest}" if rest else "")
