# SPDX-License-Identifier: Apache-2.0
"""Writes partition packages by hand, straight from `device_sdk/protocol/SPEC.md`, section 7.

A second implementation of the format beside `fedmote.package`, which it must not import: that keeps both honest. Small
enough to be read beside the specification; it checks nothing, so that tests can also write nonsense.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from firmware_tests import dsp_arrangement, helium_arrangement

CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, ADD, AVERAGE_POOL_2D, MAX_POOL_2D, MEAN, PAD = range(1, 9)
TABLE, MUL, SOFTMAX, STRIDED_COPY, CONV_2D_INT4, DEPTHWISE_CONV_2D_INT4, FULLY_CONNECTED_INT4 = range(9, 16)
INT4 = (CONV_2D_INT4, DEPTHWISE_CONV_2D_INT4, FULLY_CONNECTED_INT4)
MANIFEST, PLAN, WEIGHTS, HEAD = range(1, 5)


def round_16(size: int) -> int:
    return (size + 15) // 16 * 16


def words(*values: int) -> bytes:
    return b"".join(struct.pack("<I", value & 0xFFFFFFFF) for value in values)


def nibbles(weights: np.ndarray) -> np.ndarray:
    """Weights of four bits, two to a byte, the first in the low half."""
    flat = np.append(weights.ravel(), np.zeros(weights.size % 2, np.int8)).astype(np.uint8) & 15
    return (flat[::2] | flat[1::2] << 4).view(np.int8)


def seal(package: bytes) -> bytes:
    """The same bytes with hash and checksum made right."""
    body = package[:12] + package[48:]
    sealed = package[:16] + hashlib.blake2b(body, digest_size=32).digest() + package[48:]
    return sealed[:12] + words(zlib.crc32(sealed[:12] + sealed[16:])) + sealed[16:]


def assemble(sections: list[tuple[int, bytes]], version: int = 2) -> bytes:
    """A sealed package of (type, content) sections in this order."""
    table, content = b"", b""
    start = 48 + 16 * len(sections)
    for kind, data in sections:
        table += words(kind, start + len(content), len(data), 0)
        content += data.ljust(round_16(len(data)), b"\0")
    header = b"FMP1" + struct.pack("<HH", version, len(sections)) + words(start + len(content), 0) + bytes(32)
    return seal(header + table + content)


def head_section(weight: np.ndarray, bias: np.ndarray) -> bytes:
    """One layer; weight f32 (outputs, inputs), bias f32 (outputs,)."""
    floats = np.concatenate([weight.ravel(), bias]).astype("<f4").tobytes()
    return words(1, weight.shape[1], weight.shape[0], 0, 0) + floats


@dataclass
class Builder:
    """Collects operators and constants; tensors are placed one after another and never share memory.

    `arrangement`: 0, or that of `dsp_arrangement` or `helium_arrangement`.
    """

    arrangement: ClassVar[int] = 0
    input_count: int
    records: list[bytes] = field(default_factory=list)
    constants: bytearray = field(default_factory=bytearray)
    used: int = 0
    input_offset: int = 0

    def __post_init__(self) -> None:
        self.input_offset = self.tensor(self.input_count)

    def tensor(self, count: int) -> int:
        offset = self.used
        self.used += round_16(count)
        return offset

    def constant(self, array: np.ndarray) -> int:
        self.constants += bytes(-len(self.constants) % 4)
        offset = len(self.constants)
        self.constants += array.astype("<i4" if array.dtype.itemsize == 4 else "i1").tobytes()
        return offset

    def record(self, opcode: int, units: int, unit_macs: int, source: int, target: int, *rest: int) -> int:
        self.records.append(words(opcode | (5 + len(rest)) << 16, units, unit_macs, source, target, *rest))
        return target

    def _is_arranged(self, opcode: int) -> bool:
        return self.arrangement == dsp_arrangement.CORTEX_M_DSP and opcode not in INT4

    def _channels(self, opcode: int, constants: tuple[np.ndarray, ...], axis: int, zero_point: int,
                  arranged: np.ndarray) -> list[int]:  # fmt: skip
        """Of weights with their channels on `axis`, bias, multiplier and shift; the input's zero point goes into the bias."""
        weights, bias, multiplier, shift = constants
        rows = np.moveaxis(weights, axis, 0).reshape(len(bias), -1)
        folded = (bias - zero_point * rows.sum(axis=1, dtype=np.int64)).astype(np.uint32).view(np.int32).astype(np.int64)
        if not self._is_arranged(opcode):
            scaling = np.stack([folded, multiplier, shift], axis=1).astype(np.int32)
        else:
            scaling = dsp_arrangement.scaling(folded, multiplier, shift, rows, bias, axis != 2)
        return [self.constant(array) for array in (nibbles(weights) if opcode in INT4 else arranged, scaling)]

    def conv(self, opcode: int, source: int, shapes: tuple[tuple[int, int, int], tuple[int, int, int]], kernel: tuple[int, int],
             stride: tuple[int, int], dilation: tuple[int, int], pads: tuple[int, int], constants: tuple[np.ndarray, ...],
             quantization: tuple[int, int, int, int], groups: int = 1) -> int:  # fmt: skip
        """conv-2d or depthwise-conv-2d. quantization: input and output zero point, activation minimum and maximum."""
        (in_h, in_w, in_c), (out_h, out_w, out_c) = shapes
        macs = out_w * out_c * kernel[0] * kernel[1] * (in_c // groups)
        rest = [in_h, in_w, in_c, out_h, out_w, out_c, *kernel, *stride, *dilation, *pads, *quantization]
        target = self.tensor(out_h * out_w * out_c)
        arranged = constants[0]
        if self._is_arranged(opcode):
            if opcode == CONV_2D:
                arranged = dsp_arrangement.conv(arranged, groups, dilation[1])
            else:
                arranged = dsp_arrangement.depthwise(arranged, dilation, stride[1], out_c // groups)
        if self.arrangement == helium_arrangement.CORTEX_M_HELIUM and opcode not in INT4:
            is_conv = opcode == CONV_2D
            arranged = (
                helium_arrangement.conv(arranged, groups) if is_conv else helium_arrangement.depthwise(arranged, out_c // groups)
            )
        axis = 0 if opcode in (CONV_2D, CONV_2D_INT4) else 2
        channels = self._channels(opcode, constants, axis, quantization[0], arranged)
        return self.record(opcode, out_h, macs, source, target, *channels, *rest, groups, in_c // groups, out_c // groups)

    def dense(self, source: int, in_n: int, out_n: int, constants: tuple[np.ndarray, ...], quantization: tuple[int, ...],
              opcode: int = FULLY_CONNECTED) -> int:  # fmt: skip
        arranged = dsp_arrangement.dense(constants[0]) if self._is_arranged(opcode) else constants[0]
        rest = [*self._channels(opcode, constants, 0, quantization[0], arranged), in_n, out_n, *quantization[1:]]
        return self.record(opcode, out_n, in_n, source, self.tensor(out_n), *rest)

    def _binary(self, opcode: int, source: int, second: tuple[int, int, int], count: int, *parameters: int) -> int:
        """second: offset of the second input, whether it is constant, how many elements it has."""
        return self.record(opcode, -(-count // 64), min(count, 64), source, self.tensor(count), *second[:2], count, second[2],
                           *parameters)  # fmt: skip

    def add(self, source: int, second: tuple[int, int, int], count: int, *parameters: int) -> int:
        """parameters: three zero points, left_shift, then multiplier and shift of input 1, input 2, output; minimum, maximum."""
        return self._binary(ADD, source, second, count, *parameters)

    def mul(self, source: int, second: tuple[int, int, int], count: int, *parameters: int) -> int:
        """parameters: three zero points, multiplier, shift, minimum, maximum."""
        return self._binary(MUL, source, second, count, *parameters)

    def pool(self, opcode: int, source: int, shapes: tuple[tuple[int, int], tuple[int, int]], channels: int,
             kernel: tuple[int, int], stride: tuple[int, int], pads: tuple[int, int],
             limits: tuple[int, int]) -> int:  # fmt: skip
        (in_h, in_w), (out_h, out_w) = shapes
        target = self.tensor(out_h * out_w * channels)
        rest = [in_h, in_w, channels, out_h, out_w, *kernel, *stride, *pads, *limits]
        return self.record(opcode, out_h, out_w * channels * kernel[0] * kernel[1], source, target, *rest)

    def mean(self, source: int, shape: tuple[int, int, int], *parameters: int) -> int:
        """parameters: multiplier, shift, input and output zero point."""
        height, width, channels = shape
        return self.record(MEAN, channels, height * width, source, self.tensor(channels), *shape, *parameters)

    def pad(self, source: int, shape: tuple[int, int, int], pads: tuple[int, int, int, int], value: int) -> int:
        """pads: top, bottom, left, right."""
        height, width, channels = shape
        out_h, out_w = height + pads[0] + pads[1], width + pads[2] + pads[3]
        target = self.tensor(out_h * out_w * channels)
        return self.record(PAD, out_h, out_w * channels, source, target, *shape, out_h, out_w, pads[0], pads[2], value)

    def table(self, source: int, count: int, table: np.ndarray) -> int:
        """table: int8 (256,), of -128 first."""
        return self.record(TABLE, -(-count // 64), min(count, 64), source, self.tensor(count), self.constant(table), count)

    def softmax(self, source: int, rows: int, n: int, exponentials: np.ndarray) -> int:
        """exponentials: int32 (256,), Q31, by difference from a row's largest element."""
        return self.record(SOFTMAX, rows, n, source, self.tensor(rows * n), self.constant(exponentials), rows, n)

    def copy(self, source: int, target: int, extents: tuple[int, ...], reading: tuple[int, ...], writing: tuple[int, ...]) -> int:
        """reading, writing: where it starts, and four strides."""
        macs = extents[1] * extents[2] * extents[3]
        return self.record(STRIDED_COPY, extents[0], macs, source, target, *extents, *reading, *writing)

    def sections(self, features: int, feature_count: int, head: bytes, feature_scale: float = 0.05, feature_zero_point: int = -7,
                 encoder_bytes: int | None = None) -> list[tuple[int, bytes]]:  # fmt: skip
        scale = struct.unpack("<I", struct.pack("<f", feature_scale))[0]
        size = round_16(self.used) if encoder_bytes is None else encoder_bytes
        header = words(len(self.records), size, self.input_offset, self.input_count, features, feature_count,
                       scale, 0, scale, feature_zero_point, 1000, self.arrangement)  # fmt: skip
        plan = header + b"".join(self.records)
        return [(MANIFEST, b"\xa0"), (PLAN, plan), (WEIGHTS, bytes(self.constants)), (HEAD, head)]

    def build(self, features: int, feature_count: int, outputs: int = 3, **options: float) -> bytes:
        """A package whose head has zeros for parameters."""
        head = head_section(np.zeros((outputs, feature_count)), np.zeros(outputs))
        return assemble(self.sections(features, feature_count, head, **options))
