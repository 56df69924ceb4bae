# SPDX-License-Identifier: Apache-2.0
"""Windows of convolutions and pools: output size and implicit padding, as TensorFlow Lite computes them."""

from __future__ import annotations

from dataclasses import dataclass

from fedmote.errors import ConversionError
from fedmote.package.graph import Graph, Op, OpKind


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool over an image; all numbers count pixels."""

    in_h: int
    in_w: int
    out_h: int
    out_w: int
    pad_top: int
    pad_bottom: int
    pad_left: int
    pad_right: int


def window_of(op: Op, shape: tuple[int, ...]) -> Window:
    """The window geometry of `op` on an input of `shape` (1, height, width, channels).

    Raises:
        ConversionError: the shape has no height and width, or the kernel is larger than the image.
    """
    if len(shape) != 4:
        raise ConversionError(f"{op.name}: {op.kind} needs an input of (1, height, width, channels), not {shape}")
    out_h, top, bottom = _axis(op, 0, shape[1])
    out_w, left, right = _axis(op, 1, shape[2])
    return Window(shape[1], shape[2], out_h, out_w, top, bottom, left, right)


def _axis(op: Op, axis: int, size: int) -> tuple[int, int, int]:
    """Output size, padding before and padding after along one axis."""
    stride = op.stride[axis]
    reach = (op.kernel[axis] - 1) * op.dilation[axis] + 1
    if op.padding == "SAME":
        out = -(-size // stride)
        total = max(0, (out - 1) * stride + reach - size)
        return out, total // 2, total - total // 2
    if op.padding != "VALID":
        raise ConversionError(f"{op.name}: padding {op.padding!r} is neither SAME nor VALID")
    if reach > size:
        raise ConversionError(f"{op.name}: a kernel that reaches over {reach} pixels does not fit an input of {size}")
    return (size - reach) // stride + 1, 0, 0


def output_shape(op: Op, shapes: dict[str, tuple[int, ...]], declared: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `op` makes of its inputs. `declared` decides what an operator leaves open: RESHAPE, and the rank of MEAN.

    Raises:
        ConversionError: the inputs do not suit the operator.
    """
    shape = shapes[op.inputs[0]]
    if op.kind in (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D):
        return _convolution_shape(op, shape)
    if op.kind in (OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D):
        window = window_of(op, shape)
        return (1, window.out_h, window.out_w, shape[3])
    if op.kind is OpKind.FULLY_CONNECTED:
        return _dense_shape(op, shape)
    if op.kind is OpKind.PAD:
        if len(shape) != 4:
            raise ConversionError(f"{op.name}: PAD needs an input of (1, height, width, channels), not {shape}")
        top, bottom, left, right = op.pads
        return (1, shape[1] + top + bottom, shape[2] + left + right, shape[3])
    if op.kind is OpKind.MEAN:
        if len(shape) != 4:
            raise ConversionError(f"{op.name}: MEAN needs an input of (1, height, width, channels), not {shape}")
        return (1, 1, 1, shape[3]) if len(declared) == 4 else (1, shape[3])
    if op.kind is OpKind.ADD and shapes[op.inputs[1]] != shape:
        raise ConversionError(f"{op.name}: ADD of shapes {shape} and {shapes[op.inputs[1]]}; both must be equal")
    return declared if op.kind is OpKind.RESHAPE else shape


def _convolution_shape(op: Op, shape: tuple[int, ...]) -> tuple[int, ...]:
    window = window_of(op, shape)
    if op.weights is None:
        raise ConversionError(f"{op.name}: {op.kind} has no weights")
    weights = op.weights.shape
    if op.kind is OpKind.CONV_2D:
        if len(weights) != 4 or weights[1:] != (*op.kernel, shape[3]):
            raise ConversionError(f"{op.name}: weights {weights} do not suit a {op.kernel} kernel over {shape[3]} channels")
        return (1, window.out_h, window.out_w, weights[0])
    if weights != (1, *op.kernel, shape[3] * op.depth_multiplier):
        raise ConversionError(
            f"{op.name}: weights {weights} do not suit kernel {op.kernel}, {op.depth_multiplier} per channel of {shape[3]}"
        )
    return (1, window.out_h, window.out_w, weights[3])


def _dense_shape(op: Op, shape: tuple[int, ...]) -> tuple[int, ...]:
    size = 1
    for length in shape:
        size *= length
    if op.weights is None or op.weights.ndim != 2 or op.weights.shape[1] != size:
        weights = None if op.weights is None else op.weights.shape
        raise ConversionError(f"{op.name}: weights {weights} do not suit {size} inputs")
    return (1, op.weights.shape[0])


def check_shapes(graph: Graph) -> None:
    """Checks that every operator makes the shape that its output declares, and that the graph is a chain of definitions.

    Raises:
        ConversionError: an activation is used before it is made, made twice, or has another shape than its operator makes.
    """
    shapes = {graph.input: graph.activations[graph.input].shape}
    for op in graph.ops:
        needed = 2 if op.kind is OpKind.ADD else 1
        if len(op.inputs) != needed or any(name not in shapes for name in op.inputs):
            raise ConversionError(f"{op.name}: {op.kind} needs {needed} inputs that are made before it, has {op.inputs}")
        if op.output in shapes or op.output not in graph.activations:
            raise ConversionError(f"{op.name}: its output {op.output!r} is made twice or not declared")
        declared = graph.activations[op.output].shape
        made = output_shape(op, shapes, declared)
        if made != declared or (op.kind is OpKind.RESHAPE and _count(declared) != _count(shapes[op.inputs[0]])):
            raise ConversionError(f"{op.name}: {op.kind} makes {made} of {shapes[op.inputs[0]]}, declared is {declared}")
        shapes[op.output] = declared
    if graph.output not in shapes:
        raise ConversionError(f"the graph's output {graph.output!r} is not made by any operator")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
