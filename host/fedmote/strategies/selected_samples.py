# SPDX-License-Identifier: Apache-2.0
"""Plan: devices train the head on samples they select, partners train the whole model on samples that devices send.

Source: Centaur (Mo et al., arXiv 2211.04175), in two forms. *Alternating* is the published one: a device round, then a
partner round of the same cells. *Simultaneous* is one round and one merge of both, tensor by tensor. After an abandoned
device round another device round follows, since the partners got no new samples from it; after an abandoned partner round
the devices go on, so that a partner that stays away cannot stop them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedmote.strategies.seams import Cell, Member, Previous, Training
from fedmote.wire.schema import Phase, Role

_ROLES = {
    Phase.DEVICE: {Role.DEVICE},
    Phase.PARTNER: {Role.PARTNER},
    Phase.SIMULTANEOUS: {Role.DEVICE, Role.PARTNER},
}


@dataclass(frozen=True)
class SelectedSamples:
    """Centaur's plan.

    Attributes:
        form: "alternating" or "simultaneous".
        device: how a device trains its head.
        partner: how a partner trains the whole model.
    """

    form: Literal["alternating", "simultaneous"]
    device: Training
    partner: Training

    def next_phase(self, cells: Sequence[Cell], previous: Previous | None) -> Phase:
        """Device and partner rounds in turn, or always both at once."""
        if self.form == "simultaneous":
            return Phase.SIMULTANEOUS
        if previous is None or previous.phase is not Phase.DEVICE or not previous.is_committed:
            return Phase.DEVICE
        # A fleet, or a draw of cells, without partners has device rounds alone.
        has_partner = any(cell.partner for cell in cells if cell.name in previous.cells)
        return Phase.PARTNER if has_partner else Phase.DEVICE

    def population(self, cells: Sequence[Cell], previous: Previous | None) -> tuple[Cell, ...]:
        """All cells; in a partner round those of the device round before."""
        phase = self.next_phase(cells, previous)
        able = [cell for cell in cells if self.members(cell, phase)]
        if phase is Phase.PARTNER and previous is not None:
            able = [cell for cell in able if cell.name in previous.cells]
        return tuple(able)

    def members(self, cell: Cell, phase: Phase) -> tuple[Member, ...]:
        """The members of the cell with a role in this phase."""
        return tuple(member for member in cell.members() if member.role in _ROLES[phase])

    def training(self, role: Role) -> Training:
        """The role's own numbers."""
        return self.device if role is Role.DEVICE else self.partner
