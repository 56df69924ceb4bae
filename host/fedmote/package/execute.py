# SPDX-License-Identifier: Apache-2.0
"""Runs graphs on the host: in float32 for calibration, in int8 bit for bit as TensorFlow Lite Micro and the device do.

Batches are run in blocks that stay in the processor's caches. Integer convolutions use floating-point matrix products: sums of
integers below 2^24 (float32) or 2^53 (float64) are exact in any order. NumPy spends its time on loops over the innermost axis,
and a few channels make a short one: where numbers by channel meet an image they are repeated along its rows first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError
from fedmote.package import fixed_point, tables
from fedmote.package.geometry import Window, window_of
from fedmote.package.graph import ELEMENTWISE, WEIGHTED, Activation, Graph, Op, OpKind, Quantization, Ranges

Observer = Callable[[str, NDArray[np.float32]], None]

_BLOCK_ELEMENTS = 1 << 18  # unfolded window elements per block of samples: 1 MB of float32
_EXACT_TERMS = 2**24 // (255 * 128)  # products of a centred int8 input and an int8 weight that float32 adds exactly


def run_float(graph: Graph, x: NDArray[np.float32], observe: Observer | None = None) -> NDArray[np.float32]:
    """Runs a float graph.

    Args:
        graph: with float32 weights (`fold.bind`).
        x: float32 (N, ...), channels last, the graph's input shape without its batch axis.
        observe: called with (name, values (n, ...)) of every activation, the input too, block by block.

    Returns:
        float32 (N, ...) values of the graph's output.

    Raises:
        ConversionError: x has another shape than the graph's input.
    """
    blocks = []
    for block in _blocks(graph, x):
        values = {graph.input: np.asarray(block, np.float32)}
        if observe is not None:
            observe(graph.input, values[graph.input])
        for op in graph.ops:
            values[op.output] = run_float_op(graph, op, values)
            if observe is not None:
                observe(op.output, values[op.output])
        blocks.append(values[graph.output])
    return np.concatenate(blocks)


def observe(graph: Graph, x: NDArray[np.float32]) -> Ranges:
    """True minimum and maximum of every activation over all samples of x (N, ...), in order of execution.

    Raises:
        ConversionError: x has another shape than the graph's input, or no sample.
    """
    if not len(x):
        raise ConversionError("no calibration samples: the ranges of the activations cannot be observed")
    ranges: Ranges = {}

    def widen(name: str, values: NDArray[np.float32]) -> None:
        low, high = float(values.min()), float(values.max())
        old = ranges.get(name, (low, high))
        # np.minimum keeps a NaN, where min() may lose it: quantize() must see it
        ranges[name] = (float(np.minimum(old[0], low)), float(np.maximum(old[1], high)))

    run_float(graph, x, widen)
    return ranges


def run_int8(
    graph: Graph, x: NDArray[np.int8], observe: Callable[[str, NDArray[np.int8]], None] | None = None
) -> NDArray[np.int8]:
    """Runs an int8 graph, equal to TensorFlow Lite Micro in every bit.

    Args:
        graph: with int8 weights and quantized activations.
        x: int8 (N, ...), channels last.
        observe: called with (name, int8 values (n, ...)) of every operator's output, block by block.

    Returns:
        int8 (N, ...) values of the graph's output.

    Raises:
        ConversionError: x has another shape than the graph's input.
        PackageError: the graph is not quantized.
    """
    if x.dtype != np.int8:
        raise ConversionError(f"the int8 executor takes int8 samples, not {x.dtype}; see quantize_input()")
    blocks = []
    for block in _blocks(graph, x):
        values: dict[str, NDArray[np.int8]] = {graph.input: block}
        for op in graph.ops:
            values[op.output] = run_int8_op(graph, op, values)
            if observe is not None:
                observe(op.output, values[op.output])
        blocks.append(values[graph.output])
    return np.concatenate(blocks)


def _blocks(graph: Graph, x: NDArray[Any]) -> list[NDArray[Any]]:
    """Splits a batch so that no operator unfolds more than _BLOCK_ELEMENTS."""
    shape = graph.activations[graph.input].shape
    if x.shape[1:] != shape[1:]:
        raise ConversionError(
            f"samples have shape {x.shape[1:]}, the graph's input {graph.input!r} is {shape[1:]}, channels last"
        )
    largest = 1
    for op in graph.ops:
        pixels = int(np.prod(graph.activations[op.output].shape[1:-1], dtype=np.int64))
        channels = graph.activations[op.inputs[0]].shape[-1] * op.depth_multiplier
        largest = max(largest, pixels * channels * (op.kernel[0] * op.kernel[1] if op.kind is OpKind.CONV_2D else 1))
    step = max(1, _BLOCK_ELEMENTS // largest)
    return [x[start : start + step] for start in range(0, max(len(x), 1), step)]


def _pad(x: NDArray[Any], pads: tuple[int, int, int, int], value: float) -> NDArray[Any]:
    """Pads the height and width of x (n, h, w, c) by (top, bottom, left, right)."""
    if not any(pads):
        return x
    n, height, width, channels = x.shape
    top, bottom, left, right = pads
    out = np.full((n, top + height + bottom, left + width + right, channels), value, x.dtype)
    out[:, top : top + height, left : left + width] = x
    return out


def _windows(x: NDArray[Any], op: Op, window: Window, value: float) -> list[NDArray[Any]]:
    """Views (n, out_h, out_w, c) of the padded x, one for each position of the kernel, row by row."""
    padded = _pad(x, (window.pad_top, window.pad_bottom, window.pad_left, window.pad_right), value)
    views = []
    for y in range(op.kernel[0]):
        for z in range(op.kernel[1]):
            top, left = y * op.dilation[0], z * op.dilation[1]
            bottom = top + (window.out_h - 1) * op.stride[0] + 1
            right = left + (window.out_w - 1) * op.stride[1] + 1
            views.append(padded[:, top : bottom : op.stride[0], left : right : op.stride[1]])
    return views


def _convolve(x: NDArray[Any], weights: NDArray[Any], op: Op) -> NDArray[Any]:
    """Sums of products without bias: x (n, h, w, c) in a float type, zero outside -> (n, out_h, out_w, outputs)."""
    window = window_of(op, (1, *x.shape[1:]))
    if op.kind is OpKind.DEPTHWISE_CONV_2D:
        return _convolve_channels(x, weights.reshape(op.kernel[0], op.kernel[1], -1).astype(x.dtype), op, window)
    channels = weights.shape[3]
    groups = x.shape[3] // channels
    outputs = weights.shape[0] // groups
    padded = _pad(x, (window.pad_top, window.pad_bottom, window.pad_left, window.pad_right), 0)
    parts = []
    for group in range(groups):
        unfolded = _unfold(padded[..., group * channels : (group + 1) * channels], op, window)
        flat = weights[group * outputs : (group + 1) * outputs].reshape(outputs, -1).T.astype(x.dtype)
        parts.append((unfolded.reshape(-1, flat.shape[0]) @ flat).reshape(len(x), window.out_h, window.out_w, outputs))
    return parts[0] if groups == 1 else np.concatenate(parts, axis=-1)


def _unfold(padded: NDArray[Any], op: Op, window: Window) -> NDArray[Any]:
    """A view (n, out_h, out_w, kernel height, kernel width, c): what each window of a convolution sees."""
    sample, row, column, channel = padded.strides
    shape = (len(padded), window.out_h, window.out_w, *op.kernel, padded.shape[3])
    steps = (row * op.stride[0], column * op.stride[1], row * op.dilation[0], column * op.dilation[1])
    return np.lib.stride_tricks.as_strided(padded, shape, (sample, *steps, channel), writeable=False)


def _convolve_channels(x: NDArray[Any], taps: NDArray[Any], op: Op, window: Window) -> NDArray[Any]:
    """A depthwise convolution; taps (kernel height, kernel width, outputs).

    Columns that a tap reads are brought together where the stride parts them, so that every loop runs along a whole row.
    """
    if op.depth_multiplier > 1:
        x = np.repeat(x, op.depth_multiplier, axis=-1)
    padded = _pad(x, (window.pad_top, window.pad_bottom, window.pad_left, window.pad_right), 0)
    stride_h, stride_w = op.stride
    phases = [padded] if stride_w == 1 else [np.ascontiguousarray(padded[:, :, phase::stride_w]) for phase in range(stride_w)]
    total = np.empty((len(x), window.out_h, window.out_w * taps.shape[2]), x.dtype)
    product = np.empty_like(total)
    row_taps = np.tile(taps, window.out_w)
    for y in range(op.kernel[0]):
        top = y * op.dilation[0]
        rows = slice(top, top + (window.out_h - 1) * stride_h + 1, stride_h)
        for z in range(op.kernel[1]):
            left, phase = divmod(z * op.dilation[1], stride_w)
            seen = phases[phase][:, rows, left : left + window.out_w].reshape(total.shape)
            is_first = y == z == 0
            np.multiply(seen, row_taps[y, z], out=total if is_first else product)
            if not is_first:
                total += product
    return total.reshape(len(x), window.out_h, window.out_w, -1)


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    """A view of an image (n, h, w, c) as rows (n * h, w * c), of vectors (n, c) as they are."""
    return values.reshape(-1, int(np.prod(values.shape[-2:]))) if values.ndim == 4 else values


def _along_rows(numbers: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """Numbers by channel (c,), repeated for each pixel of a row."""
    return np.tile(numbers, rows.shape[-1] // len(numbers))


def _aligned(values: NDArray[Any], rank: int) -> NDArray[Any]:
    """A batch (n, ...) with axes of length 1 behind its first, so that it has `rank` axes and broadcasts from its last one."""
    return values.reshape(len(values), *(1,) * (rank - values.ndim), *values.shape[1:])


def _second_operand(op: Op, values: Mapping[str, NDArray[Any]], rank: int) -> NDArray[Any]:
    """The second operand of ADD or MUL, with as many axes as the output or fewer."""
    if op.constant is None:
        return _aligned(values[op.inputs[1]], rank)
    return op.constant.reshape(op.constant.shape[max(0, op.constant.ndim - rank) :])


def _moved(op: Op, values: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
    """Operators that only move values; `shape` is the output's."""
    x = values[op.inputs[0]]
    match op.kind:
        case OpKind.CONCATENATION:
            return np.concatenate([values[name] for name in op.inputs], axis=op.axis)
        case OpKind.STRIDED_SLICE:
            for axis in range(1, x.ndim):
                x = np.take(x, op.starts[axis] + op.steps[axis] * np.arange(shape[axis]), axis)
            return x
        case OpKind.TRANSPOSE:
            return x.transpose(op.permutation)
        case OpKind.BROADCAST_TO:
            return np.broadcast_to(_aligned(x, len(shape)), shape)
        case OpKind.RESHAPE:
            return x
    raise ConversionError(f"{op.name}: {op.kind} cannot be run")


