# SPDX-License-Identifier: Apache-2.0
"""What a coordinator works with: one model, cut, with one package for each kind of board; new weights are pushed into it.

A push is the very chain of a conversion behind its calibration: bind, quantize, write, compile, seal. So its packages equal those
of a conversion with the same tensors, ranges and stored corrections byte for byte, and there is no second way to make them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, PackageError
from fedmote.package import tflite_writer
from fedmote.package.boards import Board
from fedmote.package.compile import compile_graph
from fedmote.package.execute import run_int8
from fedmote.package.file import Package, seal_package
from fedmote.package.fold import bind, parameter_names
from fedmote.package.graph import Graph, HeadLayer, Ranges, Tensors
from fedmote.package.head import dense_layers, logits_of
from fedmote.package.inputs import arrange
from fedmote.package.quantize import dequantize_values, observation_points, quantize, quantize_input
from fedmote.wire.schema import Status


def assemble(
    template: Graph,
    head_layers: Sequence[HeadLayer],
    tensors: Tensors,
    ranges: Ranges,
    boards: Sequence[Board],
    model_id: str,
    version: int,
    input_layout: str,
) -> dict[str, Package]:
    """Tensors and ranges to packages, one for each board, by board name. Conversion and push both end here.

    Args:
        template: of the encoder.
        head_layers: the layers that devices train.
        tensors: the whole checkpoint, encoder and head.
        ranges: at least at the template's observation points.
        boards: to make packages for; whether they fit is for the caller to check.
        model_id: name of the model.
        version: number of the checkpoint.
        input_layout: of data files, see `host_manifest.INPUT_LAYOUTS`.

    Raises:
        ConversionError: tensors or ranges do not suit the template.
        PackageError: the result is beyond what devices can run.
    """
    needed = {name: ranges[name] for name in observation_points(template) if name in ranges}
    graph = quantize(bind(template, tensors), needed)
    tflite = tflite_writer.write(graph)
    plans = {arrangement: compile_graph(graph, arrangement) for arrangement in {board.arrangement for board in boards}}
    return {
        board.name: seal_package(
            template,
            graph,
            plans[board.arrangement],
            head_layers,
            tensors,
            needed,
            board,
            model_id,
            version,
            tflite,
            input_layout,
        )
        for board in boards
    }


def push(package: Package, tensors: Tensors, ranges: Ranges | None, version: int) -> Package:
    """Puts a new checkpoint into a package.

    Args:
        package: made by a conversion.
        tensors: the whole new checkpoint.
        ranges: newly observed, or None to keep the package's; the input's range is kept in any case, because devices
            hold their samples in it.
        version: number of the new checkpoint.

    Raises:
        PackageError: the package has no template (imported files and device forms).
        ConversionError: tensors or ranges do not suit it.
    """
    host = package.host
    if host.template is None:
        raise PackageError("this package was imported from a .tflite file: it does not know where its weights come from")
    merged = with_frozen_input(ranges or {}, host.ranges, host.template.input)
    board = Board.load(host.board)
    made = assemble(host.template, host.head, tensors, merged, [board], host.model_id, version, host.input_layout)
    return made[board.name]


def with_frozen_input(ranges: Ranges, known: Ranges, name: str) -> Ranges:
    """`ranges`, with that of the input `name` and all that are missing taken from `known`.

    The range of the model's input is frozen for the life of a task: devices store their samples as int8 in its quantization.
    """
    return known | {point: limits for point, limits in ranges.items() if point != name}


def head_tensor_names(package: Package) -> tuple[str, ...]:
    """Names of the head's checkpoint tensors in the order of its blob: layer by layer weights, bias."""
    return tuple(name for layer in package.host.head for name in (layer.weight, layer.bias))


