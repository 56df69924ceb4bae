# SPDX-License-Identifier: Apache-2.0
"""What a `.tflite` file holds, read with the schema that comes with LiteRT: neither our reader nor our writer judges itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.package.graph import WEIGHTED, Activations, Graph, Quantization

# What computes in the networks of the zoo. All else moves, copies or rescales values, and costs a device memory and time.
MINIMAL_OPERATORS = frozenset(
    (
        *("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "PAD"),
        *("MEAN", "AVERAGE_POOL_2D", "MAX_POOL_2D"),
    )
)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        name: text.
        shape: as the file has it; None where it has none.
        type: of its elements, e.g. "INT8".
        scales: float32 (1,), (channels,) or (0,).
        zero_points: int64, as many.
        is_constant: whether the file holds its values.
    """

    name: str
    shape: tuple[int, ...] | None
    type: str
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int64]
    is_constant: bool

    @property
    def activation(self) -> Activations:
        """The tensor as an activation of a graph, for `quantize_values` and `dequantize_values`."""
        return Activations(self.name, self.shape or (), Quantization(self.scales, self.zero_points))


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        identifier: bytes 4 to 7.
        version: of the schema.
        operators: names, in order of execution.
        outputs: numbers of the tensors that each operator makes.
        tensors: all of them.
        input, output: the file's own.
    """

    identifier: bytes
    version: int
    operators: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]
    tensors: tuple[Tensor, ...]
    input: Tensor
    output: Tensor

    @property
    def extra_operators(self) -> dict[str, int]:
        """How often each operator occurs that is not one of MINIMAL_OPERATORS."""
        extra = [name for name in self.operators if name not in MINIMAL_OPERATORS]
        return {name: extra.count(name) for name in dict.fromkeys(extra)}


def read_content(tflite: bytes) -> Content:
    """Read a file with one subgraph."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    (graph,) = model.subgraphs
    operator_names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    type_names = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    tensors = tuple(_tensor(tensor, model, type_names) for tensor in graph.tensors)
    codes = [model.operatorCodes[operator.opcodeIndex] for operator in graph.operators]
    return Content(
        identifier=tflite[4:8],
        version=model.version,
        operators=tuple(operator_names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in codes),
        outputs=tuple(tuple(int(number) for number in operator.outputs) for operator in graph.operators),
        tensors=tensors,
        input=tensors[graph.inputs[0]],
        output=tensors[graph.outputs[0]],
    )


def _tensor(tensor: Any, model: Any, type_names: dict[int, str]) -> Tensor:  # noqa: ANN401  # generated classes without types
    record = tensor.quantization
    scales = [] if record is None or record.scale is None else record.scale
    zero_points = [] if record is None or record.zeroPoint is None else record.zeroPoint
    data = model.buffers[tensor.buffer].data
    return Tensor(
        name=(tensor.name or b"").decode(),
        shape=None if tensor.shape is None else tuple(int(size) for size in tensor.shape),
        type=type_names[tensor.type],
        scales=np.asarray(scales, np.float32),
        zero_points=np.asarray(zero_points, np.int64),
        is_constant=data is not None and len(data) > 0,
    )


def payload_bytes(graph: Graph) -> int:
    """Bytes that no int8 file can do without: weights, int32 biases, and one float32 scale for each output channel."""
    total = 0
    for op in graph.ops:
        if op.kind in WEIGHTED and op.weights is not None and op.bias is not None and op.weight_quantization is not None:
            total += op.weights.size * op.weight_bits // 8 + 4 * op.bias.size + 4 * op.weight_quantization.scale.size
    return total
