# SPDX-License-Identifier: Apache-2.0
"""Every wait ends: invitations beyond the goal, deadlines by board, leases, pauses, the pace of a fleet, resets in a row."""

import math

import pytest

from fedmote.config import DeadlineConfig, WindowsConfig
from fedmote.errors import ConfigError
from fedmote.rounds import OpenRoundStanding, Stage, Standing
from fedmote.rounds.events import (
    AbandonRound,
    CloseRound,
    OpenRound,
    Pause,
    Refused,
    Resume,
    SaidHello,
    SendPlan,
    SendRefuse,
    SendWait,
    SentChunk,
    Stop,
    TookPlan,
)
from fedmote.rounds.pace import BACKLOG_S
from fedmote.strategies import Cell, Member, RoundPlan
from fedmote.wire.schema import Phase, Role, Status

DEVICES = ("board-1", "board-2", "board-3")
CROWD = tuple(f"board-{number:03}" for number in range(100))
CROWD_CELLS = tuple(Cell(f"cell-{number:03}", (name,), None) for number, name in enumerate(CROWD))


def only(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


def members(actions):
    return [member.id for member in only(actions, OpenRound)[0].plan.members]


# ---- over-selection --------------------------------------------------------------------------------------------------


def test_so_many_are_invited_that_the_goal_is_met_although_some_never_report(fleet):
    one = fleet(cells=CROWD_CELLS, goal_count=50)
    invited = members(one.hello(*CROWD))
    assert len(invited) == 65
    one.hello(*invited)
    actions = one.train(*invited[:50])
    assert isinstance(actions[-1], CloseRound)
    assert len(one.machine.missing()) == 15


def test_invitations_are_drawn_from_the_seed_and_differ_from_round_to_round(fleet):
    drawn = []
    for _ in range(2):
        one = fleet(cells=CROWD_CELLS, goal_count=10)
        drawn.append(members(one.hello(*CROWD)))
        one.hello(*drawn[-1])
        one.train(*drawn[-1][:10])
        one.machine.committed(1, one.now)
        drawn.append(members(one.hello(*CROWD)))
    assert drawn[0] == drawn[2] and drawn[1] == drawn[3]
    assert drawn[0] != drawn[1]
    assert len(drawn[0]) == 13


def test_late_participants_are_refused_once_the_goal_is_met(fleet):
    one = fleet(cells=CROWD_CELLS, goal_count=10)
    invited = members(one.hello(*CROWD))
    one.hello(*invited)
    one.report(invited[11])
    actions = one.train(*invited[:10])
    assert [action.id for action in only(actions, SendRefuse)] == [invited[11]]
    assert [action.status for action in only(one.report(invited[12]), SendRefuse)] == [Status.STALE_ROUND]


def test_without_a_goal_everybody_who_is_there_is_invited(fleet):
    assert len(members(fleet(cells=CROWD_CELLS).hello(*CROWD))) == 100


def test_cells_are_invited_whole(fleet):
    cells = tuple(Cell(f"cell-{number}", (f"a-{number}", f"b-{number}"), None) for number in range(10))
    names = [device for cell in cells for device in cell.devices]
    invited = members(fleet(cells=cells, goal_count=3).hello(*names))
    assert len(invited) == 4  # 3.9 are wanted
    assert len({name[2:] for name in invited}) == 2


# ---- deadlines by board, leases --------------------------------------------------------------------------------------


def slow_fleet(fleet, **windows):
    """board-3 is slow, and everybody has a plan."""
    one = fleet(deadlines=(DeadlineConfig(("slow",), 300.0),), min_fraction=0.3, **windows)
    for who in DEVICES:
        for _ in range(2):
            one.give(SaidHello(who, Role.DEVICE, 1, "slow" if who == "board-3" else "fast"))
    return one


def test_a_slow_board_has_a_later_deadline_and_the_round_waits_for_it(fleet):
    one = slow_fleet(fleet)
    one.train("board-1")
    assert one.machine.wake_at() == 300.0
    assert one.wait(299.0) == []
    assert isinstance(one.train("board-3")[-1], CloseRound)  # board-2 is late for long


def test_a_slow_board_that_has_reported_is_waited_for_no_longer(fleet):
    one = slow_fleet(fleet)
    one.train("board-3")
    assert one.machine.wake_at() == 60.0
    assert isinstance(one.wait(60.0)[-1], CloseRound)


def test_each_board_is_told_its_own_time(fleet):
    one = slow_fleet(fleet, grace_s=20.0)
    one.now += 10.0
    plans = [one.give(SaidHello(who, Role.DEVICE, 1, board))[-1] for who, board in (("board-1", "fast"), ("board-3", "slow"))]
    assert [plan.remaining_s for plan in plans] == pytest.approx([70.0, 310.0])


def test_a_slow_board_keeps_its_deadline_over_a_restart(fleet):
    plan = RoundPlan(1, Phase.DEVICE, 0, 9, (Member("board-1", Role.DEVICE, "home-1"), Member("board-3", Role.DEVICE, "home-2")))
    standing = Standing(0, 1, 0, open=OpenRoundStanding(plan, {"board-3": (1, 5)}, {}, False, {"board-3": "slow"}))
    one = fleet(standing=standing, deadlines=(DeadlineConfig(("slow",), 300.0),))
    assert one.machine.wake_at() == 300.0


def test_chunks_extend_the_wait_by_a_lease_and_never_beyond_the_grace(fleet):
    one = fleet(lease_s=5.0, grace_s=12.0, min_fraction=0.3)
    one.join(*DEVICES)
    one.train("board-1")
    one.report("board-2")
    one.wait(58.0)
    for expected in (63.0, 66.0, 69.0, 72.0, 72.0, 72.0):
        one.give(SentChunk("board-2"))
        assert one.machine.wake_at() == expected
        one.wait(3.0)
        if one.machine.stage is Stage.CLOSING:
            break
    assert (one.now, one.machine.stage) == (73.0, Stage.CLOSING)


def test_pulling_the_model_at_the_deadline_is_work_as_well(fleet):
    one = fleet(lease_s=5.0, grace_s=30.0)
    one.join(*DEVICES)
    one.train("board-1")
    one.wait(59.0)
    one.give(TookPlan("board-3"))
    assert one.machine.wake_at() == 64.0
    assert isinstance(one.train("board-2", "board-3")[-1], CloseRound)


def test_a_chunk_long_before_the_deadline_changes_nothing(fleet):
    one = fleet(lease_s=5.0, grace_s=30.0)
    one.join(*DEVICES)
    one.report("board-1")
    one.give(SentChunk("board-1"))
    assert one.machine.wake_at() == 60.0


@pytest.mark.parametrize(
    "deadlines", [(DeadlineConfig(("a",), 30.0),), (DeadlineConfig(("a",), 99.0), DeadlineConfig(("b", "a"), 98.0))]
)
def test_deadlines_that_are_none_are_refused(deadlines):
    with pytest.raises(ConfigError, match=r"deadlines"):
        WindowsConfig(report_s=60.0, deadlines=deadlines)


# ---- pauses ----------------------------------------------------------------------------------------------------------


def failing(fleet, **windows):
    """A fleet whose first two rounds failed."""
    one = fleet(max_failed_rounds=2, after_failures="pause", pause_s=30.0, max_pause_s=100.0, **windows)
    for _ in range(2):
        one.join(*DEVICES)
        last = one.wait(60.0)
    return one, last


def test_a_run_pauses_after_failed_rounds_and_says_why_and_for_how_long(fleet):
    one, last = failing(fleet)
    (pause,) = only(last, Pause)
    assert pause.pause_s == 30.0
    assert "2 rounds in a row failed; the last one, round 2: 0 of 3 reported, 2 are needed" in pause.complaint
    assert not only(one.log, Stop)
    assert one.machine.stage is Stage.PAUSED
    assert one.machine.wake_at() == one.now + 30.0
    assert one.machine.words(one.now + 10).endswith("are needed; the next attempt is in 20 s")
    assert one.machine.status(one.now).to_json()["stage"] == "paused"


def test_nothing_opens_in_a_pause_and_participants_are_told_when_it_ends(fleet):
    one, _ = failing(fleet)
    one.now += 10.0
    actions = one.hello(*DEVICES)
    assert [type(action) for action in actions] == [SendWait] * 3
    assert all(20_000 <= action.wait_ms <= 21_500 and action.reason == "the run is paused" for action in actions)


def test_after_a_pause_the_run_goes_on_when_enough_came_back(fleet):
    one, _ = failing(fleet)
    one.wait(30.0)
    assert one.machine.stage is Stage.SELECTION
    actions = one.hello(*DEVICES)
    assert only(actions, Resume) and only(actions, OpenRound)
    one.hello(*DEVICES)
    one.train(*DEVICES)
    one.machine.committed(1, one.now)
    assert one.machine.status(one.now).failed == 0


def test_too_few_after_a_pause_are_not_sent_into_a_round_and_pauses_double_up_to_the_longest(fleet):
    one, last = failing(fleet)
    lengths = [only(last, Pause)[0].pause_s]
    for _ in range(4):
        one.wait(lengths[-1])
        one.hello("board-1")
        (pause,) = only(one.wait(10.0), Pause)
        assert pause.complaint == "1 of 3 participants came back, 2 are needed"
        lengths.append(pause.pause_s)
    assert lengths == [30.0, 60.0, 100.0, 100.0, 100.0]
    assert len(only(one.log, OpenRound)) == 2


def test_a_merged_round_makes_the_next_pause_short_again(fleet):
    one, _ = failing(fleet, lease_s=0.0)
    one.wait(30.0)
    one.round(*DEVICES)
    for _ in range(2):
        one.join("phone-1", "phone-2")
        one.join(*DEVICES)
        last = one.wait(60.0)
    assert only(last, Pause)[0].pause_s == 30.0


def test_an_empty_room_is_asked_again_and_again_and_every_wait_has_an_end(fleet):
    one = fleet(max_failed_rounds=1, after_failures="pause")
    for _ in range(50):
        wake_at = one.machine.wake_at()
        assert not math.isinf(wake_at) and wake_at <= one.now + 3600.0
        one.now = wake_at
        one.log += one.machine.tick(one.now)
    assert len(only(one.log, AbandonRound)) == 1  # empty rounds are no news after the first
    assert len(only(one.log, Pause)) > 20


def test_a_run_that_is_told_to_ends_instead(fleet):
    one = fleet(max_failed_rounds=1, after_failures="end")
    one.join(*DEVICES)
    assert "round failed" in only(one.wait(60.0), Stop)[0].complaint


# ---- pace ------------------------------------------------------------------------------------------------------------


def test_a_thousand_devices_are_spread_so_that_no_second_sees_more_than_a_few_of_them(fleet):
    names = [f"board-{number:04}" for number in range(1000)]
    one = fleet(cells=(Cell("all", (*names, "late"), None),), max_hellos_per_s=50.0, selection_s=1000.0, report_s=100.0)
    times = [action.wait_ms / 1000 for action in one.hello(*names)]
    assert len(times) == 1000
    assert min(times) >= 10.0 and max(times) <= 30.1
    busiest = max(sum(second <= time < second + 1 for time in times) for second in range(31))
    assert busiest <= 2 * 50


def test_a_crowd_waits_no_longer_than_a_quarter_of_the_time_that_a_round_has(fleet):
    one = fleet(cells=(Cell("all", (*CROWD, "late"), None),), max_hellos_per_s=1.0, selection_s=1000.0, report_s=40.0)
    times = [action.wait_ms / 1000 for action in one.hello(*CROWD)]
    assert min(times) >= 5.0 and max(times) <= 15.1


def test_the_same_run_tells_the_same_times_and_nobody_the_same_twice(fleet):
    waits = [[action.wait_ms for _ in range(5) for action in fleet_.hello("board-1", "board-2")] for fleet_ in (fleet(), fleet())]
    assert waits[0] == waits[1]
    assert len(set(waits[0])) == 10
    assert all(250 <= wait <= 750 for wait in waits[0])


def test_whoever_is_done_comes_back_when_half_of_what_the_round_will_take_is_over(fleet):
    one = fleet(goal=9, cells=(Cell("all", DEVICES, None),))
    one.join(*DEVICES)
    one.now += 40.0
    one.train(*DEVICES)
    one.machine.committed(1, one.now)
    one.join(*DEVICES)
    one.train("board-1")
    (wait,) = one.hello("board-1")
    assert 20_000 <= wait.wait_ms <= 21_000
    one.now += 41.0  # longer than the last round took: nothing is known any more
    assert one.hello("board-1")[0].wait_ms <= 750


# ---- not now, brown-out ----------------------------------------------------------------------------------------------


def test_a_participant_that_says_not_now_is_not_waited_for_and_may_join_the_next_round(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.give(Refused("board-1", Status.STATE))
    assert isinstance(one.train("board-2", "board-3")[-1], CloseRound)
    assert one.machine.missing() == {"board-1": "refused the plan: state"}


@pytest.mark.parametrize("period_s", [0.2, 1.0, 2.0])
def test_a_part_that_browns_out_in_a_loop_rejoins_three_times_a_minute_at_most(fleet, period_s):
    one = fleet(report_s=600.0)
    one.join(*DEVICES)
    accepted = []
    for boot in range(2, 2 + int(180 / period_s)):
        one.now += period_s
        (answer,) = only(one.hello("board-1", boot=boot), SendPlan | SendWait)
        if isinstance(answer, SendPlan):
            accepted.append(one.now)
        elif "reset too often" in answer.reason:
            assert answer.wait_ms <= 61_000
    assert accepted
    assert all(sum(start < time <= start + 59.9 for time in accepted) <= 3 for start in (0.0, *accepted))


def test_others_go_on_while_one_is_in_quarantine_and_a_calm_one_is_let_in_again(fleet):
    one = fleet(report_s=600.0)
    one.join(*DEVICES)
    for boot in range(2, 6):
        one.now += 1.0
        last = one.hello("board-1", boot=boot)
    assert only(last, SendWait)[0].reason == "reset too often"
    one.train("board-2")
    one.now += only(last, SendWait)[0].wait_ms / 1000
    assert only(one.hello("board-1", boot=5), SendPlan)[0].attempt == 5
    assert isinstance(one.train("board-1", "board-3")[-1], CloseRound)


def test_resets_count_over_rounds_and_between_them(fleet):
    one = fleet()
    for boot in range(1, 5):
        one.now += 0.2
        assert only(one.hello("board-1", boot=boot), SendWait)[0].reason == "round not open yet"
    one.now += 0.2
    assert only(one.hello("board-1", boot=5), SendWait)[0].reason == "reset too often"


def test_boots_that_are_heard_within_a_tenth_of_a_second_are_one_reset(fleet):
    one = fleet()
    for boot in range(1, 50):
        one.now += 0.02
        assert only(one.hello("board-1", boot=boot), SendWait)[0].reason == "round not open yet"
    for boot in (50, 51, 52):
        one.now += 1.0
        assert only(one.hello("board-1", boot=boot), SendWait)[0].reason == "round not open yet"
    one.now += 1.0
    assert only(one.hello("board-1", boot=53), SendWait)[0].reason == "reset too often"


def test_hellos_of_ever_new_boots_do_not_get_around_the_limit_of_resets(fleet):
    one = fleet(report_s=600.0)
    one.join(*DEVICES)
    answers = []
    for boot in range(2, 1002):
        one.now += 0.05
        answers += only(one.hello("board-1", boot=boot), SendPlan | SendWait)
    num_plans = sum(isinstance(answer, SendPlan) for answer in answers)
    assert num_plans < 4 * BACKLOG_S / 0.05 + 4
    assert answers[-1].reason == "reset too often"


# ---- words -----------------------------------------------------------------------------------------------------------


def test_status_says_in_data_what_the_words_say(fleet):
    one = fleet()
    one.join(*DEVICES)
    one.train("board-1")
    status = one.machine.status(19.0).to_json()
    assert status == {
        "stage": "configuration",
        "merged": 0,
        "goal": 3,
        "failed": 0,
        "round": 1,
        "phase": "device",
        "come": 1,
        "expected": 3,
        "needed": 2,
        "missing": {"board-2": "plan sent", "board-3": "plan sent"},
        "left_s": 41.0,
        "reason": None,
    }
