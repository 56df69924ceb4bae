# SPDX-License-Identifier: Apache-2.0
"""Masked rounds on paper: steps, losses at each of them, restarts after every journal entry, what the operator is told."""

import itertools
import random

import pytest

from fedmote.config import DeadlineConfig
from fedmote.privacy.group import MaskedGroup
from fedmote.rounds import MaskedRules, MaskedStanding, OpenRoundStanding, Stage, Standing
from fedmote.rounds.events import (
    AbandonRound,
    BlobArrived,
    BlobSpoiled,
    CloseRound,
    Doubled,
    EndMaskStep,
    JournalMaskBlob,
    JournalPlan,
    JournalUpdate,
    MaskStep,
    NoteRefusal,
    OpenRound,
    Pull,
    Refused,
    Reported,
    Revoked,
    SaidHello,
    SendAck,
    SendPlan,
    SendRefuse,
    SendWait,
)
from fedmote.strategies import Cell
from fedmote.wire.masking import Ring, keys_bytes, shares_bytes
from fedmote.wire.schema import Role, Status

from .conftest import RUN

NAMES = tuple(f"board-{number}" for number in range(1, 10))
OTHER = "other-1"
CELLS = tuple(Cell(f"cell-{who}", (who,), None) for who in (*NAMES, OTHER))
RING = Ring.of(9)  # everybody is everybody's neighbour, and five of eight must answer
UPDATE_BYTES = 99
KEYS_S, SHARES_S, REPORT_S = 40.0, 15.0, 60.0
SIZES = {MaskStep.KEYS: keys_bytes(RING), MaskStep.UPDATE: UPDATE_BYTES, MaskStep.SHARES: shares_bytes(RING)}


