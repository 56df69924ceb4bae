# SPDX-License-Identifier: Apache-2.0
"""Padding, pools, and averages and maxima along axes, each a pool over what is one run of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fedmote.package import fixed_point
from fedmote.package.geometry import window_of
from fedmote.package.graph import Op, OpKind
from fedmote_convert.arguments import Pads, axis_of, image_size, pair, spatial_axes
from fedmote_convert.layout import Layout
from fedmote_convert.sketch import Call, Handler, Sketch, memory_shape


def _pad(call: Call, sketch: Sketch) -> None:
    amounts = [int(amount) for amount in call["pad"]]
    if call.get("mode", "constant") != "constant" or (call.get("value") or 0) != 0:
        raise call.refusal(f"padding of mode {call.get('mode', 'constant')!r}, value {call.get('value')}", "pad with zeros")
    if min(amounts, default=0) < 0:
        raise call.refusal(f"padding by {amounts}", "pad by zero or more, and take slices")
    source = call.activation("self")
    rank = len(call.shape)
    pads = {rank - 1 - number // 2: tuple(amounts[number : number + 2]) for number in range(0, len(amounts), 2)}
    padded = {axis_of(call, axis, rank): (near, far) for axis, (near, far) in pads.items() if near or far}
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
    axes = spatial_axes(call, source, sketch)
    kernel = pair(call["kernel_size"], axes)
    stride = pair(call["stride"], axes) if call["stride"] else kernel
    near = pair(call["padding"], axes, default=0)
    sizes, outputs = image_size(sketch.torch_shapes[source]), image_size(call.shape)
    far = [
        max(0, (count - 1) * step + reach - before - size)
        for count, step, reach, before, size in zip(outputs, stride, kernel, near, sizes, strict=True)
    ]
    return kernel, stride, (near[0], near[0], near[1], near[1]), (near[0], far[0], near[1], far[1])


def _max_pool(call: Call, sketch: Sketch) -> None:
    source = call.activation("self")
    if pair(call["dilation"], spatial_axes(call, source, sketch)) != (1, 1):
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
    if (call["count_include_pad"] and any(asked)) or pads != read or (window.out_h, window.out_w) != image_size(call.shape):
        raise call.refusal(
            f"an average pool whose padding {asked} (top, bottom, left, right), read as {read}, is not counted",
            "use ceil_mode=False, with padding=0 or count_include_pad=True",
        )
    sketch.append(call, OpKind.AVERAGE_POOL_2D, source, kernel=kernel, stride=stride, padding="SAME")


def _adaptive_pool(kind: OpKind) -> Handler:
    """A pool that makes a given number of windows."""

    def translate_adaptive_pool(call: Call, sketch: Sketch) -> None:
        source = call.activation("self")
        spatial_axes(call, source, sketch)
        sizes, outputs = image_size(sketch.torch_shapes[source]), image_size(call.shape)
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
    strides = {second - first for first, second in pairwise(starts)} or {1}
    return (kernels.pop(), strides.pop()) if len(kernels) == len(strides) == 1 else None


def _reduction(kind: OpKind) -> Handler:
    """An average or maximum along axes: a pool over each run of them that is one in memory."""

    def translate_reduction(call: Call, sketch: Sketch) -> None:
        source = call.activation("self")
        rank = len(sketch.torch_shapes[source])
        given = call.get("dim")
        given = list(range(rank)) if given is None or given == [] else [given] if isinstance(given, int) else given
        axes = {axis_of(call, int(axis), rank) for axis in given}
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


# aten operator without its overload -> translation.
POOLS: dict[str, Handler] = {
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
}
