# SPDX-License-Identifier: Apache-2.0
"""Writes an int8 graph as a `.tflite` file: the TensorFlow Lite schema straight with the flatbuffers builder.

The layout is slim, for flash: short tensor names, one shared vector of zero points per length, no quantization record on
biases (kernels work with input scale * weight scale), no metadata. One exception: TensorFlow Lite Micro compares the bias scale
of a FULLY_CONNECTED with a single weight scale, so that bias keeps its record.

Same graph, same bytes; with the same operators and shapes the length is the same whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from fedmote.errors import PackageError
from fedmote.package import fixed_point
from fedmote.package import tflite_schema as schema
from fedmote.package.arrangement import pack_int4
from fedmote.package.graph import Activation, Graph, Op, OpKind, Quantization

_BUFFER_ALIGN = 16  # the schema's force_align: interpreters read weights in place
Field = tuple[int, Any, Any]  # number, value, default


def write(graph: Graph) -> bytes:
    """The bytes of a `.tflite` file with one subgraph, int8 in and out.

    Raises:
        PackageError: the graph is not quantized.
    """
    return _Writer(graph).finish()


def write_numbered(graph: Graph) -> tuple[bytes, dict[str, int]]:
    """The same, and the numbers of its activations in the file: interpreters hand out tensors by number.

    Raises:
        PackageError: the graph is not quantized.
    """
    writer = _Writer(graph)
    return writer.finish(), writer._tensor_of


class _Writer:
    """One file in the making. Flatbuffers are built backwards: children before parents."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._builder: Any = flatbuffers.Builder(1024)
        self._buffers: list[bytes] = [b""]  # buffer 0 is the empty one, by convention
        self._tensors: list[Callable[[], int]] = []
        self._tensor_of: dict[str, int] = {}
        self._zero_points: dict[int, int] = {}
        self._quantizations: dict[tuple[float, int], int] = {}

    def finish(self) -> bytes:
        graph, builder = self._graph, self._builder
        self._tensor_of[graph.input] = self._add_activation(graph.input, "x")
        nodes = [self._add_op(op, index) for index, op in enumerate(graph.ops)]
        codes = list(dict.fromkeys(_operator_key(op) for op in graph.ops))
        # What is built first lies at the end of the file: the weights, behind all structure.
        buffers = self._tables([self._buffer_builder(data) for data in self._buffers])
        tensors = self._tables(self._tensors)
        operators = self._tables([self._operator_builder(node, codes) for node in nodes])
        inputs = self._int32s([self._tensor_of[graph.input]])
        outputs = self._int32s([self._tensor_of[graph.output]])
        subgraph = self._table(
            schema.SubGraph.COUNT,
            (schema.SubGraph.TENSORS, tensors, None),
            (schema.SubGraph.INPUTS, inputs, None),
            (schema.SubGraph.OUTPUTS, outputs, None),
            (schema.SubGraph.OPERATORS, operators, None),
        )
        subgraphs = self._offsets([subgraph])
        operator_codes = self._tables([lambda key=key: self._operator_code(*key) for key in codes])  # type: ignore[misc]
        builder.StartObject(schema.Model.COUNT)
        builder.PrependUint32Slot(schema.Model.VERSION, schema.VERSION, 0)
        builder.PrependUOffsetTRelativeSlot(schema.Model.OPERATOR_CODES, operator_codes, 0)
        builder.PrependUOffsetTRelativeSlot(schema.Model.SUBGRAPHS, subgraphs, 0)
        builder.PrependUOffsetTRelativeSlot(schema.Model.BUFFERS, buffers, 0)
        builder.Finish(builder.EndObject(), file_identifier=schema.FILE_IDENTIFIER)
        return bytes(builder.Output())

    # ---- graph -> tensors -------------------------------------------------------------------------------

    def _add_activation(self, name: str, label: str) -> int:
        activation = self._graph.activations[name]
        quantization = fixed_point.quantization_of(activation)
        return self._add_tensor(label, activation.shape, schema.TYPE_INT8, None, quantization)

    def _add_tensor(
        self,
        label: str,
        shape: Sequence[int],
        kind: int,
        data: NDArray[Any] | None,
        quantization: Quantization | None,
    ) -> int:
        buffer = 0
        if data is not None:
            buffer = len(self._buffers)
            self._buffers.append(np.ascontiguousarray(data).astype(data.dtype.newbyteorder("<")).tobytes())

        def build() -> int:
            name = self._builder.CreateString(label)
            record = None if quantization is None else self._quantization(quantization)
            dimensions = self._int32s(shape)
            return self._table(
                schema.Tensor.COUNT,
                (schema.Tensor.SHAPE, dimensions, None),
                (schema.Tensor.TYPE, ("Int8", kind), 0),
                (schema.Tensor.BUFFER, ("Uint32", buffer), 0),
                (schema.Tensor.NAME, name, None),
                (schema.Tensor.QUANTIZATION, record, None),
            )

        self._tensors.append(build)
        return len(self._tensors) - 1

    def _add_op(self, op: Op, index: int) -> tuple[Op, list[int], int]:
        """Adds the operator's constant tensors and its output. Returns (op, input tensors, output tensor)."""
        inputs = [self._tensor_of[name] for name in op.inputs]
        if op.weights is not None:
            inputs += self._add_weights(op, index)
        elif op.constant is not None:
            quantization = fixed_point.second_operand(self._graph, op)
            inputs.append(self._add_tensor(f"k{index}", op.constant.shape, schema.TYPE_INT8, op.constant, quantization))
        for label, values in self._parameters(op).items():
            parameter = np.array(values, np.int32)
            inputs.append(self._add_tensor(f"{label}{index}", parameter.shape, schema.TYPE_INT32, parameter, None))
        if op.kind is OpKind.PAD and op.pad_value is not None:
            quantization = fixed_point.quantization_of(self._graph.activations[op.output])
            value = np.array([op.pad_value], np.int8)
            inputs.append(self._add_tensor(f"k{index}", (1,), schema.TYPE_INT8, value, quantization))
        label = "y" if op.output == self._graph.output else f"a{index}"
        self._tensor_of[op.output] = self._add_activation(op.output, label)
        return op, inputs, self._tensor_of[op.output]

    def _parameters(self, op: Op) -> dict[str, Sequence[Any]]:
        """Constant int32 inputs of an operator, in order, by the first letter of their tensors."""
        shape = self._graph.activations[op.output].shape
        match op.kind:
            case OpKind.PAD:
                return {"p": [[0, 0], op.pads[:2], op.pads[2:], [0, 0]]}
            case OpKind.MEAN:
                return {"d": [1, 2]}
            case OpKind.RESHAPE | OpKind.BROADCAST_TO:
                return {"s": shape}
            case OpKind.TRANSPOSE:
                return {"t": op.permutation}
            case OpKind.STRIDED_SLICE:
                return {"f": op.starts, "l": _slice_ends(op, shape), "i": op.steps}
        return {}

    def _add_weights(self, op: Op, index: int) -> list[int]:
        if op.weights is None or op.bias is None or op.weight_quantization is None or op.weights.dtype != np.int8:
            raise PackageError(f"{op.name}: {op.kind} is not quantized")
        scales = op.weight_quantization
        if op.weight_bits == 4:
            weights = self._add_tensor(f"w{index}", op.weights.shape, schema.TYPE_INT4, pack_int4(op.weights), scales)
        else:
            weights = self._add_tensor(f"w{index}", op.weights.shape, schema.TYPE_INT8, op.weights, scales)
        bias_quantization = None
        if scales.scale.size == 1:
            source = fixed_point.quantization_of(self._graph.activations[op.inputs[0]])
            product = np.array([source.scale[0] * scales.scale[0]], np.float32)
            bias_quantization = Quantization(product, np.zeros(1, np.int64))
        bias = np.asarray(op.bias, np.int32)
        return [weights, self._add_tensor(f"b{index}", bias.shape, schema.TYPE_INT32, bias, bias_quantization)]

    # ---- pieces of a flatbuffer -------------------------------------------------------------------------

    def _table(self, count: int, *fields: Field) -> int:
        """A table; a value is None (left out), an offset, or (type, number) with the default that is left out."""
        builder = self._builder
        builder.StartObject(count)
        for number, value, default in fields:
            if isinstance(value, tuple):
                getattr(builder, f"Prepend{value[0]}Slot")(number, value[1], default)
            elif value is not None:
                builder.PrependUOffsetTRelativeSlot(number, value, 0)
        return int(builder.EndObject())

    def _tables(self, builders: Sequence[Callable[[], int]]) -> int:
        return self._offsets([build() for build in builders])

    def _offsets(self, offsets: Sequence[int]) -> int:
        self._builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        return int(self._builder.EndVector())

    def _int32s(self, values: Sequence[int]) -> int:
        return int(self._builder.CreateNumpyVector(np.array(values, np.int32)))

    def _quantization(self, quantization: Quantization) -> int:
        """Per-tensor records are shared by value, per-channel ones share their zero points by length."""
        per_tensor = (float(quantization.scale[0]), int(quantization.zero_point[0]))
        is_shared = quantization.scale.size == 1
        if is_shared and per_tensor in self._quantizations:
            return self._quantizations[per_tensor]
        zero_points = self._zero_point_vector(quantization.zero_point)
        scales = int(self._builder.CreateNumpyVector(quantization.scale.astype(np.float32)))
        offset = self._table(
            schema.QuantizationParameters.COUNT,
            (schema.QuantizationParameters.SCALE, scales, None),
            (schema.QuantizationParameters.ZERO_POINT, zero_points, None),
            (schema.QuantizationParameters.QUANTIZED_DIMENSION, ("Int32", quantization.axis), 0),
        )
        if is_shared:
            self._quantizations[per_tensor] = offset
        return offset

    def _zero_point_vector(self, zero_points: NDArray[np.int64]) -> int:
        if zero_points.any() or zero_points.size == 1:
            return int(self._builder.CreateNumpyVector(zero_points.astype(np.int64)))
        if zero_points.size not in self._zero_points:
            self._zero_points[zero_points.size] = int(self._builder.CreateNumpyVector(zero_points.astype(np.int64)))
        return self._zero_points[zero_points.size]

    def _buffer_builder(self, data: bytes) -> Callable[[], int]:
        def build() -> int:
            vector = self._aligned_bytes(data) if data else None
            return self._table(schema.Buffer.COUNT, (schema.Buffer.DATA, vector, None))

        return build

    def _aligned_bytes(self, data: bytes) -> int:
        builder = self._builder
        builder.StartVector(1, len(data), _BUFFER_ALIGN)
        builder.head = builder.Head() - len(data)
        builder.Bytes[builder.Head() : builder.Head() + len(data)] = data
        return int(builder.EndVector())

    def _operator_code(self, code: int, version: int) -> int:
        return self._table(
            schema.OperatorCode.COUNT,
            (schema.OperatorCode.DEPRECATED_BUILTIN_CODE, ("Int8", min(code, 127)), 0),
            (schema.OperatorCode.VERSION, ("Int32", version), 1),
            (schema.OperatorCode.BUILTIN_CODE, ("Int32", code), 0),
        )

    def _operator_builder(self, node: tuple[Op, list[int], int], codes: list[tuple[int, int]]) -> Callable[[], int]:
        op, inputs, output = node

        def build() -> int:
            union, options = self._options(op)
            input_vector = self._int32s(inputs)
            output_vector = self._int32s([output])
            return self._table(
                schema.Operator.COUNT,
                (schema.Operator.OPCODE_INDEX, ("Uint32", codes.index(_operator_key(op))), 0),
                (schema.Operator.INPUTS, input_vector, None),
                (schema.Operator.OUTPUTS, output_vector, None),
                (schema.Operator.BUILTIN_OPTIONS_TYPE, ("Uint8", union), 0),
                (schema.Operator.BUILTIN_OPTIONS, options, None),
            )

        return build

    def _options(self, op: Op) -> tuple[int, int | None]:
        """The union's type and the offset of its table."""
        activation = ("Int8", schema.ACTIVATION_CODES[op.activation])
        padding = ("Int8", schema.PADDING_CODES[op.padding])
        stride_h, stride_w = (("Int32", stride) for stride in op.stride)
        dilation_h, dilation_w = (("Int32", dilation) for dilation in op.dilation)
        if op.kind is OpKind.CONV_2D:
            conv = schema.Conv2DOptions
            fields: list[Field] = [(conv.PADDING, padding, 0), (conv.STRIDE_W, stride_w, 0), (conv.STRIDE_H, stride_h, 0)]
            fields += [(conv.ACTIVATION, activation, 0), (conv.DILATION_W, dilation_w, 1), (conv.DILATION_H, dilation_h, 1)]
            return conv.UNION, self._table(conv.COUNT, *fields)
        if op.kind is OpKind.DEPTHWISE_CONV_2D:
            depthwise = schema.DepthwiseConv2DOptions
            fields = [(depthwise.PADDING, padding, 0), (depthwise.STRIDE_W, stride_w, 0), (depthwise.STRIDE_H, stride_h, 0)]
            fields += [(depthwise.DEPTH_MULTIPLIER, ("Int32", op.depth_multiplier), 0), (depthwise.ACTIVATION, activation, 0)]
            fields += [(depthwise.DILATION_W, dilation_w, 1), (depthwise.DILATION_H, dilation_h, 1)]
            return depthwise.UNION, self._table(depthwise.COUNT, *fields)
        if op.kind in (OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D):
            pool = schema.Pool2DOptions
            fields = [(pool.PADDING, padding, 0), (pool.STRIDE_W, stride_w, 0), (pool.STRIDE_H, stride_h, 0)]
            fields += [(pool.FILTER_W, ("Int32", op.kernel[1]), 0), (pool.FILTER_H, ("Int32", op.kernel[0]), 0)]
            fields += [(pool.ACTIVATION, activation, 0)]
            return pool.UNION, self._table(pool.COUNT, *fields)
        return self._small_options(op, activation)

    def _small_options(self, op: Op, activation: tuple[str, int]) -> tuple[int, int | None]:
        shape = self._graph.activations[op.output].shape
        match op.kind:
            case OpKind.FULLY_CONNECTED:
                dense = schema.FullyConnectedOptions
                fields: list[Field] = [(dense.ACTIVATION, activation, 0)]
                if len(shape) > 2:
                    fields.append((dense.KEEP_NUM_DIMS, ("Bool", True), 0))
                return dense.UNION, self._table(dense.COUNT, *fields)
            case OpKind.ADD:
                return schema.AddOptions.UNION, self._table(
                    schema.AddOptions.COUNT, (schema.AddOptions.ACTIVATION, activation, 0)
                )
            case OpKind.MUL:
                return schema.MulOptions.UNION, self._table(
                    schema.MulOptions.COUNT, (schema.MulOptions.ACTIVATION, activation, 0)
                )
            case OpKind.MEAN:
                reducer = schema.ReducerOptions
                return reducer.UNION, self._table(reducer.COUNT, (reducer.KEEP_DIMS, ("Bool", len(shape) == 4), 0))
            case OpKind.RESHAPE:
                new_shape = self._int32s(shape)
                reshape = schema.ReshapeOptions
                return reshape.UNION, self._table(reshape.COUNT, (reshape.NEW_SHAPE, new_shape, None))
            case OpKind.CONCATENATION:
                concatenation = schema.ConcatenationOptions
                axis = (concatenation.AXIS, ("Int32", op.axis), 0)
                return concatenation.UNION, self._table(concatenation.COUNT, axis)
            case OpKind.SOFTMAX:
                softmax = schema.SoftmaxOptions
                return softmax.UNION, self._table(softmax.COUNT, (softmax.BETA, ("Float32", op.beta), 0.0))
            case OpKind.LEAKY_RELU:
                leaky = schema.LeakyReluOptions
                return leaky.UNION, self._table(leaky.COUNT, (leaky.ALPHA, ("Float32", op.alpha), 0.0))
            case OpKind.STRIDED_SLICE:
                strided = schema.StridedSliceOptions
                ends = _slice_ends(op, shape)
                mask = sum(1 << axis for axis, end in enumerate(ends) if end < 0)
                return strided.UNION, self._table(strided.COUNT, (strided.END_MASK, ("Int32", mask), 0))
        unions = {
            OpKind.PAD: schema.PadOptions if op.pad_value is None else schema.PadV2Options,
            OpKind.TRANSPOSE: schema.TransposeOptions,
            OpKind.QUANTIZE: schema.QuantizeOptions,
            OpKind.HARD_SWISH: schema.HardSwishOptions,
            OpKind.BROADCAST_TO: schema.BroadcastToOptions,
        }
        if op.kind in unions:
            return unions[op.kind].UNION, self._table(unions[op.kind].COUNT)
        return 0, None


