# SPDX-License-Identifier: Apache-2.0
"""Compiles an int8 graph into what a device runs: operator records, a weights section and arena offsets.

Everything that TensorFlow Lite Micro works out when a model is loaded (multipliers, clamps, padding, memory) is a number in the
records (protocol/SPEC.md, section 7), so a device only reads. `fixed_point` is the common source of these numbers and of
the host's integer executor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, PackageError
from fedmote.package import fixed_point, tables
from fedmote.package.arrangement import INT4, arranged, arranged_scaling
from fedmote.package.geometry import check_shapes, dense_rows, window_of, without_leading_ones
from fedmote.package.graph import ELEMENTWISE, WEIGHTED, Activation, Graph, Op, OpKind, Quantization
from fedmote.package.planner import MemoryPlan, plan_apart, plan_memory
from fedmote.package.records import PlanHeader, pack_record
from fedmote.wire.schema import Arrangement, Opcode, Status

ELEMENTWISE_UNIT = 64  # elements of one unit of ADD, MUL and tables
_WEIGHTS_ALIGN = 4
_EXTENT_MAX = 0xFFFF  # of a dimension in a record
Numbers = dict[str, int]


@dataclass(frozen=True)
class Plan:
    """A compiled graph.

    Attributes:
        header: numbers of the whole encoder.
        records: the plan section, header included.
        weights: the weights section.
        memory: where activations lie.
        units: (operator name, opcode, units, unit_macs) of each record, for people.
    """

    header: PlanHeader
    records: bytes
    weights: bytes
    memory: MemoryPlan
    units: tuple[tuple[str, Opcode, int, int], ...]


def compile_graph(graph: Graph, arrangement: Arrangement = Arrangement.PLAIN, *, is_debug: bool = False) -> Plan:
    """Compiles an int8 graph.

    Args:
        graph: the encoder.
        arrangement: order of the weights that a board's kernels want.
        is_debug: no activation is written over another one, and the features are the whole arena: whoever runs the plan gets
            every activation, at `Plan.memory.offsets`.

    Raises:
        PackageError: shapes do not match, the graph is not quantized, or its arithmetic could overflow int32.
    """
    try:
        check_shapes(graph)
    except ConversionError as error:
        raise PackageError(str(error), Status.PACKAGE_BOUNDS) from error
    memory = plan_apart(graph) if is_debug else plan_memory(graph)
    weights = _WeightsSection(arrangement)
    records, units, macs = [], [], 0
    for op in graph.ops:
        fixed_point.check_op(graph, op)
        for opcode, values in _records(graph, op, memory, weights):
            records.append(pack_record(opcode, values))
            units.append((op.name, opcode, values["units"], values["unit_macs"]))
            macs += values["units"] * values["unit_macs"] if op.kind in WEIGHTED else 0
    header = _header(graph, memory, len(records), macs, arrangement)
    if is_debug:
        header = replace(header, feature_offset=0, feature_count=header.encoder_bytes)
    return Plan(header, header.pack() + b"".join(records), weights.bytes(), memory, tuple(units))


def _header(graph: Graph, memory: MemoryPlan, op_count: int, macs: int, arrangement: Arrangement) -> PlanHeader:
    first, last = graph.activations[graph.input], graph.activations[graph.output]
    source, target = fixed_point.quantization_of(first), fixed_point.quantization_of(last)
    return PlanHeader(
        op_count=op_count,
        encoder_bytes=memory.total_bytes,
        input_offset=memory.offsets[graph.input],
        input_count=math.prod(first.shape),
        feature_offset=memory.offsets[graph.output],
        feature_count=math.prod(last.shape),
        input_scale=float(source.scale[0]),
        input_zero_point=int(source.zero_point[0]),
        feature_scale=float(target.scale[0]),
        feature_zero_point=int(target.zero_point[0]),
        macs=macs,
        arrangement=arrangement,
    )


class _WeightsSection:
    """Arrays behind each other, each at a multiple of 4; equal ones once."""

    def __init__(self, arrangement: Arrangement) -> None:
        self.arrangement = arrangement
        self._offsets: dict[bytes, int] = {}
        self._size = 0

    def add(self, array: NDArray[Any]) -> int:
        """Appends an array unless it is there; returns its offset."""
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        data += bytes(-len(data) % _WEIGHTS_ALIGN)
        if data not in self._offsets:
            self._offsets[data] = self._size
            self._size += len(data)
        return self._offsets[data]

    def bytes(self) -> bytes:
        return b"".join(self._offsets)


def _records(graph: Graph, op: Op, memory: MemoryPlan, weights: _WeightsSection) -> list[tuple[Opcode, Numbers]]:
    """The records of an operator: one, none for RESHAPE, one for each input of CONCATENATION."""
    values = {"input_offset": memory.offsets[op.inputs[0]], "output_offset": memory.offsets[op.output]}
    source = fixed_point.quantization_of(graph.activations[op.inputs[0]])
    target = fixed_point.quantization_of(graph.activations[op.output])
    shape = graph.activations[op.inputs[0]].shape
    match op.kind:
        case OpKind.CONV_2D | OpKind.DEPTHWISE_CONV_2D:
            constants = _constants(op, op, shape, source, target, weights)
            return [(_opcode(op), values | constants | _convolution(op, shape, source))]
        case OpKind.FULLY_CONNECTED:
            opcode, own = _dense(op, shape, source, target, weights)
            return [(opcode, values | own)]
        case OpKind.ADD | OpKind.MUL:
            return [(Opcode[op.kind.name], values | _binary(graph, op, memory, weights))]
        case OpKind.AVERAGE_POOL_2D | OpKind.MAX_POOL_2D:
            return [(Opcode[op.kind.name], values | _pool(op, shape, target))]
        case OpKind.MEAN:
            return [(Opcode.MEAN, values | _mean(shape, source, target))]
        case OpKind.PAD:
            return [(Opcode.PAD, values | _pad(op, shape, source))]
        case OpKind.SOFTMAX:
            return [(Opcode.SOFTMAX, values | _softmax(op, shape, source, target, weights))]
        case OpKind.RESHAPE:
            return []
        case kind if kind in ELEMENTWISE:
            count = math.prod(shape)
            table = weights.add(tables.table_of(op, source, target))
            return [(Opcode.TABLE, values | _elementwise_cost(count) | {"table": table, "count": count})]
    return _copies(graph, op, memory)


def _cost(units: int, unit_macs: int) -> Numbers:
    return {"units": units, "unit_macs": unit_macs}


def _elementwise_cost(count: int) -> Numbers:
    return _cost(-(-count // ELEMENTWISE_UNIT), min(count, ELEMENTWISE_UNIT))


def _clamp(activation: Activation, target: Quantization) -> Numbers:
    low, high = fixed_point.activation_range(activation, target)
    return {"activation_min": low, "activation_max": high}


def _opcode(op: Op) -> Opcode:
    opcode = Opcode[op.kind.name]
    return opcode if op.weight_bits == 8 else INT4[opcode]


def _constants(
    op: Op, run_as: Op, shape: tuple[int, ...], source: Quantization, target: Quantization, weights: _WeightsSection
) -> Numbers:
    """Weights, what turns sums into outputs, and the clamp; `run_as` is the operator that the record names."""
    return {
        "weights": weights.add(arranged(run_as, shape[-1], weights.arrangement)),
        "scaling": weights.add(arranged_scaling(op, source, target, weights.arrangement)),
        "output_zero_point": int(target.zero_point[0]),
        **_clamp(op.activation, target),
    }


def _dense(
    op: Op, shape: tuple[int, ...], source: Quantization, target: Quantization, weights: _WeightsSection
) -> tuple[Opcode, Numbers]:
    """One vector is multiplied as such; several are the pixels of a convolution with a kernel of one pixel."""
    outputs, inputs = np.asarray(op.weights).shape
    rows = dense_rows(op, shape)
    if rows == 1:
        vector = (1, inputs)
        numbers = _cost(outputs, inputs) | {"in_n": inputs, "out_n": outputs}
        return _opcode(op), numbers | _constants(op, op, vector, source, target, weights)
    image = (1, rows, 1, inputs)
    pixels = replace(op, kind=OpKind.CONV_2D, weights=np.asarray(op.weights, np.int8).reshape(outputs, 1, 1, inputs))
    return _opcode(pixels), _convolution(pixels, image, source) | _constants(op, pixels, image, source, target, weights)


def _convolution(op: Op, shape: tuple[int, ...], source: Quantization) -> Numbers:
    window = window_of(op, shape)
    is_depthwise = op.kind is OpKind.DEPTHWISE_CONV_2D
    weights = np.asarray(op.weights).shape
    out_c = weights[3 if is_depthwise else 0]
    group_in_c = 1 if is_depthwise else weights[3]
    groups = shape[3] // group_in_c
    taps = op.kernel[0] * op.kernel[1] * group_in_c
    return {
        **_cost(window.out_h, window.out_w * out_c * taps),
        **{"in_h": window.in_h, "in_w": window.in_w, "in_c": shape[3]},
        **{"out_h": window.out_h, "out_w": window.out_w, "out_c": out_c},
        **{"kernel_h": op.kernel[0], "kernel_w": op.kernel[1], "stride_h": op.stride[0], "stride_w": op.stride[1]},
        **{"dilation_h": op.dilation[0], "dilation_w": op.dilation[1]},
        **{"pad_top": window.pad_top, "pad_left": window.pad_left},
        "input_zero_point": int(source.zero_point[0]),
        **{"groups": groups, "group_in_c": group_in_c, "group_out_c": out_c // groups},
    }


def _binary(graph: Graph, op: Op, memory: MemoryPlan, weights: _WeightsSection) -> Numbers:
    first, target = (fixed_point.quantization_of(graph.activations[name]) for name in (op.inputs[0], op.output))
    second = fixed_point.second_operand(graph, op)
    shape = graph.activations[op.output].shape
    count = math.prod(shape)
    if op.constant is None:
        operand = graph.activations[op.inputs[1]]
        place = {"input2_offset": memory.offsets[operand.name], "input2_is_constant": 0, "count2": math.prod(operand.shape)}
    else:
        constant = _repeating(np.asarray(op.constant, np.int8), shape)
        place = {"input2_offset": weights.add(constant), "input2_is_constant": 1, "count2": constant.size}
    if op.kind is OpKind.ADD:
        numbers = {"left_shift": fixed_point.ADD_LEFT_SHIFT, **vars(fixed_point.add_requantization(op, first, second, target))}
    else:
        multiplier, shift = fixed_point.mul_requantization(first, second, target)
        numbers = {"multiplier": multiplier, "shift": shift}
    return {
        **_elementwise_cost(count),
        **place,
        **numbers,
        "count": count,
        "input1_zero_point": int(first.zero_point[0]),
        "input2_zero_point": int(second.zero_point[0]),
        "output_zero_point": int(target.zero_point[0]),
        **_clamp(op.activation, target),
    }


def _repeating(constant: NDArray[np.int8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The elements of a constant that give the whole one when they are run through again and again."""
    core = constant.reshape(without_leading_ones(constant.shape))
    return np.broadcast_to(core, shape[len(shape) - core.ndim :]).reshape(-1)


