# SPDX-License-Identifier: Apache-2.0
"""Reads int8 `.tflite` files, whoever made them, as graphs.

Accepted: one subgraph, one input, one output, static shapes with batch 1, int8 activations with one scale, int8 weights with
one scale or one per output channel, int32 biases. Everything else is refused with the operator's name, version and node.
The bytes are not trusted: every offset is checked before it is followed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, PackageError, UnsupportedOpError
from fedmote.package import tflite_schema as schema
from fedmote.package.geometry import check_shapes
from fedmote.package.graph import Activation, Activations, Graph, Op, OpKind, Quantization

_DTYPES: Final = {schema.TYPE_INT8: "<i1", schema.TYPE_INT32: "<i4", schema.TYPE_INT64: "<i8", schema.TYPE_FLOAT32: "<f4"}
_KINDS: Final = {code: kind for kind, code in schema.BUILTIN_CODES.items()} | {schema.RELU6_CODE: OpKind.RELU}
_ACTIVATIONS: Final = {code: activation for activation, code in schema.ACTIVATION_CODES.items()}
_PADDINGS: Final = {code: padding for padding, code in schema.PADDING_CODES.items()}
_MAX_ITEMS: Final = 100_000  # tensors, operators or buffers of one file; microcontroller models have hundreds
_MAX_PIXELS: Final = 1 << 24  # bytes of one activation


def read(data: bytes, name: str, *, is_softmax_dropped: bool = False) -> Graph:
    """Reads a file.

    Args:
        data: its bytes.
        name: of the file, for messages.
        is_softmax_dropped: leave out a SOFTMAX that makes the output, as heads that are trained on a device do.

    Raises:
        PackageError: no `.tflite` file, truncated, or inconsistent.
        UnsupportedOpError: an operator, type or form that has no place in an encoder.
    """
    try:
        graph = _Reader(data, name, is_softmax_dropped).graph()
        check_shapes(graph)
    except UnsupportedOpError as error:
        raise UnsupportedOpError(f"{name}: {error.node}", error.reason, error.hint) from error
    except ConversionError as error:
        raise PackageError(f"{name}: {error}") from error
    return graph


def has_softmax(data: bytes, name: str) -> bool:
    """Whether the file's last operator is SOFTMAX.

    Raises:
        PackageError: no `.tflite` file, or truncated.
    """
    return _Reader(data, name, False).has_softmax()


class _Bytes:
    """Checked access to a flatbuffer."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name

    def number(self, form: str, offset: int) -> int:
        if offset < 0 or offset + struct.calcsize(form) > len(self.data):
            raise PackageError(f"{self.name}: the file is truncated or damaged at offset {offset}")
        return int(struct.unpack_from(form, self.data, offset)[0])

    def root(self) -> _Table:
        if len(self.data) < 8 or self.data[4:8] != schema.FILE_IDENTIFIER:
            raise PackageError(f"{self.name}: not a .tflite file: bytes 4 to 7 are {self.data[4:8]!r}, not b'TFL3'")
        return _Table(self, self.number("<I", 0))


class _Table:
    """One table; absent fields give the schema's default."""

    def __init__(self, source: _Bytes, offset: int) -> None:
        self._source = source
        self._offset = offset
        self._vtable = offset - source.number("<i", offset)
        self._vtable_size = source.number("<H", self._vtable)

    def _field(self, number: int) -> int | None:
        position = 4 + 2 * number
        if position + 2 > self._vtable_size:
            return None
        relative = self._source.number("<H", self._vtable + position)
        return self._offset + relative if relative else None

    def number(self, field: int, form: str, default: int = 0) -> int:
        offset = self._field(field)
        return default if offset is None else self._source.number(form, offset)

    def _vector(self, field: int, width: int) -> tuple[int, int] | None:
        """(offset of the first element, length), or None where the field is absent."""
        offset = self._field(field)
        if offset is None:
            return None
        start = offset + self._source.number("<I", offset)
        length = self._source.number("<I", start)
        if length * width > len(self._source.data) - start - 4:
            raise PackageError(f"{self._source.name}: a vector of {length} elements leaves the file")
        return start + 4, length

    def array(self, field: int, dtype: str) -> NDArray[Any]:
        width = np.dtype(dtype).itemsize
        found = self._vector(field, width)
        if found is None:
            return np.zeros(0, dtype)
        return np.frombuffer(self._source.data, dtype, found[1], found[0])

    def text(self, field: int) -> str:
        return self.array(field, "u1").tobytes().decode("utf-8", "replace")

    def table(self, field: int) -> _Table | None:
        offset = self._field(field)
        return None if offset is None else _Table(self._source, offset + self._source.number("<I", offset))

    def tables(self, field: int) -> list[_Table]:
        return list(self._each(field))

    def _each(self, field: int) -> Iterator[_Table]:
        found = self._vector(field, 4)
        if found is None:
            return
        start, length = found
        if length > _MAX_ITEMS:
            raise PackageError(f"{self._source.name}: {length} items in one list; the limit is {_MAX_ITEMS}")
        for position in range(start, start + 4 * length, 4):
            yield _Table(self._source, position + self._source.number("<I", position))


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file; `data` is None for activations."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: NDArray[Any] | None
    quantization: Quantization | None


