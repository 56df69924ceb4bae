# SPDX-License-Identifier: Apache-2.0
"""From a sound ONNX model to the operators that work on samples, with constants computed and every shape known.

Exporters write shapes as arithmetic (Shape, Gather, Concat into a Reshape) and leave small computations on weights. With the
batch fixed to 1 and all other sizes static, whatever does not depend on the sample is computed here, once, by
`onnx.reference`, the standard's own implementation; what remains is a list of nodes between one input and one output.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fedmote.errors import ConversionError, UnsupportedOpError
from fedmote_convert.layout import Shape
from fedmote_convert.onnx_file import opset_of, place_of

_LARGEST_CONSTANT = 2**24  # elements of a computed constant: no model for microcontrollers has more weights in one tensor
_SHAPE_ELEMENTS = 64  # constants up to this size are told to shape inference: shapes, axes, paddings
_QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
    *("ConvInteger", "MatMulInteger"),
)
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_VIEWS = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter keeps the paths of modules


@dataclass(frozen=True, eq=False)  # one node is not another, even of equal fields
class Node:
    """One operator that works on activations.

    Attributes:
        kind: its ONNX name.
        name: for messages.
        inputs: names of activations and constants, "" where an optional one is left out.
        outputs: names, "" where unused.
        attributes: numbers, strings, lists and arrays by name; defaults are not filled in.
        modules: paths of the torch modules around it where the exporter kept them, outermost first.
        proto: as it stands in the model.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    modules: tuple[str, ...]
    proto: onnx.NodeProto


class GlobalMaxPool(OpRun):
    """The maximum over all spatial axes: the reference of onnx 1.23 takes that of a sequence over the channels as well."""

    op_domain = ""

    def _run(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float32]]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


