# SPDX-License-Identifier: Apache-2.0
"""Checks of a compiled plan and head: what `device_sdk/src/package.c` checks, in its order, with its statuses.

A test opens damaged packages with both and compares the statuses. Numbers in records are unsigned 32-bit unless
`records.SIGNED` names them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from fedmote.errors import PackageError
from fedmote.package.arrangement import INT4, is_scaling, weight_bytes
from fedmote.package.records import HEADER_WORDS, PlanHeader, Record, record_words, unpack_record
from fedmote.wire import schema as wire
from fedmote.wire.schema import Arrangement, Opcode, Status

PLAN_HEADER_BYTES: Final = 4 * HEADER_WORDS
HEAD_HEADER: Final = struct.Struct("<I")  # layer_count
HEAD_LAYER: Final = struct.Struct("<4I")  # inputs, outputs, activation, reserved
_HEAD_LAYERS_MAX: Final = 2
_OP_BYTES: Final = 20  # the words that all records begin with
# Dimensions, strides and lengths of dot products: sums of that many int8 products stay below 2^31.
_DIMENSION_MAX: Final = 0xFFFF
_ADD_SHIFT_MAX: Final = 22
_BLOCK: Final = 64
_TABLE_ENTRIES: Final = 256
_SOFTMAX_ELEMENTS_MAX: Final = 4095
_SCALING_BYTES: Final = 12  # bias, multiplier, shift of a channel
Values = Mapping[str, int]


@dataclass(frozen=True)
class _Bounds:
    encoder_bytes: int
    weights: bytes
    arrangement: Arrangement = Arrangement.PLAIN


def check_plan(plan: bytes, weights: bytes) -> tuple[PlanHeader, list[Record]]:
    """Checks section `plan` against section `weights`.

    Returns:
        The header and the records.

    Raises:
        PackageError: with PACKAGE_OPERATOR or PACKAGE_BOUNDS.
    """
    if len(plan) < PLAN_HEADER_BYTES:
        raise _bounds_error(f"section plan has {len(plan)} bytes, its header {PLAN_HEADER_BYTES}")
    header = PlanHeader.unpack(plan)
    bounds = _Bounds(header.encoder_bytes, weights)
    scales = (header.input_scale, header.feature_scale)
    zero_points = (header.input_zero_point, header.feature_zero_point)
    if not all(scale > 0 and np.isfinite(scale) for scale in scales) or not _are_int8(*zero_points):
        raise _bounds_error("the plan's header has an impossible quantization")
    if not _is_tensor(bounds, header.input_offset, header.input_count):
        raise _bounds_error("the encoder's input lies outside its arena")
    if not _is_tensor(bounds, header.feature_offset, header.feature_count):
        raise _bounds_error("the features lie outside the encoder's arena")
    if header.arrangement not in set(Arrangement):
        raise PackageError(f"the order of its weights, {header.arrangement}, is unknown", Status.PACKAGE_ARRANGEMENT)
    bounds = _Bounds(header.encoder_bytes, weights, Arrangement(header.arrangement))
    return header, _check_records(plan, header.op_count, bounds)


def _check_records(plan: bytes, op_count: int, bounds: _Bounds) -> list[Record]:
    records: list[Record] = []
    offset = PLAN_HEADER_BYTES
    for index in range(op_count):
        if not _is_inside(offset, _OP_BYTES, len(plan)):
            raise _bounds_error(f"operator {index} lies outside section plan")
        (first,) = struct.unpack_from("<I", plan, offset)
        try:
            opcode = Opcode(first & 0xFFFF)
        except ValueError as error:
            raise PackageError(f"operator {index} has the unknown code {first & 0xFFFF}", Status.PACKAGE_OPERATOR) from error
        words = record_words(opcode)
        if first >> 16 != words or not _is_inside(offset, 4 * words, len(plan)):
            raise _bounds_error(f"operator {index} ({opcode.name.lower()}) has {first >> 16} words, expected {words}")
        record = unpack_record(plan, offset, opcode)
        if not _CHECKS[opcode](record.values, bounds):
            raise _bounds_error(
                f"operator {index} ({opcode.name.lower()}): a number is outside its range or its tensor outside memory"
            )
        records.append(record)
        offset += 4 * words
    return records


def check_head(head: bytes, features: int) -> list[tuple[int, int, bool]]:
    """Checks section `head` against the number of features.

    Returns:
        (inputs, outputs, is_relu) of each layer.

    Raises:
        PackageError: with PACKAGE_HEAD.
    """
    (count,) = HEAD_HEADER.unpack_from(head) if len(head) >= HEAD_HEADER.size else (0,)
    size = HEAD_HEADER.size + HEAD_LAYER.size * count
    if not 1 <= count <= _HEAD_LAYERS_MAX or len(head) < size:
        raise PackageError(f"section head has {len(head)} bytes, {count} layers; devices train one or two", Status.PACKAGE_HEAD)
    layers: list[tuple[int, int, bool]] = []
    expected = features
    for number in range(count):
        inputs, outputs, activation, reserved = HEAD_LAYER.unpack_from(head, HEAD_HEADER.size + HEAD_LAYER.size * number)
        is_last = number == count - 1
        highest = wire.Activation.NONE if is_last else wire.Activation.RELU
        if inputs != expected or not _are_dimensions(outputs) or activation > highest or reserved:
            raise PackageError(
                f"layer {number} of the head, {inputs} inputs, {outputs} outputs, activation {activation}, does not suit "
                f"{expected} features",
                Status.PACKAGE_HEAD,
            )
        layers.append((inputs, outputs, activation == wire.Activation.RELU))
        expected = outputs
    if 4 * sum((inputs + 1) * outputs for inputs, outputs, _ in layers) != len(head) - size:
        raise PackageError(f"the head has {len(head) - size} bytes of parameters", Status.PACKAGE_HEAD)
    return layers


def _bounds_error(message: str) -> PackageError:
    return PackageError(message, Status.PACKAGE_BOUNDS)


def _is_inside(offset: int, count: int, size: int) -> bool:
    return offset <= size and count <= size - offset


def _are_dimensions(*values: int) -> bool:
    return all(1 <= value <= _DIMENSION_MAX for value in values)


def _are_int8(*values: int) -> bool:
    return all(-128 <= value <= 127 for value in values)


def _is_activation(v: Values) -> bool:
    return _are_int8(v["activation_min"], v["activation_max"]) and v["activation_min"] <= v["activation_max"]


def _is_scaling(multiplier: int, shift: int) -> bool:
    return multiplier >= 0 and -31 <= shift <= 30


def _is_tensor(bounds: _Bounds, offset: int, count: int) -> bool:
    return offset % 16 == 0 and count >= 1 and _is_inside(offset, count, bounds.encoder_bytes)


def _are_images(v: Values, bounds: _Bounds, channels: str, out_channels: str) -> bool:
    source = v["in_h"] * v["in_w"] * v[channels]
    target = v["out_h"] * v["out_w"] * v[out_channels]
    return _is_tensor(bounds, v["input_offset"], source) and _is_tensor(bounds, v["output_offset"], target)


def _is_constant(bounds: _Bounds, offset: int, count: int) -> bool:
    return offset % 4 == 0 and _is_inside(offset, count, len(bounds.weights))


def _are_channels(v: Values, bounds: _Bounds, opcode: Opcode, outputs: int) -> bool:
    sizes = {"weights": weight_bytes(opcode, v, bounds.arrangement), "scaling": _SCALING_BYTES * outputs}
    if not all(_is_constant(bounds, v[name], size) for name, size in sizes.items()):
        return False
    scaling = np.frombuffer(bounds.weights, "<i4", 3 * outputs, v["scaling"]).reshape(outputs, 3)
    return is_scaling(scaling, Arrangement.PLAIN if opcode in INT4.values() else bounds.arrangement)


def _is_axis(out: int, kernel: int, stride: int, dilation: int, pad: int) -> bool:
    """One axis of a sliding window: all coordinates that it touches fit into int32."""
    reach = (out - 1) * stride + (kernel - 1) * dilation
    return _are_dimensions(kernel, stride, dilation) and pad <= _DIMENSION_MAX and reach <= 2**31 - 1 - _DIMENSION_MAX


def _meets_input(size: int, out: int, kernel: int, stride: int, pad: int) -> bool:
    """Every window holds at least one element of the input."""
    return pad < kernel and (out - 1) * stride < size + pad


def _is_unit(v: Values, units: int, macs: int) -> bool:
    """The pieces of an operator, and that none costs more than it says: the bound of a device's step rests on it."""
    return v["units"] == units and v["unit_macs"] >= macs


