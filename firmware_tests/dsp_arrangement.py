# SPDX-License-Identifier: Apache-2.0
"""Weights and scaling of arrangement cortex-m-dsp, written a second time, byte by byte, from the words at the head of each kernel
in `device_sdk/variants/cortex_m_dsp`.

It proves less than the converter: sums are doubled only where every shift is small. Other operators take their scaling plain.
"""

from __future__ import annotations

import itertools

import numpy as np

CORTEX_M_DSP = 1
_FACTOR_SHIFTS = range(-12, -1)


def conv(w: np.ndarray, groups: int, dilation_w: int) -> np.ndarray:
    """Of w (out_c, kernel_h, kernel_w, channels of a group)."""
    out_c, kernel_h, kernel_w, in_c = w.shape
    is_row = dilation_w == 1 and groups == 1
    run = kernel_w * in_c if is_row else in_c
    count = out_c // groups
    data: list[int] = []
    for group, first in itertools.product(range(groups), range(0, count, 2)):
        for taps in range(kernel_h * kernel_w * in_c // run):
            for start in range(0, run, 4):
                for place, channel in itertools.product((0, 2, 1, 3), (first, first + 1)):
                    is_there = channel < count and start + place < run
                    row = w[group * count + channel].reshape(-1, run)[taps] if is_there else None
                    data.append(0 if row is None else int(row[start + place]))
    return np.array(data, np.int8)


def depthwise(w: np.ndarray, dilation: tuple[int, int], stride_w: int, group_out_c: int) -> np.ndarray:
    """Of w (kernel_h, kernel_w, out_c)."""
    is_3x3 = w.shape[:2] == (3, 3) and tuple(dilation) == (1, 1) and stride_w <= 2
    if not is_3x3 or w.shape[2] % 4 or group_out_c != 1:
        return w
    data: list[int] = []
    for first, tap in itertools.product(range(0, w.shape[2], 4), range(3)):
        for pair, row, channel in itertools.product((0, 2), (0, 1), (0, 1)):
            data.append(int(w[row, tap, first + pair + channel]))
        data += [int(w[2, tap, first + channel]) for channel in range(4)]
    return np.array(data, np.int8)


def dense(w: np.ndarray) -> np.ndarray:
    """Of w (out_n, in_n)."""
    outputs, inputs = (-(-size // 4) for size in w.shape)
    data = np.zeros((outputs, inputs, 4, 4), np.int8)
    for c, i in np.ndindex(w.shape):
        data[c // 4, i // 4, c % 4, i % 4] = w[c, i]
    return data


def scaling(folded: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, weights: np.ndarray, bias: np.ndarray,
            is_offset: bool) -> np.ndarray:  # fmt: skip
    """Of biases that hold the zero point; weights (out_c, products); is_offset: inputs are widened as x + 128."""
    weights = weights.astype(np.int64)
    offset = 128 * weights.sum(axis=1) if is_offset else 0
    bound = np.abs(bias.astype(np.int64)) + 255 * np.abs(weights).sum(axis=1)
    if all(s in _FACTOR_SHIFTS for s in shift.tolist()) and (bound < 2**30).all():
        words = [2 * (folded - offset), multiplier, [2 ** (32 + s) + 1 for s in shift.tolist()]]
    else:
        words = [folded - offset, multiplier, shift]
    return np.stack([np.asarray(v, np.int64) for v in words], axis=1).astype(np.uint32).view(np.int32)
