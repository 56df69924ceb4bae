# SPDX-License-Identifier: Apache-2.0
"""ONNX operators, one by one, and the calls of torch operators that say the same.

`OPERATORS` at the end is the table of contents. ONNX and torch mean the same by most operators and differ in how they write
arguments, so a translation only rewrites arguments and hands the call to `operators.translate`: what becomes of it in the graph
is decided in one place, and a model gives the same graph whichever way it came.

Checkpoint tensors have torch's layout. Where ONNX keeps a weight otherwise (the matrix of a MatMul is transposed) its `Form`
leads to and fro.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import UnsupportedOpError
from fedmote.package.graph import Tensors
from fedmote_convert import operators
from fedmote_convert.layout import Shape
from fedmote_convert.onnx_graph import Network, Node
from fedmote_convert.sketch import Call, Constant, Parameter, Sketch, Value

Pads = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Form:
    """How an initialiser becomes a tensor of the checkpoint.

    Attributes:
        shape: of the initialiser.
        is_transposed: the checkpoint holds its transpose.
        factor: the checkpoint holds it times this number (the alpha and beta of Gemm).
        is_flat: the checkpoint holds it as a vector.
    """

    shape: Shape
    is_transposed: bool = False
    factor: float = 1.0
    is_flat: bool = False

    def to_checkpoint(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return the checkpoint tensor of an initialiser."""
        values = values.T if self.is_transposed else values
        values = values.ravel() if self.is_flat else values
        return np.ascontiguousarray(values * np.float32(self.factor), np.float32)

    def to_initialiser(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the initialiser of a checkpoint tensor."""
        values = values.T if self.is_transposed else values.reshape(self.shape)
        return np.ascontiguousarray(values / np.float32(self.factor), np.float32)


@dataclass
class Translation:
    """A network while its nodes are translated.

    Attributes:
        network: what is translated.
        sketch: the graph that it becomes.
        tensors: the checkpoint: what the operators' weights refer to.
        forms: of the initialisers behind them, by the same names.
    """

    network: Network
    sketch: Sketch
    tensors: Tensors = field(default_factory=dict)
    forms: dict[str, Form] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        """Shape of an activation, channels first."""
        return self.sketch.torch_shapes[name]

    def activation(self, node: Node, index: int = 0) -> Value:
        """The activation that is an input of a node."""
        name = node.inputs[index]
        if name not in self.sketch.torch_shapes:
            raise refusal(node, f"its input {name} is a constant", "compute on constants before the export")
        return Value(name)

    def constant(self, node: Node, index: int) -> NDArray[Any] | None:
        """The constant that is an input of a node, or None where that is left out."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name and name not in self.network.constants:
            raise refusal(node, f"its input {name} depends on the sample", "store it as an initialiser")
        return self.network.constants[name] if name else None

    def integers(self, node: Node, index: int, attribute: str = "") -> list[int] | None:
        """Integers that an operator takes as an input, in older opsets as an attribute; None where they are left out."""
        if attribute in node.attributes:
            return [int(value) for value in node.attributes[attribute]]
        values = self.constant(node, index)
        return None if values is None else [int(value) for value in np.atleast_1d(values)]

    def number(self, node: Node, index: int) -> float | None:
        """The number that is an input of a node, or None where that is left out."""
        values = self.constant(node, index)
        if values is None or not values.size:
            return None
        return float(values.reshape(-1)[0])

    def parameter(self, node: Node, index: int, **form: Any) -> Parameter | None:  # noqa: ANN401  # fields of Form
        """The checkpoint tensor that is an input of a node, or None where that is left out.

        Raises:
            UnsupportedOpError: it is no float32, not finite, or another node needs it in another form.
        """
        values = self.constant(node, index)
        if values is None:
            return None
        name, made = node.inputs[index], Form(values.shape, **form)
        if values.dtype != np.float32 or not np.isfinite(values).all():
            what = f"is {values.dtype}" if values.dtype != np.float32 else "holds values that are not finite (NaN or infinite)"
            raise refusal(node, f"initialiser {name} {what}", "give finite float32 weights")
        if self.forms.setdefault(name, made) != made:
            raise refusal(node, f"initialiser {name} is used in two layouts", "give each layer weights of its own")
        self.tensors[name] = made.to_checkpoint(values)
        return Parameter(name, self.tensors[name].shape)

    def call(self, node: Node, target: str, shape: Shape, output: str = "", /, **arguments: Any) -> Value:  # noqa: ANN401
        """Translate one call of a torch operator; its result has the node's own name where none is given."""
        if target not in operators.OPERATORS:
            raise refusal(node, f"operator {node.kind} is not supported", operators.hint_for(target))
        output = output or node.outputs[0]
        operators.translate(Call(node.name, f"aten.{target}.default", arguments, shape, output), self.sketch)
        return Value(output)

    def result(self, node: Node) -> Shape:
        """Shape of a node's first result, channels first."""
        return self.network.shapes[node.outputs[0]]


Handler = Callable[[Node, Translation], None]


def refusal(node: Node, reason: str, hint: str) -> UnsupportedOpError:
    """The error that refuses a node."""
    return UnsupportedOpError(node.name, reason, hint)


def _flag(node: Node, name: str) -> bool:
    return bool(node.attributes.get(name, 0))


def _spatial(node: Node, translation: Translation) -> list[int]:
    """Sizes of the spatial axes of the first input."""
    sizes = list(translation.shape(translation.activation(node).name)[2:])
    if len(sizes) not in (1, 2):
        raise refusal(node, f"{node.kind} over {len(sizes)} spatial axes", "use an image (1, C, H, W) or a sequence (1, C, W)")
    return sizes


# --- windows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Windows:
    """How windows lie over the spatial axes of an input, one number for each axis."""

    sizes: list[int]
    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    pads: Pads

    @property
    def is_symmetric(self) -> bool:
        """Whether both ends are padded alike, which torch's operators can say."""
        return self.pads[0] == self.pads[1]


def _windows(node: Node, kernel: Sequence[int], translation: Translation) -> _Windows:
    sizes = _spatial(node, translation)
    ones, zeros = [1] * len(sizes), [0] * len(sizes)
    given = node.attributes.get("pads", [*zeros, *zeros])
    windows = _Windows(
        sizes,
        list(kernel),
        list(node.attributes.get("strides", ones)),
        list(node.attributes.get("dilations", ones)),
        (given[: len(sizes)], given[len(sizes) :]),
    )
    if len({len(numbers) for numbers in vars(windows).values() if numbers is not windows.pads} | {len(given) // 2}) != 1:
        raise refusal(node, f"kernel, strides, dilations and pads for other than {len(sizes)} axes", "export it again")
    automatic = node.attributes.get("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        return replace(windows, pads=_same_pads(windows, is_far=automatic == "SAME_UPPER"))
    return replace(windows, pads=(zeros, zeros)) if automatic == "VALID" else windows


def _same_pads(windows: _Windows, is_far: bool) -> Pads:
    """Padding that makes an output for every stride; the odd pixel lies at the far end or at the near one."""
    lesser, greater = [], []
    for size, kernel, stride, dilation in zip(windows.sizes, windows.kernel, windows.stride, windows.dilation, strict=True):
        reach = (kernel - 1) * dilation + 1
        total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        lesser.append(total // 2)
        greater.append(total - total // 2)
    return (lesser, greater) if is_far else (greater, lesser)


def _padded(node: Node, source: Value, pads: Pads, translation: Translation) -> Value:
    """The source behind a padding of its spatial axes with zeros."""
    shape = translation.shape(source.name)
    sizes = [size + near + far for size, near, far in zip(shape[2:], *pads, strict=True)]
    pairs = [amount for pair in reversed(list(zip(*pads, strict=True))) for amount in pair]
    output = f"{node.outputs[0]}/pad"
    return translation.call(node, "constant_pad_nd", (*shape[:2], *sizes), output, self=source, pad=pairs, value=0)


def _convolution(node: Node, translation: Translation) -> None:
    weight = translation.parameter(node, 1)
    assert weight is not None  # the checker knows that Conv has one
    windows = _windows(node, weight.shape[2:], translation)
    groups = node.attributes.get("group", 1)
    source, padding = translation.activation(node), windows.pads[0]
    if not windows.is_symmetric:
        source, padding = _padded(node, source, windows.pads, translation), [0] * len(padding)
    translation.call(
        node,
        f"conv{len(padding)}d",
        translation.result(node),
        input=source,
        weight=weight,
        bias=translation.parameter(node, 2),
        stride=windows.stride,
        padding=padding,
        dilation=windows.dilation,
        groups=groups,
    )


def _max_pool(node: Node, translation: Translation) -> None:
    windows = _windows(node, node.attributes.get("kernel_shape", ()), translation)
    _pool(node, translation, "max_pool", windows, translation.activation(node), windows.pads[0], dilation=windows.dilation)


def _average_pool(node: Node, translation: Translation) -> None:
    windows = _windows(node, node.attributes.get("kernel_shape", ()), translation)
    if set(windows.dilation) != {1}:
        raise refusal(node, "an average pool with dilation", "use dilations of 1")
    source, padding, is_counted = translation.activation(node), windows.pads[0], _flag(node, "count_include_pad")
    if is_counted and not windows.is_symmetric:
        source, padding = _padded(node, source, windows.pads, translation), [0] * len(padding)
    arguments = {"count_include_pad": is_counted, "divisor_override": None}
    _pool(node, translation, "avg_pool", windows, source, padding, **arguments)


def _pool(
    node: Node,
    translation: Translation,
    target: str,
    windows: _Windows,
    source: Value,
    padding: list[int],
    **more: Any,  # noqa: ANN401  # further arguments of the torch operator
) -> None:
    """A pool. The shape of its result says how much of the far border is read, and whether sizes were rounded up."""
    arguments = {"kernel_size": windows.kernel, "stride": windows.stride, "padding": padding, **more}
    arguments["ceil_mode"] = _flag(node, "ceil_mode")
    translation.call(node, f"{target}{len(padding)}d", translation.result(node), self=source, **arguments)


def _global_pool(target: str) -> Handler:
    """A pool over the whole image or sequence."""

    def translate_global_pool(node: Node, translation: Translation) -> None:
        axes, source = len(_spatial(node, translation)), translation.activation(node)
        translation.call(node, f"{target}{axes}d", translation.result(node), self=source, output_size=[1] * axes)

    return translate_global_pool


# --- dense layers and normalisation ----------------------------------------------------------------------------------


def _gemm(node: Node, translation: Translation) -> None:
    if _flag(node, "transA"):
        raise refusal(node, "a Gemm of a transposed activation", "use transA=0, samples in rows")
    alpha, beta = (float(node.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    if alpha == 0 or beta == 0:
        raise refusal(node, f"a Gemm with alpha={alpha}, beta={beta}", "leave the operator or its bias out")
    weight = translation.parameter(node, 1, is_transposed=not _flag(node, "transB"), factor=alpha)
    _linear(node, translation, weight, beta)


def _matmul(node: Node, translation: Translation) -> None:
    """A product with a constant matrix, to which `join_dense` has added the bias behind it."""
    if node.inputs[0] not in translation.sketch.torch_shapes or node.inputs[1] not in translation.network.constants:
        raise refusal(node, "a MatMul of other than an activation and a constant matrix", operators.hint_for("matmul"))
    _linear(node, translation, translation.parameter(node, 1, is_transposed=True), 1.0)


def _linear(node: Node, translation: Translation, weight: Parameter | None, bias_factor: float) -> None:
    bias = translation.constant(node, 2)
    if weight is None or len(weight.shape) != 2:
        raise refusal(node, f"{node.kind} without a constant matrix", operators.hint_for("matmul"))
    if bias is not None and bias.size != weight.shape[0]:
        raise refusal(node, f"a bias of shape {bias.shape} for {weight.shape[0]} outputs", "give one number for each output")
    translation.call(
        node,
        "linear",
        translation.result(node),
        input=translation.activation(node),
        weight=weight,
        bias=translation.parameter(node, 2, factor=bias_factor, is_flat=bias is not None and bias.ndim != 1),
    )


def _batch_norm(node: Node, translation: Translation) -> None:
    source = translation.activation(node)
    names = ("weight", "bias", "running_mean", "running_var")
    parameters = {name: translation.parameter(node, index) for index, name in enumerate(names, 1)}
    training, eps = _flag(node, "training_mode"), node.attributes.get("epsilon", 1e-5)
    translation.call(node, "batch_norm", translation.result(node), input=source, training=training, eps=eps, **parameters)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _arithmetic(target: str) -> Handler:
    """A sum, difference, product or quotient of two activations, or of an activation and a constant."""

    def translate_arithmetic(node: Node, translation: Translation) -> None:
        first, second = (_operand(node, index, translation, target) for index in (0, 1))
        alpha = {"alpha": 1} if target in ("add", "sub") else {}
        translation.call(node, target, translation.result(node), self=first, other=second, **alpha)

    return translate_arithmetic


def _operand(node: Node, index: int, translation: Translation, target: str) -> Value | Parameter | Constant | float:
    """An activation, a number, a tensor of the checkpoint, or, where the checkpoint would need its inverse, a constant."""
    name = node.inputs[index]
    if name in translation.sketch.torch_shapes:
        return Value(name)
    values = translation.constant(node, index)
    if values is None or values.dtype != np.float32 or not np.isfinite(values).all():
        raise refusal(node, f"{node.kind} with a constant {name} that is not finite float32", "use finite float32 constants")
    if values.size == 1:
        return float(values.reshape(-1)[0])
    if target in ("add", "mul") and name in translation.network.initialisers:
        return translation.parameter(node, index) or Constant(values)
    return Constant(values)


def _reduction(target: str) -> Handler:
    """An average or maximum along axes."""

    def translate_reduction(node: Node, translation: Translation) -> None:
        source, axes = translation.activation(node), translation.integers(node, 1, "axes")
        if not axes and _flag(node, "noop_with_empty_axes"):
            translation.call(node, "clone", translation.result(node), self=source)
            return
        keeps = bool(node.attributes.get("keepdims", 1))
        translation.call(node, target, translation.result(node), self=source, dim=axes, keepdim=keeps)

    return translate_reduction


# --- functions of one element ----------------------------------------------------------------------------------------


def _function(target: str) -> Handler:
    """A function that torch has under another name."""

    def translate_function(node: Node, translation: Translation) -> None:
        translation.call(node, target, translation.result(node), self=translation.activation(node))

    return translate_function


def _clip(node: Node, translation: Translation) -> None:
    low, high = translation.number(node, 1), translation.number(node, 2)
    translation.call(node, "clamp", translation.result(node), self=translation.activation(node), min=low, max=high)


def _leaky_relu(node: Node, translation: Translation) -> None:
    slope = node.attributes.get("alpha", 0.01)
    source = translation.activation(node)
    translation.call(node, "leaky_relu", translation.result(node), self=source, negative_slope=slope)


def _hard_sigmoid(node: Node, translation: Translation) -> None:
    """Torch's own, or the clamp to [0, 1] of any other line."""
    source, shape, name = translation.activation(node), translation.result(node), node.outputs[0]
    if _is_torch_hard_sigmoid(node):
        translation.call(node, "hardsigmoid", shape, self=source)
        return
    alpha, beta = _hard_sigmoid_line(node)
    scaled = translation.call(node, "mul", shape, f"{name}/scaled", self=source, other=alpha)
    shifted = translation.call(node, "add", shape, f"{name}/shifted", self=scaled, other=beta)
    translation.call(node, "clamp", shape, self=shifted, min=0.0, max=1.0)


def _hard_sigmoid_line(node: Node) -> tuple[float, float]:
    """(slope, height at zero)."""
    return float(node.attributes.get("alpha", 0.2)), float(node.attributes.get("beta", 0.5))


def _is_torch_hard_sigmoid(node: Node) -> bool:
    alpha, beta = _hard_sigmoid_line(node)
    return bool(np.float32(alpha) == np.float32(1 / 6)) and beta == 0.5


def _softmax(node: Node, translation: Translation) -> None:
    axis = node.attributes.get("axis", -1)
    translation.call(node, "softmax", translation.result(node), self=translation.activation(node), dim=axis)


# --- shapes ----------------------------------------------------------------------------------------------------------


def _concat(node: Node, translation: Translation) -> None:
    sources = [translation.activation(node, index) for index in range(len(node.inputs))]
    translation.call(node, "cat", translation.result(node), tensors=sources, dim=node.attributes["axis"])


def _transpose(node: Node, translation: Translation) -> None:
    source = translation.activation(node)
    axes = list(range(len(translation.shape(source.name))))
    permutation = node.attributes.get("perm", axes[::-1])
    translation.call(node, "permute", translation.result(node), self=source, dims=permutation)


def _gather(node: Node, translation: Translation) -> None:
    """One index along an axis, which goes where the index is a number and stays where it is a list of one."""
    source, indices = translation.activation(node), translation.constant(node, 1)
    if indices is None or indices.size != 1:
        raise refusal(node, "a Gather of several indices", "use Slice, or Split and Concat")
    shape, axis = translation.shape(source.name), node.attributes.get("axis", 0)
    index = int(indices.reshape(-1)[0]) % shape[axis]
    if indices.ndim == 0:
        translation.call(node, "select", translation.result(node), self=source, dim=axis, index=index)
    else:
        _part(node, translation, source, axis % len(shape), range(index, index + 1), node.outputs[0])


def _depth_to_space(node: Node, translation: Translation) -> None:
    if node.attributes.get("mode", "DCR") != "CRD":
        raise refusal(node, "a DepthToSpace of mode DCR", "use mode CRD, which is torch's pixel_shuffle")
    source, factor = translation.activation(node), node.attributes["blocksize"]
    translation.call(node, "pixel_shuffle", translation.result(node), self=source, upscale_factor=factor)


def _pad(node: Node, translation: Translation) -> None:
    source, value = translation.activation(node), translation.number(node, 2)
    rank = len(translation.shape(source.name))
    pads, axes = translation.integers(node, 1) or [], translation.integers(node, 3) or list(range(rank))
    near, far = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        near[axis], far[axis] = pads[position], pads[len(axes) + position]
    pairs = [amount for pair in reversed(list(zip(near, far, strict=True))) for amount in pair]
    while pairs and pairs[-2:] == [0, 0]:  # torch leaves the first axes out where they are not padded
        pairs = pairs[:-2]
    mode = node.attributes.get("mode", "constant")
    translation.call(node, "pad", translation.result(node), self=source, pad=pairs, mode=mode, value=value)


def _slice(node: Node, translation: Translation) -> None:
    source = translation.activation(node)
    shape = translation.shape(source.name)
    starts, ends = translation.integers(node, 1) or [], translation.integers(node, 2) or []
    axes = translation.integers(node, 3) or list(range(len(starts)))
    steps = translation.integers(node, 4) or [1] * len(starts)
    parts: list[tuple[int, range]] = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise refusal(node, f"a slice in steps of {step}", "use steps of 1 or more")
        size = shape[axis % len(shape)]
        indices = range(*slice(start, end, step).indices(size))
        if indices != range(size):
            parts.append((axis % len(shape), indices))
    for axis, indices in parts[:-1]:
        source = _part(node, translation, source, axis, indices, f"{node.outputs[0]}/axis{axis}")
    if parts:
        _part(node, translation, source, *parts[-1], node.outputs[0])
    else:
        translation.call(node, "clone", shape, self=source)


def _part(node: Node, translation: Translation, source: Value, axis: int, indices: range, output: str) -> Value:
    """One slice along one axis."""
    if not indices:
        raise refusal(node, "a slice of nothing", "leave it out")
    shape = translation.shape(source.name)
    made = (*shape[:axis], len(indices), *shape[axis + 1 :])
    bounds = {"start": indices.start, "end": indices.stop, "step": indices.step}
    return translation.call(node, "slice", made, output, self=source, dim=axis, **bounds)


def _split(node: Node, translation: Translation) -> None:
    source = translation.activation(node)
    axis = node.attributes.get("axis", 0) % len(translation.shape(source.name))
    start = 0
    for name in node.outputs:
        size = translation.network.shapes[name][axis]
        _part(node, translation, source, axis, range(start, start + size), name)
        start += size


def _dropout(node: Node, translation: Translation) -> None:
    if translation.number(node, 2) or any(node.outputs[1:]):
        raise refusal(node, "a dropout in training mode, or with a mask", "export the model in evaluation mode")
    _function("dropout")(node, translation)


# ONNX operator -> translation.
OPERATORS: dict[str, Handler] = {
    "Conv": _convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "Relu": _function("relu"),
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "HardSwish": _function("hardswish"),
    "HardSigmoid": _hard_sigmoid,
    "Sigmoid": _function("sigmoid"),
    "Tanh": _function("tanh"),
    "Softmax": _softmax,
    "Add": _arithmetic("add"),
    "Sub": _arithmetic("sub"),
    "Mul": _arithmetic("mul"),
    "Div": _arithmetic("div"),
    "Neg": _function("neg"),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool("adaptive_avg_pool"),
    "GlobalMaxPool": _global_pool("adaptive_max_pool"),
    "ReduceMean": _reduction("mean"),
    "ReduceMax": _reduction("amax"),
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Expand": _function("expand"),
    "Gather": _gather,
    "DepthToSpace": _depth_to_space,
    "Transpose": _transpose,
    "Flatten": _function("flatten"),
    "Reshape": _function("reshape"),
    "Squeeze": _function("squeeze"),
    "Unsqueeze": _function("unsqueeze"),
    "Dropout": _dropout,
    "Identity": _function("clone"),
    "Cast": _function("to"),
}

# What is often met and not supported: the torch operator whose nearest supported form is meant.
_TORCH_NAMES: dict[str, str] = {
    **dict.fromkeys(("Gelu", "Elu", "Selu", "Celu", "PRelu", "Softplus", "Softsign", "Mish", "ThresholdedRelu", "Erf"), "gelu"),
    **dict.fromkeys(("LayerNormalization", "GroupNormalization", "InstanceNormalization"), "layer_norm"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "lstm"),
    **dict.fromkeys(("ReduceSum", "ReduceMin", "ReduceL2", "GlobalLpPool"), "sum"),
    **dict.fromkeys(("Resize", "Upsample"), "interpolate"),
    "ConvTranspose": "conv_transpose2d",
    "LogSoftmax": "log_softmax",
    "Einsum": "einsum",
}


def refuse_unsupported(kind: str, place: str) -> None:
    """Refuse an operator that has no translation.

    Raises:
        UnsupportedOpError: always, unless it has one.
    """
    if kind not in OPERATORS:
        hint = operators.HINTS.get(_TORCH_NAMES.get(kind, ""), f"supported are {', '.join(OPERATORS)}")
        raise UnsupportedOpError(place, f"operator {kind} is not supported", hint)


def translate(node: Node, translation: Translation) -> None:
    """Append what one node becomes.

    Raises:
        UnsupportedOpError: this use of the operator has no int8 form here.
    """
    OPERATORS[node.kind](node, translation)


# --- what several nodes say together ---------------------------------------------------------------------------------


def join_dense(nodes: Sequence[Node], network: Network) -> list[Node]:
    """Give a product with a constant matrix the constant that is added to it as its bias.

    Before: MatMul -> Add of a constant vector. After: MatMul with three inputs, the last of them the bias.
    """
    joined: list[Node] = []
    for node in nodes:
        product = _sole_maker(node, joined, network, "MatMul") if node.kind == "Add" else None
        bias = "" if product is None else next((name for name in node.inputs if name in network.constants), "")
        if product is None or not bias or network.constants[bias].shape != network.shapes[node.outputs[0]][-1:]:
            joined.append(node)
        else:
            joined[joined.index(product)] = replace(product, inputs=(*product.inputs, bias), outputs=node.outputs)
    return joined


def join_hard_swish(nodes: Sequence[Node], network: Network) -> list[Node]:
    """Read a gate by its own hard sigmoid as the one function that it is.

    Before: x -> HardSigmoid -> Mul with x. After: x -> HardSwish.
    """
    joined: list[Node] = []
    for node in nodes:
        gate = _sole_maker(node, joined, network, "HardSigmoid") if node.kind == "Mul" else None
        if gate is None or gate.inputs[0] not in node.inputs or not _is_torch_hard_sigmoid(gate):
            joined.append(node)
        else:
            joined[joined.index(gate)] = replace(gate, kind="HardSwish", outputs=node.outputs, modules=node.modules)
    return joined


def _sole_maker(node: Node, before: Sequence[Node], network: Network, kind: str) -> Node | None:
    """The node of a kind that makes an input of `node`, if nothing else reads what it makes."""
    makers = [other for other in before if other.kind == kind and other.outputs[0] in node.inputs]
    if len(makers) != 1 or makers[0].outputs[0] == network.output:
        return None
    reads = sum(other.inputs.count(makers[0].outputs[0]) for other in network.nodes)
    return makers[0] if reads == 1 else None