def run_features(package: Package, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features float32 (N, D) that a device computes for samples x (N, ...) in the layout of data files.

    Raises:
        ConversionError: the samples do not suit the model.
        PackageError: this is a device form.
    """
    graph = package.graph
    arranged = arrange(np.asarray(x, np.float32), package.host.input_layout, graph.activations[graph.input].shape)
    features = run_int8(graph, quantize_input(graph, arranged))
    return dequantize_values(graph.activations[graph.output], features).reshape(len(x), -1)


def evaluate(package: Package, x: NDArray[np.float32], y: NDArray[np.int64], tensors: Tensors | None = None) -> float:
    """Accuracy in [0, 1] of the deployed form: int8 encoder and float head.

    Args:
        package: made by a conversion or an import.
        x: samples (N, ...) in the layout of data files, float32.
        y: class indices (N,).
        tensors: a checkpoint whose head is newer than the package's; None: the package's own.

    Raises:
        ConversionError: the samples do not suit the model, or there are none.
    """
    if not len(x) or len(x) != len(y):
        raise ConversionError(f"{len(x)} samples and {len(y)} labels: accuracy needs as many of both, at least one")
    layers = package.head if tensors is None else dense_layers(package.host.head, tensors)
    logits = logits_of(layers, run_features(package, x))
    return float((logits.argmax(axis=1) == y).mean())


@dataclass(frozen=True)
class Partition:
    """One version of a model for all boards of a task.

    Attributes:
        packages: by board name.
    """

    packages: Mapping[str, Package]

    @classmethod
    def load(cls, directory: Path | str) -> Partition:
        """Reads all `.fmp` files of a directory, as a conversion leaves them.

        Raises:
            PackageError: none is there, one is damaged, or they are not of one conversion.
        """
        packages: dict[str, Package] = {}
        for path in sorted(Path(directory).glob("*.fmp")):
            package = Package.read(path)
            board = package.host.board
            if board in packages:
                raise PackageError(f"{path}: a second package for board {board}")
            packages[board] = package
        if not packages:
            raise PackageError(f"{directory}: no .fmp files; `fedmote convert` writes them")
        partition = cls(packages)
        partition._check_unity(str(directory))
        return partition

    def _check_unity(self, origin: str) -> None:
        first, *others = [package.host for package in self.packages.values()]
        for host in others:
            # As they are written: templates hold arrays, which have no single truth value.
            if replace(first, board="").to_bytes() != replace(host, board="").to_bytes():
                raise PackageError(
                    f"{origin}: the packages of {first.board} and {host.board} are not of one conversion", Status.PACKAGE_SECTION
                )

    @property
    def package(self) -> Package:
        """Any of the packages: what they say of the model is the same in all."""
        return next(iter(self.packages.values()))

    @property
    def template(self) -> Graph:
        """Template of the encoder.

        Raises:
            PackageError: the packages were imported from a `.tflite` file.
        """
        template = self.package.host.template
        if template is None:
            raise PackageError("these packages were imported from a .tflite file: they do not know where their weights come from")
        return template

    @property
    def head(self) -> tuple[HeadLayer, ...]:
        """Layers of the head."""
        return self.package.host.head

    @property
    def model_id(self) -> str:
        """Name of the model."""
        return self.package.host.model_id

    @property
    def version(self) -> int:
        """Number of the checkpoint inside."""
        return self.package.host.version

    @property
    def ranges(self) -> Ranges:
        """Ranges that the encoder was quantized with, by activation."""
        return self.package.host.ranges

    @property
    def observation_points(self) -> tuple[str, ...]:
        """Names of the activations whose ranges are to be observed."""
        return observation_points(self.template)

    @property
    def encoder_tensor_names(self) -> tuple[str, ...]:
        """Names of the checkpoint tensors of the encoder."""
        return parameter_names(self.template)

    @property
    def head_tensor_names(self) -> tuple[str, ...]:
        """Names of the checkpoint tensors of the head: layer by layer weights, bias."""
        return head_tensor_names(self.package)

    def push(self, tensors: Tensors, ranges: Ranges | None, version: int) -> Partition:
        """A new checkpoint for all boards; encoder work is done once. See `push`."""
        template = self.template
        merged = with_frozen_input(ranges or {}, self.ranges, template.input)
        boards = [Board.load(name) for name in self.packages]
        layout = self.package.host.input_layout
        return Partition(assemble(template, self.head, tensors, merged, boards, self.model_id, version, layout))

    def save(self, directory: Path | str) -> list[Path]:
        """Writes `<model>-<board>.fmp` for each board. Returns the paths."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for board, package in self.packages.items():
            path = folder / f"{self.model_id}-{board}.fmp"
            path.write_bytes(package.to_bytes())
            paths.append(path)
        return paths

    def evaluate(self, x: NDArray[np.float32], y: NDArray[np.int64], tensors: Tensors | None = None) -> float:
        """Accuracy of the deployed form; see `evaluate`."""
        return evaluate(self.package, x, y, tensors)
