# SPDX-License-Identifier: Apache-2.0
"""The part of the TensorFlow Lite schema, version 3, that int8 encoders need: numbers of fields, types and operators.

Field numbers are positions in the tables of `tensorflow/compiler/mlir/lite/schema/schema.fbs`, which is frozen for version 3.
"""

from __future__ import annotations

from typing import Final

from fedmote.package.graph import Activation, OpKind

FILE_IDENTIFIER: Final = b"TFL3"
VERSION: Final = 3


class Model:
    """Fields of the root table."""

    VERSION, OPERATOR_CODES, SUBGRAPHS, DESCRIPTION, BUFFERS = range(5)
    COUNT = 5


class OperatorCode:
    """Fields: the builtin code stands twice, in one byte (files of before 2020) and in an int32."""

    DEPRECATED_BUILTIN_CODE, CUSTOM_CODE, VERSION, BUILTIN_CODE = range(4)
    COUNT = 4


class SubGraph:
    """Fields of a subgraph."""

    TENSORS, INPUTS, OUTPUTS, OPERATORS, NAME = range(5)
    COUNT = 5


class Tensor:
    """Fields of a tensor."""

    SHAPE, TYPE, BUFFER, NAME, QUANTIZATION = range(5)
    COUNT = 5


class QuantizationParameters:
    """Fields of a tensor's quantization."""

    MIN, MAX, SCALE, ZERO_POINT, DETAILS_TYPE, DETAILS, QUANTIZED_DIMENSION = range(7)
    COUNT = 7


class Operator:
    """Fields of a node."""

    OPCODE_INDEX, INPUTS, OUTPUTS, BUILTIN_OPTIONS_TYPE, BUILTIN_OPTIONS = range(5)
    COUNT = 5


class Buffer:
    """Fields of a buffer; OFFSET and SIZE name bytes behind the flatbuffer, in files beyond 2 GB."""

    DATA, OFFSET, SIZE = range(3)
    COUNT = 1


class Conv2DOptions:
    """Options of CONV_2D."""

    UNION = 1
    PADDING, STRIDE_W, STRIDE_H, ACTIVATION, DILATION_W, DILATION_H = range(6)
    COUNT = 6


class DepthwiseConv2DOptions:
    """Options of DEPTHWISE_CONV_2D."""

    UNION = 2
    PADDING, STRIDE_W, STRIDE_H, DEPTH_MULTIPLIER, ACTIVATION, DILATION_W, DILATION_H = range(7)
    COUNT = 7


class Pool2DOptions:
    """Options of both pools."""

    UNION = 5
    PADDING, STRIDE_W, STRIDE_H, FILTER_W, FILTER_H, ACTIVATION = range(6)
    COUNT = 6


class FullyConnectedOptions:
    """Options of FULLY_CONNECTED."""

    UNION = 8
    ACTIVATION, WEIGHTS_FORMAT, KEEP_NUM_DIMS = range(3)
    COUNT = 3


class AddOptions:
    """Options of ADD."""

    UNION = 11
    ACTIVATION = 0
    COUNT = 1


class ReshapeOptions:
    """Options of RESHAPE."""

    UNION = 17
    NEW_SHAPE = 0
    COUNT = 1


class PadOptions:
    """Options of PAD: none."""

    UNION = 22
    COUNT = 0


class ReducerOptions:
    """Options of MEAN."""

    UNION = 27
    KEEP_DIMS = 0
    COUNT = 1


TYPE_FLOAT32: Final = 0
TYPE_INT32: Final = 2
TYPE_INT64: Final = 4
TYPE_INT8: Final = 9
TYPE_NAMES: Final = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    5: "string",
    6: "bool",
    7: "int16",
    9: "int8",
}

PADDING_CODES: Final = {"SAME": 0, "VALID": 1}
ACTIVATION_CODES: Final = {Activation.NONE: 0, Activation.RELU: 1, Activation.RELU6: 3}

RELU6_CODE: Final = 21  # the graph says RELU with a RELU6 clamp
SOFTMAX_CODE: Final = 25
BUILTIN_CODES: Final = {
    OpKind.ADD: 0,
    OpKind.AVERAGE_POOL_2D: 1,
    OpKind.CONV_2D: 3,
    OpKind.DEPTHWISE_CONV_2D: 4,
    OpKind.FULLY_CONNECTED: 9,
    OpKind.MAX_POOL_2D: 17,
    OpKind.RELU: 19,
    OpKind.RESHAPE: 22,
    OpKind.PAD: 34,
    OpKind.MEAN: 40,
}
# Names of further builtin operators, so that a refusal can call them by name.
OTHER_OPERATORS: Final = {
    2: "CONCATENATION", 5: "DEPTH_TO_SPACE", 6: "DEQUANTIZE", 14: "LOGISTIC", 16: "LSTM", 18: "MUL", 20: "RELU_N1_TO_1",
    22: "RESHAPE", 23: "RESIZE_BILINEAR", 25: "SOFTMAX", 27: "SVDF", 28: "TANH", 32: "CUSTOM", 36: "GATHER", 39: "TRANSPOSE",
    41: "SUB", 42: "DIV", 43: "SQUEEZE", 44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 45: "STRIDED_SLICE", 47: "EXP", 49: "SPLIT",
    53: "CAST", 54: "PRELU", 55: "MAXIMUM", 56: "ARG_MAX", 57: "MINIMUM", 60: "PADV2", 65: "SLICE", 67: "TRANSPOSE_CONV",
    70: "EXPAND_DIMS", 74: "SUM", 76: "RSQRT", 77: "SHAPE", 83: "PACK", 88: "UNPACK", 97: "RESIZE_NEAREST_NEIGHBOR",
    98: "LEAKY_RELU", 99: "SQUARED_DIFFERENCE", 111: "ELU", 114: "QUANTIZE", 117: "HARD_SWISH", 126: "BATCH_MATMUL", 150: "GELU",
}  # fmt: skip
