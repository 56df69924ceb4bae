# SPDX-License-Identifier: Apache-2.0
"""Cross-layer equalisation: channels of one activation get similar ranges, so that one int8 scale suits all of them.

A layer that makes an activation may divide each channel by a positive factor, and the layer that reads it multiply that
channel's weights by it: ReLU, LeakyReLU, padding with zeros, pools and means let positive factors pass, so the function stays
what it was. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019, section 4.1),
balance the weights of both layers. Here weights have a scale for each output channel, so what a layer makes costs it nothing;
what must be balanced is the activation, whose ranges are known from calibration, and the weights that read it:

* a depthwise convolution has a scale for each channel, so its weights bear any factor: every channel gets the full range;
* otherwise a channel of range a, whose weights reach up to w of the largest of their output channel, gets the factor
  sqrt(a / w), which makes both ranges the same: a / s = w * s.

A clamp at 6 would move with the channels, so activations behind ReLU6 stay as they are; so do activations with several readers,
and the features, whose values the float head knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedmote.package.graph import WEIGHTED, Activation, Graph, Op, OpKind
from fedmote_convert.statistics import Channels

# Factors of one activation within this of their geometric mean: a channel that hardly lives must not get all the resolution.
_LARGEST_FACTOR = 2.0**6
# Factors are powers of 2^(1/4): weights that differ by a rounding error, as exporters' do, then get the same ones.
_FACTOR_STEPS = 4
_PASSING = (OpKind.RELU, OpKind.LEAKY_RELU, OpKind.MAX_POOL_2D, OpKind.AVERAGE_POOL_2D, OpKind.MEAN)
_HOMOGENEOUS = (Activation.NONE, Activation.RELU)


@dataclass(frozen=True)
class _Link:
    """Two weighted operators with nothing but homogeneous ones between them.

    Attributes:
        producer: number of the operator that makes the activation.
        reader: number of the one that reads it.
        names: activations from the producer's output to the reader's input.
    """

    producer: int
    reader: int
    names: tuple[str, ...]


def equalise(template: Graph, graph: Graph, seen: Mapping[str, Channels]) -> tuple[Graph, dict[str, Channels]]:
    """Write equalisation factors into a template.

    Args:
        template: without factors.
        graph: the same, bound.
        seen: statistics of its activations.

    Returns:
        The template with `output_factors` and `input_factors`, and the statistics of its activations.
    """
    ops = list(template.ops)
    changed = dict(seen)
    for link in _links(template):
        factors = _factors(graph.ops[link.reader], seen[link.names[0]])
        for name in link.names:
            repeats = len(seen[name].low) // len(factors)  # flattened: the channels of each pixel
            changed[name] = seen[name].divided(np.tile(factors, repeats).astype(np.float64))
        repeats = _input_channels(graph.ops[link.reader], graph) // len(factors)
        outputs = (1 / factors.astype(np.float64)).astype(np.float32)
        producer, reader = ops[link.producer], ops[link.reader]
        assert producer.source is not None and reader.source is not None  # _links
        ops[link.producer] = replace(producer, source=replace(producer.source, output_factors=outputs))
        ops[link.reader] = replace(reader, source=replace(reader.source, input_factors=np.tile(factors, repeats)))
    return replace(template, ops=tuple(ops)), changed


def _links(graph: Graph) -> Iterator[_Link]:
    readers: dict[str, list[int]] = {graph.output: [-1]}  # the head reads the features
    for number, op in enumerate(graph.ops):
        for name in op.inputs:
            readers.setdefault(name, []).append(number)
    for number, op in enumerate(graph.ops):
        if op.kind not in WEIGHTED or op.source is None or op.activation not in _HOMOGENEOUS:
            continue
        names = [op.output]
        while (reader := _sole_reader(graph, readers, names[-1])) is not None:
            follower = graph.ops[reader]
            if follower.kind in WEIGHTED and follower.source is not None:
                yield _Link(number, reader, tuple(names))
                break
            if not _is_passing(graph, follower):
                break
            names.append(follower.output)


def _sole_reader(graph: Graph, readers: Mapping[str, list[int]], name: str) -> int | None:
    numbers = readers.get(name, [])
    return numbers[0] if len(numbers) == 1 and numbers[0] >= 0 else None


def _is_passing(graph: Graph, op: Op) -> bool:
    """Whether the operator of factors times its input is factors times the operator, channel by channel."""
    if op.kind is OpKind.PAD:
        return op.pad_value is None
    if op.kind is OpKind.RESHAPE:
        before, after = (graph.activations[name].shape for name in (op.inputs[0], op.output))
        return after[-1] % before[-1] == 0 and len(after) <= len(before)
    return op.kind in _PASSING and op.activation in _HOMOGENEOUS


def _input_channels(op: Op, graph: Graph) -> int:
    weights = np.asarray(op.weights)
    return weights.shape[1] if op.kind is OpKind.FULLY_CONNECTED else graph.activations[op.inputs[0]].shape[-1]


def _factors(reader: Op, seen: Channels) -> NDArray[np.float32]:
    """Factors (C,) of the channels of an activation, of geometric mean 1; 1 where a channel is zero or is not read."""
    reach = np.maximum(np.abs(seen.low), np.abs(seen.high)).astype(np.float64)
    if reader.kind is OpKind.DEPTHWISE_CONV_2D:
        wanted = reach
    else:
        share = _weight_shares(reader, len(reach))
        wanted = np.sqrt(np.divide(reach, share, out=np.zeros_like(reach), where=share > 0))
    is_alive = (wanted > 0) & np.isfinite(wanted)
    if not is_alive.any():
        return np.ones(len(reach), np.float32)
    logs = np.log2(wanted, out=np.zeros_like(wanted), where=is_alive)
    steps = _FACTOR_STEPS * (logs - logs[is_alive].mean())
    logs = np.where(is_alive, np.round(steps) / _FACTOR_STEPS, 0.0)
    return np.asarray(np.exp2(np.clip(logs, -np.log2(_LARGEST_FACTOR), np.log2(_LARGEST_FACTOR))), np.float32)


def _weight_shares(reader: Op, channels: int) -> NDArray[np.float64]:
    """For each input channel its largest weight, as a share of the largest weight of the same output channel."""
    weights = np.abs(np.asarray(reader.weights, np.float64))
    outputs = weights.reshape(len(weights), -1)
    shares = weights / np.maximum(outputs.max(axis=1), np.finfo(np.float64).tiny).reshape(-1, *[1] * (weights.ndim - 1))
    if reader.kind is OpKind.FULLY_CONNECTED:
        return np.asarray(shares.reshape(-1, channels).max(axis=0))
    groups = channels // weights.shape[3]
    return np.asarray(shares.reshape(groups, -1, weights.shape[3]).max(axis=1).reshape(-1))
