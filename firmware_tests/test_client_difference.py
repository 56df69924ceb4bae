# SPDX-License-Identifier: Apache-2.0
"""Packages that come as differences: made out of the installed one, verified, installed; or else fetched whole."""

from __future__ import annotations

import numpy as np
import pytest

from fedmote.package.difference import HEADER, make_difference
from fedmote.wire.schema import Kind, Status
from firmware_tests.device_bench import CHUNK, Device, FlashModel
from firmware_tests.difference_builder import mend, resize
from firmware_tests.native import aligned
from firmware_tests.one_round import MODEL_HANDLE, bench, build, data, finish, plan_for, refusals
from firmware_tests.scripted_peers import COORDINATOR, Packet, Peers

DIFFERENCE_HANDLE = 99
EVENT_DIFFERENCE_LOST = 11
PAGE = 64
OLD, NEW = build(0), build(1)
# More than the link buffers and the decoder, and only just room for this many chunks of a window.
LINK_AND_DECODER = 2 * 336 + 208


def offering(difference: bytes, target: bytes = NEW, rounds: int = 1, **changes: int) -> Peers:
    """Peers whose plan wants `target` and offers a difference beside it."""
    plan = plan_for(target, difference_handle=DIFFERENCE_HANDLE, difference_size=len(difference), **changes)
    return Peers(plan, {MODEL_HANDLE: target, DIFFERENCE_HANDLE: difference}, rounds=rounds)


def with_package(package: bytes = OLD, flash: FlashModel | None = None, **options: object) -> Device:
    """A device that has a package already, and applies differences."""
    device = Device(*data(), **{"is_patching": True, "flash": flash, **options})  # type: ignore[arg-type]
    finish(device, Peers(plan_for(package), {MODEL_HANDLE: package}))
    device.rx.clear()
    device.tx.clear()
    device.boot()
    device.events.clear()
    device.flash.log.clear()
    return device


def served(peers: Peers, handle: int) -> int:
    """Bytes of chunks that were sent of a blob."""
    chunks = [packet.fields for packet in peers.told if packet.kind == Kind.DATA and packet.fields["handle"] == handle]
    return sum(len(bytes(fields["data"])) for fields in chunks)  # type: ignore[arg-type]


def installed(device: Device) -> bytes:
    """The package in the newer slot."""
    return device.flash.slots[1][: len(NEW)].tobytes()


def lost(device: Device) -> list[int]:
    return [value for event, value in device.events if event == EVENT_DIFFERENCE_LOST]


def undisturbed_update() -> bytes:
    device, peers = bench(NEW)
    finish(device, peers)
    return peers.updates[1][0]


DIFFERENCE = make_difference(OLD, NEW)


def test_hello_tells_of_patching_where_the_port_names_it() -> None:
    for is_patching in (True, False):
        device, peers = bench(is_patching=is_patching)
        finish(device, peers)
        hello = next(packet.fields for packet in peers.heard if packet.kind == Kind.HELLO)
        assert hello.get("difference_format") == (1 if is_patching else None)


def test_a_package_is_made_from_the_installed_one_and_a_difference() -> None:
    assert len(DIFFERENCE) < len(NEW) // 2
    device, peers = with_package(), offering(DIFFERENCE)
    finish(device, peers)
    assert installed(device) == NEW
    assert peers.updates[1][0] == undisturbed_update()
    assert (served(peers, DIFFERENCE_HANDLE), served(peers, MODEL_HANDLE)) == (len(DIFFERENCE), 0)
    assert (device.info.generation, lost(device), refusals(peers)) == (2, [], [])
    writes = [(offset, size) for kind, slot, offset, size in device.flash.log if kind == "write" and slot == 1]
    pages = [(at, min(PAGE, len(NEW) - at)) for at in range(0, len(NEW), PAGE)]
    assert writes[:-3] == pages  # in order, each byte once; then the record, the mark of the trial, the one that confirms
    assert [entry[0] for entry in device.flash.log].count("erase") == 1


def test_several_differences_follow_each_other() -> None:
    device = with_package()
    for before, after in ((0, 1), (1, 2), (2, 3)):
        peers = offering(make_difference(build(before), build(after)), build(after))
        finish(device, peers)
        assert served(peers, MODEL_HANDLE) == 0
        device.rx.clear()
        device.tx.clear()
        device.boot()
    assert device.info.generation == 4


def test_a_device_without_patching_ignores_the_offer() -> None:
    device, peers = with_package(is_patching=False), offering(DIFFERENCE)
    finish(device, peers)
    assert (installed(device), served(peers, DIFFERENCE_HANDLE), refusals(peers)) == (NEW, 0, [])


