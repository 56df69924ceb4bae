# SPDX-License-Identifier: Apache-2.0
"""What a run and its rounds came to, read from the ledger; the same for a run just ended and for one of last year."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmote.coordinator.claim import Claim, claims
from fedmote.rounds.events import MaskStep
from fedmote.store import ConductEntry, Ledger, RoundEntry, UpdateEntry

# Numbers of an update that the coordinator adds: bytes of chunks that its participant was sent in the round, of a package, of a
# difference in its place, of a newer head, of a partner's checkpoint, or of a masked member's peers. What was asked for twice
# counts twice.
SERVED = ("package_bytes", "difference_bytes", "head_bytes", "checkpoint_bytes", "peers_bytes")


@dataclass(frozen=True)
class MaskedSum:
    """What became of the updates that are summed under masks.

    Attributes:
        group: its name.
        members: in the round.
        keys, survivors, shares: members whose keys, masked updates and shares came.
        left_out: why there is no sum, or None; in an open round None.
    """

    group: str
    members: int
    keys: int
    survivors: int
    shares: int
    left_out: str | None

    def words(self) -> str:
        """For the operator."""
        text = f"masked sum of {self.survivors} of {self.members} in group {self.group}"
        return text if self.left_out is None else f"{text}, left out"


@dataclass(frozen=True)
class RoundResult:
    """One round.

    Attributes:
        round, phase, state: number, "device" | "partner" | "simultaneous", "open" | "closed" | "committed" | "abandoned".
        version: of the checkpoint that it made, or None.
        accuracy: of the deployed form after it, 0 to 1, or None.
        seconds: from opening to end.
        reported, expected: updates that count, participants that were expected.
        missing: why, by participant; in an open round, what each one is at.
        reason: of an abandoned round.
        updates: per participant what its report said, and what the merge found.
        quarantined: why, by participant that was left out of the round, or is from the next one on.
        privacy: what the run may claim after this round; None without noise.
        masked: of updates that are summed under masks; None where none are.
        opened_at: UTC.
        report_s: deadline of an open round, seconds after it was opened or taken up again; None where it is not known.
    """

    round: int
    phase: str
    state: str
    version: int | None
    accuracy: float | None
    seconds: float | None
    reported: int
    expected: int
    missing: dict[str, str]
    reason: str | None
    updates: tuple[dict[str, Any], ...]
    opened_at: str = ""
    report_s: float | None = None
    quarantined: dict[str, str] = field(default_factory=dict)
    privacy: Claim | None = None
    masked: MaskedSum | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        privacy = None if self.privacy is None else self.privacy.to_json()
        masked = None if self.masked is None else vars(self.masked)
        return {**vars(self), "updates": list(self.updates), "privacy": privacy, "masked": masked}

    def words(self) -> str:
        """One line for the operator."""
        head = f"round {self.round} ({self.phase}): {self.reported} of {self.expected} reported"
        if self.masked is not None:
            head += f"; {self.masked.words()}"
        if self.missing:
            head += "; missing " + ", ".join(f"{who} ({why})" for who, why in self.missing.items())
        if self.quarantined:
            head += "; quarantined " + ", ".join(f"{who} ({why})" for who, why in self.quarantined.items())
        if self.state in ("open", "closed"):
            deadline = "" if self.report_s is None else f"; its deadline is {self.report_s:g} s after that, or after a restart"
            return f"{head}; {self.state}, opened at {self.opened_at}{deadline}"
        if self.state == "abandoned":
            return f"{head}; abandoned: {self.reason}; the model stays"
        tail = "" if self.accuracy is None else f"; accuracy {self.accuracy:.4f}"
        tail += "" if self.privacy is None else f"; {self.privacy.words()}"
        return f"{head}; checkpoint {self.version}{tail}; {self.seconds or 0.0:.1f} s"


@dataclass(frozen=True)
class RunResult:
    """A run.

    Attributes:
        run: its random name, hexadecimal.
        is_complete: all merges were made.
        complaint: why it ended without that, or None.
        version: of the newest checkpoint.
        checkpoint: path of that file.
        accuracy: of the newest checkpoint.
        first_accuracy: before the first round.
        rounds: all of them.
        refusals: every no, with its count.
        privacy: what the run may claim; None without noise.
    """

    run: str
    is_complete: bool
    complaint: str | None
    version: int
    checkpoint: str
    accuracy: float | None
    first_accuracy: float | None
    rounds: tuple[RoundResult, ...]
    refusals: tuple[dict[str, Any], ...]
    privacy: Claim | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        privacy = None if self.privacy is None else self.privacy.to_json()
        rounds = [one.to_json() for one in self.rounds]
        return {**vars(self), "rounds": rounds, "refusals": list(self.refusals), "privacy": privacy}


def round_result(ledger: Ledger, entry: RoundEntry, privacy: Claim | None = None) -> RoundResult:
    """The result of a round as the ledger has it; `privacy` is its entry of `claims`."""
    number = entry.plan.round
    updates = ledger.updates(number)
    conduct = {one.participant: one for one in ledger.conduct(number)}
    accuracies = {one.version: one.accuracy for one in ledger.checkpoints()}
    return RoundResult(
        round=entry.plan.round,
        phase=entry.plan.phase.name.lower(),
        state=entry.state,
        version=entry.version,
        accuracy=None if entry.version is None else accuracies[entry.version],
        seconds=entry.seconds,
        reported=sum(one.participant not in entry.missing for one in updates),
        expected=len(entry.plan.members),
        missing=dict(entry.missing) if entry.state != "open" else _awaited(ledger, entry),
        reason=entry.reason,
        updates=tuple(
            {
                "participant": one.participant,
                "role": one.role.name.lower(),
                "attempt": one.attempt,
                "num_examples": one.num_examples,
                **one.numbers,
                **_found(conduct.get(one.participant)),
            }
            for one in updates
        ),
        quarantined={
            one.participant: f"until round {one.until}: {one.reason}"
            for one in ledger.quarantines()
            if one.since <= number <= one.until
        },
        privacy=privacy,
        masked=_masked_sum(ledger, entry, updates),
        opened_at=entry.opened_at,
        report_s=entry.report_s,
    )


def _masked_sum(ledger: Ledger, entry: RoundEntry, updates: Sequence[UpdateEntry]) -> MaskedSum | None:
    """What became of the masked updates of a round."""
    group, number = entry.plan.masked, entry.plan.round
    if group is None:
        return None
    survivors = [one.participant for one in updates if one.participant in group.numbers]
    left_out = next((entry.missing[who] for who in survivors if who in entry.missing), None)
    keys, shares = (len(ledger.mask_blobs(number, step)) for step in (MaskStep.KEYS, MaskStep.SHARES))
    return MaskedSum(group.name, len(group.numbers), keys, len(survivors), shares, left_out)


def _found(conduct: ConductEntry | None) -> dict[str, Any]:
    """What the merge found of an update: how far it was, and whether it was left out."""
    if conduct is None or conduct.ratio is None:
        return {}
    return {"finding": conduct.finding, "times_median": round(conduct.ratio, 3), "is_filtered": conduct.is_filtered}


def round_results(ledger: Ledger) -> list[RoundResult]:
    """All rounds in order, each with what the run may claim after it."""
    privacy = claims(ledger)
    return [round_result(ledger, entry, privacy.get(entry.plan.round)) for entry in ledger.rounds()]


def _awaited(ledger: Ledger, entry: RoundEntry) -> dict[str, str]:
    """What those are at whose updates an open round waits for."""
    number = entry.plan.round
    attempts = {who: plan.attempt for who, plan in ledger.plans(number).items()}
    reported = {update.participant for update in ledger.updates(number)}
    return {
        member.id: f"has its plan, attempt {attempts[member.id]}" if member.id in attempts else "no plan yet"
        for member in entry.plan.members
        if member.id not in reported
    } | {
        blob.participant: "its keys are in"
        for blob in ledger.mask_blobs(number, MaskStep.KEYS)
        if blob.participant not in reported
    }


def refusals(ledger: Ledger, number: int | None = None) -> tuple[dict[str, Any], ...]:
    """Every no of a round, or of the run."""
    return tuple(
        {
            "round": one.round,
            "participant": one.participant,
            "side": one.side,
            "status": one.status.name.lower().replace("_", "-"),
            "reason": one.reason,
            "count": one.count,
        }
        for one in ledger.refusals(number)
    )
