# SPDX-License-Identifier: Apache-2.0
"""MultiKrum: the updates that have the others nearest to them (Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017).

Of n updates f may be hostile. An update's score is the sum of its squared distances to its n - f - 2 nearest neighbours; the
n - f updates with the lowest scores are kept. Hostile updates can be near each other, but they are too few to be each other's
n - f - 2 neighbours. The proof needs n >= 2 f + 3, so f is cut to that: from fewer than five updates nobody is left out.

Distances are differences and sums of squares in float64, not products of matrices: the order of a library's sums may depend on
its threads, and the choice must not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.aggregation.blocks import BLOCK_VALUES, blocks
from fedmote.aggregation.merge import Update
from fedmote.aggregation.survey import LARGEST_RATIO, lower_median
from fedmote.tensors import Tensors

# Fewest updates from which one can be left out.
FEWEST = 5


@dataclass(frozen=True)
class Choice:
    """Whose updates are kept.

    Attributes:
        kept: ids.
        distances: by id of those who were left out, the root of the score in units of the median one.
    """

    kept: frozenset[str]
    distances: Mapping[str, float]


def num_hostile(num_updates: int, share: float) -> int:
    """How many are taken for hostile."""
    return max(0, min(int(np.floor(share * num_updates + 1e-9)), (num_updates - 3) // 2))


def squared_distances(
    old: Tensors,
    names: Sequence[str],
    participants: Sequence[str],
    updates: Callable[[], Iterator[Update]],
    block_values: int = BLOCK_VALUES,
) -> NDArray[np.float64]:
    """Squared distances between updates, float64 (n, n), over coordinates that both of a pair cover.

    Args:
        old: the base model; its shapes count.
        names: tensors over which the distance is taken.
        participants: n ids, ascending.
        updates: gives the updates in ascending order of ids, as often as it is called.
        block_values: bound of the values that are held at a time.
    """
    known = {who: index for index, who in enumerate(participants)}
    total = np.zeros((len(known), len(known)))

    def asked() -> Iterator[Update]:
        return (update for update in updates() if update.participant in known)

    for block in blocks(old, names, len(known), asked, block_values):
        rows = np.array([known[who] for who in block.participants])
        values = np.where(block.is_covered, block.values, 0).astype(np.float64)
        for index, row in enumerate(rows):
            difference = (values[index + 1 :] - values[index]) * (block.is_covered[index + 1 :] & block.is_covered[index])
            found = np.square(difference).sum(axis=1)
            total[row, rows[index + 1 :]] += found
            total[rows[index + 1 :], row] += found
    return total


def choose(participants: Sequence[str], squared: NDArray[np.float64], share: float) -> Choice:
    """Whose updates are kept, of n with their squared distances (n, n); equal scores are kept in order of ids."""
    num = len(participants)
    hostile = num_hostile(num, share)
    if hostile == 0:
        return Choice(frozenset(participants), {})
    others = [np.sort(np.delete(squared[index], index)) for index in range(num)]
    scores = [float(row[: num - hostile - 2].sum()) for row in others]
    ranked = sorted(range(num), key=lambda index: (scores[index], participants[index]))
    kept, left_out = ranked[: num - hostile], ranked[num - hostile :]
    middle = lower_median(scores[index] for index in kept)
    distances = {
        participants[index]: min(float(np.sqrt(scores[index] / middle)), LARGEST_RATIO) if middle else LARGEST_RATIO
        for index in left_out
    }
    return Choice(frozenset(participants[index] for index in kept), distances)