@dataclass(frozen=True)
class _Node:
    """An operator of the file, for messages and lookups."""

    index: int
    code: int
    version: int
    custom: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: _Table | None

    @property
    def operator(self) -> str:
        """Name of the operator."""
        if self.custom:
            return f"custom operator {self.custom!r}"
        if self.code == schema.RELU6_CODE:
            return "RELU6"
        return (
            _KINDS[self.code].value
            if self.code in _KINDS
            else schema.OTHER_OPERATORS.get(self.code, f"builtin operator {self.code}")
        )

    def refuse(self, reason: str, hint: str) -> UnsupportedOpError:
        return UnsupportedOpError(f"node {self.index} ({self.operator}, version {self.version})", reason, hint)

    def option(self, field: int, form: str, default: int = 0) -> int:
        return default if self.options is None else self.options.number(field, form, default)


def _refuse(node: _Node | None, reason: str, hint: str) -> UnsupportedOpError:
    """The refusal of a node, or of the model's input and output, which no node explains."""
    return UnsupportedOpError("input or output", reason, hint) if node is None else node.refuse(reason, hint)


class _Reader:
    def __init__(self, data: bytes, name: str, is_softmax_dropped: bool) -> None:
        self._name = name
        self._is_softmax_dropped = is_softmax_dropped
        model = _Bytes(data, name).root()
        version = model.number(schema.Model.VERSION, "<I")
        if version != schema.VERSION:
            raise PackageError(f"{name}: schema version {version}; this version reads {schema.VERSION}")
        subgraphs = model.tables(schema.Model.SUBGRAPHS)
        if len(subgraphs) != 1:
            raise PackageError(f"{name}: {len(subgraphs)} subgraphs; an encoder has one, without control flow")
        self._subgraph = subgraphs[0]
        self._buffers = model.tables(schema.Model.BUFFERS)
        self._codes = model.tables(schema.Model.OPERATOR_CODES)
        self._tensors = [self._tensor(table) for table in self._subgraph.tables(schema.SubGraph.TENSORS)]
        self._nodes = [self._node(i, table) for i, table in enumerate(self._subgraph.tables(schema.SubGraph.OPERATORS))]
        self._names: dict[int, str] = {}
        self._activations: dict[str, Activations] = {}

    # ---- file -> tensors and nodes ------------------------------------------------------------------------

    def _tensor(self, table: _Table) -> _Tensor:
        name = table.text(schema.Tensor.NAME)
        shape = tuple(int(length) for length in table.array(schema.Tensor.SHAPE, "<i4"))
        kind = table.number(schema.Tensor.TYPE, "<b")
        if any(length < 0 for length in shape) or len(shape) > 8:
            raise PackageError(f"{self._name}: tensor {name!r} has the shape {shape}; shapes must be static")
        return _Tensor(name, shape, kind, self._data(table, name, shape, kind), self._quantization(table, name))

    def _data(self, table: _Table, name: str, shape: tuple[int, ...], kind: int) -> NDArray[Any] | None:
        index = table.number(schema.Tensor.BUFFER, "<I")
        if index >= len(self._buffers):
            raise PackageError(f"{self._name}: tensor {name!r} names buffer {index} of {len(self._buffers)}")
        buffer = self._buffers[index]
        raw = buffer.array(schema.Buffer.DATA, "u1")
        if not raw.size:
            if buffer.number(schema.Buffer.OFFSET, "<Q") > 1:
                raise PackageError(f"{self._name}: tensor {name!r} lies outside the flatbuffer, which is not supported")
            return None
        if kind not in _DTYPES:
            return raw
        dtype = np.dtype(_DTYPES[kind])
        if math.prod(shape) * dtype.itemsize != raw.size:
            raise PackageError(f"{self._name}: tensor {name!r} of shape {shape} has {raw.size} bytes")
        return raw.view(dtype).reshape(shape)

    def _quantization(self, table: _Table, name: str) -> Quantization | None:
        record = table.table(schema.Tensor.QUANTIZATION)
        if record is None:
            return None
        scale = record.array(schema.QuantizationParameters.SCALE, "<f4").astype(np.float32)
        zero_point = record.array(schema.QuantizationParameters.ZERO_POINT, "<i8").astype(np.int64)
        if not scale.size:
            return None
        if not zero_point.size:
            zero_point = np.zeros(scale.size, np.int64)
        if zero_point.size != scale.size:
            raise PackageError(f"{self._name}: tensor {name!r} has {scale.size} scales and {zero_point.size} zero points")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise PackageError(f"{self._name}: tensor {name!r} has a scale that is not finite and positive")
        return Quantization(scale, zero_point, record.number(schema.QuantizationParameters.QUANTIZED_DIMENSION, "<i"))

    def _node(self, index: int, table: _Table) -> _Node:
        opcode = table.number(schema.Operator.OPCODE_INDEX, "<I")
        if opcode >= len(self._codes):
            raise PackageError(f"{self._name}: node {index} names operator {opcode} of {len(self._codes)}")
        code = self._codes[opcode]
        builtin = max(
            code.number(schema.OperatorCode.BUILTIN_CODE, "<i"), code.number(schema.OperatorCode.DEPRECATED_BUILTIN_CODE, "<b")
        )
        inputs = tuple(int(tensor) for tensor in table.array(schema.Operator.INPUTS, "<i4"))
        outputs = tuple(int(tensor) for tensor in table.array(schema.Operator.OUTPUTS, "<i4"))
        if any(not -1 <= tensor < len(self._tensors) for tensor in inputs + outputs) or -1 in outputs:
            raise PackageError(f"{self._name}: node {index} names a tensor that does not exist")
        return _Node(
            index=index,
            code=builtin,
            version=code.number(schema.OperatorCode.VERSION, "<i", 1),
            custom=code.text(schema.OperatorCode.CUSTOM_CODE),
            inputs=inputs,
            outputs=outputs,
            options=table.table(schema.Operator.BUILTIN_OPTIONS),
        )

    # ---- nodes -> graph -------------------------------------------------------------------------------------

    def has_softmax(self) -> bool:
        return bool(self._nodes) and self._nodes[-1].code == schema.SOFTMAX_CODE

    def graph(self) -> Graph:
        ends = []
        for field in (schema.SubGraph.INPUTS, schema.SubGraph.OUTPUTS):
            tensors = self._subgraph.array(field, "<i4")
            if len(tensors) != 1 or not 0 <= tensors[0] < len(self._tensors):
                raise PackageError(f"{self._name}: {len(tensors)} inputs or outputs; an encoder has one of each")
            ends.append(int(tensors[0]))
        source, target = ends
        nodes = self._nodes
        if self._is_softmax_dropped and self.has_softmax() and nodes[-1].outputs == (target,) and nodes[-1].inputs:
            target = nodes[-1].inputs[0]
            nodes = nodes[:-1]
        entry = self._activation(source, None)
        ops = tuple(self._op(node) for node in nodes)
        return Graph(entry, self._activation(target, None), dict(self._activations), ops)

    def _activation(self, index: int, node: _Node | None) -> str:
        """Name of an activation; names that are missing or doubled in the file get its number."""
        if index in self._names:
            return self._names[index]
        if index < 0:
            raise PackageError(f"{self._name}: a node lacks an input")
        tensor = self._tensors[index]
        if tensor.kind != schema.TYPE_INT8:
            kind = schema.TYPE_NAMES.get(tensor.kind, f"type {tensor.kind}")
            raise _refuse(node, f"tensor {tensor.name!r} is {kind}", "quantize the whole model to int8, inputs and outputs too")
        if tensor.quantization is None or tensor.quantization.scale.size != 1:
            raise _refuse(node, f"tensor {tensor.name!r} has not one scale", "activations need per-tensor quantization")
        zero_point = int(tensor.quantization.zero_point[0])
        if not -128 <= zero_point <= 127:
            raise _refuse(node, f"tensor {tensor.name!r} has zero point {zero_point}", "int8 needs -128 to 127")
        if tensor.data is not None:
            raise _refuse(node, f"tensor {tensor.name!r} is a constant", "only weights, biases and shapes may be constant")
        if len(tensor.shape) < 2 or tensor.shape[0] != 1 or not 0 < math.prod(tensor.shape) <= _MAX_PIXELS:
            raise _refuse(node, f"tensor {tensor.name!r} has shape {tensor.shape}", "shapes must be static, with batch 1")
        name = tensor.name if tensor.name and tensor.name not in self._activations else f"tensor{index}"
        while name in self._activations:
            name += "_"
        self._names[index] = name
        self._activations[name] = Activations(name, tensor.shape, tensor.quantization)
        return name

    def _constant(self, node: _Node, position: int, kind: int) -> _Tensor:
        if position >= len(node.inputs) or node.inputs[position] < 0:
            raise node.refuse(f"input {position} is missing", "export the model again")
        tensor = self._tensors[node.inputs[position]]
        if tensor.kind != kind or tensor.data is None:
            found = schema.TYPE_NAMES.get(tensor.kind, str(tensor.kind)) + (
                "" if tensor.data is not None else " that is computed"
            )
            raise node.refuse(f"input {position} is {found}", f"it must be constant {schema.TYPE_NAMES[kind]}")
        return tensor

    def _op(self, node: _Node) -> Op:
        kind = None if node.custom else _KINDS.get(node.code)
        if kind is None:
            known = ", ".join(sorted(_KINDS[code].value for code in _KINDS if code != schema.RELU6_CODE))
            raise node.refuse("this operator is not supported", f"supported are {known}, RELU6; cut the model before it")
        if len(node.outputs) != 1 or not node.inputs:
            raise PackageError(f"{self._name}: node {node.index} has {len(node.inputs)} inputs and {len(node.outputs)} outputs")
        builders = {
            OpKind.CONV_2D: self._conv,
            OpKind.DEPTHWISE_CONV_2D: self._depthwise,
            OpKind.FULLY_CONNECTED: self._dense,
            OpKind.ADD: self._add,
            OpKind.AVERAGE_POOL_2D: self._pool,
            OpKind.MAX_POOL_2D: self._pool,
            OpKind.MEAN: self._mean,
            OpKind.PAD: self._pad,
            OpKind.RELU: self._relu,
            OpKind.RESHAPE: self._reshape,
        }
        return builders[kind](node, kind)

    def _base(self, node: _Node, kind: OpKind, inputs: int = 1, **fields: Any) -> Op:  # noqa: ANN401 - fields of Op
        names = tuple(self._activation(tensor, node) for tensor in node.inputs[:inputs])
        output = self._activation(node.outputs[0], node)
        return Op(kind, f"node {node.index} ({node.operator})", names, output, **fields)

    def _activation_of(self, node: _Node, field: int) -> Activation:
        code = node.option(field, "<b")
        if code not in _ACTIVATIONS:
            raise node.refuse(f"fused activation {code} is not supported", "use none, RELU or RELU6")
        return _ACTIVATIONS[code]

    def _window(self, node: _Node, padding: int, strides: tuple[int, int]) -> dict[str, Any]:
        code = node.option(padding, "<b")
        stride = tuple(node.option(field, "<i") for field in strides)
        if code not in _PADDINGS or min(stride) < 1:
            raise PackageError(f"{self._name}: node {node.index} has padding {code} and stride {stride}")
        return {"padding": _PADDINGS[code], "stride": stride}

    def _weights(self, node: _Node, rank: int, axis: int) -> dict[str, Any]:
        weights = self._constant(node, 1, schema.TYPE_INT8)
        if len(weights.shape) != rank or 0 in weights.shape:
            raise PackageError(f"{self._name}: node {node.index} has weights of shape {weights.shape}")
        outputs = weights.shape[axis]
        found = weights.quantization
        if found is None or found.scale.size not in (1, outputs) or (found.scale.size > 1 and found.axis != axis):
            raise node.refuse("its weights are not quantized per tensor or per output channel", "quantize weights symmetrically")
        if found.zero_point.any():
            raise node.refuse("its weights have zero points", "quantize weights symmetrically")
        bias = np.zeros(outputs, np.int32)
        if len(node.inputs) > 2 and node.inputs[2] >= 0:
            bias = np.asarray(self._constant(node, 2, schema.TYPE_INT32).data, np.int32).reshape(-1)
        if bias.size != outputs:
            raise PackageError(f"{self._name}: node {node.index} has {bias.size} biases for {outputs} outputs")
        quantization = Quantization(found.scale, found.zero_point, axis)
        return {"weights": np.asarray(weights.data, np.int8), "bias": bias, "weight_quantization": quantization}

    def _conv(self, node: _Node, kind: OpKind) -> Op:
        options = schema.Conv2DOptions
        weights = self._weights(node, 4, 0)
        dilation = (node.option(options.DILATION_H, "<i", 1), node.option(options.DILATION_W, "<i", 1))
        window = self._window(node, options.PADDING, (options.STRIDE_H, options.STRIDE_W))
        activation = self._activation_of(node, options.ACTIVATION)
        op = self._base(
            node, kind, activation=activation, dilation=dilation, kernel=weights["weights"].shape[1:3], **window, **weights
        )
        if weights["weights"].shape[3] != self._activations[op.inputs[0]].shape[-1]:
            raise node.refuse("it is a grouped convolution", "groups must be 1, or use DEPTHWISE_CONV_2D")
        return self._checked(node, op)

    def _depthwise(self, node: _Node, kind: OpKind) -> Op:
        options = schema.DepthwiseConv2DOptions
        weights = self._weights(node, 4, 3)
        dilation = (node.option(options.DILATION_H, "<i", 1), node.option(options.DILATION_W, "<i", 1))
        window = self._window(node, options.PADDING, (options.STRIDE_H, options.STRIDE_W))
        activation = self._activation_of(node, options.ACTIVATION)
        op = self._base(
            node, kind, activation=activation, dilation=dilation, kernel=weights["weights"].shape[1:3], **window, **weights
        )
        # The option is redundant and other tools leave it zero: the shapes decide.
        channels = self._activations[op.inputs[0]].shape[-1]
        multiplier = max(1, weights["weights"].shape[3] // channels)
        return self._checked(node, Op(**{**vars(op), "depth_multiplier": multiplier}))

    def _checked(self, node: _Node, op: Op) -> Op:
        if min(op.dilation) < 1:
            raise PackageError(f"{self._name}: node {node.index} has dilation {op.dilation}")
        return op

    def _dense(self, node: _Node, kind: OpKind) -> Op:
        options = schema.FullyConnectedOptions
        if node.option(options.WEIGHTS_FORMAT, "<b"):
            raise node.refuse("its weights are shuffled", "export with the default weights format")
        activation = self._activation_of(node, options.ACTIVATION)
        return self._base(node, kind, activation=activation, **self._weights(node, 2, 0))

    def _add(self, node: _Node, kind: OpKind) -> Op:
        if len(node.inputs) != 2:
            raise PackageError(f"{self._name}: node {node.index} has {len(node.inputs)} inputs, ADD has 2")
        op = self._base(node, kind, inputs=2, activation=self._activation_of(node, schema.AddOptions.ACTIVATION))
        if len({self._activations[name].shape for name in op.inputs}) != 1:
            raise node.refuse("it broadcasts", "both inputs must have one shape")
        return op

    def _pool(self, node: _Node, kind: OpKind) -> Op:
        options = schema.Pool2DOptions
        kernel = (node.option(options.FILTER_H, "<i"), node.option(options.FILTER_W, "<i"))
        if min(kernel) < 1:
            raise PackageError(f"{self._name}: node {node.index} has the window {kernel}")
        window = self._window(node, options.PADDING, (options.STRIDE_H, options.STRIDE_W))
        return self._base(node, kind, activation=self._activation_of(node, options.ACTIVATION), kernel=kernel, **window)

    def _mean(self, node: _Node, kind: OpKind) -> Op:
        op = self._base(node, kind)
        axes = np.asarray(self._constant(node, 1, schema.TYPE_INT32).data).reshape(-1)
        rank = len(self._activations[op.inputs[0]].shape)
        if rank != 4 or sorted({int(axis) % 4 for axis in axes}) != [1, 2]:
            raise node.refuse(f"it takes the mean over axes {axes.tolist()} of {rank}", "the mean must be over height and width")
        return op

    def _pad(self, node: _Node, kind: OpKind) -> Op:
        paddings = np.asarray(self._constant(node, 1, schema.TYPE_INT32).data)
        if paddings.shape != (4, 2) or paddings[[0, 3]].any() or (paddings < 0).any() or (paddings > 4096).any():
            raise node.refuse(f"it pads by {paddings.tolist()}", "only height and width of a 4-D tensor can be padded")
        pads = (int(paddings[1, 0]), int(paddings[1, 1]), int(paddings[2, 0]), int(paddings[2, 1]))
        return self._base(node, kind, pads=pads)

    def _relu(self, node: _Node, kind: OpKind) -> Op:
        is_six = node.code == schema.RELU6_CODE
        return self._base(node, kind, activation=Activation.RELU6 if is_six else Activation.RELU)

    def _reshape(self, node: _Node, kind: OpKind) -> Op:
        return self._base(node, kind)
