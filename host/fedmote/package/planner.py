# SPDX-License-Identifier: Apache-2.0
"""Where each activation lies in the encoder's arena.

An activation lives from the operator that makes it to the last one that reads it. Activations that live at the same time must
not overlap, all others may; a reshape's output is its input. And since operators run unit by unit, in order (protocol/SPEC.md,
section 7), an output may be written over the part of an input that is done with, if nobody reads that input later: row y of a
convolution, pool or pad may lie over the input's rows above those that row y needs, and element i of an elementwise operator
over element i. How far the input must then begin behind the output is worked out here; `packing` does the rest.

A plan depends on operators and shapes, never on weights or quantizations, so that all versions of a model have one: it is
worked out once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate, permutations

from fedmote.package.geometry import window_of
from fedmote.package.graph import BINARY, ELEMENTWISE, Graph, Op, OpKind
from fedmote.package.packing import pack

ALIGN = 16
_WINDOWED = (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D)


def round_up(size: int, align: int = ALIGN) -> int:
    """The next multiple of `align`."""
    return -(-size // align) * align


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets of all activations.

    Attributes:
        offsets: byte offset of each activation, a multiple of 16.
        sizes: bytes of each activation, rounded up to 16.
        lifetimes: (first, last) operator of each activation, both inclusive; -1 is before the first operator.
        total_bytes: size of the arena.
        lower_bound_bytes: no plan for operators in this order is smaller.
    """

    offsets: dict[str, int]
    sizes: dict[str, int]
    lifetimes: dict[str, tuple[int, int]]
    total_bytes: int
    lower_bound_bytes: int


@dataclass
class _Buffer:
    """An activation and its reshapes."""

    size: int
    first: int
    last: int

    def conflicts(self, other: _Buffer) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class _Structure:
    """A graph for the cache of plans: equal where all is equal that a plan depends on.

    Attributes:
        graph: without arrays, which a cache should not hold.
        key: its activations, and of its operators what decides which bytes they read and write, and when.
    """

    graph: Graph = field(compare=False)
    key: tuple[object, ...]


def plan_memory(graph: Graph) -> MemoryPlan:
    """Plans the arena of an int8 graph."""
    shapes = tuple((name, activation.shape) for name, activation in graph.activations.items())
    ops = tuple((op.kind, op.inputs, op.output, op.kernel, op.stride, op.dilation, op.padding, op.pads) for op in graph.ops)
    bare = tuple(replace(op, weights=None, bias=None, constant=None, weight_quantization=None, source=None) for op in graph.ops)
    return _plan(_Structure(replace(graph, ops=bare), (graph.input, graph.output, shapes, ops)))


@lru_cache(maxsize=64)
def _plan(structure: _Structure) -> MemoryPlan:
    graph = structure.graph
    sizes = {name: round_up(math.prod(activation.shape)) for name, activation in graph.activations.items()}
    lifetimes = _lifetimes(graph)
    numbers, buffers = _buffers(graph, sizes, lifetimes)
    above = {(a, b): buffers[a].size for a, b in permutations(range(len(buffers)), 2) if buffers[a].conflicts(buffers[b])}
    bound = max(buffer.size for buffer in buffers)
    for step, op in enumerate(graph.ops):
        target, near = numbers[op.output], {numbers[op.output]}
        for name in op.inputs if op.kind is not OpKind.RESHAPE else ():
            source, distance = numbers[name], overlap(graph, op, name)
            if buffers[source].last == step and distance < buffers[target].size:
                above[target, source] = round_up(distance)
                near.add(source)
        alive = [i for i, buffer in enumerate(buffers) if buffer.first <= step <= buffer.last]
        bound = max(bound, _least_span(alive, near, buffers, above))
    packing = pack([buffer.size for buffer in buffers], above, bound, ALIGN)
    offsets = {name: packing.offsets[number] for name, number in numbers.items()}
    return MemoryPlan(offsets, {name: sizes[name] for name in offsets}, lifetimes, packing.total, packing.lower_bound)


