# SPDX-License-Identifier: Apache-2.0
"""From a float graph and observed ranges to an int8 graph.

Activations are asymmetric int8, weights symmetric int8 per output channel, biases int32 in the scale of the accumulator:
the TensorFlow Lite 8-bit specification. Operators that only move or compare values (pools, padding, reshape, a clamp to
[0, 6]) keep the quantization of their input, so only the outputs of the others need a range: `observation_points`.

The result is a pure function of (graph, ranges). That is what makes a pushed package equal a full conversion.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, PackageError
from fedmote.package import fixed_point
from fedmote.package.geometry import check_shapes
from fedmote.package.graph import Activation, Activations, Graph, Op, OpKind, Quantization, Ranges

_WEIGHTED = (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED)
_TIED = (OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D, OpKind.PAD, OpKind.RESHAPE)
_WEIGHT_LIMIT = 127
_BIAS_LIMIT = 2**30  # half of int32: the other half is for the products


def is_tied(op: Op) -> bool:
    """Whether the operator's output must keep the quantization of its input."""
    return op.kind in _TIED or (op.kind is OpKind.RELU and op.activation is Activation.RELU6)


def observation_points(graph: Graph) -> tuple[str, ...]:
    """Names of the activations whose ranges `quantize` needs, in order of execution: the input and all untied outputs."""
    return (graph.input, *(op.output for op in graph.ops if not is_tied(op)))


def activation_quantization(name: str, low: float, high: float) -> Quantization:
    """The int8 quantization of a range, widened to hold zero exactly.

    Raises:
        ConversionError: the range is empty, constant, not finite or too small for float32 scales.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ConversionError(
            f"activation {name}: its observed range [{low}, {high}] is not finite; check weights and calibration data"
        )
    if low >= high:
        what = "constant" if low == high else "empty"
        raise ConversionError(f"activation {name}: its observed range [{low}, {high}] is {what}; calibrate with more varied data")
    low, high = min(low, 0.0), max(high, 0.0)
    with np.errstate(over="ignore", under="ignore"):
        scale = np.float32((high - low) / 255.0)
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        raise ConversionError(f"activation {name}: its observed range [{low}, {high}] has no float32 scale")
    zero_point = int(
        np.clip(np.floor(fixed_point.INT8_MIN - low / float(scale) + 0.5), fixed_point.INT8_MIN, fixed_point.INT8_MAX)
    )
    return Quantization(np.array([scale], np.float32), np.array([zero_point], np.int64))


def quantize(graph: Graph, ranges: Ranges) -> Graph:
    """Quantizes a float graph.

    Args:
        graph: with float32 weights (`fold.bind`).
        ranges: at least the graph's `observation_points`; ranges of tied activations are not read.

    Raises:
        ConversionError: a range is missing or unusable, shapes do not match, or weights are not finite.
    """
    check_shapes(graph)
    quantizations = {graph.input: _observed(graph.input, ranges)}
    ops = []
    for op in graph.ops:
        source = quantizations[op.inputs[0]]
        target = source if is_tied(op) else _observed(op.output, ranges)
        quantizations[op.output] = target
        ops.append(_quantize_weights(op, source, target) if op.kind in _WEIGHTED else op)
    activations = {
        name: replace(activation, quantization=quantizations.get(name)) for name, activation in graph.activations.items()
    }
    result = replace(graph, ops=tuple(ops), activations=activations)
    _check_arithmetic(result)
    return result


def _observed(name: str, ranges: Ranges) -> Quantization:
    if name not in ranges:
        raise ConversionError(f"activation {name}: no range was observed there; observe all observation_points() of the graph")
    return activation_quantization(name, *ranges[name])


def _quantize_weights(op: Op, source: Quantization, target: Quantization) -> Op:
    if op.weights is None or op.bias is None:
        raise ConversionError(f"{op.name}: {op.kind} has no weights; bind() the template first")
    weights = np.asarray(op.weights, np.float64)
    bias = np.asarray(op.bias, np.float64)
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise ConversionError(f"{op.name}: weights or biases are not finite")
    axis = 3 if op.kind is OpKind.DEPTHWISE_CONV_2D else 0
    channels = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    scales = _weight_scales(np.abs(channels).max(axis=1), bias, float(source.scale[0]), float(target.scale[0]))
    broadcast = scales.astype(np.float64).reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    quantized = np.clip(_round(weights / broadcast), -_WEIGHT_LIMIT, _WEIGHT_LIMIT).astype(np.int8)
    bias_quantized = _round(bias / (float(source.scale[0]) * scales.astype(np.float64))).astype(np.int32)
    quantization = Quantization(scales, np.zeros(len(scales), np.int64), axis)
    return replace(op, weights=quantized, bias=bias_quantized, weight_quantization=quantization)


def _weight_scales(
    largest: NDArray[np.float64], bias: NDArray[np.float64], source_scale: float, target_scale: float
) -> NDArray[np.float32]:
    """Scales per channel: the largest weight becomes 127, unless the bias would then leave int32.

    Folding a batch normalisation can leave a channel with (almost) no weights and a finite bias. Its scale is widened until
    the bias takes half of int32; a channel of zeros alone gets the scale that makes its multiplier one.
    """
    with np.errstate(over="ignore"):
        scales = (largest / _WEIGHT_LIMIT).astype(np.float32)
        needed = np.nextafter((np.abs(bias) / (source_scale * _BIAS_LIMIT)).astype(np.float32), np.float32(np.inf))
        scales = np.where(bias == 0, scales, np.maximum(scales, needed))
        neutral = np.float32(target_scale / source_scale)
    tiny = np.finfo(np.float32).tiny
    return np.where(scales < tiny, np.maximum(neutral, tiny), scales).astype(np.float32)


def _round(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half away from zero, as std::round does in TensorFlow Lite's converter."""
    return np.copysign(np.floor(np.abs(values) + 0.5), values)


