# SPDX-License-Identifier: Apache-2.0
"""From samples of data files to the channels-last input of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError

# Axes of (N, ...) samples in channels-last order, and the shape of a graph's input with that many axes, by layout.
_TRANSPOSITIONS = {"nchw": (0, 2, 3, 1), "ncw": (0, 2, 1), "nwc": (0, 1, 2), "nf": (0, 1)}
_SEQUENCES = ("ncw", "nwc")


def layouts_of(sample_shape: tuple[int, ...]) -> tuple[str, ...]:
    """The layouts that samples of this shape, without batch, can have: with channels first, as torch has them, and last.

    Raises:
        ConversionError: another number of axes than 1 to 3.
    """
    layouts = {3: ("nchw", "as_is"), 2: _SEQUENCES, 1: ("nf",)}
    if len(sample_shape) not in layouts:
        raise ConversionError(f"samples of shape {sample_shape}: expected (C, H, W), (C, W) or (F,)")
    return layouts[len(sample_shape)]


def layout_of(sample_shape: tuple[int, ...]) -> str:
    """The layout of torch samples of this shape, without batch: (C, H, W), (C, W) or (F,).

    Raises:
        ConversionError: another number of axes.
    """
    return layouts_of(sample_shape)[0]


def graph_shape(sample_shape: tuple[int, ...], layout: str | None = None) -> tuple[int, ...]:
    """The graph's input shape for samples of this shape: (1, H, W, C), (1, 1, W, C) or (1, F).

    Args:
        sample_shape: of one sample, without the batch.
        layout: one of `layouts_of`; None: channels are first.

    Raises:
        ConversionError: another number of axes.
    """
    layout = layout or layout_of(sample_shape)
    axes = _TRANSPOSITIONS.get(layout, tuple(range(len(sample_shape) + 1)))
    arranged = tuple(sample_shape[axis - 1] for axis in axes[1:])
    return (1, 1, *arranged) if layout in _SEQUENCES else (1, *arranged)


def arrange(x: NDArray[Any], layout: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Samples (N, ...) in a data file's layout as (N, *shape[1:]), channels last.

    Args:
        x: samples, any dtype.
        layout: one of `host_manifest.INPUT_LAYOUTS`.
        shape: the graph's input shape, with batch 1.

    Raises:
        ConversionError: the samples do not have the shape that the model reads.
    """
    axes = _TRANSPOSITIONS.get(layout, tuple(range(x.ndim)))
    if x.ndim != len(axes):
        raise ConversionError(
            f"samples have shape {x.shape[1:]}, which is not {layout}; the model's input is {shape[1:]}, channels last"
        )
    arranged = x.transpose(axes)
    if layout in _SEQUENCES:
        arranged = arranged[:, None]
    if arranged.shape[1:] != shape[1:]:
        raise ConversionError(f"samples have shape {x.shape[1:]} ({layout}), the model's input is {shape[1:]}, channels last")
    return np.ascontiguousarray(arranged)


def restore(x: NDArray[Any], layout: str) -> NDArray[Any]:
    """The inverse of `arrange`: samples (N, ...), channels last, in the layout of data files.

    Raises:
        ConversionError: the samples do not have the number of axes that a graph's input of this layout has.
    """
    if layout in _SEQUENCES:
        if x.ndim != 4 or x.shape[1] != 1:
            raise ConversionError(f"samples of shape {x.shape[1:]} are no sequences (1, W, C)")
        x = x[:, 0]
    axes = _TRANSPOSITIONS.get(layout, tuple(range(x.ndim)))
    if x.ndim != len(axes):
        raise ConversionError(f"samples of shape {x.shape[1:]} do not suit the layout {layout}")
    return np.ascontiguousarray(x.transpose(np.argsort(axes)))