def _softmax(op: Op, shape: tuple[int, ...], source: Quantization, target: Quantization, weights: _WeightsSection) -> Numbers:
    count = shape[-1]
    if count > tables.SOFTMAX_ELEMENTS_MAX:
        raise PackageError(f"{op.name}: SOFTMAX over {count} elements; the limit is {tables.SOFTMAX_ELEMENTS_MAX}")
    rows = math.prod(shape[:-1])
    exponentials = weights.add(tables.softmax_exponentials(op, source, target))
    return {**_cost(rows, count), "exponentials": exponentials, "rows": rows, "n": count}


# ---- copies ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loop:
    """One loop of a copy: how often it runs, and how far it moves in the input and in the output, in bytes."""

    extent: int
    input_stride: int
    output_stride: int


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _copies(graph: Graph, op: Op, memory: MemoryPlan) -> list[tuple[Opcode, Numbers]]:
    """The records of an operator that only moves values."""
    shapes = [graph.activations[name].shape for name in op.inputs]
    target = graph.activations[op.output].shape
    offset = memory.offsets[op.output]
    out = _strides(target)
    copies = []
    output_start = 0
    for name, shape in zip(op.inputs, shapes, strict=True):
        steps, start = _strides(shape), 0
        extents = target
        match op.kind:
            case OpKind.CONCATENATION:
                extents = shape
            case OpKind.STRIDED_SLICE:
                start = sum(first * step for first, step in zip(op.starts, steps, strict=True))
                steps = [step * stride for step, stride in zip(op.steps, steps, strict=True)]
            case OpKind.TRANSPOSE:
                steps = [steps[axis] for axis in op.permutation]
            case OpKind.BROADCAST_TO:
                aligned = [0] * (len(target) - len(shape)) + steps
                lengths = (1,) * (len(target) - len(shape)) + shape
                steps = [step if length > 1 else 0 for step, length in zip(aligned, lengths, strict=True)]
            case _:
                raise PackageError(f"{op.name}: {op.kind} has no record", Status.PACKAGE_OPERATOR)
        loops = [_Loop(*numbers) for numbers in zip(extents, steps, out, strict=True)]
        values = {"input_offset": memory.offsets[name], "output_offset": offset, **_copy(op, loops)}
        copies.append((Opcode.STRIDED_COPY, values | {"input_start": start, "output_start": output_start}))
        output_start += shape[op.axis] * out[op.axis] if op.kind is OpKind.CONCATENATION else 0
    return copies


