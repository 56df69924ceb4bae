# SPDX-License-Identifier: Apache-2.0
"""Compiles an int8 graph into what a device runs: operator records, a weights section and arena offsets.

Everything that TensorFlow Lite Micro works out when a model is loaded (multipliers, clamps, padding, memory) is a number in the
records (protocol/SPEC.md, section 7), so a device only reads. `fixed_point` is the common source of these numbers and of
the host's integer executor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, PackageError
from fedmote.package import fixed_point
from fedmote.package.arrangement import arranged, arranged_scaling
from fedmote.package.geometry import check_shapes, window_of
from fedmote.package.graph import Activation, Graph, Op, OpKind, Quantization
from fedmote.package.planner import MemoryPlan, plan_memory
from fedmote.package.records import PlanHeader, pack_record
from fedmote.wire.schema import Arrangement, Opcode, Status

ELEMENTWISE_UNIT = 64  # elements of one unit of ADD and RELU
_WEIGHTS_ALIGN = 4
_OPCODES = {kind: Opcode[kind.name] for kind in OpKind if kind is not OpKind.RESHAPE}
_WEIGHTED = (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED)


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


def compile_graph(graph: Graph, arrangement: Arrangement = Arrangement.PLAIN) -> Plan:
    """Compiles an int8 graph, with weights in the order that a board's kernels want.

    Raises:
        PackageError: shapes do not match, the graph is not quantized, or its arithmetic could overflow int32.
    """
    try:
        check_shapes(graph)
    except ConversionError as error:
        raise PackageError(str(error), Status.PACKAGE_BOUNDS) from error
    memory = plan_memory(graph)
    weights = _WeightsSection(arrangement)
    records, units, macs = [], [], 0
    for op in graph.ops:
        fixed_point.check_op(graph, op)
        if op.kind is OpKind.RESHAPE:
            continue
        values = _record(graph, op, memory, weights)
        records.append(pack_record(_OPCODES[op.kind], values))
        units.append((op.name, _OPCODES[op.kind], values["units"], values["unit_macs"]))
        macs += values["units"] * values["unit_macs"] if op.kind in _WEIGHTED else 0
    header = _header(graph, memory, len(records), macs, arrangement)
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
    """Arrays behind each other, each at a multiple of 4."""

    def __init__(self, arrangement: Arrangement) -> None:
        self.arrangement = arrangement
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, array: NDArray[Any]) -> int:
        """Appends an array; returns its offset."""
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        offset = self._size
        data += bytes(-len(data) % _WEIGHTS_ALIGN)
        self._parts.append(data)
        self._size += len(data)
        return offset

    def bytes(self) -> bytes:
        return b"".join(self._parts)


def _record(graph: Graph, op: Op, memory: MemoryPlan, weights: _WeightsSection) -> dict[str, int]:
    values = {"input_offset": memory.offsets[op.inputs[0]], "output_offset": memory.offsets[op.output]}
    source = fixed_point.quantization_of(graph.activations[op.inputs[0]])
    target = fixed_point.quantization_of(graph.activations[op.output])
    shape = graph.activations[op.inputs[0]].shape
    match op.kind:
        case OpKind.CONV_2D | OpKind.DEPTHWISE_CONV_2D:
            return values | _weighted(op, shape, source, target, weights) | _convolution(op, shape, source)
        case OpKind.FULLY_CONNECTED:
            outputs, inputs = np.asarray(op.weights).shape
            return values | _weighted(op, shape, source, target, weights) | _cost(outputs, inputs) | {"in_n": inputs, "out_n": outputs}
        case OpKind.ADD:
            return values | _add(graph, op, memory)
        case OpKind.AVERAGE_POOL_2D | OpKind.MAX_POOL_2D:
            return values | _pool(op, shape, target)
        case OpKind.MEAN:
            return values | _mean(shape, source, target)
        case OpKind.PAD:
            return values | _pad(op, shape, source)
        case OpKind.RELU:
            return values | _relu(op, math.prod(shape), source, target)
    raise PackageError(f"{op.name}: {op.kind} has no record", Status.PACKAGE_OPERATOR)


def _cost(units: int, unit_macs: int) -> dict[str, int]:
    return {"units": units, "unit_macs": unit_macs}


def _elementwise_cost(count: int) -> dict[str, int]:
    return _cost(-(-count // ELEMENTWISE_UNIT), min(count, ELEMENTWISE_UNIT))


def _clamp(activation: Activation, target: Quantization) -> dict[str, int]:
    low, high = fixed_point.activation_range(activation, target)
    return {"activation_min": low, "activation_max": high}


def _weighted(
    op: Op, shape: tuple[int, ...], source: Quantization, target: Quantization, weights: _WeightsSection
) -> dict[str, int]:
    return {
        "weights": weights.add(arranged(op, shape[-1], weights.arrangement)),
        "scaling": weights.add(arranged_scaling(op, source, target, weights.arrangement)),
        "output_zero_point": int(target.zero_point[0]),
        **_clamp(op.activation, target),
    }


def _convolution(op: Op, shape: tuple[int, ...], source: Quantization) -> dict[str, int]:
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


def _add(graph: Graph, op: Op, memory: MemoryPlan) -> dict[str, int]:
    first, second, target = (fixed_point.quantization_of(graph.activations[name]) for name in (*op.inputs, op.output))
    numbers = fixed_point.add_requantization(op, first, second, target)
    count = math.prod(graph.activations[op.output].shape)
    return {
        **_elementwise_cost(count),
        **vars(numbers),
        "input2_offset": memory.offsets[op.inputs[1]],
        "count": count,
        "input1_zero_point": int(first.zero_point[0]),
        "input2_zero_point": int(second.zero_point[0]),
        "output_zero_point": int(target.zero_point[0]),
        "left_shift": fixed_point.ADD_LEFT_SHIFT,
        **_clamp(op.activation, target),
    }


def _pool(op: Op, shape: tuple[int, ...], target: Quantization) -> dict[str, int]:
    window = window_of(op, shape)
    return {
        **_cost(window.out_h, window.out_w * shape[3] * op.kernel[0] * op.kernel[1]),
        **{"in_h": window.in_h, "in_w": window.in_w, "channels": shape[3], "out_h": window.out_h, "out_w": window.out_w},
        **{"kernel_h": op.kernel[0], "kernel_w": op.kernel[1], "stride_h": op.stride[0], "stride_w": op.stride[1]},
        **{"pad_top": window.pad_top, "pad_left": window.pad_left},
        **_clamp(op.activation, target),
    }


def _mean(shape: tuple[int, ...], source: Quantization, target: Quantization) -> dict[str, int]:
    count = shape[1] * shape[2]
    multiplier, shift = fixed_point.mean_requantization(source, target, count)
    return {
        **_cost(shape[3], count),
        **{"in_h": shape[1], "in_w": shape[2], "channels": shape[3], "multiplier": multiplier, "shift": shift},
        **{"input_zero_point": int(source.zero_point[0]), "output_zero_point": int(target.zero_point[0])},
    }


def _pad(op: Op, shape: tuple[int, ...], source: Quantization) -> dict[str, int]:
    top, bottom, left, right = op.pads
    out_h, out_w = shape[1] + top + bottom, shape[2] + left + right
    return {
        **_cost(out_h, out_w * shape[3]),
        **{"in_h": shape[1], "in_w": shape[2], "channels": shape[3], "out_h": out_h, "out_w": out_w},
        **{"pad_top": top, "pad_left": left, "value": int(source.zero_point[0])},
    }


def _relu(op: Op, count: int, source: Quantization, target: Quantization) -> dict[str, int]:
    multiplier, shift = fixed_point.relu_requantization(source, target)
    activation = Activation.RELU if op.activation is Activation.NONE else op.activation
    return {
        **_elementwise_cost(count),
        **{"count": count, "multiplier": multiplier, "shift": shift},
        **{"input_zero_point": int(source.zero_point[0]), "output_zero_point": int(target.zero_point[0])},
        **_clamp(activation, target),
    }
