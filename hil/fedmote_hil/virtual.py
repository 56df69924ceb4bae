# SPDX-License-Identifier: Apache-2.0
"""A device without hardware: the SDK's own program as a process (`posix`), or the image of a board in the emulator."""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from fedmote.errors import ConfigError, RigError, TransportError
from fedmote.package.boards import Board
from fedmote_hil.build import build
from fedmote_hil.emulator import Emulator
from fedmote_hil.process import Child
from fedmote_hil.slots import slots_with_package

_PTY = re.compile(r"(/dev/\S+)")
_PTY_TIMEOUT_S = 10.0
_SLOTS = ("slot0", "slot1")  # regions of flash, one for each
_JOURNAL = ("journal0", "journal1")
_ERASED = b"\xff"


class VirtualDevice:
    """One device that can be started, killed as by a power cut, and started again.

    Packages and journal outlive a restart on `posix`, whose flash is a file, and on boards whose flash is emulated (nrf51822):
    what they hold at the instant of the cut is read from the emulator and loaded at the next start. Elsewhere an emulated board's
    slots are RAM, and packages do not outlive it; its journal, where there is RAM for one (stm32f405), does.

    Attributes:
        board: its board.
        id: its name, for messages.
        link: where its byte stream goes: "mqtt://host:port" or "tcp://host:port" (connected again after a loss), "pty" (a
            new pseudo terminal, see `port`), or the path of a serial port. What is spoken there, MQTT or serial frames, is
            a matter of the identity.
        directory: its files; kept over restarts.
    """

    def __init__(
        self,
        board: Board | str,
        id: str,
        samples_region: bytes,
        identity_region: bytes | None,
        link: str,
        *,
        package: bytes | None = None,
        directory: Path | None = None,
        is_checked: bool = False,
    ) -> None:
        """Writes the device's files; nothing runs yet.

        Args:
            board: the board or its name.
            id: the device's name.
            samples_region: bytes as `fedmote.wire.regions` makes them.
            identity_region: the same; None, on a board whose flash is emulated: erased, and kept over restarts.
            link: see above.
            package: device form of a package that is installed already.
            directory: for the files; a temporary one, removed with this object, where None. The journal is there, which counts
                boots: a device with keys whose count begins anew is not believed any more.
            is_checked: an image that ends with a report when it does something wrong, see `log()` and `fedmote_hil.build`.

        Raises:
            DoesNotFitError: the package is larger than a slot.
            ConfigError: no such board, or a link that cannot be read.
            TransportError: no such serial port.
        """
        self.board = Board.load(board) if isinstance(board, str) else board
        self.id = id
        self.link = link
        self._is_checked = is_checked
        self._temporary = tempfile.TemporaryDirectory(prefix=f"fedmote-{id}-") if directory is None else None
        self.directory = Path(self._temporary.name) if self._temporary else Path(directory or ".")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._child: Child | None = None
        _stream_options(link)
        self._write("samples", samples_region)
        self._is_unprovisioned = identity_region is None
        self._write("identity", _ERASED * self.board.region("identity").bytes if identity_region is None else identity_region)
        if package is not None:
            self._write_slots(slots_with_package(package, self.board))

    def start(self) -> None:
        """Builds the image where needed and starts it.

        Raises:
            RigError: it runs already, a tool is missing, or the build fails.
        """
        if self.is_running:
            raise RigError(f"device {self.id} runs already")
        image = build(self.board, is_checked=self._is_checked)
        if self.board.emulator is None:
            command = [str(image.path), "--identity", str(self._path("identity")), "--samples", str(self._path("samples"))]
            command += ["--flash", str(self._path("flash")), "--events", *_stream_options(self.link)]
            self._child = Child(command, self.directory)
        else:
            names = ("identity", "samples", *_slot_regions(self.board), *_journal_regions(self.board))
            regions = {name: self._path(name) for name in names if self._path(name).exists()}
            self._child = Emulator(self.board, image.path, regions, self.link, self.directory)

    def kill(self) -> None:
        """Ends it at once, as a power cut does. Harmless where it does not run."""
        child, self._child = self._child, None
        if child is None:
            return
        try:
            kept = (*(_SLOTS if self._has_flash else ()), *_journal_regions(self.board))
            kept += ("identity",) if self._is_unprovisioned and self._has_flash else ()
            if kept and isinstance(child, Emulator) and child.is_running:
                child.save(kept, self.directory)
        except RigError:
            if child.is_running:  # else it ended by itself meanwhile, and its flash with it
                raise
        finally:
            child.kill()

    def stop(self) -> None:
        """Ends it. A device has no orderly end: it must survive any."""
        self.kill()

    def restart(self) -> None:
        """Ends it and starts it again, with its files as they are."""
        self.kill()
        self.start()

    def reset(self) -> None:
        """Resets an emulated board while its line stays, as a watchdog does; what slots and journal hold, RAM or flash, it keeps.

        Raises:
            RigError: it does not run, is no emulated board, or began with slots or journal from files, which a reset would load
                again.
        """
        if not isinstance(self._child, Emulator):
            raise RigError(f"device {self.id} is no emulated board that runs; only these can be reset")
        if self._child.is_loaded((*_slot_regions(self.board), *_journal_regions(self.board))):
            raise RigError(
                f"device {self.id} began with slots or journal from files, which a reset would load again; restart it instead"
            )
        self._child.reset()

    def halt_and_read(self, region: str) -> bytes:
        """What a region of an emulated board holds at this instant; the core stands still from then on.

        Raises:
            RigError: it does not run, or is no emulated board.
            ConfigError: the board has no such region.
        """
        if not isinstance(self._child, Emulator):
            raise RigError(f"device {self.id} is no emulated board that runs; only these can be read")
        self._child.save([region], self.directory)
        return self._path(region).read_bytes()

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self._child is not None and self._child.is_running

    @property
    def exit_code(self) -> int | None:
        """Exit code of a process that ended by itself; None where it runs or never ran."""
        return None if self._child is None else self._child.exit_code

    @property
    def port(self) -> str:
        """Path of the other end of its pseudo terminal, for link "pty".

        Raises:
            RigError: it does not run, or made no pseudo terminal.
        """
        if self._child is None:
            raise RigError(f"device {self.id} does not run")
        deadline = time.monotonic() + _PTY_TIMEOUT_S
        while time.monotonic() < deadline:
            found = _PTY.search(self._child.stdout.read_text(encoding="utf-8"))
            if found is not None:
                return found[1]
            if not self._child.is_running:
                break
            time.sleep(0.01)
        raise RigError(f"device {self.id} made no pseudo terminal: {self._child.text()}")

    def log(self) -> str:
        """What it said on standard error: events of a process, faults of an emulated board."""
        return "" if self._child is None else self._child.text()

    @property
    def _has_flash(self) -> bool:
        """Whether its slots are flash that the emulator models."""
        return _slot_regions(self.board) == _SLOTS

    def _write_slots(self, content: bytes) -> None:
        """The files of both slots: of one region, of a region each, or a process's flash with an empty journal behind them."""
        if self.board.emulator is None:
            self._write("flash", content + _ERASED * (2 * self.board.journal_bytes))
            return
        names = _slot_regions(self.board)
        part = len(content) // len(names)
        for index, name in enumerate(names):
            self._write(name, content[index * part : (index + 1) * part])

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.bin"

    def _write(self, name: str, content: bytes) -> None:
        """A file of the device; private, since identities hold passwords."""
        path = self._path(name)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        if self._temporary is not None:
            self._temporary.cleanup()


def _slot_regions(board: Board) -> tuple[str, ...]:
    """Names of the regions where an emulated board has its slots; none for a process."""
    if "ram_slots" in board.regions:
        return ("ram_slots",)
    return _SLOTS if board.regions else ()


def _journal_regions(board: Board) -> tuple[str, ...]:
    """Names of the regions where an emulated board has its journal; none for a process, or where it has none in the emulator."""
    if "ram_slots" in board.regions:
        return ("ram_journal",) if "ram_journal" in board.regions else ()
    return _JOURNAL if board.regions else ()


def _stream_options(link: str) -> list[str]:
    """Options of fedmote-device for a link."""
    if link == "pty":
        return ["--pty"]
    if "://" not in link:
        if not Path(link).is_char_device():
            raise TransportError(f"link {link!r}: no such serial port; expected a port of this machine, or pty for a new one")
        return ["--serial", link]
    try:
        parts = urlsplit(link)
        if parts.scheme in ("mqtt", "tcp") and parts.hostname and parts.port:
            return ["--connect", f"{parts.hostname}:{parts.port}"]
    except ValueError:  # a port that is no number
        pass
    raise ConfigError(f"link {link!r}: expected mqtt://HOST:PORT, tcp://HOST:PORT, pty or the path of a serial port")