def _copy(op: Op, loops: list[_Loop]) -> Numbers:
    """Four loops that do the same, the outermost one first: loops over one element go, neighbours become one."""
    merged: list[_Loop] = []
    for loop in loops:
        if loop.extent == 1:
            continue
        outer = merged[-1] if merged else None
        is_continued = (
            outer is not None
            and outer.input_stride == loop.input_stride * loop.extent
            and outer.output_stride == loop.output_stride * loop.extent
            and outer.extent * loop.extent <= _EXTENT_MAX
        )
        if outer is not None and is_continued:
            merged[-1] = replace(loop, extent=outer.extent * loop.extent)
        else:
            merged.append(loop)
    if len(merged) > 4 or any(loop.extent > _EXTENT_MAX for loop in merged):
        raise PackageError(f"{op.name}: {op.kind} moves values in more than four nested loops", Status.PACKAGE_OPERATOR)
    # A single loop stays inside one unit, several give the outermost one to the units.
    idle = _Loop(1, 0, 0)
    four = [idle] * (4 - len(merged)) + merged if len(merged) < 2 else [merged[0], *[idle] * (4 - len(merged)), *merged[1:]]
    values = _cost(four[0].extent, math.prod(loop.extent for loop in four[1:]))
    for number, loop in enumerate(four):
        values[f"n{number}"] = loop.extent
        values[f"input_stride{number}"] = loop.input_stride
        values[f"output_stride{number}"] = loop.output_stride
    return values