def only(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


def rules(ring=RING, names=NAMES):
    group = MaskedGroup("street", b"group-01", ring, 0.5, {who: number for number, who in enumerate(names, start=1)})
    return MaskedRules(group, KEYS_S / REPORT_S, SHARES_S / REPORT_S, UPDATE_BYTES)


class Street:
    """A fleet on paper of nine members of a group, and somebody who is in none, in an open round.

    Attributes:
        fleet: see `conftest.py`.
    """

    def __init__(self, make, **windows):
        self.make = lambda standing=None: make(
            cells=CELLS, goal=2, masked=rules(), standing=standing, **({"report_s": REPORT_S} | windows)
        )
        self.fleet = self.make()

    def open(self, *names, boot=1):
        self.fleet.join(*(names or (*NAMES, OTHER)), boot=boot)
        return self

    def hand_in(self, who, step, boot=1, attempt=1, crc=None, size=None):
        """Report a blob; it is pulled and comes."""
        plan = self.fleet.machine.plan
        crc = 100 * int(step) + len(who) + boot if crc is None else crc
        size = SIZES[step] if size is None else size
        reported = Reported(who, crc, size, crc, RUN, plan.round, plan.version, 20, attempt, mask_step=step)
        actions = self.fleet.give(reported)
        return actions + (self.fleet.give(BlobArrived(who, crc, f"{step} of {who}/{boot}")) if only(actions, Pull) else [])

    def step(self, step, names=NAMES):
        return [action for who in names for action in self.hand_in(who, step)]

    def others(self):
        return self.fleet.train(OTHER)


@pytest.fixture
def street(fleet):
    return lambda **windows: Street(fleet, **windows)


# ---- the quiet round ------------------------------------------------------------------------------------------------


def test_steps_follow_each_other_and_each_end_is_journaled_before_anybody_is_told(street):
    one = street().open()
    plans = only(one.fleet.log, SendPlan) or only(one.fleet.hello(*NAMES, OTHER), SendPlan)
    assert {plan.id: plan.mask_step for plan in plans} == dict.fromkeys(NAMES, MaskStep.KEYS) | {OTHER: None}
    actions = one.hand_in(NAMES[0], MaskStep.KEYS)
    assert [type(action) for action in actions] == [Pull, JournalMaskBlob, SendAck]
    assert one.fleet.machine.missing()[NAMES[0]] == "its keys are in"
    actions = one.step(MaskStep.KEYS, NAMES[1:])
    assert actions[-10] == EndMaskStep(1, MaskStep.KEYS)
    assert [(plan.id, plan.mask_step) for plan in actions[-9:]] == [(who, MaskStep.UPDATE) for who in NAMES]
    one.others()
    actions = one.step(MaskStep.UPDATE)
    assert len(only(actions, JournalUpdate)) == 9
    assert actions[-10] == EndMaskStep(1, MaskStep.UPDATE)
    assert [(plan.id, plan.mask_step, plan.remaining_s) for plan in actions[-9:]] == [
        (who, MaskStep.SHARES, SHARES_S) for who in NAMES
    ]
    assert one.fleet.machine.stage is Stage.UNMASKING
    actions = one.step(MaskStep.SHARES, NAMES[:6])
    assert isinstance(actions[-1], CloseRound), "shares of six are five of everybody's neighbours"
    assert actions[-1].missing == {}
    assert one.fleet.machine.num_counted == 10


def test_shares_end_as_soon_as_they_are_enough_for_everybody(street):
    one = street().open()
    one.others()
    one.step(MaskStep.KEYS)
    one.step(MaskStep.UPDATE)
    for who in NAMES[:5]:  # each of these five has four neighbours among them
        assert not only(one.hand_in(who, MaskStep.SHARES), CloseRound)
    assert only(one.hand_in(NAMES[5], MaskStep.SHARES), CloseRound)
    assert only(one.fleet.hello(NAMES[6]), SendWait)


def test_every_wait_has_an_end_and_the_machine_says_when_it_wakes(street):
    one = street().open()
    machine = one.fleet.machine
    assert machine.wake_at() == KEYS_S
    one.others()
    one.step(MaskStep.KEYS, NAMES[:8])
    actions = one.fleet.wait(KEYS_S)
    assert actions[0] == EndMaskStep(1, MaskStep.KEYS)
    assert [plan.id for plan in only(actions, SendPlan)] == list(NAMES[:8])
    assert machine.missing()[NAMES[8]] == "its keys did not come in time"
    assert machine.wake_at() == REPORT_S
    one.step(MaskStep.UPDATE, NAMES[:8])
    assert machine.stage is Stage.UNMASKING
    assert machine.wake_at() == KEYS_S + SHARES_S
    actions = one.fleet.wait(SHARES_S)
    assert isinstance(actions[-1], AbandonRound)
    assert actions[-1].reason == "1 of 10 reported, 5 are needed"
    assert "fewer than 5 neighbours gave their shares" in actions[-1].missing[NAMES[0]]


def test_a_slow_board_gives_every_step_more_time(street):
    one = street(deadlines=(DeadlineConfig(("slow",), 3 * REPORT_S),))
    one.fleet.join(*NAMES[:8], OTHER)
    for _ in range(2):
        one.fleet.give(SaidHello(NAMES[8], Role.DEVICE, 1, "slow"))
    one.fleet.hello(*NAMES[:8], OTHER)
    assert one.fleet.machine.wake_at() == 3 * KEYS_S
    one.others()
    one.step(MaskStep.KEYS)
    one.step(MaskStep.UPDATE)
    assert one.fleet.machine.wake_at() == 3 * SHARES_S


# ---- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [lost for size in (0, 1, 2) for lost in itertools.combinations(range(9), size)])
@pytest.mark.parametrize("step", list(MaskStep))
def test_every_loss_of_one_or_two_members_at_each_step_ends_the_round_as_the_ring_says(street, step, lost):
    one = street().open()
    one.others()
    left = [who for number, who in enumerate(NAMES) if number not in lost]
    for at in MaskStep:
        if one.fleet.machine.plan is None or one.fleet.machine.stage is Stage.CLOSING:
            break
        one.step(at, NAMES if at < step else left)
        if lost and at >= step and one.fleet.machine.stage not in (Stage.CLOSING, Stage.UNMASKING):
            one.fleet.wait(KEYS_S if at is MaskStep.KEYS else REPORT_S - one.fleet.now)
        if lost and at is MaskStep.SHARES:
            one.fleet.wait(SHARES_S)
    ends = only(one.fleet.log, CloseRound) + only(one.fleet.log, AbandonRound)
    assert len(ends) == 1
    # Eight masked updates are needed; of nine members each one's shares come from six at least where two gave none.
    is_summed = step is MaskStep.SHARES or len(left) >= 8
    assert isinstance(ends[0], CloseRound) == is_summed
    counted = NAMES if step is MaskStep.SHARES else left
    assert set(ends[0].missing) == ((set(NAMES) - set(counted)) if is_summed else set(NAMES))


def test_a_member_that_is_reset_before_keys_are_fixed_hands_in_new_ones(street):
    one = street().open()
    one.step(MaskStep.KEYS, NAMES[:2])
    actions = one.fleet.hello(NAMES[0], boot=2)
    assert [type(action) for action in actions] == [JournalPlan, SendPlan]
    assert (actions[0].attempt, actions[1].mask_step) == (2, MaskStep.KEYS)
    assert not only(one.step(MaskStep.KEYS, NAMES[2:]), EndMaskStep)
    of_before = one.hand_in(NAMES[0], MaskStep.KEYS)
    assert [(type(action), action.attempt, action.mask_step) for action in of_before] == [(SendPlan, 2, MaskStep.KEYS)]
    assert only(one.hand_in(NAMES[0], MaskStep.KEYS, boot=2, attempt=2), EndMaskStep)


@pytest.mark.parametrize("step", [MaskStep.UPDATE, MaskStep.SHARES])
def test_a_member_that_is_reset_after_keys_are_fixed_is_told_to_wait_and_awaited_no_longer(street, step):
    one = street().open()
    one.others()
    one.step(MaskStep.KEYS)
    if step is MaskStep.SHARES:
        one.step(MaskStep.UPDATE, NAMES[:1])
    (wait,) = one.fleet.hello(NAMES[0], boot=2)[-1:]
    assert isinstance(wait, SendWait)
    actions = one.step(MaskStep.UPDATE, NAMES[1:])
    asked = [plan.id for plan in only(actions, SendPlan)]
    assert NAMES[0] not in asked[-8:]
    assert only(one.step(MaskStep.SHARES, NAMES[1:]), CloseRound)
    assert (NAMES[0] in one.fleet.machine.missing()) == (step is MaskStep.UPDATE)


def test_no_sum_is_awaited_of_fewer_than_eight(street):
    one = street().open(*NAMES[:7], OTHER)
    one.fleet.wait(10.0)
    one.fleet.hello(*NAMES[:7], OTHER)
    assert one.fleet.machine.missing()[NAMES[0]] == "7 of its group are there, 8 are needed"
    assert only(one.fleet.hello(NAMES[0]), SendWait)[0].reason == "7 of its group are there, 8 are needed"
    ends = one.others()
    assert isinstance(ends[-1], AbandonRound)


def test_too_few_keys_end_the_masked_part_at_once_and_the_others_go_on(street):
    one = street(min_fraction=0.1).open()
    one.step(MaskStep.KEYS, NAMES[:7])
    actions = one.fleet.wait(KEYS_S)
    assert [type(action) for action in actions] == [EndMaskStep]
    assert set(one.fleet.machine.missing()) == {*NAMES, OTHER}
    assert one.fleet.machine.missing()[NAMES[0]] == "keys of 7 members, 8 are needed for a masked sum"
    (close,) = only(one.others(), CloseRound)
    assert set(close.missing) == set(NAMES)


def test_whoever_refuses_peers_or_shares_is_awaited_no_longer(street):
    one = street().open()
    one.others()
    one.step(MaskStep.KEYS)
    actions = one.fleet.give(Refused(NAMES[0], Status.MASK_NEIGHBOURS))
    assert only(actions, NoteRefusal)
    assert one.fleet.machine.missing()[NAMES[0]] == "refused the plan: mask-neighbours"
    one.step(MaskStep.UPDATE, NAMES[1:])
    for who in NAMES[1:4]:
        one.fleet.give(Refused(who, Status.MASK_ANSWERED))
    actions = [action for who in NAMES[4:] for action in one.hand_in(who, MaskStep.SHARES)]
    assert isinstance(actions[-1], AbandonRound), "of members 5 to 9 each has four neighbours that answer"


@pytest.mark.parametrize("news", [Doubled, Revoked])
def test_shares_of_whoever_is_not_believed_any_more_are_not_awaited_and_its_update_counts(street, news):
    one = street().open()
    one.others()
    one.step(MaskStep.KEYS)
    one.step(MaskStep.UPDATE)
    for _ in range(3):
        one.fleet.give(news(NAMES[0]))
    assert NAMES[0] not in one.fleet.machine.status(one.fleet.now).missing
    (close,) = only(one.step(MaskStep.SHARES, NAMES[1:]), CloseRound)
    assert close.missing == {}


# ---- what comes twice, late, or is none -----------------------------------------------------------------------------


def test_duplicates_are_acknowledged_again_and_change_nothing(street):
    one = street().open()
    one.others()
    for step in MaskStep:
        for who in NAMES:
            if one.fleet.machine.stage is Stage.CLOSING:
                break
            one.hand_in(who, step)
            again = one.hand_in(who, step)
            assert [type(action) for action in again] == [SendAck], (who, step)
    for kind, number in ((JournalMaskBlob, 9 + 6), (JournalUpdate, 10), (EndMaskStep, 2)):
        assert len(only(one.fleet.log, kind)) == number


def test_a_hello_of_a_member_is_answered_with_the_step_as_it_is_whenever_it_comes(street):
    one = street().open()
    one.others()
    for step in MaskStep:
        for who in NAMES[:5]:
            (plan,) = one.fleet.hello(who)
            assert (type(plan), plan.mask_step) == (SendPlan, step)
            one.hand_in(who, step)
            (after,) = one.fleet.hello(who)
            if step is MaskStep.SHARES:
                assert isinstance(after, SendWait)
            else:
                assert after.mask_step is step
        if step is not MaskStep.SHARES:
            one.step(step, NAMES[5:])


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"mask_step": None, "size": 50}, Status.NOT_EXPECTED),
        ({"mask_step": MaskStep.UPDATE, "size": UPDATE_BYTES}, Status.NOT_EXPECTED),
        ({"mask_step": MaskStep.SHARES, "size": SIZES[MaskStep.SHARES]}, Status.NOT_EXPECTED),
        ({"size": SIZES[MaskStep.KEYS] - 1}, Status.UPDATE_SHAPE),
        ({"attempt": 2}, Status.STALE_ROUND),
        ({"run": b"run-0002"}, Status.UNKNOWN_RUN),
        ({"round": 2}, Status.NOT_EXPECTED),
    ],
)
def test_reports_that_do_not_belong_are_refused_with_their_status(street, changes, status):
    one = street().open()
    fields = {
        "id": NAMES[0], "handle": 5, "size": SIZES[MaskStep.KEYS], "crc": 5, "run": RUN, "round": 1, "version": 0,
        "num_examples": 20, "attempt": 1, "mask_step": MaskStep.KEYS,
    }  # fmt: skip
    refused = only(one.fleet.give(Reported(**(fields | changes))), SendRefuse)
    assert [action.status for action in refused] == [status]


