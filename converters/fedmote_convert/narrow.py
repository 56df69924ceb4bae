# SPDX-License-Identifier: Apache-2.0
"""Narrower forms of a network: the most important channels of every layer, the same tensors.

Channels that are the same for some operator live and die together: the two sides of a sum, a depthwise convolution and what it
reads, the parts of a concatenation where they are read. So every channel of every activation gets a number, numbers that an
operator ties are joined, and of each family of channels (those of one layer, or of layers whose channels are joined) a share is
kept: the ones with the largest weights, the L2 norm over all filters that make them, batch normalisation folded in (H. Li et
al., "Pruning Filters for Efficient ConvNets", ICLR 2017). A narrower width keeps a part of what a wider one keeps.

A normalisation whose input lost channels has other statistics. They are estimated again on the calibration samples, layer after
layer, and kept as a factor and a summand of each channel (`WeightRef.norm_scale`), so that new weights can be pushed into the
narrow model without data.

The template names the full tensors and says which rows and columns it takes (`fedmote.package.fold`): a checkpoint of the
whole model is a checkpoint of every width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedmote.package.execute import run_float_op
from fedmote.package.fold import bind
from fedmote.package.graph import BINARY, WEIGHTED, Activation, Graph, Op, OpKind, Tensors, WeightRef

_STATISTICS_SAMPLES = 256
_BLOCK = 32  # samples that an operator unfolds at once
_LARGEST_SCALE = 10.0  # of a correction: a channel that hardly moves any more must not be blown up

Numbers = NDArray[np.int64]


def narrow(template: Graph, tensors: Tensors, x: NDArray[np.float32], width: float, *, is_encoder: bool = False) -> Graph:
    """Keep a share of the channels of every layer; the input keeps all of its own.

    Args:
        template: after all passes.
        tensors: the whole float state.
        x: calibration samples float32 (N, ...), channels last.
        width: share of the channels, in (0, 1]; at least one of each layer stays.
        is_encoder: whether the output is features, which get fewer too; else it is logits, which all stay.

    Returns:
        The template with smaller activations, whose operators take rows and columns of their tensors.
    """
    bound = bind(template, tensors)
    channels = _Channels()
    for op in (None, *bound.ops):
        channels.enter(bound, op)
    if not is_encoder:
        channels.fix(channels.of[bound.output])
    kept = {name: np.flatnonzero(channels.kept(width)[channels.roots(numbers)]) for name, numbers in channels.of.items()}
    ops = tuple(_narrowed(bound, op, kept) for op in template.ops)
    activations = {
        name: replace(activation, shape=(*activation.shape[:-1], len(kept[name])))
        for name, activation in template.activations.items()
    }
    return _with_statistics(replace(template, ops=ops, activations=activations), tensors, x)


@dataclass
class _Channels:
    """Numbers of all channels of all activations, and which of them are one.

    Attributes:
        of: by activation, the number of each channel along its last axis.
        parents: of each number: the one that it was joined to, or itself.
        families: of each number: the layer that made it, as the number of its first channel.
        fixed: numbers that stay in any case.
        importance: of each number: the sum of squares of the weights that make it.
    """

    of: dict[str, Numbers] = field(default_factory=dict)
    parents: list[int] = field(default_factory=list)
    families: list[int] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    importance: list[float] = field(default_factory=list)

    def enter(self, graph: Graph, op: Op | None) -> None:
        """Number the channels of an operator's output, or of the graph's input."""
        if op is None:
            self.of[graph.input] = self._fresh(graph.activations[graph.input].shape[-1])
            self.fix(self.of[graph.input])
            return
        numbers = self._made(graph, op)
        if op.kind in WEIGHTED:
            weights = np.moveaxis(np.asarray(op.weights, np.float64), _row_axis(op), 0)
            for number, square in zip(numbers.tolist(), np.square(weights).reshape(len(weights), -1).sum(axis=1), strict=True):
                self.importance[number] += float(square)
        self.of[op.output] = numbers

    def fix(self, numbers: Numbers) -> None:
        """Let these stay."""
        self.fixed.update(numbers.tolist())

    def roots(self, numbers: Numbers) -> Numbers:
        """The number that each of these was joined to."""
        return np.array([self._root(self.parents, number) for number in numbers.tolist()], np.int64)

    def kept(self, width: float) -> NDArray[np.bool_]:
        """Whether each number stays; only meant for roots."""
        fixed = {self._root(self.parents, number) for number in self.fixed}
        squares = np.zeros(len(self.parents))
        for number, square in enumerate(self.importance):
            squares[self._root(self.parents, number)] += square
        members: dict[int, list[int]] = {}
        for number, parent in enumerate(self.parents):
            if number == parent:
                members.setdefault(self._root(self.families, number), []).append(number)
        stays = np.zeros(len(self.parents), bool)
        for roots in members.values():
            count = max(1, math.ceil(width * len(roots) - 1e-9))
            ranked = sorted(roots, key=lambda root: (root not in fixed, -squares[root], root))
            stays[ranked[: max(count, sum(root in fixed for root in roots))]] = True
        return stays

    def _fresh(self, count: int) -> Numbers:
        start = len(self.parents)
        self.parents += range(start, start + count)
        self.families += [start] * count
        self.importance += [0.0] * count
        return np.arange(start, start + count)

    def _fixed(self, graph: Graph, op: Op) -> Numbers:
        """Channels of an operator that mixes or moves them in a way that is not followed: it keeps all that it reads."""
        for name in op.inputs:
            self.fix(self.of[name])
        numbers = self._fresh(graph.activations[op.output].shape[-1])
        self.fix(numbers)
        return numbers

    def _made(self, graph: Graph, op: Op) -> Numbers:
        sources = [self.of[name] for name in op.inputs]
        shapes = [graph.activations[name].shape for name in op.inputs]
        target = graph.activations[op.output].shape
        match op.kind:
            case OpKind.CONV_2D if np.asarray(op.weights).shape[-1] == shapes[0][-1]:
                return self._fresh(target[-1])
            case OpKind.DEPTHWISE_CONV_2D:
                return np.repeat(sources[0], op.depth_multiplier)
            case OpKind.FULLY_CONNECTED if np.asarray(op.weights).shape[-1] in (shapes[0][-1], math.prod(shapes[0])):
                return self._fresh(target[-1])
            case OpKind.RESHAPE if target[-1] in (shapes[0][-1], math.prod(shapes[0])):
                return np.tile(sources[0], target[-1] // shapes[0][-1])
            case OpKind.CONCATENATION if op.axis == len(target) - 1:
                return np.concatenate(sources)
            case OpKind.STRIDED_SLICE if op.steps[-1] == 1:
                return sources[0][op.starts[-1] : op.starts[-1] + target[-1]]
            case kind if kind in (*WEIGHTED, OpKind.RESHAPE, OpKind.STRIDED_SLICE, OpKind.TRANSPOSE, OpKind.SOFTMAX):
                return self._fixed(graph, op)
        if any(len(numbers) not in (1, target[-1]) for numbers in sources):
            return self._fixed(graph, op)
        whole = [numbers for numbers in sources if len(numbers) == target[-1]]
        if not whole or (op.kind not in (*BINARY, OpKind.CONCATENATION) and len(whole) != 1):
            return self._fixed(graph, op)
        for numbers in whole[1:]:
            self._join(whole[0], numbers)
        return whole[0]

    def _join(self, one: Numbers, other: Numbers) -> None:
        for mine, yours in zip(one.tolist(), other.tolist(), strict=True):
            for parents in (self.parents, self.families):
                first, second = sorted((self._root(parents, mine), self._root(parents, yours)))
                parents[second] = first

    @staticmethod
    def _root(parents: list[int], number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number


def _row_axis(op: Op) -> int:
    """Axis of the output channels in an operator's weights."""
    return 3 if op.kind is OpKind.DEPTHWISE_CONV_2D else 0


