# SPDX-License-Identifier: Apache-2.0
"""Samples of data files as a board takes them: int8, channels last, in the quantization of a package's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConfigError
from fedmote.package.file import Package
from fedmote.package.quantize import quantize_input

# How axes of torch's layouts move to the graph's; what is not here keeps its order.
_CHANNELS_LAST = {"nchw": (0, 2, 3, 1), "ncw": (0, 2, 1)}


def load_array(path: Path) -> NDArray[np.generic]:
    """The array of a `.npy` file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"{path}: holds several arrays; a .npy file with one is expected")
    return array


def load_data(path: Path) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Samples `x` (N, ...) and labels `y` (N,) of a `.npz` file.

    Raises:
        ConfigError: it cannot be read, or lacks one of them, or they do not match.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            x, y = content["x"], content["y"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: not a .npz file with x and y: {error}") from error
    if x.ndim < 2 or y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(f"{path}: x {x.shape} and y {y.dtype}{y.shape} do not match; (N, ...) and integers (N,) are expected")
    return x, y.astype(np.int64)


def board_samples(x: NDArray[np.generic], package: Package | None) -> NDArray[np.int8]:
    """Samples as a board stores them, int8 (N, input bytes).

    Args:
        x: int8 (N, ...), which is taken as it is, or numbers (N, ...) in the layout of the model that the package came from, e.g.
            (N, C, H, W), which become the graph's int8 input.
        package: whose input is meant; None where x is int8.

    Raises:
        ConfigError: floats without a package, or samples of another size or shape than its input.
        PackageError: floats with a device form, which does not know the model's layout.
    """
    if x.dtype != np.int8:
        if package is None:
            raise ConfigError(f"samples are {x.dtype}: a package is needed to quantize them; or give int8")
        x = _quantized(np.asarray(x, np.float32), package)
    flat = np.ascontiguousarray(x, np.int8).reshape(len(x), int(np.prod(x.shape[1:])))
    if package is not None and flat.shape[1] != package.header.input_count:
        raise ConfigError(f"samples of {flat.shape[1]} bytes, the package's input has {package.header.input_count}")
    return flat


def _quantized(x: NDArray[np.float32], package: Package) -> NDArray[np.int8]:
    graph, layout = package.graph, package.host.input_layout
    order = _CHANNELS_LAST.get(layout, tuple(range(x.ndim)))
    shape = graph.activations[graph.input].shape[1:]
    if x.ndim != len(order) or int(np.prod(x.shape[1:])) != int(np.prod(shape)):
        raise ConfigError(f"samples have shape {x.shape[1:]} ({layout}), the package's input is {shape}, channels last")
    return quantize_input(graph, np.ascontiguousarray(x.transpose(order)).reshape(len(x), *shape))
