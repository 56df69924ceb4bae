# SPDX-License-Identifier: Apache-2.0
"""How a package keeps weights and what scales their sums: each kind of kernels has the form that it reads fastest.

A package says its arrangement, and a device refuses one that its kernels do not take. Shapes: protocol/SPEC.md, section 7;
the forms for one kind of kernels are described beside these kernels, in device_sdk/variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmote.package import fixed_point
from fedmote.package.graph import Op, OpKind, Quantization
from fedmote.wire.schema import Arrangement, Opcode

# By the `kernels` of a board file: folders of device_sdk/variants, and "portable".
OF_KERNELS: Final = {
    "portable": Arrangement.PLAIN,
    "cortex_m0": Arrangement.PLAIN,
    "cortex_m_dsp": Arrangement.CORTEX_M_DSP,
    "cortex_m_helium": Arrangement.CORTEX_M_HELIUM,
}

# Operators with weights of 4 bits, which lie packed in plain order with plain scaling for all kernels.
INT4: Final = {
    Opcode.CONV_2D: Opcode.CONV_2D_INT4,
    Opcode.DEPTHWISE_CONV_2D: Opcode.DEPTHWISE_CONV_2D_INT4,
    Opcode.FULLY_CONNECTED: Opcode.FULLY_CONNECTED_INT4,
}

_HELIUM_LANES = 16
_DSP_MAX_PLAIN_SHIFT = 30  # above it, the third word of a channel is a factor
_DSP_CERTAIN_SHIFT = 12  # up to which a product that does not saturate is always small enough
_DSP_MAX_SHIFT = 22  # the factor stays above _DSP_MAX_PLAIN_SHIFT


def pack_int4(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Integers in [-8, 7], two to a byte, the first in the low half; the last half of an odd number is zero."""
    nibbles = np.zeros(values.size + values.size % 2, np.uint8)
    nibbles[: values.size] = values.reshape(-1).astype(np.int8).view(np.uint8) & 15
    return np.asarray(nibbles[0::2] | nibbles[1::2] << 4, np.uint8)


