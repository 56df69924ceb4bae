# SPDX-License-Identifier: Apache-2.0
"""Torch operators, one by one, and what they become in the graph.

`OPERATORS` at the end is the table of contents: the name of an aten operator and the function that translates a call of it.
A translation works on shapes alone and either appends operators to the `Sketch` or refuses with the nearest supported form.
Names and defaults of arguments come from torch's own operator schema, so a handler reads `call["stride"]` whichever way the
module wrote it.

Every graph on the way computes what the module computes; explicit padding is a PAD operator of its own, a batch
normalisation a depthwise 1x1 convolution with the layout "batch_norm", which `passes` folds away where it can, and whatever does
nothing on a device (dropout, identity, views, permutations) is a RESHAPE: see `layout`. Axes count without the batch below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedmote.package import fixed_point
from fedmote.package.geometry import repeats_whole, window_of
from fedmote.package.graph import Activation, BatchNormRef, Op, OpKind, WeightRef
from fedmote_convert.layout import Layout, Shape
from fedmote_convert.sketch import Call, Constant, Handler, Parameter, Sketch, Value, memory_shape

Pads = tuple[int, int, int, int]
# An operator of one activation in a chain: its kind and fields.
_Step = tuple[OpKind, dict[str, Any]]


def _spatial(call: Call, source: str, sketch: Sketch) -> int:
    """Number of spatial axes of the source: 1 or 2."""
    axes = len(sketch.torch_shapes[source]) - 2
    if axes not in (1, 2):
        raise call.refusal(
            f"it reads {sketch.torch_shapes[source]}, not an image (1, C, H, W) or a sequence (1, C, W)",
            "keep it before the flatten",
        )
    return axes


def _pair(value: int | Sequence[int], axes: int, default: int = 1) -> tuple[int, int]:
    """(height, width) of an argument that torch gives as one number, one per axis or none; a sequence has height 1."""
    values = [value] if isinstance(value, int) else list(value)
    if len(values) == 1:
        values = values * axes
    return (default, values[0]) if axes == 1 else (values[0], values[1])


def _image_size(torch_shape: Shape) -> tuple[int, int]:
    """(height, width) of (1, C, H, W) or (1, C, W)."""
    return (1, torch_shape[2]) if len(torch_shape) == 3 else (torch_shape[2], torch_shape[3])


def _axis(call: Call, axis: int, rank: int) -> int:
    """An axis of a torch shape of this rank, counted without the batch."""
    axis %= rank
    if axis == 0:
        raise call.refusal("it works along the batch", "samples are computed one by one")
    return axis - 1


# --- operators with weights ------------------------------------------------------------------------------------------


def _convolution(call: Call, sketch: Sketch) -> None:
    source = call.activation("input")
    axes = _spatial(call, source, sketch)
    weight = call.parameter("weight")
    bias = None if call["bias"] is None else call.parameter("bias").name
    inputs, outputs, groups = sketch.torch_shapes[source][1], weight.shape[0], int(call["groups"])
    is_depthwise = groups == inputs and groups > 1
    kernel, dilation = _pair(weight.shape[2:], axes), _pair(call["dilation"], axes)
    source = sketch.channels_last(call.node, source)
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


def _convolution_pads(call: Call, kernel: tuple[int, int], dilation: tuple[int, int], axes: int) -> Pads:
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
    weight = call.parameter("weight")
    bias = None if call["bias"] is None else call.parameter("bias").name
    if len(sketch.torch_shapes[source]) > 2:
        _pixel_linear(call, sketch, source, WeightRef(weight.name, bias, layout="pixel_linear"))
        return
    source, chw = _features(call, sketch, source)
    reference = WeightRef(weight.name, bias, layout="linear" if chw is None else "linear_chw", chw=chw)
    sketch.append(call, OpKind.FULLY_CONNECTED, source, source=reference)


def _pixel_linear(call: Call, sketch: Sketch, source: str, reference: WeightRef) -> None:
    """A Linear over the last axis of (1, ..., F), at every step or pixel: a convolution with a kernel of one pixel."""
    last = len(sketch.torch_shapes[source]) - 2
    source, order = sketch.in_wholes(call.node, source)
    order = (*(axis for axis in order if axis != last), last)
    source = sketch.arranged(call.node, source, order)
    layout = Layout.of(call.shape[1:], order)
    shape = memory_shape(layout, order)
    if len(shape) == 4:
        sketch.append(call, OpKind.CONV_2D, source, layout=layout, shape=shape, source=reference)
        return
    inputs, outputs = sketch.torch_shapes[source][-1], call.shape[-1]
    rows = math.prod(call.shape) // outputs
    source = sketch.reshaped(call, source, OpKind.RESHAPE, "rows", (1, 1, rows, inputs))
    source = sketch.reshaped(call, source, OpKind.CONV_2D, "products", (1, 1, rows, outputs), source=reference)
    sketch.view(call, source, layout)


def _features(call: Call, sketch: Sketch, source: str) -> tuple[str, tuple[int, int, int] | None]:
    """The source (1, F), and (channels, height, width) where it is a flattened image whose channels are last in memory."""
    layout = sketch.layouts[source]
    if layout.is_in_order((0,)):
        return source, None
    merged = layout.merged().axes[0]
    if [place for _, place in merged] != [1, 0]:
        return sketch.arranged(call.node, source, (0,)), None
    if [place for _, place in layout.axes[0]] == [2, 0, 1]:
        channels, height, width = (size for size, _ in layout.axes[0])
        return source, (channels, height, width)
    return source, (merged[0][0], 1, merged[1][0])


def _batch_norm(call: Call, sketch: Sketch) -> None:
    if call["running_mean"] is None or call["running_var"] is None:
        raise call.refusal("a batch normalisation without statistics", "use track_running_stats=True, and train it")
    if call["training"]:
        raise call.refusal("a batch normalisation in training mode", "build() must return the module after .eval()")
    weight, bias = (None if call[name] is None else call.parameter(name).name for name in ("weight", "bias"))
    mean, variance = call.parameter("running_mean").name, call.parameter("running_var").name
    norm = BatchNormRef(weight, bias, mean, variance, float(call["eps"]))
    source, chw = call.activation("input"), None
    if len(sketch.torch_shapes[source]) == 2:
        source, chw = _features(call, sketch, source)
    else:
        source = sketch.channels_last(call.node, source)
    reference = WeightRef(mean, None, (norm,), layout="batch_norm", chw=chw)
    sketch.append_like(call, OpKind.DEPTHWISE_CONV_2D, source, source=reference)


# --- functions of one element ----------------------------------------------------------------------------------------


def _relu(call: Call, sketch: Sketch) -> None:
    _chain(call, sketch, call.activation("self", "input"), [_clamped(Activation.RELU)])


def _relu6(call: Call, sketch: Sketch) -> None:
    _chain(call, sketch, call.activation("self", "input"), [_clamped(Activation.RELU6)])


def _clamped(activation: Activation) -> _Step:
    return (OpKind.RELU, {"activation": activation})


def _number(kind: OpKind, value: float, activation: Activation = Activation.NONE) -> _Step:
    """A sum with, or a product by, a number."""
    return (kind, {"constant": np.array([value], np.float32), "activation": activation})


def _chain(call: Call, sketch: Sketch, source: str, steps: Sequence[_Step]) -> None:
    """Operators one behind the other, the last of which makes the call's result; none at all leaves the source as it is."""
    for number, (kind, fields) in enumerate(steps[:-1]):
        source = sketch.step(call, f"step{number}", kind, source, **fields)
    kind, fields = steps[-1] if steps else (OpKind.RESHAPE, {})
    sketch.append_like(call, kind, source, **fields)


