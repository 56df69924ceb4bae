# SPDX-License-Identifier: Apache-2.0
"""Processor time, which other processes on the machine do not lengthen as they lengthen wall time. Standard library alone."""

from __future__ import annotations

import resource


def processor_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    uses = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)
