# SPDX-License-Identifier: Apache-2.0
"""The standard's reference implementation, with pools and batch normalisation put right.

`onnx.reference` (1.23) reads the pads of some pools in another order than the standard has them, leaves windows out where
`auto_pad` is SAME_LOWER, takes the global maximum of a sequence over its channels too, visits every pixel of a max pool in
Python, and mixes the statistics of the sample into a batch normalisation of opset 13. The operators here follow their
descriptions (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


def evaluator_of(proto: onnx.ModelProto | onnx.NodeProto, opset: int) -> ReferenceEvaluator:
    """An evaluator of a model, or of one node of this opset."""
    opsets = {"": opset} if isinstance(proto, onnx.NodeProto) else None
    return ReferenceEvaluator(proto, opsets=opsets, new_ops=[AveragePool, BatchNormalization, GlobalMaxPool, MaxPool])


class BatchNormalization(OpRun):
    """Normalisation by the statistics that training left, as in inference; in training mode a node is refused."""

    op_domain = ""

    def _run(
        self,
        x: NDArray[np.float32],
        scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        mean: NDArray[np.float32],
        variance: NDArray[np.float32],
        **attributes: Any,  # noqa: ANN401
    ) -> tuple[NDArray[np.float32]]:
        shape = (1, -1, *[1] * (x.ndim - 2))
        factor = (scale / np.sqrt(variance + np.float32(attributes["epsilon"]))).reshape(shape)
        return ((x - mean.reshape(shape)) * factor + bias.reshape(shape),)


class GlobalMaxPool(OpRun):
    """The maximum over all spatial axes."""

    op_domain = ""

    def _run(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float32]]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class MaxPool(OpRun):
    """The maximum of each window; what lies outside the image is less than anything."""

    op_domain = ""

    def _run(self, x: NDArray[np.float32], **attributes: Any) -> tuple[NDArray[np.float32], ...]:  # noqa: ANN401
        return (np.maximum.reduce(_taps(x, -np.inf, _axes(x.shape, attributes))),)


class AveragePool(OpRun):
    """The mean of each window; pads count where the attribute says so, what rounding sizes up adds never does."""

    op_domain = ""

    def _run(self, x: NDArray[np.float32], **attributes: Any) -> tuple[NDArray[np.float32]]:  # noqa: ANN401
        axes = _axes(x.shape, attributes)
        counted = np.ones((1, 1, *x.shape[2:]), np.float32)
        if attributes.get("count_include_pad"):
            counted = np.pad(counted, [(0, 0), (0, 0), *((axis.near, axis.far) for axis in axes)], constant_values=1)
            axes_of_counts = [axis.without_pads() for axis in axes]
        else:
            axes_of_counts = axes
        return (np.asarray(sum(_taps(x, 0, axes)) / sum(_taps(counted, 0, axes_of_counts)), np.float32),)


@dataclass(frozen=True)
class _Axis:
    """How windows lie along one spatial axis: pads at both ends, number of windows, and of what they are made."""

    near: int
    far: int
    outputs: int
    kernel: int
    stride: int
    dilation: int

    def without_pads(self) -> _Axis:
        """The same windows on an image that has its pads inside."""
        return replace(self, near=0, far=0)

    def positions(self, tap: int) -> slice:
        """Where the windows read their element number `tap`, in an image that is padded at its near end."""
        start = tap * self.dilation
        return slice(start, start + (self.outputs - 1) * self.stride + 1, self.stride)

    @property
    def span(self) -> int:
        """Elements that all windows together reach over."""
        return (self.outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1


def _axes(shape: Sequence[int], attributes: Mapping[str, Any]) -> list[_Axis]:
    kernel: list[int] = attributes["kernel_shape"]
    rank, ones = len(kernel), [1] * len(kernel)
    strides, dilations = attributes.get("strides") or ones, attributes.get("dilations") or ones
    pads = attributes.get("pads") or [0] * (2 * rank)
    automatic = attributes.get("auto_pad") or "NOTSET"
    axes = []
    for index, size in enumerate(shape[2:]):
        reach, stride = (kernel[index] - 1) * dilations[index] + 1, strides[index]
        near, far = (0, 0) if automatic == "VALID" else (pads[index], pads[rank + index])
        outputs = (size + near + far - reach) // stride + 1
        if automatic.startswith("SAME"):
            outputs = -(-size // stride)
            total = max(0, (outputs - 1) * stride + reach - size)
            near = total // 2 if automatic == "SAME_UPPER" else total - total // 2
            far = total - near
        elif attributes.get("ceil_mode"):
            outputs = -(-(size + near + far - reach) // stride) + 1
            outputs -= (outputs - 1) * stride >= size + near  # a window may not begin in the far pads
        axes.append(_Axis(near, far, outputs, kernel[index], stride, dilations[index]))
    return axes


def _taps(x: NDArray[np.float32], outside: float, axes: Sequence[_Axis]) -> list[NDArray[np.float32]]:
    """What the windows read, one array (N, C, outputs, ...) for each of their elements."""
    far = [max(0, axis.span - axis.near - size) for axis, size in zip(axes, x.shape[2:], strict=True)]
    pads = [(0, 0), (0, 0), *((axis.near, amount) for axis, amount in zip(axes, far, strict=True))]
    padded = np.pad(x, pads, constant_values=outside)
    taps = itertools.product(*(range(axis.kernel) for axis in axes))
    return [padded[:, :, *(axis.positions(tap) for axis, tap in zip(axes, tap_of, strict=True))] for tap_of in taps]