def test_whoever_is_in_no_group_cannot_report_what_is_masked(street):
    one = street().open()
    refused = only(one.hand_in(OTHER, MaskStep.KEYS), SendRefuse)
    assert [action.status for action in refused] == [Status.NOT_EXPECTED]
    assert only(one.others(), JournalUpdate)


def test_an_update_of_whoever_was_late_is_refused_while_masks_are_taken_off(street):
    one = street(min_fraction=0.5).open()
    one.step(MaskStep.KEYS)
    one.step(MaskStep.UPDATE)
    one.fleet.wait(REPORT_S)
    assert one.fleet.machine.stage is Stage.UNMASKING
    refused = only(one.fleet.report(OTHER), SendRefuse)
    assert [action.status for action in refused] == [Status.STALE_ROUND]
    assert only(one.fleet.hello(OTHER), SendWait)
    (close,) = only(one.step(MaskStep.SHARES), CloseRound)
    assert set(close.missing) == {OTHER}


def test_shares_with_a_wrong_checksum_may_come_again_and_shares_that_are_none_may_not(street):
    one = street().open()
    one.others()
    one.step(MaskStep.KEYS)
    one.step(MaskStep.UPDATE)

    def spoil(who, status):
        one.fleet.give(Reported(who, 9, SIZES[MaskStep.SHARES], 9, RUN, 1, 0, 20, 1, mask_step=MaskStep.SHARES))
        return one.fleet.give(BlobSpoiled(who, 9, status, "words"))

    assert spoil(NAMES[0], Status.CRC) == []
    assert spoil(NAMES[0], Status.CRC) == []
    assert NAMES[0] in one.fleet.machine.status(one.fleet.now).missing
    assert only(spoil(NAMES[0], Status.CRC), SendRefuse)
    assert only(spoil(NAMES[1], Status.FIELD_RANGE), SendRefuse)
    assert not {NAMES[0], NAMES[1]} & set(one.fleet.machine.status(one.fleet.now).missing)
    (close,) = only(one.step(MaskStep.SHARES, NAMES[2:]), CloseRound)
    assert close.missing == {}


