# SPDX-License-Identifier: Apache-2.0
"""The two package slots of a device as bytes (device_sdk/protocol/SPEC.md, section 7, "Slots")."""

from __future__ import annotations

import struct
import zlib

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board
from fedmote.package.budget import SLOT_END_BYTES

_RECORD = struct.Struct("<4sII")  # magic, generation, package size; then their CRC-32
_ERASED = b"\xff"
_MARK = b"FMCRFMCR"
_TRIALS = 3


def slots_with_package(package: bytes, board: Board) -> bytes:
    """Both slots of a device that has installed `package` (device form) once, in slot 0, and confirmed it.

    Raises:
        DoesNotFitError: the package is larger than a slot of the board.
    """
    room = board.slot_bytes - SLOT_END_BYTES
    if len(package) > room:
        raise DoesNotFitError(board.name, "slot", len(package), room)
    record = _RECORD.pack(b"FMCR", 1, len(package))
    record += struct.pack("<I", zlib.crc32(record))
    marks = _ERASED * (_TRIALS * len(_MARK)) + _MARK
    return package.ljust(room, _ERASED) + marks + record + _ERASED * board.slot_bytes
