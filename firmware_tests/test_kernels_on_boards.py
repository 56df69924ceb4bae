# SPDX-License-Identifier: Apache-2.0
"""The kernels that an emulated board really has, where they are not the portable ones: same bytes, on the board."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from fedmote.package.boards import Board
from fedmote.package.execute import run_int8
from fedmote.package.specimen import random_int8_graph, random_samples
from fedmote.wire.regions import samples_region
from fedmote_hil.build import Program, build
from fedmote_hil.models import encoder_package
from fedmote_hil.results import collect_results
from fedmote_hil.run import run_on_board
from firmware_tests import integer_reference as reference
from firmware_tests import package_builder as fmp
from firmware_tests.test_kernels import CASES, channel_constants, int8, limits, zero_points

BOARDS = ["stm32f405", "mps3-m55"]  # Cortex-M with the DSP extension, and with Helium
_missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
pytestmark = [pytest.mark.emulator, pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")]


@pytest.fixture(autouse=True, params=BOARDS)
def board(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Board:
    """Each of the boards; packages that are written by hand have the weights of its kernels."""
    board = Board.load(request.param)
    monkeypatch.setattr(fmp.Builder, "arrangement", int(board.arrangement))
    return board


def on_board(board: Board, package: bytes, x: np.ndarray, directory: Path) -> np.ndarray:
    """Features int8 (N, D) of a package without a manifest, which `run_on_board` would refuse."""
    offsets = {kind: offset for kind, offset, _, _ in struct.iter_unpack("<4I", package[48 : 48 + 16 * 4])}
    (feature_count,) = struct.unpack_from("<I", package, offsets[fmp.PLAN] + 20)
    (outputs,) = struct.unpack_from("<I", package, offsets[fmp.HEAD] + 8)
    record_bytes = feature_count + 4 * outputs
    files = {"package": directory / "package.fmp", "samples": directory / "samples.bin"}
    files["package"].write_bytes(package)
    files["samples"].write_bytes(samples_region(x.reshape(len(x), -1), np.zeros(len(x), np.int64)))
    results = collect_results(build(board, Program.RUN, is_checked=True), files, len(x) * record_bytes, directory)
    return np.frombuffer(results, np.int8).reshape(len(x), record_bytes)[:, :feature_count]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("operator", CASES)
def test_operator_on_the_board_equals_the_integer_reference_bit_for_bit(
    board: Board, operator: str, seed: int, tmp_path: Path
) -> None:
    package, x, expect = CASES[operator](np.random.default_rng(seed))
    for row, sample in zip(on_board(board, package, x, tmp_path), x, strict=True):
        np.testing.assert_array_equal(row, expect(sample).ravel(), err_msg=f"seed {seed}")


# Sums of more products than are widened at once (FEDMOTE_DSP_WORDS), and of as many, one less, one more.
@pytest.mark.parametrize("products", [895, 896, 897, 2000])
@pytest.mark.parametrize("outputs", [1, 7])
def test_long_dense_sums_on_the_board_equal_the_integer_reference(
    board: Board, products: int, outputs: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(products)
    constants = (int8(rng, outputs, products), *channel_constants(rng, outputs, products))
    quantization = (*zero_points(rng, 2), *limits(rng))
    builder = fmp.Builder(products)
    package = builder.build(builder.dense(0, products, outputs, constants, quantization), outputs)
    x = int8(rng, 2, products)
    for row, sample in zip(on_board(board, package, x, tmp_path), x, strict=True):
        np.testing.assert_array_equal(row, reference.dense(sample, *constants, quantization).ravel())


@pytest.mark.parametrize("in_c", [49, 50, 72, 150])
@pytest.mark.parametrize("dilation", [1, 2])
def test_long_convolution_sums_on_the_board_equal_the_integer_reference(
    board: Board, in_c: int, dilation: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(in_c)
    size, out_c = 5, 3
    constants = (int8(rng, out_c, 3, 3, in_c), *channel_constants(rng, out_c, 9 * in_c))
    quantization = (*zero_points(rng, 2), *limits(rng))
    shapes = ((size, size, in_c), (size, size, out_c))
    window = ((3, 3), (1, 1), (dilation, dilation), (dilation, dilation))
    builder = fmp.Builder(size * size * in_c)
    out = builder.conv(fmp.CONV_2D, 0, shapes, *window, constants, quantization)
    x = int8(rng, 2, size, size, in_c)
    rows = on_board(board, builder.build(out, size * size * out_c), x, tmp_path)
    for row, sample in zip(rows, x, strict=True):
        expected = reference.conv(sample, *constants, (size, size), *window[1:], quantization, is_depthwise=False)
        np.testing.assert_array_equal(row, expected.ravel())


# The shapes of a kernel of its own: rows of more columns than are widened at once, windows that lie in the padding altogether.
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2), (1, 3)])
@pytest.mark.parametrize(("width", "pad"), [(1, 1), (2, 1), (3, 0), (5, 1), (6, 2), (9, 3), (80, 1)])
def test_three_by_three_depthwise_on_the_board_equals_the_integer_reference(
    board: Board, width: int, pad: int, stride: tuple[int, int], tmp_path: Path
) -> None:
    rng = np.random.default_rng([width, *stride])
    height, channels = int(rng.integers(1, 7)), 4 * int(rng.integers(1, 4))
    out_hw = (height + 1) // stride[0] + 1, max(width + 2 * pad - 3, 0) // stride[1] + 1
    bias, multiplier = rng.integers(-9000, 9000, channels), rng.integers(2**30, 2**31, channels)
    constants = (int8(rng, 3, 3, channels), bias.astype(np.int32), multiplier.astype(np.int32), rng.integers(-12, -5, channels))
    quantization = (*zero_points(rng, 2), *limits(rng))
    builder = fmp.Builder(height * width * channels)
    shapes = ((height, width, channels), (*out_hw, channels))
    window = ((3, 3), stride, (1, 1), (1, pad))
    out = builder.conv(fmp.DEPTHWISE_CONV_2D, 0, shapes, *window, constants, quantization, channels)
    x = int8(rng, 2, height, width, channels)
    rows = on_board(board, builder.build(out, out_hw[0] * out_hw[1] * channels), x, tmp_path)
    for row, sample in zip(rows, x, strict=True):
        expected = reference.conv(sample, *constants, out_hw, *window[1:], quantization, True)
        np.testing.assert_array_equal(row, expected.ravel())


# More channels than sums are kept for, rows of whole vectors of 16 inputs and others, more products than a column holds, groups.
@pytest.mark.parametrize(
    ("in_c", "out_c", "groups", "kernel", "stride", "dilation"),
    [
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
    ],
)
@pytest.mark.parametrize("size", [(4, 5), (3, 23)])
def test_wide_convolutions_on_the_board_equal_the_integer_reference(
    board: Board, in_c: int, out_c: int, groups: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int],
    size: tuple[int, int], tmp_path: Path,
) -> None:  # fmt: skip
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
    x = int8(rng, 1, *size, in_c)
    rows = on_board(board, builder.build(out, out_hw[0] * out_hw[1] * out_c), x, tmp_path)
    for row, sample in zip(rows, x, strict=True):
        expected = reference.conv(sample, *constants, out_hw, stride, dilation, pads, quantization, False)
        np.testing.assert_array_equal(row, expected.ravel())


@pytest.mark.parametrize("first_seed", range(0, 50, 10))
def test_random_graphs_on_the_board_equal_the_host_bit_for_bit(board: Board, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 10):
        graph = random_int8_graph(seed)
        x = random_samples(graph, 8, seed)
        features = run_on_board(board, encoder_package(graph, board, "specimen").to_bytes(), x)
        expected = run_int8(graph, x).reshape(len(x), -1)
        np.testing.assert_array_equal(features, expected, err_msg=f"seed {seed}: {[op.name for op in graph.ops]}")
