# SPDX-License-Identifier: Apache-2.0
"""What the operator is told: who is missing, what is awaited, how long still; in words and as data, running and afterwards."""

import asyncio
import json

from fedmote.cli import serve
from fedmote.config import CellConfig
from fedmote.coordinator import coordinator
from fedmote.coordinator.results import round_result
from fedmote.rounds import RunStatus, Stage
from fedmote.store import CheckpointEntry, Ledger, PlanEntry, RunEntry, UpdateEntry
from fedmote.strategies import Member, RoundPlan
from fedmote.wire.schema import Phase, Role

CELLS = (CellConfig("home-1", ("board-1", "board-2"), None),)


def test_a_running_coordinator_tells_its_status_again_and_again(site, monkeypatch):
    monkeypatch.setattr(coordinator, "TALK_S", 0.05)
    one = site(cells=CELLS, rounds=1, selection_s=0.3, report_s=0.4, min_fraction=1.0, max_failed_rounds=1)

    async def never(plan, now):
        """Takes its plan, and is not heard of again."""

    one.actors["board-2"].begin = never
    result = one.serve()
    assert result.complaint
    open_ones = [status for status in one.statuses if status.stage is Stage.CONFIGURATION and status.come == 1]
    assert open_ones
    status = open_ones[-1]
    assert (status.expected, status.needed, list(status.missing)) == (2, 2, ["board-2"])
    assert 0.0 <= status.left_s <= 0.4
    assert "1 of 2 reported, need 2; missing board-2 (plan sent)" in status.words()
    assert status.left_s <= open_ones[0].left_s


def test_a_run_that_pauses_says_so_and_goes_on_by_itself_when_its_participants_are_back(site):
    one = site(
        cells=CELLS,
        rounds=1,
        selection_s=0.1,
        report_s=0.3,
        min_fraction=1.0,
        max_failed_rounds=1,
        after_failures="pause",
        pause_s=0.2,
        grace_s=0.0,
    )
    actor = one.actors["board-2"]
    begin = actor.begin

    async def away(plan, now):
        """Until the run has paused."""
        if any("paused" in line for line in one.talk):
            await begin(plan, now)

    actor.begin = away
    result = one.serve()
    assert result.is_complete
    assert result.complaint is None
    assert [entry.state for entry in result.rounds] == ["abandoned", "committed"]
    (paused,) = [line for line in one.talk if line.startswith("paused for 0 s: round failed; the last one, round 1: 1 of 2")]
    assert "goes on by itself" in paused
    assert "enough participants are back: the run goes on" in one.talk


def test_a_run_that_is_stopped_in_a_pause_has_a_complaint(site):
    one = site(cells=CELLS, rounds=1, report_s=0.2, max_failed_rounds=1, after_failures="pause", grace_s=0.0)

    async def never(plan, now):
        """Takes its plan, and is not heard of again."""

    for actor in one.actors.values():
        actor.begin = never

    async def stop(site):
        await until_said(site, "paused")
        site.coordinator.stop()

    result = one.serve(while_running=stop)
    assert not result.is_complete
    assert "0 of 2 reported" in result.complaint


async def until_said(site, word):
    while not any(word in line for line in site.talk):
        await asyncio.sleep(0.005)


def test_progress_for_programs_is_one_object_per_line_on_stderr(capsys):
    serve._talk_json("two\nlines")
    serve._tell_json(RunStatus(Stage.REPORTING, 1, 3, 0, 2, "device", 1, 2, 2, {"board-2": "training"}, 12.3456))
    said, told = map(json.loads, capsys.readouterr().err.splitlines())
    assert said == {"event": "said", "text": "two\nlines"}
    assert (told["event"], told["stage"], told["left_s"]) == ("status", "reporting", 12.346)
    assert told["text"] == "round 2 (device): 1 of 2 reported, need 2; missing board-2 (training); 12 s left"


def test_an_open_round_in_the_ledger_says_what_it_waits_for(tmp_path):
    plan = RoundPlan(1, Phase.DEVICE, 0, 7, tuple(Member(f"board-{number}", Role.DEVICE, "a") for number in (1, 2, 3)))
    with Ledger.open(tmp_path / "ledger") as ledger:
        ledger.begin_run(RunEntry(b"run-0001", 42, "{}"), CheckpointEntry(0, 0, "h0", 0, None))
        ledger.open_round(plan, 120.0)
        for who, attempt in (("board-1", 1), ("board-2", 1), ("board-2", 2)):
            ledger.add_plan(1, PlanEntry(who, attempt, 70 + attempt, "posix", 144))
        ledger.add_update(1, UpdateEntry("board-1", Role.DEVICE, 1, 9, 5, "c", {}))
        result = round_result(ledger, ledger.rounds(1)[0])
    assert result.missing == {"board-2": "has its plan, attempt 2", "board-3": "no plan yet"}
    assert result.words().startswith(
        "round 1 (device): 1 of 3 reported; missing board-2 (has its plan, attempt 2), board-3 (no plan yet); open, opened at 20"
    )
    assert result.words().endswith("its deadline is 120 s after that, or after a restart")
    assert result.to_json()["report_s"] == 120.0
