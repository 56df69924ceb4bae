# SPDX-License-Identifier: Apache-2.0
"""Aggregation: updates that are far from most others are left out, the rest is merged as by `clipped_mean`.

Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries" (NeurIPS 2017). The strong rule against
many hostile participants; it needs every single update, which secure aggregation hides. Head, encoder and statistics are judged
each by themselves, so that an update may lose one and keep another. A group that fewer than five participants report is clipped
and not filtered, because distances among so few show no majority.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedmote.aggregation import RANGE_CAP, Finding, MergeRun, Survey, Update, Weights, merge_ranges
from fedmote.aggregation.groups import Group, group_of, grouped
from fedmote.aggregation.krum import Choice, choose, squared_distances
from fedmote.aggregation.merge import check_update
from fedmote.aggregation.ranges import Ranges
from fedmote.strategies.covered_mean import Ignored, server_step
from fedmote.strategies.seams import Aggregate, MergeContext, Updates
from fedmote.tensors import Tensors


@dataclass(frozen=True)
class MultiKrum:
    """Filter, clip, cap, mean.

    Attributes:
        share: of the participants that may be hostile.
        clip_factor, weight_cap: as in `ClippedMean`; medians are those of the updates that are kept.
        weights, server_learning_rate, ignored: as in `CoveredMean`.
    """

    share: float = 0.3
    clip_factor: float = 1.0
    weight_cap: float = 3.0
    weights: Weights = "examples"
    server_learning_rate: float = 1.0
    ignored: Ignored = None

    def merge(self, old: Tensors, ranges: Ranges, updates: Updates, context: MergeContext) -> Aggregate:
        """One pass to look, one per block of coordinates for the distances, one to merge; RoundError where not finite."""
        head = frozenset(context.model.head)
        survey = Survey(head, self.weights)

        def asked() -> Iterator[tuple[Update, Ranges]]:
            return ((update, found) for role, update, found in updates() if role is not self.ignored)

        for update, _ in asked():
            check_update(update, old)
            survey.add(update)
        tensors_of = grouped(old, head)
        choices: dict[Group, Choice] = {}
        for group in survey.groups:
            who = survey.participants(group)
            distances = squared_distances(old, tensors_of[group], who, lambda: (update for update, _ in asked()))
            choices[group] = choose(who, distances, self.share)
        limits = survey.limits(self.clip_factor, self.weight_cap, {group: choice.kept for group, choice in choices.items()})
        run = MergeRun(old, "ignore", self.weights)
        seen: list[Ranges] = []
        for update, found in asked():
            kept = _kept(update, choices, head)
            run.add(kept, limits.weight_of(kept), limits.scales(kept))
            if "encoder" not in choices or update.participant in choices["encoder"].kept:
                seen.append(found)
        merged = server_step(old, run.result(), self.server_learning_rate)
        return Aggregate(merged, merge_ranges(ranges, seen, RANGE_CAP), _findings(survey.findings(), choices))


def _kept(update: Update, choices: Mapping[Group, Choice], head: frozenset[str]) -> Update:
    """The update without the groups that were left out."""
    kept = {group for group, choice in choices.items() if update.participant in choice.kept}
    tensors = {name: values for name, values in update.tensors.items() if group_of(name, head) in kept}
    return Update(update.participant, update.num_examples, tensors, update.coverage)


def _findings(found: Mapping[str, Finding], choices: Mapping[Group, Choice]) -> tuple[Finding, ...]:
    """The survey's findings with the distances of those who were left out."""
    far = [choice.distances for choice in choices.values()]
    return tuple(
        Finding(who, max(one.ratio, *(distances.get(who, 0.0) for distances in far)), any(who in distances for distances in far))
        for who, one in found.items()
    )
