# SPDX-License-Identifier: Apache-2.0
"""Participants: a fixed number of cells, drawn evenly (FedAvg's client fraction, arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmote.strategies.seams import Cell


@dataclass(frozen=True)
class RandomCells:
    """Draws `num_cells` of the cells that are there, without replacement.

    The draw waits for the selection window unless everybody is there: taking the first that come would favour the fast.
    """

    num_cells: int

    def is_enough(self, num_complete: int, num_cells: int) -> bool:
        """Nobody is missing."""
        return num_complete == num_cells

    def choose(self, present: Sequence[Cell], seed: int) -> tuple[Cell, ...]:
        """A draw from the seed over the cells in order of their names; all where fewer are there."""
        ordered = sorted(present, key=lambda cell: cell.name)
        if len(ordered) <= self.num_cells:
            return tuple(ordered)
        drawn = np.random.default_rng(seed).choice(len(ordered), size=self.num_cells, replace=False)
        return tuple(ordered[index] for index in sorted(drawn))
