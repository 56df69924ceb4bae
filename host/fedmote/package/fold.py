# SPDX-License-Identifier: Apache-2.0
"""From a template and checkpoint tensors to a float graph: layouts are turned to NHWC, batch normalisation is folded.

A batch normalisation `y = (x - mean) / sqrt(var + eps) * gamma + beta` behind a linear operator scales its output channels and
shifts its bias; in front of one that pads nothing it scales its input channels, and what its offsets add up to goes into the
bias. So it costs nothing on the device. One that stands alone is a depthwise convolution with a kernel of one pixel. The result
is a pure function of the tensors, on which the bytes of every later stage depend. What exporters to ONNX fold, a normalisation
behind an operator, is folded as they do it, in float32 and in their order, weight * (gamma / sqrt(variance + epsilon)): it is the
one of four orders that gives a model and its default export the same weights to the last bit. Torch's own fusion, litert-torch
and float64 each differ in more than a fifth of the weights, and none comes out nearer to an independent converter
(converters/README.md). Everything else is computed in float64 and rounded once.

A narrower model has the same tensors; it takes rows and columns of them, after the folding.

Factors of cross-layer equalisation, where a template has them, are applied in the same place: a positive factor passes a ReLU, so
dividing a channel where it is made and multiplying it where it is read changes the numbers in between and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError
from fedmote.package.graph import BatchNormRef, Graph, Op, OpKind, Tensors, WeightRef

# Permutations of torch weights, by WeightRef.layout; None inserts an axis of length 1.
_PERMUTATIONS: dict[str, tuple[int | None, ...]] = {
    "conv2d": (0, 2, 3, 1),
    "conv1d": (0, None, 2, 1),
    "depthwise2d": (1, 2, 3, 0),
    "depthwise1d": (1, None, 2, 0),
    "linear": (0, 1),
    "pixel_linear": (0, None, None, 1),
    "batch_norm": (None, None, None, 0),
}


def parameter_names(template: Graph) -> tuple[str, ...]:
    """Names of all checkpoint tensors that the graph's operators need, in order of use, each once."""
    names: dict[str, None] = {}
    for op in template.ops:
        if op.source is None:
            continue
        names[op.source.weight] = None
        if op.source.bias is not None:
            names[op.source.bias] = None
        for norm in (*op.source.input_norm, *op.source.batch_norm):
            tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            names.update(dict.fromkeys(name for name in tensors if name is not None))
    return tuple(names)


def bind(template: Graph, tensors: Tensors) -> Graph:
    """Fills folded float32 weights and biases into a template.

    Args:
        template: operators with `source` names.
        tensors: the checkpoint, torch layouts, by state_dict names.

    Returns:
        The float graph; operators without a source are unchanged.

    Raises:
        ConversionError: a tensor is missing, has the wrong shape, or holds values that are not finite.
    """
    return replace(template, ops=tuple(_bind_op(op, tensors) for op in template.ops))


def _bind_op(op: Op, tensors: Tensors) -> Op:
    source = op.source
    if source is None:
        return op
    weight = _lookup(tensors, source.weight, op)
    if source.layout == "constant":
        return replace(op, constant=_constant(weight, source, op).astype(np.float32))
    if source.layout == "batch_norm":
        weight = np.ones(weight.shape)
    outputs = weight.shape[0]
    bias = np.zeros(outputs) if source.bias is None else _lookup(tensors, source.bias, op, outputs)
    for norm in reversed(source.input_norm):
        weight, bias = _fold_input(weight, bias, norm, tensors, op)
    for norm in source.batch_norm:
        weight, bias = _fold_output(weight, bias, norm, tensors, op)
    arranged = _arrange(weight, source, op)
    if source.layout == "batch_norm":
        bias = _channels_last(bias, source, op)
    arranged, bias = _select(arranged, bias, source, op)
    if source.output_factors is not None:
        factors = _factors(source.output_factors, op, len(bias))
        arranged = arranged * (
            factors if op.kind is OpKind.DEPTHWISE_CONV_2D else factors.reshape(-1, *[1] * (arranged.ndim - 1))
        )
        bias = bias * factors
    if source.input_factors is not None:
        arranged = _scale_inputs(arranged, source.input_factors, op)
    with np.errstate(over="ignore"):
        result = replace(op, weights=arranged.astype(np.float32), bias=bias.astype(np.float32))
    if not (np.isfinite(result.weights).all() and np.isfinite(result.bias).all()):  # type: ignore[arg-type]
        raise ConversionError(f"{op.name}: folding {source.weight} gives values beyond float32; check its batch normalisation")
    return result


