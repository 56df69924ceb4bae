# SPDX-License-Identifier: Apache-2.0
"""A plain int8 `.tflite` file becomes a package: everything before the cut is the encoder, the last dense layer the head.

The file's own FULLY_CONNECTED, or the last two where that is asked for, is dequantized to the float head that devices train. A
SOFTMAX behind it is dropped, because training computes it. Weights cannot be pushed into such a package: the file does not say
which checkpoint tensors it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, UnsupportedOpError
from fedmote.package import fixed_point, tflite_reader
from fedmote.package.boards import Board
from fedmote.package.file import Package, build_package
from fedmote.package.geometry import dense_rows
from fedmote.package.graph import Activation, Graph, HeadLayer, Op, OpKind, Tensors

WEIGHT_NAME: Final = "head.weight"
BIAS_NAME: Final = "head.bias"
HIDDEN_WEIGHT_NAME: Final = "head.hidden.weight"
HIDDEN_BIAS_NAME: Final = "head.hidden.bias"
_NAMES: Final = ((HIDDEN_WEIGHT_NAME, HIDDEN_BIAS_NAME), (WEIGHT_NAME, BIAS_NAME))


@dataclass(frozen=True)
class Import:
    """A file taken apart.

    Attributes:
        encoder: int8 graph up to the cut.
        head: the layers that devices train, one or two.
        tensors: its initial values.
        notes: what was done, in sentences for people.
    """

    encoder: Graph
    head: tuple[HeadLayer, ...]
    tensors: Tensors
    notes: tuple[str, ...]


def import_tflite(
    data: bytes, name: str, board: Board, model_id: str, cut: str | None = None, classes: int | None = None, layers: int = 1
) -> tuple[Package, Import]:
    """Makes a package of a `.tflite` file.

    Args:
        data: the file's bytes.
        name: of the file, for messages.
        board: whose arena the manifest speaks of.
        model_id: name of the model.
        cut: name of the tensor, or number of the node, where the encoder ends; None: before the layers of the head.
        classes: make a new head of zeros with that many outputs instead of the file's own, dropping all behind the cut.
        layers: of the head, 1 or 2: so many of the file's last dense layers.

    Raises:
        PackageError, UnsupportedOpError: the file cannot be read.
        ConversionError: it cannot be cut as asked.
    """
    parts = split(data, name, cut, classes, layers)
    package = build_package(None, parts.encoder, parts.head, parts.tensors, {}, board, model_id, 0)
    return package, parts


def split(data: bytes, name: str, cut: str | None = None, classes: int | None = None, layers: int = 1) -> Import:
    """Takes a file apart into encoder and head; arguments as in `import_tflite`."""
    if classes is not None and not 1 <= classes <= 0xFFFF:
        raise ConversionError(f"--classes {classes}: a head has 1 to 65535 outputs")
    if layers not in (1, 2) or (layers == 2 and classes is not None):
        raise ConversionError(f"--head-layers {layers}: a head has 1 or 2 layers of the file, a new one (--classes) has 1")
    is_softmax_dropped = tflite_reader.has_softmax(data, name)
    graph = tflite_reader.read(data, name, is_softmax_dropped=is_softmax_dropped)
    notes = ["the SOFTMAX at the end was dropped: training and evaluation compute it"] if is_softmax_dropped else []
    if tflite_reader.has_outer_conversion(data, name):
        notes.append(
            "the conversions at the file's ends were dropped: samples are quantized for its int8 input, features read as int8"
        )
    dense = _last_dense_layers(graph, layers)
    if cut is not None:
        edge = _edge(graph, cut, name)
    elif len(dense) == layers:
        edge = dense[0].inputs[0]
    elif classes is not None:
        edge = graph.output
    else:
        if dense:
            raise ConversionError(f"{name}: before {dense[-1].name} there is no FULLY_CONNECTED; leave `--head-layers 2` away")
        last = graph.ops[-1].name if graph.ops else "missing"
        raise ConversionError(f"{name}: the last operator is {last}, not FULLY_CONNECTED: add `--classes N` for a new head")
    encoder = cut_graph(graph, edge)
    notes.append(f"the encoder ends at {edge!r}, {len(encoder.ops)} of {len(graph.ops)} operators")
    features = int(np.prod(graph.activations[edge].shape))
    if classes is not None:
        notes.append(f"a new head of zeros, {features} -> {classes}; what followed the cut was dropped")
        tensors = {WEIGHT_NAME: np.zeros((classes, features), np.float32), BIAS_NAME: np.zeros(classes, np.float32)}
        return Import(encoder, (HeadLayer(WEIGHT_NAME, BIAS_NAME, features, classes),), tensors, tuple(notes))
    _check_behind(graph, encoder, edge, dense, layers, name)
    head: list[HeadLayer] = []
    tensors = {}
    for op, (weight, bias) in zip(dense, _NAMES[-layers:], strict=True):
        tensors[weight], tensors[bias] = _dequantized(graph, op)
        outputs, inputs = tensors[weight].shape
        head.append(HeadLayer(weight, bias, inputs, outputs, activation=op.activation))
        notes.append(f"the file's own layer {op.name}, {inputs} -> {outputs}, was dequantized to the float head")
    return Import(encoder, tuple(head), tensors, tuple(notes))


def _last_dense_layers(graph: Graph, count: int) -> tuple[Op, ...]:
    """At most `count` dense layers of one vector that end the graph, in their order; reshapes may lie between them."""
    found: list[Op] = []
    edge = graph.output
    for op in reversed(graph.ops):
        if len(found) == count or op.output != edge:
            break
        if op.kind is OpKind.RESHAPE and found:
            edge = op.inputs[0]
        elif _is_head(graph, op):
            found.append(op)
            edge = op.inputs[0]
        else:
            break
    return tuple(reversed(found))


def _is_head(graph: Graph, op: Op) -> bool:
    """Whether it is a dense layer of one vector."""
    return op.kind is OpKind.FULLY_CONNECTED and dense_rows(op, graph.activations[op.inputs[0]].shape) == 1


def cut_graph(graph: Graph, edge: str) -> Graph:
    """The part of a graph that makes the activation `edge`; what it does not need is left out.

    Raises:
        ConversionError: there is no such activation.
    """
    if edge not in graph.activations:
        raise ConversionError(f"cut {edge!r}: there is no such activation; there are {', '.join(graph.activations)}")
    needed = {edge}
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if op.output in needed:
            kept.append(op)
            needed.update(op.inputs)
    activations = {name: activation for name, activation in graph.activations.items() if name in needed or name == graph.input}
    return replace(graph, output=edge, ops=tuple(reversed(kept)), activations=activations)


def _edge(graph: Graph, cut: str, name: str) -> str:
    """The activation that `--cut` means: a tensor's name, or the number of the node that makes it."""
    if cut in graph.activations:
        return cut
    if cut.isdecimal() and int(cut) < len(graph.ops):
        return graph.ops[int(cut)].output
    nodes = "; ".join(f"{i}: {op.output!r} {graph.activations[op.output].shape}" for i, op in enumerate(graph.ops))
    raise ConversionError(f"{name}: no tensor or node {cut!r} to cut at; there are {nodes}")


