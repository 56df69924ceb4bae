# SPDX-License-Identifier: Apache-2.0
"""The graph between a captured model and a compiled package.

One type serves three stages; what differs is which fields are filled:

* **template**: operators in NHWC with names of parameters, no values (what `fedmote_convert` captures, and what a
  package's host manifest keeps, so that new weights need no new capture);
* **float graph**: `bind(template, tensors)` fills in folded float32 weights and biases;
* **int8 graph**: `quantize(float graph, ranges)`, or a `.tflite` file that was read, has int8 weights, int32 biases and a
  `Quantization` on every activation.

Operators are in execution order; every activation has batch 1 and a static shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from fedmote.tensors import Ranges as Ranges
from fedmote.tensors import Tensors as Tensors


class OpKind(StrEnum):
    """Operators of the graph; the value is the TFLite operator they are written as.

    Several TFLite operators are one here: SQUEEZE and EXPAND_DIMS are RESHAPE, RELU6 and RELU_N1_TO_1 are RELU with that clamp,
    PADV2 is PAD with a value, SLICE is STRIDED_SLICE.
    """

    CONV_2D = "CONV_2D"
    DEPTHWISE_CONV_2D = "DEPTHWISE_CONV_2D"
    FULLY_CONNECTED = "FULLY_CONNECTED"
    ADD = "ADD"
    MUL = "MUL"
    AVERAGE_POOL_2D = "AVERAGE_POOL_2D"
    MAX_POOL_2D = "MAX_POOL_2D"
    MEAN = "MEAN"
    PAD = "PAD"
    RELU = "RELU"
    LEAKY_RELU = "LEAKY_RELU"
    HARD_SWISH = "HARD_SWISH"
    LOGISTIC = "LOGISTIC"
    TANH = "TANH"
    QUANTIZE = "QUANTIZE"
    SOFTMAX = "SOFTMAX"
    RESHAPE = "RESHAPE"
    CONCATENATION = "CONCATENATION"
    STRIDED_SLICE = "STRIDED_SLICE"
    TRANSPOSE = "TRANSPOSE"
    BROADCAST_TO = "BROADCAST_TO"


# Operators with weights and biases.
WEIGHTED = (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED)
# Functions of one element: in int8, a table of 256 values.
ELEMENTWISE = (OpKind.RELU, OpKind.LEAKY_RELU, OpKind.HARD_SWISH, OpKind.LOGISTIC, OpKind.TANH, OpKind.QUANTIZE)
# Sums and products of two operands, the second of which may be constant or repeat.
BINARY = (OpKind.ADD, OpKind.MUL)


class Activation(StrEnum):
    """Activation fused into an operator."""

    NONE = "NONE"
    RELU = "RELU"
    RELU6 = "RELU6"
    RELU_N1_TO_1 = "RELU_N1_TO_1"


@dataclass(frozen=True)
class Quantization:
    """Affine quantization of an int8 tensor: real = scale * (q - zero_point).

    Attributes:
        scale: float32, shape (1,) for activations, (1,) or (channels,) for weights.
        zero_point: int64, same shape; zeros for weights.
        axis: axis of the channels for weights.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int = 0


@dataclass(frozen=True)
class Activations:
    """An activation tensor: (1, height, width, channels) or (1, features)."""

    name: str
    shape: tuple[int, ...]
    quantization: Quantization | None = None


@dataclass(frozen=True)
class BatchNormRef:
    """Names of the tensors of a batch normalisation, and its epsilon.

    Attributes:
        weight, bias: of the factors and offsets that were learned; None where there are none: ones and zeros.
        running_mean, running_var: of the statistics.
        eps: added to the variance.
    """

    weight: str | None
    bias: str | None
    running_mean: str
    running_var: str
    eps: float


