# SPDX-License-Identifier: Apache-2.0
"""From a template and checkpoint tensors to a float graph: layouts are turned to NHWC, batch normalisation is folded.

A batch normalisation `y = (x - mean) / sqrt(var + eps) * gamma + beta` behind a linear operator scales its output channels and
shifts its bias, so it costs nothing on the device. Folding is done in float64 and rounded once: the result is a pure
function of the tensors, on which the bytes of every later stage depend.

A narrower model has the same tensors; it takes rows and columns of them, after the folding.
"""

from __future__ import annotations

from dataclasses import replace

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
        for norm in op.source.batch_norm:
            names.update(dict.fromkeys((norm.weight, norm.bias, norm.running_mean, norm.running_var)))
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
    outputs = weight.shape[0]
    bias = np.zeros(outputs) if source.bias is None else _lookup(tensors, source.bias, op, outputs)
    for norm in source.batch_norm:
        weight, bias = _fold(weight, bias, norm, tensors, op)
    arranged, bias = _select(_arrange(weight, source, op), bias, source, op)
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


def _fold(
    weight: NDArray[np.float64], bias: NDArray[np.float64], norm: BatchNormRef, tensors: Tensors, op: Op
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    gamma, beta, mean, variance = (
        _lookup(tensors, name, op, weight.shape[0]) for name in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    if (variance + norm.eps <= 0).any():
        raise ConversionError(f"{op.name}: tensor {norm.running_var!r} plus epsilon is not positive")
    factor = gamma / np.sqrt(variance + norm.eps)
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), (bias - mean) * factor + beta


def _select(
    weight: NDArray[np.float64], bias: NDArray[np.float64], source: WeightRef, op: Op
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a narrower model keeps of weights in the graph's order and of biases, with its own statistics."""
    axis = 3 if op.kind is OpKind.DEPTHWISE_CONV_2D else 0
    try:
        if source.rows is not None:
            weight, bias = np.take(weight, source.rows, axis), np.take(bias, source.rows)
        if source.columns is not None:
            weight = np.take(weight, source.columns, -1)
    except IndexError as error:
        raise ConversionError(f"{op.name}: {source.weight} has fewer channels than the narrower model keeps ({error})") from error
    if source.norm_scale:
        scale, shift = np.array(source.norm_scale), np.array(source.norm_shift)
        if scale.shape != bias.shape or shift.shape != bias.shape:
            raise ConversionError(f"{op.name}: {len(scale)} and {len(shift)} corrections for {len(bias)} channels")
        weight = weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        bias = bias * scale + shift
    return weight, bias


def _arrange(weight: NDArray[np.float64], source: WeightRef, op: Op) -> NDArray[np.float64]:
    """Torch's order of axes -> the graph's (WeightRef.layout)."""
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
    arranged = weight.transpose(axes)
    return np.expand_dims(arranged, permutation.index(None)) if None in permutation else arranged