# ---- restarts -------------------------------------------------------------------------------------------------------


def standing_of(log):
    """What a ledger with these entries says."""
    plan = only(log, OpenRound)[0].plan
    attempts = {one.id: (one.attempt, one.boot) for one in only(log, JournalPlan)}
    counted = {one.id: one.crc for one in only(log, JournalUpdate)}
    blobs = only(log, JournalMaskBlob)
    masked = MaskedStanding(
        {one.id: one.crc for one in blobs if one.step is MaskStep.KEYS and one.attempt == attempts[one.id][0]},
        {one.id: one.crc for one in blobs if one.step is MaskStep.SHARES},
        frozenset(one.step for one in only(log, EndMaskStep)),
    )
    opened = OpenRoundStanding(plan, attempts, counted, False, masked=masked)
    return Standing(0, 1, 0, open=opened, last_counted={who: (1, crc) for who, crc in counted.items()})


def entries(log):
    """What the result of a round depends on."""
    kept = (JournalUpdate, JournalMaskBlob)
    found = {(type(one).__name__, one.id, int(getattr(one, "step", 2))): (one.content, one.attempt) for one in only(log, kept)}
    return found, [one.step for one in only(log, EndMaskStep)]


def play(one, log):
    """Everybody hands in what the machine still asks for, in order, until the round closes; the journal as it is then."""
    machine, fleet = one.fleet.machine, one.fleet
    fleet.log = log
    fleet.log += machine.tick(fleet.now)
    for _ in range(4):
        for who in (*NAMES, OTHER):
            answer = fleet.give(SaidHello(who, Role.DEVICE, 1))
            for plan in only(answer, SendPlan):
                if who == OTHER:
                    one.others()
                else:
                    one.hand_in(who, plan.mask_step)
            if only(log, CloseRound):
                return log
    return log


