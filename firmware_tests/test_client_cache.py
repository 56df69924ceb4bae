# SPDX-License-Identifier: Apache-2.0
"""Embeddings in the arena, in the port's cache region, in both, in neither: the update has the same bytes, whatever happens."""

import numpy as np
import pytest

from fedmote.wire.schema import Status
from firmware_tests.device_bench import CACHE, PORT_ERROR, Device, FlashModel
from firmware_tests.one_round import (
    FEATURE_SCALE,
    FEATURE_ZERO_POINT,
    FEATURES,
    INPUTS,
    PACKAGE,
    SAMPLES,
    bench,
    finish,
)
from firmware_tests.package_builder import Builder, assemble, head_section
from firmware_tests.scripted_peers import Peers

EVENT_CACHE_LOST = 10
ODD_FEATURES = 5  # not a multiple of 8: each embedding is padded
STRIDE = 8  # of both packages in the region


def odd_package() -> bytes:
    """A package whose embeddings do not fill their place."""
    rng = np.random.default_rng(11)
    builder = Builder(INPUTS)
    constants = (
        rng.integers(-127, 128, (ODD_FEATURES, INPUTS)).astype(np.int8),
        rng.integers(-500, 500, ODD_FEATURES).astype(np.int32),
        *(np.full(ODD_FEATURES, value, np.int32) for value in (1 << 30, -6)),
    )
    features = builder.dense(builder.input_offset, INPUTS, ODD_FEATURES, constants, (0, FEATURE_ZERO_POINT, -128, 127))
    head = head_section(rng.normal(size=(3, ODD_FEATURES)) * 0.1, np.zeros(3))
    return assemble(builder.sections(features, ODD_FEATURES, head, FEATURE_SCALE, FEATURE_ZERO_POINT))


PACKAGES = {FEATURES: PACKAGE, ODD_FEATURES: odd_package()}


def arena_for(package: bytes, cached: int) -> int:
    """Bytes of an arena that caches so many embeddings itself."""
    device, peers = bench(package)
    peers.run(device, lambda: device.state == "encode")
    features = next(size for size, content in PACKAGES.items() if content == package)
    return int(device.info.arena_required) + cached * features


def round_with(package: bytes, in_arena: int, in_region: int, **changes: int) -> tuple[Device, Peers]:
    """A round with room for so many embeddings in the arena and in the region."""
    flash = FlashModel(cache_bytes=in_region * STRIDE)
    device, peers = bench(package, changes=changes, arena_bytes=arena_for(package, in_arena), flash=flash)
    finish(device, peers)
    return device, peers


def operations(device: Device) -> list[str]:
    """Kinds of the operations on the cache region."""
    return [kind for kind, slot, *_ in device.flash.log if slot == CACHE]


@pytest.mark.parametrize("features", [FEATURES, ODD_FEATURES])
@pytest.mark.parametrize("changes", [{}, {"clip_norm_micro": 400_000}])
def test_the_update_is_the_same_wherever_the_embeddings_are(features: int, changes: dict[str, int]) -> None:
    package = PACKAGES[features]
    _, expected = round_with(package, SAMPLES, 0, **changes)
    mixtures = [
        (0, 0),
        (0, SAMPLES),
        (0, 7),
        (7, 0),
        (7, 7),
        (7, SAMPLES),
        (SAMPLES - 1, 1),
        (SAMPLES, SAMPLES),
        (1, SAMPLES - 2),
    ]
    for in_arena, in_region in mixtures:
        device, peers = round_with(package, in_arena, in_region, **changes)
        kept = min(SAMPLES - in_arena, in_region)
        assert peers.updates[1] == expected.updates[1], (in_arena, in_region)
        assert peers.samples[1] == expected.samples[1], (in_arena, in_region)
        assert operations(device) == (["erase"] + ["write"] * kept if kept else []), (in_arena, in_region)
        assert not [event for event in device.events if event[0] == EVENT_CACHE_LOST]


