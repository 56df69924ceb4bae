# SPDX-License-Identifier: Apache-2.0
"""Participants: every cell that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmote.strategies.seams import Cell


@dataclass(frozen=True)
class AllCells:
    """Waits for the whole population, and takes whoever came when the selection window ends."""

    def is_enough(self, num_complete: int, num_cells: int) -> bool:
        """Nobody is missing."""
        return num_complete == num_cells

    def choose(self, present: Sequence[Cell], seed: int) -> tuple[Cell, ...]:
        """All of them; nothing is drawn."""
        return tuple(present)
