# SPDX-License-Identifier: Apache-2.0
"""Plan: partners train the whole model on all data that they hold; devices are left in peace.

Source: FedAvg (McMahan et al., arXiv 1602.05629), where every client trains the same tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmote.strategies.seams import Cell, Member, Previous, Training
from fedmote.wire.schema import Phase, Role


@dataclass(frozen=True)
class WholeModel:
    """FedAvg's plan.

    Attributes:
        partner: how a partner trains.
    """

    partner: Training

    def next_phase(self, cells: Sequence[Cell], previous: Previous | None) -> Phase:
        """Always the partners'."""
        return Phase.PARTNER

    def population(self, cells: Sequence[Cell], previous: Previous | None) -> tuple[Cell, ...]:
        """Cells with a partner."""
        return tuple(cell for cell in cells if cell.partner is not None)

    def members(self, cell: Cell, phase: Phase) -> tuple[Member, ...]:
        """The partner."""
        return tuple(member for member in cell.members() if member.role is Role.PARTNER)

    def training(self, role: Role) -> Training:
        """The partner's numbers."""
        return self.partner
