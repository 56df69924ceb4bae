# SPDX-License-Identifier: Apache-2.0
"""Reads int8 `.tflite` files, whoever made them, as graphs.

Accepted: one subgraph, one input, one output, static shapes with batch 1, int8 activations with one scale, int8 or int4 weights
with one scale or one per output channel, int32 biases. Everything else is refused with the operator's name, version and node.
The bytes are not trusted: every offset is checked before it is followed.

Many forms become few. A form that the graph has no operator for is several: padding of any axis is a PAD of height and width
between two RESHAPEs, a mean over any axes a TRANSPOSE and a MEAN, an operand that repeats in another way than its end to end is
a BROADCAST_TO before the ADD or MUL. A tensor inside the graph whose first axis is longer than 1 gets a batch axis in front.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, PackageError, UnsupportedOpError
from fedmote.package import tflite_schema as schema
from fedmote.package.arrangement import unpack_int4
from fedmote.package.geometry import check_shapes, repeats_whole
from fedmote.package.graph import Activation, Activations, Graph, Op, OpKind, Quantization

_DTYPES: Final = {schema.TYPE_INT8: "<i1", schema.TYPE_INT32: "<i4", schema.TYPE_INT64: "<i8", schema.TYPE_FLOAT32: "<f4"}
_KINDS: Final = {code: kind for kind, code in schema.BUILTIN_CODES.items()} | {
    code: kind for code, (kind, _) in schema.OTHER_FORMS.items()
}
_OPERATORS: Final = {code: kind.value for kind, code in schema.BUILTIN_CODES.items()} | {
    code: name for code, (_, name) in schema.OTHER_FORMS.items()
}
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
    """Whether the file's last operator is SOFTMAX, a DEQUANTIZE behind it aside.

    Raises:
        PackageError: no `.tflite` file, or truncated.
    """
    return _Reader(data, name, False).has_softmax()


def has_outer_conversion(data: bytes, name: str) -> bool:
    """Whether float32 or uint8 are converted at the file's ends; `read` leaves that out.

    Raises:
        PackageError: no `.tflite` file, truncated, or without one input and one output.
    """
    return _Reader(data, name, False).has_outer_conversion()


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

    def real(self, field: int) -> float:
        bits = self.number(field, "<I")
        return float(struct.unpack("<f", struct.pack("<I", bits))[0])

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
        return _OPERATORS.get(self.code) or schema.OTHER_OPERATORS.get(self.code, f"builtin operator {self.code}")

    def refuse(self, reason: str, hint: str) -> UnsupportedOpError:
        return UnsupportedOpError(f"node {self.index} ({self.operator}, version {self.version})", reason, hint)

    def option(self, field: int, form: str, default: int = 0) -> int:
        return default if self.options is None else self.options.number(field, form, default)

    def real_option(self, field: int) -> float:
        """A float32 option; the schema's default for all of them is 0."""
        value = 0.0 if self.options is None else self.options.real(field)
        if not math.isfinite(value):
            raise self.refuse(f"an option is {value}", "export the model again")
        return value


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
        self._ops: list[Op] = []

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
        if kind == schema.TYPE_INT4:
            if (math.prod(shape) + 1) // 2 != raw.size:
                raise PackageError(f"{self._name}: tensor {name!r} of shape {shape} has {raw.size} bytes")
            return unpack_int4(raw, math.prod(shape)).reshape(shape)
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
        nodes = self._inner()[2]
        return bool(nodes) and nodes[-1].code == schema.SOFTMAX_CODE

    def has_outer_conversion(self) -> bool:
        return len(self._inner()[2]) < len(self._nodes)

    def _inner(self) -> tuple[int, int, list[_Node]]:
        """Input, output and nodes without the conversions at the ends.

        Files whose input or output is float32 or uint8 begin with a QUANTIZE and end with a DEQUANTIZE or QUANTIZE. Who holds
        real numbers quantizes them for the int8 input itself, in the same arithmetic.
        """
        ends = []
        for field in (schema.SubGraph.INPUTS, schema.SubGraph.OUTPUTS):
            tensors = self._subgraph.array(field, "<i4")
            if len(tensors) != 1 or not 0 <= tensors[0] < len(self._tensors):
                raise PackageError(f"{self._name}: {len(tensors)} inputs or outputs; an encoder has one of each")
            ends.append(int(tensors[0]))
        source, target = ends
        nodes = list(self._nodes)
        readers = [node for node in nodes if source in node.inputs]
        if len(readers) == 1 and readers[0].code == schema.QUANTIZE_CODE and self._is_converted(source, readers[0].outputs):
            nodes.remove(readers[0])
            source = readers[0].outputs[0]
        makers = [node for node in nodes if target in node.outputs]
        codes = (schema.QUANTIZE_CODE, schema.DEQUANTIZE_CODE)
        if len(makers) == 1 and makers[0].code in codes and self._is_converted(target, makers[0].inputs):
            nodes.remove(makers[0])
            target = makers[0].inputs[0]
        return source, target, nodes

    def _is_converted(self, outer: int, inner: tuple[int, ...]) -> bool:
        """Whether a tensor at the file's end is float32 or uint8 and the one inside int8."""
        if len(inner) != 1 or inner[0] < 0:
            return False
        kinds = (self._tensors[outer].kind, self._tensors[inner[0]].kind)
        return kinds in ((schema.TYPE_FLOAT32, schema.TYPE_INT8), (schema.TYPE_UINT8, schema.TYPE_INT8))

    def graph(self) -> Graph:
        source, target, nodes = self._inner()
        is_soft = bool(nodes) and nodes[-1].code == schema.SOFTMAX_CODE and nodes[-1].outputs == (target,)
        if self._is_softmax_dropped and is_soft and nodes[-1].inputs:
            target = nodes[-1].inputs[0]
            nodes = nodes[:-1]
        entry = self._activation(source, None)
        for node in nodes:
            self._add_node(node)
        return Graph(entry, self._activation(target, None), dict(self._activations), tuple(self._ops))

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
            hint = "weights, biases, shapes and one operand of ADD and MUL may be constant"
            raise _refuse(node, f"tensor {tensor.name!r} is a constant", hint)
        shape = tensor.shape if len(tensor.shape) >= 2 and tensor.shape[0] == 1 else (1, *tensor.shape)
        if not 0 < math.prod(shape) <= _MAX_PIXELS or (node is None and shape != tensor.shape):
            raise _refuse(node, f"tensor {tensor.name!r} has shape {tensor.shape}", "shapes must be static, with batch 1")
        if len(shape) == 1:
            shape = (1, 1)
        name = self._fresh(tensor.name if tensor.name and tensor.name not in self._activations else f"tensor{index}")
        self._names[index] = name
        self._activations[name] = Activations(name, shape, tensor.quantization)
        return name

    def _fresh(self, name: str) -> str:
        while name in self._activations:
            name += "_"
        return name

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._activations[name].shape

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

    def _integers(self, node: _Node, position: int) -> list[int]:
        """A constant list of int32 or int64."""
        kind = schema.TYPE_INT32
        if position < len(node.inputs) and self._tensors[node.inputs[position]].kind == schema.TYPE_INT64:
            kind = schema.TYPE_INT64
        return [int(value) for value in np.asarray(self._constant(node, position, kind).data).reshape(-1)]

    def _add_node(self, node: _Node) -> None:
        kind = None if node.custom else _KINDS.get(node.code)
        if kind is None:
            known = ", ".join(sorted(_OPERATORS.values()))
            raise node.refuse("this operator is not supported", f"supported are {known}; cut the model before it")
        if len(node.outputs) != 1 or not node.inputs:
            raise PackageError(f"{self._name}: node {node.index} has {len(node.inputs)} inputs and {len(node.outputs)} outputs")
        builders: dict[OpKind, Callable[[_Node, OpKind], None]] = {
            OpKind.CONV_2D: self._conv,
            OpKind.DEPTHWISE_CONV_2D: self._depthwise,
            OpKind.FULLY_CONNECTED: self._dense,
            OpKind.ADD: self._binary,
            OpKind.MUL: self._binary,
            OpKind.AVERAGE_POOL_2D: self._pool,
            OpKind.MAX_POOL_2D: self._pool,
            OpKind.MEAN: self._mean,
            OpKind.PAD: self._pad,
            OpKind.RELU: self._relu,
            OpKind.LEAKY_RELU: self._leaky_relu,
            OpKind.HARD_SWISH: self._plain,
            OpKind.LOGISTIC: self._plain,
            OpKind.TANH: self._plain,
            OpKind.QUANTIZE: self._plain,
            OpKind.SOFTMAX: self._softmax,
            OpKind.RESHAPE: self._plain,
            OpKind.CONCATENATION: self._concatenation,
            OpKind.STRIDED_SLICE: self._slice if node.code == schema.SLICE_CODE else self._strided_slice,
            OpKind.TRANSPOSE: self._transpose,
            OpKind.BROADCAST_TO: self._plain,
        }
        builders[kind](node, kind)

    # ---- appending operators ------------------------------------------------------------------------------------

    def _put(self, node: _Node, kind: OpKind, inputs: tuple[str, ...], output: str, **fields: Any) -> str:  # noqa: ANN401 - fields of Op
        self._ops.append(Op(kind, f"node {node.index} ({node.operator})", inputs, output, **fields))
        return output

    def _put_new(self, node: _Node, kind: OpKind, source: str, shape: tuple[int, ...], **fields: Any) -> str:  # noqa: ANN401
        """An operator that only moves values, with a new activation of that shape."""
        name = self._fresh(f"{source}.{kind.value.lower()}")
        self._activations[name] = replace(self._activations[source], name=name, shape=shape)
        return self._put(node, kind, (source,), name, **fields)

    def _reshaped(self, node: _Node, source: str, shape: tuple[int, ...]) -> str:
        return source if self._shape(source) == shape else self._put_new(node, OpKind.RESHAPE, source, shape)

    def _transposed(self, node: _Node, source: str, permutation: tuple[int, ...]) -> str:
        if permutation == tuple(range(len(permutation))):
            return source
        shape = tuple(self._shape(source)[axis] for axis in permutation)
        return self._put_new(node, OpKind.TRANSPOSE, source, shape, permutation=permutation)

    def _close(self, node: _Node, source: str) -> None:
        """Gives what was made the name and shape of the node's output."""
        output = self._activation(node.outputs[0], node)
        if math.prod(self._shape(source)) != math.prod(self._shape(output)):
            raise PackageError(f"{self._name}: node {node.index} makes {self._shape(source)}, declared is {self._shape(output)}")
        last = self._ops[-1] if self._ops else None
        is_renamed = last is not None and last.output == source and source not in self._names.values()
        if last is not None and is_renamed and (last.kind is OpKind.RESHAPE or self._shape(source) == self._shape(output)):
            self._ops[-1] = replace(last, output=output)
            del self._activations[source]
        else:
            self._put(node, OpKind.RESHAPE, (source,), output)

    def _ends(self, node: _Node) -> tuple[str, str]:
        """The first input and the output."""
        return self._activation(node.inputs[0], node), self._activation(node.outputs[0], node)

    def _file_shape(self, tensor: int) -> tuple[int, ...]:
        return self._tensors[tensor].shape

    def _activation_of(self, node: _Node, field: int) -> Activation:
        code = node.option(field, "<b")
        if code not in _ACTIVATIONS:
            name = schema.ACTIVATION_NAMES.get(code, str(code))
            raise node.refuse(f"fused activation {name} is not supported", "use none, RELU, RELU6 or RELU_N1_TO_1")
        return _ACTIVATIONS[code]

    # ---- operators with weights -----------------------------------------------------------------------------------

    def _window(self, node: _Node, padding: int, strides: tuple[int, int]) -> dict[str, Any]:
        code = node.option(padding, "<b")
        stride = tuple(node.option(field, "<i") for field in strides)
        if code not in _PADDINGS or min(stride) < 1:
            raise PackageError(f"{self._name}: node {node.index} has padding {code} and stride {stride}")
        return {"padding": _PADDINGS[code], "stride": stride}

    def _weights(self, node: _Node, rank: int, axis: int) -> dict[str, Any]:
        is_int4 = len(node.inputs) > 1 and self._tensors[node.inputs[1]].kind == schema.TYPE_INT4
        weights = self._constant(node, 1, schema.TYPE_INT4 if is_int4 else schema.TYPE_INT8)
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
        return {
            "weights": np.asarray(weights.data, np.int8),
            "weight_bits": 4 if is_int4 else 8,
            "bias": bias,
            "weight_quantization": Quantization(found.scale, found.zero_point, axis),
        }

    def _conv(self, node: _Node, kind: OpKind) -> None:
        options = schema.Conv2DOptions
        self._put_convolution(
            node,
            kind,
            self._weights(node, 4, 0),
            dilation=(node.option(options.DILATION_H, "<i", 1), node.option(options.DILATION_W, "<i", 1)),
            activation=self._activation_of(node, options.ACTIVATION),
            **self._window(node, options.PADDING, (options.STRIDE_H, options.STRIDE_W)),
        )

    def _depthwise(self, node: _Node, kind: OpKind) -> None:
        options = schema.DepthwiseConv2DOptions
        weights = self._weights(node, 4, 3)
        # The option is redundant and other tools leave it zero: the shapes decide.
        channels = self._shape(self._activation(node.inputs[0], node))[-1]
        self._put_convolution(
            node,
            kind,
            weights,
            dilation=(node.option(options.DILATION_H, "<i", 1), node.option(options.DILATION_W, "<i", 1)),
            activation=self._activation_of(node, options.ACTIVATION),
            depth_multiplier=max(1, weights["weights"].shape[3] // channels),
            **self._window(node, options.PADDING, (options.STRIDE_H, options.STRIDE_W)),
        )

    def _put_convolution(self, node: _Node, kind: OpKind, weights: dict[str, Any], **fields: Any) -> None:  # noqa: ANN401
        if min(fields["dilation"]) < 1:
            raise PackageError(f"{self._name}: node {node.index} has dilation {fields['dilation']}")
        source, output = self._ends(node)
        self._put(node, kind, (source,), output, kernel=weights["weights"].shape[1:3], **weights, **fields)

    def _dense(self, node: _Node, kind: OpKind) -> None:
        options = schema.FullyConnectedOptions
        if node.option(options.WEIGHTS_FORMAT, "<b"):
            raise node.refuse("its weights are shuffled", "export with the default weights format")
        activation = self._activation_of(node, options.ACTIVATION)
        weights = self._weights(node, 2, 0)
        source, output = self._ends(node)
        self._put(node, kind, (source,), output, activation=activation, **weights)

    # ---- operators of two operands ------------------------------------------------------------------------------

    def _binary(self, node: _Node, kind: OpKind) -> None:
        if len(node.inputs) != 2:
            raise PackageError(f"{self._name}: node {node.index} has {len(node.inputs)} inputs, {kind} has 2")
        activation = self._activation_of(node, (schema.AddOptions if kind is OpKind.ADD else schema.MulOptions).ACTIVATION)
        # Both operators are symmetric in every bit, so the operands can change places.
        tensors = sorted(node.inputs, key=lambda tensor: self._tensors[tensor].data is not None)
        output = self._activation(node.outputs[0], node)
        shape = self._shape(output)
        operands = [self._activation(tensors[0], node)]
        fields: dict[str, Any] = {"activation": activation}
        if self._tensors[tensors[1]].data is None:
            operands.append(self._activation(tensors[1], node))
            operands.sort(key=lambda name: math.prod(self._shape(name)) != math.prod(shape))
            if not repeats_whole(self._shape(operands[1]), shape):
                operands[1] = self._put_new(node, OpKind.BROADCAST_TO, operands[1], shape)
        else:
            constant = self._constant(node, node.inputs.index(tensors[1]), schema.TYPE_INT8)
            found = constant.quantization
            if found is None or found.scale.size != 1 or not -128 <= int(found.zero_point[0]) <= 127:
                raise node.refuse("its constant has not one scale", "constants need per-tensor quantization")
            fields |= {"constant": np.asarray(constant.data, np.int8), "constant_quantization": found}
        if math.prod(self._shape(operands[0])) != math.prod(shape):
            operands[0] = self._put_new(node, OpKind.BROADCAST_TO, operands[0], shape)
        self._put(node, kind, tuple(operands), output, **fields)

    # ---- windows and sums -----------------------------------------------------------------------------------------

    def _pool(self, node: _Node, kind: OpKind) -> None:
        options = schema.Pool2DOptions
        kernel = (node.option(options.FILTER_H, "<i"), node.option(options.FILTER_W, "<i"))
        if min(kernel) < 1:
            raise PackageError(f"{self._name}: node {node.index} has the window {kernel}")
        window = self._window(node, options.PADDING, (options.STRIDE_H, options.STRIDE_W))
        activation = self._activation_of(node, options.ACTIVATION)
        source, output = self._ends(node)
        self._put(node, kind, (source,), output, activation=activation, kernel=kernel, **window)

    def _mean(self, node: _Node, kind: OpKind) -> None:
        source, output = self._ends(node)
        shape = self._shape(source)
        rank = len(self._file_shape(node.inputs[0]))
        found = self._integers(node, 1)
        if not all(-rank <= axis < rank for axis in found):
            raise node.refuse(f"it takes the mean over axes {found} of {rank}", "axes must be those of the input")
        shift = len(shape) - rank
        axes = sorted({axis % rank + shift for axis in found} - {0})
        if len(shape) == 4 and axes == [1, 2] and self._shape(output) in ((1, 1, 1, shape[3]), (1, shape[3])):
            self._put(node, kind, (source,), output)
            return
        kept = [axis for axis in range(1, len(shape)) if axis not in axes]
        moved = self._transposed(node, source, (0, *axes, *kept)) if self._is_order_changed(shape, [*axes, *kept]) else source
        count, rest = math.prod(shape[axis] for axis in axes), math.prod(shape[axis] for axis in kept)
        image = self._reshaped(node, moved, (1, count, 1, rest))
        if self._shape(output) in ((1, rest), (1, 1, 1, rest)):
            self._put(node, kind, (image,), output)
            return
        mean = self._fresh(f"{output}.mean")
        self._activations[mean] = replace(self._activations[output], name=mean, shape=(1, rest))
        self._put(node, kind, (image,), mean)
        self._put(node, OpKind.RESHAPE, (mean,), output)

    @staticmethod
    def _is_order_changed(shape: tuple[int, ...], order: list[int]) -> bool:
        """Whether bytes move when the axes are put into that order: axes of length 1 do not count."""
        long = [axis for axis in order if shape[axis] > 1]
        return long != sorted(long)

    def _pad(self, node: _Node, kind: OpKind) -> None:
        source, output = self._ends(node)
        shape = self._shape(source)
        found = self._integers(node, 1)
        pads = [(found[i], found[i + 1]) for i in range(0, len(found) - 1, 2)]
        pads = [(0, 0)] * (len(shape) - len(pads)) + pads
        if len(pads) != len(shape) or len(found) % 2 or any(not 0 <= pad <= 4096 for pair in pads for pad in pair):
            raise node.refuse(f"it pads {shape} by {found}", "paddings must be constant, not negative and 4096 at most")
        if any(pads[0]):
            raise node.refuse("it pads the batch", "pad other axes")
        value = self._pad_value(node)
        if len(shape) == 4 and not any(pads[3]):
            self._put(node, kind, (source,), output, pads=(*pads[1], *pads[2]), pad_value=value)
            return
        current = source
        for axis, (before, after) in enumerate(pads):
            if before or after:
                size = self._shape(current)
                outer, inner = math.prod(size[:axis]), math.prod(size[axis + 1 :])
                image = self._reshaped(node, current, (1, outer, size[axis], inner))
                wide = (1, outer, size[axis] + before + after, inner)
                padded = self._put_new(node, kind, image, wide, pads=(0, 0, before, after), pad_value=value)
                current = self._reshaped(node, padded, (*size[:axis], wide[2], *size[axis + 1 :]))
        self._close(node, current)

    def _pad_value(self, node: _Node) -> int | None:
        if len(node.inputs) < 3 or node.inputs[2] < 0:
            return None
        constant = self._constant(node, 2, schema.TYPE_INT8)
        values = np.asarray(constant.data).reshape(-1)
        source = self._tensors[node.inputs[0]].quantization
        found = constant.quantization
        is_same = found is not None and source is not None and found.scale.size == 1 and found.scale[0] == source.scale[0]
        if values.size != 1 or not is_same or found.zero_point[0] != source.zero_point[0]:  # type: ignore[union-attr]
            raise node.refuse("its padding value has another quantization than its input", "they must be equal")
        return int(values[0])

    def _softmax(self, node: _Node, kind: OpKind) -> None:
        self._plain(node, kind, beta=node.real_option(schema.SoftmaxOptions.BETA))

    # ---- functions of one element -----------------------------------------------------------------------------

    def _plain(self, node: _Node, kind: OpKind, **fields: Any) -> None:  # noqa: ANN401 - fields of Op
        source, output = self._ends(node)
        self._put(node, kind, (source,), output, **fields)

    def _relu(self, node: _Node, kind: OpKind) -> None:
        clamps = {schema.RELU6_CODE: Activation.RELU6, schema.RELU_N1_TO_1_CODE: Activation.RELU_N1_TO_1}
        self._plain(node, kind, activation=clamps.get(node.code, Activation.RELU))

    def _leaky_relu(self, node: _Node, kind: OpKind) -> None:
        self._plain(node, kind, alpha=node.real_option(schema.LeakyReluOptions.ALPHA))

    # ---- operators that move values -----------------------------------------------------------------------------

    def _concatenation(self, node: _Node, kind: OpKind) -> None:
        if self._activation_of(node, schema.ConcatenationOptions.ACTIVATION) is not Activation.NONE:
            raise node.refuse("it has a fused activation", "use none")
        output = self._activation(node.outputs[0], node)
        rank = len(self._file_shape(node.outputs[0]))
        axis = node.option(schema.ConcatenationOptions.AXIS, "<i")
        if not -rank <= axis < rank or any(len(self._file_shape(tensor)) != rank for tensor in node.inputs if tensor >= 0):
            raise PackageError(f"{self._name}: node {node.index} concatenates along axis {axis} of {rank}")
        shift = len(self._shape(output)) - rank
        parts = []
        for tensor in node.inputs:
            part = self._activation(tensor, node)
            parts.append(self._reshaped(node, part, (1,) * shift + self._file_shape(tensor)))
        if len(parts) == 1:
            self._close(node, parts[0])
            return
        self._put(node, kind, tuple(parts), output, axis=axis % rank + shift)

    def _strided_slice(self, node: _Node, _: OpKind) -> None:
        options = schema.StridedSliceOptions
        if node.option(options.ELLIPSIS_MASK, "<i") or node.option(options.NEW_AXIS_MASK, "<i"):
            raise node.refuse("it has an ellipsis or a new axis", "name every axis of the input")
        if node.option(options.OFFSET, "<b"):
            raise node.refuse("its ends count from its starts", "name the ends themselves")
        begins, ends, steps = (self._integers(node, position) for position in (1, 2, 3))
        shape = self._file_shape(node.inputs[0])
        if not len(begins) == len(ends) == len(steps) == len(shape) or 0 in steps:
            raise node.refuse(f"it slices {shape} from {begins} to {ends} by {steps}", "name every axis of the input")
        masks = [node.option(field, "<i") for field in (options.BEGIN_MASK, options.END_MASK, options.SHRINK_AXIS_MASK)]
        ranges = []
        for axis, (begin, end, step, size) in enumerate(zip(begins, ends, steps, shape, strict=True)):
            is_open, is_endless, is_shrunk = (bool(mask >> axis & 1) for mask in masks)
            indices = range(*slice(None if is_open else begin, None if is_endless else end, step).indices(size))
            if is_shrunk:
                first = (0 if is_open else begin) % size if size else 0
                indices = range(first, first + 1)
            ranges.append(indices)
        self._put_slice(node, ranges)

    def _slice(self, node: _Node, _: OpKind) -> None:
        begins, sizes = self._integers(node, 1), self._integers(node, 2)
        shape = self._file_shape(node.inputs[0])
        if not len(begins) == len(sizes) == len(shape):
            raise node.refuse(f"it slices {shape} from {begins} by {sizes}", "name every axis of the input")
        ends = [whole if size == -1 else begin + size for begin, size, whole in zip(begins, sizes, shape, strict=True)]
        self._put_slice(node, [range(begin, end) for begin, end in zip(begins, ends, strict=True)])

    def _put_slice(self, node: _Node, ranges: list[range]) -> None:
        """The elements of those indices of each axis of the file's input."""
        if any(not indices for indices in ranges):
            raise node.refuse("it takes no element", "slices must not be empty")
        source = self._activation(node.inputs[0], node)
        rank = len(self._shape(source))
        ranges = [range(1)] * (rank - len(ranges)) + ranges
        part = source
        if any(len(indices) != size for indices, size in zip(ranges, self._shape(source), strict=True)) or any(
            indices.step < 0 and len(indices) > 1 for indices in ranges
        ):
            steps = tuple(indices.step if len(indices) > 1 else 1 for indices in ranges)
            shape = tuple(len(indices) for indices in ranges)
            starts = tuple(indices.start for indices in ranges)
            part = self._put_new(node, OpKind.STRIDED_SLICE, source, shape, starts=starts, steps=steps)
        self._close(node, part)

    def _transpose(self, node: _Node, _: OpKind) -> None:
        source = self._activation(node.inputs[0], node)
        shape = self._file_shape(node.inputs[0])
        permutation = self._integers(node, 1)
        if sorted(permutation) != list(range(len(shape))):
            raise node.refuse(f"its axes {permutation} are no permutation", f"name each axis of {shape} once")
        moved = source
        if self._is_order_changed(shape, permutation):
            if permutation[0] == 0 and self._shape(source) == shape:
                moved = self._transposed(node, source, tuple(permutation))
            else:
                lengths, order = _merged_axes(shape, permutation)
                whole = self._reshaped(node, source, (1, *lengths))
                moved = self._transposed(node, whole, (0, *(axis + 1 for axis in order)))
        self._close(node, moved)


def _merged_axes(shape: tuple[int, ...], permutation: list[int]) -> tuple[list[int], list[int]]:
    """The same transposition of as few axes as can be: without those of length 1, those that stay neighbours as one."""
    long = [axis for axis in range(len(shape)) if shape[axis] > 1]
    order = [long.index(axis) for axis in permutation if shape[axis] > 1]
    first = [axis for place, axis in enumerate(order) if place == 0 or order[place - 1] != axis - 1]
    starts = sorted(first)
    lengths = [
        math.prod(shape[long[axis]] for axis in range(start, end))
        for start, end in zip(starts, [*starts[1:], len(long)], strict=True)
    ]
    return lengths, [starts.index(axis) for axis in first]
