# SPDX-License-Identifier: Apache-2.0
"""From an `.onnx` file to a model that is known to be whole.

Nothing in the file is trusted: its size is looked at before it is read, external data may lie beside it only, every operator
must read what an earlier one makes. What is wrong with the file itself is said here, by file; what a sound model does that has
no int8 form is for `onnx_graph` and `onnx_operators`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import checker, inliner

from fedmote.errors import ConfigError, ConversionError
from fedmote_convert.sources import read_file

OLDEST_OPSET = 13
_LIMIT_BYTES = 2**31  # a protobuf message has no more, and no package that devices hold comes near
_EXPECTED = "an .onnx file and its data"
_DEFAULT_DOMAINS = ("", "ai.onnx")


def load(path: Path) -> onnx.ModelProto:
    """Read a model with all its data inside; functions of its own are inlined.

    Raises:
        ConfigError: the file, or one that it refers to, cannot be read.
        ConversionError: it is no sound ONNX model of opset 13 or later.
    """
    model = _parse(path, read_file(path, _LIMIT_BYTES, _EXPECTED))
    _check_opset(path, model)
    if len(model.graph.output) != 1:
        raise ConversionError(f"{path}: the model has {len(model.graph.output)} outputs; export one, the logits")
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise ConversionError(f"{path}: initialiser {name} is sparse; store it dense")
    _check_order(path, model.graph)
    _load_external(path, model)
    try:
        checker.check_model(model)
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # the checker's own class, and whatever the C++ behind both finds
        raise ConversionError(f"{path}: no valid ONNX model ({_first_line(error)}); export it again") from error


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators, 0 where none is imported."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in _DEFAULT_DOMAINS), default=0)


def place_of(node: onnx.NodeProto) -> str:
    """The node for messages: its name, or what it makes where it has none."""
    return node.name or f"{node.op_type} that makes {', '.join(node.output)}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ConversionError(f"{path}: no ONNX model, or a truncated one ({len(data)} bytes); export it again") from error
    if not model.graph.node:
        raise ConversionError(f"{path}: no ONNX model, or one without operators ({len(data)} bytes); export it again")
    if not all(isinstance(name, str) for name in _names(model)):  # protobuf hands on as bytes what is no text
        raise ConversionError(f"{path}: a name in it is no UTF-8 text: it is damaged; export it again")
    return model


def _names(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """All that other parts of the model refer to, or messages name."""
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output, *(entry.name for entry in node.attribute))
    for named in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        yield named.name


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    version, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= version <= newest:
        raise ConversionError(f"{path}: the model is of opset {version}; export it with opset_version={OLDEST_OPSET} to {newest}")


def _check_order(path: Path, graph: onnx.GraphProto) -> None:
    """Refuse an operator that reads what nothing makes, or what is made behind it."""
    makers = {name for node in graph.node for name in node.output}
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        for name in node.input:
            if name in known:
                continue
            if name not in makers:
                raise ConversionError(
                    f"{path}: {place_of(node)} reads {name!r}, which is no input, no initialiser and no result; export it again"
                )
            what = "the graph is cyclic" if _is_cyclic(graph) else "the operators are not sorted"
            raise ConversionError(
                f"{path}: {place_of(node)} reads {name!r} before it is made: {what}; expected operators in order of execution"
            )
        known.update(node.output)


def _is_cyclic(graph: onnx.GraphProto) -> bool:
    """Whether operators wait for each other's results for ever, in whichever order they are run."""
    waiting = list(graph.node)
    pending = {name for node in waiting for name in node.output}
    while waiting:
        ready = [node for node in waiting if not pending.intersection(node.input)]
        if not ready:
            return True
        pending.difference_update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if pending.intersection(node.input) or pending.intersection(node.output)]
    return False


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initialisers, and the tensors among the attributes of operators and functions."""
    yield from model.graph.initializer
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t


def _load_external(path: Path, model: onnx.ModelProto) -> None:
    """Put the data that lies in other files into the model."""
    total = 0
    contents: dict[str, bytes] = {}
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in contents:
            contents[location] = read_file(_beside(path, tensor.name, location), _LIMIT_BYTES - total, _EXPECTED)
            total += len(contents[location])
        tensor.raw_data = _part(path, tensor.name, entries, contents[location])
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _beside(path: Path, tensor: str, location: str) -> Path:
    """Path of a file with external data.

    Raises:
        ConversionError: it does not lie in the model's folder or below.
        ConfigError: it is missing.
    """
    folder = path.parent.resolve()
    target = (folder / location).resolve()
    if not location or not target.is_relative_to(folder):
        raise ConversionError(
            f"{path}: the data of {tensor} is said to be at {location!r}, outside the model's folder; keep it beside the model"
        )
    if not target.exists():
        raise ConfigError(f"model {path}: the data of {tensor} is missing: expected a file {target}")
    return target


def _part(path: Path, tensor: str, entries: dict[str, str], content: bytes) -> bytes:
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", len(content) - offset))
    except ValueError:
        offset, length = -1, -1
    if min(offset, length) < 0 or offset + length > len(content):
        raise ConversionError(
            f"{path}: the data of {tensor} is said to be {entries.get('length')} bytes from {entries.get('offset')} of "
            f"{entries['location']}, which has {len(content)}; export it again"
        )
    return content[offset : offset + length]