def _pool(op: Op, shape: tuple[int, ...], target: Quantization) -> Numbers:
    window = window_of(op, shape)
    return {
        **_cost(window.out_h, window.out_w * shape[3] * op.kernel[0] * op.kernel[1]),
        **{"in_h": window.in_h, "in_w": window.in_w, "channels": shape[3], "out_h": window.out_h, "out_w": window.out_w},
        **{"kernel_h": op.kernel[0], "kernel_w": op.kernel[1], "stride_h": op.stride[0], "stride_w": op.stride[1]},
        **{"pad_top": window.pad_top, "pad_left": window.pad_left},
        **_clamp(op.activation, target),
    }


def _mean(shape: tuple[int, ...], source: Quantization, target: Quantization) -> Numbers:
    count = shape[1] * shape[2]
    multiplier, shift = fixed_point.mean_requantization(source, target, count)
    return {
        **_cost(shape[3], count),
        **{"in_h": shape[1], "in_w": shape[2], "channels": shape[3], "multiplier": multiplier, "shift": shift},
        **{"input_zero_point": int(source.zero_point[0]), "output_zero_point": int(target.zero_point[0])},
    }


def _pad(op: Op, shape: tuple[int, ...], source: Quantization) -> Numbers:
    top, bottom, left, right = op.pads
    out_h, out_w = shape[1] + top + bottom, shape[2] + left + right
    return {
        **_cost(out_h, out_w * shape[3]),
        **{"in_h": shape[1], "in_w": shape[2], "channels": shape[3], "out_h": out_h, "out_w": out_w},
        **{"pad_top": top, "pad_left": left, "value": int(source.zero_point[0]) if op.pad_value is None else op.pad_value},
    }
