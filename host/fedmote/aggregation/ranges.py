# SPDX-License-Identifier: Apache-2.0
"""Merging activation ranges: the widest of what the partners saw in this round.

Ranges calibrate the int8 encoder for the new weights. They are not averaged: a mean of maxima clips the participant with
the largest activations. They are not widened over rounds either, because a range that only grows loses resolution for ever.
A layer that died in training (all zeros behind its ReLU) has a range of one point, which no int8 scale can express: it keeps
the range that it had, until somebody sees it alive again.

The widest of what was seen is also what a single liar says. Where updates are not trusted, a bound counts for at most
`RANGE_CAP` times the median one of the round: that costs at most two bits of resolution, and an honest partner's samples seldom
reach three times what the others' do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from fedmote.errors import RoundError
from fedmote.tensors import Ranges as Ranges

RANGE_CAP = 3.0
# 255 steps of the smallest normal float32 scale, and a little for the rounding of the scale.
_SMALLEST_WIDTH = 256 * float(np.finfo(np.float32).tiny)


def merge_ranges(
    old: Mapping[str, tuple[float, float]], seen: Iterable[Mapping[str, tuple[float, float]]], cap: float | None = None
) -> Ranges:
    """Take the minimum of minima and the maximum of maxima of one round.

    Args:
        old: ranges of the base checkpoint; kept for activations that nobody reports, or that were constant in this round.
        seen: one mapping per partner, each of names that `old` has.
        cap: a bound counts for at most this many times the median one (of two, the smaller); None: for what it is.

    Returns:
        Ranges with the names of `old`.

    Raises:
        RoundError: a name is unknown, or a range is not finite or upside down.
    """
    bounds_of: dict[str, tuple[list[float], list[float]]] = {}
    for one in seen:
        complaint = range_complaint(old, one)
        if complaint:
            raise RoundError(complaint)
        for name, (low, high) in one.items():
            lows, highs = bounds_of.setdefault(name, ([], []))
            lows.append(low)
            highs.append(high)
    found = {name: (min(_capped(lows, cap)), max(_capped(highs, cap))) for name, (lows, highs) in bounds_of.items()}
    return {name: found[name] if name in found and _has_scale(*found[name]) else bounds for name, bounds in old.items()}


def _capped(bounds: list[float], cap: float | None) -> list[float]:
    """Bounds of one side, none larger in magnitude than `cap` times the lower median magnitude."""
    if cap is None:
        return bounds
    limit = cap * sorted(abs(bound) for bound in bounds)[(len(bounds) - 1) // 2]
    return [math.copysign(min(abs(bound), limit), bound) for bound in bounds]


def _has_scale(low: float, high: float) -> bool:
    """Whether int8 can express the range, with zero in it."""
    return low < high and max(high, 0.0) - min(low, 0.0) >= _SMALLEST_WIDTH


def range_complaint(known: Mapping[str, tuple[float, float]], seen: Mapping[str, tuple[float, float]]) -> str | None:
    """Say in words which range is unknown, not finite or upside down; None where all are sound."""
    for name, (low, high) in seen.items():
        if name not in known:
            return f"range of unknown activation {name}"
        if not (math.isfinite(low) and math.isfinite(high)):
            return f"range of {name} is not finite"
        if low > high:
            return f"range of {name} is upside down: {low} above {high}"
    return None
