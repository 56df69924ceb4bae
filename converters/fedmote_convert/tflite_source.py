# SPDX-License-Identifier: Apache-2.0
"""An int8 `.tflite` file of any origin as the source of a conversion: packages for many boards, and a report.

`fedmote.package.importer` takes the file apart; nothing is quantized again, so the encoder computes what the file does, byte for
byte. There is no float model to compare with. Calibration samples are optional: they show what ranges the activations really
take, how much of the input the file's quantization cuts off, and, with labels, the accuracy of the deployed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from fedmote.cli.table import write_table
from fedmote.package import fixed_point
from fedmote.package.boards import Board
from fedmote.package.execute import run_int8
from fedmote.package.file import Package, build_package
from fedmote.package.graph import Activations, Graph, Ranges
from fedmote.package.importer import Import, split
from fedmote.package.inputs import arrange
from fedmote.package.partition import evaluate
from fedmote.package.quantize import dequantize_values, quantize_values
from fedmote.tensors import dump_safetensors
from fedmote_convert.convert import check_boards
from fedmote_convert.output import write_files
from fedmote_convert.report import operators_of, to_json
from fedmote_convert.sources import Calibration, model_id_of, read_file

LARGEST_BYTES = 2**31  # offsets of the format are 32 bits, and no device holds a file of that size
_LAYOUT = "as_is"  # samples have the shape of the file's own input


@dataclass(frozen=True)
class ImportedModel:
    """A file and what it became.

    Attributes:
        model_id: name of the model.
        parts: encoder and head, with notes on what was done.
        packages: by board name.
        ranges: of the encoder's activations: what the samples showed, else what their quantization can hold.
        quality: what the samples showed beyond that; empty without samples.
    """

    model_id: str
    parts: Import
    packages: dict[str, Package]
    ranges: Ranges
    quality: dict[str, float]

    @property
    def package(self) -> Package:
        """Any of the packages: what they say of the model is the same in all."""
        return next(iter(self.packages.values()))


def import_model(
    path: Path, boards: Sequence[Board], calibration: Calibration | None = None, cut: str | None = None
) -> ImportedModel:
    """Make packages of a `.tflite` file.

    Args:
        path: the file, int8 inside and out.
        boards: at least one.
        calibration: samples x (N, ...) in the shape of the file's input, float32, and labels.
        cut: name of the tensor, or number of the node, where the encoder ends; None: before the last dense layer.

    Raises:
        ConfigError: the file cannot be read.
        PackageError, UnsupportedOpError: it is damaged, or holds what devices cannot run.
        ConversionError: it cannot be cut there, or the samples do not suit it.
        DoesNotFitError: the only board that does not fit; ConversionError where there are several.
    """
    parts = split(read_file(path, LARGEST_BYTES, "a .tflite file"), str(path), cut)
    model_id = model_id_of(path)
    packages = {
        board.name: build_package(None, parts.encoder, parts.head, parts.tensors, {}, board, model_id, 0, input_layout=_LAYOUT)
        for board in boards
    }
    check_boards(packages, boards)
    if calibration is None:
        ranges = {name: _limits(activation) for name, activation in parts.encoder.activations.items()}
        return ImportedModel(model_id, parts, packages, ranges, {})
    ranges, quality = _observe(parts.encoder, calibration.x)
    if calibration.y is not None:
        package = next(iter(packages.values()))
        quality["accuracy_int8"] = evaluate(package, calibration.x, calibration.y)
    return ImportedModel(model_id, parts, packages, ranges, quality)


def _limits(activation: Activations) -> tuple[float, float]:
    """The real numbers that the least and the greatest int8 value of an activation stand for."""
    ends = np.array([fixed_point.INT8_MIN, fixed_point.INT8_MAX], np.int8)
    low, high = dequantize_values(activation, ends)
    return float(low), float(high)


def _observe(encoder: Graph, x: NDArray[np.float32]) -> tuple[Ranges, dict[str, float]]:
    """Ranges over samples, and the share of the input's values that its quantization cannot hold."""
    source = encoder.activations[encoder.input]
    arranged = arrange(x, _LAYOUT, source.shape)
    quantized = quantize_values(source, arranged)
    low, high = _limits(source)
    half_step = (high - low) / (2 * (fixed_point.INT8_MAX - fixed_point.INT8_MIN))
    clipped = (arranged < low - half_step) | (arranged > high + half_step)
    ranges: Ranges = {}

    def widen(name: str, values: NDArray[np.int8]) -> None:
        ends = dequantize_values(encoder.activations[name], np.array([values.min(), values.max()], np.int8))
        known = ranges.get(name, (np.inf, -np.inf))
        ranges[name] = (min(known[0], float(ends[0])), max(known[1], float(ends[1])))

    widen(encoder.input, quantized)
    run_int8(encoder, quantized, widen)
    return ranges, {"samples": len(x), "input_clipped": float(clipped.mean())}


