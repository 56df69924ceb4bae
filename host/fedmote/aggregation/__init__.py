# SPDX-License-Identifier: Apache-2.0
"""How updates become a checkpoint: a pure function of the old model and the updates."""

from fedmote.aggregation.merge import MergeRun, Uncovered, Update, Weights, merge
from fedmote.aggregation.ranges import RANGE_CAP, merge_ranges
from fedmote.aggregation.survey import Finding, Limits, Survey

__all__ = [
    "RANGE_CAP",
    "Finding",
    "Limits",
    "MergeRun",
    "Survey",
    "Uncovered",
    "Update",
    "Weights",
    "merge",
    "merge_ranges",
]