def _clamp(call: Call, sketch: Sketch) -> None:
    """Clamps that no activation has are the clamp to [0, 6] or [0, inf) between sums and products with numbers."""
    low, high = _limit(call, "min"), _limit(call, "max")
    if low is not None and high is not None and not low < high:
        raise call.refusal(f"a clamp to [{low}, {high}]", "use an interval that is not empty")
    source = call.activation("self", "input")
    add, mul = OpKind.ADD, OpKind.MUL
    fused: dict[tuple[float | None, float | None], Activation] = {
        (0, None): Activation.RELU,
        (0, 6): Activation.RELU6,
        (-1, 1): Activation.RELU_N1_TO_1,
    }
    steps: list[_Step]
    if (low, high) in fused:
        steps = [_clamped(fused[low, high])]
    elif high is None and low is not None:
        steps = [_number(add, -low, Activation.RELU), _number(add, low)]
    elif low is None and high is not None:
        steps = [_number(mul, -1), _number(add, high, Activation.RELU), _number(mul, -1), _number(add, high)]
    elif low is not None and high is not None:
        scale = (high - low) / 6
        steps = [_number(add, -low)] * (low != 0) + [_number(mul, 1 / scale, Activation.RELU6), _number(mul, scale)]
        steps += [_number(add, low)] * (low != 0)
    else:
        steps = []
    _chain(call, sketch, source, steps)


def _limit(call: Call, name: str) -> float | None:
    """One side of a clamp; None where there is none."""
    value = call.get(f"{name}_val", call.get(name))
    if value is None or (isinstance(value, float) and math.isinf(value)):
        return None
    if not isinstance(value, int | float):
        raise call.refusal(f"a clamp whose {name} is no number", "clamp to numbers")
    return value


