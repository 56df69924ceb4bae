# SPDX-License-Identifier: Apache-2.0
"""Torch operators, one by one, and what they become in the graph.

`OPERATORS` at the end is the table of contents: the name of an aten operator and the function that translates a call of it.
A translation works on shapes alone and either appends operators to the `Sketch` or refuses with the nearest supported form.
Names and defaults of arguments come from torch's own operator schema, so a handler reads `call["stride"]` whichever way the
module wrote it.

Every graph on the way computes what the module computes; explicit padding is a PAD operator of its own, a batch
normalisation a depthwise 1x1 convolution with the layout "batch_norm", which `passes` folds away, and whatever does nothing
on a device (dropout, identity, views) is a RESHAPE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedmote.package.geometry import repeats_whole
from fedmote.package.graph import Activation, BatchNormRef, Op, OpKind, WeightRef
from fedmote.package.head import channels_last_columns
from fedmote_convert.sketch import Call, Handler, Sketch, Value, channels_last, order_of


def _spatial(call: Call, source: str, sketch: Sketch) -> int:
    """Number of spatial axes of the source: 1 or 2."""
    axes = len(sketch.torch_shapes[source]) - 2
    if axes not in (1, 2):
        raise call.refusal("it needs an image (1, C, H, W) or a sequence (1, C, W)", "keep it in front of the flatten")
    return axes


def _pair(value: int | Sequence[int], axes: int, default: int = 1) -> tuple[int, int]:
    """(height, width) of an argument that torch gives as one number, one per axis or none; a sequence has height 1."""
    values = [value] if isinstance(value, int) else list(value)
    if len(values) == 1:
        values = values * axes
    return (default, values[0]) if axes == 1 else (values[0], values[1])


# --- operators with weights ------------------------------------------------------------------------------------------


def _convolution(call: Call, sketch: Sketch) -> None:
    source = call.activation("input")
    axes = _spatial(call, source, sketch)
    weight = call.parameter("weight")
    bias = None if call["bias"] is None else call.parameter("bias").name
    inputs, outputs, groups = sketch.torch_shapes[source][1], weight.shape[0], int(call["groups"])
    is_depthwise = groups == inputs and groups > 1
    kernel, dilation = _pair(weight.shape[2:], axes), _pair(call["dilation"], axes)
    source = sketch.pad(call, source, _convolution_pads(call, kernel, dilation, axes))
    layout = f"depthwise{axes}d" if is_depthwise else f"conv{axes}d"
    sketch.append(
        call,
        OpKind.DEPTHWISE_CONV_2D if is_depthwise else OpKind.CONV_2D,
        source,
        stride=_pair(call["stride"], axes),
        dilation=dilation,
        kernel=kernel,
        depth_multiplier=outputs // groups if is_depthwise else 1,
        source=WeightRef(weight.name, bias, layout=layout),
    )


def _convolution_pads(call: Call, kernel: tuple[int, int], dilation: tuple[int, int], axes: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right); torch's "same" puts the odd pixel at the far end."""
    padding = call["padding"]
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        vertical, horizontal = ((size - 1) * step for size, step in zip(kernel, dilation, strict=True))
        return (vertical // 2, vertical - vertical // 2, horizontal // 2, horizontal - horizontal // 2)
    vertical, horizontal = _pair(padding, axes, default=0)
    return (vertical, vertical, horizontal, horizontal)


def _linear(call: Call, sketch: Sketch) -> None:
    source = call.activation("input")
    if len(sketch.torch_shapes[source]) != 2:
        raise call.refusal(f"a Linear over {sketch.torch_shapes[source]}", "flatten to (1, F) before it")
    weight = call.parameter("weight")
    bias = None if call["bias"] is None else call.parameter("bias").name
    order = sketch.orders[source]
    reference = WeightRef(weight.name, bias, layout="linear")
    if order != (weight.shape[1], 1, 1):
        reference = replace(reference, layout="linear_chw", chw=order)
    sketch.append(call, OpKind.FULLY_CONNECTED, source, source=reference)


def _batch_norm(call: Call, sketch: Sketch) -> None:
    if call["training"]:
        raise call.refusal("a batch normalisation in training mode", "build() must return the module after .eval()")
    if any(call[name] is None for name in ("weight", "bias", "running_mean", "running_var")):
        raise call.refusal("a batch normalisation without parameters or statistics", "use affine=True, track_running_stats=True")
    names = [call.parameter(name).name for name in ("weight", "bias", "running_mean", "running_var")]
    norm = BatchNormRef(names[0], names[1], names[2], names[3], float(call["eps"]))
    source = call.activation("input")
    reference = WeightRef(norm.weight, None, (norm,), layout="batch_norm")
    sketch.append(call, OpKind.DEPTHWISE_CONV_2D, source, source=reference, order=sketch.orders[source])


# --- operators without weights ---------------------------------------------------------------------------------------


def _relu(call: Call, sketch: Sketch) -> None:
    _activation(call, sketch, Activation.RELU)


def _relu6(call: Call, sketch: Sketch) -> None:
    _activation(call, sketch, Activation.RELU6)


def _clamp(call: Call, sketch: Sketch) -> None:
    low = call.get("min_val", call.get("min"))
    high = call.get("max_val", call.get("max"))
    if low == 0 and high is None:
        _activation(call, sketch, Activation.RELU)
    elif low == 0 and high == 6:
        _activation(call, sketch, Activation.RELU6)
    else:
        raise call.refusal(f"a clamp to [{low}, {high}]", "use ReLU, or ReLU6 which clamps to [0, 6]")


def _activation(call: Call, sketch: Sketch, activation: Activation) -> None:
    source = call.activation("self", "input")
    sketch.append(call, OpKind.RELU, source, activation=activation, order=sketch.orders[source])


def _leaky_relu(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    alpha = float(np.float32(call["negative_slope"]))
    sketch.append(call, OpKind.LEAKY_RELU, source, alpha=alpha, order=sketch.orders[source])


def _function(kind: OpKind) -> Handler:
    """A function of one element."""

    def translate_function(call: Call, sketch: Sketch) -> None:
        source = call.activation("self", "input")
        sketch.append(call, kind, source, order=sketch.orders[source])

    return translate_function


def _silu(call: Call, sketch: Sketch) -> None:
    """Written x * sigmoid(x), as TensorFlow Lite has no operator for it."""
    source = call.activation("self")
    gate = f"{call.output}/gate"
    sketch.declare(gate, call.shape, call.node, sketch.orders[source])
    sketch.ops.append(Op(OpKind.LOGISTIC, call.node, (source,), gate))
    sketch.append(call, OpKind.MUL, source, gate, order=sketch.orders[source])


def _softmax(call: Call, sketch: Sketch) -> None:
    source = call.activation("self", "input")
    rank = len(sketch.torch_shapes[source])
    if int(call["dim"]) % rank != 1:
        raise call.refusal(
            f"a softmax over axis {call['dim']} of {sketch.torch_shapes[source]}", "take it over the channels, dim=1"
        )
    sketch.append(call, OpKind.SOFTMAX, source, order=sketch.orders[source])


def _add(call: Call, sketch: Sketch) -> None:
    if call.get("alpha", 1) != 1:
        raise call.refusal(f"an addition with alpha={call['alpha']}", "scale inside the layer before")
    _binary(call, sketch, OpKind.ADD, "addition")


def _mul(call: Call, sketch: Sketch) -> None:
    _binary(call, sketch, OpKind.MUL, "multiplication")


def _binary(call: Call, sketch: Sketch, kind: OpKind, what: str) -> None:
    """A sum or product of two activations, one of which may repeat along axes, or of an activation and a number."""
    first, second = call["self"], call["other"]
    if isinstance(first, Value) and isinstance(second, int | float):
        constant = np.array([second], np.float32)
        sketch.append(call, kind, first.name, constant=constant, order=sketch.orders[first.name])
        return
    if not (isinstance(first, Value) and isinstance(second, Value)):
        raise call.refusal(f"{_an(what)} of a parameter", "use the weights and the bias of the layer before")
    names = sorted((first.name, second.name), key=lambda name: sketch.torch_shapes[name] != call.shape)
    shapes = [sketch.torch_shapes[name] for name in names]
    is_same = shapes[0] == shapes[1] and sketch.orders[names[0]] == sketch.orders[names[1]]
    is_repeated = shapes[0] == call.shape and shapes[0] != shapes[1] and len(shapes[0]) == len(shapes[1]) > 2
    if not (is_same or is_repeated):
        text = f"{sketch.torch_shapes[first.name]} and {sketch.torch_shapes[second.name]}"
        raise call.refusal(f"{_an(what)} of {text} that do not match element by element", "use activations of one shape")
    if is_repeated and not repeats_whole(sketch.activations[names[1]].shape, sketch.activations[names[0]].shape):
        whole = f"{call.output}/repeated"
        sketch.declare(whole, call.shape, call.node)
        sketch.ops.append(Op(OpKind.BROADCAST_TO, call.node, (names[1],), whole))
        names[1] = whole
    sketch.append(call, kind, *names, order=sketch.orders[names[0]])


def _an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _graph_axis(call: Call, source: str, axis: int, sketch: Sketch) -> int:
    """The graph's axis for an axis of the torch shape."""
    rank = len(sketch.torch_shapes[source])
    axis %= rank
    if axis == 0:
        raise call.refusal("it works along the batch", "samples are computed one by one")
    if rank == 2 and sketch.orders[source] != (sketch.torch_shapes[source][1], 1, 1):
        raise call.refusal("it takes flattened features apart or together", "do it before the flatten")
    return {2: (0, 1), 3: (0, 3, 2), 4: (0, 3, 1, 2)}[rank][axis]


def _cat(call: Call, sketch: Sketch) -> None:
    sources = [value.name for value in call["tensors"] if isinstance(value, Value)]
    if len(sources) != len(call["tensors"]):
        raise call.refusal("it concatenates a parameter", "concatenate activations")
    axes = {_graph_axis(call, source, int(call["dim"]), sketch) for source in sources}
    sketch.append(call, OpKind.CONCATENATION, *sources, axis=axes.pop())


def _slice(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    shape = sketch.activations[source].shape
    axis = _graph_axis(call, source, int(call["dim"]), sketch)
    start = 0 if call["start"] is None else int(call["start"])
    indices = range(*slice(start, call["end"], int(call["step"])).indices(shape[axis]))
    starts, steps = [0] * len(shape), [1] * len(shape)
    starts[axis], steps[axis] = indices.start, indices.step
    sketch.append(call, OpKind.STRIDED_SLICE, source, starts=tuple(starts), steps=tuple(steps))


def _pad(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    axes = _spatial(call, source, sketch)
    amounts = [int(amount) for amount in call["pad"]]
    if call.get("mode", "constant") != "constant" or (call.get("value") or 0) != 0:
        raise call.refusal(f"padding of mode {call.get('mode', 'constant')!r}, value {call.get('value')}", "pad with zeros")
    if any(amounts[2 * axes :]) or min(amounts, default=0) < 0:
        raise call.refusal(f"padding by {amounts}", "pad height and width by zero or more")
    left, right, top, bottom = (*amounts[: 2 * axes], 0, 0, 0, 0)[:4]
    sketch.append(call, OpKind.PAD, source, pads=(top, bottom, left, right))


def _max_pool(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    axes = _spatial(call, source, sketch)
    _refuse_ceil_mode(call)
    if any(_pair(call["padding"], axes, default=0)):
        raise call.refusal("a max pool with padding", "use padding=0; behind a ReLU, F.pad with zeros gives the same result")
    if _pair(call["dilation"], axes) != (1, 1):
        raise call.refusal("a max pool with dilation", "use dilation=1")
    kernel = _pair(call["kernel_size"], axes)
    stride = _pair(call["stride"], axes) if call["stride"] else kernel
    sketch.append(call, OpKind.MAX_POOL_2D, source, kernel=kernel, stride=stride)


def _average_pool(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    axes = _spatial(call, source, sketch)
    _refuse_ceil_mode(call)
    if call.get("divisor_override") is not None:
        raise call.refusal(f"an average pool with divisor {call['divisor_override']}", "leave divisor_override away")
    vertical, horizontal = _pair(call["padding"], axes, default=0)
    if (vertical or horizontal) and not call["count_include_pad"]:
        raise call.refusal("an average pool whose padding is not counted", "use padding=0 or count_include_pad=True")
    kernel = _pair(call["kernel_size"], axes)
    stride = _pair(call["stride"], axes) if call["stride"] else kernel
    source = sketch.pad(call, source, (vertical, vertical, horizontal, horizontal))
    sketch.append(call, OpKind.AVERAGE_POOL_2D, source, kernel=kernel, stride=stride)


def _refuse_ceil_mode(call: Call) -> None:
    if call["ceil_mode"]:
        raise call.refusal("a pool with ceil_mode", "use ceil_mode=False, with F.pad in front where the border counts")


def _adaptive_average_pool(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    _spatial(call, source, sketch)
    _, in_h, in_w, _ = sketch.activations[source].shape
    _, out_h, out_w = order_of(call.shape)
    if (out_h, out_w) == (1, 1):
        sketch.append(call, OpKind.MEAN, source)
        return
    if in_h % out_h or in_w % out_w:
        raise call.refusal(
            f"adaptive pooling of {in_h} x {in_w} to {out_h} x {out_w}", "choose an output size that divides the input, or 1"
        )
    kernel = (in_h // out_h, in_w // out_w)
    sketch.append(call, OpKind.AVERAGE_POOL_2D, source, kernel=kernel, stride=kernel)


def _mean(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    rank = len(sketch.torch_shapes[source])
    given = call.get("dim")
    given = range(rank) if given is None else given
    axes = sorted(axis % rank for axis in ([given] if isinstance(given, int) else given))
    if rank < 3 or axes != list(range(2, rank)):
        raise call.refusal(
            f"a mean over axes {axes} of {sketch.torch_shapes[source]}", "take the mean over all of height and width"
        )
    sketch.append(call, OpKind.MEAN, source)


def _reshape(call: Call, sketch: Sketch) -> None:
    """Any change of shape that leaves the elements where they are in channels-last memory, and flattening."""
    source = call.activation("self", "input")
    order = sketch.orders[source]
    if call.shape[:1] == (1,) and len(call.shape) == 2:
        sketch.append(call, OpKind.RESHAPE, source, order=order)
        return
    channels_last(call.shape, call.node)
    if not np.array_equal(channels_last_columns(order), channels_last_columns(order_of(call.shape))):
        raise call.refusal(
            f"a reshape of {sketch.torch_shapes[source]} to {call.shape}, which would mix channels and positions",
            "flatten to (1, F), or give samples the shape that the first layer reads",
        )
    sketch.append(call, OpKind.RESHAPE, source)


def _identity(call: Call, sketch: Sketch) -> None:
    source = call.activation("self", "input")
    if call.get("train"):
        raise call.refusal("a dropout in training mode", "build() must return the module after .eval()")
    sketch.append(call, OpKind.RESHAPE, source, order=sketch.orders[source])


# aten operator without its overload -> translation. In-place forms are found by their name without the underscore.
OPERATORS: dict[str, Handler] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _clamp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "leaky_relu": _leaky_relu,
    "hardswish": _function(OpKind.HARD_SWISH),
    "sigmoid": _function(OpKind.LOGISTIC),
    "tanh": _function(OpKind.TANH),
    "silu": _silu,
    "softmax": _softmax,
    "add": _add,
    "mul": _mul,
    "cat": _cat,
    "concat": _cat,
    "slice": _slice,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool1d": _average_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool1d": _adaptive_average_pool,
    "adaptive_avg_pool2d": _adaptive_average_pool,
    "mean": _mean,
    "flatten": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "unflatten": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "dropout": _identity,
    "feature_dropout": _identity,
    "contiguous": _identity,
    "clone": _identity,
    "to": _identity,
    "detach": _identity,
    "alias": _identity,
}

# Operators that give their argument's memory another name; a later in-place operator would change both.
VIEWS = frozenset(
    {"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze", "slice"}
    | {"dropout", "contiguous", "to", "detach", "alias"}
)

# What is often met and not supported: the nearest form that is.
HINTS: dict[str, str] = {
    **dict.fromkeys(
        ("hardsigmoid", "gelu", "elu", "prelu", "softplus", "mish"),
        "use ReLU, ReLU6, LeakyReLU, Hardswish, Sigmoid, Tanh or SiLU",
    ),
    "log_softmax": "end the model with the Linear that makes the logits; softmax is part of the device's training",
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "rms_norm"), "use BatchNorm behind a convolution or Linear"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "use Conv1d layers over time"),
    **dict.fromkeys(("conv3d", "conv_transpose1d", "conv_transpose2d"), "use Conv1d or Conv2d"),
    **dict.fromkeys(
        ("permute", "transpose", "movedim"), "keep channels first throughout; the conversion changes the order itself"
    ),
    **dict.fromkeys(("max", "amax", "adaptive_max_pool1d", "adaptive_max_pool2d"), "use MaxPool with the whole window as kernel"),
    **dict.fromkeys(("div", "sub", "neg"), "move scale and offset into a BatchNorm or into the weights, or multiply by a number"),
    **dict.fromkeys(("stack", "chunk", "split", "unbind"), "use torch.cat, and slices one by one"),
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm", "einsum"), "use nn.Linear on (1, F)"),
}


def translate(call: Call, sketch: Sketch) -> None:
    """Append what one call becomes.

    Raises:
        UnsupportedOpError: the operator, or this use of it, has no int8 form here.
    """
    name = operator_name(call.target)
    if name not in OPERATORS:
        raise call.refusal(f"operator {call.target} is not supported", hint_for(name))
    OPERATORS[name](call, sketch)


def hint_for(name: str) -> str:
    """The nearest supported form of an operator that has no translation."""
    return HINTS.get(name, f"supported are {', '.join(OPERATORS)}")


def operator_name(target: str) -> str:
    """Return "relu" for "aten.relu_.default": name space, overload and the mark of the in-place form removed."""
    parts = target.split(".")
    name = parts[1] if len(parts) > 1 and parts[0] == "aten" else target
    return name.rstrip("_") if not name.startswith("_") else name
