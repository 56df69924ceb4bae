# SPDX-License-Identifier: Apache-2.0
"""The coordinator is killed at every place it passes: the final checkpoint has the same bytes, and nobody counts twice."""

from collections import Counter

import pytest

from fedmote.config import StrategyConfig
from fedmote.coordinator.crash import ALL_PLACES, PLACES, die_at
from fedmote.errors import ConfigError
from fedmote.store import Ledger

from .conftest import Killed

FORMS = {"alternating": 3, "simultaneous": 2}


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
    assert set(ALL_PLACES) <= set(passed), "every place is reached in a quiet run"
    for place in ALL_PLACES:
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


def test_places_are_many_and_in_every_part_of_a_round():
    assert len(ALL_PLACES) == len(set(ALL_PLACES)) >= 25
    assert set(PLACES) == {"beginning", "selection", "configuration", "reporting", "merging", "committing"}


def test_a_process_is_told_by_its_environment_where_to_die(monkeypatch):
    died = []
    monkeypatch.setattr("os.kill", lambda process, number: died.append(number))
    assert die_at({}) is None
    passing = die_at({"FEDMOTE_DIE_AT": "round-closed#2"})
    for place in ("round-closed", "merge-computed", "round-closed", "round-closed"):
        passing(place)
    assert died == [9]
    with pytest.raises(ConfigError, match="expected PLACE#N"):
        die_at({"FEDMOTE_DIE_AT": "nowhere"})
