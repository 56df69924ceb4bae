# SPDX-License-Identifier: Apache-2.0
"""The coordinator is killed at every place it passes: the final checkpoint has the same bytes, and nobody counts twice."""

from collections import Counter

import pytest

from fedmote.config import StrategyConfig
from fedmote.store import Ledger

from .conftest import Killed

FORMS = {"alternating": 3, "simultaneous": 2}
PLACES = [
    "first-checkpoint-written",
    "run-begun",
    "blob-stored",
    "round-closed",
    "merge-computed",
    "checkpoint-written",
    "round-committed",
    *(
        f"{when} {action}"
        for action in (
            "OpenRound",
            "JournalPlan",
            "SendPlan",
            "SendWait",
            "Pull",
            "JournalUpdate",
            "SendAck",
            "CloseRound",
            "Stop",
        )
        for when in ("before", "after")
    ),
]


def make(site, name, form):
    return site(name, rounds=FORMS[form], strategy=StrategyConfig(form=form), report_s=20.0)


@pytest.fixture
def quiet(site):
    """Checkpoints of a run that nothing happens to, and the places that it passed."""

    def run(form):
        passed = Counter()
        one = make(site, f"quiet-{form}", form)
        one.serve(passing=lambda place: passed.update([place]))
        return one.checkpoint_bytes(), passed

    return run


def serve_with_kill(one, place, occurrence):
    """Serve until the place is passed for the n-th time, then serve again to the end."""
    count = 0

    def passing(name):
        nonlocal count
        count += name == place
        if name == place and count == occurrence:
            raise Killed(place)

    with pytest.raises(Killed):
        one.serve(passing=passing)
    return one.serve()


def assert_sound(one, result, expected):
    assert result.is_complete
    assert one.checkpoint_bytes() == expected
    with Ledger.open(one.config.run.state_directory / "ledger.sqlite", is_read_only=True) as ledger:
        for entry in ledger.rounds():
            names = [update.participant for update in ledger.updates(entry.plan.round)]
            assert names == sorted(set(names)) == [member.id for member in entry.plan.members]


@pytest.mark.parametrize("form", FORMS)
def test_kill_at_every_place_leaves_the_final_checkpoint_byte_identical(site, quiet, form):
    expected, passed = quiet(form)
    assert set(PLACES) <= set(passed), "every place is reached in a quiet run"
    for place in PLACES:
        occurrences = {1} if "SendWait" in place else {1, max(1, passed[place] // 2)}  # waits vary in number
        for occurrence in sorted(occurrences):
            one = make(site, f"{form}-{place.replace(' ', '-')}-{occurrence}", form)
            result = serve_with_kill(one, place, occurrence)
            assert_sound(one, result, expected)


def test_kills_in_a_row_do_no_more_harm_than_one(site, quiet):
    expected, _ = quiet("alternating")
    one = make(site, "row", "alternating")
    for place in ("after JournalUpdate", "round-closed", "checkpoint-written", "after OpenRound"):

        def passing(name, place=place):
            if name == place:
                raise Killed(place)

        with pytest.raises(Killed):
            one.serve(passing=passing)
    assert_sound(one, one.serve(), expected)


def test_participants_that_were_reset_while_the_coordinator_was_away_count_once(site, quiet):
    expected, _ = quiet("alternating")
    one = make(site, "reset", "alternating")

    def passing(name):
        if name == "after JournalUpdate":
            raise Killed(name)

    with pytest.raises(Killed):
        one.serve(passing=passing)
    for actor in one.actors.values():
        actor.boot, actor.plan, actor.update, actor.sinks = 77, None, None, []
    assert_sound(one, one.serve(), expected)