def _hard_sigmoid(call: Call, sketch: Sketch) -> None:
    """Written min(max(x + 3, 0), 6) / 6, as TensorFlow Lite has no operator for it."""
    steps = [_number(OpKind.ADD, 3, Activation.RELU6), _number(OpKind.MUL, 1 / 6)]
    _chain(call, sketch, call.activation("self", "input"), steps)


def _leaky_relu(call: Call, sketch: Sketch) -> None:
    alpha = float(np.float32(call["negative_slope"]))
    _chain(call, sketch, call.activation("self"), [(OpKind.LEAKY_RELU, {"alpha": alpha})])


def _function(kind: OpKind) -> Handler:
    """A function of one element."""

    def translate_function(call: Call, sketch: Sketch) -> None:
        _chain(call, sketch, call.activation("self", "input"), [(kind, {})])

    return translate_function


def _silu(call: Call, sketch: Sketch) -> None:
    """Written x * sigmoid(x), as TensorFlow Lite has no operator for it."""
    source = call.activation("self")
    gate = sketch.step(call, "gate", OpKind.LOGISTIC, source)
    sketch.append_like(call, OpKind.MUL, source, gate)


def _softmax(call: Call, sketch: Sketch) -> None:
    source = call.activation("self", "input")
    rank = len(sketch.torch_shapes[source])
    axis = _axis(call, int(call["dim"]), rank)
    if rank > 2:
        source, order = sketch.in_wholes(call.node, source)
        source = sketch.arranged(call.node, source, (*(other for other in order if other != axis), axis))
    sketch.append_like(call, OpKind.SOFTMAX, source)


# --- sums and products -----------------------------------------------------------------------------------------------


def _add(call: Call, sketch: Sketch) -> None:
    _linear_combination(call, sketch, call["self"], call["other"], float(call.get("alpha", 1)))


def _sub(call: Call, sketch: Sketch) -> None:
    _linear_combination(call, sketch, call["self"], call["other"], -float(call.get("alpha", 1)))


def _rsub(call: Call, sketch: Sketch) -> None:
    _linear_combination(call, sketch, call["other"], call["self"], -float(call.get("alpha", 1)))


def _linear_combination(call: Call, sketch: Sketch, first: Any, second: Any, factor: float) -> None:  # noqa: ANN401
    """first + factor * second, of which one may be a number, a parameter or a constant."""
    if isinstance(second, Value):
        name = second.name
        if factor != 1:
            name = sketch.step(call, "scaled", OpKind.MUL, name, constant=np.array([factor], np.float32))
        if isinstance(first, Value):
            _binary(call, sketch, OpKind.ADD, first.name, name)
        else:
            _with_constant(call, sketch, OpKind.ADD, name, first)
    elif not isinstance(first, Value):
        raise call.refusal("it computes on parameters or constants alone", "compute them once, before the conversion")
    elif isinstance(second, int | float):
        _with_constant(call, sketch, OpKind.ADD, first.name, factor * second)
    elif isinstance(second, Constant):
        _with_constant(call, sketch, OpKind.ADD, first.name, Constant(np.float32(factor) * second.values))
    elif factor == 1:
        _with_constant(call, sketch, OpKind.ADD, first.name, second)
    else:
        raise call.refusal("a difference to a parameter, or its multiple", "add the parameter, learned with the other sign")


def _mul(call: Call, sketch: Sketch) -> None:
    first, second = call["self"], call["other"]
    if isinstance(first, Value) and isinstance(second, Value):
        _binary(call, sketch, OpKind.MUL, first.name, second.name)
    elif isinstance(first, Value):
        _with_constant(call, sketch, OpKind.MUL, first.name, second)
    else:
        _with_constant(call, sketch, OpKind.MUL, call.activation("other"), first)


def _div(call: Call, sketch: Sketch) -> None:
    first, second = call["self"], call["other"]
    is_constant = isinstance(second, Constant) and bool(second.values.all())
    is_number = isinstance(second, int | float) and second != 0
    if call.get("rounding_mode") is not None or not isinstance(first, Value) or not (is_constant or is_number):
        raise call.refusal("a division by anything but a number", "multiply by the inverse")
    inverse = Constant(np.reciprocal(second.values)) if isinstance(second, Constant) else 1 / second
    _with_constant(call, sketch, OpKind.MUL, first.name, inverse)


def _neg(call: Call, sketch: Sketch) -> None:
    _chain(call, sketch, call.activation("self"), [_number(OpKind.MUL, -1)])


