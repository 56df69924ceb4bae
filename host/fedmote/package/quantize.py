# SPDX-License-Identifier: Apache-2.0
"""From a float graph and observed ranges to an int8 graph.

Activations are asymmetric int8, weights symmetric int8 (or int4) per output channel, biases int32 in the scale of the
accumulator: the TensorFlow Lite 8-bit specification. Operators that only move or compare values (pools, padding, reshape,
concatenation, a clamp to [0, 6]) have one quantization for all their inputs and their output, and LOGISTIC, TANH and SOFTMAX
have the one that their arithmetic fixes, so only the outputs of the others need a range: `observation_points`.

Activations that must have one quantization form a group, and its range is that of all that was observed in it. The input, whose
quantization devices keep their samples in, and activations whose quantization is fixed cannot join others: a QUANTIZE stands
between them.

Rounding a channel's weights moves the mean of its sums: by the sum of the rounding errors, each times the mean of what it is
multiplied with. Where a graph keeps the means of its inputs, biases take that back (bias correction: Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2). Means are stored rather than
corrections, because new weights round otherwise, while the means of their inputs change slowly.

A number that is off by its last bit costs no accuracy, but where every scale is off by its last bit, some value somewhere rounds
to its other neighbour, and a deep network carries that on. So numbers that come from calibration or from weights may have fewer
significant bits than float32 (`significant`, `Op.scale_bits`): what differs in its last bit alone then is most often the same.

A sum times its multiplier, m * 2^-r with m in [1/2, 1), is rounded twice by the integer arithmetic of microcontrollers, to a
multiple of 2^-r first, and once by runtimes that multiply in floating point: one sum in about 2^(r + 1) then comes out otherwise.
None does where the multiplier is one over an even number N that is no power of two. A product then is a half, which both round
away from zero, or lies 1/N or more below the next half; and 1/N > 2^-(r + 1), which is how far the first rounding reaches. N is
in the hundreds, so a weight scale that makes the multiplier so is hardly wider (`Op.has_even_divisors`).

The result is a pure function of (graph, ranges). That is what makes a pushed package equal a full conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, PackageError
from fedmote.package import fixed_point, tables
from fedmote.package.geometry import check_shapes, coverage
from fedmote.package.graph import WEIGHTED, Activation, Activations, Graph, Op, OpKind, Quantization, Ranges

_TIED = (
    *(OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D, OpKind.PAD, OpKind.RESHAPE),
    *(OpKind.CONCATENATION, OpKind.STRIDED_SLICE, OpKind.TRANSPOSE, OpKind.BROADCAST_TO),
)
_BIAS_LIMIT = 2**30  # half of int32: the other half is for the products
_FLOAT32_BITS = 24
_DOUBLE_MARGIN_BITS = 40  # float64 computes multipliers more exactly than that
_EVEN_DIVISORS = 32  # so many even numbers are tried, and a scale grows by one part of so many at most


def is_tied(op: Op) -> bool:
    """Whether the operator's output must keep the quantization of its input."""
    return op.kind in _TIED or (op.kind is OpKind.RELU and op.activation is Activation.RELU6)


def observation_points(graph: Graph) -> tuple[str, ...]:
    """Names of the activations whose ranges `quantize` needs, in order of execution.

    They are the input and all outputs that are neither tied nor fixed.
    """
    return (graph.input, *(op.output for op in graph.ops if not is_tied(op) and tables.fixed_quantization(op.kind) is None))


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
    graph = _separate_fixed(graph)
    fixed = {op.output: tables.fixed_quantization(op.kind) for op in graph.ops}
    quantizations: dict[str, Quantization] = {}
    for group in _groups(graph):
        known = [quantization for name in group if (quantization := fixed.get(name)) is not None]
        quantization = known[0] if known else _observed(group, graph, ranges)
        quantizations.update(dict.fromkeys(group, quantization))
    ops = []
    for op in graph.ops:
        if op.kind in WEIGHTED:
            shape = graph.activations[op.inputs[0]].shape
            op = quantize_weights(op, shape, quantizations[op.inputs[0]], quantizations[op.output])
        elif op.constant is not None:
            op = _quantize_constant(op)
        ops.append(op)
    activations = {
        name: replace(activation, quantization=quantizations.get(name)) for name, activation in graph.activations.items()
    }
    result = replace(graph, ops=tuple(ops), activations=activations)
    _check_arithmetic(result)
    return result


