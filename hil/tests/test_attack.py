# SPDX-License-Identifier: Apache-2.0
"""Hostile participants among twenty native C devices, over a broker, against a coordinator that runs as a process."""

from pathlib import Path

import pytest

from fedmote.transport.broker import find_mosquitto
from fedmote_hil.faults.attack import run_attack, run_fleet

pytestmark = [pytest.mark.broker, pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")]


def test_tenth_of_flipped_signs_among_real_devices_costs_the_default_little_and_is_left_out(tmp_path: Path) -> None:
    kept = run_fleet(tmp_path / "kept", "clipped_mean", 2)
    print([one["accuracy"] for one in kept["rounds"]])
    assert kept["accuracy"] > 0.9
    assert set(kept["rounds"][-1]["quarantined"]) == {"device-0000", "device-0001"}
    assert [one["expected"] for one in kept["rounds"]] == [20, 20, 20, 18, 18, 18]


@pytest.mark.slow
def test_fifth_of_flipped_signs_among_real_devices_costs_multi_krum_two_points_at_most_and_destroys_the_mean(
    tmp_path: Path,
) -> None:
    lost = run_attack(tmp_path / "krum", "multi_krum", 0.2)
    destroyed = run_attack(tmp_path / "mean", "mean", 0.2)
    print(f"multi_krum loses {lost:.1f} points, the mean {destroyed:.1f}")
    assert lost <= 2.0
    assert destroyed > 50.0
