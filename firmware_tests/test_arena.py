# SPDX-License-Identifier: Apache-2.0
"""The memory plan of a device, against the table of SPEC.md, section 7."""

import ctypes

import pytest

from fedmote.wire.schema import Status
from firmware_tests.native import OK, HeadShape, Layout, Package, address_of, library
from firmware_tests.package_builder import round_16

BODY_MAX = 529  # FEDMOTE_BODY_MAX of the library under test: the default of fedmote_config.h


def compute(package: Package, samples: int, arena_bytes: int, arithmetic: str = "fedmote_float32") -> tuple[int, Layout]:
    layout = Layout()
    status = library().fedmote_layout_compute(
        ctypes.byref(layout),
        ctypes.byref(package),
        ctypes.c_void_p(address_of(library(), arithmetic)),
        ctypes.c_uint32(samples),
        ctypes.c_uint32(arena_bytes),
    )
    return status, layout


def package(encoder_bytes: int, features: int, outputs: int, hidden: int = 0, feature_offset: int = 0) -> Package:
    return Package(
        encoder_bytes=encoder_bytes,
        feature_offset=feature_offset,
        feature_count=features,
        head_shape=HeadShape(features, hidden, outputs),
        head_parameters=(features + 1) * hidden + ((hidden or features) + 1) * outputs,
    )


@pytest.mark.parametrize(
    ("encoder_bytes", "features", "outputs", "samples"), [(3000, 64, 10, 256), (17, 1, 1, 1), (8192, 33, 7, 4096)]
)
@pytest.mark.parametrize("hidden", [0, 12])
@pytest.mark.parametrize("arithmetic", ["fedmote_float32", "fedmote_int16"])
def test_layout_equals_the_table_of_the_specification(
    arithmetic: str, hidden: int, encoder_bytes: int, features: int, outputs: int, samples: int
) -> None:
    subject = package(encoder_bytes, features, outputs, hidden)
    parameters = subject.head_parameters
    link = round_16(BODY_MAX + 128)
    is_float = arithmetic == "fedmote_float32"
    scratch = 4 * (outputs + 2 * hidden + (0 if is_float else max(features, hidden)))
    encoder = max(encoder_bytes, round_16(features) + scratch)
    sizes = [link, link, encoder, (4 if is_float else 2) * parameters, 4 * parameters, 4 * parameters, 12 * samples]
    expected = [sum(map(round_16, sizes[:i])) for i in range(len(sizes) + 1)]
    total = expected[-1] + round_16(samples * features)

    status, layout = compute(subject, samples, total, arithmetic)

    assert status == OK
    names = ["receive", "transmit", "encoder", "head", "head_base", "velocity", "samples", "cache"]
    assert [getattr(layout, name) for name in names] == expected
    assert layout.scratch == layout.encoder + round_16(features)
    assert (layout.required, layout.total, layout.cached) == (expected[-1], total, samples)
    assert library().fedmote_link_bytes() == 2 * link


def test_scratch_lies_in_front_of_the_features_where_there_is_room() -> None:
    for offset, expected in [(0, 64), (32, 96), (48, 0), (960, 0)]:
        _, layout = compute(package(1024, 64, 10, feature_offset=offset), 1, 1 << 20)
        assert layout.scratch - layout.encoder == expected
        assert layout.head - layout.encoder == 1024


def test_arena_one_byte_too_small_is_refused_and_the_need_is_told() -> None:
    _, layout = compute(package(3000, 64, 10), 256, 1 << 20)
    required = layout.required

    assert compute(package(3000, 64, 10), 256, required)[0] == OK
    status, layout = compute(package(3000, 64, 10), 256, required - 1)
    assert status == -Status.ARENA
    assert layout.required == required


def test_cache_takes_what_is_left_to_the_byte() -> None:
    _, layout = compute(package(3000, 64, 10), 256, 1 << 20)
    for left, cached in [(0, 0), (63, 0), (64, 1), (64 * 256 - 1, 255), (64 * 256, 256), (64 * 300, 256)]:
        assert compute(package(3000, 64, 10), 256, layout.required + left)[1].cached == cached


def test_layout_refuses_no_samples_and_more_than_ranks_can_count() -> None:
    assert compute(package(16, 1, 1), 0, 1 << 20)[0] == -Status.NO_SAMPLES
    assert compute(package(16, 1, 1), 16383, 1 << 20)[0] == OK
    assert compute(package(16, 1, 1), 16384, 1 << 20)[0] == -Status.ARGUMENT


def test_wishes_beyond_32_bits_do_not_wrap() -> None:
    status, layout = compute(package(0xFFFFFFF0, 65535, 65535), 16383, 1 << 20)

    assert status == -Status.ARENA
    assert layout.required == layout.total == 0xFFFFFFFF
