# SPDX-License-Identifier: Apache-2.0
"""Random small int8 encoders, for proofs that two implementations of their arithmetic agree in every bit.

The same seed gives the same graph. Operators, strides, padding, dilation, odd shapes, residual additions and clamps are
drawn, so that a few hundred seeds meet the corner cases that a handful of real models does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedmote.package.execute import observe
from fedmote.package.geometry import output_shape
from fedmote.package.graph import Activation, Activations, Graph, Op, OpKind
from fedmote.package.quantize import quantize

_CLAMPS = (Activation.NONE, Activation.RELU, Activation.RELU6)


def random_graph(seed: int) -> Graph:
    """A float graph of 2 to 8 operators with random weights."""
    return _Sketch(np.random.default_rng(seed)).draw()


def random_int8_graph(seed: int) -> Graph:
    """The same, quantized with ranges observed on random samples."""
    graph = random_graph(seed)
    rng = np.random.default_rng([seed, 1])
    x = rng.normal(rng.uniform(-1, 1), rng.uniform(0.1, 3), (24, *graph.activations[graph.input].shape[1:])).astype(np.float32)
    ranges = observe(graph, x)
    # A dead layer has a constant range, which quantize() refuses: a specimen gives it one.
    ranges = {name: (low, high if high > low else low + 1.0) for name, (low, high) in ranges.items()}
    return quantize(graph, ranges)


def wide_int8_graph(seed: int) -> Graph:
    """An int8 graph of three convolutions with many channels over few pixels: sums longer than any kernel does at once."""
    rng = np.random.default_rng([seed, 3])
    sketch = _Sketch(rng)
    sketch.shapes["x"] = (1, int(rng.integers(5, 9)), int(rng.integers(1, 6)), int(rng.integers(40, 80)))
    for index in range(3):
        channels = sketch.shapes[sketch.head][3]
        is_depthwise = bool(index == 1 and rng.random() < 0.5)
        op = sketch._op(OpKind.DEPTHWISE_CONV_2D if is_depthwise else OpKind.CONV_2D)
        outputs = channels if is_depthwise else int(rng.integers(1, 100))
        shape = (1, 3, 3, outputs) if is_depthwise else (outputs, 3, 3, channels)
        sketch._add(_with(op, padding="SAME", kernel=(3, 3), **_bounded_weights(rng, shape, outputs)))
    activations = {name: Activations(name, shape) for name, shape in sketch.shapes.items()}
    graph = Graph("x", sketch.head, activations, tuple(sketch.ops))
    x = rng.normal(0, 1, (8, *graph.activations["x"].shape[1:])).astype(np.float32)
    ranges = {name: (low, high if high > low else low + 1.0) for name, (low, high) in observe(graph, x).items()}
    return quantize(graph, ranges)


def _bounded_weights(rng: np.random.Generator, shape: tuple[int, ...], outputs: int) -> dict[str, object]:
    """Weights that keep activations about as large as they are."""
    weights = rng.normal(0, (shape[0] * outputs / np.prod(shape)) ** 0.5, shape).astype(np.float32)
    return {"weights": weights, "bias": rng.normal(0, 0.5, outputs).astype(np.float32)}


def random_samples(graph: Graph, count: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    """Uniform int8 samples (count, ...) of the graph's input shape, the extremes included."""
    shape = (count, *graph.activations[graph.input].shape[1:])
    x = np.random.default_rng([seed, 2]).integers(-128, 128, shape).astype(np.int8)
    if count >= 2:
        x[0], x[1] = -128, 127
    return x