def _float_function(op: Op, x: NDArray[np.float32]) -> NDArray[Any]:
    """Functions of one element, before a clamp."""
    match op.kind:
        case OpKind.LEAKY_RELU:
            return np.where(x >= 0, x, x * np.float32(op.alpha))
        case OpKind.HARD_SWISH:
            return x * np.clip(x + 3, 0, 6) / 6
        case OpKind.LOGISTIC:
            return 0.5 + 0.5 * np.tanh(0.5 * x.astype(np.float64))
        case OpKind.TANH:
            return np.tanh(x)
        case OpKind.RELU:
            return np.maximum(x, 0) if op.activation is Activation.NONE else x
    return x


def run_float_op(graph: Graph, op: Op, values: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Runs one operator on a block of samples.

    Args:
        graph: whose activations have the shapes; the operator need not be in it.
        op: with float weights, if it has any.
        values: of its inputs, float32 or float64 (N, ...), by name.

    Returns:
        Its output (N, ...), in the type of its first input.

    Raises:
        ConversionError: the operator has no weights, or is no float one.
    """
    x = values[op.inputs[0]]
    shape = (len(x), *graph.activations[op.output].shape[1:])
    if op.kind in WEIGHTED and (op.weights is None or op.bias is None):
        raise ConversionError(f"{op.name}: {op.kind} has no weights; bind() the template first")
    out: NDArray[Any]
    match op.kind:
        case OpKind.CONV_2D | OpKind.DEPTHWISE_CONV_2D:
            out = _convolve(x, np.asarray(op.weights), op)
            rows = _rows(out)
            rows += _along_rows(np.asarray(op.bias), rows)
        case OpKind.FULLY_CONNECTED:
            weights = np.asarray(op.weights)
            out = x.reshape(-1, weights.shape[1]) @ weights.T + np.asarray(op.bias)
        case OpKind.ADD:
            out = _aligned(x, len(shape)) + _second_operand(op, values, len(shape))
        case OpKind.MUL:
            out = _aligned(x, len(shape)) * _second_operand(op, values, len(shape))
        case OpKind.AVERAGE_POOL_2D:
            window = window_of(op, (1, *x.shape[1:]))
            out = sum(_windows(x, op, window, 0)) / _window_counts(op, window)
        case OpKind.MAX_POOL_2D:
            out = np.maximum.reduce(_windows(x, op, window_of(op, (1, *x.shape[1:])), -np.inf))
        case OpKind.MEAN:
            out = x.mean(axis=(1, 2), dtype=np.float64)
        case OpKind.PAD:
            if op.pad_value not in (None, fixed_point.INT8_MIN):
                raise ConversionError(f"{op.name}: a float graph pads with zeros or with what a maximum never takes")
            out = _pad(x, op.pads, 0 if op.pad_value is None else float(x.min()))
        case OpKind.SOFTMAX:
            powers = np.exp(np.float32(op.beta) * (x - x.max(axis=-1, keepdims=True)))
            out = powers / powers.sum(axis=-1, keepdims=True)
        case kind if kind in ELEMENTWISE:
            out = _float_function(op, x)
        case _:
            out = _moved(op, values, shape)
    return _float_clamp(out, op.activation).astype(x.dtype, copy=False).reshape(shape)


def _float_clamp(values: NDArray[Any], activation: Activation) -> NDArray[Any]:
    limits = {Activation.RELU: (0, np.inf), Activation.RELU6: (0, 6), Activation.RELU_N1_TO_1: (-1, 1)}
    if activation is Activation.RELU:
        return np.asarray(np.maximum(values, 0))
    return values if activation is Activation.NONE else np.asarray(np.clip(values, *limits[activation]))


def _window_counts(op: Op, window: Window) -> NDArray[np.int64]:
    """How many pixels inside the image each pooling window covers, (1, out_h, out_w, 1): TFLite's mean excludes padding."""
    ones = np.ones((1, window.in_h, window.in_w, 1), np.int64)
    return np.asarray(sum(_windows(ones, op, window, 0)), np.int64)


def run_int8_op(graph: Graph, op: Op, values: Mapping[str, NDArray[np.int8]]) -> NDArray[np.int8]:
    """Runs one operator of an int8 graph on a block of samples.

    Args:
        graph: whose activations the operator reads and makes.
        op: with int8 weights.
        values: int8 (n, ...) of its inputs, by name.

    Returns:
        int8 (n, ...) values of its output.
    """
    x = values[op.inputs[0]]
    shape = (len(x), *graph.activations[op.output].shape[1:])
    source = fixed_point.quantization_of(graph.activations[op.inputs[0]])
    target = fixed_point.quantization_of(graph.activations[op.output])
    out: NDArray[Any]
    match op.kind:
        case OpKind.CONV_2D | OpKind.DEPTHWISE_CONV_2D | OpKind.FULLY_CONNECTED:
            numbers = fixed_point.weighted_requantization(op, source, target)
            accumulator = _accumulate(x, op, int(source.zero_point[0]))
            rows = _rows(accumulator)
            multiplier, shift = (_along_rows(values, rows) for values in (numbers.multiplier, numbers.shift))
            out = fixed_point.requantize(rows, multiplier, shift)
            out += int(target.zero_point[0])
            np.clip(out, *fixed_point.activation_range(op.activation, target), out=out)
            return out.astype(np.int8).reshape(shape)
        case OpKind.ADD | OpKind.MUL:
            out = _int8_binary(graph, op, values, source, target) + int(target.zero_point[0])
        case OpKind.AVERAGE_POOL_2D:
            window = window_of(op, (1, *x.shape[1:]))
            total = np.asarray(sum(_windows(x.astype(np.int64), op, window, 0)))
            counts = _window_counts(op, window)
            magnitude = (np.abs(total) + counts // 2) // counts  # half away from zero
            out = np.where(total > 0, magnitude, -magnitude)
        case OpKind.MAX_POOL_2D:
            out = np.maximum.reduce(_windows(x, op, window_of(op, (1, *x.shape[1:])), fixed_point.INT8_MIN)).astype(np.int64)
        case OpKind.MEAN:
            count = x.shape[1] * x.shape[2]
            total = np.asarray(x.sum(axis=(1, 2), dtype=np.int64)) - int(source.zero_point[0]) * count
            out = fixed_point.requantize(total, *fixed_point.mean_requantization(source, target, count))
            out = out + int(target.zero_point[0])
        case OpKind.PAD:
            out = _pad(x, op.pads, int(source.zero_point[0]) if op.pad_value is None else op.pad_value)
        case OpKind.SOFTMAX:
            out = tables.softmax(x, tables.softmax_exponentials(op, source, target))
        case kind if kind in ELEMENTWISE:
            return tables.table_of(op, source, target)[x.astype(np.int64) - fixed_point.INT8_MIN].reshape(shape)
        case _:
            out = _moved(op, values, shape)
    return np.clip(out, *fixed_point.activation_range(op.activation, target)).astype(np.int8).reshape(shape)


def _int8_binary(
    graph: Graph, op: Op, values: Mapping[str, NDArray[np.int8]], source: Quantization, target: Quantization
) -> NDArray[np.int64]:
    """The rescaled sum or product, without the output's zero point."""
    second = fixed_point.second_operand(graph, op)
    rank = len(graph.activations[op.output].shape)
    one = _aligned(values[op.inputs[0]], rank).astype(np.int64) - int(source.zero_point[0])
    two = _second_operand(op, values, rank).astype(np.int64) - int(second.zero_point[0])
    if op.kind is OpKind.MUL:
        return fixed_point.requantize(one * two, *fixed_point.mul_requantization(source, second, target))
    sums = fixed_point.add_requantization(op, source, second, target)
    total = fixed_point.requantize(one << fixed_point.ADD_LEFT_SHIFT, sums.multiplier1, sums.shift1)
    total = total + fixed_point.requantize(two << fixed_point.ADD_LEFT_SHIFT, sums.multiplier2, sums.shift2)
    return fixed_point.requantize(total, sums.output_multiplier, sums.output_shift)


def _accumulate(x: NDArray[np.int8], op: Op, zero_point: int) -> NDArray[np.int64]:
    """Exact int32 accumulators of a weighted operator, bias included."""
    weights = np.asarray(op.weights)
    terms = weights.size // weights.shape[-1 if op.kind is OpKind.DEPTHWISE_CONV_2D else 0]
    exact = np.float32 if terms <= _EXACT_TERMS else np.float64
    centred: NDArray[Any] = np.subtract(x, zero_point, dtype=exact)
    if op.kind is OpKind.FULLY_CONNECTED:
        sums = centred.reshape(-1, weights.shape[1]) @ weights.T.astype(exact)
    else:
        sums = _convolve(centred, weights, op)
    accumulator = sums.astype(np.int64)
    rows = _rows(accumulator)
    rows += _along_rows(np.asarray(op.bias, np.int64), rows)
    return np.asarray(accumulator)
