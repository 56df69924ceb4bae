# SPDX-License-Identifier: Apache-2.0
"""Accidents of the link, of the power and of the flash, each at every moment in turn: the round ends as without them."""

import numpy as np
import pytest

from fedmote.wire.schema import Kind, Status
from firmware_tests.device_bench import IDLE, Device, FlashModel
from firmware_tests.one_round import (
    MODEL_HANDLE,
    PACKAGE,
    bench,
    build,
    data,
    finish,
    plan_for,
    undisturbed,
)
from firmware_tests.scripted_peers import Peers

EVENT_ERROR = 9
MARK_BYTES = 8

# ---- accidents of the link -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lost", "doubled", "late"])
def test_any_one_frame_may_be(fault):
    update, samples, frames = undisturbed()
    for victim in range(frames):
        held = []

        def alter(number, packet, is_down, victim=victim, held=held):
            if number == victim:
                if fault == "late":
                    held.append((packet, is_down))
                return [packet, packet] if fault == "doubled" else []
            if held and held[0][1] == is_down:
                return [packet, held.pop()[0]]
            return [packet]

        device, peers = bench()
        peers.alter = alter
        finish(device, peers)
        assert peers.updates[1][0] == update, f"frame {victim}"
        assert peers.samples[1][0] == samples, f"frame {victim}"
        assert device.info.rounds_done == 1, f"frame {victim}"


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_rounds_complete_although_many_frames_are_lost(loss):
    update, samples, _ = undisturbed()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        device, peers = bench(changes={"remaining_ms": 3_000_000})
        peers.alter = lambda _number, packet, _is_down, rng=rng: [packet] if rng.random() > loss else []
        finish(device, peers, limit_ms=3_000_000)
        assert (peers.updates[1][0], peers.samples[1][0]) == (update, samples), f"seed {seed}"


