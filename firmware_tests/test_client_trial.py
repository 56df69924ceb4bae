# SPDX-License-Identifier: Apache-2.0
"""A new package is on trial until a whole round was done with it; a reset while it learns brings back the one before."""

from __future__ import annotations

import pytest

from fedmote.package.difference import make_difference
from fedmote.wire.schema import Kind, Status
from firmware_tests.device_bench import SLOT_BYTES, Device
from firmware_tests.one_round import MODEL_HANDLE, PACKAGE, bench, build, data, finish, plan_for, refusals
from firmware_tests.scripted_peers import COORDINATOR, Peers

EVENT_REVERTED = 12
DIFFERENCE_HANDLE = 99
TRIALS = 3
MARKS_AT = SLOT_BYTES - 48  # three of trials, one that confirms, the record
NEWER = build(1)


def peers_for(package: bytes, is_serving: bool = True, rounds: int = 1) -> Peers:
    return Peers(plan_for(package), {MODEL_HANDLE: package} if is_serving else {}, rounds=rounds)


def power_cycle(device: Device) -> None:
    device.rx.clear()
    device.tx.clear()
    device.events.clear()
    device.boot()


def with_old_package() -> Device:
    """A device that has done a round with `PACKAGE`."""
    device, peers = bench()
    finish(device, peers)
    power_cycle(device)
    return device


def run_into(device: Device, peers: Peers, state: str) -> None:
    peers.run(device, lambda: device.state == state)


def marks(device: Device, slot: int) -> list[bool]:
    units = [device.flash.slots[slot][at : at + 8] for at in range(MARKS_AT, MARKS_AT + 32, 8)]
    return [bool((unit != 0xFF).any()) for unit in units]


def installed_hash(device: Device, peers: Peers) -> object:
    """What the next hello says is installed."""
    peers.run(device, lambda: any(packet.kind == Kind.HELLO for packet in peers.heard))
    return next(packet.fields for packet in peers.heard if packet.kind == Kind.HELLO).get("model_hash")


def test_a_package_is_on_trial_from_its_installation_to_the_end_of_its_first_round() -> None:
    device = with_old_package()
    assert not device.info.is_on_trial
    peers = peers_for(NEWER)
    run_into(device, peers, "encode")
    assert (device.info.is_on_trial, marks(device, 1)) == (1, [True, False, False, False])
    run_into(device, peers, "report")
    assert (device.info.is_on_trial, marks(device, 1)) == (0, [True, False, False, True])
    finish(device, peers)
    power_cycle(device)
    assert (device.info.has_package, device.info.is_on_trial, device.events) == (1, 0, [])
    assert installed_hash(device, peers_for(NEWER)) == NEWER[16:48]


@pytest.mark.parametrize("state", ["encode", "select", "train"])
def test_a_reset_while_it_learns_unconfirmed_brings_back_the_old_one(state: str) -> None:
    device = with_old_package()
    run_into(device, peers_for(NEWER), state)
    power_cycle(device)
    assert (EVENT_REVERTED, 1) in device.events
    assert installed_hash(device, peers_for(PACKAGE, is_serving=False)) == PACKAGE[16:48]


def test_a_reset_before_it_has_run_leaves_it_in_its_place() -> None:
    device = with_old_package()
    peers = peers_for(NEWER)
    peers.run(device, lambda: device.info.is_on_trial == 1)
    power_cycle(device)
    assert (device.events, device.info.is_on_trial) == ([], 1)
    assert installed_hash(device, peers_for(NEWER, is_serving=False)) == NEWER[16:48]


def test_it_is_tried_again_without_being_fetched_and_then_confirmed() -> None:
    device = with_old_package()
    run_into(device, peers_for(NEWER), "train")
    power_cycle(device)
    operations = len(device.flash.log)
    peers = peers_for(NEWER, is_serving=False)
    finish(device, peers)
    assert [entry[0] for entry in device.flash.log[operations:]] == ["write", "write"]  # a trial, the confirmation
    assert (refusals(peers), device.info.is_on_trial) == ([], 0)
    assert marks(device, 1) == [True, True, False, True]