def _check_arithmetic(graph: Graph) -> None:
    """No accumulator of the int8 graph can overflow; a failure is the conversion's, not a file's."""
    try:
        for op in graph.ops:
            fixed_point.check_op(graph, op)
    except PackageError as error:
        raise ConversionError(str(error)) from error


def quantize_input(graph: Graph, x: NDArray[np.float32]) -> NDArray[np.int8]:
    """Samples float32 (N, ...), channels last, in the int8 quantization of the graph's input.

    Raises:
        ConversionError: x has another shape than the graph's input, or values that are not finite.
    """
    activation = graph.activations[graph.input]
    if x.shape[1:] != activation.shape[1:]:
        raise ConversionError(f"samples have shape {x.shape[1:]}, the graph's input is {activation.shape[1:]}, channels last")
    return quantize_values(activation, x)


def quantize_values(activation: Activations, x: NDArray[np.float32]) -> NDArray[np.int8]:
    """Values float32 (any shape) in the activation's int8 quantization, saturated.

    Raises:
        ConversionError: values are not finite.
    """
    if not np.isfinite(x).all():
        raise ConversionError(f"samples for {activation.name} hold values that are not finite")
    quantization = fixed_point.quantization_of(activation)
    steps = _round(np.asarray(x, np.float64) / float(quantization.scale[0])) + int(quantization.zero_point[0])
    return np.clip(steps, fixed_point.INT8_MIN, fixed_point.INT8_MAX).astype(np.int8)


def dequantize_values(activation: Activations, q: NDArray[np.int8]) -> NDArray[np.float32]:
    """Real values float32 of int8 ones: (q - zero_point) * scale, in float32 as the device computes them."""
    quantization = fixed_point.quantization_of(activation)
    centred = (q.astype(np.int32) - np.int32(quantization.zero_point[0])).astype(np.float32)
    return np.asarray(centred * quantization.scale[0], np.float32)