def _lookup(tensors: Tensors, name: str, op: Op, length: int | None = None) -> NDArray[np.float64]:
    """The tensor as float64; with `length`, it must be a vector of that many values."""
    if name not in tensors:
        raise ConversionError(f"{op.name}: the checkpoint has no tensor {name!r}; it must come from the same model")
    value = np.asarray(tensors[name], np.float64)
    if length is not None and value.shape != (length,):
        raise ConversionError(f"{op.name}: tensor {name!r} has shape {value.shape}, expected ({length},)")
    if not np.isfinite(value).all():
        raise ConversionError(f"{op.name}: tensor {name!r} holds values that are not finite")
    return value


@dataclass(frozen=True)
class _Norm:
    """Values of a batch normalisation, by channel: y = (x - mean) * factor + beta."""

    factor: NDArray[Any]
    mean: NDArray[Any]
    beta: NDArray[Any]


def _norm(norm: BatchNormRef, tensors: Tensors, op: Op, length: int, dtype: type[np.floating[Any]]) -> _Norm:
    """A batch normalisation of `length` channels, its factors computed in this type."""
    mean, variance = (_lookup(tensors, name, op, length).astype(dtype) for name in (norm.running_mean, norm.running_var))
    gamma = np.ones(length, dtype) if norm.weight is None else _lookup(tensors, norm.weight, op, length).astype(dtype)
    beta = np.zeros(length, dtype) if norm.bias is None else _lookup(tensors, norm.bias, op, length).astype(dtype)
    if (variance + dtype(norm.eps) <= 0).any():
        raise ConversionError(f"{op.name}: tensor {norm.running_var!r} plus epsilon is not positive")
    return _Norm(gamma / np.sqrt(variance + dtype(norm.eps)), mean, beta)


