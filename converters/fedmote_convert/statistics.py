# SPDX-License-Identifier: Apache-2.0
"""What calibration samples tell of the activations of a float graph: extremes and means by channel, histograms.

One pass gives extremes and means of every channel. A channel that is divided by a factor has the same statistics, divided: so
cross-layer equalisation needs no second pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError
from fedmote.package.execute import run_float
from fedmote.package.graph import Graph, Ranges

HISTOGRAM_BINS = 4096  # sixteen to a step of int8


@dataclass(frozen=True)
class Channels:
    """Of one activation, by channel (its last axis), float32 (C,): least and greatest value, and the mean.

    Attributes:
        low, high: over all samples.
        mean: over the samples that means were asked for.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest value of all channels; NaN where there is one."""
        return float(self.low.min()), float(self.high.max())

    def divided(self, factors: NDArray[np.float64]) -> Channels:
        """The statistics of the activation with each channel divided by its positive factor."""
        return Channels(*((values / factors).astype(np.float32) for values in (self.low, self.high, self.mean)))


def observe_channels(graph: Graph, x: NDArray[np.float32], mean_samples: int) -> dict[str, Channels]:
    """Statistics of every activation over the samples x (N, ...), channels last.

    Args:
        graph: with float32 weights.
        x: at least one sample.
        mean_samples: how many of the first samples the means are taken over.

    Raises:
        ConversionError: x has another shape than the graph's input, or no sample.
    """
    if not len(x):
        raise ConversionError("no calibration samples: the ranges of the activations cannot be observed")
    seen = _observe(graph, x[:mean_samples])
    for name, rest in (_observe(graph, x[mean_samples:]) if len(x) > mean_samples else {}).items():
        first = seen[name]
        seen[name] = Channels(np.minimum(first.low, rest.low), np.maximum(first.high, rest.high), first.mean)
    return seen


def _observe(graph: Graph, x: NDArray[np.float32]) -> dict[str, Channels]:
    low: dict[str, NDArray[np.float32]] = {}
    high: dict[str, NDArray[np.float32]] = {}
    total: dict[str, NDArray[np.float64]] = {}
    rows: dict[str, int] = {}

    def add(name: str, values: NDArray[np.float32]) -> None:
        flat = values.reshape(-1, values.shape[-1])
        least, greatest = _extremes(values)
        sums = (np.ones(len(flat), np.float32) @ flat).astype(np.float64)
        if name in rows:
            least, greatest = np.minimum(low[name], least), np.maximum(high[name], greatest)
            sums += total[name]
        low[name], high[name], total[name] = least, greatest, sums
        rows[name] = rows.get(name, 0) + len(flat)

    run_float(graph, x, add)
    return {name: Channels(low[name], high[name], (total[name] / rows[name]).astype(np.float32)) for name in rows}


def _extremes(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and greatest value of each channel; of each place in a row first, because NumPy is slow on short inner axes."""
    rows = values.reshape(-1, int(np.prod(values.shape[-2:]))) if values.ndim > 2 else values
    least, greatest = (ends.reshape(-1, values.shape[-1]) for ends in (rows.min(axis=0), rows.max(axis=0)))
    return least.min(axis=0), greatest.max(axis=0)


def histograms(graph: Graph, x: NDArray[np.float32], ranges: Ranges) -> dict[str, NDArray[np.int64]]:
    """Counts of each activation's values in HISTOGRAM_BINS equal bins over its range, which must hold all of them."""
    counts: dict[str, NDArray[np.int64]] = {}

    def add(name: str, values: NDArray[np.float32]) -> None:
        low, high = ranges[name]
        per_unit = np.float32(HISTOGRAM_BINS / max(high - low, float(np.finfo(np.float32).tiny)))
        position = np.clip((values.reshape(-1) - np.float32(low)) * per_unit, 0, HISTOGRAM_BINS - 1)
        bins = np.bincount(position.astype(np.int64), minlength=HISTOGRAM_BINS)
        counts[name] = counts.get(name, np.zeros(HISTOGRAM_BINS, np.int64)) + bins

    run_float(graph, x, add)
    return counts
