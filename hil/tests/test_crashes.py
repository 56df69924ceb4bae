# SPDX-License-Identifier: Apache-2.0
"""A real coordinator is killed with SIGKILL while twenty native devices work: the last checkpoint has the same bytes."""

import pytest

from fedmote.coordinator.crash import ALL_PLACES, PLACES
from fedmote.errors import RigError
from fedmote_hil.crashes import NUM_DEVICES, CrashFleet, Kill


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return CrashFleet(tmp_path_factory.mktemp("crashes"))


@pytest.fixture(scope="module")
def quiet(fleet):
    return fleet.run("quiet")


def check(run, quiet):
    assert run.num_updates == quiet.num_updates == (NUM_DEVICES, NUM_DEVICES)
    assert run.checkpoint == quiet.checkpoint
    assert max(run.ready_s) <= 5.0


def test_kills_in_three_parts_of_a_round_one_after_the_other_cost_nothing(fleet, quiet):
    kills = [Kill(PLACES[part][1], 1) for part in ("configuration", "reporting", "committing")]
    print(kills)
    run = fleet.run("row", kills)
    assert run.kills == tuple(kills)
    check(run, quiet)


def test_a_place_that_is_not_reached_is_an_error_and_not_a_success(tmp_path):
    fleet = CrashFleet(tmp_path / "small", num_devices=1, rounds=1)
    with pytest.raises(RigError, match="ended with 0, 137 was expected at round-closed#9"):
        fleet.run("never", [Kill("round-closed", 9)])


@pytest.mark.slow
@pytest.mark.parametrize("place", ALL_PLACES)
def test_a_kill_at_every_place_leaves_the_last_checkpoint_byte_identical(fleet, quiet, place):
    run = fleet.run(place.replace(" ", "-"), [Kill(place, 1)])
    check(run, quiet)
