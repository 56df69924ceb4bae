# SPDX-License-Identifier: Apache-2.0
"""Int8 graphs of many operators side by side, whose instructions are counted to find out what a kernel's loops cost.

Each operator reads a piece of the input in a quantization of its own and nobody reads its output, so that operators of any shape
stand in one package and one start of a board counts hundreds. Shapes are drawn from the ranges that mobile and sensor networks
use, spread evenly over the logarithm of their sizes, odd numbers of channels, all paddings, dilation and groups among them: what
makes a kernel take another path or leaves a rest. Some outputs are so fine that sums are moved to the left. The same board gives
the same graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedmote.errors import ConversionError
from fedmote.package.boards import Board
from fedmote.package.geometry import output_shape
from fedmote.package.graph import Activation, Activations, Graph, Op, OpKind
from fedmote.package.quantize import is_tied, quantize

Shape = tuple[int, ...]

_RECORDS = 160  # of a graph, and some of the last operator: bench.h has words for 178
_WEIGHT_BYTES = 200_000  # of a graph
_TENSOR_BYTES = 12_288  # of an operator's input or output
_MACS = 300_000  # of an operator
_ATTEMPTS = 1000  # at an operator
_CHANNELS = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    12,
    13,
    16,
    18,
    20,
    24,
    27,
    32,
    36,
    40,
    48,
    56,
    64,
    72,
    80,
    96,
    112,
    128,
    160,
    200,
    256,
)
_KERNELS = ((1, 1), (3, 3), (1, 1), (3, 3), (5, 5), (1, 3), (1, 5), (3, 1), (2, 2), (4, 4), (10, 4), (1, 8), (7, 7), (6, 1))
_CLAMPS = (Activation.NONE, Activation.RELU, Activation.RELU6)
_ELEMENT_COUNTS = (1, 3, 10, 64, 65, 200, 500, 1000, 2048, 3001, 6000)


@dataclass(frozen=True)
class _Limits:
    """What an operator and a graph may take."""

    tensor_bytes: int
    weight_bytes: int

    @classmethod
    def of(cls, board: Board) -> _Limits:
        """So that the input, an operator's piece of it, its own quantization of this, another operand and an output fit."""
        return cls(
            min(_TENSOR_BYTES, (board.run_arena_bytes - 1024) // 6 // 16 * 16),
            min(_WEIGHT_BYTES, board.region("package").bytes // 3),
        )


def probe_graphs(board: Board, count: int) -> list[Graph]:
    """Graphs of `count` operators of each kind, of shapes that fit a board."""
    limits = _Limits.of(board)
    canvas = _Canvas(limits, np.random.default_rng(0))
    graphs = []
    for _ in range(count):
        for kind in _KINDS:
            if canvas.is_full:
                graphs.append(canvas.graph())
                canvas = _Canvas(limits, canvas.rng)
            canvas.draw(kind)
    return [*graphs, canvas.graph()]


@dataclass
class _Canvas:
    """A float graph, and ranges, while operators are put beside each other."""

    limits: _Limits
    rng: np.random.Generator
    ops: list[Op] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    weight_bytes: int = 0

    def __post_init__(self) -> None:
        self.shapes["x"] = (1, self.limits.tensor_bytes)
        self.ranges["x"] = (-1.0, 1.0)

    @property
    def is_full(self) -> bool:
        records = sum(op.kind is not OpKind.RESHAPE for op in self.ops)
        return records >= _RECORDS or self.weight_bytes >= self.limits.weight_bytes

    def draw(self, kind: Callable[[_Canvas], None]) -> None:
        """Draws an operator until its shapes are within the limits and its numbers ones that int8 arithmetic is defined for."""
        for _ in range(_ATTEMPTS):
            saved = len(self.ops), dict(self.shapes), dict(self.ranges), self.weight_bytes
            try:
                kind(self)
                quantize(self._float(self.ops[saved[0] :]), self.ranges)
                return
            except ConversionError:
                del self.ops[saved[0] :]
                _, self.shapes, self.ranges, self.weight_bytes = saved
        raise RuntimeError(f"{kind} was not drawn in {_ATTEMPTS} attempts")

    def graph(self) -> Graph:
        """The graph in int8."""
        return quantize(self._float(self.ops), self.ranges)

    def _float(self, ops: list[Op]) -> Graph:
        activations = {name: Activations(name, shape) for name, shape in self.shapes.items()}
        return Graph("x", ops[-1].output, activations, tuple(ops))

    def source(self, shape: Shape, *, scale: float = 1.0) -> str:
        """A piece of the input in a quantization of its own."""
        count = math.prod(shape)
        if count >= self.limits.tensor_bytes:
            raise ConversionError(f"{shape} is too large for a probe")
        piece = self.add(OpKind.STRIDED_SLICE, ("x",), {"starts": (0, 0), "steps": (1, 1)}, declared=(1, count))
        image = self.add(OpKind.RESHAPE, (piece,), {}, declared=shape)
        return self.add(OpKind.QUANTIZE, (image,), {}, reach=scale * float(self.rng.uniform(0.5, 2.0)))

    def add(
        self, kind: OpKind, inputs: tuple[str, ...], fields: Mapping[str, object], declared: Shape = (), reach: float = 1.0
    ) -> str:
        """Appends an operator whose output lies within about [-reach, reach]; returns the name of the output."""
        name = f"{kind.value.lower()}{len(self.ops)}"
        op = Op(**{**vars(Op(kind, name, inputs, name)), **fields})
        self.shapes[name] = output_shape(op, self.shapes, declared)
        if math.prod(self.shapes[name]) > self.limits.tensor_bytes:
            raise ConversionError(f"{self.shapes[name]} is too large for a probe")
        if not is_tied(op):
            # A clamp has an effect only where the range goes beyond it.
            is_clamped = op.activation is not Activation.NONE and self.rng.random() < 0.7
            low = 0.0 if is_clamped else -reach * float(self.rng.uniform(0.3, 1.0))
            self.ranges[name] = (low, reach)
        self.ops.append(op)
        return name

    def add_weighted(self, kind: OpKind, source: str, shape: Shape, outputs: int, fields: Mapping[str, object]) -> None:
        """A weighted operator with random weights; one in eight has outputs so fine that sums move to the left."""
        products = math.prod(shape) // outputs
        is_fine = self.rng.random() < 0.125
        if math.prod(shape) > self.limits.weight_bytes // 8:
            raise ConversionError(f"{shape} is too large for a probe")
        weights = self.rng.normal(0, products**-0.5, shape).astype(np.float32)
        bias = self.rng.normal(0, 0.1, outputs).astype(np.float32)
        fields = {"activation": self.clamp(), "weights": weights, "bias": bias, **fields}
        output = self.add(kind, (source,), fields, reach=0.01 if is_fine else 3.0)
        if products * math.prod(self.shapes[output]) > _MACS:
            raise ConversionError(f"{shape} takes too long for a probe")
        self.weight_bytes += math.prod(shape)

    def one_of(self, choices: tuple[int, ...]) -> int:
        return choices[int(self.rng.integers(len(choices)))]

    def size(self, low: int, high: int) -> int:
        """Drawn evenly over the logarithm."""
        return round(math.exp(self.rng.uniform(math.log(low), math.log(high))))

    def clamp(self) -> Activation:
        return _CLAMPS[int(self.rng.integers(len(_CLAMPS)))]

    def image(self, most: int = 24) -> Shape:
        """Height, width and channels of an image."""
        height = 1 if self.rng.random() < 0.2 else self.size(1, most)
        width = self.size(2, 8 * most) if height == 1 else self.size(1, most)
        return (1, height, width, self.one_of(_CHANNELS))

    def window(self, kernels: tuple[tuple[int, int], ...] = _KERNELS) -> dict[str, object]:
        kernel = kernels[int(self.rng.integers(len(kernels)))]
        stride = self.one_of((1, 1, 2))
        dilation = 2 if stride == 1 and self.rng.random() < 0.1 else 1
        padding = "SAME" if self.rng.random() < 0.6 else "VALID"
        return {"kernel": kernel, "stride": (stride, stride), "dilation": (dilation, dilation), "padding": padding}


def _conv(canvas: _Canvas, bits: int = 8) -> None:
    image, window = canvas.image(), canvas.window()
    groups = canvas.one_of((1, 1, 1, 1, 1, 2, 4))
    outputs = canvas.one_of(_CHANNELS)
    if image[3] % groups or outputs % groups:
        raise ConversionError("groups of unequal size")
    shape = (outputs, *window["kernel"], image[3] // groups)  # type: ignore[misc]
    canvas.add_weighted(OpKind.CONV_2D, canvas.source(image), shape, outputs, {"weight_bits": bits, **window})


def _depthwise(canvas: _Canvas, bits: int = 8) -> None:
    image, window = canvas.image(), canvas.window(((3, 3), (3, 3), (3, 3), *_KERNELS))
    multiplier = canvas.one_of((1, 1, 1, 1, 1, 2, 3))
    outputs = image[3] * multiplier
    shape = (1, *window["kernel"], outputs)  # type: ignore[misc]
    source = canvas.source(image)
    fields = {"depth_multiplier": multiplier, "weight_bits": bits, **window}
    canvas.add_weighted(OpKind.DEPTHWISE_CONV_2D, source, shape, outputs, fields)


def _dense(canvas: _Canvas, bits: int = 8) -> None:
    inputs, outputs = canvas.size(1, 1400), canvas.size(1, 200)
    source = canvas.source((1, inputs))
    canvas.add_weighted(OpKind.FULLY_CONNECTED, source, (outputs, inputs), outputs, {"weight_bits": bits})


def _pool(canvas: _Canvas) -> None:
    kind = OpKind.AVERAGE_POOL_2D if canvas.rng.random() < 0.5 else OpKind.MAX_POOL_2D
    window = canvas.window(((2, 2), (2, 2), (3, 3), (1, 2), (1, 4), (2, 1), (4, 4), (6, 6), (5, 25), (17, 17)))
    canvas.add(kind, (canvas.source(canvas.image()),), window | {"dilation": (1, 1), "activation": canvas.clamp()})


def _binary(canvas: _Canvas) -> None:
    """Sums and products of two activations, of one that repeats, of a constant, of scales near and far from each other."""
    kind = OpKind.ADD if canvas.rng.random() < 0.6 else OpKind.MUL
    image = (1, 1, canvas.one_of(_ELEMENT_COUNTS), canvas.one_of((1, 2, 3, 8, 16, 40)))
    first = canvas.source(image)
    reach = 0.1 if canvas.rng.random() < 0.1 else float(canvas.one_of((1, 2, 4)))
    form = canvas.rng.random()
    second = (1, 1, 1, image[3]) if 0.5 < form < 0.7 else image
    if form < 0.7:
        inputs = first, canvas.source(second, scale=canvas.one_of((1, 4)))
        canvas.add(kind, inputs, {"activation": canvas.clamp()}, reach=reach)
    else:
        constant = canvas.rng.normal(0, 1, image[3:]).astype(np.float32)
        canvas.add(kind, (first,), {"constant": constant, "activation": canvas.clamp()}, reach=reach)


def _mean(canvas: _Canvas) -> None:
    image = canvas.image()
    reach = 0.1 if canvas.rng.random() < 0.2 else 2.0
    canvas.add(OpKind.MEAN, (canvas.source(image),), {}, declared=(1, image[3]), reach=reach)


def _pad(canvas: _Canvas) -> None:
    pads = tuple(int(pad) for pad in canvas.rng.integers(0, 4, 4))
    canvas.add(OpKind.PAD, (canvas.source(canvas.image()),), {"pads": pads})


def _softmax(canvas: _Canvas) -> None:
    source = canvas.source((1, 1, canvas.one_of((1, 1, 1, 5, 20)), canvas.size(2, 200)), scale=canvas.one_of((1, 4, 16)))
    canvas.add(OpKind.SOFTMAX, (source,), {})


def _copy(canvas: _Canvas) -> None:
    """Concatenations, transpositions, slices and repetitions."""
    form, image = canvas.rng.random(), canvas.image(12)
    source = canvas.source(image)
    if form < 0.3:
        canvas.add(OpKind.CONCATENATION, (source, source), {"axis": int(canvas.rng.integers(1, 4))})
    elif form < 0.6:
        permutation = (0, *(int(axis) + 1 for axis in canvas.rng.permutation(3)))
        long = [axis for axis in permutation if image[axis] > 1]
        if long == sorted(long):
            raise ConversionError("no value moves: this is no transposition")
        canvas.add(OpKind.TRANSPOSE, (source,), {"permutation": permutation})
    elif form < 0.8:
        steps = tuple(canvas.one_of((1, 1, 2)) if size > 1 else 1 for size in image)
        starts = tuple(int(canvas.rng.integers(0, (size + 1) // 2)) for size in image)
        lengths = tuple(-(-(size - start) // step) for size, start, step in zip(image, starts, steps, strict=True))
        if lengths == image:
            raise ConversionError("all of an image is no slice of it")
        canvas.add(OpKind.STRIDED_SLICE, (source,), {"starts": starts, "steps": steps}, declared=lengths)
    else:
        canvas.add(OpKind.BROADCAST_TO, (canvas.source((*image[:3], 1)),), {}, declared=(*image[:3], max(image[3], 2)))


def _int4(kind: Callable[[_Canvas, int], None]) -> Callable[[_Canvas], None]:
    return lambda canvas: kind(canvas, 4)


_KINDS: tuple[Callable[[_Canvas], None], ...] = (
    *(_conv, _depthwise, _conv, _dense, _conv, _pool, _depthwise, _binary, _mean, _softmax, _pad, _copy),
    *(_int4(_conv), _int4(_depthwise), _int4(_dense), _binary, _pool),
)
