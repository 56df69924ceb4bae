# SPDX-License-Identifier: Apache-2.0
"""Our int8 form from the very float32 numbers that a peer's file was made of: what then differs is quantization alone.

litert-torch folds a normalisation step by step: a weight times 1 / sqrt(variance + epsilon), then times gamma. Ours are folded as
torch's ONNX exporters do: times the quotient gamma / sqrt(variance + epsilon). Both round in float32, so nearly half of the
weights differ in their last bit; and ranges do, because (max - min) / 255 is rounded at different places. Neither is the
better, but some value somewhere lies on an edge between two integers, and a deep network carries that on.
"""

from __future__ import annotations

import numpy as np

from fedmote.package.graph import BatchNormRef, Graph, Op, Tensors
from fedmote.package.quantize import observation_points
from fedmote_convert.bench.files import Content, Tensor
from fedmote_convert.bench.measures import encoder_file
from fedmote_convert.bench.subjects import Subject
from fedmote_convert.passes import run_passes

# What makes an activation with a range of its own, in the networks of the zoo.
_MAKERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MEAN")


def activations_of(content: Content) -> list[Tensor]:
    """The input of a file and the activations that have ranges of their own, in order of execution."""
    made = [numbers[0] for name, numbers in zip(content.operators, content.outputs, strict=True) if name in _MAKERS]
    return [content.input, *(content.tensors[number] for number in made)]


def from_numbers_of(subject: Subject, peer: Content) -> tuple[Graph, bytes]:
    """Our int8 encoder and its file, from weights folded as the peer does and the scales that its file states.

    Args:
        subject: the model.
        peer: whose activations are ours, one by one.
    """
    template = run_passes(subject.conversion.cut.encoder)
    tensors = dict(subject.conversion.tensors)
    for op in template.ops:
        if op.source is not None and len(op.source.batch_norm) == 1:
            tensors |= _folded_step_by_step(op, op.source.batch_norm[0], tensors)
    limits = (_range(tensor) for tensor in activations_of(peer))
    return encoder_file(template, tensors, dict(zip(observation_points(template), limits, strict=True)))


def _folded_step_by_step(op: Op, norm: BatchNormRef, tensors: Tensors) -> Tensors:
    """Weights folded as litert-torch does, and a normalisation that leaves them as they are to the last bit."""
    assert op.source is not None and norm.weight is not None and norm.bias is not None
    deviation = np.sqrt(tensors[norm.running_var] + np.float32(norm.eps))
    inverse, gamma = np.float32(1) / deviation, tensors[norm.weight]
    weight, none = tensors[op.source.weight], np.zeros_like(gamma)
    by_channel = (-1, *[1] * (weight.ndim - 1))
    bias = none if op.source.bias is None else tensors[op.source.bias]
    folded = ((bias - tensors[norm.running_mean]) * inverse) * gamma + tensors[norm.bias]
    return {
        op.source.weight: (weight * inverse.reshape(by_channel)) * gamma.reshape(by_channel),
        norm.weight: deviation,
        norm.running_mean: -folded,
        norm.bias: none,
        **({} if op.source.bias is None else {op.source.bias: none}),
    }


def _range(tensor: Tensor) -> tuple[float, float]:
    """The range that quantizes to a tensor's own scale and zero point."""
    scale, zero_point = float(tensor.scales[0]), int(tensor.zero_points[0])
    return (-128 - zero_point) * scale, (127 - zero_point) * scale