def _check_behind(graph: Graph, encoder: Graph, edge: str, dense: tuple[Op, ...], layers: int, name: str) -> None:
    """Refuses a cut behind which there is anything but the layers of the head, or layers that a head cannot have."""
    made = {op.output for op in encoder.ops}
    behind = [op for op in graph.ops if op.output not in made]
    is_alone = all(op in dense or op.kind is OpKind.RESHAPE for op in behind)
    is_whole = len(dense) == layers and all(op.output not in made for op in dense)
    if not is_whole or not is_alone or not _is_fed_by(behind, edge, dense[0]):
        names = ", ".join(op.name for op in behind) or "nothing"
        wanted = "one FULLY_CONNECTED" if layers == 1 else "two FULLY_CONNECTED"
        raise ConversionError(
            f"{name}: behind {edge!r} there is {names}; a head is {wanted}. Cut before it, or add `--classes N` for a new head"
        )
    for op in dense:
        allowed = (Activation.NONE,) if op is dense[-1] else (Activation.NONE, Activation.RELU)
        if op.activation not in allowed:
            raise UnsupportedOpError(
                f"{name}: {op.name}",
                f"a layer of the head has a fused {op.activation.value}; there may be {', '.join(one.value for one in allowed)}",
                "add `--classes N` for a new head",
            )


def _dequantized(graph: Graph, dense: Op) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of a dense layer."""
    if dense.weights is None or dense.bias is None or dense.weight_quantization is None:
        raise ConversionError(f"{dense.name}: a layer of the head has no weights")
    source = fixed_point.quantization_of(graph.activations[dense.inputs[0]])
    scale = np.broadcast_to(dense.weight_quantization.scale.astype(np.float64), (len(dense.bias),))
    weight = dense.weights.astype(np.float64) * scale[:, None]
    bias = dense.bias.astype(np.float64) * scale * float(source.scale[0])
    return weight.astype(np.float32), bias.astype(np.float32)


def _is_fed_by(behind: list[Op], edge: str, dense: Op) -> bool:
    """Whether the dense layer reads the edge, through reshapes at most."""
    reached = {edge}
    for op in behind:
        if op.kind is OpKind.RESHAPE and op.inputs[0] in reached:
            reached.add(op.output)
    return dense.inputs[0] in reached
