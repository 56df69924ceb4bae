# SPDX-License-Identifier: Apache-2.0
"""Ranges that leave a few extreme values outside, so that all others get finer steps.

Of an activation's values there is a histogram between its extremes. A range [low, high] of 255 steps rounds what is inside to the
nearest step and moves what is outside to its ends; zero is exact in every range.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEVELS = 255
_SWEEPS = 2  # over both ends of a range, one after the other


def percentile_range(counts: NDArray[np.int64], low: float, high: float, percentile: float) -> tuple[float, float]:
    """The range that leaves 100 - percentile percent of the values above it, and as many below it.

    Args:
        counts: histogram (B,) of equal bins between low and high.
        low: least of the values.
        high: greatest of the values.
        percentile: above 50, at most 100.
    """
    edges = np.linspace(low, high, len(counts) + 1)
    below = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    share = percentile / 100
    upper = edges[np.searchsorted(below, share, side="left")]
    lower = edges[np.searchsorted(below, 1 - share, side="right") - 1]
    return (float(lower), float(upper)) if lower < upper else (low, high)


def least_squares_range(counts: NDArray[np.int64], low: float, high: float, steps: int) -> tuple[float, float]:
    """The range with the least sum of squared errors, of rounding inside and of clipping outside.

    Each end is moved towards zero by `steps` equal steps while the other one stays (Migacz, "8-bit Inference with TensorRT", GTC
    2017, searches a histogram like this; the measure here is the squared error).

    Args:
        counts: histogram (B,) of equal bins between low and high.
        low: least of the values.
        high: greatest of the values.
        steps: candidates of one end.
    """
    edges = np.linspace(low, high, len(counts) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    # The bin of zero holds the zeros of a ReLU, which cost nothing.
    weights = np.where((edges[:-1] <= 0) & (edges[1:] > 0), 0, counts).astype(np.float64)
    shares = np.arange(1, steps + 1) / steps
    best = (min(low, 0.0), max(high, 0.0))
    for _ in range(_SWEEPS):
        for end, reach in ((0, min(low, 0.0)), (1, max(high, 0.0))):
            candidates = np.repeat(np.array([best]), steps, axis=0)
            candidates[:, end] = reach * shares
            best = _least(candidates, centres, weights)
    return best if best[0] < best[1] else (low, high)


def _least(candidates: NDArray[np.float64], centres: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Of candidates (K, 2) the one with the least error."""
    lows, highs = candidates[:, :1], candidates[:, 1:]
    outside = np.maximum(lows - centres, 0) + np.maximum(centres - highs, 0)
    rounding = ((highs - lows) / _LEVELS) ** 2 / 12
    errors = (weights * np.where(outside > 0, outside**2, rounding)).sum(axis=1)
    errors = np.where(highs[:, 0] > lows[:, 0], errors, np.inf)
    low, high = candidates[int(errors.argmin())]
    return float(low), float(high)
