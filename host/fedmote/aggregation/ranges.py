# SPDX-License-Identifier: Apache-2.0
"""Merging activation ranges: the widest of what the partners saw in this round.

Ranges calibrate the int8 encoder for the new weights. They are not averaged: a mean of maxima clips the participant with
the largest activations. They are not widened over rounds either, because a range that only grows loses resolution for ever.
A layer that died in training (all zeros behind its ReLU) has a range of one point, which no int8 scale can express: it keeps
the range that it had, until somebody sees it alive again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from fedmote.errors import RoundError
from fedmote.tensors import Ranges as Ranges

# 255 steps of the smallest normal float32 scale, and a little for the rounding of the scale.
_SMALLEST_WIDTH = 256 * float(np.finfo(np.float32).tiny)


def merge_ranges(old: Mapping[str, tuple[float, float]], seen: Iterable[Mapping[str, tuple[float, float]]]) -> Ranges:
    """Take the minimum of minima and the maximum of maxima of one round.

    Args:
        old: ranges of the base checkpoint; kept for activations that nobody reports, or that were constant in this round.
        seen: one mapping per partner, each of names that `old` has.

    Returns:
        Ranges with the names of `old`.

    Raises:
        RoundError: a name is unknown, or a range is not finite or upside down.
    """
    found: Ranges = {}
    for one in seen:
        complaint = range_complaint(old, one)
        if complaint:
            raise RoundError(complaint)
        for name, (low, high) in one.items():
            before = found.get(name, (low, high))
            found[name] = (min(before[0], low), max(before[1], high))
    return {name: found[name] if name in found and _has_scale(*found[name]) else bounds for name, bounds in old.items()}


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
