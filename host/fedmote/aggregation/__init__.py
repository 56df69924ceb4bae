# SPDX-License-Identifier: Apache-2.0
"""How updates become a checkpoint: a pure function of the old model and the updates."""

from fedmote.aggregation.merge import MergeRun, Uncovered, Update, Weights, merge
from fedmote.aggregation.ranges import merge_ranges

__all__ = ["MergeRun", "Uncovered", "Update", "Weights", "merge", "merge_ranges"]
