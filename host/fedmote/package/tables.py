# SPDX-License-Identifier: Apache-2.0
"""Functions of one int8 element as tables of 256 values, and the exponentials of SOFTMAX.

TensorFlow Lite Micro computes these functions element by element in fixed point. An int8 tensor has 256 values, so the same
arithmetic is done here once for each: a device and the host's executor only look up. The arithmetic is TensorFlow Lite's
reference, rounding for rounding: polynomial exponentials and Newton's division in Q31 (logistic, tanh, softmax), products in
16 bits (hard swish), requantization (the others).

A table's entry for the value q stands at index q + 128.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import PackageError
from fedmote.package import fixed_point
from fedmote.package.fixed_point import INT8_MAX, INT8_MIN, high_product, quantize_multiplier, requantize, rounding_shift
from fedmote.package.graph import Activation, Op, OpKind, Quantization

_Q31_ONE: Final = 2**31 - 1
_INPUT_BITS: Final = 4  # integer bits of the argument of logistic and tanh
_SOFTMAX_BITS: Final = 5  # integer bits of the differences that softmax takes exponentials of
_SUM_BITS: Final = 12  # integer bits of the sum of exponentials
# More elements of a row could overflow the sum: each exponential is at most 2^19 there.
SOFTMAX_ELEMENTS_MAX: Final = 2**_SUM_BITS - 1
_FIXED_OUTPUTS: Final = {
    OpKind.LOGISTIC: (np.float32(1 / 256), -128),
    OpKind.SOFTMAX: (np.float32(1 / 256), -128),
    OpKind.TANH: (np.float32(1 / 128), 0),
}


def fixed_quantization(kind: OpKind) -> Quantization | None:
    """The quantization that an operator's output has whatever its input is, or None."""
    if kind not in _FIXED_OUTPUTS:
        return None
    scale, zero_point = _FIXED_OUTPUTS[kind]
    return Quantization(np.array([scale], np.float32), np.array([zero_point], np.int64))


def table_of(op: Op, source: Quantization, target: Quantization) -> NDArray[np.int8]:
    """The table of an elementwise operator.

    Raises:
        PackageError: its quantizations lie outside what the arithmetic is defined for.
    """
    _check_fixed_output(op, target)
    centred = np.arange(INT8_MIN, INT8_MAX + 1, dtype=np.int64) - int(source.zero_point[0])
    zero_point = int(target.zero_point[0])
    low, high = INT8_MIN, INT8_MAX
    with np.errstate(over="ignore", invalid="ignore"):  # infinite ratios are refused where they become multipliers
        ratio = np.float64(source.scale[0] / target.scale[0])
        negative = np.float64(source.scale[0] * np.float32(op.alpha) / target.scale[0])
    match op.kind:
        case OpKind.LOGISTIC | OpKind.TANH:
            out = _sigmoid(op, centred, source)
        case OpKind.HARD_SWISH:
            out = _hard_swish(op, centred, source, target) + zero_point
        case OpKind.LEAKY_RELU:
            out = np.where(
                centred >= 0,
                _rescale(op, centred, ratio),
                _rescale(op, centred, negative),
            )
            out = out + zero_point
        case OpKind.QUANTIZE:
            out = _rescale(op, centred, np.float64(source.scale[0]) / np.float64(target.scale[0])) + zero_point
        case OpKind.RELU:
            activation = Activation.RELU if op.activation is Activation.NONE else op.activation
            low, high = fixed_point.activation_range(activation, target)
            out = _rescale(op, centred, ratio) + zero_point
        case _:
            raise PackageError(f"{op.name}: {op.kind} is no function of one element")
    return np.clip(out, low, high).astype(np.int8)


def _check_fixed_output(op: Op, target: Quantization) -> None:
    fixed = fixed_quantization(op.kind)
    if fixed is not None and (fixed.scale[0] != target.scale[0] or fixed.zero_point[0] != target.zero_point[0]):
        raise PackageError(
            f"{op.name}: {op.kind} has the output scale {target.scale[0]} and zero point {target.zero_point[0]}; "
            f"they must be {fixed.scale[0]} and {fixed.zero_point[0]}"
        )


def _rescale(op: Op, values: NDArray[np.int64], real: np.float64) -> NDArray[np.int64]:
    """Values times a real factor, as TensorFlow Lite Micro requantizes."""
    multiplier, shift = quantize_multiplier(real)
    fixed_point.check_no_overflow(int(np.abs(values).max()), shift, op)
    return requantize(values, multiplier, shift)


