# SPDX-License-Identifier: Apache-2.0
"""Random small int8 encoders, for proofs that two implementations of their arithmetic agree in every bit.

The same seed gives the same graph. All operators, strides, padding, dilation, groups, odd shapes, weights of 4 bits, constants,
broadcasts, clamps and scales that saturate are drawn, so that a few hundred seeds meet the corner cases that a handful of real
models does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedmote.errors import ConversionError, PackageError
from fedmote.package import fixed_point
from fedmote.package.execute import observe
from fedmote.package.geometry import output_shape
from fedmote.package.graph import ELEMENTWISE, WEIGHTED, Activation, Activations, Graph, Op, OpKind, Quantization, Ranges
from fedmote.package.quantize import quantize

_CLAMPS = tuple(Activation)
_CLAMPED = (*WEIGHTED, OpKind.ADD, OpKind.MUL, OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D)
_RELUS = (Activation.RELU, Activation.RELU6)
_CHANNELS_MAX = 24  # where channels are added to


def random_graph(seed: int | Sequence[int]) -> Graph:
    """A float graph of 2 to 20 operators with random weights."""
    return _Sketch(np.random.default_rng(seed)).draw()


def random_int8_graph(seed: int) -> Graph:
    """The same, quantized with ranges observed on random samples, some of them too narrow."""
    attempt = 0
    while True:
        try:
            return _quantized(random_graph([seed, attempt]), np.random.default_rng([seed, attempt, 1]))
        except ConversionError:  # scales that the arithmetic is not defined for: another draw
            attempt += 1


def _quantized(graph: Graph, rng: np.random.Generator) -> Graph:
    x = rng.normal(rng.uniform(-1, 1), rng.uniform(0.1, 3), (24, *graph.activations[graph.input].shape[1:])).astype(np.float32)
    ranges = observe(graph, x)
    # A dead layer has a constant range, which quantize() refuses: a specimen gives it one.
    ranges = {name: (low, high if high > low else low + 1.0) for name, (low, high) in ranges.items()}
    for name, (low, high) in ranges.items():
        if rng.random() < 0.2:
            factor = rng.uniform(0.1, 1.0)
            ranges[name] = (low * factor, high * factor)
    _widen(graph, ranges)
    result = quantize(graph, ranges)
    return replace(result, ops=tuple(_varied(result, op, rng) for op in result.ops))


def _widen(graph: Graph, ranges: Ranges) -> None:
    """HARD_SWISH is not defined where its output is more than 128 times finer than its input."""
    for op in graph.ops:
        if op.kind is OpKind.HARD_SWISH:
            low, high = ranges[op.inputs[0]]
            ranges[op.output] = (min(ranges[op.output][0], low / 16), max(ranges[op.output][1], high / 16))


def _varied(graph: Graph, op: Op, rng: np.random.Generator) -> Op:
    """Forms that quantize() does not make: padding with any value, one scale for all weights."""
    if op.kind is OpKind.PAD and rng.random() < 0.3:
        return replace(op, pad_value=int(rng.integers(-128, 128)))
    if op.kind in WEIGHTED and op.weight_quantization is not None:
        # TensorFlow Lite Micro takes dense layers of 4 bits with one scale only.
        is_single = rng.random() < 0.2 or (op.kind is OpKind.FULLY_CONNECTED and op.weight_bits == 4)
        largest = op.weight_quantization.scale.max(keepdims=True)
        single = replace(op, weight_quantization=Quantization(largest, np.zeros(1, np.int64), op.weight_quantization.axis))
        try:
            fixed_point.check_op(graph, single)
        except PackageError as error:
            raise ConversionError(str(error)) from error
        return single if is_single else op
    return op


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
        for _ in range(int(self.rng.integers(1, 7))):
            self._append_image_op()
        self._append_tail()
        activations = {name: Activations(name, shape) for name, shape in self.shapes.items()}
        return Graph("x", self.head, activations, tuple(self.ops))

    def _add(self, op: Op, declared: tuple[int, ...] = ()) -> None:
        self.shapes[op.output] = output_shape(op, self.shapes, declared)
        self.ops.append(op)
        self.head = op.output

    def _op(self, kind: OpKind, inputs: tuple[str, ...] = ()) -> Op:
        activation = Activation.NONE
        if kind in _CLAMPED:
            activation = _CLAMPS[int(self.rng.integers(len(_CLAMPS)))]
        elif kind is OpKind.RELU:
            activation = _RELUS[int(self.rng.integers(len(_RELUS)))]
        name = f"{kind.value.lower()}{len(self.ops)}"
        return Op(kind, name, inputs or (self.head,), name, activation=activation)

    def _append_image_op(self) -> None:
        draws = [self._conv, self._conv, self._depthwise, self._pool, self._pad, self._residual]
        draws += [self._function, self._function, self._softmax, self._constant, self._gate, self._concatenate]
        draws += [self._slice, self._transpose, self._dense_rows, self._repeat]
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
        return {"weights": weights, "bias": bias, "weight_bits": 4 if self.rng.random() < 0.2 else 8}

    def _conv(self) -> None:
        op = self._op(OpKind.CONV_2D)
        window = self._window(op)
        channels = self.shapes[self.head][3]
        divisors = [count for count in range(1, channels + 1) if channels % count == 0]
        groups = divisors[int(self.rng.integers(len(divisors)))] if self.rng.random() < 0.4 else 1
        outputs = groups * int(self.rng.integers(1, 10 if groups == 1 else 4))
        shape = (outputs, *window["kernel"], channels // groups)  # type: ignore[misc]
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

    def _function(self) -> None:
        op = self._op(ELEMENTWISE[int(self.rng.integers(len(ELEMENTWISE)))])
        self._add(_with(op, alpha=float(np.float32(self.rng.uniform(-0.5, 1.5)))) if op.kind is OpKind.LEAKY_RELU else op)

    def _softmax(self) -> None:
        self._add(_with(self._op(OpKind.SOFTMAX), beta=float(np.float32(self.rng.choice([0.5, 1.0, 2.0])))))

    def _constant(self) -> None:
        """A sum or product with a constant that repeats along any axes."""
        shape = self.shapes[self.head]
        own = tuple(size if self.rng.random() < 0.6 else 1 for size in shape)[int(self.rng.integers(0, 4)) :]
        op = self._op(OpKind.ADD if self.rng.random() < 0.5 else OpKind.MUL)
        self._add(_with(op, constant=self.rng.normal(0.3, 1, own).astype(np.float32)))

    def _gate(self) -> None:
        """Means of the channels, through a dense layer and LOGISTIC, multiply or add to them, as attention blocks do."""
        trunk = self.head
        channels = self.shapes[trunk][3]
        self._add(self._op(OpKind.MEAN), (1, 1, 1, channels) if self.rng.random() < 0.5 else (1, channels))
        if len(self.shapes[self.head]) == 2:
            op = _with(self._op(OpKind.FULLY_CONNECTED), **self._weights((channels, channels), channels))
        else:
            op = _with(self._op(OpKind.CONV_2D), **self._weights((channels, 1, 1, channels), channels))
        self._add(op)
        self._add(self._op(OpKind.LOGISTIC))
        self._add(self._op(OpKind.MUL if self.rng.random() < 0.7 else OpKind.ADD, (trunk, self.head)))

    def _repeat(self) -> None:
        """A map of one channel that is repeated over all and multiplied with them."""
        trunk = self.head
        channels = self.shapes[trunk][3]
        self._add(_with(self._op(OpKind.CONV_2D), **self._weights((1, 1, 1, channels), 1)))
        self._add(self._op(OpKind.BROADCAST_TO), self.shapes[trunk])
        self._add(self._op(OpKind.MUL, (trunk, self.head) if self.rng.random() < 0.5 else (self.head, trunk)))

    def _concatenate(self) -> None:
        trunk = self.head
        axis = int(self.rng.integers(1, 4))
        if self.shapes[trunk][axis] * 2 > _CHANNELS_MAX:
            return self._function()
        self._function()
        inputs = (trunk, self.head) if self.rng.random() < 0.5 else (self.head, trunk, trunk)
        return self._add(_with(self._op(OpKind.CONCATENATION, inputs), axis=axis))

    def _slice(self) -> None:
        starts, steps, lengths = [0], [1], [1]
        for size in self.shapes[self.head][1:]:
            first, last = sorted(int(index) for index in self.rng.integers(0, size, 2))
            step = int(self.rng.integers(1, 3)) if last > first else 1
            length = (last - first) // step + 1
            step = step if length > 1 else 1
            is_reversed = self.rng.random() < 0.3 and length > 1
            starts.append(first + (length - 1) * step if is_reversed else first)
            steps.append(-step if is_reversed else step)
            lengths.append(length)
        if tuple(lengths) == self.shapes[self.head] and min(steps) > 0:
            return self._pad()  # all of it: no slice
        op = _with(self._op(OpKind.STRIDED_SLICE), starts=tuple(starts), steps=tuple(steps))
        return self._add(op, tuple(lengths))

    def _transpose(self) -> None:
        permutation = (0, *(int(axis) + 1 for axis in self.rng.permutation(3)))
        long = [axis for axis in permutation if self.shapes[self.head][axis] > 1]
        if long == sorted(long):
            return self._pad()  # no value moves: no transposition
        return self._add(_with(self._op(OpKind.TRANSPOSE), permutation=permutation))

    def _dense_rows(self) -> None:
        """A dense layer of each pixel."""
        _, height, width, channels = self.shapes[self.head]
        self._add(self._op(OpKind.RESHAPE), (1, height * width, channels))
        outputs = int(self.rng.integers(1, 12))
        op = _with(self._op(OpKind.FULLY_CONNECTED), **self._weights((outputs, channels), outputs))
        self._add(op, (1, height * width, outputs))
        self._add(self._op(OpKind.RESHAPE), (1, height, width, outputs))

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
            if self.rng.random() < 0.3:
                self._softmax()


def _with(op: Op, **fields: object) -> Op:
    return Op(**{**vars(op), **fields})
