# SPDX-License-Identifier: Apache-2.0
"""What is in SQLite's write-ahead log before SQLite looks at it (https://www.sqlite.org/fileformat2.html, section 4).

    header, 32 bytes: magic, version, page size, number, salt-1, salt-2, two checksums
    frames: page number, size of the database or 0, salt-1, salt-2, two checksums; then the page

SQLite takes the frames up to the last whole transaction and drops the rest without a word. That is right, and an operator wants
to know it: after a power cut in the middle of a write, and even more where nothing was cut. Frames that an earlier turn of the
log left behind have both salts of that turn, and are no damage.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from fedmote.store.durable import store_errors

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = (0x377F0682, 0x377F0683)


@dataclass(frozen=True)
class Log:
    """A log file as it was found.

    Attributes:
        path: the file.
        size_bytes: of it.
        frame_bytes: of one frame with its page; 0 where the header is none.
        salts: of the frames, in order; two for each.
        salt: of the header.
    """

    path: Path
    size_bytes: int = 0
    frame_bytes: int = 0
    salts: tuple[tuple[int, int], ...] = ()
    salt: tuple[int, int] = (0, 0)

    @classmethod
    def read(cls, path: Path) -> Log:
        """The log of a ledger that nobody has open; an empty one where there is no file."""
        with store_errors(path):
            content = path.read_bytes() if path.exists() else b""
        if len(content) < _HEADER.size:
            return cls(path, len(content))
        magic, _, page_bytes, _, *salt, _, _ = _HEADER.unpack_from(content)
        if magic not in _MAGIC or page_bytes == 0:
            return cls(path, len(content))
        frame_bytes = _FRAME.size + page_bytes
        starts = range(_HEADER.size, len(content) - _FRAME.size + 1, frame_bytes)
        salts = tuple(_FRAME.unpack_from(content, start)[2:4] for start in starts)
        return cls(path, len(content), frame_bytes, salts, (salt[0], salt[1]))

    def damage(self, num_whole: int) -> str | None:
        """What SQLite dropped, given the number of frames that it took; None where that is nothing.

        Args:
            num_whole: frames up to the last whole transaction.
        """
        if self.size_bytes == 0:
            return None
        if self.frame_bytes == 0:
            return self._words(self.size_bytes)
        dropped = self.salts[num_whole:]
        # A frame of this turn has both of its salts; one that shares a single salt with it was damaged there.
        num_ours = sum(any(a == b for a, b in zip(salt, self.salt, strict=True)) for salt in dropped)
        rest_bytes = (self.size_bytes - _HEADER.size) % self.frame_bytes
        if num_whole < 0 or num_ours > 0 or rest_bytes > 0:
            return self._words(max(rest_bytes, self.size_bytes - _HEADER.size - max(0, num_whole) * self.frame_bytes))
        return None

    def _words(self, size_bytes: int) -> str:
        return (
            f"{self.path}: the last {size_bytes} bytes of the journal are not whole (cut off, or damaged) and do not count; "
            "going on from the entry before them"
        )
