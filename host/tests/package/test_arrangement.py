# SPDX-License-Identifier: Apache-2.0
"""Scaling and order of weights that kernels of one kind want, against the arithmetic that all kernels share."""

import numpy as np
import pytest

from fedmote.package import fixed_point
from fedmote.package.arrangement import arranged_scaling
from fedmote.package.graph import Op, OpKind, Quantization
from fedmote.wire.schema import Arrangement


def _quantization(scale, zero_point=0):
    return Quantization(np.atleast_1d(np.asarray(scale, np.float32)), np.full(np.size(scale), zero_point, np.int64))


def _dense(rng, scales, inputs):
    weights = rng.integers(-127, 128, (len(scales), inputs)).astype(np.int8)
    bias = rng.integers(-5000, 5000, len(scales)).astype(np.int32)
    quantization = _quantization(scales)
    op = Op(OpKind.FULLY_CONNECTED, "dense", ("x",), "y", weights=weights, bias=bias, weight_quantization=quantization)
    return op, _quantization(0.5, int(rng.integers(-128, 128))), _quantization(0.25, int(rng.integers(-128, 128)))


def _instruction(a, b, c=0):
    """SMMLAR, or SMMULR without the third: the upper word of a rounded product, plus c."""
    return c + ((a * b + 2**31) >> 32)


def _outputs(sums, words, zero_point):
    _, multiplier, factor = (int(word) for word in words)
    return np.clip(_instruction(_instruction(2 * sums, multiplier), factor, zero_point), -128, 127)


def _expected(sums, multiplier, shift, zero_point):
    """Of TensorFlow Lite Micro: two roundings, ties up, then away from zero."""
    product = (sums * int(multiplier) + 2**30) >> 31
    right = -int(shift)
    return np.clip(((product - (product < 0) + (1 << right >> 1)) >> right) + zero_point, -128, 127)


@pytest.mark.parametrize("inputs", [1, 9, 64, 640])
@pytest.mark.parametrize("right", range(2, 31))
def test_a_factor_gives_the_outputs_of_two_roundings_for_all_sums(right, inputs):
    rng = np.random.default_rng([right, inputs])
    op, source, target = _dense(rng, rng.uniform(1.001, 1.999, 3) * 2.0 ** -(right + 2), inputs)
    numbers = fixed_point.weighted_requantization(op, source, target)
    words = arranged_scaling(op, source, target, Arrangement.CORTEX_M_DSP)
    is_factor = words[:, 2] > 30
    assert is_factor.all() or not is_factor.any()
    assert is_factor.all() or right > 12
    zero_point, bound = int(target.zero_point[0]), fixed_point.accumulator_bound(op, source)
    for channel in np.flatnonzero(is_factor):
        multiplier, shift = numbers.multiplier[channel], numbers.shift[channel]
        # Sums around those whose product ends at a tie, and some between: all that can go wrong.
        ties = (np.arange(-300, 300) * 2 + 1) * (1 << -int(shift)) // 2
        near = (ties[:, None] * 2**31 // int(multiplier) + np.arange(-3, 4)).ravel()
        sums = np.concatenate([near, rng.integers(-bound[channel], bound[channel] + 1, 2000), [bound[channel], -bound[channel]]])
        sums = sums[np.abs(sums) <= bound[channel]]
        np.testing.assert_array_equal(_outputs(sums, words[channel], zero_point), _expected(sums, multiplier, shift, zero_point))


def test_sums_are_left_as_they_are_where_no_factor_is_exact():
    op, source, target = _dense(np.random.default_rng(0), [0.01, 0.4], 8)
    numbers = fixed_point.weighted_requantization(op, source, target)
    words = arranged_scaling(op, source, target, Arrangement.CORTEX_M_DSP)
    np.testing.assert_array_equal(words[:, 1:], np.stack([numbers.multiplier, numbers.shift], axis=1))
    folded = fixed_point.folded_bias(op, source) - 128 * np.asarray(op.weights, np.int64).sum(axis=1)
    np.testing.assert_array_equal(words[:, 0], folded)


def test_a_channel_that_always_gives_the_zero_point_has_the_multiplier_zero():
    op, source, target = _dense(np.random.default_rng(0), [0.01, 1e-9], 8)
    words = arranged_scaling(op, source, target, Arrangement.CORTEX_M_DSP)
    assert words[1, 1] == 0 < words[0, 1] and (words[:, 2] > 30).all()
