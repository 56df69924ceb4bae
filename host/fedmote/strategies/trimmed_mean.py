# SPDX-License-Identifier: Apache-2.0
"""Aggregation: of every coordinate the extremes are dropped, the rest is averaged.

Source: Yin, Chen, Ramchandran, Bartlett (arXiv 1803.01498). Weights are capped as in `clipped_mean`; norms are not cut, because
an update that is too long is at the end of every coordinate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedmote.aggregation import RANGE_CAP, Survey, Update, Weights, merge_ranges
from fedmote.aggregation.merge import check_update
from fedmote.aggregation.ranges import Ranges
from fedmote.aggregation.trim import trimmed_merge
from fedmote.strategies.covered_mean import Ignored, server_step
from fedmote.strategies.seams import Aggregate, MergeContext, Updates
from fedmote.tensors import Tensors


@dataclass(frozen=True)
class TrimmedMean:
    """Trim, cap, mean.

    Attributes:
        share: dropped at either end of a coordinate.
        weight_cap: limit of a weight in medians.
        weights, server_learning_rate, ignored: as in `CoveredMean`.
    """

    share: float = 0.2
    weight_cap: float = 3.0
    weights: Weights = "examples"
    server_learning_rate: float = 1.0
    ignored: Ignored = None

    def merge(self, old: Tensors, ranges: Ranges, updates: Updates, context: MergeContext) -> Aggregate:
        """One pass to look, and one for every block of coordinates. RoundError where the result is not finite."""
        survey = Survey(context.model.head, self.weights)
        seen: list[Ranges] = []
        examples: dict[str, Update] = {}
        for role, update, found in updates():
            if role is not self.ignored:
                check_update(update, old)
                survey.add(update)
                seen.append(found)
                examples[update.participant] = Update(update.participant, update.num_examples, {})
        limits = survey.limits(1.0, self.weight_cap)
        weights = {who: weight for who, one in examples.items() if (weight := limits.weight_of(one)) > 0}

        def asked() -> Iterator[Update]:
            return (update for role, update, _ in updates() if role is not self.ignored)

        merged = server_step(old, trimmed_merge(old, asked, weights, self.share), self.server_learning_rate)
        return Aggregate(merged, merge_ranges(ranges, seen, RANGE_CAP), tuple(survey.findings().values()))