def _binary(call: Call, sketch: Sketch, kind: OpKind, first: str, second: str) -> None:
    """A sum or product of two activations, one of which may repeat along axes."""
    whole, other = sorted((first, second), key=lambda name: sketch.torch_shapes[name] != call.shape)
    if sketch.torch_shapes[whole] != call.shape:
        text = f"{sketch.torch_shapes[first]} and {sketch.torch_shapes[second]}"
        raise call.refusal(
            f"{_noun(kind)} of {text} that do not match element by element",
            "use activations of one shape, or of which one repeats",
        )
    is_alike = sketch.torch_shapes[other] == call.shape and sketch.layouts[other].merged() == sketch.layouts[whole].merged()
    if is_alike and sketch.activations[other].shape == sketch.activations[whole].shape:
        sketch.append_like(call, kind, whole, other)
        return
    other = _with_rank(call, sketch, other, len(call.shape))
    lies = sketch.layouts[whole].order or sketch.layouts[other].order
    whole, order = sketch.in_wholes(call.node, whole) if lies is None else (sketch.arranged(call.node, whole, lies), lies)
    other = sketch.arranged(call.node, other, order)
    shapes = [sketch.activations[name].shape for name in (other, whole)]
    if not repeats_whole(shapes[0], shapes[1]):
        name = f"{call.output}/repeated"
        sketch.declare(name, call.shape, call.node, Layout.of(call.shape[1:], order), shapes[1])
        sketch.ops.append(Op(OpKind.BROADCAST_TO, call.node, (other,), name))
        other = name
    sketch.append_like(call, kind, whole, other)


def _with_rank(call: Call, sketch: Sketch, source: str, rank: int) -> str:
    """The source with axes of one element behind its batch, as torch aligns shapes at their last axes."""
    shape = sketch.torch_shapes[source]
    if len(shape) == rank:
        return source
    if len(shape) > rank or shape[0] != 1:
        raise call.refusal(f"it combines {shape} with {rank} axes", "use activations of one shape")
    name = f"{call.output}/aligned"
    added = rank - len(shape)
    layout = Layout(((),) * added + sketch.layouts[source].axes)
    # The source's batch, of one sample, is an axis of one element here; its own axes follow.
    sketch.declare(name, (1,) * added + shape, call.node, layout)
    sketch.ops.append(Op(OpKind.RESHAPE, call.node, (source,), name))
    return name


def _with_constant(call: Call, sketch: Sketch, kind: OpKind, source: str, operand: Any) -> None:  # noqa: ANN401
    """A sum or product with a number, with values of no checkpoint, or with a parameter that each push brings anew."""
    if isinstance(operand, int | float):
        _chain(call, sketch, source, [_number(kind, operand)])
        return
    if not isinstance(operand, Parameter | Constant):
        raise call.refusal(f"{_noun(kind)} of something that is no tensor", "use activations, parameters or numbers")
    axes = (1,) * (len(call.shape) - len(operand.shape)) + tuple(operand.shape)
    if sketch.torch_shapes[source] != call.shape or axes[0] != 1:
        text = f"{sketch.torch_shapes[source]} and {tuple(operand.shape)}"
        raise call.refusal(f"{_noun(kind)} of {text} that repeats the activation", "let the constant repeat, not the activation")
    source, order = sketch.in_wholes(call.node, source)
    if isinstance(operand, Parameter):
        reference = WeightRef(operand.name, None, layout="constant", axes=axes[1:], order=order)
        sketch.append_like(call, kind, source, source=reference)
    else:
        sketch.append_like(call, kind, source, constant=operand.values.reshape(axes[1:]).transpose(order))


def _noun(kind: OpKind) -> str:
    return "an addition" if kind is OpKind.ADD else "a multiplication"


# --- parts and wholes ------------------------------------------------------------------------------------------------


def _cat(call: Call, sketch: Sketch) -> None:
    _concatenate(call, sketch, _sources(call), _axis(call, int(call["dim"]), len(call.shape)))


def _sources(call: Call) -> list[str]:
    names = [value.name for value in call["tensors"] if isinstance(value, Value)]
    if len(names) != len(call["tensors"]):
        raise call.refusal("it concatenates a parameter", "concatenate activations")
    return names


def _concatenate(call: Call, sketch: Sketch, sources: Sequence[str], axis: int) -> None:
    first, order = sketch.in_wholes(call.node, sources[0])
    names = [first, *(sketch.arranged(call.node, source, order) for source in sources[1:])]
    layout = Layout.of(call.shape[1:], order)
    shape = memory_shape(layout, order)
    place = order.index(axis) + len(shape) - len(order)
    sketch.append(call, OpKind.CONCATENATION, *names, layout=layout, shape=shape, axis=place)


def _stack(call: Call, sketch: Sketch) -> None:
    axis = _axis(call, int(call["dim"]), len(call.shape))
    names = []
    for number, source in enumerate(_sources(call)):
        axes = sketch.layouts[source].axes
        shape = sketch.torch_shapes[source]
        name = f"{call.output}/part{number}"
        layout = Layout((*axes[:axis], (), *axes[axis:]))
        sketch.declare(name, (*shape[: axis + 1], 1, *shape[axis + 1 :]), call.node, layout)
        sketch.ops.append(Op(OpKind.RESHAPE, call.node, (source,), name))
        names.append(name)
    _concatenate(call, sketch, names, axis)


