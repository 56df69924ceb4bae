# SPDX-License-Identifier: Apache-2.0
"""Activation ranges of several observers become one: the minimum of minima and the maximum of maxima."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fedmote.errors import ConversionError
from fedmote.package.execute import observe
from fedmote.package.graph import Ranges

__all__ = ["freeze", "merge", "observe"]


def merge(observed: Iterable[Ranges]) -> Ranges:
    """Merges what participants observed at the same points; a point that only some observed is kept.

    The result does not depend on the order of the observers, but for the order of its keys.

    Raises:
        ConversionError: a limit is not finite: nothing sensible can be made of it.
    """
    merged: Ranges = {}
    for ranges in observed:
        for name, (low, high) in ranges.items():
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ConversionError(f"activation {name}: the observed range [{low}, {high}] is not finite")
            old = merged.get(name, (low, high))
            merged[name] = (min(old[0], low), max(old[1], high))
    return merged


def freeze(ranges: Ranges, frozen: Ranges, names: Sequence[str]) -> Ranges:
    """`ranges`, with those of `names` and all that are missing taken from `frozen`.

    The range of the model's input is frozen for the life of a task: devices store their samples as int8 in its quantization.
    """
    return frozen | {name: limits for name, limits in ranges.items() if name not in names}
