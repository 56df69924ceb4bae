# SPDX-License-Identifier: Apache-2.0
"""Updates as 32-bit integers whose sum cannot overflow, so that a sum modulo 2^32 is the sum.

Masks are uniform modulo 2^32 and take a value's size away with the value. Nothing can be cut or refused afterwards, so every
member cuts its own update to the norm C, and the group sees the norm of the sum alone: at most C times its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConfigError

_LARGEST = 2**31 - 1
# Steps between zero and the clip norm that are left at least: rounding is far below what an update is worth then.
_LEAST_STEPS = 2**16


@dataclass(frozen=True)
class FixedPoint:
    """A grid for sums of up to `num_members` updates.

    Attributes:
        clip_norm: L2 norm that an update is cut to.
        num_members: most that are summed.

    Raises:
        ConfigError: so many members leave too few steps.
    """

    clip_norm: float
    num_members: int

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < float("inf") or self.num_members < 1:
            raise ConfigError(f"clip norm {self.clip_norm} of {self.num_members} members: both must be above 0, and finite")
        if self.max_steps < _LEAST_STEPS:
            raise ConfigError(
                f"a sum of {self.num_members} members in 32 bits leaves {self.max_steps} steps up to the clip norm, "
                f"{_LEAST_STEPS} are needed; make smaller groups"
            )

    @property
    def max_steps(self) -> int:
        """Largest magnitude of a member's value: so many times the members it still fits in 32 bits."""
        return _LARGEST // self.num_members

    @property
    def step(self) -> float:
        """What one step is worth."""
        return self.clip_norm / self.max_steps

    def quantize(self, values: NDArray[np.float32]) -> NDArray[np.uint32]:
        """An update (P,), cut to the clip norm, in steps modulo 2^32."""
        wide = values.astype(np.float64)
        norm = float(np.sqrt(np.square(wide).sum()))
        factor = 1.0 if norm <= self.clip_norm else self.clip_norm / norm
        # The norm bounds every coordinate; the second cut holds against the rounding of the factor.
        steps = np.clip(np.rint(wide * (factor / self.step)), -self.max_steps, self.max_steps)
        return steps.astype(np.int64).astype(np.uint32)

    def dequantize(self, total: NDArray[np.uint32], num_summed: int) -> NDArray[np.float64]:
        """The sum of so many updates, float64 (P,).

        Raises:
            ValueError: its norm is beyond what so many honest members can send: somebody did not cut its update.
        """
        summed = total.view(np.int32).astype(np.float64) * self.step
        norm = float(np.sqrt(np.square(summed).sum()))
        # Each coordinate of each member may be rounded up by half a step.
        slack = num_summed * self.step * np.sqrt(total.size) / 2
        if num_summed > self.num_members or norm > num_summed * self.clip_norm + slack:
            raise ValueError(f"a sum of norm {norm:.3g} from {num_summed} members that cut theirs to {self.clip_norm:.3g}")
        return summed