@dataclass
class _Sketch:
    """A graph while operators are appended to it."""

    rng: np.random.Generator
    ops: list[Op] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    head: str = "x"

    def draw(self) -> Graph:
        height, width = (int(size) for size in self.rng.integers(1, 14, 2))
        self.shapes["x"] = (1, height, width, int(self.rng.integers(1, 9)))
        for _ in range(int(self.rng.integers(1, 6))):
            self._append_image_op()
        self._append_tail()
        activations = {name: Activations(name, shape) for name, shape in self.shapes.items()}
        return Graph("x", self.head, activations, tuple(self.ops))

    def _add(self, op: Op, declared: tuple[int, ...] = ()) -> None:
        self.shapes[op.output] = output_shape(op, self.shapes, declared)
        self.ops.append(op)
        self.head = op.output

    def _op(self, kind: OpKind, inputs: tuple[str, ...] = ()) -> Op:
        activation = (
            _CLAMPS[int(self.rng.integers(3))] if kind not in (OpKind.PAD, OpKind.MEAN, OpKind.RESHAPE) else Activation.NONE
        )
        if kind is OpKind.RELU and activation is Activation.NONE:
            activation = Activation.RELU
        name = f"{kind.value.lower()}{len(self.ops)}"
        return Op(kind, name, inputs or (self.head,), name, activation=activation)

    def _append_image_op(self) -> None:
        draws = [self._conv, self._conv, self._depthwise, self._pool, self._pad, self._residual, self._relu]
        draws[int(self.rng.integers(len(draws)))]()

    def _window(self, op: Op) -> dict[str, object]:
        """Random kernel, stride, dilation and padding that suit the current image."""
        _, height, width, _ = self.shapes[self.head]
        padding = "SAME" if self.rng.random() < 0.5 else "VALID"
        kernel = tuple(int(self.rng.integers(1, min(size, 5) + 1)) for size in (height, width))
        is_dilated = op.kind in (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D) and self.rng.random() < 0.2
        dilation = (2, 2) if is_dilated and all((k - 1) * 2 < s for k, s in zip(kernel, (height, width), strict=True)) else (1, 1)
        stride = (1, 1) if dilation != (1, 1) else tuple(int(s) for s in self.rng.integers(1, 4, 2))
        if op.kind is OpKind.DEPTHWISE_CONV_2D:
            stride = (stride[0], stride[0])  # TensorFlow Lite's own restriction
        return {"padding": padding, "kernel": kernel, "stride": stride, "dilation": dilation}

    def _weights(self, shape: tuple[int, ...], outputs: int) -> dict[str, object]:
        weights = self.rng.normal(0, self.rng.uniform(0.05, 1), shape).astype(np.float32)
        bias = self.rng.normal(0, 0.5, outputs).astype(np.float32)
        if self.rng.random() < 0.2:  # one dead channel, as batch normalisation leaves them
            weights[(..., 0) if len(shape) == 4 and shape[0] == 1 and shape[3] == outputs else 0] = 0
        return {"weights": weights, "bias": bias}

    def _conv(self) -> None:
        op = self._op(OpKind.CONV_2D)
        window = self._window(op)
        outputs = int(self.rng.integers(1, 10))
        shape = (outputs, *window["kernel"], self.shapes[self.head][3])  # type: ignore[misc]
        self._add(_with(op, **window, **self._weights(shape, outputs)))

    def _depthwise(self) -> None:
        op = self._op(OpKind.DEPTHWISE_CONV_2D)
        window = self._window(op)
        multiplier = int(self.rng.integers(1, 4))
        outputs = self.shapes[self.head][3] * multiplier
        shape = (1, *window["kernel"], outputs)  # type: ignore[misc]
        self._add(_with(op, **window, depth_multiplier=multiplier, **self._weights(shape, outputs)))

    def _pool(self) -> None:
        op = self._op(OpKind.AVERAGE_POOL_2D if self.rng.random() < 0.5 else OpKind.MAX_POOL_2D)
        self._add(_with(op, **self._window(op)))

    def _pad(self) -> None:
        pads = tuple(int(pad) for pad in self.rng.integers(0, 3, 4))
        self._add(_with(self._op(OpKind.PAD), pads=pads))

    def _relu(self) -> None:
        self._add(self._op(OpKind.RELU))

    def _residual(self) -> None:
        """A same-size depthwise branch that is added to its own input."""
        trunk = self.head
        branch = self._op(OpKind.DEPTHWISE_CONV_2D)
        channels = self.shapes[trunk][3]
        self._add(_with(branch, padding="SAME", kernel=(3, 3), **self._weights((1, 3, 3, channels), channels)))
        self._add(self._op(OpKind.ADD, (trunk, self.head) if self.rng.random() < 0.5 else (self.head, trunk)))

    def _append_tail(self) -> None:
        choice = self.rng.random()
        shape = self.shapes[self.head]
        if choice < 0.4:
            keep = self.rng.random() < 0.5
            self._add(self._op(OpKind.MEAN), (1, 1, 1, shape[3]) if keep else (1, shape[3]))
        elif choice < 0.8:
            self._add(self._op(OpKind.RESHAPE), (1, int(np.prod(shape))))
            outputs = int(self.rng.integers(1, 12))
            op = self._op(OpKind.FULLY_CONNECTED)
            self._add(_with(op, **self._weights((outputs, self.shapes[self.head][1]), outputs)))


def _with(op: Op, **fields: object) -> Op:
    return Op(**{**vars(op), **fields})
