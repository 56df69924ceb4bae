# SPDX-License-Identifier: Apache-2.0
"""Aggregation: the weighted mean over those who trained a coordinate, once per round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmote.aggregation import MergeRun, Uncovered, Update, Weights, merge_ranges
from fedmote.aggregation.ranges import Ranges
from fedmote.errors import RoundError
from fedmote.tensors import Tensors, finite_complaint
from fedmote.wire.schema import Role

# Batch statistics are observations, not steps: a server learning rate above one could make a variance negative.
_STATISTICS = (".running_mean", ".running_var")


@dataclass(frozen=True)
class CoveredMean:
    """The merge core under a server learning rate.

    Attributes:
        uncovered: what a participant counts for where it trained nothing.
        weights: by examples, or one each.
        server_learning_rate: the merged delta is scaled by it (McMahan's FedAvg has 1).
        ignored: a role whose updates are kept in the journal and left out of the merge, for baselines; or None.
    """

    uncovered: Uncovered = "ignore"
    weights: Weights = "examples"
    server_learning_rate: float = 1.0
    ignored: Literal[Role.DEVICE, Role.PARTNER] | None = None

    def merge(
        self, old: Tensors, ranges: Ranges, updates: Callable[[], Iterator[tuple[Role, Update, Ranges]]]
    ) -> tuple[Tensors, Ranges]:
        """One pass over the updates; RoundError where the result is not finite."""
        run = MergeRun(old, self.uncovered, self.weights)
        seen: list[Ranges] = []
        for role, update, found in updates():
            if role is not self.ignored:
                run.add(update)
                seen.append(found)
        merged = run.result()
        if self.server_learning_rate != 1.0:
            merged = {name: self._scaled(name, old[name], values) for name, values in merged.items()}
            complaint = finite_complaint(merged)
            if complaint:
                raise RoundError(f"the merged model is refused: {complaint} after the server's learning rate")
        return merged, merge_ranges(ranges, seen)

    def _scaled(self, name: str, old: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float32]:
        if name.endswith(_STATISTICS):
            return new
        wide = old.astype(np.float64)
        with np.errstate(over="ignore"):
            return (wide + self.server_learning_rate * (new.astype(np.float64) - wide)).astype(np.float32)