def unpack_int4(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """What `pack_int4` packed."""
    nibbles = np.empty(2 * packed.size, np.int8)
    nibbles[0::2] = (packed << 4).view(np.int8) >> 4
    nibbles[1::2] = packed.view(np.int8) >> 4
    return nibbles[:count]


def arranged(op: Op, in_c: int, arrangement: Arrangement) -> NDArray[np.int8] | NDArray[np.uint8]:
    """The weights of a weighted operator, whose input has `in_c` channels, as section `weights` holds them."""
    weights = np.asarray(op.weights, np.int8)
    if op.weight_bits == 4:
        return pack_int4(weights)
    match arrangement:
        case Arrangement.PLAIN:
            return weights
        case Arrangement.CORTEX_M_DSP:
            return _dsp_weights(op, in_c, weights)
        case Arrangement.CORTEX_M_HELIUM:
            return _helium_weights(op, in_c, weights)
    raise NotImplementedError(f"no weights are arranged for {arrangement.name}")


def arranged_scaling(op: Op, source: Quantization, target: Quantization, arrangement: Arrangement) -> NDArray[np.int32]:
    """What makes outputs of the sums of a weighted operator, shape (outputs, 3): bias, multiplier, shift, or as kernels want."""
    numbers = fixed_point.weighted_requantization(op, source, target)
    bias = fixed_point.folded_bias(op, source)
    if arrangement is Arrangement.CORTEX_M_DSP and op.weight_bits == 8:
        return _dsp_scaling(op, source, numbers, bias.astype(np.int64))
    return np.stack([bias, numbers.multiplier, numbers.shift], axis=1).astype(np.int32)


def is_scaling(scaling: NDArray[np.int32], arrangement: Arrangement) -> bool:
    """Whether kernels take the scaling (outputs, 3) of an operator."""
    _, multipliers, last = scaling.T
    if arrangement is Arrangement.CORTEX_M_DSP and last[0] > _DSP_MAX_PLAIN_SHIFT:
        return bool((multipliers >= 0).all() and (last > _DSP_MAX_PLAIN_SHIFT).all())
    return bool((multipliers >= 0).all() and (last >= -31).all() and (last <= 30).all())


def weight_bytes(opcode: Opcode, v: Mapping[str, int], arrangement: Arrangement) -> int:
    """Bytes of the weights of a record."""
    if opcode is Opcode.FULLY_CONNECTED_INT4:
        return (v["in_n"] * v["out_n"] + 1) // 2
    if opcode in INT4.values():
        return (v["kernel_h"] * v["kernel_w"] * v["group_in_c"] * v["out_c"] + 1) // 2
    if opcode is Opcode.FULLY_CONNECTED:
        if arrangement is Arrangement.CORTEX_M_DSP:
            return -(-v["in_n"] // 4) * -(-v["out_n"] // 4) * 16
        return v["in_n"] * v["out_n"]
    taps = v["kernel_h"] * v["kernel_w"]
    if arrangement is not Arrangement.CORTEX_M_DSP or opcode is Opcode.DEPTHWISE_CONV_2D:
        return taps * v["group_in_c"] * v["out_c"]
    runs = _dsp_runs(v["kernel_w"], v["dilation_w"], v["groups"])
    groups = v["kernel_h"] * runs * -(-(v["kernel_w"] // runs * v["group_in_c"]) // 4)
    return v["groups"] * -(-v["group_out_c"] // 2) * groups * 8


def _dsp_weights(op: Op, in_c: int, weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """device_sdk/variants/cortex_m_dsp: of each kernel its own order."""
    if op.kind is OpKind.FULLY_CONNECTED:
        rows = _padded(_padded(weights, 0, 4), 1, 4)
        return rows.reshape(rows.shape[0] // 4, 4, -1, 4).transpose(0, 2, 1, 3)
    if op.kind is OpKind.DEPTHWISE_CONV_2D:
        channels = weights.shape[3]
        if not _is_dsp_3x3(op.kernel, op.dilation, op.stride[1], channels, op.depth_multiplier):
            return weights
        fours = weights.reshape(3, 3, channels // 4, 4).transpose(2, 1, 0, 3)  # four channels, tap, row, channel
        upper = fours[:, :, :2].reshape(-1, 3, 2, 2, 2).transpose(0, 1, 3, 2, 4)  # two channels of both rows, and two more
        return np.concatenate([upper.reshape(-1, 3, 8), fours[:, :, 2]], axis=2)
    groups = in_c // weights.shape[3]
    runs = _dsp_runs(op.kernel[1], op.dilation[1], groups)
    taps = weights.reshape(groups, weights.shape[0] // groups, op.kernel[0] * runs, -1)
    taps = _padded(_padded(taps, 1, 2), 3, 4)  # whole pairs of channels, whole groups of four products
    pairs = taps.reshape(groups, -1, 2, taps.shape[2] * taps.shape[3] // 4, 2, 2)
    # group, pair, channel of the pair, four products, first or second two, odd: each word has places 0 and 2, or 1 and 3.
    return pairs.transpose(0, 1, 3, 5, 4, 2)


def _helium_weights(op: Op, in_c: int, weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """device_sdk/variants/cortex_m_helium: in each group, 16 products of all its channels, then the next 16."""
    if op.kind is OpKind.FULLY_CONNECTED:
        return weights
    if op.kind is OpKind.DEPTHWISE_CONV_2D and weights.shape[3] == in_c:
        return weights.reshape(-1, in_c).T
    if op.kind is OpKind.DEPTHWISE_CONV_2D:
        products = weights.reshape(-1, in_c, weights.shape[3] // in_c).transpose(1, 2, 0)
    else:
        groups = in_c // weights.shape[3]
        products = weights.reshape(groups, weights.shape[0] // groups, -1)
    parts = np.split(products, range(_HELIUM_LANES, products.shape[2], _HELIUM_LANES), axis=2)
    return np.concatenate([part.reshape(len(products), -1) for part in parts], axis=1)


def _padded(array: NDArray[np.int8], axis: int, multiple: int) -> NDArray[np.int8]:
    """With zeros behind it, so that the length of an axis is a multiple."""
    width = [(0, 0)] * array.ndim
    width[axis] = (0, -array.shape[axis] % multiple)
    return np.pad(array, width)


def _is_dsp_3x3(kernel: tuple[int, ...], dilation: tuple[int, ...], stride_w: int, channels: int, channels_of_input: int) -> bool:
    """Whether there is a kernel of its own for a depthwise convolution."""
    is_shape = tuple(kernel) == (3, 3) and tuple(dilation) == (1, 1)
    return is_shape and stride_w <= 2 and channels % 4 == 0 and channels_of_input == 1


def _dsp_runs(kernel_w: int, dilation_w: int, groups: int) -> int:
    """Pieces of a kernel row that lie beside each other in the input."""
    return 1 if dilation_w == 1 and groups == 1 else kernel_w


def _dsp_scaling(
    op: Op, source: Quantization, numbers: fixed_point.ChannelRequantization, bias: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Bias, multiplier, factor of doubled sums; or of sums as they are bias, multiplier, shift, where that is not exact."""
    if op.kind is not OpKind.DEPTHWISE_CONV_2D:  # whose inputs are widened as they are, others as x + 128
        bias = bias - 128 * np.asarray(op.weights, np.int64).reshape(len(bias), -1).sum(axis=1)
    right = -numbers.shift.astype(np.int64)
    bound = fixed_point.accumulator_bound(op, source)
    product = (bound * numbers.multiplier.astype(np.int64) + 2**30) >> 31  # the largest
    # Products that always round to zero need no multiplier, then no factor either.
    is_zero = (right >= 1) & (product < 1 << np.maximum(right - 1, 0))
    multiplier = np.where(is_zero, 0, numbers.multiplier).astype(np.int64)
    right = np.where(multiplier == 0, _DSP_CERTAIN_SHIFT, right)
    # The factor moves a product p by p / 2^32 quotients, which must be less than 2^-right as long as nothing saturates.
    is_small = (right <= _DSP_CERTAIN_SHIFT) | (product < 1 << np.clip(32 - right, 0, 62))
    is_exact = (bound < 2**30) & (right >= 2) & (right <= _DSP_MAX_SHIFT) & is_small
    if not is_exact.all():
        words = np.stack([bias, numbers.multiplier, numbers.shift], axis=1)
    else:
        words = np.stack([2 * bias, multiplier, (1 << (32 - right)) + 1], axis=1)
    return words.astype(np.uint32).view(np.int32)
