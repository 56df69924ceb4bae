# SPDX-License-Identifier: Apache-2.0
"""Least squares with coefficients that are not negative: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TOLERANCE = 1e-10


def nonnegative_least_squares(a: Floats, b: Floats) -> Floats:
    """The x >= 0 that makes |a x - b| least.

    Unknowns enter the solution one by one, the one first along which the error falls fastest; those that a step would make
    negative leave it again. An unknown that enters is positive, so the error falls with each entry and the loop ends.

    Args:
        a: (equations, unknowns), any rank.
        b: (equations,).

    Returns:
        (unknowns,).
    """
    lengths = np.linalg.norm(a, axis=0)
    scaled = a / np.where(lengths > 0, lengths, 1.0)
    x = np.zeros(a.shape[1])
    is_free = np.zeros(a.shape[1], bool)
    limit = _TOLERANCE * float(np.abs(scaled.T @ b).max(initial=0.0))
    for _ in range(3 * a.shape[1]):
        slope = np.where(is_free, -np.inf, scaled.T @ (b - scaled @ x))
        if slope.max(initial=-np.inf) <= limit:
            break
        is_free[int(slope.argmax())] = True
        x = _feasible(scaled, b, x, is_free)
    return x / np.where(lengths > 0, lengths, 1.0)


def _feasible(a: Floats, b: Floats, x: Floats, is_free: NDArray[np.bool_]) -> Floats:
    """The solution in the free unknowns; `is_free` loses those that would be negative in it."""
    while True:
        wanted = np.zeros_like(x)
        wanted[is_free] = np.linalg.lstsq(a[:, is_free], b, rcond=None)[0]
        blocked = is_free & (wanted <= 0)
        if not blocked.any():
            return wanted
        step = float((x[blocked] / (x[blocked] - wanted[blocked])).min())
        x = x + step * (wanted - x)
        is_free &= x > _TOLERANCE * float(x.max(initial=0.0))
        x = np.where(is_free, x, 0.0)
