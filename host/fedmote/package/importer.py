# SPDX-License-Identifier: Apache-2.0
"""A plain int8 `.tflite` file becomes a package: everything before the cut is the encoder, the last dense layer the head.

The file's own FULLY_CONNECTED is dequantized to the float head that devices train. A SOFTMAX behind it is dropped, because
training computes it. Weights cannot be pushed into such a package: the file does not say which checkpoint tensors it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fedmote.errors import ConversionError, UnsupportedOpError
from fedmote.package import fixed_point, tflite_reader
from fedmote.package.boards import Board
from fedmote.package.file import Package, build_package
from fedmote.package.geometry import dense_rows
from fedmote.package.graph import Activation, Graph, HeadLayer, Op, OpKind, Tensors

WEIGHT_NAME: Final = "head.weight"
BIAS_NAME: Final = "head.bias"


@dataclass(frozen=True)
class Import:
    """A file taken apart.

    Attributes:
        encoder: int8 graph up to the cut.
        head: the layer that devices train.
        tensors: its initial values.
        notes: what was done, in sentences for people.
    """

    encoder: Graph
    head: HeadLayer
    tensors: Tensors
    notes: tuple[str, ...]


def import_tflite(
    data: bytes, name: str, board: Board, model_id: str, cut: str | None = None, classes: int | None = None
) -> tuple[Package, Import]:
    """Makes a package of a `.tflite` file.

    Args:
        data: the file's bytes.
        name: of the file, for messages.
        board: whose arena the manifest speaks of.
        model_id: name of the model.
        cut: name of the tensor, or number of the node, where the encoder ends; None: before the last dense layer.
        classes: make a new head of zeros with that many outputs instead of the file's own, dropping all behind the cut.

    Raises:
        PackageError, UnsupportedOpError: the file cannot be read.
        ConversionError: it cannot be cut as asked.
    """
    parts = split(data, name, cut, classes)
    package = build_package(None, parts.encoder, [parts.head], parts.tensors, {}, board, model_id, 0)
    return package, parts


def split(data: bytes, name: str, cut: str | None = None, classes: int | None = None) -> Import:
    """Takes a file apart into encoder and head; arguments as in `import_tflite`."""
    if classes is not None and not 1 <= classes <= 0xFFFF:
        raise ConversionError(f"--classes {classes}: a head has 1 to 65535 outputs")
    is_softmax_dropped = tflite_reader.has_softmax(data, name)
    graph = tflite_reader.read(data, name, is_softmax_dropped=is_softmax_dropped)
    notes = ["the SOFTMAX at the end was dropped: training and evaluation compute it"] if is_softmax_dropped else []
    if tflite_reader.has_outer_conversion(data, name):
        notes.append(
            "the conversions at the file's ends were dropped: samples are quantized for its int8 input, features read as int8"
        )
    dense = graph.ops[-1] if graph.ops and graph.ops[-1].output == graph.output else None
    if dense is not None and not _is_head(graph, dense):
        dense = None
    if cut is not None:
        edge = _edge(graph, cut, name)
    elif dense is not None:
        edge = dense.inputs[0]
    elif classes is not None:
        edge = graph.output
    else:
        last = graph.ops[-1].name if graph.ops else "missing"
        raise ConversionError(f"{name}: the last operator is {last}, not FULLY_CONNECTED: add `--classes N` for a new head")
    encoder = cut_graph(graph, edge)
    notes.append(f"the encoder ends at {edge!r}, {len(encoder.ops)} of {len(graph.ops)} operators")
    features = int(np.prod(graph.activations[edge].shape))
    if classes is not None:
        notes.append(f"a new head of zeros, {features} -> {classes}; what followed the cut was dropped")
        tensors = {WEIGHT_NAME: np.zeros((classes, features), np.float32), BIAS_NAME: np.zeros(classes, np.float32)}
        return Import(encoder, HeadLayer(WEIGHT_NAME, BIAS_NAME, features, classes), tensors, tuple(notes))
    tensors = _head_tensors(graph, encoder, edge, dense, name)
    outputs = len(tensors[BIAS_NAME])
    notes.append(f"the file's own last layer, {features} -> {outputs}, was dequantized to the float head")
    return Import(encoder, HeadLayer(WEIGHT_NAME, BIAS_NAME, features, outputs), tensors, tuple(notes))


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


def _head_tensors(graph: Graph, encoder: Graph, edge: str, dense: Op | None, name: str) -> Tensors:
    """The dequantized last layer, if it is all that follows the cut."""
    made = {op.output for op in encoder.ops}
    behind = [op for op in graph.ops if op.output not in made]
    is_alone = all(op is dense or op.kind is OpKind.RESHAPE for op in behind)
    if dense is None or dense.output in made or not is_alone or not _is_fed_by(behind, edge, dense):
        names = ", ".join(op.name for op in behind) or "nothing"
        raise ConversionError(
            f"{name}: behind {edge!r} there is {names}; a head is one FULLY_CONNECTED. "
            f"Cut before it, or add `--classes N` for a new head"
        )
    if dense.activation is not Activation.NONE:
        raise UnsupportedOpError(
            f"{name}: {dense.name}",
            f"the last layer has a fused {dense.activation.value}, a head has none",
            "add `--classes N` for a new head",
        )
    if dense.weights is None or dense.bias is None or dense.weight_quantization is None:
        raise ConversionError(f"{dense.name}: the last layer has no weights")
    source = fixed_point.quantization_of(graph.activations[dense.inputs[0]])
    scale = np.broadcast_to(dense.weight_quantization.scale.astype(np.float64), (len(dense.bias),))
    weight = dense.weights.astype(np.float64) * scale[:, None]
    bias = dense.bias.astype(np.float64) * scale * float(source.scale[0])
    return {WEIGHT_NAME: weight.astype(np.float32), BIAS_NAME: bias.astype(np.float32)}


def _is_fed_by(behind: list[Op], edge: str, dense: Op) -> bool:
    """Whether the dense layer reads the edge, through reshapes at most."""
    reached = {edge}
    for op in behind:
        if op.kind is OpKind.RESHAPE and op.inputs[0] in reached:
            reached.add(op.output)
    return dense.inputs[0] in reached
