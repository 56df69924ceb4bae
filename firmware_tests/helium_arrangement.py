# SPDX-License-Identifier: Apache-2.0
"""Weights of arrangement cortex-m-helium, written a second time, byte by byte, from the words at the head of each kernel in
`device_sdk/variants/cortex_m_helium`."""

from __future__ import annotations

import numpy as np

CORTEX_M_HELIUM = 2


def conv(w: np.ndarray, groups: int) -> np.ndarray:
    """Of w (out_c, ...): products of a channel behind each other."""
    rows = w.reshape(len(w), -1)
    count, products = len(w) // groups, rows.shape[1]
    data: list[int] = []
    for first in range(0, len(w), count):
        for start in range(0, products, 16):
            for channel in range(first, first + count):
                data += [int(value) for value in rows[channel, start : start + 16]]
    return np.array(data, np.int8)


def depthwise(w: np.ndarray, group_out_c: int) -> np.ndarray:
    """Of w (kernel_h, kernel_w, out_c)."""
    rows = np.array([[int(w[ky, kx, c]) for ky, kx in np.ndindex(w.shape[:2])] for c in range(w.shape[2])], np.int8)
    return rows if group_out_c == 1 else conv(rows, w.shape[2] // group_out_c)