def test_a_restart_after_every_entry_of_the_journal_leaves_the_same_entries(street):
    one = street().open()
    log = play(one, one.fleet.log)
    expected = entries(log)
    assert expected[1] == [MaskStep.KEYS, MaskStep.UPDATE]
    assert len(expected[0]) == 9 + 10 + 6
    kinds = (JournalPlan, JournalUpdate, JournalMaskBlob, EndMaskStep)
    places = [number for number, entry in enumerate(log) if isinstance(entry, kinds)]
    assert len(places) >= 9 + 10 + 6 + 2
    for place in places:
        before = log[: place + 1]
        again = street()
        again.fleet = again.make(standing_of(before))
        after = play(again, list(before))
        assert only(after, CloseRound)[-1].missing == {}
        found, ended = entries(after)
        assert ended == expected[1]
        # The same keys and updates count; which of the neighbours' shares came first does not matter to the sum.
        assert {key: value for key, value in found.items() if key[2] < 3} == {
            key: value for key, value in expected[0].items() if key[2] < 3
        }
        assert sum(key[2] == 3 for key in found) >= 6


def test_after_a_restart_those_whose_keys_were_late_stay_out(street):
    one = street().open()
    one.others()
    one.step(MaskStep.KEYS, NAMES[:8])
    one.fleet.wait(KEYS_S)
    again = street()
    again.fleet = again.make(standing_of(one.fleet.log))
    assert again.fleet.machine.missing()[NAMES[8]] == "its keys did not come in time"
    assert only(again.fleet.hello(NAMES[8]), SendWait)
    assert only(again.fleet.hello(NAMES[0]), SendPlan)[0].mask_step is MaskStep.UPDATE


def test_a_restart_while_masks_are_taken_off_gives_the_shares_their_whole_time_again(street):
    one = street().open()
    one.others()
    one.step(MaskStep.KEYS)
    one.step(MaskStep.UPDATE)
    one.hand_in(NAMES[0], MaskStep.SHARES)
    again = street()
    again.fleet = again.make(standing_of(one.fleet.log))
    machine = again.fleet.machine
    assert (machine.stage, machine.wake_at()) == (Stage.UNMASKING, SHARES_S)
    assert only(again.fleet.hello(NAMES[0]), SendWait)
    assert only(again.fleet.hello(NAMES[1]), SendPlan)[0].mask_step is MaskStep.SHARES
    assert only(again.step(MaskStep.SHARES, NAMES[1:]), CloseRound)


