# SPDX-License-Identifier: Apache-2.0
"""Aggregation: every update is cut to the median norm of its round, its weight to a multiple of the median; then the mean.

The default. Source of the rule: norm bounding (Sun, Kairouz, Suresh, McMahan, arXiv 1911.07963), with the round's own median as
the bound, as in robust federated learning by clipping (arXiv 2002.11497). It costs an honest fleet next to nothing, because the
direction of every update stays, and takes the force from updates that are many times as long as the others. Which tensors share
a norm, and why, stands in `fedmote.aggregation.groups`; what holds for one, two and three participants in
`fedmote.aggregation.survey`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmote.aggregation import RANGE_CAP, MergeRun, Survey, Uncovered, Weights, merge_ranges
from fedmote.aggregation.ranges import Ranges
from fedmote.strategies.covered_mean import Ignored, server_step
from fedmote.strategies.seams import Aggregate, MergeContext, Updates
from fedmote.tensors import Tensors


@dataclass(frozen=True)
class ClippedMean:
    """Clip, cap, mean.

    Attributes:
        clip_factor: limit of a norm in medians.
        weight_cap: limit of a weight in medians.
        uncovered, weights, server_learning_rate, ignored: as in `CoveredMean`.
    """

    clip_factor: float = 1.0
    weight_cap: float = 3.0
    uncovered: Uncovered = "ignore"
    weights: Weights = "examples"
    server_learning_rate: float = 1.0
    ignored: Ignored = None

    def merge(self, old: Tensors, ranges: Ranges, updates: Updates, context: MergeContext) -> Aggregate:
        """Two passes: one looks, one merges. RoundError where the result is not finite."""
        survey = Survey(context.model.head, self.weights)
        for role, update, _ in updates():
            if role is not self.ignored:
                survey.add(update)
        limits = survey.limits(self.clip_factor, self.weight_cap)
        run = MergeRun(old, self.uncovered, self.weights)
        seen: list[Ranges] = []
        for role, update, found in updates():
            if role is not self.ignored:
                run.add(update, limits.weight_of(update), limits.scales(update))
                seen.append(found)
        merged = server_step(old, run.result(), self.server_learning_rate)
        return Aggregate(merged, merge_ranges(ranges, seen, RANGE_CAP), tuple(survey.findings().values()))
