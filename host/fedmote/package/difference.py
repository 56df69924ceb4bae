# SPDX-License-Identifier: Apache-2.0
"""Differences: what makes a new device form out of an installed one (protocol/SPEC.md, section 9).

    header (88 bytes): whose difference, and what it makes        segments: where the next bytes have their base
    body: one range-coded stream                                  bytes: each as its change against its base

From round to round a package keeps its plan, its length and where everything lies in it, while nearly every weight moves by a
few steps of int8. So what has to be coded is many small numbers and few equal bytes, which an entropy coder does well and copy
instructions do not. The statistics are learnt on the way: how large the changes of a lane (the offset modulo three words) were of
late chooses the probabilities, since a channel's weights move alike, and so do the same bytes of float32 and int32 words.

Source: G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979; the adaptive
binary form, with a shift for a learning rate, is that of LZMA.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fedmote.errors import PackageError
from fedmote.package import container
from fedmote.wire.schema import Status

MAGIC: Final = b"FMD1"
FORMAT: Final = 1
HEADER: Final = struct.Struct("<4sHHII32s32sII")
# Numbers of the code; the device has the same (device_sdk/src/difference.h).
_CLASSES, _LENGTHS, _LANES = 3, 8, 12
_MEAN_PER_CLASS, _RATE = 32, 5
_ONE, _ONE_HALF = 1 << 16, 1 << 15
_FULL_RANGE, _SMALLEST_RANGE = (1 << 32) - 1, 1 << 24
_CODE_BYTES = 4
_LENGTH_OF = bytes(min(byte, 256 - byte).bit_length() for byte in range(256))


@dataclass(frozen=True)
class DifferenceHeader:
    """Header of a difference.

    Attributes:
        size: bytes of the difference, header included.
        crc: CRC-32 of bytes [0, 12) and [16, size).
        base_hash, target_hash: 32 bytes each, the `model_hash` of both packages.
        target_size, base_size: bytes of their device forms.
    """

    size: int
    crc: int
    base_hash: bytes
    target_hash: bytes
    target_size: int
    base_size: int

    @classmethod
    def read(cls, difference: bytes) -> DifferenceHeader:
        """Reads and checks the header, and the checksum of everything.

        Raises:
            PackageError: with DIFFERENCE or CRC.
        """
        if len(difference) < HEADER.size + _CODE_BYTES:
            message = f"{len(difference)} bytes are no difference: the header alone has {HEADER.size}"
            raise PackageError(message, Status.DIFFERENCE)
        magic, form, reserved, *fields = HEADER.unpack_from(difference)
        if magic != MAGIC:
            raise PackageError(f"no difference: it begins with {magic!r}, not {MAGIC!r}", Status.DIFFERENCE)
        if (form, reserved) != (FORMAT, 0):
            raise PackageError(f"difference of format {form} ({reserved}), this version reads {FORMAT} (0)", Status.DIFFERENCE)
        header = cls(*fields)
        if header.size != len(difference):
            raise PackageError(f"the difference has {len(difference)} bytes, its header expects {header.size}", Status.DIFFERENCE)
        expected = _checksum(difference)
        if header.crc != expected:
            raise PackageError(f"checksum {header.crc:08x} of the difference, expected {expected:08x}: it is damaged", Status.CRC)
        return header


def make_difference(base: bytes, target: bytes) -> bytes:
    """The difference that makes `target` out of `base`; the same arguments give the same bytes.

    Args:
        base: a device form; what a device has.
        target: a device form; what it is to make.

    Raises:
        PackageError: one of them is no package.
    """
    base, target = _own_bytes(base), _own_bytes(target)
    encoder = _Encoder()
    change = _Changes(encoder)
    for length, source in _segments(base, target):
        encoder.bits(length << 32 | source, 64)
        start = change.made
        for old, new in zip(base[source : source + length], target[start : start + length], strict=True):
            change.put(new - old & 0xFF)
    body = encoder.finish()
    size = HEADER.size + len(body)
    words = (MAGIC, FORMAT, 0, size, 0, container.hash_of(base), container.hash_of(target), len(target), len(base))
    blank = HEADER.pack(*words) + body
    return blank[:12] + struct.pack("<I", _checksum(blank)) + blank[16:]


def apply_difference(base: bytes, difference: bytes) -> bytes:
    """The package that a difference makes out of `base`.

    Args:
        base: a device form.
        difference: of `make_difference`, or of a stranger.

    Raises:
        PackageError: with DIFFERENCE_BASE where it starts from another package, else DIFFERENCE, CRC or one of a package's: the
            difference is damaged, or was never one.
    """
    header = DifferenceHeader.read(difference)
    base = _own_bytes(base)
    if (header.base_hash, header.base_size) != (container.hash_of(base), len(base)):
        found, wanted = container.hash_of(base).hex()[:8], header.base_hash.hex()[:8]
        message = f"the difference starts from package {wanted}... of {header.base_size} bytes, this is {found}... of {len(base)}"
        raise PackageError(message, Status.DIFFERENCE_BASE)
    target = _decode(base, difference[HEADER.size :], header.target_size)
    if _own_bytes(target) != target or container.hash_of(target) != header.target_hash:
        raise PackageError("the difference makes another package than its header says", Status.PACKAGE_HASH)
    return target


def _checksum(difference: bytes) -> int:
    return zlib.crc32(difference[16:], zlib.crc32(difference[:12]))


def _own_bytes(package: bytes) -> bytes:
    """A package without what lies behind it in a slot; PackageError where there is none."""
    container.section_spans(package)
    return package[: int.from_bytes(package[8:12], "little")]


# ---- segments -------------------------------------------------------------------------------------------------------


def _segments(base: bytes, target: bytes) -> list[tuple[int, int]]:
    """(length, offset in the base) of what the target's bytes are coded against, in their order; all lengths are above 0.

    A section begins where the same section of the base begins, so that a section which grew shifts none behind it.
    """
    sources, spans = container.section_spans(base), container.section_spans(target)
    kinds = sorted(spans, key=lambda kind: spans[kind][0])
    ends = [*(spans[kind][0] for kind in kinds[1:]), len(target)]
    pieces = [(0, spans[kinds[0]][0], 0)]
    pieces += [(spans[kind][0], end, sources.get(kind, (0, 0))[0]) for kind, end in zip(kinds, ends, strict=True)]
    segments: list[tuple[int, int]] = []
    for start, end, source in pieces:
        while start < end:
            length = min(end - start, len(base) - source)
            if segments and sum(segments[-1]) == source:
                segments[-1] = (segments[-1][0] + length, segments[-1][1])
            elif length:
                segments.append((length, source))
            start, source = start + length, 0  # behind the end of the base there is nothing to compare with
    return segments


# ---- encoder --------------------------------------------------------------------------------------------------------


class _Encoder:
    """Range coder: an interval of 32 bits, whose carry is added to bytes that are not out yet."""

    def __init__(self) -> None:
        self._low, self._range = 0, _FULL_RANGE
        self._out = bytearray()
        self._held, self._num_full = 0, -1  # a byte that a carry may change, and those of 0xFF behind it; -1: no byte yet

    def decide(self, is_upper: bool, bound: int) -> None:
        """Narrows the range to its upper or its lower part."""
        if is_upper:
            self._low += bound
            self._range -= bound
        else:
            self._range = bound
        while self._range < _SMALLEST_RANGE:
            self._range <<= 8
            self._shift()

    @property
    def range(self) -> int:
        """Of the next decision."""
        return self._range

    def bits(self, value: int, count: int) -> None:
        """Bits as they are, the highest first."""
        for shift in range(count - 1, -1, -1):
            self.decide(bool(value >> shift & 1), self._range >> 1)

    def finish(self) -> bytes:
        """The stream."""
        for _ in range(_CODE_BYTES + 1):
            self._shift()
        return bytes(self._out)

    def _shift(self) -> None:
        carry, top = self._low >> 32, self._low >> 24 & 0xFF
        if carry or top != 0xFF:
            if self._num_full >= 0:
                self._out.append(self._held + carry & 0xFF)
                self._out += bytes([0xFF + carry & 0xFF]) * self._num_full
            self._held, self._num_full = top, 0
        else:
            self._num_full += 1
        self._low = (self._low & 0x00FFFFFF) << 8


class _Changes:
    """Codes bytes as changes, with what it has learnt of those before.

    Attributes:
        made: bytes so far.
    """

    def __init__(self, encoder: _Encoder) -> None:
        self.made = 0
        self._encoder = encoder
        self._model = _Model()

    def put(self, change: int) -> None:
        """One byte: new minus old, modulo 256."""
        encoder, length = self._encoder, _LENGTH_OF[change]
        probabilities = self._model.probabilities(self.made)
        for index in range(min(length + 1, _LENGTHS)):
            is_longer = index < length
            encoder.decide(is_longer, (encoder.range >> 16) * probabilities[index])
            _learn(probabilities, index, is_longer)
        if length:
            first = 1 << length - 1
            is_negative = change > 128
            magnitude = 256 - change if is_negative else change
            encoder.bits(is_negative * first | magnitude - first, length)
        self._model.saw(self.made, length)
        self.made += 1


class _Model:
    """Probabilities, of 65536, that a magnitude has no more bits; and how many those of each lane had of late, in sixteenths."""

    def __init__(self) -> None:
        self._classes = [[_ONE_HALF] * _LENGTHS for _ in range(_CLASSES)]
        self._means = [0] * _LANES

    def probabilities(self, position: int) -> list[int]:
        """For the change of this byte, by the bits it has already."""
        return self._classes[min(self._means[position % _LANES] // _MEAN_PER_CLASS, _CLASSES - 1)]

    def saw(self, position: int, length: int) -> None:
        """The change of this byte had so many bits."""
        lane = position % _LANES
        self._means[lane] = (3 * self._means[lane] + 16 * length) // 4


def _learn(probabilities: list[int], index: int, is_longer: bool) -> None:
    value = probabilities[index]
    probabilities[index] = value - (value >> _RATE) if is_longer else value + (_ONE - value >> _RATE)


# ---- decoder --------------------------------------------------------------------------------------------------------


class _Decoder:
    """The other end of the range coder.

    Raises:
        PackageError: from any method, where the stream ends early.
    """

    def __init__(self, stream: bytes) -> None:
        self._stream: Iterator[int] = iter(stream)
        self._code, self._range = 0, _FULL_RANGE
        for _ in range(_CODE_BYTES):
            self._take()

    @property
    def range(self) -> int:
        """Of the next decision, wide enough for it."""
        while self._range < _SMALLEST_RANGE:
            self._range <<= 8
            self._take()
        return self._range

    def decide(self, bound: int) -> bool:
        """Whether the code lies in the upper part."""
        is_upper = self._code >= bound
        if is_upper:
            self._code -= bound
            self._range -= bound
        else:
            self._range = bound
        return is_upper

    def bits(self, count: int) -> int:
        """Bits as they are."""
        value = 0
        for _ in range(count):
            value = value << 1 | self.decide(self.range >> 1)
        return value

    def is_at_end(self) -> bool:
        """Whether the stream ends here, as an encoder ends it."""
        return self.range >= _SMALLEST_RANGE and self._code == 0 and next(self._stream, None) is None

    def _take(self) -> None:
        byte = next(self._stream, None)
        if byte is None:
            raise PackageError("the difference ends early", Status.DIFFERENCE)
        self._code = (self._code << 8 | byte) & 0xFFFFFFFF


def _decode(base: bytes, body: bytes, size: int) -> bytes:
    decoder, model = _Decoder(body), _Model()
    target = bytearray()
    while len(target) < size:
        length, source = decoder.bits(32), decoder.bits(32)
        if not 0 < length <= size - len(target) or source + length > len(base):
            message = f"a segment of {length} bytes at {source} leaves the base or the target"
            raise PackageError(message, Status.DIFFERENCE)
        for old in base[source : source + length]:
            target.append(old + _change(decoder, model, len(target)) & 0xFF)
    if not decoder.is_at_end():
        raise PackageError("the difference goes on behind the end of its target", Status.DIFFERENCE)
    return bytes(target)


def _change(decoder: _Decoder, model: _Model, position: int) -> int:
    """Of one byte, from -255 to 255."""
    probabilities = model.probabilities(position)
    length = 0
    while length < _LENGTHS:
        is_longer = decoder.decide((decoder.range >> 16) * probabilities[length])
        _learn(probabilities, length, is_longer)
        if not is_longer:
            break
        length += 1
    model.saw(position, length)
    if not length:
        return 0
    first = 1 << length - 1
    bits = decoder.bits(length)
    magnitude = first | bits & first - 1
    return -magnitude if bits & first else magnitude
