# SPDX-License-Identifier: Apache-2.0
"""The order in which a package keeps weights: each kind of kernels has the one that it reads fastest.

A package says its arrangement, and a device refuses one that its kernels do not take. Shapes: protocol/SPEC.md, section 7.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmote.package.graph import Op
from fedmote.wire.schema import Arrangement

# By the `kernels` of a board file: folders of device_sdk/variants, and "portable".
OF_KERNELS: Final = {"portable": Arrangement.PLAIN, "cortex_m_dsp": Arrangement.PLAIN}


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


def arranged(op: Op, arrangement: Arrangement) -> NDArray[np.int8] | NDArray[np.uint8]:
    """The weights of a weighted operator as section `weights` holds them: int8, same number of elements, or packed int4."""
    weights = np.asarray(op.weights, np.int8)
    if op.weight_bits == 4:
        return pack_int4(weights)
    match arrangement:
        case Arrangement.PLAIN:
            return weights
    raise NotImplementedError(f"no weights are arranged for {arrangement.name}")