# ---- logistic, tanh ----------------------------------------------------------------------------------------


def _radius(bits: int, left_shift: int) -> int:
    """Values of this magnitude or more would leave the range of `bits` integer bits."""
    return math.floor(math.ldexp((1 << bits) - 1, 31 - bits - left_shift))


def _sigmoid(op: Op, centred: NDArray[np.int64], source: Quantization) -> NDArray[np.int64]:
    fraction, left_shift = math.frexp(float(source.scale[0]) * 2.0 ** (31 - _INPUT_BITS))
    if not 0 <= left_shift <= 62:
        raise PackageError(f"{op.name}: the input scale {source.scale[0]} of {op.kind} lies outside its arithmetic")
    radius = _radius(_INPUT_BITS, left_shift)
    is_inside = np.abs(centred) < radius
    argument = requantize(np.where(is_inside, centred, 0), round(fraction * 2**31), left_shift)
    if op.kind is OpKind.LOGISTIC:
        out = rounding_shift(_logistic(argument), 31 - 8) - 128
    else:
        out = rounding_shift(_tanh(argument), 31 - 7)
    # A radius of zero makes the value zero the lowest one, as in the reference, which looks at the lower end first.
    return np.where(is_inside, out, np.where(centred <= -radius, INT8_MIN, INT8_MAX))


def _logistic(argument: NDArray[np.int64]) -> NDArray[np.int64]:
    """1 / (1 + exp(-x)) in Q31 of x with 4 integer bits."""
    upper = _shift_left(_reciprocal_seed(_exponential(-np.abs(argument), _INPUT_BITS)), 1)
    return np.where(argument == 0, 2**30, np.where(argument > 0, upper, _Q31_ONE - upper))


def _tanh(argument: NDArray[np.int64]) -> NDArray[np.int64]:
    """tanh(x) in Q31 of x with 4 integer bits: (1 - e) / (1 + e) with e = exp(-2 |x|)."""
    seed = _reciprocal_seed(_exponential(-np.abs(argument), _INPUT_BITS + 1))
    upper = _shift_left(seed - 2**29, 2)
    return np.where(argument == 0, 0, np.where(argument > 0, upper, -upper))


def _shift_left(values: NDArray[np.int64], left: int) -> NDArray[np.int64]:
    """Saturating to 32 bits."""
    return np.asarray(np.clip(values << left, -(2**31), _Q31_ONE), np.int64)


