# SPDX-License-Identifier: Apache-2.0
"""A few coordinates of all updates at a time, for rules that must see everybody's value of a coordinate at once.

The updates are read once per block; the memory of a block is bounded, however many participants there are and however large the
model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.aggregation.merge import Update
from fedmote.tensors import Tensors

# Values of a block: 32 MB of float32, and a few times that in what is computed from them.
BLOCK_VALUES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Block:
    """Values of coordinates `start` to `stop` of a tensor, flattened.

    Attributes:
        name: of the tensor.
        start, stop: coordinates.
        participants: who covers the tensor, in ascending order of ids.
        values: float32 (participants, coordinates); anything where it is not covered.
        is_covered: bool of the same shape.
    """

    name: str
    start: int
    stop: int
    participants: tuple[str, ...]
    values: NDArray[np.float32]
    is_covered: NDArray[np.bool_]


def blocks(
    old: Tensors,
    names: Sequence[str],
    num_participants: int,
    updates: Callable[[], Iterator[Update]],
    block_values: int = BLOCK_VALUES,
) -> Iterator[Block]:
    """Walk through tensors in blocks.

    Args:
        old: the model; the shapes count.
        names: tensors to walk through.
        num_participants: at most so many cover a tensor.
        updates: gives the updates in ascending order of ids, as often as it is called.
        block_values: bound of the values that are held.
    """
    width = max(1, block_values // max(1, num_participants))
    for spans in _passes(old, names, width):
        rows: dict[tuple[str, int, int], list[tuple[str, NDArray[np.float32], NDArray[np.bool_]]]] = {span: [] for span in spans}
        for update in updates():
            for span, found in rows.items():
                name, start, stop = span
                if name in update.tensors:
                    mask = (update.coverage or {}).get(name)
                    part = np.ones(stop - start, np.bool_) if mask is None else mask.ravel()[start:stop].copy()
                    found.append((update.participant, update.tensors[name].ravel()[start:stop].copy(), part))
        for (name, start, stop), found in rows.items():
            if found:
                who, values, masks = zip(*found, strict=True)
                yield Block(name, start, stop, who, np.stack(values), np.stack(masks))


def _passes(old: Tensors, names: Sequence[str], width: int) -> Iterator[list[tuple[str, int, int]]]:
    """Spans of coordinates, as many to a pass as `width` holds."""
    spans: list[tuple[str, int, int]] = []
    used = 0
    for name in names:
        size, start = int(old[name].size), 0
        while start < size:
            stop = min(size, start + width - used)
            spans.append((name, start, stop))
            used += stop - start
            start = stop
            if used == width:
                yield spans
                spans, used = [], 0
    if spans:
        yield spans
