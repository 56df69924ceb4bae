# SPDX-License-Identifier: Apache-2.0
"""Shares of a secret, of which a threshold gives it back and fewer say nothing (Shamir, CACM 1979).

Byte by byte over GF(256) with AES's polynomial: a share is as long as the secret, and a microcontroller needs a table of 512
bytes or eight shifts per product, no large numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MAX_SHARES = 255
_POLYNOMIAL = 0x11B


def _tables() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Powers of the generator 3, twice over, and logarithms."""
    powers, logarithms = np.zeros(510, np.uint8), np.zeros(256, np.int64)
    value = 1
    for exponent in range(255):
        powers[exponent] = powers[exponent + 255] = value
        logarithms[value] = exponent
        value ^= value << 1
        value = value ^ _POLYNOMIAL if value & 0x100 else value
    return powers, logarithms


_POWERS, _LOGARITHMS = _tables()


def _scaled(values: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Products of all values with one factor."""
    if factor == 0:
        return np.zeros_like(values)
    products = _POWERS[_LOGARITHMS[values] + _LOGARITHMS[factor]]
    return np.where(values == 0, np.uint8(0), products)


def split(secret: bytes, threshold: int, num_shares: int, randomness: bytes) -> dict[int, bytes]:
    """Split a secret.

    Args:
        secret: any bytes.
        threshold: so many shares give it back, fewer nothing; 1 to `num_shares`.
        num_shares: up to 255.
        randomness: (threshold - 1) * len(secret) fresh random bytes: the other coefficients of the polynomials.

    Returns:
        Shares by their number, from 1.
    """
    if not 1 <= threshold <= num_shares <= MAX_SHARES or len(randomness) != (threshold - 1) * len(secret):
        raise ValueError(f"{threshold} of {num_shares} shares from {len(randomness)} random bytes")
    rows = np.frombuffer(secret + randomness, np.uint8).reshape(threshold, len(secret))
    shares = {}
    for number in range(1, num_shares + 1):
        value = rows[-1]
        for row in rows[-2::-1]:  # Horner's rule
            value = _scaled(value, number) ^ row
        shares[number] = value.tobytes()
    return shares


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from at least `threshold` shares; of more, those with the lowest numbers are used.

    ValueError where there are too few, or they have different lengths.
    """
    numbers = sorted(shares)[:threshold]
    if len(numbers) < threshold or len({len(shares[number]) for number in numbers}) != 1:
        raise ValueError(f"{len(shares)} shares, {threshold} of one length are needed")
    secret = np.zeros(len(shares[numbers[0]]), np.uint8)
    for number in numbers:
        exponent = 0  # of the Lagrange coefficient at zero: the product of other / (other - number)
        for other in numbers:
            if other != number:
                exponent += int(_LOGARITHMS[other]) - int(_LOGARITHMS[other ^ number])
        secret ^= _scaled(np.frombuffer(shares[number], np.uint8), int(_POWERS[exponent % 255]))
    return secret.tobytes()