def _separate_fixed(graph: Graph) -> Graph:
    """Puts a QUANTIZE behind the input and activations whose quantization is fixed, where a concatenation ties them to others."""
    fixed = {graph.input}
    ops: list[Op] = []
    activations = dict(graph.activations)
    for op in graph.ops:
        if op.kind is OpKind.CONCATENATION and len(op.inputs) > 1:
            inputs = []
            for position, name in enumerate(op.inputs):
                if name in fixed:
                    own = f"{op.output}.input{position}"
                    activations[own] = replace(activations[name], name=own)
                    ops.append(Op(OpKind.QUANTIZE, f"{op.name}.input{position}", (name,), own))
                    name = own
                inputs.append(name)
            op = replace(op, inputs=tuple(inputs))
        elif tables.fixed_quantization(op.kind) is not None or (is_tied(op) and op.inputs[0] in fixed):
            fixed.add(op.output)
        ops.append(op)
    return replace(graph, ops=tuple(ops), activations=activations)


def _groups(graph: Graph) -> list[tuple[str, ...]]:
    """Activations that must have one quantization, together."""
    group_of: dict[str, dict[str, None]] = {graph.input: {graph.input: None}}
    for op in graph.ops:
        group_of[op.output] = {op.output: None}
        for name in op.inputs if is_tied(op) else ():
            merged = group_of[name] | group_of[op.output]
            group_of.update(dict.fromkeys(merged, merged))
    return [tuple(group) for group in {id(group): group for group in group_of.values()}.values()]


def _observed(group: tuple[str, ...], graph: Graph, ranges: Ranges) -> Quantization:
    """The quantization of a group, from the ranges of those of its members that decide it."""
    needed = [name for name in observation_points(graph) if name in group]
    # A QUANTIZE that was put in has no range of its own: what it reads has a fixed quantization, and so a known range.
    inserted = {op.output: op.inputs[0] for op in graph.ops if op.kind is OpKind.QUANTIZE}
    limits = []
    for name in needed:
        if name not in ranges and name not in inserted:
            raise ConversionError(
                f"activation {name}: no range was observed there; observe all observation_points() of the graph"
            )
        limits.append(ranges[name] if name in ranges else _fixed_range(inserted[name], graph, ranges))
    return activation_quantization(needed[0], min(low for low, _ in limits), max(high for _, high in limits))


def _fixed_range(name: str, graph: Graph, ranges: Ranges) -> tuple[float, float]:
    """The range of the input or of an activation whose quantization is fixed by its operator, perhaps through tied ones."""
    makers = {op.output: op for op in graph.ops}
    while name in makers and is_tied(makers[name]):
        name = makers[name].inputs[0]
    if name == graph.input and name in ranges:
        return ranges[name]
    fixed = tables.fixed_quantization(makers[name].kind) if name in makers else None
    if fixed is None:
        raise ConversionError(f"activation {name}: no range was observed there; observe all observation_points() of the graph")
    scale, zero_point = float(fixed.scale[0]), int(fixed.zero_point[0])
    return (fixed_point.INT8_MIN - zero_point) * scale, (fixed_point.INT8_MAX - zero_point) * scale


def _quantize_constant(op: Op) -> Op:
    values = np.asarray(op.constant, np.float32)
    low, high = float(values.min()), float(values.max())
    # A constant of one value, zero too, still needs a range.
    quantization = activation_quantization(op.name, min(low, 0.0), high if high > min(low, 0.0) else low + 1.0)
    steps = _round(values.astype(np.float64) / float(quantization.scale[0])) + int(quantization.zero_point[0])
    constant = np.clip(steps, fixed_point.INT8_MIN, fixed_point.INT8_MAX).astype(np.int8)
    return replace(op, constant=constant, constant_quantization=quantization)


