# SPDX-License-Identifier: Apache-2.0
"""Who is left out, for how long, and what the machine says to them."""

from dataclasses import replace

import pytest

from fedmote.aggregation import Finding
from fedmote.config import QuarantineConfig
from fedmote.rounds import Standing
from fedmote.rounds.events import BlobSpoiled, JournalVerdict, SendPlan, SendRefuse, SendWait
from fedmote.rounds.quarantine import Quarantine
from fedmote.wire.schema import Status

ALL = ("board-1", "board-2", "board-3")
FAR, NEAR = 9.0, 1.0


def quarantine(**rules):
    return Quarantine(QuarantineConfig(**rules), {}, {})


def test_third_unsound_update_in_a_row_is_one_too_many():
    one = quarantine(unsound_updates=3, rounds=2)
    verdicts = [one.judge(number, Finding("a", FAR)) for number in (1, 2, 3)]
    assert [(verdict.streak, verdict.until) for verdict in verdicts] == [(1, None), (2, None), (3, 5)]
    assert "9.0 times the median norm" in verdicts[-1].reason
    assert [list(one.left_out(number)) for number in (4, 5, 6)] == [["a"], ["a"], []]
    assert "in quarantine until round 5" in one.left_out(4)["a"]


def test_sound_update_ends_the_row_and_a_single_one_after_quarantine_renews_it():
    one = quarantine(unsound_updates=2, rounds=1)
    one.judge(1, Finding("a", FAR))
    assert one.judge(2, Finding("a", NEAR)).streak == 0
    assert one.judge(3, Finding("a", FAR)).until is None
    assert one.invalid(4, "a", "update-shape").until == 5
    assert one.judge(6, Finding("a", FAR)).until == 7
    assert one.judge(8, Finding("a", NEAR)).until is None
    assert one.judge(9, Finding("a", FAR)).until is None


def test_update_that_multi_krum_leaves_out_near_the_others_is_sound():
    one = quarantine(unsound_updates=1)
    assert one.judge(1, Finding("a", NEAR, is_filtered=True)).until is None
    assert "distance or norm" in one.judge(2, Finding("a", FAR, is_filtered=True)).reason


def test_no_rounds_means_no_quarantine():
    one = quarantine(unsound_updates=1, rounds=0)
    assert one.judge(1, Finding("a", FAR)).until is None
    assert one.left_out(2) == {}


def spoil(one, who, status=Status.UPDATE_NOT_FINITE):
    one.report(who)
    return one.give(BlobSpoiled(who, 7, status, "tensor h is not finite"))


def test_invalid_updates_in_three_rounds_leave_a_device_out_of_the_fourth(fleet):
    one = fleet(goal=20, selection_s=5.0)
    verdicts = []
    while len(verdicts) < 3:
        if one.machine._selection.phase.name == "PARTNER":
            one.round("phone-1", "phone-2")
            continue
        one.join(*ALL)
        actions = spoil(one, "board-3")
        verdict = next(action.verdict for action in actions if isinstance(action, JournalVerdict))
        assert isinstance(actions[actions.index(next(a for a in actions if isinstance(a, JournalVerdict))) + 1], SendRefuse)
        verdicts.append(verdict)
        one.train("board-1", "board-2")
        one.machine.committed(one.machine.version + 1, one.now)
    assert [verdict.streak for verdict in verdicts] == [1, 2, 3]
    assert verdicts[-1].until is not None
    if one.machine._selection.phase.name == "PARTNER":
        one.round("phone-1", "phone-2")
    answer = one.hello("board-3")
    assert isinstance(answer[0], SendWait)
    assert "in quarantine until round" in answer[0].reason
    # Nobody waits for it: the others are a whole round.
    assert {action.id for action in one.join("board-1", "board-2") if isinstance(action, SendPlan)} == {"board-1", "board-2"}
    assert one.machine.num_expected == 2


def test_spoiled_checksum_is_no_sign_of_hostility(fleet):
    one = fleet()
    one.join(*ALL)
    for _ in range(5):
        assert not any(isinstance(action, JournalVerdict) for action in spoil(one, "board-1", Status.CRC))


@pytest.mark.parametrize(("num_examples", "is_taken"), [(0, True), (1, False), (15, False), (16, True)])
def test_update_from_few_samples_is_refused_before_it_is_pulled_and_one_from_none_is_taken(fleet, num_examples, is_taken):
    one = fleet()
    one.machine.rules = replace(one.machine.rules, min_examples=16)
    one.join(*ALL)
    actions = one.report("board-1", num_examples=num_examples)
    refusals = [action for action in actions if isinstance(action, SendRefuse)]
    assert bool(refusals) is not is_taken
    if refusals:
        assert refusals[0].status is Status.NO_SAMPLES
        assert "at least 16" in refusals[0].reason
        assert not any(isinstance(action, JournalVerdict) for action in actions)
        assert isinstance(one.hello("board-1")[0], SendWait)


def test_restarted_machine_remembers_who_is_left_out(fleet):
    standing = Standing(num_rounds=4, streaks={"board-1": 3}, quarantined={"board-1": (6, "far")})
    one = fleet(standing=standing)
    assert isinstance(one.hello("board-1")[0], SendWait)
    assert {action.id for action in one.join("board-2", "board-3")} == {"board-2", "board-3"}
    later = fleet(standing=Standing(num_rounds=6, quarantined={"board-1": (6, "far")}))
    assert len(later.join(*ALL)) == 3


def test_cell_of_a_quarantined_device_alone_is_not_waited_for(fleet):
    one = fleet(standing=Standing(quarantined={"board-3": (9, "far")}))
    assert len(one.join("board-1", "board-2")) == 2


def test_round_in_which_everybody_is_left_out_is_abandoned(fleet):
    one = fleet(
        standing=Standing(quarantined=dict.fromkeys(ALL, (9, "far"))), max_failed_rounds=1, selection_s=5.0, report_s=10.0
    )
    one.hello(*ALL)
    one.wait(16.0)
    assert one.machine.stage.value == "done"
