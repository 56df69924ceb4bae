# SPDX-License-Identifier: Apache-2.0
"""The float head between a checkpoint and a device.

A checkpoint keeps the tensors that torch knows, by name. A device keeps one run of float32 numbers: layer by layer the
weights (outputs, inputs), then the bias (`device_sdk/protocol/SPEC.md`, section 6). Its features are channels last, so
the columns of a layer behind a flatten are regrouped on the way; the way back undoes it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, PackageError
from fedmote.package.graph import Activation, HeadLayer, Tensors


def parameter_count(layers: Sequence[HeadLayer]) -> int:
    """Return the number of float32 parameters of a head."""
    return sum(layer.outputs * (layer.inputs + 1) for layer in layers)


@dataclass(frozen=True)
class HeadShape:
    """Sizes of a head on a device.

    Attributes:
        inputs: features (D).
        hidden: units between two layers (H); 0 is one layer.
        outputs: classes (C).
    """

    inputs: int
    hidden: int
    outputs: int

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]]) -> HeadShape:
        """From (inputs, outputs) of one or two layers."""
        return cls(sizes[0][0], sizes[0][1] if len(sizes) > 1 else 0, sizes[-1][1])

    @property
    def parameters(self) -> int:
        """Number of the parameters (P)."""
        return (self.inputs + 1) * self.hidden + ((self.hidden or self.inputs) + 1) * self.outputs

    def __str__(self) -> str:
        return " -> ".join(str(size) for size in (self.inputs, self.hidden, self.outputs) if size)


@dataclass(frozen=True)
class DenseLayer:
    """One layer of a head as a device holds it: columns in the order of its features.

    Attributes:
        weights: float32 (outputs, inputs).
        bias: float32 (outputs,).
        is_relu: whether a ReLU follows.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    is_relu: bool = False


def logits_of(layers: Sequence[DenseLayer], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits float32 (N, C) of features (N, D)."""
    values = features
    for layer in layers:
        values = values @ layer.weights.T + layer.bias
        if layer.is_relu:
            values = np.maximum(values, np.float32(0))
    return np.asarray(values, np.float32)


def channels_last_columns(chw: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return for each channels-last position the channels-first index of the same element.

    `weight[:, channels_last_columns(chw)]` turns a torch Linear behind `flatten` into one for channels-last features.
    """
    return np.arange(int(np.prod(chw)), dtype=np.int64).reshape(chw).transpose(1, 2, 0).ravel()


def head_blob(layers: Sequence[HeadLayer], tensors: Tensors) -> NDArray[np.float32]:
    """Return the parameters of a head as a device holds them.

    Args:
        layers: the head, first layer first.
        tensors: checkpoint tensors by name; others than the head's are ignored.

    Returns:
        float32 (P,), P = `parameter_count(layers)`.

    Raises:
        ConversionError: a tensor is missing, has another shape, or holds values that are not finite.
    """
    runs = []
    for layer in layers:
        weight = _tensor(tensors, layer.weight, (layer.outputs, layer.inputs))
        bias = _tensor(tensors, layer.bias, (layer.outputs,))
        if layer.chw is not None:
            weight = weight[:, channels_last_columns(layer.chw)]
        runs += [weight.ravel(), bias]
    return np.concatenate(runs).astype(np.float32)


def head_bytes(layers: Sequence[HeadLayer], tensors: Tensors) -> bytes:
    """Return `head_blob` as it is written: float32, little endian."""
    return head_blob(layers, tensors).astype("<f4").tobytes()


def dense_layers(layers: Sequence[HeadLayer], tensors: Tensors) -> tuple[DenseLayer, ...]:
    """The layers of a head for a device's features, from a checkpoint; errors as `head_blob`."""
    blob = head_blob(layers, tensors)
    return split_blob(blob, [(layer.inputs, layer.outputs, layer.activation is Activation.RELU) for layer in layers])


def split_blob(blob: NDArray[np.float32], sizes: Sequence[tuple[int, int, bool]]) -> tuple[DenseLayer, ...]:
    """The layers in a run of parameters, from (inputs, outputs, is_relu) of each."""
    parts = []
    start = 0
    for inputs, outputs, is_relu in sizes:
        end = start + inputs * outputs
        parts.append(DenseLayer(blob[start:end].reshape(outputs, inputs), blob[end : end + outputs], is_relu))
        start = end + outputs
    return tuple(parts)


def head_tensors(layers: Sequence[HeadLayer], blob: NDArray[np.float32]) -> Tensors:
    """Return the checkpoint tensors of a head from a device's parameters: the inverse of `head_blob`.

    Both are linear, so the delta of a head may be given as well as the head.

    Raises:
        PackageError: the blob has another length than the head.
    """
    if blob.shape != (parameter_count(layers),):
        raise PackageError(f"head of {parameter_count(layers)} parameters expected, blob has shape {blob.shape}")
    tensors: Tensors = {}
    start = 0
    for layer in layers:
        count = layer.outputs * layer.inputs
        weight = blob[start : start + count].reshape(layer.outputs, layer.inputs)
        if layer.chw is not None:
            weight = weight[:, np.argsort(channels_last_columns(layer.chw))]
        tensors[layer.weight] = np.array(weight, dtype=np.float32)
        tensors[layer.bias] = np.array(blob[start + count : start + count + layer.outputs], dtype=np.float32)
        start += count + layer.outputs
    return tensors


def _tensor(tensors: Tensors, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name not in tensors:
        raise ConversionError(f"head: the checkpoint has no tensor {name!r}")
    value = np.asarray(tensors[name], np.float32)
    if value.shape != shape or not np.isfinite(value).all():
        raise ConversionError(f"head: tensor {name!r} has shape {value.shape}, expected {shape}, all finite")
    return value
