# SPDX-License-Identifier: Apache-2.0
"""Aggregation: the mean of clipped head updates with Gaussian noise: differential privacy of every device.

Source: McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models" (arXiv 1710.06963), with
integer noise (Canonne, Kamath, Steinke, arXiv 2004.00010). Every update counts alike and is cut to the norm C, so one device
changes the sum by C at most. The sum is taken on a grid of z C / 2^20 (z: the noise multiplier); an update is cut by what
rounding can add, so that C holds behind it. Noise is a function of the run's secret key and the round: a merge that is repeated
gives the same bytes, and whoever has the key can take the noise off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.aggregation import Update
from fedmote.aggregation.merge import check_update
from fedmote.aggregation.ranges import Ranges
from fedmote.errors import RoundError
from fedmote.privacy.discrete_gaussian import Bits, discrete_gaussian
from fedmote.strategies.covered_mean import Ignored, server_step
from fedmote.strategies.seams import Aggregate, MergeContext, Updates
from fedmote.tensors import Tensors, finite_complaint

# Standard deviation of the noise in steps of the grid.
_SIGMA = 1 << 20


@dataclass(frozen=True)
class PrivateMean:
    """Clip, sum on a grid, add noise, divide.

    Attributes:
        clip_norm: C.
        noise_multiplier: z.
        server_learning_rate, ignored: as in `CoveredMean`.
        divisor: of the sum; None: the number of updates, which anybody may know where nothing is drawn in secret.
    """

    clip_norm: float
    noise_multiplier: float
    server_learning_rate: float = 1.0
    ignored: Ignored = None
    divisor: int | None = None

    def merge(self, old: Tensors, ranges: Ranges, updates: Updates, context: MergeContext) -> Aggregate:
        """One pass. RoundError where the key is missing or the result is not finite."""
        if not context.noise_key:
            raise RoundError("a merge with noise needs the run's noise key, and the ledger has none")
        sums: dict[str, NDArray[np.int64]] = {}
        count = 0
        for role, update, _ in updates():
            if role is self.ignored:
                continue
            check_update(update, old)
            count += 1
            for name, steps in self.on_grid(update).items():
                sums[name] = sums[name] + steps if name in sums else steps
        merged = {name: np.array(values, dtype=np.float32) for name, values in old.items()}
        for name, total in sorted(sums.items()):
            bits = Bits(context.noise_key, f"{context.round}/{name}")
            noisy = total + discrete_gaussian(bits, _SIGMA, total.size).reshape(total.shape)
            step = noisy.astype(np.float64) * (self._grid / (self.divisor or count))
            with np.errstate(over="ignore"):
                merged[name] = (old[name].astype(np.float64) + step).astype(np.float32)
        complaint = finite_complaint(merged)
        if complaint:
            raise RoundError(f"the merged model is refused: {complaint}; the model stays as it was")
        return Aggregate(server_step(old, merged, self.server_learning_rate), ranges)

    @property
    def _grid(self) -> float:
        return self.noise_multiplier * self.clip_norm / _SIGMA

    def on_grid(self, update: Update) -> dict[str, NDArray[np.int64]]:
        """The clipped update in steps of the grid; its norm is at most C / grid."""
        size = sum(values.size for values in update.tensors.values())
        # Rounding moves each of n values by half a step at most, the norm by sqrt(n) / 2 steps.
        limit = self.clip_norm / self._grid - math.sqrt(size) / 2
        if limit <= 0:
            raise RoundError(
                f"strategy.privacy: noise_multiplier {self.noise_multiplier} leaves nothing of updates with {size} values"
            )
        wide = {name: values.astype(np.float64) / self._grid for name, values in sorted(update.tensors.items())}
        norm = math.sqrt(sum(float(np.square(values).sum()) for values in wide.values()))
        # A little below the limit: the factor itself is rounded, too.
        factor = 1.0 if norm <= limit else limit / norm * (1 - 1e-12)
        return {name: np.rint(values * factor).astype(np.int64) for name, values in wide.items()}
