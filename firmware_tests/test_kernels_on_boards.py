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

BOARD = "stm32f405"
_missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
pytestmark = [pytest.mark.emulator, pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")]


@pytest.fixture(autouse=True)
def arrangement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that are written by hand have the weights of the board's kernels."""
    monkeypatch.setattr(fmp.Builder, "arrangement", int(Board.load(BOARD).arrangement))


def on_board(package: bytes, x: np.ndarray, directory: Path) -> np.ndarray:
    """Features int8 (N, D) of a package without a manifest, which `run_on_board` would refuse."""
    offsets = {kind: offset for kind, offset, _, _ in struct.iter_unpack("<4I", package[48 : 48 + 16 * 4])}
    (feature_count,) = struct.unpack_from("<I", package, offsets[fmp.PLAN] + 20)
    (outputs,) = struct.unpack_from("<I", package, offsets[fmp.HEAD] + 8)
    record_bytes = feature_count + 4 * outputs
    files = {"package": directory / "package.fmp", "samples": directory / "samples.bin"}
    files["package"].write_bytes(package)
    files["samples"].write_bytes(samples_region(x.reshape(len(x), -1), np.zeros(len(x), np.int64)))
    results = collect_results(build(BOARD, Program.RUN, is_checked=True), files, len(x) * record_bytes, directory)
    return np.frombuffer(results, np.int8).reshape(len(x), record_bytes)[:, :feature_count]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("operator", ["conv-2d", "depthwise-conv-2d", "fully-connected"])
def test_operator_on_the_board_equals_the_integer_reference_bit_for_bit(operator: str, seed: int, tmp_path: Path) -> None:
    package, x, expect = CASES[operator](np.random.default_rng(seed))
    for row, sample in zip(on_board(package, x, tmp_path), x, strict=True):
        np.testing.assert_array_equal(row, expect(sample).ravel(), err_msg=f"seed {seed}")


# Sums of more products than are widened at once (FEDMOTE_DSP_WORDS), and of as many, one less, one more.
@pytest.mark.parametrize("products", [895, 896, 897, 2000])
@pytest.mark.parametrize("outputs", [1, 7])
def test_long_dense_sums_on_the_board_equal_the_integer_reference(products: int, outputs: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(products)
    constants = (int8(rng, outputs, products), *channel_constants(rng, outputs, products))
    quantization = (*zero_points(rng, 2), *limits(rng))
    builder = fmp.Builder(products)
    package = builder.build(builder.dense(0, products, outputs, constants, quantization), outputs)
    x = int8(rng, 2, products)
    for row, sample in zip(on_board(package, x, tmp_path), x, strict=True):
        np.testing.assert_array_equal(row, reference.dense(sample, *constants, quantization).ravel())


@pytest.mark.parametrize("in_c", [49, 50, 72, 150])
@pytest.mark.parametrize("dilation", [1, 2])
def test_long_convolution_sums_on_the_board_equal_the_integer_reference(in_c: int, dilation: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(in_c)
    size, out_c = 5, 3
    constants = (int8(rng, out_c, 3, 3, in_c), *channel_constants(rng, out_c, 9 * in_c))
    quantization = (*zero_points(rng, 2), *limits(rng))
    shapes = ((size, size, in_c), (size, size, out_c))
    window = ((3, 3), (1, 1), (dilation, dilation), (dilation, dilation))
    builder = fmp.Builder(size * size * in_c)
    out = builder.conv(fmp.CONV_2D, 0, shapes, *window, constants, quantization)
    x = int8(rng, 2, size, size, in_c)
    rows = on_board(builder.build(out, size * size * out_c), x, tmp_path)
    for row, sample in zip(rows, x, strict=True):
        expected = reference.conv(sample, *constants, (size, size), *window[1:], quantization, is_depthwise=False)
        np.testing.assert_array_equal(row, expected.ravel())


# The shapes of a kernel of its own: rows of more columns than are widened at once, windows that lie in the padding altogether.
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2), (1, 3)])
@pytest.mark.parametrize(("width", "pad"), [(1, 1), (2, 1), (3, 0), (5, 1), (6, 2), (9, 3), (80, 1)])
def test_three_by_three_depthwise_on_the_board_equals_the_integer_reference(
    width: int, pad: int, stride: tuple[int, int], tmp_path: Path
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
    rows = on_board(builder.build(out, out_hw[0] * out_hw[1] * channels), x, tmp_path)
    for row, sample in zip(rows, x, strict=True):
        expected = reference.conv(sample, *constants, out_hw, *window[1:], quantization, True)
        np.testing.assert_array_equal(row, expected.ravel())


@pytest.mark.parametrize("first_seed", range(0, 50, 10))
def test_random_graphs_on_the_board_equal_the_host_bit_for_bit(first_seed: int) -> None:
    board = Board.load(BOARD)
    for seed in range(first_seed, first_seed + 10):
        graph = random_int8_graph(seed)
        x = random_samples(graph, 8, seed)
        features = run_on_board(board, encoder_package(graph, board, "specimen").to_bytes(), x)
        expected = run_int8(graph, x).reshape(len(x), -1)
        np.testing.assert_array_equal(features, expected, err_msg=f"seed {seed}: {[op.name for op in graph.ops]}")
