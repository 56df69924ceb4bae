# SPDX-License-Identifier: Apache-2.0
"""The order in which a package keeps weights: each kind of kernels has the one that it reads fastest.

A package says its arrangement, and a device refuses one that its kernels do not take. Shapes: protocol/SPEC.md, section 7.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmote.package.graph import Op
from fedmote.wire.schema import Arrangement

# By the `kernels` of a board file: folders of device_sdk/variants, and "portable".
OF_KERNELS: Final = {"portable": Arrangement.PLAIN, "cortex_m_dsp": Arrangement.PLAIN}


def arranged(op: Op, arrangement: Arrangement) -> NDArray[np.int8]:
    """The weights of a weighted operator as section `weights` holds them, int8, same number of elements."""
    weights = np.asarray(op.weights, np.int8)
    match arrangement:
        case Arrangement.PLAIN:
            return weights
    raise NotImplementedError(f"no weights are arranged for {arrangement.name}")