def quantize_weights(op: Op, shape: tuple[int, ...], source: Quantization, target: Quantization) -> Op:
    """Weights and bias of a weighted operator as integers.

    Args:
        op: with float32 weights and bias.
        shape: of its input.
        source: quantization of its input.
        target: quantization of its output.

    Raises:
        ConversionError: weights or biases are missing, not finite or beyond int32.
    """
    if op.weights is None or op.bias is None:
        raise ConversionError(f"{op.name}: {op.kind} has no weights; bind() the template first")
    weights = np.asarray(op.weights, np.float64)
    bias = np.asarray(op.bias, np.float64)
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        raise ConversionError(f"{op.name}: weights or biases are not finite")
    axis = 3 if op.kind is OpKind.DEPTHWISE_CONV_2D else 0
    others = tuple(i for i in range(weights.ndim) if i != axis)
    limit = 2 ** (op.weight_bits - 1) - 1
    largest = np.abs(weights).max(axis=others)
    if op.has_one_scale:
        largest = np.full_like(largest, largest.max())
    if not 2 <= op.scale_bits <= _FLOAT32_BITS:
        raise ConversionError(f"{op.name}: weight scales of {op.scale_bits} bits; expected 2 to {_FLOAT32_BITS}")
    scales = _weight_scales(largest / limit, bias, float(source.scale[0]), float(target.scale[0]), op.scale_bits)
    if op.has_one_scale:
        scales = np.full_like(scales, scales.max())
    if op.has_even_divisors:
        scales = _with_even_divisors(scales, source.scale[0], target.scale[0])
    broadcast = scales.astype(np.float64).reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    # The quotient is one of float32, as in TensorFlow Lite's converters: where it falls between two steps, they agree with us.
    quotients = weights.astype(np.float32) / broadcast.astype(np.float32)
    steps = np.clip(_round(quotients.astype(np.float64)), -limit, limit)
    if op.float_means is not None and op.int8_means is not None:
        bias = bias + mean_sums(op, weights, shape, op.float_means) - mean_sums(op, steps * broadcast, shape, op.int8_means)
    bias_steps = _round(bias / (float(source.scale[0]) * scales.astype(np.float64)))
    if (np.abs(bias_steps) > 2 * _BIAS_LIMIT - 1).any():
        raise ConversionError(f"{op.name}: its corrected bias is beyond int32; calibrate again")
    if op.has_one_scale:
        scales = scales[:1]
    quantization = Quantization(scales, np.zeros(len(scales), np.int64), axis)
    return replace(op, weights=steps.astype(np.int8), bias=bias_steps.astype(np.int32), weight_quantization=quantization)


def mean_sums(op: Op, weights: NDArray[np.float64], shape: tuple[int, ...], means: NDArray[np.float32]) -> NDArray[np.float64]:
    """Means (O,) of a weighted operator's sums of products, over all its outputs, if its input has these means.

    A channel's mean is taken to be the same all over the image; what lies in the padding counts as zero.

    Args:
        op: the operator.
        weights: in the graph's order.
        shape: of the input.
        means: (I,) of each channel, or feature.

    Raises:
        ConversionError: there are not as many means as channels.
    """
    channels = weights.shape[1] if op.kind is OpKind.FULLY_CONNECTED else shape[-1]
    if means.shape != (channels,) or not np.isfinite(means).all():
        raise ConversionError(f"{op.name}: {channels} finite means of its input are expected, not {means.shape}")
    expected = means.astype(np.float64)
    # einsum rather than matrix products: for a few thousand numbers, threads of a BLAS cost more than they save.
    if op.kind is OpKind.FULLY_CONNECTED:
        return np.asarray(np.einsum("oi,i->o", weights, expected))
    inside = coverage(op, shape)
    if op.kind is OpKind.DEPTHWISE_CONV_2D:
        return np.asarray(np.einsum("hwo,hw->o", weights[0], inside) * np.repeat(expected, op.depth_multiplier))
    taps = np.einsum("ohwi,hw->oi", weights, inside)
    groups = expected.reshape(-1, taps.shape[1])
    return np.asarray(np.einsum("goi,gi->go", taps.reshape(len(groups), -1, taps.shape[1]), groups).reshape(-1))


