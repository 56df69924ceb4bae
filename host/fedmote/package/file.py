# SPDX-License-Identifier: Apache-2.0
"""The partition package: one `.fmp` file with everything that a device and its host need (protocol/SPEC.md, section 7).

    container.py   header, checksum, hash, sections       plan_check.py   records, offsets, shapes
    file.py        Package: the four device sections, manifests, the .tflite inside

A package that was read is a package that a device opens: reading does all of the device's checks in the device's order, with its
statuses, and then those of the host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
from numpy.typing import NDArray

from fedmote.errors import PackageError
from fedmote.package import container, fixed_point, tflite_reader, tflite_writer
from fedmote.package.boards import Board
from fedmote.package.budget import Cost, check_cost, cost
from fedmote.package.compile import Plan, compile_graph
from fedmote.package.graph import Activation, Graph, HeadLayer, Ranges, Tensors
from fedmote.package.head import DenseLayer, HeadShape, head_bytes, logits_of, parameter_count, split_blob
from fedmote.package.host_manifest import HostManifest
from fedmote.package.plan_check import HEAD_HEADER, HEAD_LAYER, check_head, check_plan
from fedmote.package.records import PlanHeader
from fedmote.wire import schema as wire
from fedmote.wire.schema import Arrangement, Section, Status


@dataclass(frozen=True)
class Package:
    """A package in memory; build it with `build_package` or `Package.read`.

    Attributes:
        sections: bytes by section type.
    """

    sections: dict[int, bytes]

    @classmethod
    def read(cls, source: Path | str | bytes) -> Package:
        """Reads and verifies a file, or its bytes.

        Raises:
            PackageError: with the device's status; a file that cannot be opened has none.
        """
        if isinstance(source, bytes):
            return cls._verified(source)
        try:
            return cls._verified(_load(Path(source)))
        except PackageError as error:
            raise PackageError(f"{source}: {error}", error.status) from error

    @classmethod
    def _verified(cls, data: bytes) -> Package:
        package = cls(container.split_sections(data))
        package.verify()
        return package

    def to_bytes(self) -> bytes:
        """The whole file."""
        return container.join_sections(self.sections)

    def device_form(self) -> bytes:
        """What travels and what a slot holds: without the sections of the host."""
        return self._device_form

    @cached_property
    def _device_form(self) -> bytes:
        return container.join_sections({kind: data for kind, data in self.sections.items() if kind < container.HOST_SECTIONS})

    @property
    def hash(self) -> bytes:
        """The 32 bytes of `model_hash`: the hash in the header of the device form."""
        return self.device_form()[16:48]

    @cached_property
    def header(self) -> PlanHeader:
        """Numbers of the encoder."""
        return PlanHeader.unpack(self.sections[Section.PLAN])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest for people and hosts."""
        return _read_manifest(self.sections[Section.MANIFEST])

    @cached_property
    def host(self) -> HostManifest:
        """The host manifest.

        Raises:
            PackageError: this is a device form, which has none.
        """
        if Section.HOST_MANIFEST not in self.sections:
            raise PackageError("this is a device form: it has no host manifest; use the file that the conversion wrote")
        return HostManifest.from_bytes(self.sections[Section.HOST_MANIFEST])

    @property
    def is_device_form(self) -> bool:
        """Whether the sections of the host are missing."""
        return Section.HOST_MANIFEST not in self.sections

    @property
    def encoder_tflite(self) -> bytes:
        """The `.tflite` file of the encoder.

        Raises:
            PackageError: this is a device form, which has none.
        """
        if Section.ENCODER_TFLITE not in self.sections:
            raise PackageError("this is a device form: it has no encoder.tflite; use the file that the conversion wrote")
        return self.sections[Section.ENCODER_TFLITE]

    @cached_property
    def graph(self) -> Graph:
        """The int8 graph of the encoder, for the integer executor.

        Raises:
            PackageError: this is a device form.
        """
        return tflite_reader.read(self.encoder_tflite, "encoder.tflite")

    @property
    def features(self) -> int:
        """Inputs of the head (D)."""
        return self.header.feature_count

    @cached_property
    def _head_layers(self) -> list[tuple[int, int, bool]]:
        return check_head(self.sections[Section.HEAD], self.features)

    @property
    def head_shape(self) -> HeadShape:
        """Sizes of the head."""
        return HeadShape.of([layer[:2] for layer in self._head_layers])

    @property
    def outputs(self) -> int:
        """Outputs of the head, the classes (C)."""
        return self.head_shape.outputs

    @cached_property
    def head_blob(self) -> NDArray[np.float32]:
        """Parameters of the head (P,) in the order of a device."""
        start = HEAD_HEADER.size + HEAD_LAYER.size * len(self._head_layers)
        return np.frombuffer(self.sections[Section.HEAD], "<f4", offset=start).astype(np.float32)

    @property
    def head(self) -> tuple[DenseLayer, ...]:
        """Layers of the head as a device holds them, first layer first."""
        return split_blob(self.head_blob, self._head_layers)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 (N, C) of features (N, D) in the order of a device."""
        return logits_of(self.head, features)

    def cost_on(self, board: Board) -> Cost:
        """Bytes that this package needs on a board, and what the board has."""
        return cost(len(self.device_form()), self.header, self.head_shape, board)

    def verify(self) -> None:
        """All checks behind those of the container: plan, head, manifest, and that they agree with each other.

        Raises:
            PackageError: with a status.
        """
        header, _ = check_plan(self.sections[Section.PLAN], self.sections[Section.WEIGHTS])
        check_head(self.sections[Section.HEAD], header.feature_count)
        _check_manifest(self)


def _load(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PackageError(error.strerror or str(error)) from error


def check_fit(package: Package, board: Board) -> None:
    """Refuses a package that does not fit a board.

    Raises:
        DoesNotFitError: slot or arena; needed and available bytes are in it.
        PackageError: with PACKAGE_OPERATOR, an operator that the board's firmware does not have.
    """
    check_cost(package.cost_on(board))
    _, records = check_plan(package.sections[Section.PLAN], package.sections[Section.WEIGHTS])
    for record in records:
        if not board.has_operator(record.opcode):
            name = record.opcode.name.lower()
            message = f"the firmware of board {board.name} has no operator {name}: add it to `operators` in its board.toml"
            raise PackageError(message, Status.PACKAGE_OPERATOR)


def build_package(
    template: Graph | None,
    graph: Graph,
    head_layers: Sequence[HeadLayer],
    head_tensors: Tensors,
    ranges: Ranges,
    board: Board,
    model_id: str,
    version: int,
    tflite: bytes | None = None,
    *,
    input_layout: str = "as_is",
) -> Package:
    """Makes a package of an int8 encoder and a float head.

    Args:
        template: of the encoder with names of its tensors, or None where weights cannot be pushed.
        graph: the int8 encoder.
        head_layers: the dense layers that the device trains, one or two.
        head_tensors: holds their weights (outputs, inputs) and biases (outputs,).
        ranges: that the encoder was quantized with.
        board: whose arena the manifest speaks of.
        model_id: name of the model.
        version: number of the checkpoint.
        tflite: the encoder's file, where it exists already; else it is written.
        input_layout: how data files become the graph's input, see `host_manifest.INPUT_LAYOUTS`.

    Raises:
        PackageError: the head does not suit the encoder or has values that are not finite.
    """
    return seal_package(
        template,
        graph,
        compile_graph(graph, board.arrangement),
        head_layers,
        head_tensors,
        ranges,
        board,
        model_id,
        version,
        tflite,
        input_layout,
    )


def seal_package(
    template: Graph | None,
    graph: Graph,
    plan: Plan,
    head_layers: Sequence[HeadLayer],
    head_tensors: Tensors,
    ranges: Ranges,
    board: Board,
    model_id: str,
    version: int,
    tflite: bytes | None,
    input_layout: str,
) -> Package:
    """`build_package` of a graph that is compiled already: boards share the plan.

    Plan and head are checked as a device checks them. That the manifests tell the truth and that the `.tflite` inside compiles
    to the plan is so by construction: reading a file proves it, because files come from anywhere.
    """
    tflite = tflite_writer.write(graph) if tflite is None else tflite
    head = _head_section(head_layers, head_tensors, plan.header.feature_count)
    host = HostManifest(model_id, version, board.name, input_layout, tuple(head_layers), template, ranges)
    sections = {
        int(Section.MANIFEST): b"",
        int(Section.PLAN): plan.records,
        int(Section.WEIGHTS): plan.weights,
        int(Section.HEAD): head,
        int(Section.HOST_MANIFEST): host.to_bytes(),
        int(Section.ENCODER_TFLITE): tflite,
    }
    manifest = _manifest(graph, plan, head_layers, board, host, tflite)
    sections[int(Section.MANIFEST)] = cbor2.dumps(manifest, canonical=True)
    check_plan(plan.records, plan.weights)
    return Package(sections)


def device_form_bytes(
    graph: Graph, plan: Plan, head_layers: Sequence[HeadLayer], board: Board, model_id: str, version: int
) -> int:
    """Size of the device form of a package, before there are values for its head.

    Args:
        graph: the int8 encoder.
        plan: compiled from it, for the board.
        head_layers: the dense layers that the device trains.
        board: whose arena the manifest speaks of.
        model_id: name of the model.
        version: number of the checkpoint.
    """
    host = HostManifest(model_id, version, board.name, "as_is", tuple(head_layers), None, {})
    manifest = cbor2.dumps(_manifest(graph, plan, head_layers, board, host, b""), canonical=True)
    head = HEAD_HEADER.size + HEAD_LAYER.size * len(head_layers) + 4 * parameter_count(head_layers)
    sections = {
        int(Section.MANIFEST): manifest,
        int(Section.PLAN): plan.records,
        int(Section.WEIGHTS): plan.weights,
        int(Section.HEAD): bytes(head),
    }
    return len(container.join_sections(sections))


def _head_section(layers: Sequence[HeadLayer], tensors: Tensors, features: int) -> bytes:
    if layers and layers[0].inputs != features:
        raise PackageError(f"the head reads {layers[0].inputs} features, the encoder makes {features}", Status.PACKAGE_HEAD)
    table = HEAD_HEADER.pack(len(layers))
    for layer in layers:
        if layer.activation is Activation.RELU6:
            raise PackageError("a head has a ReLU between its layers, or nothing; not ReLU6", Status.PACKAGE_HEAD)
        activation = wire.Activation.RELU if layer.activation is Activation.RELU else wire.Activation.NONE
        table += HEAD_LAYER.pack(layer.inputs, layer.outputs, activation, 0)
    head = table + head_bytes(layers, tensors)
    check_head(head, features)
    return head


def _manifest(
    graph: Graph, plan: Plan, layers: Sequence[HeadLayer], board: Board, host: HostManifest, tflite: bytes
) -> dict[str, Any]:
    """Sizes that other sections decide are in it too: `verify` compares them."""
    header = plan.header
    sizes = [(layer.inputs, layer.outputs) for layer in layers]
    needs = cost(0, header, HeadShape.of(sizes), board)
    return {
        "model": host.model_id,
        "version": host.version,
        "board": board.name,
        "cut": graph.output,
        "input": _manifest_tensor(graph, graph.input),
        "features": _manifest_tensor(graph, graph.output),
        "head": [list(size) for size in sizes],
        "macs": header.macs,
        "encoder_bytes": header.encoder_bytes,
        "arena_bytes": needs.arena_bytes,
        "tflite_hash": hashlib.blake2b(tflite, digest_size=16).digest(),
    }


def _manifest_tensor(graph: Graph, name: str) -> dict[str, Any]:
    quantization = fixed_point.quantization_of(graph.activations[name])
    return {
        "shape": list(graph.activations[name].shape),
        "scale": float(quantization.scale[0]),
        "zero_point": int(quantization.zero_point[0]),
    }


def _read_manifest(data: bytes) -> dict[str, Any]:
    try:
        content = cbor2.loads(data)
    except Exception as error:  # cbor2 raises its own errors, and others on hostile bytes (e.g. OverflowError, RecursionError)
        raise PackageError(f"the manifest is not CBOR: {error}", Status.PACKAGE_SECTION) from error
    if not isinstance(content, dict) or cbor2.dumps(content, canonical=True) != data:
        raise PackageError("the manifest is not a deterministic CBOR map", Status.PACKAGE_SECTION)
    return content


def _check_manifest(package: Package) -> None:
    """The manifest tells the truth about the other sections."""
    header, manifest = package.header, package.manifest
    expected = {
        "head": [list(layer[:2]) for layer in package._head_layers],
        "macs": header.macs,
        "encoder_bytes": header.encoder_bytes,
    }
    for side, count, scale, zero_point in (
        ("input", header.input_count, header.input_scale, header.input_zero_point),
        ("features", header.feature_count, header.feature_scale, header.feature_zero_point),
    ):
        tensor = manifest.get(side)
        if not isinstance(tensor, dict) or not _is_shape_of(tensor.get("shape"), count):
            raise PackageError(f"manifest and plan differ in the shape of {side!r}", Status.PACKAGE_BOUNDS)
        if (tensor.get("scale"), tensor.get("zero_point")) != (scale, zero_point):
            raise PackageError(f"manifest and plan differ in the quantization of {side!r}", Status.PACKAGE_BOUNDS)
    for key, value in expected.items():
        if manifest.get(key) != value:
            raise PackageError(f"manifest and plan differ in {key!r}: {manifest.get(key)!r}, {value!r}", Status.PACKAGE_BOUNDS)
    if not package.is_device_form:
        _check_host_sections(package)


def _is_shape_of(shape: object, count: int) -> bool:
    if not isinstance(shape, list) or not all(isinstance(length, int) and 0 < length <= count for length in shape):
        return False
    product = 1
    for length in shape:
        product *= length
    return bool(product == count)


def _check_host_sections(package: Package) -> None:
    """Host manifest, `.tflite` and plan belong together: the file compiles to the very plan."""
    manifest, host = package.manifest, package.host
    if (manifest.get("model"), manifest.get("version"), manifest.get("board")) != (host.model_id, host.version, host.board):
        raise PackageError("manifest and host manifest differ in model, version or board", Status.PACKAGE_SECTION)
    if manifest.get("tflite_hash") != hashlib.blake2b(package.encoder_tflite, digest_size=16).digest():
        raise PackageError("the .tflite inside is not the one that the manifest names", Status.PACKAGE_HASH)
    plan = compile_graph(package.graph, Arrangement(package.header.arrangement))
    if plan.records != package.sections[Section.PLAN] or plan.weights != package.sections[Section.WEIGHTS]:
        raise PackageError("the .tflite inside compiles to another plan", Status.PACKAGE_BOUNDS)
