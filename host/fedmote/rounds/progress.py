# SPDX-License-Identifier: Apache-2.0
"""How far one participant has come in one round."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedmote.rounds.events import Reported
from fedmote.strategies import Member


class Step(StrEnum):
    """Steps of a participant; the value is the word for the operator."""

    EXPECTED = "no plan yet"
    PLANNED = "plan sent"
    TRAINING = "training"
    SENDING = "sending its update"
    COUNTED = "counted"
    FAILED = "failed"


# In step SENDING, before the update's turn.
WAITING = "its update waits for its turn"
# A part that browns out again and again would otherwise be given work for ever.
MAX_ATTEMPTS = 8
# A participant that reports under an old attempt has not heard the newest plan; one that never adopts it would ask for ever.
MAX_OLD_REPORTS = 8
# A late duplicate of an old hello may come once; a second board with the same id says hello again and again.
MAX_OLD_HELLOS = 3
# Signs of a second board with the same key are forgotten after so many rounds.
SIGN_ROUNDS = 10
# Pulls of one round that end with a wrong checksum before the update is refused.
MAX_CRC_FAILURES = 3


@dataclass
class Progress:
    """State of one member of the open round.

    Attributes:
        member: who.
        step: how far.
        attempt: of the newest plan, from 1; 0 before the first.
        boot: nonce that the newest plan went to.
        num_resets: boots that began an attempt; those that were heard at once count once.
        old_boots: nonces of boots before.
        num_old_hellos: hellos under an old nonce.
        num_old_reports: reports under an old attempt.
        report: what is being pulled, in step SENDING.
        num_crc_failures: pulls that ended with a wrong checksum.
        crc: of the counted update, in step COUNTED.
        reason: why it failed, in step FAILED.
    """

    member: Member
    step: Step = Step.EXPECTED
    attempt: int = 0
    boot: int | None = None
    num_resets: int = 0
    old_boots: set[int] = field(default_factory=set)
    num_old_hellos: int = 0
    num_old_reports: int = 0
    report: Reported | None = None
    num_crc_failures: int = 0
    crc: int | None = None
    reason: str = ""

    @property
    def is_settled(self) -> bool:
        """Nothing more is awaited from it."""
        return self.step in (Step.COUNTED, Step.FAILED)

    def words(self, is_waiting: bool = False) -> str:
        """For the operator: what it is at; `is_waiting`: its update waits for its turn to be pulled."""
        return self.reason or (WAITING if is_waiting and self.step is Step.SENDING else self.step.value)

    def fail(self, reason: str) -> None:
        """Await nothing more from it in this round."""
        self.step = Step.FAILED
        self.report = None
        self.reason = reason
