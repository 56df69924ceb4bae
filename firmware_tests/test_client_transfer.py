# SPDX-License-Identifier: Apache-2.0
"""How a device pulls a package over lines that lose: everything arrives, little comes twice, and holes are asked for soon."""

import random

import pytest

from fedmote.wire.schema import Kind
from firmware_tests.device_bench import CHUNK, FlashModel
from firmware_tests.one_round import bench, build

PACKAGE = build(filler=65_000)
WINDOW = 32


def fetching_bench():
    return bench(PACKAGE, changes={"remaining_ms": 3_000_000}, flash=FlashModel(slot_bytes=len(PACKAGE) + 64))


def fetch(device, peers, limit_ms=3_000_000):
    """Until the package is installed; returns the virtual milliseconds."""
    began = device.now
    peers.run(device, lambda: device.state not in ("idle", "fetch"), limit_ms=limit_ms)
    assert device.flash.violations == []
    return device.now - began


def served(peers):
    return [packet.fields["offset"] for packet in peers.told if packet.kind == Kind.DATA]


# A hundred seeds in all.
@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 100), marks=pytest.mark.slow)], ids=["some", "all"])
def test_64_kib_arrive_over_a_line_that_loses_a_third_whatever_the_seed(seeds):
    assert len(PACKAGE) >= 65_536
    times = []
    for seed in seeds:
        draw = random.Random(seed).random
        device, peers = fetching_bench()
        peers.alter = lambda _number, packet, _is_down, draw=draw: [packet] if draw() >= 0.3 else []
        times.append(fetch(device, peers))
    print(f"{seeds}: {min(times)} to {max(times)} ms of waiting")
    assert max(times) < 120_000


def test_a_hole_costs_a_tenth_of_a_second_and_a_lost_end_of_a_window_one_second():
    for lost_chunk, least, most in ((3, 100, 200), (WINDOW - 1, 1000, 1100)):
        device, peers = fetching_bench()
        victims = [lost_chunk * CHUNK]

        def alter(_number, packet, _is_down, victims=victims):
            if packet.kind == Kind.DATA and packet.fields["offset"] in victims:
                victims.remove(packet.fields["offset"])
                return []
            return [packet]

        peers.alter = alter
        undisturbed_device, undisturbed_peers = fetching_bench()
        quiet = fetch(undisturbed_device, undisturbed_peers)
        assert least <= fetch(device, peers) - quiet <= most, f"chunk {lost_chunk}"


@pytest.mark.parametrize("outage", ["stream lost", "line silent"])
def test_an_outage_at_any_moment_costs_less_than_a_window(outage):
    chunks = -(-len(PACKAGE) // CHUNK)
    for moment in range(5, chunks, 29):
        device, peers = fetching_bench()
        peers.run(device, lambda peers=peers, device=device, moment=moment: len(served(peers)) >= moment and device.rx)
        device.rx.clear()  # what was on its way is gone
        device.tx.clear()
        if outage == "stream lost":
            device.is_stream_broken = True
            for _ in range(50):
                device.step()
            device.is_stream_broken = False
        device.now += 5000
        fetch(device, peers)
        again = served(peers)
        assert len(again) - len(set(again)) <= WINDOW, f"after {moment} chunks"
        assert len(set(again)) == chunks
