# SPDX-License-Identifier: Apache-2.0
"""A group whose members' updates are summed under masks, as a round has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedmote.privacy.fixed_point import FixedPoint
from fedmote.wire.masking import Ring


@dataclass(frozen=True)
class MaskedGroup:
    """What a masked sum depends on beside the members' blobs.

    Attributes:
        name: of the group, for people.
        id: its random name, 8 bytes.
        ring: who is whose neighbour.
        clip_norm: that members cut their updates to, as a float32 has it.
        numbers: of the members that take part, by id.
    """

    name: str
    id: bytes
    ring: Ring
    clip_norm: float
    numbers: Mapping[str, int]

    @classmethod
    def of(cls, name: str, id: bytes, ring: Ring, clip_norm: float, numbers: Mapping[str, int]) -> MaskedGroup:
        """With the clip norm as members are told it."""
        return cls(name, id, ring, float(np.float32(clip_norm)), numbers)

    @property
    def grid(self) -> FixedPoint:
        """In which members write their updates."""
        return FixedPoint(self.clip_norm, self.ring.num_members)
