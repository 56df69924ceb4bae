# SPDX-License-Identifier: Apache-2.0
"""Where each activation lies in the encoder's arena.

An activation lives from the operator that makes it to the last one that reads it. Activations that live at the same time
must not overlap, all others may. Two are always merged where that is free: a reshape's output is its input; an elementwise
operator (tables, ADD, MUL) writes over an input that nobody reads later.

Packing is greedy: in a given order, each buffer takes the lowest gap among those it conflicts with. The first order is by
size; while the result is above the lower bound (the largest sum of buffers alive at one operator, which no plan can beat),
the buffer on top of the arena is moved to the front and packing is tried again, a fixed number of times. No randomness: the
same graph gives the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedmote.package.graph import BINARY, ELEMENTWISE, Graph, OpKind

ALIGN = 16
_ATTEMPTS = 64


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
        buffers: names of activations that share memory, for each buffer.
        total_bytes: size of the arena.
        lower_bound_bytes: the largest sum of buffers that are alive at one operator.
    """

    offsets: dict[str, int]
    sizes: dict[str, int]
    lifetimes: dict[str, tuple[int, int]]
    buffers: tuple[tuple[str, ...], ...]
    total_bytes: int
    lower_bound_bytes: int


@dataclass
class _Buffer:
    names: list[str]
    size: int
    first: int
    last: int
    offset: int = 0

    def conflicts(self, other: _Buffer) -> bool:
        return self.first <= other.last and other.first <= self.last


def plan_memory(graph: Graph) -> MemoryPlan:
    """Plans the arena of an int8 graph."""
    sizes = {name: round_up(int(np.prod(activation.shape))) for name, activation in graph.activations.items()}
    lifetimes = _lifetimes(graph)
    buffers = _merge(graph, sizes, lifetimes)
    steps = range(-1, len(graph.ops) + 1)
    bound = max(sum(buffer.size for buffer in buffers if buffer.first <= step <= buffer.last) for step in steps)
    total = _pack(buffers, bound)
    offsets = {name: buffer.offset for buffer in buffers for name in buffer.names}
    return MemoryPlan(
        offsets, {name: sizes[name] for name in offsets}, lifetimes, tuple(tuple(b.names) for b in buffers), total, bound
    )


def _lifetimes(graph: Graph) -> dict[str, tuple[int, int]]:
    first = {graph.input: -1}
    last = {graph.input: -1}
    for step, op in enumerate(graph.ops):
        first[op.output] = last[op.output] = step
        for name in op.inputs:
            last[name] = step
    last[graph.output] = len(graph.ops)
    return {name: (first[name], last[name]) for name in first}


def _merge(graph: Graph, sizes: dict[str, int], lifetimes: dict[str, tuple[int, int]]) -> list[_Buffer]:
    """Buffers of activations that share memory."""
    buffers = {graph.input: _Buffer([graph.input], sizes[graph.input], *lifetimes[graph.input])}
    for step, op in enumerate(graph.ops):
        first, last = lifetimes[op.output]
        if op.kind is OpKind.RESHAPE:
            candidates = [op.inputs[0]]
        elif op.kind in (*ELEMENTWISE, *BINARY):
            # An operand that repeats is read again after its place was written.
            whole = [name for name in op.inputs if sizes[name] == sizes[op.output]]
            candidates = [name for name in whole if buffers[name].last <= step]
        else:
            candidates = []
        buffer = buffers[candidates[0]] if candidates else _Buffer([], sizes[op.output], first, last)
        buffer.names.append(op.output)
        buffer.last = max(buffer.last, last)
        buffers[op.output] = buffer
    return list({id(buffer): buffer for buffer in buffers.values()}.values())


def _pack(buffers: list[_Buffer], bound: int) -> int:
    """Sets the offsets of the best plan that was found. Returns its size."""
    order = sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, buffers[i].first, i))
    best: tuple[int, list[int]] | None = None
    for _ in range(_ATTEMPTS):
        total = _place([buffers[i] for i in order])
        if best is None or total < best[0]:
            best = (total, [buffer.offset for buffer in buffers])
        top = max(order, key=lambda i: (buffers[i].offset + buffers[i].size, -i))
        if total == bound or order[0] == top:
            break
        order.remove(top)
        order.insert(0, top)
    if best is None:
        raise AssertionError("a graph has at least its input")
    for buffer, offset in zip(buffers, best[1], strict=True):
        buffer.offset = offset
    return best[0]


def _place(order: list[_Buffer]) -> int:
    placed: list[_Buffer] = []
    for buffer in order:
        offset = 0
        for other in sorted((b for b in placed if b.conflicts(buffer)), key=lambda b: b.offset):
            if offset + buffer.size <= other.offset:
                break
            offset = max(offset, other.offset + other.size)
        buffer.offset = offset
        placed.append(buffer)
    return max(buffer.offset + buffer.size for buffer in placed)
