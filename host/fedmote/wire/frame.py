# SPDX-License-Identifier: Apache-2.0
"""Frames for serial lines, ptys and TCP: COBS with a CRC-32 (device_sdk/protocol/SPEC.md, section 2).

COBS (Cheshire and Baker, 1999) removes the zero bytes, so that a zero ends a frame and nothing else: a receiver that
was switched on in the middle, or was fed boot text, is right again at the next zero.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from dataclasses import dataclass

from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.wire.schema import LIMIT_BODY_CEILING, LIMIT_FRAME_CRC, LIMIT_FRAME_HEADER, Channel, Status

_HEADER = struct.Struct("<BBHH")  # channel, kind, sequence, length
_CRC = struct.Struct("<I")
_BLOCK = 254  # bytes without a zero that one COBS code can announce


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        channel: coordinator or cell.
        kind: of the message; a number, because a newer peer may send kinds that we do not know.
        sequence: counts the frames of one direction, modulo 65536.
        body: of the message, unopened.
    """

    channel: Channel
    kind: int
    sequence: int
    body: bytes


def encode_frame(frame: Frame) -> bytes:
    """The bytes on the line, with the zero at the end; LocalWireError where a field does not fit."""
    if len(frame.body) > LIMIT_BODY_CEILING:
        raise LocalWireError(Status.BODY_TOO_LARGE, f"a body of {len(frame.body)} bytes")
    try:
        head = _HEADER.pack(frame.channel, frame.kind, frame.sequence & 0xFFFF, len(frame.body))
    except struct.error as error:
        raise LocalWireError(Status.ARGUMENT, f"kind {frame.kind}: {error}") from error
    content = head + frame.body
    return cobs_encode(content + _CRC.pack(zlib.crc32(content))) + b"\0"


def decode_frame(encoded: bytes) -> Frame:
    """The frame in the bytes between two zeros; RemoteWireError in the order cobs, length, crc, channel."""
    content = cobs_decode(encoded)
    if len(content) < LIMIT_FRAME_HEADER + LIMIT_FRAME_CRC:
        raise RemoteWireError(Status.FRAME_LENGTH, f"{len(content)} bytes are no frame")
    channel, kind, sequence, length = _HEADER.unpack_from(content)
    if len(content) != LIMIT_FRAME_HEADER + length + LIMIT_FRAME_CRC:
        raise RemoteWireError(Status.FRAME_LENGTH, f"{len(content)} bytes with a body of {length}")
    if _CRC.unpack(content[-LIMIT_FRAME_CRC:])[0] != zlib.crc32(content[:-LIMIT_FRAME_CRC]):
        raise RemoteWireError(Status.FRAME_CRC, "checksum differs")
    if channel not in (Channel.COORDINATOR, Channel.CELL):
        raise RemoteWireError(Status.FRAME_CHANNEL, f"channel {channel}")
    return Frame(Channel(channel), kind, sequence, content[LIMIT_FRAME_HEADER:-LIMIT_FRAME_CRC])


class FrameDecoder:
    """Frames out of a stream; holds at most one frame of `max_body` bytes.

    Attributes:
        errors: frames that were dropped, by reason.
        num_lost: frames that the sequence numbers say are missing.
    """

    def __init__(self, max_body: int = LIMIT_BODY_CEILING) -> None:
        content = LIMIT_FRAME_HEADER + max_body + LIMIT_FRAME_CRC
        self._max_encoded = content + content // _BLOCK + 1
        self._pending = bytearray()
        self._is_skipping = False
        self._expected: int | None = None
        self.errors: Counter[Status] = Counter()
        self.num_lost = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Whatever is no frame is counted and dropped."""
        *ended, rest = bytes(data).split(b"\0")
        frames = [frame for piece in ended if (frame := self._finish(piece)) is not None]
        self._hold(rest)
        return frames

    def _hold(self, piece: bytes) -> None:
        """Keep an unfinished frame, unless it is longer than any frame can be."""
        if self._is_skipping or not piece:
            return
        if len(self._pending) + len(piece) > self._max_encoded:
            self._pending.clear()
            self._is_skipping = True
            self.errors[Status.FRAME_LENGTH] += 1
        else:
            self._pending += piece

    def _finish(self, piece: bytes) -> Frame | None:
        """What a zero ends: a frame, nothing, or something that is dropped."""
        self._hold(piece)
        encoded = bytes(self._pending)
        self._pending.clear()
        if self._is_skipping:
            self._is_skipping = False
            return None
        if not encoded:
            return None
        try:
            frame = decode_frame(encoded)
        except RemoteWireError as error:
            self.errors[error.status] += 1
            return None
        self._count(frame.sequence)
        return frame

    def _count(self, sequence: int) -> None:
        if self._expected is not None:
            gap = (sequence - self._expected) & 0xFFFF
            self.num_lost += gap if gap < 0x8000 else 0  # a step back is a peer that began anew
        self._expected = (sequence + 1) & 0xFFFF


def cobs_encode(data: bytes) -> bytes:
    """Bytes without zeros; the zero at the end is the caller's."""
    encoded = bytearray()
    runs = data.split(b"\0")
    for index, run in enumerate(runs):
        start = 0
        while len(run) - start >= _BLOCK:
            encoded.append(_BLOCK + 1)
            encoded += run[start : start + _BLOCK]
            start += _BLOCK
        is_last = index == len(runs) - 1
        if not (is_last and start and start == len(run)):  # after a full block at the end there is nothing to say
            encoded.append(len(run) - start + 1)
            encoded += run[start:]
    return bytes(encoded)


def cobs_decode(encoded: bytes) -> bytes:
    """The original of bytes without zeros; RemoteWireError where a code points behind the end."""
    decoded = bytearray()
    position = 0
    while position < len(encoded):
        code = encoded[position]
        end = position + code
        if code == 0 or end > len(encoded):
            raise RemoteWireError(Status.FRAME_COBS, f"code {code} at {position} of {len(encoded)}")
        decoded += encoded[position + 1 : end]
        if code <= _BLOCK and end < len(encoded):
            decoded.append(0)
        position = end
    return bytes(decoded)
