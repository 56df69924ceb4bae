# SPDX-License-Identifier: Apache-2.0
"""What is ordinary in a round: the median norm and the median number of examples, and what exceeds them.

The limit is set by the participants themselves, so it needs no number that an operator would have to guess, and shrinks as
training converges. More than half of them would have to be hostile to move it where they like. Medians are lower ones: of two,
the smaller. Two participants have no majority, and the smaller step is the smaller damage; of three, the middle one stands for
two honest ones against one that is not. Updates of weight or norm zero are not asked: they say nothing about a step's size, and
many of them would hold the model still.

Three numbers per participant and tensor group are kept, never an update.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from fedmote.aggregation.groups import Group, group_of, norms
from fedmote.aggregation.merge import Update, Weights


def lower_median(values: Iterable[float]) -> float | None:
    """The middle value, or the smaller one of two; None of none."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else None


# A ratio to a median of zero; finite, so that it can be written as JSON.
LARGEST_RATIO = 1e9


@dataclass(frozen=True)
class Finding:
    """What a round says about one update.

    Attributes:
        participant: whose.
        ratio: of its norm to the median norm, or of its distance from its neighbours to the median one, whichever is larger.
        is_filtered: its update, or a tensor group of it, was left out of the merge.
    """

    participant: str
    ratio: float
    is_filtered: bool = False


@dataclass(frozen=True)
class Limits:
    """What an update may be, and how one that is more is cut.

    Attributes:
        norms: largest norm by group.
        weight: largest weight.
        weights: by examples, or one each.
        head: names of the head's tensors.
    """

    norms: Mapping[Group, float]
    weight: float
    weights: Weights
    head: frozenset[str]

    def weight_of(self, update: Update) -> float:
        """What the update counts for."""
        return min(float(update.num_examples), self.weight) if self.weights == "examples" else 1.0

    def scales(self, update: Update) -> dict[str, float]:
        """Factor by tensor that brings every group of the update to its limit; 1 where it is below."""
        factors = {group: self._factor(group, norm) for group, norm in norms(update, self.head).items()}
        return {name: factors[group_of(name, self.head)] for name in update.tensors}

    def _factor(self, group: Group, norm: float) -> float:
        limit = self.norms.get(group)
        return 1.0 if limit is None or norm <= limit else limit / norm


class Survey:
    """Norms and examples of a round's updates, collected in a first pass over them."""

    def __init__(self, head: Collection[str], weights: Weights) -> None:
        self._head = frozenset(head)
        self._weights = weights
        self._norms: dict[Group, dict[str, float]] = {}
        self._examples: dict[str, int] = {}

    def add(self, update: Update) -> None:
        """Look at an update; one without weight has no say."""
        if self._weights == "examples" and update.num_examples == 0:
            return
        self._examples[update.participant] = update.num_examples
        for group, norm in norms(update, self._head).items():
            self._norms.setdefault(group, {})[update.participant] = norm

    def participants(self, group: Group) -> list[str]:
        """Who covers a group, in order of ids."""
        return sorted(self._norms.get(group, ()))

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups that somebody covers, in order of their names."""
        return tuple(sorted(self._norms))

    def limits(self, clip_factor: float, weight_cap: float, kept: Mapping[Group, Collection[str]] | None = None) -> Limits:
        """The limits of the round.

        Args:
            clip_factor: of the median norm.
            weight_cap: of the median number of examples.
            kept: by group, whose norms are asked; None, or no entry: everybody's.
        """
        medians = {group: self._median(group, (kept or {}).get(group)) for group in self._norms}
        examples = lower_median(self._examples.values())
        return Limits(
            {group: clip_factor * median for group, median in medians.items() if median is not None},
            weight_cap * (examples or 0.0),
            self._weights,
            self._head,
        )

    def findings(self) -> dict[str, Finding]:
        """Every participant's norm against the median, the largest of its groups."""
        ratios = dict.fromkeys(self._examples, 0.0)
        for group, found in self._norms.items():
            median = self._median(group, None)
            for participant, norm in found.items():
                ratios[participant] = max(ratios[participant], min(norm / median, LARGEST_RATIO) if median else 0.0)
        return {participant: Finding(participant, ratio) for participant, ratio in sorted(ratios.items())}

    def _median(self, group: Group, kept: Collection[str] | None) -> float | None:
        found = self._norms[group]
        return lower_median(norm for who, norm in found.items() if norm > 0 and (kept is None or who in kept))
