# SPDX-License-Identifier: Apache-2.0
"""From a template with its weights and calibration samples to what an int8 form needs: ranges, and a template that keeps them.

`calibrate` is the only place that looks at data. Its result, with the tensors, decides every byte of the packages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.package.execute import observe
from fedmote.package.fold import bind
from fedmote.package.graph import Graph, Ranges, Tensors


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized."""


def calibrate(template: Graph, tensors: Tensors, x: NDArray[np.float32], recipe: Recipe) -> tuple[Graph, Ranges]:
    """Observe a model on samples.

    Args:
        template: after all passes.
        tensors: the whole float state.
        x: samples float32 (N, ...), channels last.
        recipe: how it is to be quantized.

    Returns:
        The template to keep, and the range of every activation.
    """
    return template, observe(bind(template, tensors), x)
