# SPDX-License-Identifier: Apache-2.0
"""The step machine of the device (SPEC.md, section 5) against a scripted coordinator and partner, in virtual time."""

import zlib
from itertools import pairwise

import numpy as np
import pytest

from fedmote.wire.schema import Kind, Status
from firmware_tests.device_bench import Device
from firmware_tests.one_round import (
    FEATURES,
    HEAD_HANDLE,
    MODEL_HANDLE,
    PACKAGE,
    PARAMETERS,
    SAMPLES,
    Twin,
    bench,
    build,
    data,
    finish,
    head_update,
    package_head,
    plan_for,
    sample_records,
)
from firmware_tests.scripted_peers import COORDINATOR, RUN, Packet, Peers

# ---- a round ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha_milli": 0, "beta_milli": 0},
        {"gamma_milli": 2500},
        {"gamma_milli": 2500, "gamma_order": 1, "beta_milli": 800},
        {"gain_milli": 501, "batch": 1024, "epochs": 32},
        {"epochs": 1, "batch": 1},
    ],
    ids=str,
)
def test_a_round_computes_what_numpy_computes(changes):
    device, peers = bench(changes=changes)
    peers.plan["is_sending_samples"] = int(peers.plan["beta_milli"] > 0)
    twin = Twin(PACKAGE, peers.plan, package_head(PACKAGE))
    finish(device, peers)
    [blob], [report, *_] = peers.updates[1], peers.reports
    np.testing.assert_allclose(head_update(blob), twin.train(), rtol=2e-4, atol=2e-6)
    assert report["num_examples"] == twin.own[0].sum()
    assert report["trained"] == twin.own.sum()
    assert report["discarded"] == (~(twin.own.any(0) | twin.partner.any(0))).sum()
    assert report["loss_micro"] == pytest.approx(twin.mean_loss * 1e6, rel=1e-4)
    assert report["loss_after_micro"] == pytest.approx(twin.loss_after * 1e6, rel=1e-3)
    assert (report["version"], report["attempt"], report["run"], report["round"]) == (4, 0, RUN, 1)
    if peers.plan["is_sending_samples"]:
        x, y = data()
        expected = [
            (i, y[i], int((twin.partner[:, i] << np.arange(len(twin.partner))).sum()), x[i].tobytes())
            for i in np.flatnonzero(twin.partner.any(0))
        ]
        assert sample_records(peers.samples[1][0]) == expected
        assert report["sent"] == len(expected)


def test_a_round_passes_through_every_state_and_ends_idle():
    device, peers = bench()
    finish(device, peers)
    assert device.visited == {"idle", "fetch", "encode", "select", "train", "report"}
    assert (device.info.rounds_done, device.info.round, device.info.error, device.info.is_update_held) == (1, 1, 0, 0)
    assert device.info.frame_errors == 0


def test_the_package_is_fetched_once_for_many_rounds():
    device, peers = bench(rounds=3)
    finish(device, peers)
    assert len(peers.updates) == 3
    assert [entry[0] for entry in device.flash.log].count("erase") == 1
    assert device.info.generation == 1


def test_a_new_package_goes_to_the_other_slot_and_the_old_one_stays():
    device, peers = bench()
    finish(device, peers)
    newer = build(1)
    peers.plan, peers.blobs, peers.rounds = plan_for(newer), {MODEL_HANDLE: newer}, 2
    finish(device, peers)
    assert {slot for kind, slot, *_ in device.flash.log if kind == "erase"} == {0, 1}
    assert device.info.generation == 2
    assert bytes(device.flash.slots[0][: len(PACKAGE)]) == PACKAGE
    assert bytes(device.flash.slots[1][: len(newer)]) == newer


def test_a_newer_head_of_the_plan_is_trained_in_place_of_the_packages():
    head = np.random.default_rng(9).normal(size=PARAMETERS).astype("<f4")
    changes = {"head_handle": HEAD_HANDLE, "head_size": 4 * PARAMETERS, "head_crc": zlib.crc32(head.tobytes())}
    device, peers = bench(changes=changes)
    peers.blobs[HEAD_HANDLE] = head.tobytes()
    twin = Twin(PACKAGE, peers.plan, head)
    finish(device, peers)
    np.testing.assert_allclose(head_update(peers.updates[1][0]), twin.train(), rtol=2e-4, atol=2e-6)


def test_embeddings_that_do_not_fit_are_encoded_again_with_the_same_result():
    updates, used = [], []
    for spare_bytes in (0, 3 * FEATURES + 1, 100_000):
        probe, peers = bench()
        finish(probe, peers)
        device, peers = bench(arena_bytes=probe.info.arena_required + spare_bytes)
        finish(device, peers)
        updates.append(peers.updates[1][0])
        used.append(peers.reports[0]["arena_used_bytes"] - probe.info.arena_required)
    assert updates[0] == updates[1] == updates[2]
    assert used == [0, 3 * FEATURES, SAMPLES * FEATURES]


