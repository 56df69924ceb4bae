# SPDX-License-Identifier: Apache-2.0
"""From the ledger to where a run stands."""

from __future__ import annotations

from fedmote.rounds import MaskedStanding, OpenRoundStanding, Standing
from fedmote.rounds.events import MaskStep
from fedmote.store import Ledger, RoundEntry
from fedmote.strategies import Previous


def standing_of(ledger: Ledger) -> Standing:
    """What the round machine starts from."""
    rounds = ledger.rounds()
    ended = [entry for entry in rounds if entry.state in ("committed", "abandoned")]
    open_round = rounds[-1] if rounds and rounds[-1].state in ("open", "closed") else None
    return Standing(
        version=ledger.checkpoints()[-1].version,
        num_rounds=rounds[-1].plan.round if rounds else 0,
        num_merged=sum(entry.state == "committed" for entry in rounds),
        num_failed=0,  # who starts again wants to try again
        previous=_previous(ended),
        open=None if open_round is None else _open(ledger, open_round),
        last_counted=ledger.last_updates(),
        streaks=ledger.streaks(),
        quarantined={entry.participant: (entry.until, entry.reason) for entry in ledger.quarantines()},
    )


def _previous(ended: list[RoundEntry]) -> Previous | None:
    """The last round; one that nobody joined keeps the cells of the one before, as the machine does."""
    previous: Previous | None = None
    for entry in ended:
        is_committed = entry.state == "committed"
        if entry.plan.members:
            previous = Previous(entry.plan.phase, entry.plan.cells, is_committed)
        elif previous is not None:
            previous = Previous(entry.plan.phase, previous.cells, is_committed)
    return previous


def _open(ledger: Ledger, entry: RoundEntry) -> OpenRoundStanding:
    number = entry.plan.round
    plans = ledger.plans(number)
    return OpenRoundStanding(
        plan=entry.plan,
        attempts={who: (plan.attempt, plan.boot) for who, plan in plans.items()},
        counted={update.participant: update.crc for update in ledger.updates(number)},
        is_closed=entry.state == "closed",
        boards={who: plan.board for who, plan in plans.items()},
        masked=None
        if entry.plan.masked is None
        else MaskedStanding(
            keys={blob.participant: blob.crc for blob in ledger.mask_blobs(number, MaskStep.KEYS)},
            shares={blob.participant: blob.crc for blob in ledger.mask_blobs(number, MaskStep.SHARES)},
            ended=frozenset(MaskStep(step) for step in ledger.ended_mask_steps(number)),
        ),
    )
