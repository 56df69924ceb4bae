# SPDX-License-Identifier: Apache-2.0
"""Runs the records of a compiled plan in one arena, as protocol/SPEC.md, section 7, words them.

It knows no graph: what it needs stands in the records and the weights. Arrangement plain only; weights of operators and shapes
of tensors are small here, so plain loops over taps are enough.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedmote.package.compile import Plan
from fedmote.package.plan_check import check_plan
from fedmote.wire.schema import Opcode

INT32 = 2**31


def high(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """The doubling high multiplication, rounded."""
    return (np.asarray(a, np.int64) * b + 2**30) >> 31


def saturate(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -INT32, INT32 - 1)


def halved(values: np.ndarray, shift: int) -> np.ndarray:
    """Division by 2^shift, half away from zero."""
    magnitude = (np.abs(values) + ((1 << shift) >> 1)) >> shift
    return np.where(values < 0, -magnitude, magnitude)


def rescale(values: np.ndarray, multiplier: int, shift: int) -> np.ndarray:
    values = high(np.asarray(values, np.int64) << max(shift, 0), multiplier)
    return halved(values, max(-shift, 0))


class Machine:
    """An arena and the weights of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.header, self.records = check_plan(plan.records, plan.weights)
        self.weights = np.frombuffer(plan.weights, np.int8)
        self.arena = np.zeros(self.header.encoder_bytes, np.int8)

    def run(self, x: np.ndarray) -> np.ndarray:
        """Features of one sample."""
        self.arena[:] = 0x55
        start = self.header.input_offset
        self.arena[start : start + self.header.input_count] = x.reshape(-1)
        for record in self.records:
            OPERATORS[record.opcode](self, record.values)
        start = self.header.feature_offset
        return self.arena[start : start + self.header.feature_count].copy()

    def read(self, offset: int, *shape: int) -> np.ndarray:
        return self.arena[offset : offset + int(np.prod(shape))].reshape(shape).astype(np.int64)

    def write(self, v: dict[str, int], values: np.ndarray) -> None:
        low, high_limit = v.get("activation_min", -128), v.get("activation_max", 127)
        flat = np.clip(values, low, high_limit).astype(np.int8).reshape(-1)
        self.arena[v["output_offset"] : v["output_offset"] + flat.size] = flat

    def numbers(self, offset: int, count: int) -> np.ndarray:
        return np.frombuffer(self.weights.tobytes(), "<i4", count, offset).astype(np.int64)

    def constants(self, v: dict[str, int], bits: int, *shape: int) -> np.ndarray:
        """Weights of 8 or 4 bits."""
        count = int(np.prod(shape))
        if bits == 8:
            return self.weights[v["weights"] : v["weights"] + count].reshape(shape).astype(np.int64)
        packed = self.weights[v["weights"] : v["weights"] + (count + 1) // 2].view(np.uint8)
        halves = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count].astype(np.int64)
        return np.where(halves > 7, halves - 16, halves).reshape(shape)

    def scaled(self, v: dict[str, int], sums: np.ndarray) -> np.ndarray:
        """Outputs of sums, channels last."""
        channels = sums.shape[-1]
        scaling = self.numbers(v["scaling"], 3 * channels).reshape(channels, 3)
        out = [rescale(_wrap(sums[..., c] + bias), int(m), int(s)) for c, (bias, m, s) in enumerate(scaling)]
        return np.stack(out, axis=-1) + v["output_zero_point"]


def _wrap(values: np.ndarray) -> np.ndarray:
    return (values + INT32) % (2 * INT32) - INT32


def convolution(is_depthwise: bool, bits: int) -> Callable[[Machine, dict[str, int]], None]:
    def run(m: Machine, v: dict[str, int]) -> None:
        x = m.read(v["input_offset"], v["in_h"], v["in_w"], v["in_c"])
        kernel = (v["kernel_h"], v["kernel_w"])
        if is_depthwise:
            w = m.constants(v, bits, *kernel, v["out_c"]).transpose(2, 0, 1)[..., None]
        else:
            w = m.constants(v, bits, v["out_c"], *kernel, v["group_in_c"])
        sums = np.zeros((v["out_h"], v["out_w"], v["out_c"]), np.int64)
        for y, z, c in np.ndindex(*sums.shape):
            first = c // v["group_out_c"] * v["group_in_c"]
            for i, j in np.ndindex(*kernel):
                row = y * v["stride_h"] + i * v["dilation_h"] - v["pad_top"]
                column = z * v["stride_w"] + j * v["dilation_w"] - v["pad_left"]
                if 0 <= row < v["in_h"] and 0 <= column < v["in_w"]:
                    sums[y, z, c] += x[row, column, first : first + v["group_in_c"]] @ w[c, i, j]
                else:
                    sums[y, z, c] += v["input_zero_point"] * w[c, i, j].sum()
        m.write(v, m.scaled(v, sums))

    return run


def dense(bits: int) -> Callable[[Machine, dict[str, int]], None]:
    def run(m: Machine, v: dict[str, int]) -> None:
        w = m.constants(v, bits, v["out_n"], v["in_n"])
        m.write(v, m.scaled(v, w @ m.read(v["input_offset"], v["in_n"])))

    return run