@pytest.mark.parametrize("max_send", [0, 1, 5, 1000])
def test_of_too_many_samples_those_with_the_highest_ranks_go(max_send):
    device, peers = bench(changes={"max_send": max_send})
    peers.has_partner = max_send > 0
    twin = Twin(PACKAGE, peers.plan, package_head(PACKAGE))
    finish(device, peers)
    candidates = np.flatnonzero(twin.partner.any(0))
    best = sorted(sorted(candidates, key=lambda i: (-twin.rank[i], i))[:max_send])
    sent = [record[0] for record in sample_records(peers.samples[1][0])] if max_send else []
    assert sent == best
    assert peers.reports[0]["sent"] == len(best)


# ---- time ------------------------------------------------------------------------------------------------------------


def hello_times(device: Device, peers: Peers, limit_ms: int) -> list[int]:
    times, start = [], device.now
    peers.hear_hello = lambda device, _packet: times.append(device.now - start)
    peers.run(device, lambda: device.now - start > limit_ms, limit_ms=2 * limit_ms)
    return times


def test_hello_backs_off_with_full_jitter_up_to_a_minute():
    gaps = np.zeros(10)
    for seed in range(20):
        device, peers = bench(seed=seed)
        times = hello_times(device, peers, 900_000)
        assert times[0] <= 1
        gap = np.array([b - a for a, b in pairwise(times)])[:10]
        assert (gap <= np.minimum(1000 * 2.0 ** np.arange(10), 60_000) + 1).all(), f"seed {seed}"
        gaps = np.maximum(gaps, gap)
    assert gaps[9] > 40_000


def test_hello_backs_off_anew_after_a_wait():
    for seed in range(5):
        device, peers = bench(seed=seed)
        hello_times(device, peers, 300_000)
        peers.tell(device, Packet(COORDINATOR, Kind.WAIT, {"wait_ms": 10_000}))
        for _ in range(5):
            device.step()  # hears it, and may say one hello before
        device.tx.clear()
        times = hello_times(device, peers, 60_000)
        assert 10_000 <= times[0] <= 10_002
        assert times[1] - times[0] <= 1001, f"seed {seed}"


def test_wait_is_obeyed():
    device, peers = bench(rounds=0)
    peers.round = 1
    peers.run(device, lambda: bool(peers.told))
    start, before = device.now, len(peers.heard)
    peers.run(device, lambda: len(peers.heard) > before)
    assert 5000 <= device.now - start <= 5002


def test_a_step_sends_or_receives_one_frame_or_does_one_flash_operation():
    device, peers = bench()

    def is_over():
        nonlocal flash, received, sent
        info = device.info
        counts = len(device.flash.log) - flash, info.frames_received - received, info.frames_sent - sent
        assert max(counts) <= 1, counts
        flash, received, sent = len(device.flash.log), info.frames_received, info.frames_sent
        return peers.round > 1

    flash = received = sent = 0
    peers.run(device, is_over)


def test_a_port_without_a_hash_is_told_and_works():
    device, peers = bench(has_hash=False)
    finish(device, peers)
    assert device.info.is_unsigned
    assert not bench()[0].info.is_unsigned


def test_two_devices_with_one_seed_draw_different_groups():
    sent = []
    for identifier in ("board-1", "board-2"):
        device, peers = bench(identifier=identifier)
        finish(device, peers)
        sent.append(peers.samples[1][0])
    assert sent[0] != sent[1]


def test_the_longest_names_fit_the_smallest_hello():
    device, peers = bench(identifier="i" * 32, board="b" * 32)
    finish(device, peers)
    peers.heard.clear()
    peers.run(device, lambda: any(packet.kind == Kind.HELLO for packet in peers.heard))
    hello = next(packet.fields for packet in peers.heard if packet.kind == Kind.HELLO)
    assert (hello["device"], hello["board"], len(hello["model_hash"]), hello["round"]) == ("i" * 32, "b" * 32, 32, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"identifier": ""},
        {"identifier": "i" * 33},
        {"identifier": "Board"},
        {"site": "a/b"},
        {"board": "b#"},
        {"username": "u" * 65},
        {"password": "p" * 65},
    ],
    ids=str,
)
def test_names_that_would_break_a_topic_are_refused(wrong):
    with pytest.raises(AssertionError, match=str(-Status.ARGUMENT)):
        bench(**wrong)