def test_what_the_region_holds_is_not_encoded_again() -> None:
    reads = []
    for in_region in (0, SAMPLES // 2, SAMPLES):
        device, peers = bench(
            changes={"is_sending_samples": 0},
            arena_bytes=arena_for(PACKAGE, 0),
            flash=FlashModel(cache_bytes=in_region * STRIDE),
        )
        counted: list[int] = []
        device.on_sample_read = counted.append
        peers.run(device, lambda device=device: device.state == "train")
        counted.clear()
        finish(device, peers)
        reads.append(len(counted))
    assert reads[0] > reads[1] > reads[2] == 0


def test_a_round_without_training_leaves_the_region_alone() -> None:
    device, _ = round_with(PACKAGE, 0, SAMPLES, epochs=0, is_sending_samples=0)
    assert operations(device) == []


def test_each_round_erases_once() -> None:
    flash = FlashModel(cache_bytes=SAMPLES * STRIDE)
    device, peers = bench(rounds=3, arena_bytes=arena_for(PACKAGE, 3), flash=flash)
    finish(device, peers)
    assert operations(device) == (["erase"] + ["write"] * (SAMPLES - 3)) * 3


def test_a_step_does_one_operation_at_most() -> None:
    flash = FlashModel(cache_bytes=SAMPLES * STRIDE)
    device, peers = bench(arena_bytes=arena_for(PACKAGE, 0), flash=flash)
    step, counts = device.step, []

    def counted_step() -> int:
        before = len(flash.log)
        status = step()
        counts.append(len(flash.log) - before)
        return status

    device.step = counted_step  # type: ignore[method-assign]
    finish(device, peers)
    assert max(counts) == 1


def test_an_error_at_any_operation_is_told_and_costs_time_alone() -> None:
    expected, peers = round_with(PACKAGE, 3, SAMPLES)
    update = peers.updates[1]
    faults = [index for index, (_, slot, *_) in enumerate(expected.flash.log) if slot == CACHE]
    for done, fault in enumerate(faults):
        device, peers = bench(arena_bytes=arena_for(PACKAGE, 3), flash=FlashModel(cache_bytes=SAMPLES * STRIDE))
        device.flash.fail_at = fault
        finish(device, peers)
        assert peers.updates[1] == update, f"operation {fault}"
        assert [value for event, value in device.events if event == EVENT_CACHE_LOST] == [PORT_ERROR]
        assert len(operations(device)) == done + 1, "nothing is written after an error"
        assert device.info.error == 0


def test_bytes_that_the_flash_does_not_keep_are_noticed() -> None:
    _, peers = round_with(PACKAGE, 3, SAMPLES)
    update = peers.updates[1]
    flash = FlashModel(cache_bytes=SAMPLES * STRIDE)
    device, peers = bench(arena_bytes=arena_for(PACKAGE, 3), flash=flash)
    write = flash.write

    def worn(slot: int, offset: int, content: bytes) -> int:
        status = write(slot, offset, content)
        if slot == CACHE and offset == 5 * STRIDE:
            flash.slots[slot][offset] ^= 1
        return status

    flash.write = worn  # type: ignore[method-assign]
    finish(device, peers)
    assert peers.updates[1] == update
    assert [value for event, value in device.events if event == EVENT_CACHE_LOST] == [-Status.SLOT_IO]
    assert operations(device) == ["erase"] + ["write"] * 6


def test_the_power_may_fail_at_any_operation() -> None:
    """The device begins anew with whatever the region holds, and believes none of it."""
    arena = arena_for(PACKAGE, 3)
    expected, peers = round_with(PACKAGE, 3, SAMPLES)
    update = peers.updates[1]
    for cut in range(len(expected.flash.log)):
        device, peers = bench(arena_bytes=arena, flash=FlashModel(cache_bytes=SAMPLES * STRIDE))
        device.flash.cut_at = cut
        finish(device, peers)  # the bench switches the power on again
        assert peers.updates[1] == update, f"operation {cut}"
        again = [kind for kind, slot, *_ in device.flash.log[cut + 1 :] if slot == CACHE]
        assert again == ["erase"] + ["write"] * (SAMPLES - 3), f"operation {cut}"
