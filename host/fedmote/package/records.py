# SPDX-License-Identifier: Apache-2.0
"""Words of a compiled plan, by name: protocol/SPEC.md, section 7. Writing, checking and showing all read these tables."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedmote.wire.schema import Opcode

HEADER_WORDS: Final = 12

_COMMON: Final = ("units", "unit_macs", "input_offset", "output_offset")
_CONVOLUTION: Final = (
    *("weights", "scaling", "in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "kernel_h", "kernel_w"),
    *("stride_h", "stride_w", "dilation_h", "dilation_w", "pad_top", "pad_left", "input_zero_point", "output_zero_point"),
    *("activation_min", "activation_max", "groups", "group_in_c", "group_out_c"),
)
_POOL: Final = (
    *("in_h", "in_w", "channels", "out_h", "out_w", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left"),
    *("activation_min", "activation_max"),
)

_DENSE: Final = ("weights", "scaling", "in_n", "out_n", "output_zero_point", "activation_min", "activation_max")
_OPERANDS: Final = ("input2_offset", "input2_is_constant", "count", "count2")
_ZERO_POINTS: Final = ("input1_zero_point", "input2_zero_point", "output_zero_point")
_INPUT_STRIDES: Final = ("input_stride0", "input_stride1", "input_stride2", "input_stride3")
_OUTPUT_STRIDES: Final = ("output_stride0", "output_stride1", "output_stride2", "output_stride3")

# Names of a record's words from word 5 on; words 1 to 4 are those of _COMMON.
FIELDS: Final[dict[Opcode, tuple[str, ...]]] = {
    Opcode.CONV_2D: _CONVOLUTION,
    Opcode.DEPTHWISE_CONV_2D: _CONVOLUTION,
    Opcode.FULLY_CONNECTED: _DENSE,
    Opcode.CONV_2D_INT4: _CONVOLUTION,
    Opcode.DEPTHWISE_CONV_2D_INT4: _CONVOLUTION,
    Opcode.FULLY_CONNECTED_INT4: _DENSE,
    Opcode.ADD: (
        *(*_OPERANDS, *_ZERO_POINTS, "left_shift"),
        *("multiplier1", "shift1", "multiplier2", "shift2", "output_multiplier", "output_shift"),
        *("activation_min", "activation_max"),
    ),
    Opcode.MUL: (*_OPERANDS, *_ZERO_POINTS, "multiplier", "shift", "activation_min", "activation_max"),
    Opcode.AVERAGE_POOL_2D: _POOL,
    Opcode.MAX_POOL_2D: _POOL,
    Opcode.MEAN: ("in_h", "in_w", "channels", "multiplier", "shift", "input_zero_point", "output_zero_point"),
    Opcode.PAD: ("in_h", "in_w", "channels", "out_h", "out_w", "pad_top", "pad_left", "value"),
    Opcode.TABLE: ("table", "count"),
    Opcode.SOFTMAX: ("exponentials", "rows", "n"),
    Opcode.STRIDED_COPY: ("n0", "n1", "n2", "n3", "input_start", *_INPUT_STRIDES, "output_start", *_OUTPUT_STRIDES),
}

# Words that are signed; all others count something or say where it lies.
SIGNED: Final = frozenset(
    name
    for group in (
        ("input_zero_point", "output_zero_point", "input1_zero_point", "input2_zero_point", "value"),
        ("multiplier", "shift", "multiplier1", "shift1", "multiplier2", "shift2", "output_multiplier", "output_shift"),
        ("activation_min", "activation_max"),
        _INPUT_STRIDES,
        _OUTPUT_STRIDES,
    )
    for name in group
)


def record_words(opcode: Opcode) -> int:
    """Length of a record in words."""
    return 1 + len(_COMMON) + len(FIELDS[opcode])


def pack_record(opcode: Opcode, values: Mapping[str, int]) -> bytes:
    """One record; every named word must be there."""
    names = _COMMON + FIELDS[opcode]
    words = [int(opcode) | record_words(opcode) << 16, *(values[name] & 0xFFFFFFFF for name in names)]
    return struct.pack(f"<{len(words)}I", *words)


@dataclass(frozen=True)
class Record:
    """One record that was read: its words by name, signed where SIGNED says so."""

    opcode: Opcode
    values: dict[str, int]


def unpack_record(data: bytes, offset: int, opcode: Opcode) -> Record:
    """The record of a known opcode at `offset`; all its words must be there."""
    names = _COMMON + FIELDS[opcode]
    words = struct.unpack_from(f"<{len(names)}I", data, offset + 4)
    return Record(opcode, {name: _signed(word) if name in SIGNED else word for name, word in zip(names, words, strict=True)})


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


@dataclass(frozen=True)
class PlanHeader:
    """The first 12 words of section `plan`. Offsets and counts are bytes of int8."""

    op_count: int
    encoder_bytes: int
    input_offset: int
    input_count: int
    feature_offset: int
    feature_count: int
    input_scale: float
    input_zero_point: int
    feature_scale: float
    feature_zero_point: int
    macs: int
    arrangement: int = 0

    def pack(self) -> bytes:
        """The 48 bytes of the header."""
        return struct.pack(
            _HEADER_FORMAT,
            self.op_count,
            self.encoder_bytes,
            self.input_offset,
            self.input_count,
            self.feature_offset,
            self.feature_count,
            self.input_scale,
            self.input_zero_point,
            self.feature_scale,
            self.feature_zero_point,
            self.macs,
            self.arrangement,
        )

    @classmethod
    def unpack(cls, data: bytes) -> PlanHeader:
        """Reads the header; `data` has at least 48 bytes."""
        return cls(*struct.unpack_from(_HEADER_FORMAT, data))


_HEADER_FORMAT: Final = "<6IfifiII"