@dataclass(frozen=True)
class WeightRef:
    """Where an operator's weights come from.

    Attributes:
        weight: name of the checkpoint tensor, e.g. "conv1.weight".
        bias: name of the bias tensor, or None.
        batch_norm: folded batch normalisations in order of application.
        layout: how the torch tensor becomes the graph's: "conv2d" (O,I,H,W)->(O,H,W,I), "conv1d" (O,I,W)->(O,1,W,I),
            "depthwise2d" (O,1,H,W)->(1,H,W,O), "depthwise1d" (O,1,W)->(1,1,W,O), "linear" (O,I) as it is,
            "linear_chw" (O,I) with I regrouped from channels-first to channels-last order of `chw`, "pixel_linear"
            (O,I)->(O,1,1,I); "batch_norm", ones (C,) that the normalisations scale, (C,)->(1,1,1,C); "constant", the second
            operand of ADD or MUL: the tensor in the shape `axes`, transposed by `order`.
        chw: (channels, height, width) of the flattened activation, for "linear_chw", and for a "batch_norm" over one.
        input_norm: batch normalisations in front of the operator that are folded into it, in order of application.
        axes, order: for "constant".
        rows: output channels that a narrower model keeps, ascending; None: all.
        columns: inputs of each output that it keeps, or channels of a "constant", in the graph's order, ascending; None: all.
        norm_scale, norm_shift: factor and summand of each kept output channel behind the folded normalisations: what their
            statistics would be in the narrower model. Empty: 1 and 0.
        output_factors: (O,) float32 or None, by which each output channel's weights and bias are multiplied behind the norms.
        input_factors: (I,) float32 or None, by which the weights of each input channel are multiplied, in the graph's order.
            Both are of the kept channels, from cross-layer equalisation: the factors of a producer's outputs undo those of its
            reader's inputs.
    """

    weight: str
    bias: str | None
    batch_norm: tuple[BatchNormRef, ...] = ()
    layout: str = "conv2d"
    chw: tuple[int, int, int] | None = None
    input_norm: tuple[BatchNormRef, ...] = ()
    axes: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    norm_scale: tuple[float, ...] = ()
    norm_shift: tuple[float, ...] = ()
    output_factors: NDArray[np.float32] | None = None
    input_factors: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Op:
    """One operator.

    Attributes:
        kind: what it does.
        name: name of the source node, for messages.
        inputs: names of activation inputs: any number for CONCATENATION, two for ADD and MUL unless their second operand is
            constant, else one.
        output: name of the activation that it makes.
        activation: fused activation; RELU with RELU6 means a clamp to [0, 6], with RELU_N1_TO_1 to [-1, 1].
        stride, dilation: (height, width).
        padding: "VALID" or "SAME" as TFLite means them; explicit torch padding is a PAD operator before it.
        kernel: (height, width) of pooling windows and convolutions.
        pads: (top, bottom, left, right) for PAD.
        pad_value: int8 value that PAD writes; None: what stands for zero. A float graph knows the lowest one only, -128, which
            there is no more than any value of the input: MAX_POOL never takes it.
        depth_multiplier: for DEPTHWISE_CONV_2D.
        axis: for CONCATENATION, counted from the batch axis.
        permutation: for TRANSPOSE: the input's axis for each axis of the output.
        starts, steps: for STRIDED_SLICE, of every axis of the input: output index i is input index start + i * step.
        alpha: slope of LEAKY_RELU below zero.
        beta: factor of the exponents of SOFTMAX.
        constant: the second operand of ADD or MUL where it is no activation; float32 or int8, any shape that broadcasts. In a
            template it may come from the checkpoint: `source` has the layout "constant".
        constant_quantization: of an int8 constant, one scale.
        source: where the weights, or the constant, come from; None for graphs read from `.tflite` files.
        weights: CONV_2D (O, H, W, I / groups), DEPTHWISE_CONV_2D (1, H, W, O), FULLY_CONNECTED (O, I); float32 or int8.
        weight_bits: 8, or 4 where weights lie in [-8, 7] and are stored two to a byte.
        has_one_scale: whether all output channels share one weight scale; else each has its own.
        scale_bits: significant bits of weight scales, at most float32's 24; with fewer, they are rounded up.
        has_even_divisors: whether weight scales are widened a little, so that requantization divides sums by even numbers.
        float_means, int8_means: (I,) float32 or None: means of each channel of the input (of each feature, for FULLY_CONNECTED)
            in the float graph and in the int8 graph, which quantization corrects the bias by.
        bias: (O,), float32 or int32.
        weight_quantization: of int8 weights.
    """

    kind: OpKind
    name: str
    inputs: tuple[str, ...]
    output: str
    activation: Activation = Activation.NONE
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = "VALID"
    kernel: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_value: int | None = None
    depth_multiplier: int = 1
    axis: int = 0
    permutation: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    alpha: float = 0.0
    beta: float = 1.0
    constant: NDArray[np.float32] | NDArray[np.int8] | None = None
    constant_quantization: Quantization | None = None
    source: WeightRef | None = None
    weights: NDArray[np.float32] | NDArray[np.int8] | None = None
    weight_bits: int = 8
    has_one_scale: bool = False
    scale_bits: int = 24
    has_even_divisors: bool = False
    float_means: NDArray[np.float32] | None = None
    int8_means: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | NDArray[np.int32] | None = None
    weight_quantization: Quantization | None = None


@dataclass(frozen=True)
class Graph:
    """Operators in execution order between one input and one output activation."""

    input: str
    output: str
    activations: dict[str, Activations]
    ops: tuple[Op, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class HeadLayer:
    """One dense layer of the float head: names of its checkpoint tensors and its size.

    Attributes:
        weight: name of the checkpoint tensor (outputs, inputs), inputs in the module's own order.
        bias: name of the checkpoint tensor (outputs,).
        inputs, outputs: sizes.
        chw: (channels, height, width) of the activation that was flattened into the inputs, where channels-first and
            channels-last order differ: the device computes its features channels last. `fedmote.package.head` regroups.
        activation: behind the layer: NONE or RELU where another layer follows, NONE for the last one.
    """

    weight: str
    bias: str
    inputs: int
    outputs: int
    chw: tuple[int, int, int] | None = None
    activation: Activation = Activation.NONE