def test_after_as_many_trials_as_there_are_it_is_refused_and_neither_fetched_nor_run() -> None:
    device = with_old_package()
    for trial in range(TRIALS):
        run_into(device, peers_for(NEWER, is_serving=trial == 0), "train")
        power_cycle(device)
        assert (EVENT_REVERTED, trial + 1) in device.events
    operations = len(device.flash.log)
    device.visited.clear()
    peers = peers_for(NEWER)
    peers.run(device, lambda: len(refusals(peers)) == 5)
    assert {refusal["status"] for refusal in refusals(peers)} == {Status.PACKAGE_TRIAL}
    assert len(device.flash.log) == operations
    assert not any(packet.kind == Kind.GET for packet in peers.heard)
    assert device.visited == {"idle", "fetch"}

    power_cycle(device)
    finish(device, peers_for(PACKAGE, is_serving=False))  # the old one is as good as ever
    power_cycle(device)
    third = build(2)
    finish(device, peers_for(third))  # and another one takes the place of the refused one
    assert bytes(device.flash.slots[1][: len(third)]) == third


def test_the_first_package_of_a_device_has_trials_too() -> None:
    device, peers = bench()
    for trial in range(TRIALS):
        run_into(device, peers, "train")
        power_cycle(device)
        assert device.info.has_package == 0, f"trial {trial}"
    peers = peers_for(PACKAGE)
    peers.run(device, lambda: bool(refusals(peers)))
    assert refusals(peers)[0]["status"] == Status.PACKAGE_TRIAL
    finish(device, peers_for(NEWER))
    assert device.info.has_package


def test_a_trial_is_marked_once_per_boot_however_many_rounds_it_takes() -> None:
    device = with_old_package()
    peers = peers_for(NEWER, rounds=3)
    run_into(device, peers, "train")
    peers.round = 2  # the next round begins before this one is done
    peers.tell(device, peers.plan_packet())
    peers.run(device, lambda: device.info.round == 2 and device.state == "train")
    assert marks(device, 1) == [True, False, False, False]
    peers.rounds = 2
    peers.run(device, lambda: peers.round > 2)
    assert marks(device, 1) == [True, False, False, True]


def test_the_confirmed_package_stays_when_one_on_trial_gets_a_successor() -> None:
    device = with_old_package()
    peers = peers_for(NEWER)
    run_into(device, peers, "train")
    third = build(2)
    peers.plan, peers.blobs, peers.round, peers.rounds = plan_for(third), {MODEL_HANDLE: third}, 2, 2
    peers.tell(device, peers.plan_packet())
    peers.run(device, lambda: device.info.round == 2 and device.state == "encode")
    assert bytes(device.flash.slots[0][: len(PACKAGE)]) == PACKAGE
    assert bytes(device.flash.slots[1][: len(third)]) == third
    power_cycle(device)
    assert installed_hash(device, peers_for(PACKAGE)) == PACKAGE[16:48]


def test_a_difference_from_a_package_on_trial_is_not_taken() -> None:
    """Its successor takes its place, so it cannot be read meanwhile."""
    device = Device(*data(), is_patching=True)
    finish(device, peers_for(PACKAGE))
    power_cycle(device)
    peers = peers_for(NEWER)
    run_into(device, peers, "train")
    third = build(2)
    difference = make_difference(NEWER, third)
    peers.plan = plan_for(third, difference_handle=DIFFERENCE_HANDLE, difference_size=len(difference))
    peers.blobs, peers.round, peers.rounds = {MODEL_HANDLE: third, DIFFERENCE_HANDLE: difference}, 2, 2
    peers.samples.clear()
    peers.tell(device, peers.plan_packet())
    peers.run(device, lambda: peers.round > 2)
    asked = {packet.fields["handle"] for packet in peers.heard if packet.kind == Kind.GET and packet.channel == COORDINATOR}
    assert asked == {MODEL_HANDLE}
    assert DIFFERENCE_HANDLE not in {refusal.get("handle") for refusal in refusals(peers)}
    assert device.info.is_on_trial == 0


def test_a_package_that_the_other_slot_still_has_is_not_fetched() -> None:
    device = with_old_package()
    finish(device, peers_for(NEWER))
    power_cycle(device)
    operations = len(device.flash.log)
    finish(device, peers_for(PACKAGE, is_serving=False))
    assert len(device.flash.log) == operations


def test_no_more_than_one_erase_of_a_sector_and_three_small_records_for_a_model() -> None:
    device, peers = Device(*data()), peers_for(PACKAGE)
    for version in range(4):
        package = build(version)
        peers = peers_for(package)
        device.flash.log.clear()
        finish(device, peers)
        assert [entry[0] for entry in device.flash.log].count("erase") == 1
        small = [size for kind, _, offset, size in device.flash.log if kind == "write" and offset >= MARKS_AT]
        assert small == [16, 8, 8]
        power_cycle(device)
