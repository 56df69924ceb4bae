# SPDX-License-Identifier: Apache-2.0
"""Operators with weights: convolutions, Linear, batch normalisation.

What they name is a `WeightRef`: values come when weights are bound.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fedmote.package.graph import BatchNormRef, OpKind, WeightRef
from fedmote_convert.arguments import Pads, pair, spatial_axes
from fedmote_convert.layout import Layout
from fedmote_convert.sketch import Call, Handler, Sketch, memory_shape


def _convolution(call: Call, sketch: Sketch) -> None:
    source = call.activation("input")
    axes = spatial_axes(call, source, sketch)
    weight = call.parameter("weight")
    bias = None if call["bias"] is None else call.parameter("bias").name
    inputs, outputs, groups = sketch.torch_shapes[source][1], weight.shape[0], int(call["groups"])
    is_depthwise = groups == inputs and groups > 1
    kernel, dilation = pair(weight.shape[2:], axes), pair(call["dilation"], axes)
    source = sketch.channels_last(call.node, source)
    source = sketch.pad(call, source, _convolution_pads(call, kernel, dilation, axes))
    layout = f"depthwise{axes}d" if is_depthwise else f"conv{axes}d"
    sketch.append(
        call,
        OpKind.DEPTHWISE_CONV_2D if is_depthwise else OpKind.CONV_2D,
        source,
        stride=pair(call["stride"], axes),
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
    vertical, horizontal = pair(padding, axes, default=0)
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
    source = call.activation("input")
    reference = WeightRef(mean, None, (norm,), layout="batch_norm")
    if len(sketch.torch_shapes[source]) > 2:
        sketch.append_like(call, OpKind.DEPTHWISE_CONV_2D, sketch.channels_last(call.node, source), source=reference)
        return
    source, chw = _features(call, sketch, source)
    pixel = (1, 1, *sketch.activations[source].shape)
    image = sketch.reshaped(call, source, OpKind.RESHAPE, "pixel", pixel)
    scaled = sketch.reshaped(call, image, OpKind.DEPTHWISE_CONV_2D, "scaled", pixel, source=replace(reference, chw=chw))
    sketch.view(call, scaled, sketch.layouts[source])


# aten operator without its overload -> translation.
LAYERS: dict[str, Handler] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
}
