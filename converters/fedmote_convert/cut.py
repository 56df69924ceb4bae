# SPDX-License-Identifier: Apache-2.0
"""Where a captured network is split into the encoder, which a device keeps frozen, and the head, which it trains.

An edge is a candidate if its activation is all that the rest of the network needs: one live tensor. Inside a residual block
two are alive, and a device would have to keep both per sample. Of the candidates, those are feasible whose rest is one Linear, or
two with a ReLU or nothing between them, apart from reshapes in front, which cost a device nothing and therefore belong to the
encoder wherever they are named. The last cut leaves one Linear; two are asked for by naming an edge.

What else can be made of an edge, and which one suits a board, is for `forms` and `choice`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedmote.errors import ConfigError, ConversionError, UnsupportedOpError
from fedmote.package.graph import Activation, Graph, HeadLayer, Op, OpKind
from fedmote.package.importer import cut_graph
from fedmote_convert.sketch import Capture

LAST = "last"  # the last edge whose rest is one Linear


@dataclass(frozen=True)
class Candidate:
    """An edge at which the network could be cut.

    Attributes:
        name: of the activation.
        module: path of the innermost module that made it, or the name itself.
        features: elements that would be cached per sample.
        refusal: why the rest is no head in this version; empty if it is one.
    """

    name: str
    module: str
    features: int
    refusal: str


@dataclass(frozen=True)
class Cut:
    """A split network.

    Attributes:
        encoder: the graph up to the features, before any pass.
        head: the Linear after them, or two.
        features: number of features.
        name: the activation that was chosen, or named.
        reason: why there, as a sentence.
        candidates: all single-tensor edges, in order of execution.
    """

    encoder: Graph
    head: tuple[HeadLayer, ...]
    features: int
    name: str
    reason: str
    candidates: tuple[Candidate, ...]


def cut_at(captured: Capture, where: str = LAST) -> Cut:
    """Split a captured network.

    Args:
        captured: the whole network.
        where: "last", the path of a module (its last result is meant), or the name of an activation.

    Raises:
        ConfigError: no module or activation has that name.
        UnsupportedOpError: the edge lies inside a residual block, or the rest is neither one Linear nor two.
    """
    graph = captured.graph
    candidates = candidates_of(captured)
    if where == LAST:
        name, reason = _choose(graph, candidates)
    else:
        name, reason = edge_at(captured, where), f"cut behind {where}, as asked for"
        _check(graph, name, where, candidates)
    position = linear_index(graph, name)
    linear = graph.ops[position]
    features = linear.inputs[0]
    encoder_ops = graph.ops[:position]
    encoder = cut_graph(replace(graph, ops=encoder_ops), features)
    if not any(op.kind is not OpKind.RESHAPE for op in encoder_ops):
        raise ConversionError(f"{linear.name}: the model is its head alone; nothing before it would be left to freeze")
    return Cut(encoder, _head_layers(graph.ops[position:], captured), _count(graph, features), name, reason, candidates)


def live(graph: Graph, position: int) -> list[str]:
    """Activations that operators after `position` read and that are made up to it; -1 is in front of the first."""
    made = {graph.input, *(op.output for op in graph.ops[: position + 1])}
    read = [name for op in graph.ops[position + 1 :] for name in op.inputs if name in made]
    if graph.output in made:
        read.append(graph.output)
    return list(dict.fromkeys(read))


def candidates_of(captured: Capture) -> tuple[Candidate, ...]:
    """All single-tensor edges of the network, in order of execution."""
    graph = captured.graph
    found = []
    for position, op in enumerate(graph.ops[:-1]):
        if live(graph, position) == [op.output] and op.output in captured.modules:  # explicit padding has no module
            module = module_of(captured, op.output)
            found.append(Candidate(op.output, module, _count(graph, op.output), _refusal(graph.ops[position + 1 :])))
    return tuple(found)


def module_of(captured: Capture, name: str) -> str:
    """Path of the innermost module that made an activation, or the activation's name."""
    paths = captured.modules.get(name, ())
    return paths[-1] if paths else name


def _count(graph: Graph, name: str) -> int:
    return math.prod(graph.activations[name].shape)


def _refusal(rest: Sequence[Op]) -> str:
    """Why these operators are no head; empty if they are one."""
    parts = [op for op in rest if op.kind is not OpKind.RESHAPE]
    if _is_head(rest):
        return ""
    names = ", ".join(op.name for op in parts)
    return (
        f"the head would be {len(parts)} operators ({names}); it must be one Linear, or two with a ReLU or nothing between"
        if parts
        else "the head would be empty"
    )


