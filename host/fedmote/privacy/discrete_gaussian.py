# SPDX-License-Identifier: Apache-2.0
"""Exact draws from the discrete Gaussian distribution on the integers (Canonne, Kamath, Steinke, arXiv 2004.00010).

Integers and not floats, for two reasons. The gaps between floating-point numbers tell about the value below the noise (Mironov,
CCS 2012); integers have none. And a logarithm may differ in its last bit from one processor to the next, which would make a
merge that is repeated on another machine another model; integers do not. The distribution satisfies the same Renyi bounds as the
continuous one of the same variance and sensitivity, so accountants for that one hold.

Randomness is SHAKE-256 of a secret key and a label: the same key and label give the same draws, and without the key they are
random.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_BLOCK_BYTES = 1 << 15


class Bits:
    """Uniform integers from a key and a label."""

    def __init__(self, key: bytes, label: str) -> None:
        self._seed = hashlib.blake2b(label.encode(), key=key, digest_size=32).digest()
        self._counter = 0
        self._block = b""
        self._offset = 0

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound)."""
        num_bits = (bound - 1).bit_length()
        num_bytes = -(-num_bits // 8)
        while True:
            value = int.from_bytes(self._take(num_bytes), "little") & ((1 << num_bits) - 1)
            if value < bound:
                return value

    def _take(self, count: int) -> bytes:
        if self._offset + count > len(self._block):
            self._block = hashlib.shake_256(self._seed + self._counter.to_bytes(8, "little")).digest(_BLOCK_BYTES)
            self._counter, self._offset = self._counter + 1, 0
        self._offset += count
        return self._block[self._offset - count : self._offset]


def discrete_gaussian(bits: Bits, sigma: int, size: int) -> NDArray[np.int64]:
    """Draw int64 (size,) with probability proportional to exp(-x^2 / (2 sigma^2)); sigma is an integer from 1 to 2^24."""
    return np.array([_draw(bits, sigma) for _ in range(size)], np.int64)


def _draw(bits: Bits, sigma: int) -> int:
    """Algorithm 3 of the paper: a discrete Laplace draw, accepted with the ratio of the two densities."""
    scale = sigma + 1
    variance = sigma * sigma
    while True:
        value = _laplace(bits, scale)
        if _is_exp(bits, (abs(value) * scale - variance) ** 2, 2 * variance * scale * scale):
            return value


def _laplace(bits: Bits, scale: int) -> int:
    """Algorithm 2: P(x) proportional to exp(-|x| / scale)."""
    while True:
        low = bits.below(scale)
        if not _is_exp_of_fraction(bits, low, scale):
            continue
        high = 0
        while _is_exp_of_fraction(bits, 1, 1):
            high += 1
        value = low + scale * high
        is_negative = bits.below(2) == 1
        if value == 0 and is_negative:
            continue  # zero would be drawn twice as often
        return -value if is_negative else value


def _is_exp(bits: Bits, numerator: int, denominator: int) -> bool:
    """True with probability exp(-numerator / denominator)."""
    whole, rest = divmod(numerator, denominator)
    for _ in range(whole):
        if not _is_exp_of_fraction(bits, 1, 1):
            return False
    return _is_exp_of_fraction(bits, rest, denominator)


def _is_exp_of_fraction(bits: Bits, numerator: int, denominator: int) -> bool:
    """Algorithm 1: true with probability exp(-numerator / denominator), of a fraction in [0, 1]."""
    step = 1
    while bits.below(denominator * step) < numerator:
        step += 1
    return step % 2 == 1
