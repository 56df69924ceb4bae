# SPDX-License-Identifier: Apache-2.0
"""Verdicts of the round machine as entries of the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from fedmote.rounds.quarantine import Verdict
from fedmote.store import ConductEntry, QuarantineEntry


def journaled(number: int, verdicts: Sequence[Verdict]) -> tuple[list[ConductEntry], list[QuarantineEntry]]:
    """What is said about the updates of a round, and who is left out for it."""
    conduct = [ConductEntry(number, one.id, one.finding, one.ratio, one.is_filtered, one.streak, one.reason) for one in verdicts]
    out = [QuarantineEntry(one.id, number, one.until, one.reason) for one in verdicts if one.until is not None]
    return conduct, out
