# SPDX-License-Identifier: Apache-2.0
"""The host manifest: templates, heads and ranges as deterministic JSON (section 128 of a package).

A template names checkpoint tensors instead of holding them, so a few kilobytes are enough to push new weights into a package
without a new capture. Keys are sorted and floats are written in their shortest exact form: same content, same bytes. What a
calibration found for each channel (equalisation factors, means of inputs) are vectors in Base64 of little-endian float32.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import PackageError
from fedmote.package.graph import Activation, Activations, BatchNormRef, Graph, HeadLayer, Op, OpKind, Ranges, WeightRef
from fedmote.wire.schema import Status

FORMAT: Final = 1
# How samples (N, ...) of data files become the graph's channels-last input: "nchw" and "ncw" from torch's order, "nwc" steps
# with their channels behind, "nf" flat features, "as_is" already in the graph's shape.
INPUT_LAYOUTS: Final = ("as_is", "nchw", "ncw", "nwc", "nf")
# Fields of Op that a template keeps; values that equal the default are left out.
_OP_FIELDS: Final = (
    *("stride", "dilation", "padding", "kernel", "pads", "depth_multiplier", "weight_bits"),
    *("axis", "permutation", "starts", "steps", "alpha", "beta", "has_one_scale", "scale_bits", "has_even_divisors"),
)
# Fields of WeightRef that only narrower models have.
_NARROWING: Final = ("rows", "columns", "norm_scale", "norm_shift")
# Vectors of Op and of WeightRef; those that are None are left out.
_OP_VECTORS: Final = ("float_means", "int8_means")
_SOURCE_VECTORS: Final = ("output_factors", "input_factors")
_DEFAULTS: Final = {f.name: f.default for f in fields(Op)}


@dataclass(frozen=True)
class HostManifest:
    """What a host knows about a package beyond what a device needs.

    Attributes:
        model_id: name of the model.
        version: number of the checkpoint whose weights are inside.
        board: name of the board that it was made for.
        input_layout: one of INPUT_LAYOUTS.
        head: layers of the head, with names of their checkpoint tensors.
        template: of the encoder, or None where there is no source to push weights from (imported files).
        ranges: that the encoder was quantized with; empty for imported files.
    """

    model_id: str
    version: int
    board: str
    input_layout: str
    head: tuple[HeadLayer, ...]
    template: Graph | None
    ranges: Ranges

    def to_bytes(self) -> bytes:
        """UTF-8 JSON with sorted keys."""
        content = {
            "format": FORMAT,
            "model_id": self.model_id,
            "version": self.version,
            "board": self.board,
            "input_layout": self.input_layout,
            "head": [vars(layer) | {"activation": layer.activation.value} for layer in self.head],
            "template": None if self.template is None else _dump_graph(self.template),
            "ranges": {name: list(limits) for name, limits in self.ranges.items()},
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> HostManifest:
        """Reads it.

        Raises:
            PackageError: not JSON, or not of this form.
        """
        try:
            content = json.loads(data)
            if content["format"] != FORMAT:
                raise PackageError(
                    f"host manifest format {content['format']!r}, this version reads {FORMAT}", Status.PACKAGE_SECTION
                )
            template = content["template"]
            manifest = cls(
                model_id=_text(content["model_id"]),
                version=_count(content["version"]),
                board=_text(content["board"]),
                input_layout=_text(content["input_layout"]),
                head=tuple(_load_head(layer) for layer in content["head"]),
                template=None if template is None else _load_graph(template),
                ranges={_text(name): _range(limits) for name, limits in content["ranges"].items()},
            )
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise PackageError(
                f"the host manifest is malformed: {type(error).__name__}: {error}", Status.PACKAGE_SECTION
            ) from error
        if manifest.input_layout not in INPUT_LAYOUTS:
            raise PackageError(f"the host manifest has the input layout {manifest.input_layout!r}", Status.PACKAGE_SECTION)
        return manifest


def _dump_graph(graph: Graph) -> dict[str, Any]:
    return {
        "input": graph.input,
        "output": graph.output,
        "activations": {name: list(activation.shape) for name, activation in graph.activations.items()},
        "ops": [_dump_op(op) for op in graph.ops],
    }


def _dump_op(op: Op) -> dict[str, Any]:
    content: dict[str, Any] = {"kind": op.kind.value, "name": op.name, "inputs": list(op.inputs), "output": op.output}
    if op.activation is not Activation.NONE:
        content["activation"] = op.activation.value
    for name in _OP_FIELDS:
        value = getattr(op, name)
        if value != _DEFAULTS[name]:
            content[name] = list(value) if isinstance(value, tuple) else value
    if op.pad_value is not None:
        content["pad_value"] = op.pad_value
    if op.constant is not None:
        content["constant"] = {"shape": list(op.constant.shape), "values": [float(value) for value in op.constant.reshape(-1)]}
    if op.source is not None:
        source = op.source
        content["source"] = {
            "weight": source.weight,
            "bias": source.bias,
            "batch_norm": [vars(norm) for norm in source.batch_norm],
            "layout": source.layout,
            "chw": None if source.chw is None else list(source.chw),
            **{name: list(value) for name in _NARROWING if (value := getattr(source, name))},
            **_dump_vectors(source, _SOURCE_VECTORS),
        }
        if source.input_norm:
            content["source"]["input_norm"] = [vars(norm) for norm in source.input_norm]
        if source.axes:
            content["source"] |= {"axes": list(source.axes), "order": list(source.order)}
    return content | _dump_vectors(op, _OP_VECTORS)


def _dump_vectors(owner: Op | WeightRef, names: Sequence[str]) -> dict[str, str]:
    vectors = {name: getattr(owner, name) for name in names}
    return {
        name: base64.b64encode(vector.astype("<f4").tobytes()).decode() for name, vector in vectors.items() if vector is not None
    }


def _load_graph(content: Mapping[str, Any]) -> Graph:
    activations = {
        _text(name): Activations(_text(name), tuple(_count(length) for length in shape))
        for name, shape in content["activations"].items()
    }
    graph = Graph(_text(content["input"]), _text(content["output"]), activations, tuple(_load_op(op) for op in content["ops"]))
    made = {graph.input}
    for op in graph.ops:
        if not op.inputs or not made.issuperset(op.inputs):
            raise ValueError(f"operator {op.name!r} reads what is not made before it")
        made.add(op.output)
    if graph.output not in made or not made.issubset(activations):
        raise ValueError("the template's output is not made, or an activation is not declared")
    return graph


def _load_op(content: Mapping[str, Any]) -> Op:
    values: dict[str, Any] = {}
    for name in _OP_FIELDS:
        if name in content:
            values[name] = _field(name, content[name])
    return Op(
        kind=OpKind(content["kind"]),
        name=_text(content["name"]),
        inputs=tuple(_text(name) for name in content["inputs"]),
        output=_text(content["output"]),
        activation=Activation(content.get("activation", Activation.NONE.value)),
        source=_load_source(content["source"]) if "source" in content else None,
        constant=_load_constant(content["constant"]) if "constant" in content else None,
        pad_value=_integer(content["pad_value"]) if "pad_value" in content else None,
        **values,
        **_load_vectors(content, _OP_VECTORS),
    )


def _field(name: str, value: Any) -> Any:  # noqa: ANN401 - fields of Op
    """A field of an operator, of the type and, where that is not open, the length of its default."""
    default = _DEFAULTS[name]
    if isinstance(default, tuple):
        return _tuple(value, len(default)) if default else tuple(_integer(item) for item in value)
    if isinstance(default, float) and isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    if type(value) is not type(default):  # True is an int to isinstance
        raise TypeError(f"{name} is {value!r}")
    return value


def _load_constant(content: Mapping[str, Any]) -> NDArray[np.float32]:
    values = np.array([float(value) for value in content["values"]], np.float32)
    if not np.isfinite(values).all():
        raise ValueError("a constant is not finite")
    return values.reshape([_count(length) for length in content["shape"]])


def _load_source(content: Mapping[str, Any]) -> WeightRef:
    return WeightRef(
        weight=_text(content["weight"]),
        bias=None if content["bias"] is None else _text(content["bias"]),
        batch_norm=tuple(_load_norm(norm) for norm in content["batch_norm"]),
        layout=_text(content["layout"]),
        chw=_load_chw(content["chw"]),
        input_norm=tuple(_load_norm(norm) for norm in content.get("input_norm", ())),
        axes=tuple(_count(length) for length in content.get("axes", ())),
        order=tuple(_count(axis) for axis in content.get("order", ())),
        rows=_load_indices(content.get("rows")),
        columns=_load_indices(content.get("columns")),
        norm_scale=_load_numbers(content.get("norm_scale", ())),
        norm_shift=_load_numbers(content.get("norm_shift", ())),
        **_load_vectors(content, _SOURCE_VECTORS),
    )


def _load_vectors(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    vectors = {}
    for name in names:
        if name in content:
            vector = np.frombuffer(base64.b64decode(content[name], validate=True), "<f4").astype(np.float32)
            if not vector.size or not np.isfinite(vector).all():
                raise ValueError(f"{name} is empty or not finite")
            vectors[name] = vector
    return vectors


def _load_indices(content: Sequence[object] | None) -> tuple[int, ...] | None:
    return None if content is None else tuple(_count(index) for index in content)


def _load_numbers(content: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(number) for number in content)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a correction is not finite")
    return numbers


def _load_norm(content: Mapping[str, Any]) -> BatchNormRef:
    weight, bias = (None if content[name] is None else _text(content[name]) for name in ("weight", "bias"))
    mean, variance = (_text(content[name]) for name in ("running_mean", "running_var"))
    return BatchNormRef(weight, bias, mean, variance, float(content["eps"]))


def _load_head(content: Mapping[str, Any]) -> HeadLayer:
    return HeadLayer(
        weight=_text(content["weight"]),
        bias=_text(content["bias"]),
        inputs=_count(content["inputs"]),
        outputs=_count(content["outputs"]),
        chw=_load_chw(content["chw"]),
        activation=Activation(content["activation"]),
    )


def _load_chw(content: Sequence[object] | None) -> tuple[int, int, int] | None:
    return None if content is None else (_count(content[0]), _count(content[1]), _count(content[2]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no integer")
    return value


def _tuple(value: Sequence[object], length: int) -> tuple[int, ...]:
    if len(value) != length:
        raise ValueError(f"{value!r} should have {length} numbers")
    return tuple(_count(item) for item in value)


def _range(value: Sequence[float]) -> tuple[float, float]:
    low, high = (float(limit) for limit in value)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"range {value!r} is not finite")
    return low, high
