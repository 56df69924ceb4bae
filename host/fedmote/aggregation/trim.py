# SPDX-License-Identifier: Apache-2.0
"""The trimmed mean of every coordinate (Yin, Chen, Ramchandran, Bartlett, arXiv 1803.01498).

Of the m who cover a coordinate the k largest and the k smallest values are dropped, k = floor(share * m), and at least one from
either end where three or more cover it: a share that rounds to nobody would be no defence. The rest is averaged by weight.
Equal values are dropped in order of ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fedmote.aggregation.blocks import BLOCK_VALUES, Block, blocks
from fedmote.aggregation.merge import Update
from fedmote.errors import RoundError
from fedmote.tensors import Tensors, finite_complaint


def num_trimmed(num_covering: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """How many are dropped at either end, by coordinate."""
    wanted = np.floor(share * num_covering + 1e-9).astype(np.int64)
    least = (num_covering >= 3).astype(np.int64)
    most = np.maximum(0, (num_covering - 1) // 2)
    return np.asarray(np.minimum(np.maximum(wanted, least), most), np.int64)


def trimmed_merge(
    old: Tensors,
    updates: Callable[[], Iterator[Update]],
    weights: Mapping[str, float],
    share: float,
    block_values: int = BLOCK_VALUES,
) -> Tensors:
    """Merge updates by the trimmed mean; a coordinate that nobody covers keeps its old value.

    Args:
        old: the base model.
        updates: gives the updates in ascending order of ids, as often as it is called.
        weights: positive, by participant; whoever is not named is left out.
        share: dropped at either end, in (0, 0.5).
        block_values: bound of the values that are held at a time.

    Raises:
        RoundError: a merged value is not finite in float32.
    """

    def weighted() -> Iterator[Update]:
        return (update for update in updates() if update.participant in weights)

    merged = {name: np.array(values, dtype=np.float32) for name, values in old.items()}
    for block in blocks(old, sorted(old), len(weights), weighted, block_values):
        flat = merged[block.name].reshape(-1)
        base = flat[block.start : block.stop].astype(np.float64)
        with np.errstate(over="ignore"):
            flat[block.start : block.stop] = (base + _trimmed(block, weights, share)).astype(np.float32)
    complaint = finite_complaint(merged)
    if complaint:
        raise RoundError(f"the merged model is refused: {complaint}; the model stays as it was")
    return merged


def _trimmed(block: Block, weights: Mapping[str, float], share: float) -> NDArray[np.float64]:
    """Steps of the block's coordinates; 0 where nobody covers one."""
    covering = block.is_covered.sum(axis=0)
    cut = num_trimmed(covering, share)
    # Those who do not cover a coordinate are sorted behind all who do.
    values = np.where(block.is_covered, block.values, np.float32(np.inf))
    rank = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0, kind="stable")
    is_kept = (rank >= cut) & (rank < covering - cut)
    column = np.array([weights[who] for who in block.participants])
    total, weight = np.zeros(len(covering)), np.zeros(len(covering))
    for row, kept, one in zip(block.values, is_kept, column, strict=True):  # in order of ids: one order of sums
        total += np.where(kept, one * np.where(kept, row, 0).astype(np.float64), 0.0)
        weight += np.where(kept, one, 0.0)
    return total / np.where(weight > 0, weight, 1.0)