def _is_conv(v: Values, bounds: _Bounds, opcode: Opcode) -> bool:
    if not _are_dimensions(*(v[name] for name in ("in_h", "in_w", "in_c", "out_h", "out_w", "out_c"))):
        return False
    if not _is_axis(v["out_h"], v["kernel_h"], v["stride_h"], v["dilation_h"], v["pad_top"]):
        return False
    if not _is_axis(v["out_w"], v["kernel_w"], v["stride_w"], v["dilation_w"], v["pad_left"]):
        return False
    if not _are_dimensions(*(v[name] for name in ("groups", "group_in_c", "group_out_c"))):
        return False
    products = v["kernel_h"] * v["kernel_w"] * v["group_in_c"]
    return (
        products <= _DIMENSION_MAX
        and v["groups"] * v["group_in_c"] == v["in_c"]
        and v["groups"] * v["group_out_c"] == v["out_c"]
        and (v["group_in_c"] == 1 or opcode in (Opcode.CONV_2D, Opcode.CONV_2D_INT4))
        and _is_unit(v, v["out_h"], v["out_w"] * v["out_c"] * products)
        and _are_images(v, bounds, "in_c", "out_c")
        and _are_channels(v, bounds, opcode, v["out_c"])
        and _are_int8(v["input_zero_point"], v["output_zero_point"])
        and _is_activation(v)
    )


