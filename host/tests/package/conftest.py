# SPDX-License-Identifier: Apache-2.0
"""A small model with every kind of layer that a template can name, judges, and the reference models."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmote.package.boards import Board
from fedmote.package.execute import observe
from fedmote.package.file import Package
from fedmote.package.fold import bind
from fedmote.package.graph import Activation, Activations, BatchNormRef, Graph, HeadLayer, Op, OpKind, Ranges, Tensors, WeightRef
from fedmote.package.partition import assemble

SHARED = Path(os.environ.get("FEDMOTE_SHARED", Path(__file__).resolve().parents[4] / "shared"))
HEAD = (HeadLayer("head.weight", "head.bias", 16, 10),)


@pytest.fixture(scope="session")
def reference_models() -> Path:
    folder = SHARED / "models" / "mlperf_tiny"
    if not folder.is_dir():
        pytest.skip(f"the MLPerf Tiny models are not at {folder} (FEDMOTE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def run_tflm() -> Callable[[bytes, np.ndarray], np.ndarray]:
    """Outputs int8 (N, ...) of TensorFlow Lite Micro's own interpreter."""
    runtime = pytest.importorskip("tflite_micro").runtime

    def run(model: bytes, x: np.ndarray) -> np.ndarray:
        interpreter = runtime.Interpreter.from_bytes(model)
        outputs = []
        for sample in x:
            interpreter.set_input(sample[None], 0)
            interpreter.invoke()
            outputs.append(interpreter.get_output(0).copy())
        return np.concatenate(outputs)

    return run


@pytest.fixture(scope="session")
def run_litert() -> Callable[[bytes, np.ndarray], np.ndarray]:
    """Outputs int8 (N, ...) of LiteRT's reference kernels."""
    module = pytest.importorskip("ai_edge_litert.interpreter")

    def run(model: bytes, x: np.ndarray) -> np.ndarray:
        interpreter = module.Interpreter(
            model_content=model, experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF, num_threads=1
        )
        interpreter.allocate_tensors()
        outputs = []
        for sample in x:
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[None])
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
        return np.concatenate(outputs)

    return run


def _template() -> Graph:
    shapes = {
        "x": (1, 8, 8, 1),
        "c": (1, 8, 8, 8),
        "p": (1, 4, 4, 8),
        "d": (1, 4, 4, 8),
        "s": (1, 4, 4, 8),
        "m": (1, 8),
        "f": (1, 16),
    }
    norm = BatchNormRef("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", 1e-5)
    conv = WeightRef("conv.weight", None, (norm,))
    depthwise = WeightRef("depthwise.weight", "depthwise.bias", layout="depthwise2d")
    dense = WeightRef("dense.weight", "dense.bias", layout="linear")
    ops = (
        Op(OpKind.CONV_2D, "conv", ("x",), "c", activation=Activation.RELU, padding="SAME", kernel=(3, 3), source=conv),
        Op(OpKind.MAX_POOL_2D, "pool", ("c",), "p", stride=(2, 2), kernel=(2, 2)),
        Op(OpKind.DEPTHWISE_CONV_2D, "depthwise", ("p",), "d", padding="SAME", kernel=(3, 3), source=depthwise),
        Op(OpKind.ADD, "add", ("p", "d"), "s", activation=Activation.RELU6),
        Op(OpKind.MEAN, "mean", ("s",), "m"),
        Op(OpKind.FULLY_CONNECTED, "dense", ("m",), "f", activation=Activation.RELU, source=dense),
    )
    return Graph("x", "f", {name: Activations(name, shape) for name, shape in shapes.items()}, ops)


@pytest.fixture(scope="session")
def template() -> Graph:
    return _template()


def random_tensors(seed: int) -> Tensors:
    """A checkpoint of the template and a head of 10 classes."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv.weight": (8, 1, 3, 3),
        **{f"norm.{name}": (8,) for name in ("weight", "bias", "running_mean", "running_var")},
        "depthwise.weight": (8, 1, 3, 3),
        "depthwise.bias": (8,),
        "dense.weight": (16, 8),
        "dense.bias": (16,),
        "head.weight": (10, 16),
        "head.bias": (10,),
    }
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["norm.running_var"] = np.abs(tensors["norm.running_var"]) + np.float32(0.1)
    return tensors


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[int], Tensors]:
    return random_tensors


@pytest.fixture(scope="session")
def samples() -> np.ndarray:
    """Torch layout (N, C, H, W)."""
    return np.random.default_rng(0).normal(size=(50, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="session")
def ranges_of(samples: np.ndarray) -> Callable[[Tensors], Ranges]:
    return lambda tensors: observe(bind(_template(), tensors), samples.transpose(0, 2, 3, 1))


@pytest.fixture(scope="session")
def boards() -> list[Board]:
    return [Board.load("posix"), Board.load("stm32f405")]


@pytest.fixture(scope="session")
def convert(boards: list[Board]) -> Callable[..., dict[str, Package]]:
    """A full conversion of the template: (tensors, ranges, version) -> packages by board."""

    def run(tensors: Tensors, ranges: Ranges, version: int) -> dict[str, Package]:
        return assemble(_template(), HEAD, tensors, ranges, boards, "specimen", version, "nchw")

    return run


@pytest.fixture(scope="session")
def packages(convert: Callable[..., dict[str, Package]], ranges_of: Callable[[Tensors], Ranges]) -> dict[str, Package]:
    tensors = random_tensors(1)
    return convert(tensors, ranges_of(tensors), 1)