def operands(m: Machine, v: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The second operand is read whole first: where it repeats, the output must not lie over it."""
    source = m.weights if v["input2_is_constant"] else m.arena
    second = source[v["input2_offset"] : v["input2_offset"] + v["count2"]].astype(np.int64)
    if not v["input2_is_constant"] and v["count2"] < v["count"]:
        output = range(v["output_offset"], v["output_offset"] + v["count"])
        assert v["input2_offset"] + v["count2"] <= output.start or v["input2_offset"] >= output.stop
    index = np.arange(v["count"]) % v["count2"]
    return m.read(v["input_offset"], v["count"]) - v["input1_zero_point"], second[index] - v["input2_zero_point"]


def add(m: Machine, v: dict[str, int]) -> None:
    first, second = operands(m, v)
    total = rescale(first << v["left_shift"], v["multiplier1"], v["shift1"])
    total = total + rescale(second << v["left_shift"], v["multiplier2"], v["shift2"])
    m.write(v, rescale(total, v["output_multiplier"], v["output_shift"]) + v["output_zero_point"])


def mul(m: Machine, v: dict[str, int]) -> None:
    first, second = operands(m, v)
    m.write(v, rescale(first * second, v["multiplier"], v["shift"]) + v["output_zero_point"])


def pool(is_maximum: bool) -> Callable[[Machine, dict[str, int]], None]:
    def run(m: Machine, v: dict[str, int]) -> None:
        x = m.read(v["input_offset"], v["in_h"], v["in_w"], v["channels"])
        out = np.zeros((v["out_h"], v["out_w"], v["channels"]), np.int64)
        for y, z in np.ndindex(*out.shape[:2]):
            top, left = y * v["stride_h"] - v["pad_top"], z * v["stride_w"] - v["pad_left"]
            window = x[max(top, 0) : top + v["kernel_h"], max(left, 0) : left + v["kernel_w"]].reshape(-1, v["channels"])
            if is_maximum:
                out[y, z] = window.max(axis=0)
            else:
                total, count = window.sum(axis=0), len(window)
                out[y, z] = np.sign(total) * ((np.abs(total) + count // 2) // count)
        m.write(v, out)

    return run


def mean(m: Machine, v: dict[str, int]) -> None:
    x = m.read(v["input_offset"], v["in_h"] * v["in_w"], v["channels"])
    m.write(v, rescale((x - v["input_zero_point"]).sum(axis=0), v["multiplier"], v["shift"]) + v["output_zero_point"])


def pad(m: Machine, v: dict[str, int]) -> None:
    out = np.full((v["out_h"], v["out_w"], v["channels"]), v["value"], np.int64)
    x = m.read(v["input_offset"], v["in_h"], v["in_w"], v["channels"])
    out[v["pad_top"] : v["pad_top"] + v["in_h"], v["pad_left"] : v["pad_left"] + v["in_w"]] = x
    m.write(v, out)


def table(m: Machine, v: dict[str, int]) -> None:
    m.write(v, m.weights[v["table"] : v["table"] + 256][m.read(v["input_offset"], v["count"]) + 128])


def softmax(m: Machine, v: dict[str, int]) -> None:
    exponentials = m.numbers(v["exponentials"], 256)
    x = m.read(v["input_offset"], v["rows"], v["n"])
    out = np.zeros_like(x)
    for row, values in enumerate(x):
        e = exponentials[values.max() - values]
        total = int(((e + 2**11) >> 12).sum())
        width = total.bit_length()
        assert 2**19 <= total < INT32
        d = np.int64(((total << (32 - width)) - INT32 + INT32) >> 1)
        y = 1515870810 + high(d, -1010580540)
        for _ in range(3):
            y = y + saturate(high(y, 2**29 - high(d, y)) << 2)
        scale = saturate(y << 1)
        out[row] = np.minimum(127, ((high(scale, e) + (1 << (width + 2))) >> (width + 3)) - 128)
    m.write(v, out)


def strided_copy(m: Machine, v: dict[str, int]) -> None:
    index = np.indices([v[f"n{i}"] for i in range(4)]).reshape(4, -1)
    places = [
        v[f"{side}_offset"] + v[f"{side}_start"] + sum(v[f"{side}_stride{i}"] * index[i] for i in range(4))
        for side in ("input", "output")
    ]
    assert not set(places[0]) & set(places[1])
    assert len(set(places[1])) == len(places[1])
    m.arena[places[1]] = m.arena[places[0]]


OPERATORS: dict[Opcode, Callable[[Machine, dict[str, int]], None]] = {
    Opcode.CONV_2D: convolution(False, 8),
    Opcode.CONV_2D_INT4: convolution(False, 4),
    Opcode.DEPTHWISE_CONV_2D: convolution(True, 8),
    Opcode.DEPTHWISE_CONV_2D_INT4: convolution(True, 4),
    Opcode.FULLY_CONNECTED: dense(8),
    Opcode.FULLY_CONNECTED_INT4: dense(4),
    Opcode.ADD: add,
    Opcode.MUL: mul,
    Opcode.AVERAGE_POOL_2D: pool(False),
    Opcode.MAX_POOL_2D: pool(True),
    Opcode.MEAN: mean,
    Opcode.PAD: pad,
    Opcode.TABLE: table,
    Opcode.SOFTMAX: softmax,
    Opcode.STRIDED_COPY: strided_copy,
}
