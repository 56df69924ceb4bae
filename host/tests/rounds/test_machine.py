# SPDX-License-Identifier: Apache-2.0
"""Transcripts of rounds: who says what, and what the machine asks for."""

import itertools

import pytest

from fedmote.config import QuarantineConfig, StrategyConfig
from fedmote.rounds import OpenRoundStanding, Stage, Standing
from fedmote.rounds.events import (
    AbandonRound,
    BlobSpoiled,
    CloseRound,
    Doubled,
    DropPull,
    JournalPlan,
    JournalQuarantine,
    JournalUpdate,
    NoteRefusal,
    OpenRound,
    Pull,
    Refused,
    SaidHello,
    SendAck,
    SendPlan,
    SendRefuse,
    SendWait,
    Stop,
    TookPlan,
)
from fedmote.rounds.progress import MAX_ATTEMPTS, MAX_OLD_REPORTS
from fedmote.rounds.quarantine import Quarantine
from fedmote.strategies import Cell, Member, RoundPlan
from fedmote.wire.schema import Phase, Role, Status

DEVICES = ("board-1", "board-2", "board-3")
PARTNERS = ("phone-1", "phone-2")


def only(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


def statuses(actions):
    return [action.status for action in only(actions, SendRefuse)]


# ---- the quiet round ------------------------------------------------------------------------------------------------


def test_round_opens_when_everybody_is_there_and_closes_when_everybody_reported(fleet):
    one = fleet()
    assert only(one.hello("board-1", "board-2"), SendWait)
    assert one.machine.stage is Stage.SELECTION
    opened = one.hello("board-3")
    assert [type(action) for action in opened] == [OpenRound, JournalPlan, SendPlan]
    assert opened[0].plan.phase is Phase.DEVICE
    assert [member.id for member in opened[0].plan.members] == list(DEVICES)
    assert one.machine.stage is Stage.CONFIGURATION
    one.hello("board-1", "board-2")
    for who in DEVICES:
        one.give(TookPlan(who))
    assert one.machine.stage is Stage.REPORTING
    one.report("board-1")
    assert [type(action) for action in one.arrive("board-1")] == [JournalUpdate, SendAck]
    last = one.train("board-2", "board-3")
    assert isinstance(last[-1], CloseRound)
    assert one.machine.stage is Stage.CLOSING


def test_phases_alternate_and_the_partner_round_takes_the_cells_of_the_device_round(fleet):
    one = fleet()
    one.hello("board-3")  # cell home-1 is away
    one.wait(10.0)
    one.join("board-3")
    assert isinstance(one.train("board-3")[-1], CloseRound)
    one.machine.committed(1, one.now)
    opened = only(one.hello("phone-1", "phone-2"), OpenRound)
    assert opened[0].plan.phase is Phase.PARTNER
    assert opened[0].plan.version == 1
    assert [member.id for member in opened[0].plan.members] == ["phone-2"]


def test_simultaneous_rounds_expect_devices_and_partners_at_once(fleet):
    one = fleet(strategy=StrategyConfig(form="simultaneous"))
    opened = only(one.hello(*DEVICES, *PARTNERS), OpenRound)
    assert opened[0].plan.phase is Phase.SIMULTANEOUS
    assert len(opened[0].plan.members) == 5


def test_fleets_without_partners_have_device_rounds_alone(fleet):
    one = fleet(cells=(Cell("a", ("board-1",), None),))
    one.round("board-1")
    assert only(one.hello("board-1"), OpenRound)[0].plan.phase is Phase.DEVICE


def test_run_stops_without_complaint_when_its_goal_is_reached(fleet):
    one = fleet(goal=2)
    one.round(*DEVICES)
    assert one.round(*PARTNERS)[-1] == Stop(None)
    assert one.machine.stage is Stage.DONE
    assert only(one.hello("board-1"), SendWait)[0].reason == "the run is complete"
    assert one.machine.wake_at() == float("inf")


def test_every_round_has_a_seed_of_its_own(fleet):
    one = fleet(goal=4)
    for names in (DEVICES, PARTNERS, DEVICES):
        one.round(*names)
    seeds = [action.plan.seed for action in only(one.log, OpenRound)]
    assert len(set(seeds)) == 3


def test_drawn_cells_are_the_same_for_the_same_seed(fleet):
    cells = tuple(Cell(f"cell-{index}", (f"board-{index}",), None) for index in range(8))
    drawn = []
    for _ in range(2):
        one = fleet(cells=cells, strategy=StrategyConfig(cells_per_round=3))
        drawn.append(only(one.hello(*(f"board-{index}" for index in range(8))), OpenRound)[0].plan.members)
    assert len(drawn[0]) == 3
    assert drawn[0] == drawn[1]


# ---- an ack never comes before its journal entry --------------------------------------------------------------------


def test_every_ack_stands_behind_the_journal_entry_of_its_update(fleet):
    one = fleet()
    one.round(*DEVICES)
    for index, action in enumerate(one.log):
        if isinstance(action, SendAck):
            earlier = [entry.id for entry in only(one.log[:index], JournalUpdate)]
            assert action.id in earlier
    assert only(one.log, SendAck)


# ---- hellos, lost plans, resets -------------------------------------------------------------------------------------


def test_lost_plan_is_sent_again_under_the_same_attempt(fleet):
    one = fleet()
    one.join(*DEVICES)
    again = one.hello("board-1")
    assert [type(action) for action in again] == [SendPlan]
    assert again[0].attempt == 1


def test_reset_device_gets_the_plan_again_under_the_next_attempt(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.report("board-1")
    again = one.hello("board-1", boot=2)
    assert [type(action) for action in again] == [DropPull, JournalPlan, SendPlan]
    assert again[-1].attempt == 2
    assert one.arrive("board-1") == []  # the pull of the first attempt is over
    assert [(type(action), action.attempt) for action in one.report("board-1", attempt=1)] == [(SendPlan, 2)]
    assert only(one.report("board-1", attempt=2), Pull)
    assert only(one.arrive("board-1"), JournalUpdate)[0].attempt == 2


def test_plan_says_how_much_time_is_left(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.now += 20.0
    assert one.hello("board-1")[0].remaining_s == pytest.approx(40.0)


def test_device_that_browns_out_again_and_again_is_left_out_of_the_round(fleet):
    one = fleet(max_rejoins_per_minute=100)
    one.join(*DEVICES)
    for boot in range(2, MAX_ATTEMPTS + 1):
        one.now += 0.2
        assert one.hello("board-1", boot=boot)[-1].attempt == boot
    one.now += 0.2
    assert "reset" in only(one.hello("board-1", boot=99), SendWait)[0].reason


def test_boots_that_waited_and_are_heard_at_once_are_one_reset(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.now += 1.0
    last = 3 * MAX_ATTEMPTS
    for boot in range(2, last + 1):
        one.now += 0.01
        assert one.hello("board-1", boot=boot)[-1].attempt == boot
    assert only(one.report("board-1", attempt=last - 5), SendPlan)[0].attempt == last
    assert only(one.report("board-1", attempt=last), Pull)
    assert only(one.arrive("board-1"), JournalUpdate)[0].attempt == last


def test_a_report_whose_attempt_stays_an_old_one_is_refused_in_the_end(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.hello("board-1", boot=2)
    for _ in range(MAX_OLD_REPORTS):
        assert only(one.report("board-1", attempt=1), SendPlan)
    assert statuses(one.report("board-1", attempt=1)) == [Status.STALE_ROUND]
    assert only(one.report("board-1", attempt=2), Pull)


def test_late_duplicate_of_an_old_hello_is_ignored(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.hello("board-1", boot=2)
    assert one.hello("board-1", boot=1) == []
    assert only(one.report("board-1", attempt=2), Pull)


def test_two_boards_with_one_id_are_both_left_out(fleet):
    one = fleet()
    one.join(*DEVICES)
    for _ in range(3):
        one.hello("board-1", boot=2)
        last = one.hello("board-1", boot=1)
    assert statuses(last) == [Status.NOT_EXPECTED]
    assert one.machine.missing()["board-1"] == "two boards use this id"


def test_signs_of_a_second_board_are_counted_at_any_moment_and_leave_both_out_of_the_rounds_to_come(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.train("board-1")
    assert one.machine.handle(Doubled("board-1"), one.now) == []
    assert one.machine.handle(Doubled("board-1"), one.now) == []
    found = one.machine.handle(Doubled("board-1"), one.now)
    assert [type(action) for action in found] == [JournalQuarantine, SendRefuse]
    assert (found[0].id, found[0].until, found[0].reason) == ("board-1", 1 + QuarantineConfig().rounds, "two boards use this id")
    assert one.machine.counted() == ["board-1"], "what counted already stays"
    one.train(*DEVICES[1:])
    one.machine.committed(1, one.now)
    assert "two boards" in only(one.hello("board-1", boot=7), SendWait)[0].reason
    assert one.machine.handle(Doubled("board-1"), one.now) == []


def test_a_second_board_that_shows_between_rounds_is_not_in_the_next_one(fleet):
    one = fleet()
    one.round(*DEVICES)
    one.round(*PARTNERS)
    one.hello("board-1", boot=7)
    for _ in range(3):
        one.give(Doubled("board-1"))
    one.join(*DEVICES[1:])
    assert [member.id for member in one.machine.plan.members] == list(DEVICES[1:])


def test_who_is_left_out_for_a_second_board_is_left_out_once():
    machine = Quarantine(QuarantineConfig(), {}, {})
    assert machine.doubled(4, "board-1") == 4 + QuarantineConfig().rounds
    assert machine.doubled(5, "board-1") is None, "it is left out already"
    assert Quarantine(QuarantineConfig(rounds=0), {}, {}).doubled(4, "board-1") is None


def test_participant_whose_update_counts_is_told_to_wait(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.train("board-1")
    assert only(one.hello("board-1", boot=5), SendWait)


def test_strangers_and_wrong_roles_are_refused_and_change_nothing(fleet):
    one = fleet()
    before = one.machine.words(0.0)
    assert statuses(one.give(SaidHello("mallory", Role.DEVICE, 1))) == [Status.NOT_EXPECTED]
    assert statuses(one.give(SaidHello("board-1", Role.PARTNER, 1))) == [Status.NOT_EXPECTED]
    assert one.machine.words(0.0) == before


# ---- reports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"run": b"run-0002"}, Status.UNKNOWN_RUN),
        ({"round": 0}, Status.STALE_ROUND),
        ({"round": 2}, Status.NOT_EXPECTED),
        ({"version": 5}, Status.WRONG_MODEL),
        ({"attempt": 2}, Status.STALE_ROUND),
    ],
)
def test_report_that_does_not_belong_is_refused_with_its_status(fleet, changes, status):
    one = fleet()
    one.join(*DEVICES)
    assert statuses(one.report("board-1", **changes)) == [status]
    assert only(one.report("board-1"), Pull)  # the honest one still counts


@pytest.mark.parametrize("size", [0, 1001, 2**32 - 1])
def test_update_of_a_wrong_size_is_refused_before_a_byte_of_it_is_pulled(fleet, size):
    one = fleet()
    one.join(*DEVICES)
    actions = one.report("board-1", size=size)
    assert statuses(actions) == [Status.UPDATE_SHAPE]
    assert not only(actions, Pull)
    assert one.machine.missing()["board-1"] == "update refused: update-shape"


def test_report_without_a_plan_is_refused(fleet):
    one = fleet()
    one.join(*DEVICES)
    assert statuses(one.report("phone-1")) == [Status.NOT_EXPECTED]


def test_repeated_report_is_pulled_once_and_acked_again_after_it_counts(fleet):
    one = fleet()
    one.join(*DEVICES)
    assert only(one.report("board-1"), Pull)
    assert one.report("board-1") == []
    one.arrive("board-1")
    again = one.report("board-1")
    assert [type(action) for action in again] == [SendAck]
    assert len(only(one.log, JournalUpdate)) == 1


def test_second_update_of_a_participant_is_refused_as_duplicate(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.train("board-1")
    assert statuses(one.report("board-1", crc=12345)) == [Status.DUPLICATE]
    assert len(only(one.log, JournalUpdate)) == 1


def test_lost_ack_is_repeated_even_after_the_round(fleet):
    one = fleet()
    one.round(*DEVICES)
    crc = len("board-1")
    again = one.report("board-1", round=1, version=0, crc=crc)
    assert [type(action) for action in again] == [SendAck]


def test_replay_of_an_uncounted_update_in_a_later_round_is_stale(fleet):
    one = fleet(goal=5)
    one.round(*DEVICES)
    one.round(*PARTNERS)
    one.join(*DEVICES)
    assert statuses(one.report("board-1", round=1, version=0, crc=999)) == [Status.STALE_ROUND]


def test_blob_that_nobody_asked_for_is_ignored(fleet):
    one = fleet()
    one.join(*DEVICES)
    assert one.arrive("board-1") == []
    one.report("board-1")
    assert one.arrive("board-1", handle=8) == []


def test_spoiled_update_is_refused_and_its_sender_left_out(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.report("board-1")
    actions = one.give(BlobSpoiled("board-1", 7, Status.UPDATE_NOT_FINITE, "tensor head is not finite"))
    assert statuses(actions) == [Status.UPDATE_NOT_FINITE]
    assert one.machine.missing()["board-1"] == "update refused: update-not-finite"
    assert only(one.hello("board-1"), SendWait)
    assert isinstance(one.train("board-2", "board-3")[-1], CloseRound)


def test_wrong_checksum_is_pulled_again_before_it_is_refused(fleet):
    one = fleet()
    one.join(*DEVICES)
    for _ in range(2):
        assert only(one.report("board-1"), Pull)
        assert one.give(BlobSpoiled("board-1", 7, Status.CRC, "")) == []
    one.report("board-1")
    assert statuses(one.give(BlobSpoiled("board-1", 7, Status.CRC, ""))) == [Status.CRC]


def test_device_that_refuses_its_plan_is_not_waited_for(fleet):
    one = fleet()
    one.join(*DEVICES)
    assert only(one.give(Refused("board-1", Status.SLOT)), NoteRefusal)
    assert isinstance(one.train("board-2", "board-3")[-1], CloseRound)
    assert one.machine.missing() == {"board-1": "refused the plan: slot"}


def test_participant_that_forgot_its_blob_may_report_again(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.report("board-1")
    assert only(one.give(Refused("board-1", Status.ARGUMENT, handle=7)), DropPull)
    assert only(one.report("board-1", handle=8), Pull)


# ---- deadlines -------------------------------------------------------------------------------------------------------


def test_round_closes_at_its_deadline_with_those_who_reported(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.train("board-1", "board-2")
    assert one.machine.wake_at() == 60.0
    assert one.wait(59.9) == []
    assert [type(action) for action in one.wait(0.1)] == [CloseRound]
    assert list(one.machine.missing()) == ["board-3"]
    assert statuses(one.report("board-3")) == [Status.STALE_ROUND]


def test_whoever_is_still_sending_at_the_deadline_is_told(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.train("board-1", "board-2")
    one.report("board-3")
    actions = one.wait(60.0)
    assert [type(action) for action in actions] == [DropPull, SendRefuse, CloseRound]
    assert actions[1].status is Status.STALE_ROUND
    assert one.arrive("board-3") == []


def test_round_below_its_quorum_is_abandoned_and_the_model_stays(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.train("board-1")
    actions = one.wait(60.0)
    assert [type(action) for action in actions] == [AbandonRound]
    assert "1 of 3 reported, 2 are needed" in actions[0].reason
    assert one.machine.version == 0
    assert only(one.hello(*DEVICES), OpenRound)[0].plan.round == 2
    assert one.machine.plan.phase is Phase.DEVICE  # a device round again: the partners got nothing


def test_absent_device_takes_part_again_in_the_next_round(fleet):
    one = fleet(cells=(Cell("a", ("board-1",), None), Cell("b", ("board-2",), None)))
    one.join("board-1", "board-2")
    one.train("board-1")
    one.wait(60.0)
    one.machine.committed(1, one.now)
    assert [plan.id for plan in one.join("board-1", "board-2", boot=9)] == ["board-1", "board-2"]


def test_devices_go_on_after_a_partner_round_that_failed(fleet):
    one = fleet()
    one.round(*DEVICES)
    one.join(*PARTNERS)
    assert only(one.wait(60.0), AbandonRound)
    assert only(one.hello(*DEVICES), OpenRound)[0].plan.phase is Phase.DEVICE


def test_run_ends_with_a_complaint_after_too_many_failed_rounds(fleet):
    one = fleet(max_failed_rounds=2)
    for _ in range(2):
        one.join(*DEVICES)
        last = one.wait(60.0)
    assert "2 rounds in a row failed" in only(last, Stop)[0].complaint


def test_a_merged_round_forgives_the_failed_ones_before_it(fleet):
    one = fleet(max_failed_rounds=2, goal=5, strategy=StrategyConfig(ignore="partners"))
    one.join(*DEVICES)
    one.wait(60.0)
    one.round(*DEVICES)
    one.hello("phone-1", "phone-2")
    last = one.wait(70.0)
    assert [action for action in last if isinstance(action, AbandonRound)]
    assert not [action for action in last if isinstance(action, Stop)]


def test_share_that_is_a_whole_number_is_not_rounded_up_by_floating_point(fleet):
    names = [f"board-{number:03}" for number in range(100)]
    one = fleet(cells=(Cell("all", tuple(names), None),), min_fraction=0.55)  # 0.55 * 100 is 55.00000000000001
    one.join(*names)
    one.train(*names[:55])
    assert [type(action) for action in one.wait(60.0)] == [CloseRound]


def test_empty_room_is_given_up_and_not_waited_for_without_end(fleet):
    one = fleet(max_failed_rounds=1)
    assert one.machine.wake_at() == 70.0
    actions = one.wait(70.0)
    assert [type(action) for action in actions] == [OpenRound, AbandonRound, Stop]
    assert actions[0].plan.members == ()


def test_goal_count_closes_a_round_early(fleet):
    one = fleet(goal_count=2)
    one.join(*DEVICES)
    assert isinstance(one.train("board-1", "board-2")[-1], CloseRound)


def test_merge_that_is_refused_leaves_the_model(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.train(*DEVICES)
    assert only(one.machine.spoiled("not finite", one.now), AbandonRound)
    assert one.machine.version == 0


# ---- words -----------------------------------------------------------------------------------------------------------


def test_words_say_who_is_missing_and_how_long_the_wait_can_be(fleet):
    one = fleet()
    one.hello("board-1")
    assert one.machine.words(1.0) == "round 1: 1 of 3 participants ready; waiting for board-2, board-3, at most 9 s"
    one.join(*DEVICES)
    one.train("board-1")
    one.give(TookPlan("board-2"))
    assert one.machine.words(19.0) == (
        "round 1 (device): 1 of 3 reported, need 2; missing board-2 (training), board-3 (plan sent); 41 s left"
    )


# ---- resume ----------------------------------------------------------------------------------------------------------

OPEN = RoundPlan(4, Phase.DEVICE, 3, 99, tuple(Member(who, Role.DEVICE, "home-1") for who in ("board-1", "board-2")))


def test_open_round_goes_on_with_what_the_journal_holds(fleet):
    standing = Standing(3, 4, 3, open=OpenRoundStanding(OPEN, {"board-1": (1, 1), "board-2": (2, 6)}, {"board-1": 7}, False))
    one = fleet(goal=9, standing=standing)
    assert one.machine.tick(0.0) == []
    assert one.machine.counted() == ["board-1"]
    assert one.hello("board-2", boot=6)[0].attempt == 2
    assert [type(action) for action in one.train("board-2")] == [JournalUpdate, SendAck, CloseRound]


def test_complete_round_is_closed_at_once_after_a_restart(fleet):
    standing = Standing(3, 4, 3, open=OpenRoundStanding(OPEN, {}, {"board-1": 7, "board-2": 8}, False))
    assert [type(action) for action in fleet(goal=9, standing=standing).machine.tick(0.0)] == [CloseRound]


def test_closed_round_is_merged_after_a_restart_even_if_somebody_is_missing(fleet):
    standing = Standing(3, 4, 3, open=OpenRoundStanding(OPEN, {}, {"board-1": 7}, True))
    one = fleet(goal=9, standing=standing)
    assert one.machine.tick(0.0) == [CloseRound(OPEN)]
    assert statuses(one.report("board-2", round=4, version=3)) == [Status.STALE_ROUND]


def test_finished_run_stops_at_once_after_a_restart(fleet):
    assert fleet(goal=3, standing=Standing(3, 3, 3)).machine.tick(0.0) == [Stop(None)]


# ---- size and disorder -----------------------------------------------------------------------------------------------


def test_round_of_a_thousand_participants_counts_each_once(fleet):
    cells = tuple(Cell(f"cell-{index:03}", (f"board-{index:03}-a", f"board-{index:03}-b"), None) for index in range(500))
    names = [device for cell in cells for device in cell.devices]
    one = fleet(cells=cells, goal=2)
    one.join(*names)
    one.train(*names)
    journal = [entry.id for entry in only(one.log, JournalUpdate)]
    assert sorted(journal) == sorted(names)
    assert isinstance(one.log[-1], CloseRound)


@pytest.mark.parametrize("order", list(itertools.permutations(DEVICES)))
def test_any_order_of_arrival_counts_the_same_updates(fleet, order):
    one = fleet()
    one.join(*order)
    one.train(*order)
    assert one.machine.counted() == list(DEVICES)
