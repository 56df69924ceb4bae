# SPDX-License-Identifier: Apache-2.0
"""Samples from torch's order of axes to the graph's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def samples_channels_last(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return samples channels last: (N, C, H, W) -> (N, H, W, C), (N, C, W) -> (N, 1, W, C), (N, F) as they are."""
    if x.ndim == 4:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if x.ndim == 3:
        return np.ascontiguousarray(x.transpose(0, 2, 1)[:, None])
    return x
