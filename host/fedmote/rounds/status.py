# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, for the operator: in one line of words, and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Stage(StrEnum):
    """Stages of a round, and of a run without one."""

    SELECTION = "selection"
    CONFIGURATION = "configuration"
    REPORTING = "reporting"
    UNMASKING = "unmasking"
    CLOSING = "closing"
    PAUSED = "paused"
    DONE = "done"


@dataclass(frozen=True)
class RunStatus:
    """One moment of a run.

    Attributes:
        stage: of the round, or of the run.
        merged, goal: rounds.
        failed: rounds abandoned in a row.
        round: number of the open round, or of the one that is to open.
        phase: who trains, "device" | "partner" | "simultaneous".
        come: participants that are there in a selection, updates that count afterwards.
        expected: of them.
        needed: fewer updates abandon the round.
        missing: what each one that is not there is at.
        left_s: seconds until the wait ends by itself; None where it does not.
        reason: why the run is paused.
        awaited: what a masked sum waits for, in words; None where there is none.
    """

    stage: Stage
    merged: int
    goal: int
    failed: int
    round: int
    phase: str
    come: int = 0
    expected: int = 0
    needed: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)
    left_s: float | None = None
    reason: str | None = None
    awaited: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        left_s = None if self.left_s is None else round(self.left_s, 3)
        return {**vars(self), "stage": self.stage.value, "missing": dict(self.missing), "left_s": left_s}

    def words(self) -> str:
        """One line: who is missing, what is awaited, how long still."""
        left = f"{self.left_s or 0.0:.0f} s"
        match self.stage:
            case Stage.DONE:
                return f"done: {self.merged} of {self.goal} rounds merged"
            case Stage.PAUSED:
                return f"paused: {self.reason}; the next attempt is in {left}"
            case Stage.SELECTION:
                text = f"round {self.round}: {self.come} of {self.expected} participants ready"
                return f"{text}; waiting for {listed(list(self.missing))}, at most {left}" if self.missing else text
            case Stage.CLOSING:
                return f"round {self.round} ({self.phase}): merging {self.come} updates"
            case _:
                text = f"round {self.round} ({self.phase}): {self.come} of {self.expected} reported, need {self.needed}"
                if self.awaited is not None:
                    text += f"; the masked sum waits for {self.awaited}"
                missing = [f"{who} ({why})" for who, why in self.missing.items()]
                return f"{text}; missing {listed(missing)}; {left} left" if missing else text


def listed(names: Sequence[str], most: int = 5) -> str:
    """A few names, and the number of the others."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
