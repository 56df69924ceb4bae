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


class MulOptions:
    """Options of MUL."""

    UNION = 21
    ACTIVATION = 0
    COUNT = 1


class ConcatenationOptions:
    """Options of CONCATENATION."""

    UNION = 10
    AXIS, ACTIVATION = range(2)
    COUNT = 2


class SoftmaxOptions:
    """Options of SOFTMAX."""

    UNION = 9
    BETA = 0
    COUNT = 1


class LeakyReluOptions:
    """Options of LEAKY_RELU."""

    UNION = 75
    ALPHA = 0
    COUNT = 1


class StridedSliceOptions:
    """Options of STRIDED_SLICE; masks have a bit for each axis."""

    UNION = 32
    BEGIN_MASK, END_MASK, ELLIPSIS_MASK, NEW_AXIS_MASK, SHRINK_AXIS_MASK, OFFSET = range(6)
    COUNT = 6


class TransposeOptions:
    """Options of TRANSPOSE: none."""

    UNION = 26
    COUNT = 0


class QuantizeOptions:
    """Options of QUANTIZE: none."""

    UNION = 89
    COUNT = 0


class HardSwishOptions:
    """Options of HARD_SWISH: none."""

    UNION = 91
    COUNT = 0


class BroadcastToOptions:
    """Options of BROADCAST_TO: none."""

    UNION = 104
    COUNT = 0


class PadV2Options:
    """Options of PADV2: none."""

    UNION = 43
    COUNT = 0


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
TYPE_UINT8: Final = 3
TYPE_INT64: Final = 4
TYPE_INT8: Final = 9
TYPE_INT4: Final = 17  # two to a byte, the first in the low half
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
    17: "int4",
}

PADDING_CODES: Final = {"SAME": 0, "VALID": 1}
ACTIVATION_CODES: Final = {Activation.NONE: 0, Activation.RELU: 1, Activation.RELU_N1_TO_1: 2, Activation.RELU6: 3}
ACTIVATION_NAMES: Final = {4: "TANH", 5: "SIGN_BIT"}  # those that are not supported

BUILTIN_CODES: Final = {
    OpKind.ADD: 0,
    OpKind.AVERAGE_POOL_2D: 1,
    OpKind.CONCATENATION: 2,
    OpKind.CONV_2D: 3,
    OpKind.DEPTHWISE_CONV_2D: 4,
    OpKind.FULLY_CONNECTED: 9,
    OpKind.LOGISTIC: 14,
    OpKind.MAX_POOL_2D: 17,
    OpKind.MUL: 18,
    OpKind.RELU: 19,
    OpKind.RESHAPE: 22,
    OpKind.SOFTMAX: 25,
    OpKind.TANH: 28,
    OpKind.PAD: 34,
    OpKind.TRANSPOSE: 39,
    OpKind.MEAN: 40,
    OpKind.STRIDED_SLICE: 45,
    OpKind.LEAKY_RELU: 98,
    OpKind.QUANTIZE: 114,
    OpKind.HARD_SWISH: 117,
    OpKind.BROADCAST_TO: 130,
}
SOFTMAX_CODE: Final = BUILTIN_CODES[OpKind.SOFTMAX]
QUANTIZE_CODE: Final = BUILTIN_CODES[OpKind.QUANTIZE]
DEQUANTIZE_CODE: Final = 6
# Operators that are another form of one of the graph's.
RELU_N1_TO_1_CODE, RELU6_CODE, SQUEEZE_CODE, PADV2_CODE, SLICE_CODE, EXPAND_DIMS_CODE = 20, 21, 43, 60, 65, 70
OTHER_FORMS: Final = {
    RELU_N1_TO_1_CODE: (OpKind.RELU, "RELU_N1_TO_1"),
    RELU6_CODE: (OpKind.RELU, "RELU6"),
    SQUEEZE_CODE: (OpKind.RESHAPE, "SQUEEZE"),
    PADV2_CODE: (OpKind.PAD, "PADV2"),
    SLICE_CODE: (OpKind.STRIDED_SLICE, "SLICE"),
    EXPAND_DIMS_CODE: (OpKind.RESHAPE, "EXPAND_DIMS"),
}
# Names of further builtin operators, so that a refusal can call them by name.
OTHER_OPERATORS: Final = {
    5: "DEPTH_TO_SPACE", 6: "DEQUANTIZE", 8: "FLOOR", 11: "L2_NORMALIZATION", 12: "L2_POOL_2D", 16: "LSTM",
    23: "RESIZE_BILINEAR", 24: "RNN", 26: "SPACE_TO_DEPTH", 27: "SVDF", 32: "CUSTOM", 36: "GATHER", 37: "BATCH_TO_SPACE_ND",
    38: "SPACE_TO_BATCH_ND", 41: "SUB", 42: "DIV", 44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 47: "EXP", 49: "SPLIT", 50: "LOG_SOFTMAX",
    53: "CAST", 54: "PRELU", 55: "MAXIMUM", 56: "ARG_MAX", 57: "MINIMUM", 59: "NEG", 67: "TRANSPOSE_CONV", 69: "TILE",
    74: "SUM", 75: "SQRT", 76: "RSQRT", 77: "SHAPE", 82: "REDUCE_MAX", 83: "PACK", 88: "UNPACK", 97: "RESIZE_NEAREST_NEIGHBOR",
    99: "SQUARED_DIFFERENCE", 100: "MIRROR_PAD", 101: "ABS", 102: "SPLIT_V", 111: "ELU", 126: "BATCH_MATMUL", 150: "GELU",
}  # fmt: skip
