# SPDX-License-Identifier: Apache-2.0
"""Integer requantization, the way TensorFlow Lite Micro does it, and the numbers that operators need for it.

The integer executor and the compiler of device plans take every multiplier, shift and clamp from here, so the two cannot
differ. A real factor becomes a Q31 multiplier and a shift (positive is left); a product is rounded twice, to the nearest
after the doubling high multiplication and half away from zero after the right shift. That is TensorFlow Lite's reference
arithmetic (kernels/internal/common.h); runtimes that round once (XNNPACK) differ in the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import PackageError
from fedmote.package.graph import ELEMENTWISE, Activation, Activations, Graph, Op, OpKind, Quantization

INT8_MIN = -128
INT8_MAX = 127
ADD_LEFT_SHIFT = 20  # headroom bits of an int8 addition
_INT32_LIMIT = 2**31


def quantize_multiplier(real: NDArray[np.float64] | float) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Real factors >= 0 as Q31 multipliers in [2^30, 2^31) and shifts: real = multiplier * 2^(shift - 31).

    Factors below 2^-32 become zero.

    Raises:
        PackageError: a factor is not finite: two scales are too far apart for float32.
    """
    if not np.isfinite(real).all():
        raise PackageError("the scales of an operator's tensors are too far apart: their ratio is not finite in float32")
    fraction, exponent = np.frexp(np.atleast_1d(np.asarray(real, np.float64)))
    fixed = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    shift = exponent.astype(np.int64)
    is_carried = fixed == 2**31  # the fraction was rounded up to 1.0
    fixed = np.where(is_carried, 2**30, fixed)
    shift = np.where(is_carried, shift + 1, shift)
    is_vanishing = shift < -31
    return np.where(is_vanishing, 0, fixed).astype(np.int32), np.where(is_vanishing, 0, shift).astype(np.int32)


def requantize(
    values: NDArray[np.int64], multiplier: NDArray[np.int32] | int, shift: NDArray[np.int32] | int
) -> NDArray[np.int64]:
    """MultiplyByQuantizedMultiplier, elementwise; multiplier and shift are broadcast over the last axis.

    The doubling high multiplication with its sign-dependent nudge and truncation equals one floor((a * b + 2^30) / 2^31)
    for both signs; the rounding shift is half away from zero.
    """
    left = np.maximum(np.asarray(shift, np.int64), 0)
    right = np.maximum(-np.asarray(shift, np.int64), 0)
    # In place: these few operations are most of the time of an int8 convolution.
    out = values << left if left.any() else np.array(values, np.int64)
    out *= np.asarray(multiplier, np.int64)
    out += 1 << 30
    out >>= 31
    downward = out >> 63  # -1 where a negative number is rounded
    if not right.all():
        downward &= -(right > 0).astype(np.int64)
    out += downward
    out += (np.int64(1) << right) >> 1
    out >>= right
    return out