def plan_apart(graph: Graph) -> MemoryPlan:
    """A plan in which every activation keeps bytes of its own, but for reshapes: all can be read when the encoder has run."""
    sizes = {name: round_up(math.prod(activation.shape)) for name, activation in graph.activations.items()}
    lifetimes = _lifetimes(graph)
    numbers, buffers = _buffers(graph, sizes, lifetimes)
    ends = list(accumulate(buffer.size for buffer in buffers))
    offsets = {name: ends[number] - buffers[number].size for name, number in numbers.items()}
    return MemoryPlan(offsets, {name: sizes[name] for name in offsets}, lifetimes, ends[-1], ends[-1])


def overlap(graph: Graph, op: Op, name: str) -> int:
    """How many bytes the input `name`, read for the last time, must begin behind the output if it lies there.

    The size of the output means that they must be disjoint.
    """
    source, target = graph.activations[name].shape, graph.activations[op.output].shape
    # An operand that repeats is read again after its place was written.
    if op.kind in (*ELEMENTWISE, *BINARY) and math.prod(source) == math.prod(target):
        return 0
    if op.kind in _WINDOWED:
        return _row_overlap(source, target, op.stride[0], window_of(op, source).pad_top)
    if op.kind is OpKind.PAD:
        return _row_overlap(source, target, 1, op.pads[0])
    return math.prod(target)


def _row_overlap(source: tuple[int, ...], target: tuple[int, ...], stride: int, pad_top: int) -> int:
    """Rows [0, y] of the output end before the first row that row y needs, and with it all that later rows need."""
    in_row, out_row = math.prod(source[2:]), math.prod(target[2:])
    return max((y + 1) * out_row - min(max(0, y * stride - pad_top), source[1]) * in_row for y in range(target[1]))


def _lifetimes(graph: Graph) -> dict[str, tuple[int, int]]:
    first = {graph.input: -1}
    last = {graph.input: -1}
    for step, op in enumerate(graph.ops):
        first[op.output] = last[op.output] = step
        for name in op.inputs:
            last[name] = step
    last[graph.output] = len(graph.ops)
    return {name: (first[name], last[name]) for name in first}


def _buffers(graph: Graph, sizes: dict[str, int], lifetimes: dict[str, tuple[int, int]]) -> tuple[dict[str, int], list[_Buffer]]:
    """The number of each activation's buffer, and the buffers in the order in which they are made."""
    numbers = {graph.input: 0}
    buffers = [_Buffer(sizes[graph.input], *lifetimes[graph.input])]
    for op in graph.ops:
        if op.kind is OpKind.RESHAPE:
            numbers[op.output] = numbers[op.inputs[0]]
            buffer = buffers[numbers[op.output]]
            buffer.last = max(buffer.last, lifetimes[op.output][1])
        else:
            numbers[op.output] = len(buffers)
            buffers.append(_Buffer(sizes[op.output], *lifetimes[op.output]))
    return numbers, buffers


def _least_span(alive: Iterable[int], near: set[int], buffers: list[_Buffer], above: dict[tuple[int, int], int]) -> int:
    """Bytes that no plan can do without while an operator runs.

    These are the buffers that may overlap (`near`, the output and one or two inputs), as close as they may be, and all others.
    Nothing is gained by putting one of the others between them: where it parts two of them, they are disjoint.
    """
    others = sum(buffers[i].size for i in alive if i not in near)
    return others + min(_span(order, buffers, above) for order in permutations(sorted(near)))


def _span(order: tuple[int, ...], buffers: list[_Buffer], above: dict[tuple[int, int], int]) -> int:
    """Of buffers with offsets in this order."""
    offsets: list[int] = []
    for i, buffer in enumerate(order):
        offsets.append(max((offsets[j] + above[order[j], buffer] for j in range(i)), default=0))
    return max(offset + buffers[buffer].size for offset, buffer in zip(offsets, order, strict=True))
