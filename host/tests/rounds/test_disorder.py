# SPDX-License-Identifier: Apache-2.0
"""Random events in random order: what must hold whatever arrives."""

import random

import pytest

from fedmote.config import StrategyConfig
from fedmote.rounds.events import (
    AbandonRound,
    BlobArrived,
    BlobSpoiled,
    CloseRound,
    JournalUpdate,
    OpenRound,
    Refused,
    Reported,
    SaidHello,
    SendAck,
    TookPlan,
)
from fedmote.wire.schema import Role, Status

from .conftest import RUN

NAMES = ["board-1", "board-2", "board-3", "phone-1", "phone-2", "mallory"]


def random_event(generator, machine):
    """Mostly sensible, often wrong."""
    who = generator.choice(NAMES)
    role = Role.PARTNER if who.startswith("phone") else Role.DEVICE
    number = machine.plan.round if machine.plan else generator.randrange(3)
    version = machine.plan.version if machine.plan else 0
    kind = generator.choices(("hello", "took", "report", "arrived", "spoiled", "refused"), (6, 2, 6, 6, 1, 1))[0]
    match kind:
        case "hello":
            return SaidHello(who, role if generator.random() < 0.95 else Role(3 - role), generator.choice((1, 1, 1, 2, 3)))
        case "took":
            return TookPlan(who)
        case "report":
            return Reported(
                who,
                handle=generator.choice((7, 7, 8)),
                size=generator.choice((100, 100, 2000)),
                crc=generator.choice((7, 7, 8)),
                run=RUN if generator.random() < 0.95 else b"run-0002",
                round=number if generator.random() < 0.9 else generator.randrange(5),
                version=version if generator.random() < 0.9 else version + 1,
                num_examples=generator.randrange(9),
                attempt=generator.choice((None, 1, 1, 2)),
            )
        case "arrived":
            return BlobArrived(who, generator.choice((7, 7, 8)), "content")
        case "spoiled":
            return BlobSpoiled(who, generator.choice((7, 8)), generator.choice((Status.CRC, Status.UPDATE_SHAPE)), "spoiled")
        case _:
            return Refused(who, Status.SLOT, generator.choice((None, 7, 8)))


@pytest.mark.parametrize("form", ["alternating", "simultaneous"])
@pytest.mark.parametrize("seed", range(60))
def test_invariants_hold_in_any_disorder(fleet, form, seed):
    print(f"seed {seed}")
    generator = random.Random(seed)
    one = fleet(goal=4, strategy=StrategyConfig(form=form), max_failed_rounds=3, selection_s=5.0, report_s=20.0)
    one.disorder(generator, random_event, 2000)
    assert_sound(one.log)


def assert_sound(log):
    """Nobody counts twice; no ack before its entry; a round ends once, after it was opened; only members count."""
    journaled, opened, ended = set(), {}, set()
    for action in log:
        match action:
            case OpenRound():
                assert action.plan.round not in opened
                assert len(opened) == len(ended)
                opened[action.plan.round] = action.plan
            case JournalUpdate():
                assert (action.round, action.id) not in journaled
                assert action.round not in ended
                assert action.id in {member.id for member in opened[action.round].members}
                journaled.add((action.round, action.id))
            case SendAck():
                assert (action.round, action.id) in journaled
            case CloseRound() | AbandonRound():
                assert action.plan.round not in ended
                ended.add(action.plan.round)
