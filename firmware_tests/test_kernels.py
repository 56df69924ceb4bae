# SPDX-License-Identifier: Apache-2.0
"""Every operator against the integer reference, through whole packages: reader, encoder and kernel together."""

import ctypes
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from firmware_tests import integer_reference as reference
from firmware_tests import package_builder as fmp
from firmware_tests.native import OK, OpenPackage, library

SEEDS = range(20)
# A case: the package of one operator, inputs int8 (N, ...), and what the reference makes of one of them.
Case = tuple[bytes, np.ndarray, Callable[[np.ndarray], np.ndarray]]


def int8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape).astype(np.int8)


def limits(rng: np.random.Generator) -> tuple[int, int]:
    low, high = sorted(rng.integers(-128, 128, 2).tolist())
    return (-128, 127) if rng.random() < 0.5 else (low, high)


def zero_points(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(-128, 128, count).tolist()


def channel_constants(rng: np.random.Generator, channels: int, products: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bias, multiplier and shift that spread typical sums over the int8 range; now and then absurd ones."""
    bias = rng.integers(-20000, 20000, channels).astype(np.int32)
    multiplier = rng.integers(2**30, 2**31, channels).astype(np.int32)
    shift = (-6 - round(np.log2(products) / 2) + rng.integers(-2, 2, channels)).astype(np.int32)
    if rng.random() < 0.2:
        bias, shift = rng.integers(-(2**31), 2**31, channels).astype(np.int32), rng.integers(-31, 31, channels).astype(np.int32)
    return bias, multiplier, shift


def window(rng: np.random.Generator, size: int, is_pool: bool) -> tuple[int, int, int, int, int]:
    """Kernel, stride, dilation, pad before, output size along one axis."""
    kernel, stride = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    dilation = 1 if is_pool else int(rng.integers(1, 4))
    pad = int(rng.integers(0, kernel if is_pool else (kernel - 1) * dilation + 1))
    reach = size + pad - 1 if is_pool else max(size + 2 * pad - (kernel - 1) * dilation - 1, 0)
    return kernel, stride, dilation, pad, int(reach // stride + 1)


def int4(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-8, 8, shape).astype(np.int8)


def conv_case(rng: np.random.Generator, is_depthwise: bool, draw: Callable[..., np.ndarray] = int8) -> Case:
    height, width, in_c = (int(v) for v in rng.integers(1, 9, 3))
    groups = in_c if is_depthwise else int(rng.choice([g for g in range(1, in_c + 1) if in_c % g == 0]))
    rows, columns = window(rng, height, False), window(rng, width, False)
    kernel, stride, dilation, pads, out_hw = (tuple(pair) for pair in zip(rows, columns, strict=True))
    out_c = groups * int(rng.integers(1, 4 if is_depthwise or groups > 1 else 11))
    w = draw(rng, *kernel, out_c) if is_depthwise else draw(rng, out_c, *kernel, in_c // groups)
    constants = (w, *channel_constants(rng, out_c, kernel[0] * kernel[1] * (in_c // groups)))
    quantization = (*zero_points(rng, 2), *limits(rng))
    builder = fmp.Builder(height * width * in_c)
    opcode = fmp.DEPTHWISE_CONV_2D if is_depthwise else fmp.CONV_2D
    if draw is int4:
        opcode = fmp.DEPTHWISE_CONV_2D_INT4 if is_depthwise else fmp.CONV_2D_INT4
    shapes = ((height, width, in_c), (*out_hw, out_c))
    out = builder.conv(opcode, 0, shapes, kernel, stride, dilation, pads, constants, quantization, groups)
    package = builder.build(out, out_hw[0] * out_hw[1] * out_c)
    x = int8(rng, 2, height, width, in_c)
    return package, x, lambda v: reference.conv(v, *constants, out_hw, stride, dilation, pads, quantization, is_depthwise)


def dense_case(rng: np.random.Generator, draw: Callable[..., np.ndarray] = int8) -> Case:
    in_n, out_n = (int(v) for v in rng.integers(1, 40, 2))
    constants = (draw(rng, out_n, in_n), *channel_constants(rng, out_n, in_n))
    quantization = (*zero_points(rng, 2), *limits(rng))
    builder = fmp.Builder(in_n)
    opcode = fmp.FULLY_CONNECTED_INT4 if draw is int4 else fmp.FULLY_CONNECTED
    out = builder.dense(0, in_n, out_n, constants, quantization, opcode)
    return builder.build(out, out_n), int8(rng, 3, in_n), lambda v: reference.dense(v, *constants, quantization)


def second_operand(rng: np.random.Generator, builder: fmp.Builder, count: int) -> tuple[tuple[int, int, int], np.ndarray | None]:
    """A second input beside the first, or shorter than it and repeated; in the arena, or constant (then with its values)."""
    count2 = count if rng.random() < 0.4 else int(rng.integers(1, count + 1))
    if rng.random() < 0.5:
        return (fmp.round_16(count), 0, count2), None
    values = int8(rng, count2)
    return (builder.constant(values), 1, count2), values


def operands(x: np.ndarray, count: int, count2: int, values: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    return x[0, :count], np.resize(x[1, :count2] if values is None else values, count)


def add_case(rng: np.random.Generator) -> Case:
    count = int(rng.integers(1, 200))
    shifts = (-rng.integers(0, 3, 2)).tolist()
    first, second, last = rng.integers(2**30, 2**31, 3).tolist()
    parameters = (*zero_points(rng, 3), 20, first, shifts[0], second, shifts[1], last, int(rng.integers(-22, -17)), *limits(rng))
    builder = fmp.Builder(2 * fmp.round_16(count))
    second, values = second_operand(rng, builder, count)
    out = builder.add(0, second, count, *parameters)
    x = int8(rng, 3, 2, fmp.round_16(count))
    return builder.build(out, count), x, lambda v: reference.add(*operands(v, count, second[2], values), *parameters)


def mul_case(rng: np.random.Generator) -> Case:
    count = int(rng.integers(1, 200))
    parameters = (*zero_points(rng, 3), int(rng.integers(2**30, 2**31)), int(rng.integers(-12, 1)), *limits(rng))
    builder = fmp.Builder(2 * fmp.round_16(count))
    second, values = second_operand(rng, builder, count)
    out = builder.mul(0, second, count, *parameters)
    x = int8(rng, 3, 2, fmp.round_16(count))
    return builder.build(out, count), x, lambda v: reference.mul(*operands(v, count, second[2], values), *parameters)


def pool_case(rng: np.random.Generator, is_average: bool) -> Case:
    height, width, channels = (int(v) for v in rng.integers(1, 9, 3))
    rows, columns = window(rng, height, True), window(rng, width, True)
    kernel, stride, _, pads, out_hw = (tuple(pair) for pair in zip(rows, columns, strict=True))
    low_high = limits(rng)
    builder = fmp.Builder(height * width * channels)
    opcode = fmp.AVERAGE_POOL_2D if is_average else fmp.MAX_POOL_2D
    out = builder.pool(opcode, 0, ((height, width), out_hw), channels, kernel, stride, pads, low_high)
    package = builder.build(out, out_hw[0] * out_hw[1] * channels)
    x = int8(rng, 2, height, width, channels)
    return package, x, lambda v: reference.pool(v, is_average, out_hw, kernel, stride, pads, low_high)


def mean_case(rng: np.random.Generator) -> Case:
    shape = tuple(int(v) for v in rng.integers(1, 9, 3))
    parameters = (int(rng.integers(2**28, 2**31)), int(rng.integers(-6, 1)), *zero_points(rng, 2))
    builder = fmp.Builder(int(np.prod(shape)))
    out = builder.mean(0, shape, *parameters)
    return builder.build(out, shape[2]), int8(rng, 3, *shape), lambda v: reference.mean(v, *parameters)


def pad_case(rng: np.random.Generator) -> Case:
    shape = tuple(int(v) for v in rng.integers(1, 7, 3))
    top, bottom, left, right = (int(v) for v in rng.integers(0, 4, 4))
    value = zero_points(rng, 1)[0]
    builder = fmp.Builder(int(np.prod(shape)))
    out = builder.pad(0, shape, (top, bottom, left, right), value)
    count = (shape[0] + top + bottom) * (shape[1] + left + right) * shape[2]
    edges = ((top, bottom), (left, right), (0, 0))
    return builder.build(out, count), int8(rng, 3, *shape), lambda v: np.pad(v, edges, constant_values=value)


def table_case(rng: np.random.Generator) -> Case:
    count = int(rng.integers(1, 200))
    table = int8(rng, 256)
    builder = fmp.Builder(count)
    out = builder.table(0, count, table)
    return builder.build(out, count), int8(rng, 3, count), lambda v: table[v.astype(int) + 128]


def softmax_case(rng: np.random.Generator) -> Case:
    rows, n = int(rng.integers(1, 6)), int(rng.integers(1, 40 if rng.random() < 0.9 else 1000))
    exponentials = np.minimum(np.exp(-np.arange(256) * rng.uniform(0.0, 0.5)) * 2**31, 2**31 - 1).astype(np.int32)
    exponentials[int(rng.integers(1, 257)) :] = 0
    builder = fmp.Builder(rows * n)
    out = builder.softmax(0, rows, n, exponentials)
    return builder.build(out, rows * n), int8(rng, 3, rows, n), lambda v: reference.softmax(v, exponentials)


def copy_case(rng: np.random.Generator) -> Case:
    """A byte everywhere; then a slice with steps in both directions whose axes are permuted, into a part of that tensor."""
    shape = rng.integers(1, 6, 4)
    steps = np.where(rng.random(4) < 0.3, -rng.integers(1, 3, 4), rng.integers(1, 3, 4))
    selection = tuple(slice(None, None, int(step)) for step in steps)
    order = tuple(rng.permutation(4).tolist())
    extents = tuple(int(-(-shape[axis] // abs(steps[axis]))) for axis in order)
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(4)]
    start = sum((int(shape[axis]) - 1) * strides[axis] for axis in range(4) if steps[axis] < 0)
    reading = (start, *(int(steps[axis]) * strides[axis] for axis in order))
    out_shape = (*extents[:3], extents[3] + 2)  # a column before and one behind
    writing = (1, *(int(np.prod(out_shape[axis + 1 :])) for axis in range(4)))
    count = int(np.prod(out_shape))
    builder = fmp.Builder(int(np.prod(shape)))
    target = builder.tensor(count)
    builder.copy(0, target, (1, 1, 1, count), (0, 0, 0, 0, 0), (0, 0, 0, 0, 1))  # the first byte everywhere
    out = builder.copy(0, target, extents, reading, writing)

    def expect(v: np.ndarray) -> np.ndarray:
        full = np.full(out_shape, v.ravel()[0])
        full[..., 1:-1] = v[selection].transpose(order)
        return full

    return builder.build(out, count), int8(rng, 1, *shape), expect


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "conv-2d": lambda rng: conv_case(rng, False),
    "depthwise-conv-2d": lambda rng: conv_case(rng, True),
    "fully-connected": dense_case,
    "add": add_case,
    "average-pool-2d": lambda rng: pool_case(rng, True),
    "max-pool-2d": lambda rng: pool_case(rng, False),
    "mean": mean_case,
    "pad": pad_case,
    "table": table_case,
    "mul": mul_case,
    "softmax": softmax_case,
    "strided-copy": copy_case,
    "conv-2d-int4": lambda rng: conv_case(rng, False, int4),
    "depthwise-conv-2d-int4": lambda rng: conv_case(rng, True, int4),
    "fully-connected-int4": lambda rng: dense_case(rng, int4),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("operator", CASES)
def test_operator_equals_the_integer_reference_bit_for_bit(operator: str, seed: int) -> None:
    package, x, expect = CASES[operator](np.random.default_rng(seed))

    opened = OpenPackage(package)
    assert opened.status == OK
    features = opened.encode(x.reshape(len(x), -1))

    for row, sample in zip(features, x, strict=True):
        np.testing.assert_array_equal(row, expect(sample).ravel(), err_msg=f"seed {seed}")


@pytest.mark.parametrize("macs", [0, 1, 100, 5000])
@pytest.mark.parametrize("operator", CASES)
def test_interrupted_operator_gives_the_same_bytes(operator: str, macs: int) -> None:
    for seed in range(5):
        package, x, _ = CASES[operator](np.random.default_rng(seed))
        opened = OpenPackage(package)
        flat = x.reshape(len(x), -1)

        np.testing.assert_array_equal(opened.encode(flat, macs), opened.encode(flat), err_msg=f"seed {seed}")


def test_chain_of_operators_gives_the_same_bytes_however_it_is_cut() -> None:
    rng = np.random.default_rng(1)
    shape, in_c, out_c = (6, 5), 3, 6
    builder = fmp.Builder(6 * 5 * 3)
    padded = builder.pad(0, (*shape, in_c), (1, 1, 1, 1), 5)
    constants = (int8(rng, out_c, 3, 3, in_c), *channel_constants(np.random.default_rng(3), out_c, 27))
    conv = builder.conv(
        fmp.CONV_2D, padded, ((8, 7, in_c), (6, 5, out_c)), (3, 3), (1, 1), (1, 1), (0, 0), constants, (5, -3, -128, 127)
    )
    pooled = builder.pool(fmp.MAX_POOL_2D, conv, (shape, (3, 2)), out_c, (2, 2), (2, 2), (0, 0), (-128, 127))
    mean = builder.mean(pooled, (3, 2, out_c), 2**30, -2, -3, 0)
    opened = OpenPackage(builder.build(mean, out_c))
    x = int8(rng, 4, 90)

    whole = opened.encode(x)

    assert len(np.unique(whole)) > 3
    for macs in (1, 7, 100, 2000):
        np.testing.assert_array_equal(opened.encode(x, macs), whole)


def test_encoder_without_operators_hands_its_input_through() -> None:
    opened = OpenPackage(fmp.Builder(20).build(0, 20))
    x = int8(np.random.default_rng(0), 2, 20)

    assert opened.status == OK
    np.testing.assert_array_equal(opened.encode(x), x)


def test_checksum_continues_like_zlib() -> None:
    data = np.random.default_rng(0).bytes(1000)
    crc = library().fedmote_crc32
    for split in (0, 1, 499, 1000):
        first, rest = data[:split], data[split:]
        assert crc(ctypes.c_uint32(crc(0, first, split)), rest, len(rest)) == zlib.crc32(data)
