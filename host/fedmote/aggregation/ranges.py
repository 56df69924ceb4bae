# SPDX-License-Identifier: Apache-2.0
"""Merging activation ranges: the widest of what the partners saw in this round.

Ranges calibrate the int8 encoder for the new weights. They are not averaged: a mean of maxima clips the participant with
the largest activations. They are not widened over rounds either, because a range that only grows loses resolution for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from fedmote.errors import RoundError

# Name of an activation to (minimum, maximum), in real units.
Ranges = dict[str, tuple[float, float]]


def merge_ranges(old: Mapping[str, tuple[float, float]], seen: Iterable[Mapping[str, tuple[float, float]]]) -> Ranges:
    """Take the minimum of minima and the maximum of maxima of one round.

    Args:
        old: ranges of the base checkpoint; kept for activations that nobody reports.
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
    return {name: found.get(name, bounds) for name, bounds in old.items()}


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