def _is_dense(v: Values, bounds: _Bounds, opcode: Opcode) -> bool:
    return (
        _are_dimensions(v["in_n"], v["out_n"])
        and _is_unit(v, v["out_n"], v["in_n"])
        and _is_tensor(bounds, v["input_offset"], v["in_n"])
        and _is_tensor(bounds, v["output_offset"], v["out_n"])
        and _are_channels(v, bounds, opcode, v["out_n"])
        and _are_int8(v["output_zero_point"])
        and _is_activation(v)
    )


def _are_blocks(v: Values, bounds: _Bounds) -> bool:
    """Elementwise operators: blocks of 64, input and output of one size."""
    return _is_unit(v, -(-v["count"] // _BLOCK), min(v["count"], _BLOCK)) and all(
        _is_tensor(bounds, v[name], v["count"]) for name in ("input_offset", "output_offset")
    )


def _are_operands(v: Values, bounds: _Bounds) -> bool:
    """The two inputs of add and mul; the second may repeat and may be constant."""
    if not 1 <= v["count2"] <= v["count"] or v["input2_is_constant"] > 1:
        return False
    is_there = _is_constant if v["input2_is_constant"] else _is_tensor
    return (
        _are_blocks(v, bounds)
        and is_there(bounds, v["input2_offset"], v["count2"])
        and _are_int8(v["input1_zero_point"], v["input2_zero_point"], v["output_zero_point"])
        and _is_activation(v)
    )


def _is_sum(v: Values, bounds: _Bounds) -> bool:
    return (
        _are_operands(v, bounds)
        and v["left_shift"] <= _ADD_SHIFT_MAX
        and _is_scaling(v["multiplier1"], v["shift1"])
        and _is_scaling(v["multiplier2"], v["shift2"])
        and _is_scaling(v["output_multiplier"], v["output_shift"])
        and max(v["shift1"], v["shift2"]) <= 0
    )


def _is_product(v: Values, bounds: _Bounds) -> bool:
    return _are_operands(v, bounds) and _is_scaling(v["multiplier"], v["shift"])


def _is_table(v: Values, bounds: _Bounds) -> bool:
    return _are_blocks(v, bounds) and _is_constant(bounds, v["table"], _TABLE_ENTRIES)


def _is_softmax(v: Values, bounds: _Bounds) -> bool:
    """The first exponential and the bound of a row keep the sum within [2^19, 2^31); differences stay inside the table."""
    if not (
        _are_dimensions(v["rows"], v["n"])
        and v["n"] <= _SOFTMAX_ELEMENTS_MAX
        and _is_unit(v, v["rows"], v["n"])
        and all(_is_tensor(bounds, v[name], v["rows"] * v["n"]) for name in ("input_offset", "output_offset"))
        and (v["input_offset"] == v["output_offset"] or abs(v["input_offset"] - v["output_offset"]) >= v["rows"] * v["n"])
        and _is_constant(bounds, v["exponentials"], 4 * _TABLE_ENTRIES)
    ):
        return False
    exponentials = np.frombuffer(bounds.weights, "<i4", _TABLE_ENTRIES, v["exponentials"])
    return bool(exponentials[0] == 2**31 - 1 and (exponentials >= 0).all())


def _is_copy(v: Values, bounds: _Bounds) -> bool:
    extents = [v[f"n{i}"] for i in range(4)]
    return (
        _are_dimensions(*extents)
        and _is_unit(v, extents[0], extents[1] * extents[2] * extents[3])
        and all(
            _is_walk(bounds, v[f"{side}_offset"], v[f"{side}_start"], extents, [v[f"{side}_stride{i}"] for i in range(4)])
            for side in ("input", "output")
        )
    )


def _is_walk(bounds: _Bounds, offset: int, start: int, extents: list[int], strides: list[int]) -> bool:
    """Whether all bytes from offset + start on, by those strides, lie in the arena."""
    reaches = [(extent - 1) * stride for extent, stride in zip(extents, strides, strict=True)]
    lowest = offset + start + sum(reach for reach in reaches if reach < 0)
    highest = offset + start + sum(reach for reach in reaches if reach > 0)
    return offset % 16 == 0 and lowest >= 0 and highest < bounds.encoder_bytes


def _is_pool(v: Values, bounds: _Bounds) -> bool:
    if not _are_dimensions(*(v[name] for name in ("in_h", "in_w", "channels", "out_h", "out_w"))):
        return False
    return (
        _is_axis(v["out_h"], v["kernel_h"], v["stride_h"], 1, v["pad_top"])
        and _is_axis(v["out_w"], v["kernel_w"], v["stride_w"], 1, v["pad_left"])
        and v["kernel_h"] * v["kernel_w"] <= _DIMENSION_MAX
        and _meets_input(v["in_h"], v["out_h"], v["kernel_h"], v["stride_h"], v["pad_top"])
        and _meets_input(v["in_w"], v["out_w"], v["kernel_w"], v["stride_w"], v["pad_left"])
        and _is_unit(v, v["out_h"], v["out_w"] * v["channels"] * v["kernel_h"] * v["kernel_w"])
        and _are_images(v, bounds, "channels", "channels")
        and _is_activation(v)
    )


def _is_mean(v: Values, bounds: _Bounds) -> bool:
    return (
        _are_dimensions(v["in_h"], v["in_w"], v["channels"])
        and v["in_h"] * v["in_w"] <= _DIMENSION_MAX
        and _is_unit(v, v["channels"], v["in_h"] * v["in_w"])
        and _is_tensor(bounds, v["input_offset"], v["in_h"] * v["in_w"] * v["channels"])
        and _is_tensor(bounds, v["output_offset"], v["channels"])
        and _is_scaling(v["multiplier"], v["shift"])
        and _are_int8(v["input_zero_point"], v["output_zero_point"])
    )


def _is_pad(v: Values, bounds: _Bounds) -> bool:
    return (
        _are_dimensions(*(v[name] for name in ("in_h", "in_w", "channels", "out_h", "out_w")))
        and _is_inside(v["pad_top"], v["in_h"], v["out_h"])
        and _is_inside(v["pad_left"], v["in_w"], v["out_w"])
        and _is_unit(v, v["out_h"], v["out_w"] * v["channels"])
        and _are_images(v, bounds, "channels", "channels")
        and _are_int8(v["value"])
    )


_CHECKS: Final[dict[Opcode, Callable[[Values, _Bounds], bool]]] = {
    **{opcode: partial(_is_conv, opcode=opcode) for opcode in (Opcode.CONV_2D, Opcode.CONV_2D_INT4)},
    **{opcode: partial(_is_conv, opcode=opcode) for opcode in (Opcode.DEPTHWISE_CONV_2D, Opcode.DEPTHWISE_CONV_2D_INT4)},
    **{opcode: partial(_is_dense, opcode=opcode) for opcode in (Opcode.FULLY_CONNECTED, Opcode.FULLY_CONNECTED_INT4)},
    Opcode.ADD: _is_sum,
    Opcode.MUL: _is_product,
    Opcode.AVERAGE_POOL_2D: _is_pool,
    Opcode.MAX_POOL_2D: _is_pool,
    Opcode.MEAN: _is_mean,
    Opcode.PAD: _is_pad,
    Opcode.TABLE: _is_table,
    Opcode.SOFTMAX: _is_softmax,
    Opcode.STRIDED_COPY: _is_copy,
}