def _narrowed(bound: Graph, op: Op, kept: dict[str, Numbers]) -> Op:
    """The operator with what is left of its weights or constants; `bound` has the shapes of before."""
    before, after = bound.activations[op.inputs[0]].shape, kept[op.inputs[0]]
    full = next(one for one in bound.ops if one.output == op.output)
    if full.kind in WEIGHTED and op.source is not None:
        return replace(op, source=_selected(op.source, full, before, kept))
    if full.constant is not None and full.constant.ndim and full.constant.shape[-1] == before[-1] > len(after):
        if op.source is not None:
            return replace(op, source=replace(op.source, columns=tuple(after.tolist())))
        return replace(op, constant=np.take(np.asarray(op.constant, np.float32), after, -1))
    if op.kind is OpKind.STRIDED_SLICE:
        return replace(op, starts=(*op.starts[:-1], int(np.searchsorted(after, op.starts[-1]))))
    return op


def _selected(source: WeightRef, op: Op, before: tuple[int, ...], kept: dict[str, Numbers]) -> WeightRef:
    """Rows and columns; `op` is bound, `before` the full shape of its input."""
    weights = np.asarray(op.weights).shape
    rows, columns = kept[op.output], kept[op.inputs[0]]
    if op.kind is OpKind.FULLY_CONNECTED and weights[-1] != before[-1]:  # it flattens height and width, channels last
        pixels = np.arange(weights[-1] // before[-1]) * before[-1]
        columns = (pixels[:, None] + columns).ravel()
    has_all = op.kind is OpKind.DEPTHWISE_CONV_2D or weights[-1] != before[-1] * (weights[-1] // before[-1])
    return replace(
        source,
        rows=None if len(rows) == weights[_row_axis(op)] else tuple(rows.tolist()),
        columns=None if has_all or len(columns) == weights[-1] else tuple(columns.tolist()),
    )


def _with_statistics(template: Graph, tensors: Tensors, x: NDArray[np.float32]) -> Graph:
    """The template with corrections for the normalisations of layers that read fewer channels than before."""
    x = x[:: -(-len(x) // _STATISTICS_SAMPLES)]
    values: dict[str, NDArray[np.float32]] = {template.input: x}
    changed: set[str] = set()
    ops: list[Op] = []
    for op in template.ops:
        loses_inputs = op.kind in WEIGHTED and op.source is not None and op.source.columns is not None
        is_changed = loses_inputs or not changed.isdisjoint(op.inputs)
        if is_changed:
            changed.add(op.output)
        if is_changed and op.source is not None and op.source.batch_norm and not _is_regrouped(op.source):
            plain = _run(template, replace(op, activation=Activation.NONE), tensors, values)
            op = replace(op, source=_corrected(op.source, tensors, plain))
        values[op.output] = _run(template, op, tensors, values)
        ops.append(op)
    return replace(template, ops=tuple(ops))


def _is_regrouped(source: WeightRef) -> bool:
    """Whether the graph has the channels of a normalisation in another order than its tensors: it keeps their statistics."""
    return source.layout == "batch_norm" and source.chw is not None


def _run(template: Graph, op: Op, tensors: Tensors, values: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Values (N, ...) of an operator's output."""
    (bound,) = bind(replace(template, ops=(op,)), tensors).ops
    count = len(values[template.input])
    starts = range(0, count, _BLOCK)
    blocks = ({name: values[name][start : start + _BLOCK] for name in op.inputs} for start in starts)
    return np.concatenate([run_float_op(template, bound, block) for block in blocks])


def _corrected(source: WeightRef, tensors: Tensors, plain: NDArray[np.float32]) -> WeightRef:
    """The source with the statistics of its values (N, ..., C) behind the normalisation in place of the checkpoint's.

    The normalisation made z = a u + c of what it read, with a = gamma / sqrt(var + eps). In its own statistics it would make
    (z - mean(z)) |gamma| / sqrt(var(z) + a^2 eps) + beta of it.
    """
    norm = source.batch_norm[-1]
    rows = slice(None) if source.rows is None else list(source.rows)
    variance = np.asarray(tensors[norm.running_var], np.float64)[rows]
    gamma = np.ones(len(variance)) if norm.weight is None else np.asarray(tensors[norm.weight], np.float64)[rows]
    beta = np.zeros(len(variance)) if norm.bias is None else np.asarray(tensors[norm.bias], np.float64)[rows]
    flat = plain.reshape(-1, plain.shape[-1]).astype(np.float64)
    mean = flat.mean(axis=0)
    deviation = np.sqrt(flat.var(axis=0) + np.square(gamma) / (variance + norm.eps) * norm.eps)
    moves = deviation > 0
    scale = np.where(moves, np.minimum(np.abs(gamma) / np.where(moves, deviation, 1.0), _LARGEST_SCALE), 1.0)
    shift = np.where(moves, beta - mean * scale, 0.0)
    return replace(source, norm_scale=tuple(scale.tolist()), norm_shift=tuple(shift.tolist()))
