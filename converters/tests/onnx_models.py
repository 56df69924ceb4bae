# SPDX-License-Identifier: Apache-2.0
"""ONNX files for tests, written node by node."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fedmote_convert.bench.onnx_exports import OPSET


def node(kind: str, inputs: str, output: str = "y", **attributes) -> onnx.NodeProto:
    """A node of one output; inputs by name, "x w b", with "-" for one that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, output.split(), f"{kind.lower()}_{output.split()[0]}", **attributes)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: dict[str, np.ndarray] | None = None,
    *,
    opset: int = OPSET,
    input_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model from input x of this shape, batch included, to output y."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", input_type, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return shape_inference.infer_shapes(model, data_prop=True)  # the checker wants to know the output's shape


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def classifier(**changes: np.ndarray) -> onnx.ModelProto:
    """A sound little model, (1, 2, 4, 4) -> 3 logits; `changes` replace its constants."""
    rng = np.random.default_rng(1)
    constants = {
        "conv.weight": rng.standard_normal((3, 2, 3, 3)).astype(np.float32),
        "conv.bias": rng.standard_normal(3).astype(np.float32),
        "head.weight": rng.standard_normal((3, 3)).astype(np.float32),
        "head.bias": rng.standard_normal(3).astype(np.float32),
    }
    nodes = [
        node("Conv", "x conv.weight conv.bias", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f head.weight head.bias", "y", transB=1),
    ]
    return model_of(nodes, (1, 2, 4, 4), {**constants, **changes})
