# SPDX-License-Identifier: Apache-2.0
"""From a sound ONNX model to the operators that work on samples, with constants computed and every shape known.

Exporters write shapes as arithmetic (Shape, Gather, Concat into a Reshape) and leave small computations on weights. With the
batch fixed to 1 and all other sizes static, whatever does not depend on the sample is computed here, once, by
`onnx_reference`, the standard's own implementation; what remains is a list of nodes between one input and one output.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import defs, helper, numpy_helper, shape_inference

from fedmote.errors import ConversionError, UnsupportedOpError
from fedmote_convert.layout import Shape
from fedmote_convert.onnx_file import opset_of, place_of
from fedmote_convert.onnx_reference import evaluator_of

_LARGEST_TENSOR = 2**24  # elements of a result: beyond what any device holds, and little for who converts
_LARGEST_WINDOW = 2**16  # elements of a kernel: an image of 256 x 256
_WINDOW_ATTRIBUTES = {"kernel_shape": 1, "strides": 1, "dilations": 1, "group": 1, "pads": 0}  # and the least of each
_SHAPE_ELEMENTS = 64  # constants up to this size are told to shape inference: shapes, axes, paddings
_QUANTIZED = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
    *("ConvInteger", "MatMulInteger"),
)
_BOUNDED = ("NonZero", "Compress", "Unique")  # what they make has at most the size of what they read
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
_OF_SEVERAL_RESULTS = ("Dropout", "Split")
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
        """A function from samples (N, ...) to outputs (N, ...), computed by `onnx_reference` with these constants.

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
        runner = evaluator_of(helper.make_model(graph, opset_imports=imports), self.opset)

        def evaluate(x: NDArray[np.float32]) -> NDArray[np.float32]:
            with np.errstate(all="ignore"):  # what overflows is said below
                outputs: list[Any] = [runner.run(None, {self.input: sample[None]}) for sample in x]
            logits = np.concatenate([values for (values,) in outputs])
            if not np.isfinite(logits).all():
                raise ConversionError("the model's logits are not finite; check its weights and the calibration samples")
            return logits

        return evaluate