@dataclass(frozen=True)
class Network:
    """What a model computes of one sample.

    Attributes:
        nodes: in order of execution, only those that the output needs.
        constants: initialisers and computed constants by name.
        initialisers: names of those that stand in the file as such.
        shapes: of every activation, with batch 1.
        input, output: names.
        opset: version of the operators.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, NDArray[Any]]
    initialisers: frozenset[str]
    shapes: Mapping[str, Shape]
    input: str
    output: str
    opset: int

    def evaluator(self, constants: Mapping[str, NDArray[Any]]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """A function from samples (N, ...) to outputs (N, ...), computed by `onnx.reference` with these constants.

        Sample by sample: targets of reshapes hold the batch of 1.
        """
        used = {name for node in self.nodes for name in node.inputs}
        graph = helper.make_graph(
            [node.proto for node in self.nodes],
            "network",
            [helper.make_tensor_value_info(self.input, onnx.TensorProto.FLOAT, self.shapes[self.input])],
            [helper.make_tensor_value_info(self.output, onnx.TensorProto.FLOAT, self.shapes[self.output])],
            [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items() if name in used],
        )
        imports = [helper.make_opsetid("", self.opset)]
        runner = ReferenceEvaluator(helper.make_model(graph, opset_imports=imports), new_ops=[GlobalMaxPool])

        def evaluate(x: NDArray[np.float32]) -> NDArray[np.float32]:
            outputs: list[Any] = [runner.run(None, {self.input: sample[None]}) for sample in x]
            return np.concatenate([logits for (logits,) in outputs])

        return evaluate


def trace(model: onnx.ModelProto) -> Network:
    """Follow one sample through a model.

    Raises:
        UnsupportedOpError: a node is quantized, branches, is of another domain, or makes other than float32 of a static shape.
        ConversionError: the model has several inputs, sizes that are not fixed, or weights that are not finite float32.
    """
    for node in model.graph.node:
        _refuse_alien(node)
    source, shape = _input(model.graph)
    tracer = _Tracer(model, source, shape)
    for node in _needed(model.graph):
        tracer.follow(node)
    output = model.graph.output[0].name
    if output not in tracer.shapes or not tracer.nodes:
        raise ConversionError("the output does not depend on the input; export the whole model")
    initialisers = frozenset(tensor.name for tensor in model.graph.initializer)
    return Network(tuple(tracer.nodes), tracer.constants, initialisers, tracer.shapes, source, output, tracer.opset)


def with_last_bias(network: Network) -> Network:
    """Give the last dense layer a bias of zeros if it has none: exporters leave out one of zeros, and devices train it."""
    makers = {name: node for node in network.nodes for name in node.outputs}
    last = makers.get(network.output)
    while last is not None and last.kind in _VIEWS:
        last = makers.get(last.inputs[0])
    weight = None if last is None or len(last.inputs) < 2 else network.constants.get(last.inputs[1])
    if last is None or weight is None or weight.ndim != 2 or any(last.inputs[2:]) or last.kind not in ("Gemm", "MatMul"):
        return network
    outputs = weight.shape[0] if last.attributes.get("transB") else weight.shape[1]
    name = f"{last.inputs[1].removesuffix('.weight')}.bias"
    if name in network.constants or name in network.shapes:
        return network
    constants = {**network.constants, name: np.zeros(outputs, np.float32)}
    if last.kind == "Gemm":
        added = [
            _node(helper.make_node("Gemm", [*last.inputs[:2], name], last.outputs, last.name, **last.attributes), last.modules)
        ]
        shapes = network.shapes
    else:
        product = f"{last.outputs[0]}/product"
        added = [
            _node(helper.make_node("MatMul", last.inputs, [product], last.name), last.modules),
            _node(helper.make_node("Add", [product, name], last.outputs, last.name), last.modules),
        ]
        shapes = {**network.shapes, product: network.shapes[last.outputs[0]]}
    position = network.nodes.index(last)
    nodes = (*network.nodes[:position], *added, *network.nodes[position + 1 :])
    return replace(network, nodes=nodes, constants=constants, shapes=shapes)


def _refuse_alien(node: onnx.NodeProto) -> None:
    place = place_of(node)
    if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
        raise UnsupportedOpError(place, f"{node.op_type}: the model is quantized", "give the float model, int8 is made here")
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedOpError(
            place, f"operator {node.op_type} of domain {node.domain}", "use operators of the standard domain ai.onnx"
        )
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise UnsupportedOpError(place, f"{node.op_type}: control flow", "export one path, without If, Loop and Scan")
    if node.op_type in _RANDOM:
        raise UnsupportedOpError(place, f"{node.op_type}: random numbers", "export the model in evaluation mode")


def _input(graph: onnx.GraphProto) -> tuple[str, Shape]:
    """Name and shape, with batch 1, of the one input."""
    initialisers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initialisers]
    if len(inputs) != 1:
        raise ConversionError(f"the model has {len(inputs)} inputs; export one that takes the samples")
    value = inputs[0]
    if not value.type.HasField("tensor_type"):
        raise ConversionError(f"input {value.name} is a {value.type.WhichOneof('value')}; expected one float32 tensor")
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise ConversionError(
            f"input {value.name} is {_type_name(tensor.elem_type)}, expected float32; export the float model and scale integers "
            f"before it"
        )
    sizes: list[int | str] = [
        dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or "?" for dimension in tensor.shape.dim
    ]
    if any(not isinstance(size, int) or size < 1 for size in sizes[1:]) or len(sizes) < 2:
        raise ConversionError(
            f"input {value.name} has shape ({', '.join(map(str, sizes))}); only the batch in front may be left open, export "
            f"with fixed sizes"
        )
    return value.name, (1, *(int(size) for size in sizes[1:]))


def _type_name(elem_type: int) -> str:
    return (
        str(onnx.TensorProto.DataType.Name(elem_type)).lower() if elem_type in onnx.TensorProto.DataType.values() else "unknown"
    )


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that the output depends on, in order."""
    wanted = {graph.output[0].name}
    nodes = []
    for node in reversed(graph.node):
        if wanted.intersection(name for name in node.output if name):
            nodes.append(node)
            wanted.update(node.input)
    return nodes[::-1]


def _node(proto: onnx.NodeProto, modules: tuple[str, ...]) -> Node:
    attributes = {attribute.name: _plain(helper.get_attribute_value(attribute)) for attribute in proto.attribute}
    return Node(proto.op_type, place_of(proto), tuple(proto.input), tuple(proto.output), attributes, modules, proto)


def _plain(value: Any) -> Any:  # noqa: ANN401  # whatever attributes hold
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return list(value) if isinstance(value, list | tuple) else value


