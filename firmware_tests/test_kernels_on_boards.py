# SPDX-License-Identifier: Apache-2.0
"""The kernels that an emulated board really has, on the board: same bytes. All cases of a test run in one start of the board."""

import shutil
import struct

import numpy as np
import pytest

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board, board_names
from fedmote.package.budget import run_arena_bytes
from fedmote.package.container import split_sections
from fedmote.package.head import HeadShape
from fedmote.package.records import PlanHeader
from fedmote.wire.schema import Section
from fedmote_hil.run import Job, check_fit, run_jobs
from firmware_tests import integer_reference as reference
from firmware_tests import package_builder as fmp
from firmware_tests.test_kernels import CASES, Case, channel_constants, int8, limits, zero_points

_missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
pytestmark = [pytest.mark.emulator, pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")]


@pytest.fixture(params=[name for name in board_names() if Board.load(name).emulator is not None])
def board(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Board:
    """Each emulated board; packages that are written by hand have the weights of its kernels."""
    board = Board.load(request.param)
    monkeypatch.setattr(fmp.Builder, "arrangement", int(board.arrangement))
    return board


def check(board: Board, cases: dict[str, Case]) -> None:
    """Runs the cases, by their names, on the board: packages without a manifest, which `run_on_board` would refuse.

    Small boards are too small for some; these are named.
    """
    jobs: dict[str, tuple[int, Job]] = {}
    for name, (package, x, _) in cases.items():
        sections = split_sections(package)
        header = PlanHeader.unpack(sections[Section.PLAN])
        (outputs,) = struct.unpack_from("<I", sections[Section.HEAD], 8)
        job = Job(package, x.reshape(len(x), -1), header.feature_count + 4 * outputs)
        if fits(
            board, job, run_arena_bytes(header.encoder_bytes, header.feature_count, HeadShape(header.feature_count, 0, outputs))
        ):
            jobs[name] = header.feature_count, job
    print(f"too large for {board.name}: {sorted(cases.keys() - jobs.keys()) or 'none'}")
    assert len(jobs) >= len(cases) / 2
    found = run_jobs(board, [job for _, job in jobs.values()])
    for (name, (features, _)), rows in zip(jobs.items(), found, strict=True):
        _, x, expect = cases[name]
        for row, sample in zip(rows, x, strict=True):
            np.testing.assert_array_equal(row[:features].view(np.int8), expect(sample).ravel(), err_msg=name)


def fits(board: Board, job: Job, needed: int) -> bool:
    try:
        check_fit(board, job)
    except DoesNotFitError:
        return False
    return needed <= board.run_arena_bytes


def test_every_operator_on_the_board_equals_the_integer_reference_bit_for_bit(board: Board) -> None:
    check(
        board,
        {f"{operator}, seed {seed}": CASES[operator](np.random.default_rng(seed)) for operator in CASES for seed in range(20)},
    )


# Sums of more products than are widened at once (FEDMOTE_DSP_WORDS), and of as many, one less, one more.
@pytest.mark.parametrize("outputs", [1, 7])
def test_long_dense_sums_on_the_board_equal_the_integer_reference(outputs: int, board: Board) -> None:
    def case(products: int) -> Case:
        rng = np.random.default_rng(products)
        constants = (int8(rng, outputs, products), *channel_constants(rng, outputs, products))
        quantization = (*zero_points(rng, 2), *limits(rng))
        builder = fmp.Builder(products)
        package = builder.build(builder.dense(0, products, outputs, constants, quantization), outputs)
        return package, int8(rng, 2, products), lambda v: reference.dense(v, *constants, quantization)

    check(board, {f"{products} products": case(products) for products in (895, 896, 897, 2000)})


@pytest.mark.parametrize("dilation", [1, 2])
def test_long_convolution_sums_on_the_board_equal_the_integer_reference(dilation: int, board: Board) -> None:
    def case(in_c: int) -> Case:
        rng = np.random.default_rng(in_c)
        size, out_c = 5, 3
        constants = (int8(rng, out_c, 3, 3, in_c), *channel_constants(rng, out_c, 9 * in_c))
        quantization = (*zero_points(rng, 2), *limits(rng))
        shapes = ((size, size, in_c), (size, size, out_c))
        window = ((3, 3), (1, 1), (dilation, dilation), (dilation, dilation))
        builder = fmp.Builder(size * size * in_c)
        package = builder.build(builder.conv(fmp.CONV_2D, 0, shapes, *window, constants, quantization), size * size * out_c)
        return (
            package,
            int8(rng, 2, size, size, in_c),
            lambda v: reference.conv(v, *constants, (size, size), *window[1:], quantization, is_depthwise=False),
        )

    check(board, {f"{in_c} channels": case(in_c) for in_c in (49, 50, 72, 150)})


# Rows of more columns than are widened at once, windows that lie in the padding altogether.
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2), (1, 3)])
def test_three_by_three_depthwise_on_the_board_equals_the_integer_reference(stride: tuple[int, int], board: Board) -> None:
    def case(width: int, pad: int) -> Case:
        rng = np.random.default_rng([width, *stride])
        height, channels = int(rng.integers(1, 7)), 4 * int(rng.integers(1, 4))
        out_hw = (height + 1) // stride[0] + 1, max(width + 2 * pad - 3, 0) // stride[1] + 1
        bias, multiplier = rng.integers(-9000, 9000, channels), rng.integers(2**30, 2**31, channels)
        shift = rng.integers(-12, -5, channels)
        constants = (int8(rng, 3, 3, channels), *(v.astype(np.int32) for v in (bias, multiplier, shift)))
        quantization = (*zero_points(rng, 2), *limits(rng))
        shapes = ((height, width, channels), (*out_hw, channels))
        window = ((3, 3), stride, (1, 1), (1, pad))
        builder = fmp.Builder(height * width * channels)
        out = builder.conv(fmp.DEPTHWISE_CONV_2D, 0, shapes, *window, constants, quantization, channels)
        package = builder.build(out, out_hw[0] * out_hw[1] * channels)
        return (
            package,
            int8(rng, 2, height, width, channels),
            lambda v: reference.conv(v, *constants, out_hw, *window[1:], quantization, is_depthwise=True),
        )

    pairs = [(1, 1), (2, 1), (3, 0), (5, 1), (6, 2), (9, 3), (80, 1)]
    check(board, {f"width {width}, pad {pad}": case(width, pad) for width, pad in pairs})