def write(imported: ImportedModel, boards: Sequence[Board], directory: Path) -> dict[str, Any]:
    """Write the packages and what belongs to them, as `output.write` does; return the report.

    Raises:
        ConfigError: the directory cannot be written.
    """
    tensors = dump_safetensors(imported.parts.tensors, {"model": imported.model_id, "version": "0"})
    contents = {
        "encoder.tflite": imported.package.encoder_tflite,
        "head.safetensors": tensors,
        "checkpoint.safetensors": tensors,  # the head is all of the state that training can change
        **{f"{imported.model_id}-{board}.fmp": package.to_bytes() for board, package in imported.packages.items()},
    }
    report = report_of(imported, boards, {name: len(content) for name, content in contents.items()})
    write_files({**contents, "report.json": to_json(report).encode()}, directory)
    return report


def report_of(imported: ImportedModel, boards: Sequence[Board], files: dict[str, int]) -> dict[str, Any]:
    """The report: the keys of a conversion's that have a meaning for a file that was quantized elsewhere."""
    encoder, header = imported.parts.encoder, imported.package.header
    return {
        "model": imported.model_id,
        "version": 0,
        "cut": {
            "name": encoder.output,
            "reason": "; ".join(imported.parts.notes),
            "features": imported.package.features,
            "candidates": [],
        },
        "encoder": {"macs": header.macs, "arena_bytes": header.encoder_bytes, "operators": operators_of(encoder)},
        "head": [vars(layer) for layer in imported.parts.head],
        "boards": {board.name: _board(imported.packages[board.name], board) for board in boards},
        "quality": imported.quality,
        "ranges": {name: list(limits) for name, limits in imported.ranges.items()},
        "files": files,
    }


def _board(package: Package, board: Board) -> dict[str, Any]:
    return {"hash": package.hash.hex(), **vars(package.cost_on(board))}


def table(report: Mapping[str, Any], out: TextIO) -> None:
    """Write the report as lines for people."""
    encoder, quality = report["encoder"], report["quality"]
    out.write(f"model     {report['model']}, quantized by whoever made the file\n")
    out.write(f"cut       {report['cut']['reason']}\n")
    operators, macs, arena = len(encoder["operators"]), encoder["macs"], encoder["arena_bytes"]
    out.write(f"encoder   {operators} operators, {macs:,} MACs, {arena:,} bytes of arena\n")
    if quality:
        out.write(f"samples   {quality['samples']}; {quality['input_clipped']:.1%} of their values are beyond the file's input\n")
    if "accuracy_int8" in quality:
        out.write(f"accuracy  {quality['accuracy_int8']:.1%} with the int8 encoder and the float head\n")
    needs = ("slot_bytes", "slot_available", "arena_bytes", "arena_available", "cached_samples")
    out.write("\n")
    write_table(("board", *needs), [(name, *(board[key] for key in needs)) for name, board in report["boards"].items()], out)
    out.write("\n")
    write_table(("file", "bytes"), list(report["files"].items()), out)