def _modules_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """Paths of modules from what torch's exporters leave: a list of scopes, or "/layer1/layer1.0/conv/Conv" as the name."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return ()
            return tuple(str(scope) for scope in scopes[1:-1] if scope)
    if not node.name.startswith("/"):
        return ()
    paths: list[str] = []
    before = ""
    for scope in node.name.split("/")[1:-1]:
        own = scope.removeprefix(f"{before}.") if before else scope  # inside a Sequential the scope repeats its parent's name
        paths.append(f"{paths[-1]}.{own}" if paths else own)
        before = scope
    return tuple(paths)


class _Tracer:
    """State on the way through a model: what is constant, and the shapes of what is not."""

    def __init__(self, model: onnx.ModelProto, source: str, shape: Shape) -> None:
        self.opset = opset_of(model)
        self.ir_version = int(model.ir_version)
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {source: shape}
        needed = {name for node in _needed(model.graph) for name in node.input}
        self.constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer if tensor.name in needed}

    def follow(self, proto: onnx.NodeProto) -> None:
        """Compute a node's constant results, or keep it with the shape of its activation."""
        place = place_of(proto)
        if proto.op_type == "Shape" and proto.input[0] in self.shapes:
            attributes = _node(proto, ()).attributes
            sizes = self.shapes[proto.input[0]][attributes.get("start", 0) : attributes.get("end")]
            self.constants[proto.output[0]] = np.array(sizes, np.int64)
            return
        types = self._infer(proto, place)
        if all(name in self.constants for name in proto.input if name):
            self._compute(proto, types, place)
            return
        node = _node(proto, _modules_of(proto))
        for name, kind in types.items():
            if kind.WhichOneof("value") != "tensor_type":
                raise UnsupportedOpError(place, f"{node.kind} makes a {kind.WhichOneof('value')}", "use tensors alone")
            self.shapes[name] = _static_shape(kind)
        if types[node.outputs[0]].tensor_type.elem_type != onnx.TensorProto.FLOAT:
            made = _type_name(types[node.outputs[0]].tensor_type.elem_type)
            raise UnsupportedOpError(place, f"{node.kind} makes {made} of the sample", "keep activations in float32")
        if not self.shapes[node.outputs[0]]:
            raise UnsupportedOpError(place, f"the shape that {node.kind} makes depends on values", "export with fixed sizes")
        self.nodes.append(node)

    def _infer(self, proto: onnx.NodeProto, place: str) -> dict[str, onnx.TypeProto]:
        """Types of a node's used results."""
        names = [name for name in proto.input if name]
        types = {
            name: _type_of(self.constants[name])
            if name in self.constants
            else helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, self.shapes[name])
            for name in names
        }
        data = {
            name: numpy_helper.from_array(self.constants[name], name)
            for name in names
            if name in self.constants and self.constants[name].size <= _SHAPE_ELEMENTS
        }
        try:
            schema = defs.get_schema(proto.op_type, self.opset, "")
            imports = [helper.make_opsetid("", self.opset)]
            made = shape_inference.infer_node_outputs(schema, proto, types, data, None, imports, self.ir_version)
        except Exception as error:  # raised by the C++ behind it, by several names
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConversionError(f"{place}: {proto.op_type} does not suit its inputs ({reason}); export it again") from error
        if proto.output[0] not in made:
            raise UnsupportedOpError(place, f"what {proto.op_type} makes is not known before it runs", "use static shapes")
        return {name: kind for name, kind in made.items() if name in proto.output}

    def _compute(self, proto: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], place: str) -> None:
        """Compute constants; a size that is not known beforehand is not trusted."""
        for kind in types.values():
            shape = _static_shape(kind)
            is_scalar = kind.tensor_type.HasField("shape") and not kind.tensor_type.shape.dim
            if not is_scalar and not 0 < int(np.prod(shape or (0,), dtype=np.float64)) <= _LARGEST_CONSTANT:
                raise UnsupportedOpError(
                    place, f"{proto.op_type} makes a constant of unknown or excessive size", "store constants as initialisers"
                )
        try:
            evaluator = ReferenceEvaluator(proto, opsets={"": self.opset})
            results = evaluator.run(None, {name: self.constants[name] for name in proto.input if name})
        except Exception as error:  # whatever the reference implementation of an operator raises
            raise ConversionError(f"{place}: {proto.op_type} of constants cannot be computed ({error})") from error
        for name, values in zip(proto.output, results, strict=False):
            if name:
                self.constants[name] = np.asarray(values)


def _array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """Values of an initialiser.

    Raises:
        ConversionError: they do not suit its shape, or are floats of another type than float32.
    """
    if tensor.data_type in (onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        raise ConversionError(
            f"initialiser {tensor.name} is {_type_name(tensor.data_type)}, expected float32; convert the model with .float() "
            f"before the export"
        )
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"initialiser {tensor.name} is damaged ({reason}); export the model again") from error


def _type_of(values: NDArray[Any]) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)


def _static_shape(kind: onnx.TypeProto) -> Shape:
    """The shape of a tensor; () where a size is not known (activations and computed constants have at least one axis)."""
    dimensions = kind.tensor_type.shape.dim
    if not all(dimension.HasField("dim_value") for dimension in dimensions):
        return ()
    return tuple(int(dimension.dim_value) for dimension in dimensions)