def high_product(a: NDArray[np.int64], b: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """The doubling high multiplication of two Q31 numbers, rounded to the nearest (of which one is above -2^31)."""
    return np.asarray((a * b + (1 << 30)) >> 31, np.int64)


def rounding_shift(values: NDArray[np.int64], right: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Division by 2^right, rounded to the nearest, half away from zero."""
    right64 = np.asarray(right, np.int64)
    half = (np.int64(1) << right64) >> 1
    is_downward = ((values < 0) & (right64 > 0)).astype(np.int64)
    return np.asarray((values + half - is_downward) >> right64, np.int64)


def check_no_overflow(bound: NDArray[np.int64] | int, shift: NDArray[np.int32], op: Op) -> None:
    """Refuses an operator whose accumulator could leave int32, where reference kernels are undefined.

    Args:
        bound: largest magnitude that the accumulator can take, per channel.
        shift: requantization shifts, per channel.
        op: for the message.

    Raises:
        PackageError: with the name of the operator.
    """
    left = np.maximum(shift.astype(np.int64), 0)
    if (left > 30).any() or (np.asarray(bound, np.int64) >= (_INT32_LIMIT >> np.minimum(left, 30))).any():
        raise PackageError(f"{op.name}: the accumulator can exceed int32; its output range is too narrow for its weights")


def activation_range(activation: Activation, quantization: Quantization) -> tuple[int, int]:
    """Clamp of a fused activation in the output's quantization, as TensorFlow Lite rounds it (float32 division)."""
    scale, zero_point = quantization.scale[0], int(quantization.zero_point[0])
    if activation is Activation.NONE:
        return INT8_MIN, INT8_MAX
    low = max(INT8_MIN, zero_point)
    if activation is Activation.RELU:
        return low, INT8_MAX
    with np.errstate(over="ignore"):
        steps = float(np.floor(float(np.float32(6.0 if activation is Activation.RELU6 else 1.0) / scale) + 0.5))
    if activation is Activation.RELU_N1_TO_1:
        low = int(max(float(INT8_MIN), zero_point - steps))
    return low, int(min(float(INT8_MAX), zero_point + steps))


@dataclass(frozen=True)
class ChannelRequantization:
    """Per output channel: Q31 multiplier and shift, int32, shape (outputs,)."""

    multiplier: NDArray[np.int32]
    shift: NDArray[np.int32]


def weighted_requantization(op: Op, source: Quantization, target: Quantization) -> ChannelRequantization:
    """Accumulator (input scale * weight scale) -> output, for CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED."""
    if op.weights is None or op.weight_quantization is None:
        raise PackageError(f"{op.name}: {op.kind} has no quantized weights")
    outputs = op.weights.shape[-1 if op.kind is OpKind.DEPTHWISE_CONV_2D else 0]
    scales = op.weight_quantization.scale
    real: NDArray[np.float64] | np.float64
    if op.kind is OpKind.FULLY_CONNECTED and scales.size == 1:
        # Per-tensor fully connected multiplies the two scales in float32 before it divides (GetQuantizedConvolutionMultipler).
        real = np.float64(source.scale[0] * scales[0]) / np.float64(target.scale[0])
    else:
        real = np.float64(source.scale[0]) * scales.astype(np.float64) / np.float64(target.scale[0])
    multiplier, shift = quantize_multiplier(np.broadcast_to(real, (outputs,)))
    return ChannelRequantization(multiplier, shift)


def folded_bias(op: Op, source: Quantization) -> NDArray[np.int32]:
    """The biases of a weighted operator less the input's zero point times the channel's weights, modulo 2^32, shape (outputs,).

    With them the accumulator is the sum of products of inputs as they are, where inputs in the padding are the zero point.
    """
    weights = np.asarray(op.weights, np.int64)
    axes = tuple(range(weights.ndim - 1)) if op.kind is OpKind.DEPTHWISE_CONV_2D else tuple(range(1, weights.ndim))
    folded: NDArray[np.int64] = np.asarray(op.bias, np.int64) - int(source.zero_point[0]) * weights.sum(axis=axes)
    return folded.astype(np.uint32).view(np.int32)


def accumulator_bound(op: Op, source: Quantization) -> NDArray[np.int64]:
    """Largest magnitude of the int32 accumulator per output channel, over all int8 inputs."""
    weights = np.abs(np.asarray(op.weights, np.int64))
    axes = tuple(range(weights.ndim - 1)) if op.kind is OpKind.DEPTHWISE_CONV_2D else tuple(range(1, weights.ndim))
    bound: NDArray[np.int64] = weights.sum(axis=axes) * reach(source) + np.abs(np.asarray(op.bias, np.int64))
    return bound


@dataclass(frozen=True)
class AddRequantization:
    """Multipliers and shifts of ADD: both inputs to a common scale with 20 bits of headroom, their sum to the output."""

    multiplier1: int
    shift1: int
    multiplier2: int
    shift2: int
    output_multiplier: int
    output_shift: int


def add_requantization(op: Op, first: Quantization, second: Quantization, target: Quantization) -> AddRequantization:
    """Numbers of an int8 addition.

    Raises:
        PackageError: the output scale is so fine that the sum would have to be enlarged, which reference kernels refuse.
    """
    scale1, scale2, scale_out = (np.float64(q.scale[0]) for q in (first, second, target))
    twice_max = 2.0 * max(scale1, scale2)
    factors = np.array([scale1 / twice_max, scale2 / twice_max, twice_max / (2.0**ADD_LEFT_SHIFT * scale_out)])
    multiplier, shift = quantize_multiplier(factors)
    if shift[2] > 0:
        raise PackageError(f"{op.name}: the output scale of ADD is 2^20 times finer than its inputs; widen the output's range")
    return AddRequantization(
        int(multiplier[0]), int(shift[0]), int(multiplier[1]), int(shift[1]), int(multiplier[2]), int(shift[2])
    )


def mean_requantization(source: Quantization, target: Quantization, count: int) -> tuple[int, int]:
    """Multiplier and shift of a mean over `count` elements: the division is folded into the multiplier."""
    multiplier, shift = quantize_multiplier(np.float64(source.scale[0]) / np.float64(target.scale[0]))
    # The multiplier is enlarged by the integer logarithm of the count before the division, to keep its precision; the bounds
    # keep the enlarged number inside int64 and the shift at -31 or above.
    enlarged = min(count.bit_length() - 1, 32, 31 + int(shift[0]))
    return (int(multiplier[0]) << enlarged) // count, int(shift[0]) - enlarged


def mul_requantization(first: Quantization, second: Quantization, target: Quantization) -> tuple[int, int]:
    """Multiplier and shift of a product."""
    product = np.float64(first.scale[0]) * np.float64(second.scale[0])
    multiplier, shift = quantize_multiplier(product / np.float64(target.scale[0]))
    return int(multiplier[0]), int(shift[0])


def second_operand(graph: Graph, op: Op) -> Quantization:
    """The quantization of the second operand of ADD or MUL, an activation or a constant.

    Raises:
        PackageError: it has none.
    """
    if op.constant is None:
        return quantization_of(graph.activations[op.inputs[1]])
    if op.constant_quantization is None or op.constant.dtype != np.int8:
        raise PackageError(f"{op.name}: its constant has no quantization: the graph is not int8")
    return op.constant_quantization


def check_op(graph: Graph, op: Op) -> None:
    """Proves that the integer arithmetic of one operator of an int8 graph cannot overflow.

    Raises:
        PackageError: it could, or the operator is not quantized, or it lacks the quantization that it needs.
    """
    source = quantization_of(graph.activations[op.inputs[0]])
    target = quantization_of(graph.activations[op.output])
    match op.kind:
        case OpKind.CONV_2D | OpKind.DEPTHWISE_CONV_2D | OpKind.FULLY_CONNECTED:
            if op.weight_bits == 4 and op.weights is not None and (np.abs(op.weights.astype(np.int16) * 2 + 1) > 15).any():
                raise PackageError(f"{op.name}: weights of 4 bits lie in [-8, 7]")
            numbers = weighted_requantization(op, source, target)
            check_no_overflow(accumulator_bound(op, source), numbers.shift, op)
        case OpKind.ADD:
            add_requantization(op, source, second_operand(graph, op), target)
        case OpKind.MUL:
            second = second_operand(graph, op)
            _, shift = mul_requantization(source, second, target)
            check_no_overflow(reach(source) * reach(second), np.array([shift]), op)
        case OpKind.MEAN:
            shape = graph.activations[op.inputs[0]].shape
            count = shape[1] * shape[2]
            check_no_overflow(reach(source) * count, np.array([mean_requantization(source, target, count)[1]]), op)
        case kind if kind in ELEMENTWISE or kind is OpKind.SOFTMAX:
            pass  # `tables` proves it when it works the table out
        case _:
            for name in op.inputs:
                _check_tie(op, quantization_of(graph.activations[name]), target)


def _check_tie(op: Op, source: Quantization, target: Quantization) -> None:
    if not (source.scale[0] == target.scale[0] and source.zero_point[0] == target.zero_point[0]):
        raise PackageError(f"{op.name}: {op.kind} must keep the quantization of its input")


def reach(source: Quantization) -> int:
    """Largest magnitude of an int8 value less its zero point."""
    zero_point = int(source.zero_point[0])
    return max(INT8_MAX - zero_point, zero_point - INT8_MIN)


def quantization_of(activations: Activations) -> Quantization:
    """The quantization of an activation of an int8 graph.

    Raises:
        PackageError: the graph is not quantized.
    """
    if activations.quantization is None:
        raise PackageError(f"activation {activations.name} has no quantization: the graph is not int8")
    return activations.quantization
