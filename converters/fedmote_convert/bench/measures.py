# SPDX-License-Identifier: Apache-2.0
"""Int8 files against float modules: features, outputs, what is kept of them on samples that no converter has seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmote.package import tflite_writer
from fedmote.package.fold import bind
from fedmote.package.graph import Graph, Ranges, Tensors
from fedmote.package.inputs import arrange, graph_shape
from fedmote.package.quantize import observation_points, quantize


def encoder_file(template: Graph, tensors: Tensors, ranges: Ranges) -> tuple[Graph, bytes]:
    """The int8 graph of a calibrated template, and its `.tflite` file."""
    needed = {name: ranges[name] for name in observation_points(template)}
    graph = quantize(bind(template, tensors), needed)
    return graph, tflite_writer.write(graph)


def arranged(x: NDArray[np.float32], layout: str) -> NDArray[np.float32]:
    """Samples (N, ...) as a graph reads them; `layout` is one of `fedmote.package.inputs.layouts_of` their shape."""
    return np.asarray(arrange(x, layout, graph_shape(x.shape[1:], layout)), np.float32)


def largest_difference(one: NDArray[np.int8], other: NDArray[np.int8]) -> int:
    """The largest difference of two arrays of int8 values of the same elements."""
    return int(np.abs(one.astype(np.int16).ravel() - other.astype(np.int16).ravel()).max())


def int8_inputs(quantized: NDArray[np.int8], num_real: int, num_random: int, seed: int = 7) -> NDArray[np.int8]:
    """Real samples (N, ...), at most so many, and uniformly random ones behind them; among these the two extremes."""
    noise = np.random.default_rng(seed).integers(-128, 128, (num_random, *quantized.shape[1:])).astype(np.int8)
    noise[0], noise[1] = -128, 127
    return np.concatenate([quantized[:num_real], noise])
