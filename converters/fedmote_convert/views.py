# SPDX-License-Identifier: Apache-2.0
"""Operators that move values or only read them otherwise: parts and wholes, reshapes and permutations.

A view is a RESHAPE: see `layout`. Elements are moved where an operator behind it needs another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedmote.package.graph import Op, OpKind
from fedmote_convert.arguments import axis_of
from fedmote_convert.layout import Layout, Shape
from fedmote_convert.sketch import Call, Handler, Sketch, Value, memory_shape


def _cat(call: Call, sketch: Sketch) -> None:
    _concatenate(call, sketch, _sources(call), axis_of(call, int(call["dim"]), len(call.shape)))


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
    axis = axis_of(call, int(call["dim"]), len(call.shape))
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
    axis = axis_of(call, int(call["dim"]), len(shape))
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
    axis = axis_of(call, int(call["dim"]), len(shape))
    index = int(call["index"]) % shape[axis + 1]
    _take(call, sketch, source, axis, range(index, index + 1))


def _narrow(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    shape = sketch.torch_shapes[source]
    axis = axis_of(call, int(call["dim"]), len(shape))
    _take_part(call, sketch, source, axis, int(call["start"]) % shape[axis + 1])


def _chunk(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    axis = axis_of(call, int(call["dim"]), len(sketch.torch_shapes[source]))
    length = -(-sketch.torch_shapes[source][axis + 1] // int(call["chunks"]))
    _take_part(call, sketch, source, axis, int(call["index"]) * length)


def _split(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    axis = axis_of(call, int(call["dim"]), len(sketch.torch_shapes[source]))
    sizes, index = call.get("split_sizes", call.get("split_size")), int(call["index"])
    start = index * sizes if isinstance(sizes, int) else sum(int(size) for size in sizes[:index])
    _take_part(call, sketch, source, axis, start)


def _take_part(call: Call, sketch: Sketch, source: str, axis: int, start: int) -> None:
    """Let the call's result be the part of the source that begins there."""
    _take(call, sketch, source, axis, range(start, start + call.shape[axis + 1]))


def _expand(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    source = sketch.with_rank(call, source, len(call.shape))
    source, order = sketch.in_wholes(call.node, source)
    layout = Layout.of(call.shape[1:], order)
    sketch.append(call, OpKind.BROADCAST_TO, source, layout=layout, shape=memory_shape(layout, order))


# --- reshapes and permutations ----------------------------------------------------------------------------------------


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


# aten operator without its overload -> translation.
MOVES: dict[str, Handler] = {
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "slice": _slice,
    "select": _select,
    "narrow": _narrow,
    "chunk": _chunk,
    "split": _split,
    "split_with_sizes": _split,
    "unbind": _select,
    "expand": _expand,
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
}