def trace(model: onnx.ModelProto, refuse_unsupported: Callable[[str, str], None]) -> Network:
    """Follow one sample through a model.

    Args:
        model: sound, as `onnx_file.load` returns it.
        refuse_unsupported: called with operator and name of each node that works on the sample, before it is computed.

    Raises:
        UnsupportedOpError: a node is quantized, branches, is of another domain, or makes other than float32 of a static shape.
        ConversionError: the model has several inputs, sizes that are not fixed, or weights that are not finite float32.
    """
    for node in model.graph.node:
        _refuse_alien(node)
    source, shape = _input(model.graph)
    tracer = _Tracer(model, source, shape, refuse_unsupported)
    for node in _needed(model.graph):
        tracer.follow(node)
    output = model.graph.output[0].name
    if output not in tracer.activations or not tracer.nodes:
        raise ConversionError("the output does not depend on the input; export the whole model")
    initialisers = frozenset(tensor.name for tensor in model.graph.initializer)
    shapes = {name: values.shape for name, values in tracer.activations.items()}
    return Network(tuple(tracer.nodes), tracer.constants, initialisers, shapes, source, output, tracer.opset)


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
    """State on the way through a model: the values of constants, and those that a sample of zeros gives everything else.

    Both are computed node by node by `onnx_reference`, so that whatever cannot be computed is found here, by node.
    """

    def __init__(self, model: onnx.ModelProto, source: str, shape: Shape, refuse_unsupported: Callable[[str, str], None]) -> None:
        self.refuse_unsupported = refuse_unsupported
        self.opset = opset_of(model)
        self.ir_version = int(model.ir_version)
        self.nodes: list[Node] = []
        self.activations: dict[str, NDArray[Any]] = {source: np.zeros(shape, np.float32)}
        needed = {name for node in _needed(model.graph) for name in node.input}
        self.constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer if tensor.name in needed}

    def follow(self, proto: onnx.NodeProto) -> None:
        """Compute a node's results and, unless they are constants, keep it."""
        place = place_of(proto)
        _check_windows(proto, place)
        is_shape = proto.op_type == "Shape"  # which depends on the sample's size alone, and that is fixed
        is_constant = is_shape or all(name in self.constants for name in proto.input if name)
        if not is_constant:
            self.refuse_unsupported(proto.op_type, place)
        if any(proto.output[1:]) and proto.op_type not in _OF_SEVERAL_RESULTS:
            raise UnsupportedOpError(place, f"{proto.op_type} with more than one result", "use its first result alone")
        shapes = self._shapes(proto, self._types(proto, place), place)
        if not is_constant:
            self.nodes.append(_node(proto, _modules_of(proto)))
        for name, values in self._run(proto, place).items():
            if shapes[name] is not None and shapes[name] != values.shape and not _is_rounded_up(proto):
                made = f"{proto.op_type} makes {values.shape}, by the standard's rules it is {shapes[name]}"
                raise UnsupportedOpError(place, made, "export it with explicit pads")
            (self.constants if is_constant else self.activations)[name] = values
        if not is_constant and self.activations[proto.output[0]].dtype != np.float32:
            dtype = self.activations[proto.output[0]].dtype
            raise UnsupportedOpError(place, f"{proto.op_type} makes {dtype} of the sample", "keep activations in float32")

    def _values(self, proto: onnx.NodeProto) -> dict[str, NDArray[Any]]:
        """What a node reads."""
        names = [name for name in proto.input if name]
        return {name: self.constants[name] if name in self.constants else self.activations[name] for name in names}

    def _types(self, proto: onnx.NodeProto, place: str) -> dict[str, onnx.TypeProto]:
        """Types of a node's results, by the standard's rules."""
        values = self._values(proto)
        types = {
            name: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for name, v in values.items()
        }
        data = {
            name: numpy_helper.from_array(known, name)
            for name, known in values.items()
            if name in self.constants and known.size <= _SHAPE_ELEMENTS
        }
        try:
            schema = defs.get_schema(proto.op_type, self.opset, "")
            imports = [helper.make_opsetid("", self.opset)]
            return shape_inference.infer_node_outputs(schema, proto, types, data, None, imports, self.ir_version)
        except Exception as error:  # raised by the C++ behind it, by several names
            raise self._unsuitable(proto, place, error) from error

    def _shapes(self, proto: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], place: str) -> dict[str, Shape | None]:
        """Shapes of a node's used results, None where it is not known before it runs.

        Raises:
            UnsupportedOpError: it makes something else than tensors, or what may be excessive in size.
        """
        shapes: dict[str, Shape | None] = {}
        for name in filter(None, proto.output):
            kind = types.get(name, onnx.TypeProto())
            if kind.WhichOneof("value") not in (None, "tensor_type"):
                raise UnsupportedOpError(place, f"{proto.op_type} makes a {kind.WhichOneof('value')}", "use tensors alone")
            shapes[name] = shape = _static_shape(kind)
            if shape is None and proto.op_type not in _BOUNDED:
                raise UnsupportedOpError(place, f"what {proto.op_type} makes depends on values", "export with fixed sizes")
            if shape is not None and (min(shape, default=1) < 0 or math.prod(shape) > _LARGEST_TENSOR):
                hint = f"sizes are positive, and tensors have at most {_LARGEST_TENSOR} elements"
                raise UnsupportedOpError(place, f"{proto.op_type} makes {shape}", hint)
        return shapes

    def _run(self, proto: onnx.NodeProto, place: str) -> dict[str, NDArray[Any]]:
        """A node's used results, by name."""
        try:
            with np.errstate(all="ignore"):  # a sample of zeros is none that the model was made for
                results: Any = evaluator_of(proto, self.opset).run(None, self._values(proto))
        except Exception as error:  # whatever the reference implementation of an operator raises
            raise self._unsuitable(proto, place, error) from error
        return {name: np.asarray(values) for name, values in zip(proto.output, results, strict=False) if name}

    def _unsuitable(self, proto: onnx.NodeProto, place: str, error: Exception) -> ConversionError:
        reason = " ".join(str(error).split()) or type(error).__name__
        shapes = ", ".join(f"{name} {values.shape}" for name, values in self._values(proto).items())
        return ConversionError(f"{place}: {proto.op_type} does not suit its inputs {shapes} ({reason}); export it again")


def _is_rounded_up(proto: onnx.NodeProto) -> bool:
    """Whether it is a pool for which shape inference counts a last window that would lie in the padding alone."""
    return any(attribute.name == "ceil_mode" and attribute.i for attribute in proto.attribute)


def _check_windows(proto: onnx.NodeProto, place: str) -> None:
    """Refuse windows that would keep whoever computes them busy for ever, or that the standard excludes."""
    attributes = _node(proto, ()).attributes
    for name, least in _WINDOW_ATTRIBUTES.items():
        values = attributes.get(name, [])
        values = values if isinstance(values, list) else [values]
        is_excessive = name == "kernel_shape" and math.prod(values) > _LARGEST_WINDOW
        if is_excessive or not all(isinstance(value, int) and least <= value <= _LARGEST_WINDOW for value in values):
            hint = f"use numbers from {least}, and windows of at most {_LARGEST_WINDOW} elements"
            raise UnsupportedOpError(place, f"{proto.op_type} with {name} {values}", hint)


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


def _static_shape(kind: onnx.TypeProto) -> Shape | None:
    """The shape of a tensor, None where it is not known."""
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or not all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
        return None
    return tuple(int(dimension.dim_value) for dimension in tensor.shape.dim)
