# SPDX-License-Identifier: Apache-2.0
"""Aggregation: the weighted mean over those who trained a coordinate, once per round. It trusts everybody.

Source: FedAvg (McMahan et al., arXiv 1602.05629). One participant that lies can move the model wherever it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmote.aggregation import MergeRun, Uncovered, Weights, merge_ranges
from fedmote.aggregation.groups import is_statistic
from fedmote.aggregation.ranges import Ranges
from fedmote.errors import RoundError
from fedmote.strategies.seams import Aggregate, MergeContext, Updates
from fedmote.tensors import Tensors, finite_complaint
from fedmote.wire.schema import Role

Ignored = Literal[Role.DEVICE, Role.PARTNER] | None


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
    ignored: Ignored = None

    def merge(self, old: Tensors, ranges: Ranges, updates: Updates, context: MergeContext) -> Aggregate:
        """One pass over the updates; RoundError where the result is not finite."""
        run = MergeRun(old, self.uncovered, self.weights)
        seen: list[Ranges] = []
        for role, update, found in updates():
            if role is not self.ignored:
                run.add(update)
                seen.append(found)
        return Aggregate(server_step(old, run.result(), self.server_learning_rate), merge_ranges(ranges, seen))


def server_step(old: Tensors, merged: Tensors, learning_rate: float) -> Tensors:
    """Scale the merged delta; RoundError where the result is not finite.

    Batch statistics are observations, not steps: a learning rate above one could make a variance negative.
    """
    if learning_rate == 1.0:
        return merged
    scaled = {
        name: values if is_statistic(name) else _scaled(old[name], values, learning_rate) for name, values in merged.items()
    }
    complaint = finite_complaint(scaled)
    if complaint:
        raise RoundError(f"the merged model is refused: {complaint} after the server's learning rate")
    return scaled


def _scaled(old: NDArray[np.float32], new: NDArray[np.float32], learning_rate: float) -> NDArray[np.float32]:
    wide = old.astype(np.float64)
    with np.errstate(over="ignore"):
        return (wide + learning_rate * (new.astype(np.float64) - wide)).astype(np.float32)