def _slice(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    shape = sketch.torch_shapes[source]
    axis = _axis(call, int(call["dim"]), len(shape))
    start = 0 if call["start"] is None else int(call["start"])
    _take(call, sketch, source, axis, range(*slice(start, call["end"], int(call["step"])).indices(shape[axis + 1])))


def _take(call: Call, sketch: Sketch, source: str, axis: int, indices: range) -> None:
    """Let the call's result be these indices along an axis; where it has an axis less, they are one and the axis goes."""
    source, order = sketch.in_wholes(call.node, source)
    sizes = list(sketch.layouts[source].sizes)
    sizes[axis] = len(indices)
    if not len(indices):
        raise call.refusal("it takes no element", "leave it away")
    layout = Layout.of(tuple(sizes), order)
    shape = memory_shape(layout, order)
    place = order.index(axis) + len(shape) - len(order)
    starts, steps = [0] * len(shape), [1] * len(shape)
    starts[place], steps[place] = indices.start, indices.step
    fields = {"starts": tuple(starts), "steps": tuple(steps)}
    if len(call.shape) == len(sizes) + 1:
        sketch.append(call, OpKind.STRIDED_SLICE, source, layout=layout, shape=shape, **fields)
        return
    part = sketch.reshaped(call, source, OpKind.STRIDED_SLICE, "part", shape, **fields)
    sketch.view(call, part, Layout((*layout.axes[:axis], *layout.axes[axis + 1 :])))


def _select(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    shape = sketch.torch_shapes[source]
    axis = _axis(call, int(call["dim"]), len(shape))
    index = int(call["index"]) % shape[axis + 1]
    _take(call, sketch, source, axis, range(index, index + 1))


def _chunk(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    axis = _axis(call, int(call["dim"]), len(sketch.torch_shapes[source]))
    length = -(-sketch.torch_shapes[source][axis + 1] // int(call["chunks"]))
    _take_part(call, sketch, source, axis, int(call["index"]) * length)


def _split(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    axis = _axis(call, int(call["dim"]), len(sketch.torch_shapes[source]))
    sizes, index = call.get("split_sizes", call.get("split_size")), int(call["index"])
    start = index * sizes if isinstance(sizes, int) else sum(int(size) for size in sizes[:index])
    _take_part(call, sketch, source, axis, start)


def _take_part(call: Call, sketch: Sketch, source: str, axis: int, start: int) -> None:
    """Let the call's result be the part of the source that begins there."""
    _take(call, sketch, source, axis, range(start, start + call.shape[axis + 1]))


def _expand(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    source = _with_rank(call, sketch, source, len(call.shape))
    source, order = sketch.in_wholes(call.node, source)
    layout = Layout.of(call.shape[1:], order)
    sketch.append(call, OpKind.BROADCAST_TO, source, layout=layout, shape=memory_shape(layout, order))


# --- padding and pools -----------------------------------------------------------------------------------------------


def _pad(call: Call, sketch: Sketch) -> None:
    amounts = [int(amount) for amount in call["pad"]]
    if call.get("mode", "constant") != "constant" or (call.get("value") or 0) != 0:
        raise call.refusal(f"padding of mode {call.get('mode', 'constant')!r}, value {call.get('value')}", "pad with zeros")
    if min(amounts, default=0) < 0:
        raise call.refusal(f"padding by {amounts}", "pad by zero or more, and take slices")
    source = call.activation("self")
    rank = len(call.shape)
    pads = {rank - 1 - number // 2: tuple(amounts[number : number + 2]) for number in range(0, len(amounts), 2)}
    padded = {_axis(call, axis, rank): (near, far) for axis, (near, far) in pads.items() if near or far}
    source, order = sketch.in_wholes(call.node, source)
    layout = Layout.of(call.shape[1:], order)
    shape = memory_shape(layout, order)
    places = {order.index(axis) + len(shape) - len(order): amount for axis, amount in padded.items()}
    if len(shape) == 4 and places.keys() <= {1, 2}:
        both = (*places.get(1, (0, 0)), *places.get(2, (0, 0)))
        sketch.append(call, OpKind.PAD, source, layout=layout, shape=shape, pads=both)
        return
    sizes = list(sketch.activations[source].shape)
    for place, (near, far) in places.items():
        outer, inner = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
        source = sketch.reshaped(call, source, OpKind.RESHAPE, f"axis{place}", (1, outer, sizes[place], inner))
        sizes[place] += near + far
        padded_shape = (1, outer, sizes[place], inner)
        source = sketch.reshaped(call, source, OpKind.PAD, f"pad{place}", padded_shape, pads=(0, 0, near, far))
    sketch.view(call, source, layout)


def _pool_window(call: Call, sketch: Sketch, source: str) -> tuple[tuple[int, int], tuple[int, int], Pads, Pads]:
    """Kernel, stride, the padding that is asked for, and how much of it, or beyond it with ceil_mode, windows read."""
    axes = _spatial(call, source, sketch)
    kernel = _pair(call["kernel_size"], axes)
    stride = _pair(call["stride"], axes) if call["stride"] else kernel
    near = _pair(call["padding"], axes, default=0)
    sizes, outputs = _image_size(sketch.torch_shapes[source]), _image_size(call.shape)
    far = [
        max(0, (count - 1) * step + reach - before - size)
        for count, step, reach, before, size in zip(outputs, stride, kernel, near, sizes, strict=True)
    ]
    return kernel, stride, (near[0], near[0], near[1], near[1]), (near[0], far[0], near[1], far[1])


def _max_pool(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    if _pair(call["dilation"], _spatial(call, source, sketch)) != (1, 1):
        raise call.refusal("a max pool with dilation", "use dilation=1")
    kernel, stride, _, pads = _pool_window(call, sketch, source)
    source = sketch.channels_last(call.node, source)
    source = sketch.pad(call, source, pads, fixed_point.INT8_MIN)
    sketch.append(call, OpKind.MAX_POOL_2D, source, kernel=kernel, stride=stride)


def _average_pool(call: Call, sketch: Sketch) -> None:
    """TensorFlow Lite never counts its own padding, torch counts its own unless told otherwise, but never what ceil_mode adds."""
    source = call.activation("self")
    kernel, stride, asked, read = _pool_window(call, sketch, source)
    if call.get("divisor_override") is not None:
        raise call.refusal(f"an average pool with divisor {call['divisor_override']}", "leave divisor_override away")
    source = sketch.channels_last(call.node, source)
    is_counted = call["count_include_pad"] and all(more <= enough for more, enough in zip(read, asked, strict=True))
    if is_counted or not any(read):
        source = sketch.pad(call, source, read)
        sketch.append(call, OpKind.AVERAGE_POOL_2D, source, kernel=kernel, stride=stride)
        return
    same = Op(OpKind.AVERAGE_POOL_2D, call.node, (source,), call.output, kernel=kernel, stride=stride, padding="SAME")
    window = window_of(same, sketch.activations[source].shape)
    pads = (window.pad_top, window.pad_bottom, window.pad_left, window.pad_right)
    if (call["count_include_pad"] and any(asked)) or pads != read or (window.out_h, window.out_w) != _image_size(call.shape):
        raise call.refusal(
            f"an average pool whose padding {asked} (top, bottom, left, right), read as {read}, is not counted",
            "use ceil_mode=False, with padding=0 or count_include_pad=True",
        )
    sketch.append(call, OpKind.AVERAGE_POOL_2D, source, kernel=kernel, stride=stride, padding="SAME")


def _adaptive_pool(kind: OpKind) -> Handler:
    """A pool that makes a given number of windows."""

    def translate_adaptive_pool(call: Call, sketch: Sketch) -> None:
        source = call.activation("self")
        _spatial(call, source, sketch)
        sizes, outputs = _image_size(sketch.torch_shapes[source]), _image_size(call.shape)
        windows = [_adaptive_window(size, count) for size, count in zip(sizes, outputs, strict=True)]
        if None in windows:
            (in_h, in_w), (out_h, out_w) = sizes, outputs
            reason = f"adaptive pooling of {in_h} x {in_w} to {out_h} x {out_w}, whose windows differ in size"
            near_h, near_w = (
                max(n for n in range(1, count + 1) if size % n == 0) for size, count in zip(sizes, outputs, strict=True)
            )
            raise call.refusal(reason, f"choose an output size that divides the input, as {near_h} x {near_w}, or 1")
        (kernel_h, stride_h), (kernel_w, stride_w) = (window or (1, 1) for window in windows)
        source = sketch.channels_last(call.node, source)
        sketch.append(call, kind, source, kernel=(kernel_h, kernel_w), stride=(stride_h, stride_w))

    return translate_adaptive_pool


def _adaptive_window(size: int, count: int) -> tuple[int, int] | None:
    """(kernel, stride) of adaptive pooling; None where its windows are not alike."""
    starts = [index * size // count for index in range(count)]
    kernels = {-(-(index + 1) * size // count) - start for index, start in enumerate(starts)}
    strides = {second - first for first, second in zip(starts, starts[1:], strict=False)} or {1}
    return (kernels.pop(), strides.pop()) if len(kernels) == len(strides) == 1 else None


def _reduction(kind: OpKind) -> Handler:
    """An average or maximum along axes: a pool over each run of them that is one in memory."""

    def translate_reduction(call: Call, sketch: Sketch) -> None:
        source = call.activation("self")
        rank = len(sketch.torch_shapes[source])
        given = call.get("dim")
        given = list(range(rank)) if given is None or given == [] else [given] if isinstance(given, int) else given
        axes = {_axis(call, int(axis), rank) for axis in given}
        source, order = sketch.in_wholes(call.node, source)
        shape = sketch.activations[source].shape
        places = sorted(order.index(axis) + len(shape) - len(order) for axis in axes)
        kept = [digits for axis, digits in enumerate(sketch.layouts[source].axes) if axis not in axes]
        if call.get("keepdim"):
            kept = [() if axis in axes else digits for axis, digits in enumerate(sketch.layouts[source].axes)]
        source = _pooled(call, sketch, source, kind, places)
        sketch.view(call, source, _closed_up(kept))

    return translate_reduction


def _pooled(call: Call, sketch: Sketch, source: str, kind: OpKind, places: Sequence[int]) -> str:
    """The pool over these axes of the graph, which stay with one element each."""
    sizes = list(sketch.activations[source].shape)
    if len(sizes) == 4 and set(places) <= {1, 2}:
        kernel = (sizes[1] if 1 in places else 1, sizes[2] if 2 in places else 1)
        shape = (1, sizes[1] // kernel[0], sizes[2] // kernel[1], sizes[3])
        return sketch.reshaped(call, source, kind, "pool", shape, kernel=kernel)
    for place in places:
        outer, length, inner = math.prod(sizes[:place]), sizes[place], math.prod(sizes[place + 1 :])
        source = sketch.reshaped(call, source, OpKind.RESHAPE, f"axis{place}", (1, outer, length, inner))
        source = sketch.reshaped(call, source, kind, f"pool{place}", (1, outer, 1, inner), kernel=(1, length))
        sizes[place] = 1
    return source


def _closed_up(axes: Sequence[tuple[tuple[int, int], ...]]) -> Layout:
    """A layout of axes some of whose digits are gone."""
    places = sorted(place for axis in axes for _, place in axis)
    return Layout(tuple(tuple((size, places.index(place)) for size, place in axis) for axis in axes))


# --- views -----------------------------------------------------------------------------------------------------------


def _reshape(call: Call, sketch: Sketch) -> None:
    _reshaped(call, sketch, call.activation("self", "input"), call.shape[1:])


def _reshaped(call: Call, sketch: Sketch, source: str, sizes: Shape) -> None:
    """Read the same elements as axes of other sizes; where that is no reading of memory, the source's order is made first."""
    if call.shape[:1] != (1,):
        raise call.refusal(f"a result of shape {call.shape}", "keep the batch of 1 in front")
    layout = sketch.layouts[source].reshaped(sizes)
    if layout is None:
        source = sketch.arranged(call.node, source, range(len(sketch.layouts[source].axes)))
        layout = Layout.row_major((math.prod(sizes),)).reshaped(sizes)
    assert layout is not None  # one digit can be split in every way
    sketch.view(call, source, layout)


def _permute(call: Call, sketch: Sketch) -> None:
    _permuted(call, sketch, call["dims"])


def _transpose(call: Call, sketch: Sketch) -> None:
    rank = len(call.shape)
    first, second = (int(call.get(name, call.get(other))) % rank for name, other in (("dim0", "axis0"), ("dim1", "axis1")))
    order = list(range(rank))
    order[first], order[second] = second, first
    _permuted(call, sketch, order)


def _movedim(call: Call, sketch: Sketch) -> None:
    rank = len(call.shape)
    moved, places = ([axes] if isinstance(axes, int) else axes for axes in (call["source"], call["destination"]))
    target = {place % rank: axis % rank for axis, place in zip(moved, places, strict=True)}
    rest = iter(axis for axis in range(rank) if axis not in target.values())
    _permuted(call, sketch, [target[place] if place in target else next(rest) for place in range(rank)])


def _permuted(call: Call, sketch: Sketch, order: Sequence[int]) -> None:
    source = call.activation("self")
    axes = [int(axis) % len(call.shape) for axis in order]
    if axes[0] != 0:
        raise call.refusal(f"a permutation {axes} that moves the batch", "keep the batch of 1 in front")
    sketch.view(call, source, sketch.layouts[source].permuted([axis - 1 for axis in axes[1:]]))


def _regrouped(call: Call, sketch: Sketch, sizes: Shape, order: Sequence[int]) -> None:
    """View as `sizes`, permute, view as the result."""
    source = call.activation("self", "input")
    layout = sketch.layouts[source].reshaped(sizes)
    if layout is None:
        source = sketch.channels_last(call.node, source)
        layout = sketch.layouts[source].reshaped(sizes)
    assert layout is not None  # channels are one digit now
    name = f"{call.output}/groups"
    layout = layout.permuted(order)
    sketch.declare(name, (1, *layout.sizes), call.node, layout)
    sketch.ops.append(Op(OpKind.RESHAPE, call.node, (source,), name))
    _reshaped(call, sketch, name, call.shape[1:])


def _channel_shuffle(call: Call, sketch: Sketch) -> None:
    channels, *pixels = call.shape[1:]
    groups = int(call["groups"])
    order = (1, 0, *range(2, 2 + len(pixels)))
    _regrouped(call, sketch, (groups, channels // groups, *pixels), order)


def _pixel_shuffle(call: Call, sketch: Sketch) -> None:
    factor = int(call["upscale_factor"])
    channels, height, width = call.shape[1:]
    _regrouped(call, sketch, (channels, factor, factor, height // factor, width // factor), (0, 3, 1, 4, 2))


def _pixel_unshuffle(call: Call, sketch: Sketch) -> None:
    factor = int(call["downscale_factor"])
    channels, height, width = call.shape[1:]
    _regrouped(call, sketch, (channels // factor**2, height, factor, width, factor), (0, 2, 4, 1, 3))


def _identity(call: Call, sketch: Sketch) -> None:
    if call.get("train"):
        raise call.refusal("a dropout in training mode", "build() must return the module after .eval()")
    _chain(call, sketch, call.activation("self", "input"), [])


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
    "clamp_max": _clamp,
    "leaky_relu": _leaky_relu,
    "hardswish": _function(OpKind.HARD_SWISH),
    "hardsigmoid": _hard_sigmoid,
    "sigmoid": _function(OpKind.LOGISTIC),
    "tanh": _function(OpKind.TANH),
    "silu": _silu,
    "softmax": _softmax,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "slice": _slice,
    "select": _select,
    "chunk": _chunk,
    "split": _split,
    "split_with_sizes": _split,
    "unbind": _select,
    "expand": _expand,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "avg_pool1d": _average_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool1d": _adaptive_pool(OpKind.AVERAGE_POOL_2D),
    "adaptive_avg_pool2d": _adaptive_pool(OpKind.AVERAGE_POOL_2D),
    "adaptive_max_pool1d": _adaptive_pool(OpKind.MAX_POOL_2D),
    "adaptive_max_pool2d": _adaptive_pool(OpKind.MAX_POOL_2D),
    "mean": _reduction(OpKind.AVERAGE_POOL_2D),
    "amax": _reduction(OpKind.MAX_POOL_2D),
    "max": _reduction(OpKind.MAX_POOL_2D),
    "flatten": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "unflatten": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "movedim": _movedim,
    "channel_shuffle": _channel_shuffle,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "dropout": _identity,
    "feature_dropout": _identity,
    "contiguous": _identity,
    "clone": _identity,
    "to": _identity,
    "detach": _identity,
    "alias": _identity,
}

# Operators that change the shape of their argument and nothing else: of a parameter they make the same parameter.
RESHAPES = frozenset({"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze"})

# Operators that give their argument's memory another name; a later in-place operator would change both.
VIEWS = (
    RESHAPES
    | {"slice", "select", "chunk", "split", "split_with_sizes", "unbind", "expand", "permute", "transpose", "swapaxes", "movedim"}
    | {"dropout", "contiguous", "to", "detach", "alias"}
)

# What is often met and not supported: the nearest form that is.
HINTS: dict[str, str] = {
    **dict.fromkeys(
        ("gelu", "elu", "celu", "selu", "prelu", "softplus", "mish", "rrelu"),
        "use ReLU, ReLU6, LeakyReLU, Hardswish, Hardsigmoid, Sigmoid, Tanh or SiLU",
    ),
    "log_softmax": "end the model with the Linear that makes the logits; softmax is part of the device's training",
    **dict.fromkeys(
        ("layer_norm", "group_norm", "instance_norm", "rms_norm"),
        "devices have no kernel for statistics of a sample; use BatchNorm, whose statistics are part of the model",
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "use Conv1d layers over time"),
    **dict.fromkeys(("conv3d", "conv_transpose1d", "conv_transpose2d"), "use Conv1d or Conv2d"),
    **dict.fromkeys(("sum", "var", "std", "min", "amin", "norm"), "use mean or amax"),
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm", "einsum", "scaled_dot_product_attention"), "use nn.Linear or nn.Conv1d"),
    **dict.fromkeys(
        ("upsample_nearest2d", "upsample_bilinear2d", "interpolate"), "devices have no kernel for it; use expand and view"
    ),
    **dict.fromkeys(
        ("_weight_norm", "_weight_norm_interface"),
        "fold it first, by torch.nn.utils.parametrize.remove_parametrizations(layer, name)",
    ),
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
