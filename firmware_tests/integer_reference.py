# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Lite Micro's int8 operators, spelled out in NumPy for tests: one output element after the other.

Written from the definitions (gemmlowp's fixed-point primitives with their nudges and truncating divisions), not from the C
kernels: slow and plain where those are quick and folded. Arrays are NHWC without the batch; integers are exact.
"""

from __future__ import annotations

import numpy as np

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def wrap32(x: int) -> int:
    return (int(x) + 2**31) % 2**32 - 2**31


def saturating_rounding_doubling_high_mul(a: int, b: int) -> int:
    if a == b == INT32_MIN:
        return INT32_MAX
    product = a * b
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    return nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)


def rounding_divide_by_power_of_two(x: int, exponent: int) -> int:
    remainder = x & (2**exponent - 1)
    threshold = (2**exponent - 1 >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if remainder > threshold else 0)


def requantize(x: int, multiplier: int, shift: int) -> int:
    shifted = wrap32(int(x) * 2 ** max(shift, 0))
    return rounding_divide_by_power_of_two(saturating_rounding_doubling_high_mul(shifted, int(multiplier)), max(-shift, 0))


def finish(x: int, zero_point: int, limits: tuple[int, int]) -> int:
    return min(max(wrap32(x + zero_point), limits[0]), limits[1])


def taps(out: int, stride: int, pad: int, kernel: int, dilation: int, size: int) -> list[tuple[int, int]]:
    """(kernel index, input index) of the taps inside the input."""
    pairs = [(k, out * stride - pad + k * dilation) for k in range(kernel)]
    return [(k, i) for k, i in pairs if 0 <= i < size]


def conv(x, w, bias, multiplier, shift, out_hw, stride, dilation, pads, quantization, is_depthwise):
    """Conv-2d with w (out_c, kh, kw, channels of a group), or depthwise with w (kh, kw, out_c)."""
    in_zero, out_zero, low, high = quantization
    kernel = w.shape[0:2] if is_depthwise else w.shape[1:3]
    group_in_c = 1 if is_depthwise else w.shape[3]
    group_out_c = len(bias) * group_in_c // x.shape[2]
    out = np.zeros((*out_hw, len(bias)), np.int8)
    for oy, ox, c in np.ndindex(out.shape):
        total = 0
        for ky, iy in taps(oy, stride[0], pads[0], kernel[0], dilation[0], x.shape[0]):
            for kx, ix in taps(ox, stride[1], pads[1], kernel[1], dilation[1], x.shape[1]):
                channel = c // group_out_c * group_in_c
                seen = x[iy, ix, channel : channel + group_in_c].astype(np.int64) - in_zero
                taken = w[ky, kx, c : c + 1] if is_depthwise else w[c, ky, kx]
                total += int(np.dot(seen, taken.astype(np.int64)))
        scaled = requantize(wrap32(total + int(bias[c])), multiplier[c], int(shift[c]))
        out[oy, ox, c] = finish(scaled, out_zero, (low, high))
    return out


def dense(x, w, bias, multiplier, shift, quantization):
    in_zero, out_zero, low, high = quantization
    sums = (w.astype(np.int64) @ (x.astype(np.int64) - in_zero) + bias).tolist()
    scaled = [requantize(wrap32(s), m, int(k)) for s, m, k in zip(sums, multiplier, shift, strict=True)]
    return np.array([finish(s, out_zero, (low, high)) for s in scaled], np.int8)


def add(a, b, zero1, zero2, out_zero, left_shift, m1, s1, m2, s2, out_m, out_s, low, high):
    def one(p: int, q: int) -> int:
        total = requantize((p - zero1) << left_shift, m1, s1) + requantize((q - zero2) << left_shift, m2, s2)
        return finish(requantize(total, out_m, out_s), out_zero, (low, high))

    return np.array([one(int(p), int(q)) for p, q in zip(a, b, strict=True)], np.int8)


def pool(x, is_average, out_hw, kernel, stride, pads, limits):
    out = np.zeros((*out_hw, x.shape[2]), np.int8)
    for oy, ox, c in np.ndindex(out.shape):
        rows = [i for _, i in taps(oy, stride[0], pads[0], kernel[0], 1, x.shape[0])]
        columns = [i for _, i in taps(ox, stride[1], pads[1], kernel[1], 1, x.shape[1])]
        values = [int(x[i, j, c]) for i in rows for j in columns]
        total, count = sum(values), len(values)
        nearest = (total + count // 2) // count if total > 0 else -((-total + count // 2) // count)
        out[oy, ox, c] = min(max(nearest if is_average else max(values), limits[0]), limits[1])
    return out


def mean(x, multiplier, shift, in_zero, out_zero):
    sums = (x.astype(np.int64) - in_zero).sum(axis=(0, 1)).tolist()
    return np.array([finish(requantize(s, multiplier, shift), out_zero, (-128, 127)) for s in sums], np.int8)


def mul(a, b, zero1, zero2, out_zero, multiplier, shift, low, high):
    products = [(int(p) - zero1) * (int(q) - zero2) for p, q in zip(a, b, strict=True)]
    return np.array([finish(requantize(p, multiplier, shift), out_zero, (low, high)) for p in products], np.int8)


def rescale_left(x: int, bits: int) -> int:
    """Saturating multiplication by a power of two."""
    return min(max(x << bits, INT32_MIN), INT32_MAX)


def one_over_one_plus(x: int) -> int:
    """1 / (1 + x) for x in [0, 1), Q31: Newton's iteration in Q2.29 on half the denominator."""
    half_denominator = (x + INT32_MAX + 1) // 2
    guess = 1515870810 + saturating_rounding_doubling_high_mul(half_denominator, -1010580540)
    for _ in range(3):
        error = 2**29 - saturating_rounding_doubling_high_mul(half_denominator, guess)
        guess = wrap32(guess + rescale_left(saturating_rounding_doubling_high_mul(guess, error), 2))
    return rescale_left(guess, 1)


def softmax(x, exponentials):
    """x (rows, n); exponentials (256,), Q31."""
    out = np.zeros(x.shape, np.int8)
    for row, values in enumerate(x.astype(int).tolist()):
        powers = [int(exponentials[max(values) - value]) for value in values]
        total = sum(rounding_divide_by_power_of_two(power, 12) for power in powers)
        headroom = 32 - total.bit_length()
        share = one_over_one_plus((total << headroom) - 2**31)
        for column, power in enumerate(powers):
            product = saturating_rounding_doubling_high_mul(share, power)
            q = rounding_divide_by_power_of_two(product, 12 - headroom + 31 - 8)
            out[row, column] = min(q - 128, 127)
    return out
