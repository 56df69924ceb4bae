# SPDX-License-Identifier: Apache-2.0
"""A fetch of a package that goes on after a reset where it ended."""

import numpy as np
import pytest

from fedmote.package.difference import make_difference
from fedmote.wire.schema import LIMIT_WINDOW, Kind
from firmware_tests.device_bench import CHUNK, Device
from firmware_tests.one_round import MODEL_HANDLE, PACKAGE, bench, build, data, finish, plan_for
from firmware_tests.scripted_peers import Peers

WINDOW = LIMIT_WINDOW * CHUNK
EVENT_RESUMED = 15
DIFFERENCE_HANDLE = 99


def asked_bytes(peers, handle=MODEL_HANDLE):
    """Bytes of all chunks that the device asked for."""
    size = len(peers.blobs[handle])
    total = 0
    for packet in peers.heard:
        if packet.kind == Kind.GET and packet.fields["handle"] == handle:
            starts = [packet.fields["offset"] + CHUNK * bit for bit in range(32) if packet.fields["mask"] >> bit & 1]
            total += sum(min(CHUNK, size - start) for start in starts if start < size)
    return total


def resumed(device):
    return [value for event, value in device.events if event == EVENT_RESUMED]


def cut_in_fetch(device, peers, written):
    """Cut the power when so many bytes of the package are in the slot."""
    peers.run(device, lambda: slot_bytes(device) >= written)
    device.rx.clear()
    device.tx.clear()
    device.boot()


def slot_bytes(device):
    """End of what was written to a slot that holds no record."""
    ends = [0]
    for slot in range(2):
        content = np.frombuffer(bytes(device.flash.slots[slot]), np.uint8)
        if bytes(content[-16:]) == b"\xff" * 16:
            filled = np.flatnonzero(content != 0xFF)
            ends.append(int(filled[-1]) + 1 if len(filled) else 0)
    return max(ends)


@pytest.mark.parametrize("written", [CHUNK, 3 * CHUNK, WINDOW - CHUNK, WINDOW, WINDOW + CHUNK, len(PACKAGE) - CHUNK])
def test_a_fetch_goes_on_after_a_power_cut_where_it_ended(written):
    device, peers = bench(is_resuming=True)
    expected = calm_update()
    cut_in_fetch(device, peers, written)
    peers.heard.clear()
    finish(device, peers)
    assert peers.updates[1][0] == expected
    assert resumed(device) == [written // WINDOW * WINDOW] or written == WINDOW
    assert asked_bytes(peers) <= len(PACKAGE) - written + CHUNK  # what a chunk under way may cost


def calm_update():
    device, peers = bench(is_resuming=True)
    finish(device, peers)
    assert resumed(device) == []
    assert asked_bytes(peers) == len(PACKAGE)
    return peers.updates[1][0]


def test_without_resuming_the_package_comes_whole_again():
    device, peers = bench()
    cut_in_fetch(device, peers, 3 * CHUNK)
    peers.heard.clear()
    finish(device, peers)
    assert resumed(device) == []
    assert asked_bytes(peers) == len(PACKAGE)


@pytest.mark.parametrize("place", [200, WINDOW + 8], ids=["in a window that is not asked for", "in the one that is"])
def test_a_beginning_that_is_damaged_is_found_and_the_package_comes_whole(place):
    device, peers = bench(is_resuming=True)
    cut_in_fetch(device, peers, WINDOW + 2 * CHUNK)
    slot = next(slot for slot in range(2) if bytes(device.flash.slots[slot][:4]) == b"FMP1")
    device.flash.slots[slot][place] ^= 0x04
    peers.heard.clear()
    finish(device, peers)
    assert peers.updates[1][0] == calm_update()
    assert resumed(device) == [WINDOW]
    assert len(PACKAGE) < asked_bytes(peers) <= 2 * len(PACKAGE)


def test_the_beginning_of_another_package_is_erased():
    other = build(3)
    device, peers = bench(is_resuming=True)
    cut_in_fetch(device, peers, WINDOW + CHUNK)
    peers = Peers(plan_for(other), {MODEL_HANDLE: other})
    finish(device, peers)
    assert resumed(device) == []
    assert asked_bytes(peers) == len(other)


@pytest.mark.parametrize("is_rest_less", [True, False])
def test_the_rest_or_the_difference_is_fetched_whichever_is_less(is_rest_less):
    target = build(1)
    device = Device(*data(), is_resuming=True, is_patching=True)
    first = Peers(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE})
    finish(device, first)
    whole = Peers(plan_for(target), {MODEL_HANDLE: target})
    whole.round = whole.rounds = 2
    cut_in_fetch(device, whole, WINDOW + 3 * CHUNK if is_rest_less else CHUNK)
    difference = make_difference(PACKAGE, target)
    assert len(target) - WINDOW - 3 * CHUNK < len(difference) < len(target) - CHUNK
    changes = {"difference_handle": DIFFERENCE_HANDLE, "difference_size": len(difference)}
    peers = Peers(plan_for(target, **changes), {MODEL_HANDLE: target, DIFFERENCE_HANDLE: difference})
    peers.round = peers.rounds = 2
    peers.run(device, lambda: 2 in peers.updates)
    assert resumed(device) == ([WINDOW] if is_rest_less else [])
    assert (asked_bytes(peers) > 0) == is_rest_less
    assert (asked_bytes(peers, DIFFERENCE_HANDLE) > 0) != is_rest_less