def _exponential(argument: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """exp(x) in Q31 of x <= 0 with `bits` integer bits.

    x is a multiple of -1/4 and a rest in [-1/4, 0): a polynomial of fourth degree around -1/8 gives the rest's exponential,
    and constants exp(-2^k) multiply it for each bit of the multiple.
    """
    fraction = 31 - bits
    quarter = 1 << (fraction - 2)
    rest = (argument & (quarter - 1)) - quarter
    x = (rest << bits) + (1 << 28)
    square = high_product(x, x)
    cube, fourth = high_product(square, x), high_product(square, square)
    third = round(2**31 / 3)
    tail = rounding_shift(high_product(rounding_shift(fourth, 2) + cube, third) + square, 1)
    centre = round(math.exp(-1 / 8) * 2**31)
    result = centre + high_product(x + tail, centre)
    multiple = rest - argument
    for power in range(-2, bits):
        factor = round(math.exp(-(2.0**power)) * 2**31)
        result = np.where(multiple & (1 << (fraction + power)), high_product(result, factor), result)
    return np.where(argument == 0, _Q31_ONE, result)


def _reciprocal_seed(a: NDArray[np.int64]) -> NDArray[np.int64]:
    """2 / (1 + a) with 2 integer bits, for a in [0, 1) in Q31: three steps of Newton's division from a line."""
    half_denominator = (a + _Q31_ONE + 1) >> 1
    x = round(48 / 17 * 2**29) + high_product(half_denominator, -round(32 / 17 * 2**29))
    for _ in range(3):
        x = x + _shift_left(high_product(x, (1 << 29) - high_product(half_denominator, x)), 2)
    return x


# ---- hard swish --------------------------------------------------------------------------------------------


def _hard_swish(op: Op, centred: NDArray[np.int64], source: Quantization, target: Quantization) -> NDArray[np.int64]:
    """The product x * min(max(x + 3, 0), 6) / 6 in products of 16 bits, without the output's zero point."""
    fine_scale = np.float32(1 / 128) * source.scale[0]
    with np.errstate(over="ignore"):
        ratios = (np.float64(fine_scale / target.scale[0]), np.float64(fine_scale / np.float32(3 / 32768)))
    (multiplier, exponent), (gate_multiplier, gate_exponent) = map(_short_multiplier, ratios)
    if exponent > 0:
        raise PackageError(f"{op.name}: the output scale of HARD_SWISH is more than 128 times finer than its input's")
    fine = centred << 7
    gate = fine
    if gate_exponent > 0:
        gate = np.clip(gate << min(gate_exponent - 1, 32), -(2**15), 2**15 - 1)
    gate = _short_product(gate, gate_multiplier)
    if gate_exponent > 0:
        gate = np.clip(gate << 1, -(2**15), 2**15 - 1)
    elif gate_exponent < 0:
        gate = _short_rounding_shift(gate, -gate_exponent)
    gate = (gate + 2**15) >> 1
    product = gate * _short_product(fine, multiplier)
    product = np.where(product < 0, -(-product >> 15), product >> 15)  # towards zero
    return _short_rounding_shift(product, -exponent)


def _short_multiplier(real: np.float64) -> tuple[int, int]:
    """A factor as a Q15 multiplier and a shift."""
    multiplier, shift = quantize_multiplier(real)
    return min((int(multiplier[0]) + 2**15) >> 16, 2**15 - 1), int(shift[0])


def _short_product(a: NDArray[np.int64], b: int) -> NDArray[np.int64]:
    """The doubling high multiplication of Q15 numbers, rounded to the nearest."""
    return np.asarray((a * b + (1 << 14)) >> 15, np.int64)


def _short_rounding_shift(values: NDArray[np.int64], right: int) -> NDArray[np.int64]:
    """Division of 16-bit numbers by 2^right, half away from zero.

    From 16 on the reference's mask of the bits that are dropped is all ones, so what is left is 1 or -1.
    """
    if right >= 16:
        return np.where(values < 0, -1, 1)
    return rounding_shift(values, right)


# ---- softmax -----------------------------------------------------------------------------------------------


def softmax_exponentials(op: Op, source: Quantization, target: Quantization) -> NDArray[np.int32]:
    """exp(beta * scale * -d) in Q31 for the distances d = 0 to 255 of an element from the largest one of its row.

    Zero stands where the reference leaves an element out.

    Raises:
        PackageError: the quantizations lie outside what the arithmetic is defined for.
    """
    _check_fixed_output(op, target)
    real = min(float(np.float32(op.beta)) * float(source.scale[0]) * 2.0 ** (31 - _SOFTMAX_BITS), 2.0**31 - 1.0)
    if not real > 1:
        raise PackageError(f"{op.name}: the input scale {source.scale[0]} times beta {op.beta} is too small for SOFTMAX")
    multiplier, left_shift = quantize_multiplier(real)
    reach = _radius(_SOFTMAX_BITS, int(left_shift[0]))
    distances = np.arange(256, dtype=np.int64)
    arguments = high_product(np.where(distances <= reach, -distances, 0) << int(left_shift[0]), int(multiplier[0]))
    return np.where(distances <= reach, _exponential(arguments, _SOFTMAX_BITS), 0).astype(np.int32)


def softmax(x: NDArray[np.int8], exponentials: NDArray[np.int32]) -> NDArray[np.int8]:
    """SOFTMAX of rows (..., n) with the table of `softmax_exponentials`."""
    distances = x.max(axis=-1, keepdims=True).astype(np.int64) - x
    values = exponentials.astype(np.int64)[distances]
    total = rounding_shift(values, _SUM_BITS).sum(axis=-1, keepdims=True)
    width = np.frexp(total.astype(np.float64))[1].astype(np.int64)  # bits of the total; a total of one has 20
    mantissa = (total << (32 - width)) - 2**31  # Q31 of total / 2^(width - 1) - 1
    scale = _shift_left(_reciprocal_seed(mantissa), 1)
    out = rounding_shift(high_product(values, scale), width - 20 + 23)
    return np.clip(out + INT8_MIN, INT8_MIN, INT8_MAX).astype(np.int8)