def _fold_output(
    weight: NDArray[np.float64], bias: NDArray[np.float64], norm: BatchNormRef, tensors: Tensors, op: Op
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A normalisation of the outputs in the weights (outputs, ...) and biases that make them.

    A weight that is off by its last bit costs no accuracy, but it can round to another int8 value, and where biases are corrected
    by what the int8 graph made of calibration samples, deep networks carry the difference on from layer to layer.
    """
    values = _norm(norm, tensors, op, len(bias), np.float32)
    with np.errstate(over="ignore"):  # what leaves float32 is refused in the end
        scaled = weight.astype(np.float32) * values.factor.reshape(-1, *[1] * (weight.ndim - 1))
        shifted = (bias.astype(np.float32) - values.mean) * values.factor + values.beta
    return scaled.astype(np.float64), shifted.astype(np.float64)


def _fold_input(
    weight: NDArray[np.float64], bias: NDArray[np.float64], norm: BatchNormRef, tensors: Tensors, op: Op
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A normalisation of the inputs in the weights (outputs, inputs of its group, ...) and biases of what reads them."""
    inputs = _lookup(tensors, norm.running_mean, op).size
    outputs, group_inputs = (*weight.shape, 1)[:2]
    groups = inputs // group_inputs
    if weight.ndim < 2 or groups * group_inputs != inputs or outputs % groups:
        raise ConversionError(f"{op.name}: weights {weight.shape} do not suit {norm.running_mean!r} of {inputs} channels")
    values = _norm(norm, tensors, op, inputs, np.float64)
    scaling = (values.factor, values.beta - values.mean * values.factor)
    factor, offset = (np.repeat(part.reshape(groups, -1), outputs // groups, axis=0) for part in scaling)
    spread = (outputs, group_inputs, *[1] * (weight.ndim - 2))
    shift = (weight * offset.reshape(spread)).reshape(outputs, -1).sum(axis=1)
    return weight * factor.reshape(spread), bias + shift


def _constant(value: NDArray[np.float64], source: WeightRef, op: Op) -> NDArray[np.float64]:
    """The second operand of a sum or product, in the graph's order of axes."""
    if value.size != np.prod(source.axes) or sorted(source.order) != list(range(len(source.axes))):
        raise ConversionError(f"{op.name}: {source.weight} of shape {value.shape} does not match {source.axes}")
    arranged = value.reshape(source.axes).transpose(source.order)
    return arranged if source.columns is None else _take(arranged, source.columns, -1, source, op)


def _channels_last(values: NDArray[np.float64], source: WeightRef, op: Op) -> NDArray[np.float64]:
    """A vector over a flattened image in the order in which the graph has it."""
    if source.chw is None:
        return values
    if values.size != np.prod(source.chw):
        raise ConversionError(f"{op.name}: {source.weight} of {values.size} values does not match a flattened {source.chw}")
    return values.reshape(source.chw).transpose(1, 2, 0).reshape(-1)


def _factors(factors: NDArray[np.float32], op: Op, length: int) -> NDArray[np.float64]:
    if factors.shape != (length,) or not (np.isfinite(factors) & (factors > 0)).all():
        raise ConversionError(f"{op.name}: {length} positive equalisation factors are expected, not {factors.shape}")
    return factors.astype(np.float64)


def _scale_inputs(weight: NDArray[np.float64], factors: NDArray[np.float32], op: Op) -> NDArray[np.float64]:
    """Weights in the graph's order, multiplied by a factor for each channel (feature) of the input."""
    if op.kind is OpKind.DEPTHWISE_CONV_2D:
        per_output = np.repeat(factors, op.depth_multiplier)
        return weight * _factors(per_output, op, weight.shape[-1])
    if op.kind is OpKind.FULLY_CONNECTED:
        return weight * _factors(factors, op, weight.shape[1])
    groups = max(1, len(factors) // weight.shape[-1])
    per_group = _factors(factors, op, groups * weight.shape[-1]).reshape(groups, 1, 1, 1, -1)
    return (weight.reshape(groups, -1, *weight.shape[1:]) * per_group).reshape(weight.shape)


def _take(values: NDArray[np.float64], kept: tuple[int, ...], axis: int, source: WeightRef, op: Op) -> NDArray[np.float64]:
    if max(kept, default=-1) >= values.shape[axis]:
        raise ConversionError(
            f"{op.name}: {source.weight} has {values.shape[axis]} channels, the narrower model keeps {max(kept)}"
        )
    return np.take(values, kept, axis)


def _select(
    weight: NDArray[np.float64], bias: NDArray[np.float64], source: WeightRef, op: Op
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a narrower model keeps of weights in the graph's order and of biases, with its own statistics."""
    axis = 3 if op.kind is OpKind.DEPTHWISE_CONV_2D else 0
    if source.rows is not None:
        weight, bias = _take(weight, source.rows, axis, source, op), _take(bias, source.rows, 0, source, op)
    if source.columns is not None:
        weight = _take(weight, source.columns, -1, source, op)
    if source.norm_scale:
        scale, shift = np.array(source.norm_scale), np.array(source.norm_shift)
        if scale.shape != bias.shape or shift.shape != bias.shape:
            raise ConversionError(f"{op.name}: {len(scale)} and {len(shift)} corrections for {len(bias)} channels")
        weight = weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        bias = bias * scale + shift
    return weight, bias


def _arrange(weight: NDArray[np.float64], source: WeightRef, op: Op) -> NDArray[np.float64]:
    """Torch's order of axes -> the graph's (WeightRef.layout)."""
    if source.layout == "batch_norm":
        weight = _channels_last(weight, source, op)
    if source.layout == "linear_chw":
        if source.chw is None or weight.ndim != 2 or weight.shape[1] != np.prod(source.chw):
            raise ConversionError(f"{op.name}: {source.weight} of shape {weight.shape} does not match a flattened {source.chw}")
        return weight.reshape(-1, *source.chw).transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)
    permutation = _PERMUTATIONS.get(source.layout)
    if permutation is None:
        raise ConversionError(f"{op.name}: unknown weight layout {source.layout!r}; known: {sorted(_PERMUTATIONS)}, linear_chw")
    axes = [axis for axis in permutation if axis is not None]
    if weight.ndim != len(axes):
        raise ConversionError(
            f"{op.name}: {source.weight} has shape {weight.shape}, layout {source.layout} needs {len(axes)} axes"
        )
    inserted = tuple(position for position, axis in enumerate(permutation) if axis is None)
    return np.expand_dims(weight.transpose(axes), inserted)