# ---- words ----------------------------------------------------------------------------------------------------------


def test_the_operator_is_told_what_the_masked_sum_waits_for(street):
    one = street().open()
    machine = one.fleet.machine
    assert "the masked sum waits for keys of 9 members" in machine.words(0.0)
    one.step(MaskStep.KEYS, NAMES[:7])
    assert machine.status(0.0).awaited == "keys of 2 members"
    one.step(MaskStep.KEYS, NAMES[7:])
    one.step(MaskStep.UPDATE, NAMES[:8])
    assert machine.status(0.0).awaited == "masked updates of 1 member"
    one.step(MaskStep.UPDATE, NAMES[8:])
    assert machine.status(0.0).awaited is None, "the one who is in no group is waited for"
    one.others()
    one.step(MaskStep.SHARES, NAMES[:5])
    status = machine.status(0.0)
    assert status.awaited == "shares of 4 members"
    assert status.missing == dict.fromkeys(NAMES[5:], "its shares are awaited")
    assert "the masked sum waits for shares of 4 members; missing board-6 (its shares are awaited)" in status.words()


# ---- disorder -------------------------------------------------------------------------------------------------------


def random_event(generator, machine):
    """Mostly what the machine asks for, often something else."""
    who = generator.choice((*NAMES, OTHER))
    plan = machine.plan
    number, version = (plan.round, plan.version) if plan is not None else (1, 0)
    step = generator.choice((*MaskStep, None))
    size = 50 if step is None else SIZES[step]
    match generator.choices(("hello", "report", "arrived", "spoiled", "refused", "shut out"), (8, 30, 30, 1, 1, 0.2))[0]:
        case "hello":
            return SaidHello(who, Role.DEVICE, generator.choices((1, 2, 3), (30, 1, 1))[0])
        case "report":
            size += generator.random() < 0.02
            return Reported(who, 7, size, generator.choice((7, 7, 7, 8)), RUN, number, version, 20, None, mask_step=step)
        case "arrived":
            return BlobArrived(who, generator.choice((7, 7, 7, 8)), "content")
        case "spoiled":
            return BlobSpoiled(who, 7, generator.choice((Status.CRC, Status.UPDATE_SHAPE)), "spoiled")
        case "refused":
            return Refused(who, generator.choice((Status.MASK_NEIGHBOURS, Status.MASK_ANSWERED)), generator.choice((None, 7)))
        case _:
            return generator.choice((Doubled, Revoked))(who)


def assert_sound(log):
    """Nothing counts twice or after its step was fixed; nobody is told of a step, or acknowledged, before the journal has it."""
    entries, ended, durable, opened = set(), set(), set(), 0
    for action in log:
        match action:
            case OpenRound():
                assert not entries
                opened += 1
            case JournalPlan():
                if (MaskStep.KEYS,) not in ended:
                    entries.discard((action.id, MaskStep.KEYS))
                else:
                    assert action.id == OTHER, "nobody begins anew once it is fixed whose keys came"
            case JournalMaskBlob() | JournalUpdate():
                step = getattr(action, "step", MaskStep.UPDATE)
                assert (action.id, step) not in entries
                assert (step,) not in ended
                if action.id != OTHER:
                    assert {(before,) for before in MaskStep if before < step} <= ended
                entries.add((action.id, step))
                durable.add((action.round, action.id))
            case EndMaskStep():
                assert (action.step,) not in ended
                ended.add((action.step,))
            case SendPlan() if action.mask_step is not None:
                assert {(before,) for before in MaskStep if before < action.mask_step} <= ended
            case SendAck():
                assert (action.round, action.id) in durable
            case CloseRound():
                summed = {who for who, step in entries if step is MaskStep.UPDATE and who != OTHER} - set(action.missing)
                assert not summed or len(summed) >= 8
                entries, ended = set(), set()
            case AbandonRound():
                entries, ended = set(), set()
    return opened


@pytest.mark.parametrize("seed", range(60))
def test_invariants_of_masked_rounds_hold_in_any_disorder(street, seed):
    print(f"seed {seed}")
    generator = random.Random(seed)
    one = street(max_failed_rounds=3, selection_s=5.0, max_rejoins_per_minute=1000)
    fleet = one.fleet
    fleet.disorder(generator, random_event, 6000)
    assert assert_sound(fleet.log) >= 1
