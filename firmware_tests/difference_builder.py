# SPDX-License-Identifier: Apache-2.0
"""Differences straight from SPEC.md, section 9, in another way than the host's: an interval of unbounded fractions, no carries.

The stream of a range coder is a number: a fraction of the interval [0, 1), written in base 256. This one keeps the whole number
as a Python integer, so that adding to it needs no code for carries; what it writes must equal what the host writes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

SMALLEST = 1 << 24


class Fraction:
    """The interval [low, low + width) in units of 256^-places."""

    def __init__(self) -> None:
        self.low, self.width, self.places = 0, 2**32 - 1, 4

    def narrow(self, is_upper: bool, bound: int) -> None:
        self.low += bound * is_upper
        self.width = self.width - bound if is_upper else bound
        while self.width < SMALLEST:
            self.low, self.width, self.places = self.low * 256, self.width * 256, self.places + 1

    def raw(self, value: int, count: int) -> None:
        for bit in f"{value:0{count}b}":
            self.narrow(bit == "1", self.width // 2)

    def digits(self) -> bytes:
        return self.low.to_bytes(self.places, "big")


def encode(base: bytes, target: bytes, segments: Sequence[tuple[int, int]]) -> bytes:
    """The body of a difference with these segments, (length, offset in the base)."""
    fraction, at = Fraction(), 0
    stops = {(group, length): 0x8000 for group in range(3) for length in range(8)}
    means = [0] * 12
    for length, source in segments:
        fraction.raw(length, 32)
        fraction.raw(source, 32)
        for offset in range(length):
            change = (target[at] - base[source + offset]) % 256
            change -= 256 * (change > 128)
            size = abs(change).bit_length()
            group = min(means[at % 12] // 32, 2)
            for index in range(8):
                stop = stops[group, index]
                fraction.narrow(size > index, fraction.width // 65536 * stop)
                stops[group, index] = stop - stop // 32 if size > index else stop + (65536 - stop) // 32
                if size == index:
                    break
            if size:
                fraction.raw((change < 0) << size - 1 | abs(change) - (1 << size - 1), size)
            means[at % 12] = (3 * means[at % 12] + 16 * size) // 4
            at += 1
    return fraction.digits()


def wrap(base: bytes, target_hash: bytes, target_size: int, body: bytes) -> bytes:
    """A header before a body, and the checksum."""
    return mend(
        struct.pack("<4sHHII", b"FMD1", 1, 0, 88 + len(body), 0)
        + base[16:48]
        + target_hash
        + struct.pack("<I", target_size)
        + base[8:12]
        + body
    )


def mend(difference: bytes) -> bytes:
    """With the checksum as it ought to be."""
    crc = zlib.crc32(difference[16:], zlib.crc32(difference[:12]))
    return difference[:12] + struct.pack("<I", crc) + difference[16:]


def resize(difference: bytes) -> bytes:
    """One that was cut or made longer, with its size and its checksum as they ought to be."""
    return mend(difference[:8] + struct.pack("<I", len(difference)) + difference[12:])
