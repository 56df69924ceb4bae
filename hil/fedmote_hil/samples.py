# SPDX-License-Identifier: Apache-2.0
"""Samples of data files as a board takes them: int8, channels last, in the quantization of a package's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmote.arrays import load_npz
from fedmote.errors import ConfigError, ConversionError
from fedmote.package.file import Package
from fedmote.package.inputs import arrange
from fedmote.package.quantize import quantize_input


def load_data(path: Path) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Samples `x` (N, ...) and labels `y` (N,) of a `.npz` file.

    Raises:
        ConfigError: it cannot be read, or lacks one of them, or they do not match.
    """
    arrays = load_npz(path)
    x, y = arrays["x"], arrays["y"]
    if x.ndim < 2 or y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(f"{path}: x {x.shape} and y {y.dtype}{y.shape} do not match; (N, ...) and integers (N,) are expected")
    return x, y.astype(np.int64)


def board_samples(x: NDArray[np.generic], package: Package | None, origin: Path | str = "samples") -> NDArray[np.int8]:
    """Samples as a board stores them, int8 (N, input bytes).

    Args:
        x: int8 (N, ...), which is taken as it is, or numbers (N, ...) in the layout of the model that the package came from, e.g.
            (N, C, H, W), which become the graph's int8 input.
        package: whose input is meant; None where x is int8.
        origin: where the samples are from, for messages.

    Raises:
        ConfigError: floats without a package, or samples of another size or shape than its input.
        PackageError: floats with a device form, which does not know the model's layout.
    """
    if x.dtype != np.int8:
        if package is None:
            raise ConfigError(f"{origin}: x is {x.dtype}, expected int8; or a package is needed to quantize it")
        x = _quantized(np.asarray(x, np.float32), package, origin)
    flat = np.ascontiguousarray(x, np.int8).reshape(len(x), int(np.prod(x.shape[1:])))
    if package is not None and flat.shape[1] != package.header.input_count:
        raise ConfigError(f"{origin}: samples of {flat.shape[1]} bytes, the package's input has {package.header.input_count}")
    return flat


def _quantized(x: NDArray[np.float32], package: Package, origin: Path | str) -> NDArray[np.int8]:
    graph, layout = package.graph, package.host.input_layout
    shape = graph.activations[graph.input].shape
    if layout == "as_is" and int(np.prod(x.shape[1:])) == int(np.prod(shape)):
        x = x.reshape(len(x), *shape[1:])  # an imported model says nothing of axes: flattened samples will do
    try:
        return quantize_input(graph, arrange(x, layout, shape))
    except ConversionError as error:
        raise ConfigError(f"{origin}: {error}") from error