def test_a_device_without_a_package_fetches_the_whole() -> None:
    device, peers = Device(*data(), is_patching=True), offering(DIFFERENCE)
    finish(device, peers)
    assert (served(peers, DIFFERENCE_HANDLE), served(peers, MODEL_HANDLE), refusals(peers)) == (0, len(NEW), [])


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_chunks_may_get_lost_and_only_those_are_asked_for_again(loss: float) -> None:
    update = undisturbed_update()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        device, peers = with_package(), offering(DIFFERENCE, remaining_ms=3_000_000)

        def alter(_number: int, packet: Packet, is_down: bool, rng: np.random.Generator = rng) -> list[Packet]:
            is_chunk = is_down and packet.kind == Kind.DATA
            return [] if is_chunk and rng.random() < loss else [packet]

        peers.alter = alter
        finish(device, peers, limit_ms=3_000_000)
        assert peers.updates[1][0] == update
        assert (served(peers, DIFFERENCE_HANDLE), served(peers, MODEL_HANDLE)) == (len(DIFFERENCE), 0)


def test_chunks_may_come_in_any_order_and_twice() -> None:
    device, peers = with_package(), offering(DIFFERENCE)
    answer = peers.hear_get

    def disorderly(device: Device, packet: Packet) -> None:
        mark = len(peers.told)
        rx, device.rx = device.rx, bytearray()
        answer(device, packet)
        device.rx = rx
        frames = [one.to_frame(at) for at, one in enumerate(peers.told[mark:])]
        device.rx += b"".join(reversed(frames + frames[:3]))

    peers.hear_get = disorderly  # type: ignore[method-assign]
    finish(device, peers)
    assert (installed(device), lost(device)) == (NEW, [])


