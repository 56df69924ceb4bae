# SPDX-License-Identifier: Apache-2.0
"""How far an int8 graph can be from the float graph that it was made of: a bound for every element of every activation.

Let v be the exact value of an activation's element and r = scale * (q - zero_point) what the int8 path has there. The bound e
with |r - v| <= e is carried from operator to operator; nothing in it is measured on the int8 path, nothing is a fudge factor.

* **Input.** e is what rounding and saturation do to the sample itself.
* **Weighted sums.** Of y = sum of W v + b the device adds W' r + b', where W' = scale * Wq and b' are the rounded ones. So
  |sum' - y| <= sum |W'| e + sum |W' - W| |v| + |b' - b|. Padding is exact: zero is a number of every quantization.
* **Requantization.** The sum, an integer in units of scale_in * scale_w, is multiplied by M 2^(shift - 31), which differs from
  the wanted factor by a known share d, and rounded twice. That adds d (|y| + |sum' - y|) and, in output steps, 1/2 2^-right for
  the high product and 1/2 for the right shift, if there is one.
* **Saturation.** A result is clamped to [L, U], where int8 ends or an activation does. A clamp brings no two values further
  apart: |clamp(r) - f(v)| <= |r - v| + |clamp(v) - f(v)|, f being the activation; the second term is exact, as v is.
* **Sums and products.** ADD rescales both operands to a common unit of 2^-20 of the larger scale and their sum to the output;
  each of the three is a requantization. MUL of r1 r2 is |v1| e2 + |v2| e1 + e1 e2 from v1 v2 before its requantization.
* **Averages** have the average of e, half a step for rounding (AVERAGE_POOL_2D) or a requantization (MEAN). **Maxima** have the
  largest e of the window. What only moves values moves e. Padding below all values, which a maximum never takes, counts as exact.
* **Tables** are functions of 256 integers. r lies in [v - e, v + e], hence q in a known run of integers, and the output in
  the run's largest and smallest entry: the bound is the larger distance from f(v). It needs no Lipschitz constant, and holds
  where the table saturates.
* **SOFTMAX.** With logits in [v - e, v + e], p_i is largest where its own logit is highest and all others are lowest. The
  arithmetic (exponentials from a table of Q31, a sum in 12 integer bits, a reciprocal by three Newton steps from within 1/17, so
  within 17^-8 and a rounding of 2^-29 for each step) adds what `_softmax_arithmetic` sums up.

Exact values are computed in float64; a millionth of an output step covers its rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError
from fedmote.package import fixed_point, tables
from fedmote.package.execute import run_float_op, run_int8
from fedmote.package.fixed_point import INT8_MAX, INT8_MIN
from fedmote.package.graph import ELEMENTWISE, Activation, Graph, Op, OpKind, Quantization
from fedmote.package.quantize import is_tied, quantize_values

Values = NDArray[np.float64]

_FLOAT64_STEPS: Final = 1e-6
_LIMITS: Final = {
    Activation.NONE: (-np.inf, np.inf),
    Activation.RELU: (0.0, np.inf),
    Activation.RELU6: (0.0, 6.0),
    Activation.RELU_N1_TO_1: (-1.0, 1.0),
}
# Relative error of the reciprocal in SOFTMAX: 17^-8 is below 2^-32, three roundings of 2^-29 and those of the seed below 2^-26.
_RECIPROCAL: Final = 2.0**-26


@dataclass(frozen=True)
class Bounded:
    """An activation.

    Attributes:
        exact: values of the float graph without rounding, float64 (N, ...).
        error: largest distance of the int8 path from them, same shape, not negative.
    """

    exact: Values
    error: Values


def error_bounds(graph: Graph, quantized: Graph, x: NDArray[np.float32]) -> dict[str, Bounded]:
    """Bounds the error of an int8 graph for given samples.

    Args:
        graph: the float graph (`fold.bind`).
        quantized: what `quantize` made of it.
        x: samples float32 (N, ...), channels last.

    Returns:
        Exact values and errors of every activation of the int8 graph, by name.

    Raises:
        ConversionError: the samples do not suit the graph, or the graphs are not of one model.
    """
    activation = quantized.activations[quantized.input]
    if x.shape[1:] != activation.shape[1:]:
        raise ConversionError(f"samples have shape {x.shape[1:]}, the graph's input is {activation.shape[1:]}, channels last")
    exact = np.asarray(x, np.float64)
    source = fixed_point.quantization_of(activation)
    found = {quantized.input: Bounded(exact, np.abs(real_values(quantize_values(activation, x), source) - exact))}
    originals = {op.output: op for op in graph.ops}
    for rounded in quantized.ops:
        # A QUANTIZE that stands between two quantizations of one activation changes nothing in the float graph.
        op = originals.get(rounded.output, rounded if rounded.kind is OpKind.QUANTIZE else None)
        if op is None or op.kind is not rounded.kind:
            raise ConversionError(f"{rounded.name}: the float graph has no {rounded.kind} that makes {rounded.output!r}")
        found[rounded.output] = operator_bound(op, rounded, quantized, found)
    return found


def int8_values(quantized: Graph, x: NDArray[np.float32]) -> dict[str, Values]:
    """What the int8 path has at every activation, as real numbers.

    Args:
        quantized: the int8 graph.
        x: samples float32 (N, ...), channels last.

    Returns:
        float64 (N, ...) by name.
    """
    blocks: dict[str, list[NDArray[np.int8]]] = {quantized.input: [quantize_values(quantized.activations[quantized.input], x)]}
    run_int8(quantized, blocks[quantized.input][0], lambda name, values: blocks.setdefault(name, []).append(values))
    return {
        name: real_values(np.concatenate(values), fixed_point.quantization_of(quantized.activations[name]))
        for name, values in blocks.items()
    }


def operator_bound(op: Op, rounded: Op, quantized: Graph, inputs: Mapping[str, Bounded]) -> Bounded:
    """Bounds what one operator adds to the errors of its inputs.

    Args:
        op: the float operator.
        rounded: the int8 operator.
        quantized: the int8 graph.
        inputs: at least the operator's inputs. With errors of zero the result bounds the operator alone.
    """
    step = _Step(op, rounded, quantized, inputs)
    before = step.run(replace(op, activation=Activation.NONE) if op.kind is not OpKind.RELU else op, step.exact)
    exact = step.run(op, step.exact)
    error = _rule(step, before, exact)
    return Bounded(exact, error + _FLOAT64_STEPS * step.target_scale)


def real_values(q: NDArray[np.int8], quantization: Quantization) -> Values:
    """What int8 values stand for, without rounding."""
    return (q.astype(np.float64) - float(quantization.zero_point[0])) * float(quantization.scale[0])


class _Step:
    """One operator with all that its bound is made of."""

    def __init__(self, op: Op, rounded: Op, quantized: Graph, inputs: Mapping[str, Bounded]) -> None:
        self.op, self.rounded, self.graph = op, rounded, quantized
        self.exact = {name: inputs[name].exact for name in rounded.inputs}
        self.errors = {name: inputs[name].error for name in rounded.inputs}
        self.source = fixed_point.quantization_of(quantized.activations[rounded.inputs[0]])
        self.target = fixed_point.quantization_of(quantized.activations[rounded.output])
        self.source_scale, self.target_scale = float(self.source.scale[0]), float(self.target.scale[0])

    def run(self, op: Op, values: Mapping[str, Values]) -> Values:
        """The operator in float64."""
        renamed = dict(zip(op.inputs, (values[name] for name in self.rounded.inputs), strict=True))
        return np.asarray(run_float_op(self.graph, op, renamed), np.float64)

    def run_bare(self, values: Mapping[str, Values], **changes: object) -> Values:
        """The operator without its activation and with other fields."""
        return self.run(replace(self.op, activation=Activation.NONE, **changes), values)  # type: ignore[arg-type]  # fields by name

    def magnitudes(self) -> dict[str, Values]:
        """Absolute values of the inputs."""
        return {name: np.abs(values) for name, values in self.exact.items()}


def _rule(step: _Step, before: Values, exact: Values) -> Values:
    """The error of the output, given its exact values before and behind the activation."""
    match step.op.kind:
        case OpKind.CONV_2D | OpKind.DEPTHWISE_CONV_2D | OpKind.FULLY_CONNECTED:
            return _clamped(step, before, exact, _weighted(step, before))
        case OpKind.ADD:
            return _clamped(step, before, exact, _sum(step, before))
        case OpKind.MUL:
            return _clamped(step, before, exact, _product(step, before))
        case OpKind.AVERAGE_POOL_2D:
            return _clamped(step, before, exact, step.run_bare(step.errors) + 0.5 * step.target_scale)
        case OpKind.MEAN:
            return _clamped(step, before, exact, _mean(step, before))
        case OpKind.MAX_POOL_2D:
            return _clamped(step, before, exact, step.run_bare(step.errors))
        case OpKind.PAD:
            return step.run_bare(step.errors, pad_value=None)
        case OpKind.SOFTMAX:
            return _softmax(step, exact)
        case kind if kind in ELEMENTWISE:
            return _table(step, exact)
    return step.run_bare(step.errors)


def _clamped(step: _Step, before: Values, exact: Values, error: Values) -> Values:
    """The error behind the clamp to int8 and the activation."""
    low, high = fixed_point.activation_range(step.rounded.activation, step.target)
    zero_point = int(step.target.zero_point[0])
    lowest, highest = (low - zero_point) * step.target_scale, (high - zero_point) * step.target_scale
    if is_tied(step.rounded):
        # With the input's quantization int8 cannot end here: it ended where the input was made.
        limits = _LIMITS[step.rounded.activation]
        lowest, highest = limits[0] if low == INT8_MIN else lowest, limits[1] if high == INT8_MAX else highest
    return error + np.abs(np.clip(before, lowest, highest) - exact)


def _requantized(
    error: Values, magnitude: Values, share: NDArray[np.float64], step_size: float, shift: NDArray[np.int64]
) -> Values:
    """The error of a number of that magnitude behind a multiplier that is wrong by that share, and both roundings."""
    right = np.maximum(-shift, 0).astype(np.float64)
    roundings = 0.5 * 2.0**-right + np.where(right > 0, 0.5, 0.0)
    return np.asarray(error + share * (magnitude + error) + step_size * roundings)


def _share(multiplier: NDArray[np.int64], shift: NDArray[np.int64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """By what share a multiplier and shift differ from the factor that is wanted."""
    return np.abs(np.ldexp(multiplier.astype(np.float64), shift.astype(np.int64) - 31) / wanted - 1)


def _weighted(step: _Step, before: Values) -> Values:
    op, rounded = step.op, step.rounded
    if rounded.weight_quantization is None or rounded.weights is None or op.weights is None:
        raise ConversionError(f"{rounded.name}: {rounded.kind} has no weights in both graphs")
    scales = rounded.weight_quantization.scale.astype(np.float64)
    axis = 3 if op.kind is OpKind.DEPTHWISE_CONV_2D else 0
    spread = scales.reshape([-1 if position == axis else 1 for position in range(rounded.weights.ndim)])
    weights = rounded.weights * spread
    bias = np.asarray(rounded.bias, np.float64) * scales * step.source_scale
    carried = step.run_bare(step.errors, weights=np.abs(weights), bias=np.zeros(len(bias)))
    misread = step.run_bare(
        step.magnitudes(), weights=np.abs(weights - op.weights), bias=np.abs(bias - np.asarray(op.bias, np.float64))
    )
    numbers = fixed_point.weighted_requantization(rounded, step.source, step.target)
    multiplier, shift = numbers.multiplier.astype(np.int64), numbers.shift.astype(np.int64)
    share = _share(multiplier, shift, step.source_scale * scales / step.target_scale)
    return _requantized(carried + misread, np.abs(before), share, step.target_scale, shift)


def _operands(step: _Step) -> tuple[tuple[Values, Values], tuple[Values, Values]]:
    """(magnitude, error) of both operands of ADD or MUL, the second one shaped to repeat."""
    op, rounded = step.op, step.rounded
    first = rounded.inputs[0]
    one = (np.abs(step.exact[first]), step.errors[first])
    if rounded.constant is None:
        second = rounded.inputs[1]
        return one, (np.abs(step.exact[second]), step.errors[second])
    if rounded.constant_quantization is None:
        raise ConversionError(f"{rounded.name}: its constant has no quantization")
    wanted = np.asarray(op.constant, np.float64)
    return one, (np.abs(wanted), np.abs(real_values(rounded.constant.astype(np.int8), rounded.constant_quantization) - wanted))


def _combined(step: _Step, kind: OpKind, first: Values, second: Values) -> Values:
    """A sum or product of two arrays in the place of the operands."""
    op = replace(step.op, kind=kind)
    if step.rounded.constant is not None:
        op = replace(op, constant=second)  # type: ignore[arg-type]  # float64 here
        return step.run(replace(op, activation=Activation.NONE), {step.rounded.inputs[0]: first})
    one, two = "first", "second"
    op = replace(op, inputs=(one, two), activation=Activation.NONE)
    return np.asarray(run_float_op(_renamed(step, one, two), op, {one: first, two: second}), np.float64)


def _renamed(step: _Step, one: str, two: str) -> Graph:
    """The graph with both operands under names of their own: they may be one activation."""
    first, second = (step.graph.activations[name] for name in step.rounded.inputs)
    return replace(step.graph, activations={**step.graph.activations, one: first, two: second})


def _sum(step: _Step, before: Values) -> Values:
    second = fixed_point.second_operand(step.graph, step.rounded)
    numbers = fixed_point.add_requantization(step.rounded, step.source, second, step.target)
    scales = (step.source_scale, float(second.scale[0]))
    whole = 2 * max(scales)
    unit = whole / 2.0**fixed_point.ADD_LEFT_SHIFT
    rescaled = []
    factors = ((numbers.multiplier1, numbers.shift1), (numbers.multiplier2, numbers.shift2))
    for (magnitude, error), (multiplier, shift), scale in zip(_operands(step), factors, scales, strict=True):
        share = _share(np.array([multiplier]), np.array([shift]), np.array([scale / whole]))
        rescaled.append(_requantized(error, magnitude, share, unit, np.array([shift])))
    total = _combined(step, OpKind.ADD, rescaled[0], rescaled[1])
    last = np.array([numbers.output_shift])
    share = _share(np.array([numbers.output_multiplier]), last, np.array([unit / step.target_scale]))
    return _requantized(total, np.abs(before), share, step.target_scale, last)


def _product(step: _Step, before: Values) -> Values:
    second = fixed_point.second_operand(step.graph, step.rounded)
    (magnitude1, error1), (magnitude2, error2) = _operands(step)
    error = _combined(step, OpKind.MUL, magnitude1 + error1, error2) + _combined(step, OpKind.MUL, error1, magnitude2)
    multiplier, shift = fixed_point.mul_requantization(step.source, second, step.target)
    wanted = np.array([step.source_scale * float(second.scale[0]) / step.target_scale])
    share = _share(np.array([multiplier]), np.array([shift]), wanted)
    return _requantized(error, np.abs(before), share, step.target_scale, np.array([shift]))


def _mean(step: _Step, before: Values) -> Values:
    shape = step.graph.activations[step.rounded.inputs[0]].shape
    count = shape[1] * shape[2]
    multiplier, shift = fixed_point.mean_requantization(step.source, step.target, count)
    wanted = np.array([step.source_scale / (step.target_scale * count)])
    share = _share(np.array([multiplier]), np.array([shift]), wanted)
    return _requantized(step.run_bare(step.errors), np.abs(before), share, step.target_scale, np.array([shift]))


def _table(step: _Step, exact: Values) -> Values:
    """The distance from the farthest entry of the table that the input can lead to."""
    name = step.rounded.inputs[0]
    entries = real_values(tables.table_of(step.rounded, step.source, step.target), step.target)
    first, last = (
        np.clip(side, INT8_MIN, INT8_MAX).astype(np.int64).reshape(exact.shape) - INT8_MIN
        for side in _integers(step.exact[name], step.errors[name], step.source)
    )
    last = np.maximum(last, first)
    return np.asarray(np.maximum(_largest(entries, first, last) - exact, exact + _largest(-entries, first, last)))


def _integers(exact: Values, error: Values, quantization: Quantization) -> tuple[Values, Values]:
    """First and last integer that stand for values within the error."""
    scale, zero_point = float(quantization.scale[0]), int(quantization.zero_point[0])
    first = np.ceil((exact - error) / scale + zero_point - _FLOAT64_STEPS)
    return first, np.floor((exact + error) / scale + zero_point + _FLOAT64_STEPS)


def _largest(entries: Values, first: NDArray[np.int64], last: NDArray[np.int64]) -> Values:
    """The largest of entries[first..last], elementwise: of two runs of a length that is a power of two and cover it."""
    levels = [entries]
    while len(levels[-1]) > 1 and len(levels) < 9:
        half = 1 << (len(levels) - 1)
        levels.append(np.maximum(levels[-1][:-half], levels[-1][half:]))
    level = np.frexp((last - first + 1).astype(np.float64))[1] - 1
    padded = np.stack([np.pad(values, (0, len(entries) - len(values)), constant_values=-np.inf) for values in levels])
    return np.asarray(np.maximum(padded[level, first], padded[level, last - (1 << level) + 1]))


def _softmax(step: _Step, exact: Values) -> Values:
    name = step.rounded.inputs[0]
    beta = float(np.float32(step.rounded.beta))
    logits, error = beta * step.exact[name].reshape(exact.shape), abs(beta) * step.errors[name].reshape(exact.shape)
    top = (logits + error).max(axis=-1, keepdims=True)
    high, low = np.exp(logits + error - top), np.exp(logits - error - top)
    largest = high / (high + low.sum(axis=-1, keepdims=True) - low)
    smallest = low / (low + high.sum(axis=-1, keepdims=True) - high)
    arithmetic = _softmax_arithmetic(step, exact.shape[-1], largest)
    ceiling = (INT8_MAX - int(step.target.zero_point[0])) * step.target_scale
    return np.asarray(np.maximum(largest - exact, exact - smallest) + arithmetic + np.maximum(exact - ceiling, 0))


def _softmax_arithmetic(step: _Step, count: int, largest: Values) -> Values:
    """What fixed point adds to a row of `count` elements of these probabilities at most.

    With exponentials within d of the exact ones and a sum S >= 1 of which each term is rounded to 2^-19 of one, so within 2^-20:
    E' / S' differs from E / S by (d + p |S - S'|) / S', the reciprocal by its own share, and the result by half a step.
    """
    stored = tables.softmax_exponentials(step.rounded, step.source, step.target).astype(np.float64) / 2.0**31
    exponents = float(np.float32(step.rounded.beta)) * step.source_scale * np.arange(256)
    error = float(np.abs(stored - np.exp(-exponents)).max())
    total = count * (error + 2.0**-20)
    return np.asarray((error + largest * total) / max(1 - total, 0.5) + _RECIPROCAL * 2 + (0.5 + 2.0**-8) * step.target_scale)