def _slice_ends(op: Op, shape: tuple[int, ...]) -> list[int]:
    """Index behind the last element of each axis; -1 in front of the first one is said by a mask."""
    return [
        start + (length - 1) * step + (1 if step > 0 else -1)
        for start, step, length in zip(op.starts, op.steps, shape, strict=True)
    ]


_RELU_KEYS = {
    Activation.RELU6: (schema.RELU6_CODE, 2),
    Activation.RELU_N1_TO_1: (schema.RELU_N1_TO_1_CODE, 1),
}
# Lowest versions that have int8 (and, where there are weights, a scale per channel); 2 for all others.
_VERSIONS = {
    OpKind.CONV_2D: 3,
    OpKind.DEPTHWISE_CONV_2D: 3,
    OpKind.FULLY_CONNECTED: 4,
    OpKind.RESHAPE: 1,
    OpKind.HARD_SWISH: 1,
    OpKind.QUANTIZE: 1,
}


def _operator_key(op: Op) -> tuple[int, int]:
    """(builtin code, version)."""
    if op.kind is OpKind.RELU and op.activation in _RELU_KEYS:
        return _RELU_KEYS[op.activation]
    if op.kind is OpKind.PAD and op.pad_value is not None:
        return schema.PADV2_CODE, 2
    return schema.BUILTIN_CODES[op.kind], _VERSIONS.get(op.kind, 2)