def test_windows_shrink_to_the_arena_that_there_is() -> None:
    """The smallest arena that holds the round also holds a window of the difference; one chunk is enough."""
    device, peers = bench(NEW)
    finish(device, peers)
    needed = device.info.arena_required
    for arena in (needed, needed + 1024, 16384):
        device, peers = with_package(arena_bytes=arena), offering(DIFFERENCE)
        finish(device, peers)
        masks = [int(p.fields["mask"]) for p in peers.heard if p.kind == Kind.GET and p.fields["handle"] == DIFFERENCE_HANDLE]
        chunks = min(32, (arena - LINK_AND_DECODER) // CHUNK)
        assert max(mask.bit_length() for mask in masks) == min(chunks, -(-len(DIFFERENCE) // CHUNK))
        assert installed(device) == NEW


def test_a_step_does_one_flash_operation_at_most() -> None:
    device, peers = with_package(), offering(DIFFERENCE)
    step, counts = device.step, []

    def counted_step() -> int:
        before = len(device.flash.log)
        status = step()
        counts.append(len(device.flash.log) - before)
        return status

    device.step = counted_step  # type: ignore[method-assign]
    finish(device, peers)
    assert max(counts) == 1


def spoilt(at: int, value: int | None = None) -> bytes:
    """The difference with one byte changed and its checksum mended."""
    changed = bytearray(DIFFERENCE)
    changed[at] = changed[at] ^ 0x55 if value is None else value
    return mend(bytes(changed))


BAD = {
    "magic": (spoilt(0), Status.DIFFERENCE, 0),
    "format": (spoilt(4, 2), Status.DIFFERENCE, 0),
    "reserved": (spoilt(6), Status.DIFFERENCE, 0),
    "own size": (spoilt(8), Status.DIFFERENCE, 0),
    "base": (spoilt(20), Status.DIFFERENCE_BASE, 0),
    "target": (spoilt(50), Status.DIFFERENCE, 0),
    "target's size": (spoilt(80), Status.DIFFERENCE, 0),
    "base's size": (spoilt(84), Status.DIFFERENCE_BASE, 0),
    "first segment": (spoilt(HEADER.size), Status.DIFFERENCE, 0),
    "a header and nothing else": (resize(DIFFERENCE[: HEADER.size]), Status.DIFFERENCE, 0),
    "a header that ends early": (DIFFERENCE[:40], Status.DIFFERENCE, 0),
    "cut in the middle": (resize(DIFFERENCE[: len(DIFFERENCE) // 2]), Status.DIFFERENCE, 1),
    "one byte short": (resize(DIFFERENCE[:-1]), Status.DIFFERENCE, 1),
    "one byte too many": (resize(DIFFERENCE + b"\0"), Status.DIFFERENCE, 1),
    "other bytes": (spoilt(len(DIFFERENCE) // 2), None, 1),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_difference_is_refused_by_its_handle_and_the_whole_package_fetched(name: str) -> None:
    difference, status, erases = BAD[name]
    device, peers = with_package(), offering(difference)
    finish(device, peers)
    assert (installed(device), peers.updates[1][0]) == (NEW, undisturbed_update())
    [refusal] = refusals(peers)
    assert refusal["handle"] == DIFFERENCE_HANDLE
    assert "round" not in refusal
    assert status is None or refusal["status"] == status
    assert lost(device) == [-int(refusal["status"])]  # type: ignore[arg-type]
    assert [entry[0] for entry in device.flash.log].count("erase") == erases + 1  # none before the header was right
    assert device.info.error == 0


def test_a_difference_from_another_base_is_refused_before_anything_is_erased() -> None:
    device, peers = with_package(build(5)), offering(DIFFERENCE)
    finish(device, peers)
    [refusal] = refusals(peers)
    assert refusal["status"] == Status.DIFFERENCE_BASE
    assert [entry[0] for entry in device.flash.log].count("erase") == 1


def test_a_base_that_the_flash_has_lost_is_noticed_by_what_it_makes() -> None:
    device = with_package()
    peers = offering(DIFFERENCE)
    peers.run(device, lambda: served(peers, DIFFERENCE_HANDLE) > 0)
    device.flash.slots[0][1000] ^= 1
    finish(device, peers)
    assert [refusal["status"] for refusal in refusals(peers)] == [Status.PACKAGE_CRC]
    assert installed(device) == NEW


def test_a_difference_that_the_coordinator_no_longer_has_is_given_up_for_the_whole() -> None:
    device, peers = with_package(), offering(DIFFERENCE)
    del peers.blobs[DIFFERENCE_HANDLE]
    finish(device, peers)
    assert (installed(device), served(peers, MODEL_HANDLE), refusals(peers)) == (NEW, len(NEW), [])


def test_a_package_that_does_not_fit_is_refused_as_one_that_came_whole() -> None:
    large = build(1, filler=2 * len(OLD))
    device, peers = with_package(), offering(make_difference(OLD, large), large)
    peers.run(device, lambda: bool(refusals(peers)))
    assert refusals(peers)[0]["status"] == Status.SLOT
    assert device.info.generation == 1


def test_the_power_may_fail_at_every_flash_operation() -> None:
    """The old package or the new one is installed at any moment, and the round ends as without the cut."""
    update = undisturbed_update()
    device, peers = with_package(), offering(DIFFERENCE)
    finish(device, peers)
    operations = len(device.flash.log)
    record = 1 + -(-len(NEW) // PAGE)
    assert operations == record + 3
    slots, masks = old_flash()
    for cut in range(operations):
        flash = FlashModel()
        for i in range(2):
            flash.slots[i][:], flash.is_written[i][:] = slots[i], masks[i]
        device = Device(*data(), flash=flash, is_patching=True)
        flash.cut_at = cut
        peers = offering(DIFFERENCE)
        peers.run(device, lambda flash=flash, cut=cut: len(flash.log) > cut)  # and the power is back
        assert (device.info.has_package, device.info.generation) == (1, 1 if cut <= record else 2), f"operation {cut}"
        finish(device, peers)
        assert peers.updates[1][0] == update, f"operation {cut}"
        assert served(peers, MODEL_HANDLE) == 0, f"operation {cut}"


def old_flash() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Slots with the old package."""
    device = with_package()
    slots = [aligned(len(slot)) for slot in device.flash.slots]
    for copy, slot in zip(slots, device.flash.slots, strict=True):
        copy[:] = slot
    return slots, [mask.copy() for mask in device.flash.is_written]


def test_a_flash_error_at_any_operation_is_reported_and_survived() -> None:
    update = undisturbed_update()
    device, peers = with_package(), offering(DIFFERENCE)
    finish(device, peers)
    for index in range(0, len(device.flash.log), 7):
        device, peers = with_package(), offering(DIFFERENCE)
        device.flash.fail_at = index
        finish(device, peers)
        assert peers.updates[1][0] == update, f"operation {index}"
        assert [refusal["status"] for refusal in refusals(peers)] == [Status.SLOT_IO], f"operation {index}"


def test_another_plan_in_the_middle_of_a_difference_begins_anew() -> None:
    device, peers = with_package(), offering(DIFFERENCE)
    peers.run(device, lambda: len(device.flash.log) > 20)
    newer = build(2)
    later = offering(make_difference(OLD, newer), newer, rounds=2)
    later.round = 2
    later.tell(device, Packet(COORDINATOR, Kind.PLAN, later.plan_packet().fields))
    later.run(device, lambda: later.round > 2)
    assert installed(device) == newer