def test_a_transfer_asks_again_only_for_what_did_not_come():
    lost = {10, 20}
    device, peers = bench()
    peers.alter = lambda number, packet, _is_down: [] if number in lost and packet.kind == Kind.DATA else [packet]
    finish(device, peers)
    served = [packet.fields["offset"] for packet in peers.told if packet.kind == Kind.DATA]
    assert len(served) == len(set(served)) == -(-len(PACKAGE) // 160)


def test_a_stream_that_moves_single_bytes_is_enough():
    update, samples, _ = undisturbed()
    device, peers = bench()
    device.write_limit = device.read_limit = lambda: 1
    finish(device, peers)
    assert (peers.updates[1][0], peers.samples[1][0]) == (update, samples)


def test_noise_between_frames_costs_at_most_the_frames_it_touches():
    rng = np.random.default_rng(3)
    update, _, _ = undisturbed()
    device, peers = bench()
    tell = peers.tell

    def tell_with_noise(device, packet):
        device.rx += rng.integers(1, 256, rng.integers(0, 30)).astype(np.uint8).tobytes() + b"\0"
        tell(device, packet)

    peers.tell = tell_with_noise
    finish(device, peers)
    assert peers.updates[1][0] == update
    assert device.info.frame_errors > 10


def test_a_lost_stream_is_noticed_and_the_round_goes_on():
    update, samples, _ = undisturbed()
    for state in ("fetch", "train", "report"):
        device, peers = bench()
        peers.run(device, lambda device=device, state=state: device.state == state)
        device.is_stream_broken = True
        for _ in range(50):
            device.step()
        assert not device.info.is_link_up
        device.rx.clear()
        device.tx.clear()
        device.is_stream_broken = False
        peers.pulls.clear()
        finish(device, peers)
        assert (peers.updates[1][0], peers.samples[1][0]) == (update, samples), state
        assert device.info.link_losses == 1


def test_a_device_that_sleeps_as_long_as_it_may_looks_after_a_lost_stream():
    device, _peers = bench()
    while device.step() != IDLE:
        device.tx.clear()
    device.is_stream_broken = True
    while device.info.is_link_up:
        device.step()
    device.is_stream_broken = False
    assert device.wake_ms() <= 1000
    device.now += device.wake_ms()
    device.tx.clear()
    for _ in range(4):
        device.step()
    assert device.tx  # hello, although no byte came


def test_after_a_restart_the_newest_of_two_packages_is_the_installed_one():
    device, _ = bench()
    for seed in range(4):  # to slot 0, 1, 0, 1
        package = build(seed)
        finish(device, Peers(plan_for(package), {MODEL_HANDLE: package}))
        assert device.info.generation == seed + 1
        operations = len(device.flash.log)
        device.rx.clear()
        device.tx.clear()
        device.boot()
        finish(device, Peers(plan_for(package), {}))  # it needs no fetching
        assert len(device.flash.log) == operations
        device.boot()


def test_a_package_that_the_flash_lost_is_fetched_anew():
    update, _, _ = undisturbed()
    device, peers = bench()
    finish(device, peers)
    device.flash.slots[0][len(PACKAGE) // 2] ^= 1
    peers.rounds = 2
    finish(device, peers)
    assert peers.updates[2][0] == update
    assert (device.info.has_package, device.info.generation) == (1, 2)


# ---- accidents of power and flash ------------------------------------------------------------------------------------


def test_power_may_fail_in_every_state():
    update, samples, _ = undisturbed()
    seen = set()
    for moment in range(0, 4000, 2):
        device, peers = bench()
        count = 0

        def is_moment(moment=moment):
            nonlocal count
            count += 1
            return count > moment

        peers.run(device, lambda device=device, peers=peers: is_moment() or (peers.round > 1 and device.state == "idle"))
        seen.add(device.state)
        is_over, was_heard = peers.round > 1, peers.boot is not None
        device.rx.clear()
        device.tx.clear()
        device.boot()
        finish(device, peers)
        assert peers.updates[1][0] == update, f"moment {moment}"
        assert peers.samples[1][-1] == samples, f"moment {moment}"
        if is_over:
            break
        assert peers.reports[-1]["attempt"] == was_heard
    assert seen == {"idle", "fetch", "encode", "select", "train", "report"}


def test_power_may_fail_during_every_flash_operation():
    update, _, _ = undisturbed()
    device, peers = bench()
    finish(device, peers)
    operations = len(device.flash.log)
    assert operations > 40
    for cut in range(operations):
        device, peers = bench()
        device.flash.cut_at = cut
        finish(device, peers)
        assert peers.updates[1][0] == update, f"operation {cut}"


def test_a_cut_while_the_next_package_is_installed_leaves_the_old_one_up_to_the_record():
    newer = build(1)
    device, peers = bench()
    finish(device, peers)
    first = len(device.flash.log)
    slots = [slot.copy() for slot in device.flash.slots]
    written = [mask.copy() for mask in device.flash.is_written]
    for cut in range(first + 45):  # the power is back when the run below ends
        flash = FlashModel(cut_at=cut)
        for i in range(2):
            flash.slots[i][:], flash.is_written[i][:] = slots[i], written[i]
        device = Device(*data(), flash=flash)
        flash.cut_at = cut
        peers = Peers(plan_for(newer), {MODEL_HANDLE: newer})
        peers.run(device, lambda flash=flash, device=device, cut=cut: len(flash.log) > cut or device.state == "encode")
        if device.state == "encode":
            break
        assert device.info.has_package, f"operation {cut}"
        is_mark = flash.log[cut][3] == MARK_BYTES  # of the trial, behind the record
        assert device.info.generation == (2 if is_mark else 1), f"operation {cut}"
        finish(device, Peers(plan_for(PACKAGE), {}))  # the old one needs no fetching
    else:
        raise AssertionError("the installation did not end")


def test_a_flash_error_at_any_operation_is_reported_and_survived():
    update, _, _ = undisturbed()
    device, peers = bench()
    finish(device, peers)
    operations = len(device.flash.log)
    for index, (kind, *_) in enumerate(device.flash.log):
        device, peers = bench()
        device.flash.fail_at = index
        finish(device, peers)
        assert peers.updates[1][0] == update, f"operation {index}"
        refusals = [packet.fields["status"] for packet in peers.heard if packet.kind == Kind.REFUSE]
        is_confirmation = index == operations - 1  # the round is done then: its update counts
        assert refusals == ([] if is_confirmation else [Status.SLOT_IO]), f"{kind} {index}"
        assert (EVENT_ERROR, -Status.SLOT_IO) in device.events, f"{kind} {index}"
        assert device.info.is_on_trial == is_confirmation, f"{kind} {index}"