# In channels, out channels, groups, kernel, stride, dilation: more channels than sums are kept for, rows of whole vectors of 16
# inputs and others, more products than a column holds, groups.
_WIDE = [
    (16, 70, 1, (3, 3), (1, 1), (1, 1)),
    (32, 65, 1, (3, 3), (2, 2), (2, 1)),
    (48, 9, 1, (2, 3), (1, 2), (1, 1)),
    (64, 130, 1, (1, 1), (1, 1), (1, 1)),
    (64, 64, 1, (1, 1), (1, 1), (1, 1)),
    (13, 20, 1, (1, 1), (1, 1), (1, 1)),
    (24, 7, 1, (1, 1), (2, 2), (1, 1)),
    (5, 3, 1, (1, 7), (1, 1), (1, 1)),
    (40, 66, 1, (3, 3), (1, 1), (1, 1)),
    (32, 136, 2, (3, 3), (1, 1), (1, 2)),
    (128, 4, 1, (1, 20), (1, 3), (1, 1)),
    (700, 5, 1, (1, 3), (1, 1), (1, 1)),
]
Pair = tuple[int, int]


@pytest.mark.parametrize("size", [(4, 5), (3, 23)])
def test_wide_convolutions_on_the_board_equal_the_integer_reference(size: Pair, board: Board) -> None:
    def case(in_c: int, out_c: int, groups: int, kernel: Pair, stride: Pair, dilation: Pair) -> Case:
        rng = np.random.default_rng([in_c, out_c, size[1]])
        pads = tuple(((k - 1) * d + 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        out_hw = tuple(
            (n + 2 * pad - (k - 1) * d - 1) // s + 1 for n, pad, k, d, s in zip(size, pads, kernel, dilation, stride, strict=True)
        )
        products = kernel[0] * kernel[1] * in_c // groups
        constants = (int8(rng, out_c, *kernel, in_c // groups), *channel_constants(rng, out_c, products))
        quantization = (*zero_points(rng, 2), *limits(rng))
        builder = fmp.Builder(size[0] * size[1] * in_c)
        shapes = ((*size, in_c), (*out_hw, out_c))
        out = builder.conv(fmp.CONV_2D, 0, shapes, kernel, stride, dilation, pads, constants, quantization, groups)
        return (
            builder.build(out, out_hw[0] * out_hw[1] * out_c),
            int8(rng, 1, *size, in_c),
            lambda v: reference.conv(v, *constants, out_hw, stride, dilation, pads, quantization, is_depthwise=False),
        )

    check(board, {str(shape): case(*shape) for shape in _WIDE})
