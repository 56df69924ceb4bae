# SPDX-License-Identifier: Apache-2.0
"""Arguments of torch's operators in the terms of the graph: windows as (height, width), axes counted without the batch."""

from __future__ import annotations

from collections.abc import Sequence

from fedmote_convert.layout import Shape
from fedmote_convert.sketch import Call, Sketch

# (top, bottom, left, right)
Pads = tuple[int, int, int, int]


def spatial_axes(call: Call, source: str, sketch: Sketch) -> int:
    """Number of spatial axes of the source: 1 or 2."""
    axes = len(sketch.torch_shapes[source]) - 2
    if axes not in (1, 2):
        raise call.refusal(
            f"it reads {sketch.torch_shapes[source]}, not an image (1, C, H, W) or a sequence (1, C, W)",
            "keep it before the flatten",
        )
    return axes


def pair(value: int | Sequence[int], axes: int, default: int = 1) -> tuple[int, int]:
    """(height, width) of an argument that torch gives as one number, one per axis or none; a sequence has height 1."""
    values = [value] if isinstance(value, int) else list(value)
    if len(values) == 1:
        values = values * axes
    return (default, values[0]) if axes == 1 else (values[0], values[1])


def image_size(torch_shape: Shape) -> tuple[int, int]:
    """(height, width) of (1, C, H, W) or (1, C, W)."""
    return (1, torch_shape[2]) if len(torch_shape) == 3 else (torch_shape[2], torch_shape[3])


def axis_of(call: Call, axis: int, rank: int) -> int:
    """An axis of a torch shape of this rank, counted without the batch."""
    axis %= rank
    if axis == 0:
        raise call.refusal("it works along the batch", "samples are computed one by one")
    return axis - 1