def _is_head(rest: Sequence[Op]) -> bool:
    """One Linear or two, the first of two with a ReLU or nothing behind it. A reshape may stand in front of them alone."""
    parts = list(rest)
    while parts and parts[0].kind is OpKind.RESHAPE:
        parts.pop(0)
    while parts and parts[-1].kind is OpKind.RESHAPE:
        parts.pop()
    kinds = [op.kind for op in parts]
    linear, relu = OpKind.FULLY_CONNECTED, OpKind.RELU
    if kinds not in ([linear], [linear, linear], [linear, relu, linear]):
        return False
    return all(op.activation is (Activation.RELU if op.kind is relu else Activation.NONE) for op in parts)


def _choose(graph: Graph, candidates: Sequence[Candidate]) -> tuple[str, str]:
    """The last feasible edge. All that feed the same Linear hold the same features in the same memory."""
    feasible = [candidate for candidate in candidates if not candidate.refusal]
    if not feasible:
        last = [op for op in graph.ops if op.kind is not OpKind.RESHAPE][-1:]
        place, kind = (last[0].name, last[0].kind.value) if last else ("input", "nothing")
        raise UnsupportedOpError(
            place,
            f"no cut leaves one Linear as the head; the model ends with {kind}",
            "end the model with one nn.Linear that makes the logits, without softmax, behind one path of layers",
        )
    chosen = feasible[-1]
    reason = f"last edge whose rest is one Linear: {chosen.features} features behind {chosen.module}"
    linear = linear_index(graph, chosen.name)
    others = [candidate.module for candidate in feasible[:-1] if linear_index(graph, candidate.name) == linear]
    if others:
        reason += f"; the same features as behind {', '.join(others)}"
    return chosen.name, reason


def edge_at(captured: Capture, where: str) -> str:
    """The activation of that name, or the last one made inside the module of that path.

    Raises:
        ConfigError: no module or activation has that name.
    """
    if where in captured.graph.activations:
        return where
    inside = [op.output for op in captured.graph.ops if where in captured.modules.get(op.output, ())]
    if not inside:
        modules = dict.fromkeys(path for paths in captured.modules.values() for path in paths)
        raise ConfigError(f"--cut {where}: no such module or activation; expected auto, last or one of {', '.join(modules)}")
    return inside[-1]


def _check(graph: Graph, name: str, where: str, candidates: Sequence[Candidate]) -> None:
    feasible = [candidate.module for candidate in candidates if not candidate.refusal]
    hint = f"cut behind {' or '.join(feasible)}" if feasible else "end the model with one nn.Linear"
    position = next((index for index, op in enumerate(graph.ops) if op.output == name), -1)
    alive = live(graph, position)
    if alive != [name]:
        others = " and ".join(other for other in alive if other != name)
        raise UnsupportedOpError(
            where, f"the rest of the network also needs {others}: it lies inside a branch or residual block", hint
        )
    refusal = _refusal(graph.ops[position + 1 :])
    if refusal:
        raise UnsupportedOpError(where, refusal, hint)


def linear_index(graph: Graph, name: str) -> int:
    """Index of the first Linear that a feasible cut leaves to the head."""
    start = next((index for index, op in enumerate(graph.ops) if op.output == name), -1) + 1
    return next(index for index in range(start, len(graph.ops)) if graph.ops[index].kind is OpKind.FULLY_CONNECTED)


def _head_layers(rest: Sequence[Op], captured: Capture) -> tuple[HeadLayer, ...]:
    """The layers in what a feasible cut leaves to the head."""
    layers: list[HeadLayer] = []
    for op in rest:
        if op.kind is OpKind.RELU:
            layers[-1] = replace(layers[-1], activation=Activation.RELU)
        elif op.kind is OpKind.FULLY_CONNECTED:
            layers.append(_head_layer(op, captured))
    return tuple(layers)


def _head_layer(linear: Op, captured: Capture) -> HeadLayer:
    source = linear.source
    if source is None or source.bias is None:
        raise UnsupportedOpError(linear.name, "the head's Linear has no bias", "use nn.Linear(..., bias=True)")
    outputs, inputs = captured.tensors[source.weight].shape
    return HeadLayer(source.weight, source.bias, inputs, outputs, source.chw)