def _weight_scales(
    wanted: NDArray[np.float64], bias: NDArray[np.float64], source_scale: float, target_scale: float, bits: int
) -> NDArray[np.float32]:
    """Scales per channel: those that make the largest weight the largest integer, unless the bias would then leave int32.

    They have `bits` significant bits, rounded up.

    Folding a batch normalisation can leave a channel with (almost) no weights and a finite bias. Its scale is widened until
    the bias takes half of int32; a channel of zeros alone gets the scale that makes its multiplier one.
    """
    with np.errstate(over="ignore"):
        scales = wanted.astype(np.float32)
        needed = np.nextafter((np.abs(bias) / (source_scale * _BIAS_LIMIT)).astype(np.float32), np.float32(np.inf))
        scales = np.where(bias == 0, scales, np.maximum(scales, needed))
        scales = significant(scales, bits, np.ceil).astype(np.float32)
        neutral = np.float32(target_scale / source_scale)
    tiny = np.finfo(np.float32).tiny
    return np.where(scales < tiny, np.maximum(neutral, tiny), scales).astype(np.float32)


def _with_even_divisors(scales: NDArray[np.float32], source_scale: np.float32, target_scale: np.float32) -> NDArray[np.float32]:
    """Weight scales (O,), each widened to one that divides sums by an even number; as it was where none is near enough.

    A scale of float32 makes the multiplier a little larger than one over the number. It must not be smaller, or who rounds once
    would round a half down; and what it is larger by must not bring the product below a half within reach of the first rounding.
    """
    source, target = np.float64(source_scale), np.float64(target_scale)
    divisors = target / (source * scales.astype(np.float64))
    made, is_open = scales.copy(), np.full(scales.shape, True)
    for number in range(_EVEN_DIVISORS):
        candidates = 2 * (np.floor(divisors / 2) - number)
        is_open &= (candidates > 0) & (candidates >= divisors * (1 - 1 / _EVEN_DIVISORS))
        if not is_open.any():
            break
        candidates = np.where(is_open, candidates, 1.0)
        with np.errstate(over="ignore"):
            exact = target / (source * candidates) * (1 + 2.0**-_DOUBLE_MARGIN_BITS)
            nearest = exact.astype(np.float32)
            wider = np.where(nearest < exact, np.nextafter(nearest, np.float32(np.inf)), nearest)
            # A dense layer with one scale multiplies the two scales in float32.
            products = np.maximum(source * wider.astype(np.float64), (source_scale * wider).astype(np.float64))
        fractions, exponents = np.frexp(1 / candidates)
        # In units of the first rounding: how far off it reaches, and what 256 steps of the output are off by.
        is_found = is_open & (fractions - 0.5 > np.ldexp(products / target * candidates - 1, 8 - exponents)) & (wider >= scales)
        made[is_found] = wider[is_found]
        is_open &= ~is_found
    return made


def significant(
    values: NDArray[np.floating[Any]], bits: int, rounding: Callable[[NDArray[np.float64]], NDArray[np.float64]] = np.round
) -> NDArray[np.float64]:
    """Values (any shape) with so many significant bits, rounded to the nearest ones, or by another rule such as np.ceil."""
    mantissas, exponents = np.frexp(np.asarray(values, np.float64))
    return np.asarray(np.ldexp(rounding(np.ldexp(mantissas, bits)), exponents - bits))


def _round(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half away from zero, as std::round does in TensorFlow Lite's converter."""
    rounded = np.copysign(0.5, values)
    rounded += values
    return np.asarray(np.trunc(rounded, out=rounded))


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
    steps = _round(np.asarray(x, np.float64) / float(quantization.scale[0]))
    steps += int(quantization.zero_point[0])
    return np.clip(steps, fixed_point.INT8_MIN, fixed_point.INT8_MAX, out=steps).astype(np.int8)


def dequantize_values(activation: Activations, q: NDArray[np.int8]) -> NDArray[np.float32]:
    """Real values float32 of int8 ones: (q - zero_point) * scale, in float32 as the device computes them."""
    quantization = fixed_point.quantization_of(activation)
    centred = (q.astype(np.int32) - np.int32(quantization.zero_point[0])).astype(np.float32)
    return np.asarray(centred * quantization.scale[0], np.float32)
