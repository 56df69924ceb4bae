# SPDX-License-Identifier: Apache-2.0
"""Models to measure or to run whole: `.tflite` files as packages, and encoders of the example models without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedmote.errors import ConfigError
from fedmote.package import tflite_reader
from fedmote.package.boards import Board
from fedmote.package.execute import observe
from fedmote.package.file import Package, build_package
from fedmote.package.geometry import output_shape
from fedmote.package.graph import Activation, Activations, Graph, HeadLayer, Op, OpKind
from fedmote.package.quantize import quantize
from fedmote.places import shared_directory

# The MLPerf Tiny models that are measured, by the names of their files.
REFERENCE_MODELS = ("kws_ref_model", "pretrainedResnet_quant", "ad01_int8")


def reference_directory() -> Path:
    """Where the MLPerf Tiny models are looked for: below FEDMOTE_SHARED, or below `shared` beside the checkout."""
    return shared_directory() / "models" / "mlperf_tiny"


def read_model(path: Path) -> bytes:
    """The bytes of a model's file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def whole_encoder(path: Path, board: Board) -> Package:
    """The package whose encoder is a whole `.tflite` file.

    Raises:
        ConfigError: the file cannot be read.
        PackageError, UnsupportedOpError: it cannot be understood.
    """
    return encoder_package(tflite_reader.read(read_model(path), path.name), board, path.stem)


def encoder_package(graph: Graph, board: Board, model_id: str) -> Package:
    """A package of an int8 encoder, with a head of zeros that nobody asks for."""
    features = math.prod(graph.activations[graph.output].shape)
    head = {"weight": np.zeros((1, features), np.float32), "bias": np.zeros(1, np.float32)}
    return build_package(None, graph, [HeadLayer("weight", "bias", features, 1)], head, {}, board, model_id, 0)


def transfer_package(board: Board, size_bytes: int) -> Package:
    """A package of about this many bytes, more than half of them a head, so that its update is large as well."""
    outputs, inputs = 10, 16
    # A feature takes its weights, bias and multipliers in the encoder, and its floats in the head.
    features = (size_bytes - 600) // (inputs + 12 + 4 * outputs)
    graph = _Chain((1, inputs)).dense(features).quantized()
    head = {"weight": np.zeros((outputs, features), np.float32), "bias": np.zeros(outputs, np.float32)}
    return build_package(None, graph, [HeadLayer("weight", "bias", features, outputs)], head, {}, board, "transfer", 0)


def example_encoders() -> dict[str, Graph]:
    """Int8 encoders of the shapes of `fedmote.lab.models`, random weights: what they cost depends on the shapes alone."""
    digits = _Chain((1, 8, 8, 1)).conv(8, (3, 3)).conv(16, (3, 3)).pool((2, 2)).conv(48, (3, 3)).pool((2, 2))
    windows = _Chain((1, 1, 128, 9))
    for outputs in (16, 32, 64):
        windows = windows.conv(outputs, (1, 5)).pool((1, 2))
    return {"digits_cnn": digits.averaged(), "har_cnn": windows.averaged(), "mobilenet_v1_025_96": mobilenet()}


def measured_models(board: Board, skipped: list[str]) -> Iterator[tuple[str, Package]]:
    """Names and packages of all models that are measured; files that are absent are named in `skipped`."""
    for name in REFERENCE_MODELS:
        path = reference_directory() / f"{name}.tflite"
        if path.is_file():
            yield name, whole_encoder(path, board)
        else:
            skipped.append(f"{name}: there is no {path}")
    for name, graph in example_encoders().items():
        yield name, encoder_package(graph, board, name)


def mobilenet() -> Graph:
    """MobileNetV1, width 0.25, 96x96x3, two classes: 27 convolutions, 7.49 M multiply-accumulates. Random weights."""
    chain = _Chain((1, 96, 96, 3), samples=2).conv(8, (3, 3), 2, Activation.RELU6)
    for stride, outputs in ((1, 16), (2, 32), (1, 32), (2, 64), (1, 64), (2, 128), *[(1, 128)] * 5, (2, 256), (1, 256)):
        chain = chain.depthwise((3, 3), stride, Activation.RELU6).conv(outputs, (1, 1), 1, Activation.RELU6)
    return chain.pool((3, 3), OpKind.AVERAGE_POOL_2D).flattened().dense(2).quantized()


@dataclass
class _Chain:
    """A float graph to which layers are appended."""

    shape: tuple[int, ...]
    ops: list[Op] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    samples: int = 16  # by which the ranges of activations are found

    def __post_init__(self) -> None:
        self.shapes["x"] = self.shape

    @property
    def last(self) -> str:
        return self.ops[-1].output if self.ops else "x"

    def conv(self, outputs: int, kernel: tuple[int, int], stride: int = 1, activation: Activation = Activation.RELU) -> _Chain:
        """SAME padding."""
        weights = self._weights((outputs, *kernel, self.shape[3]), math.prod(kernel) * self.shape[3])
        op = replace(self._op(OpKind.CONV_2D), kernel=kernel, stride=(stride, stride), padding="SAME", activation=activation)
        return self._add(replace(op, weights=weights, bias=self._bias(outputs)))

    def depthwise(self, kernel: tuple[int, int], stride: int, activation: Activation) -> _Chain:
        """SAME padding, an output for each channel."""
        weights = self._weights((1, *kernel, self.shape[3]), math.prod(kernel))
        op = replace(self._op(OpKind.DEPTHWISE_CONV_2D), kernel=kernel, stride=(stride, stride), padding="SAME")
        return self._add(replace(op, activation=activation, weights=weights, bias=self._bias(self.shape[3])))

    def pool(self, window: tuple[int, int], kind: OpKind = OpKind.MAX_POOL_2D) -> _Chain:
        """The largest or the average of each window, windows beside each other."""
        return self._add(replace(self._op(kind), kernel=window, stride=window, padding="VALID"))

    def flattened(self) -> _Chain:
        """One axis."""
        return self._add(self._op(OpKind.RESHAPE), (1, math.prod(self.shape)))

    def dense(self, outputs: int) -> _Chain:
        """Without activation."""
        weights = self._weights((outputs, self.shape[1]), self.shape[1])
        return self._add(replace(self._op(OpKind.FULLY_CONNECTED), weights=weights, bias=self._bias(outputs)))

    def averaged(self) -> Graph:
        """The finished graph: the mean over height and width of what there is, in int8."""
        return self._add(self._op(OpKind.MEAN), (1, self.shape[3])).quantized()

    def quantized(self) -> Graph:
        """The finished graph in int8."""
        graph = Graph("x", self.last, {name: Activations(name, shape) for name, shape in self.shapes.items()}, tuple(self.ops))
        return quantize(graph, observe(graph, self.rng.normal(size=(self.samples, *self.shapes["x"][1:])).astype(np.float32)))

    def _weights(self, shape: tuple[int, ...], products: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Of a size that keeps activations as large as they are, through any number of layers."""
        return self.rng.normal(0, (2.0 / products) ** 0.5, shape).astype(np.float32)

    def _bias(self, outputs: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return self.rng.normal(0, 0.1, outputs).astype(np.float32)

    def _op(self, kind: OpKind) -> Op:
        name = f"{kind.value.lower()}{len(self.ops)}"
        return Op(kind, name, (self.last,), name)

    def _add(self, op: Op, declared: tuple[int, ...] = ()) -> _Chain:
        self.shape = self.shapes[op.output] = output_shape(op, self.shapes, declared)
        self.ops.append(op)
        return self
