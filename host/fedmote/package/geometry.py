# SPDX-License-Identifier: Apache-2.0
"""Shapes: what each operator makes of its inputs, and windows with their implicit padding, as TensorFlow Lite has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError
from fedmote.package.graph import BINARY, Graph, Op, OpKind


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


def coverage(op: Op, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Share of a convolution's windows whose tap lies inside the image, (kernel height, kernel width); 1 without padding."""
    window = window_of(op, shape)
    rows = _axis_coverage(window.in_h, window.out_h, op.kernel[0], op.stride[0], op.dilation[0], window.pad_top)
    columns = _axis_coverage(window.in_w, window.out_w, op.kernel[1], op.stride[1], op.dilation[1], window.pad_left)
    return np.outer(rows, columns)


@lru_cache(maxsize=256)  # asked for with every push, of the same few shapes
def _axis_coverage(size: int, outputs: int, kernel: int, stride: int, dilation: int, near: int) -> tuple[float, ...]:
    pixels = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - near
    return tuple(((pixels >= 0) & (pixels < size)).mean(axis=0).tolist())


def output_shape(op: Op, shapes: dict[str, tuple[int, ...]], declared: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `op` makes of its inputs.

    `declared` decides what an operator leaves open: the shape of RESHAPE and BROADCAST_TO, the length of STRIDED_SLICE, the
    rank of MEAN and FULLY_CONNECTED.

    Raises:
        ConversionError: the inputs do not suit the operator.
    """
    shape = shapes[op.inputs[0]]
    match op.kind:
        case OpKind.CONV_2D | OpKind.DEPTHWISE_CONV_2D:
            return _convolution_shape(op, shape)
        case OpKind.AVERAGE_POOL_2D | OpKind.MAX_POOL_2D:
            window = window_of(op, shape)
            return (1, window.out_h, window.out_w, shape[3])
        case OpKind.FULLY_CONNECTED:
            return _dense_shape(op, shape, declared)
        case OpKind.PAD:
            _need_image(op, shape)
            top, bottom, left, right = op.pads
            return (1, shape[1] + top + bottom, shape[2] + left + right, shape[3])
        case OpKind.MEAN:
            _need_image(op, shape)
            return (1, 1, 1, shape[3]) if len(declared) == 4 else (1, shape[3])
        case OpKind.ADD | OpKind.MUL:
            return _binary_shape(op, shapes)
        case OpKind.CONCATENATION:
            return _concatenation_shape(op, [shapes[name] for name in op.inputs])
        case OpKind.STRIDED_SLICE:
            return _slice_shape(op, shape, declared)
        case OpKind.TRANSPOSE:
            if sorted(op.permutation) != list(range(len(shape))) or op.permutation[0] != 0:
                raise ConversionError(
                    f"{op.name}: axes {op.permutation} are no permutation of {shape} that keeps the batch first"
                )
            return tuple(shape[axis] for axis in op.permutation)
        case OpKind.BROADCAST_TO:
            if not _broadcasts(shape, declared):
                raise ConversionError(f"{op.name}: {shape} does not repeat to {declared}")
            return declared
        case OpKind.RESHAPE:
            if math.prod(declared) != math.prod(shape):
                raise ConversionError(f"{op.name}: RESHAPE of {shape} to {declared} changes the number of elements")
            return declared
    return shape


def _need_image(op: Op, shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        raise ConversionError(f"{op.name}: {op.kind} needs an input of (1, height, width, channels), not {shape}")


def _convolution_shape(op: Op, shape: tuple[int, ...]) -> tuple[int, ...]:
    window = window_of(op, shape)
    if op.weights is None:
        raise ConversionError(f"{op.name}: {op.kind} has no weights")
    weights = op.weights.shape
    if op.kind is OpKind.CONV_2D:
        if len(weights) != 4 or weights[1:3] != op.kernel or shape[3] % weights[3] or weights[0] % (shape[3] // weights[3]):
            raise ConversionError(f"{op.name}: weights {weights} do not suit a {op.kernel} kernel over {shape[3]} channels")
        return (1, window.out_h, window.out_w, weights[0])
    if weights != (1, *op.kernel, shape[3] * op.depth_multiplier):
        raise ConversionError(
            f"{op.name}: weights {weights} do not suit kernel {op.kernel}, {op.depth_multiplier} per channel of {shape[3]}"
        )
    return (1, window.out_h, window.out_w, weights[3])


def dense_rows(op: Op, shape: tuple[int, ...]) -> int:
    """How many vectors FULLY_CONNECTED multiplies with its weights: the input is cut into vectors of the weights' length."""
    weights = None if op.weights is None else op.weights.shape
    if weights is None or len(weights) != 2 or not weights[1] or math.prod(shape) % weights[1]:
        raise ConversionError(f"{op.name}: weights {weights} do not suit {math.prod(shape)} inputs")
    return math.prod(shape) // int(weights[1])


def _dense_shape(op: Op, shape: tuple[int, ...], declared: tuple[int, ...]) -> tuple[int, ...]:
    rows, outputs = dense_rows(op, shape), 0 if op.weights is None else op.weights.shape[0]
    if len(declared) > 2 and declared[-1] == outputs and math.prod(declared) == rows * outputs:
        return declared
    return (rows, outputs)


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a shape, aligned at its last axis, repeats to another."""
    padded = (1,) * (len(target) - len(shape)) + shape
    return len(padded) == len(target) and all(length in (1, whole) for length, whole in zip(padded, target, strict=True))


def without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape from its first axis on that is longer than 1."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def repeats_whole(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a shape repeats to another by running through all its elements again and again.

    It does if, behind its leading ones, it is the end of the other: a vector of channels and a single number are.
    """
    core = without_leading_ones(shape)
    return core == target[len(target) - len(core) :]


def _binary_shape(op: Op, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    first = shapes[op.inputs[0]]
    if op.constant is not None:
        second, does_fit = op.constant.shape, _broadcasts(without_leading_ones(op.constant.shape), first)
    else:
        second = shapes[op.inputs[1]]
        does_fit = repeats_whole(second, first)
    if not does_fit:
        raise ConversionError(f"{op.name}: {op.kind} of shapes {first} and {second}; the second must repeat to the first")
    return first if len(first) >= len(second) else (1,) * (len(second) - len(first)) + first


def _concatenation_shape(op: Op, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    first, axis = shapes[0], op.axis
    if not 0 < axis < len(first):
        raise ConversionError(f"{op.name}: CONCATENATION along axis {axis} of {first}")
    if any(len(s) != len(first) or s[:axis] + s[axis + 1 :] != first[:axis] + first[axis + 1 :] for s in shapes):
        raise ConversionError(f"{op.name}: CONCATENATION of shapes {shapes} along axis {axis}")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _slice_shape(op: Op, shape: tuple[int, ...], declared: tuple[int, ...]) -> tuple[int, ...]:
    is_inside = len(op.starts) == len(op.steps) == len(shape) == len(declared) and all(
        length > 0 and 0 <= start < size and 0 <= start + (length - 1) * step < size
        for start, step, length, size in zip(op.starts, op.steps, declared, shape, strict=True)
    )
    if not is_inside:
        raise ConversionError(f"{op.name}: {declared} elements from {op.starts} in steps of {op.steps} leave {shape}")
    return declared


def check_shapes(graph: Graph) -> None:
    """Checks that every operator makes the shape that its output declares, and that the graph is a chain of definitions.

    Raises:
        ConversionError: an activation is used before it is made, made twice, or has another shape than its operator makes.
    """
    shapes = {graph.input: graph.activations[graph.input].shape}
    for op in graph.ops:
        if not _suits_inputs(op) or any(name not in shapes for name in op.inputs):
            raise ConversionError(f"{op.name}: {op.kind} has inputs {op.inputs}; they do not suit it or are not made before it")
        if op.output in shapes or op.output not in graph.activations:
            raise ConversionError(f"{op.name}: its output {op.output!r} is made twice or not declared")
        declared = graph.activations[op.output].shape
        made = output_shape(op, shapes, declared)
        if made != declared:
            raise ConversionError(f"{op.name}: {op.kind} makes {made} of {shapes[op.inputs[0]]}, declared is {declared}")
        shapes[op.output] = declared
    if graph.output not in shapes:
        raise ConversionError(f"the graph's output {graph.output!r} is not made by any operator")


def _suits_inputs(op: Op) -> bool:
    if op.kind is OpKind.CONCATENATION:
        return len(op.inputs) >= 1
    return len(op.inputs) == (2 if op.kind in BINARY and op.constant is None else 1)
