# SPDX-License-Identifier: Apache-2.0
"""`.tflite` files in forms that this product does not write, packed by the published schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import pytest


@dataclass
class Foreign:
    """A file in the making: tensors by number, nodes in order."""

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    codes: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
        self.buffers.append(self.schema.BufferT())

    def tensor(
        self,
        shape: tuple[int, ...],
        scale: float | None = None,
        zero_point: int = 0,
        data: np.ndarray | None = None,
        dtype: str = "int8",
    ) -> int:
        """An activation, or with `data` a constant of its type."""
        schema = self.schema
        tensor = schema.TensorT()
        tensor.shape, tensor.name = list(shape), f"t{len(self.tensors)}".encode()
        tensor.type = getattr(schema.TensorType, (dtype if data is None else str(data.dtype)).upper())
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero_point]
        if data is not None:
            tensor.buffer = len(self.buffers)
            self.buffers.append(schema.BufferT())
            self.buffers[-1].data = np.frombuffer(data.tobytes(), np.uint8)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def numbers(self, *values: int, dtype: type = np.int32) -> int:
        """A constant list of integers."""
        return self.tensor((len(values),), data=np.array(values, dtype))

    def node(self, operator: str, inputs: list[int], output: int, version: int = 2, options: str = "", **values: Any) -> int:
        """Appends a node; `options` is the name of its table of options, `values` what stands there."""
        key = (operator, version)
        if key not in self.codes:
            self.codes.append(key)
        node = self.schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = self.codes.index(key), inputs, [output]
        if options:
            node.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            node.builtinOptions = getattr(self.schema, f"{options}T")()
            for name, value in values.items():
                assert hasattr(node.builtinOptions, name)
                setattr(node.builtinOptions, name, value)
        self.nodes.append(node)
        return output

    def pack(self, source: int, target: int) -> bytes:
        """The file's bytes."""
        schema = self.schema
        subgraph, model = schema.SubGraphT(), schema.ModelT()
        subgraph.tensors, subgraph.operators = self.tensors, self.nodes
        subgraph.inputs, subgraph.outputs = [source], [target]
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [subgraph], self.buffers, []
        for operator, version in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, operator)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())
