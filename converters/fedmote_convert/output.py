# SPDX-License-Identifier: Apache-2.0
"""The directory that a conversion leaves.

    encoder.tflite           the int8 encoder, for any TFLite tool
    head.safetensors         float tensors of the head in torch's order; where report.json gives its layer a `chw`, the columns
                             follow a flatten of (channels, height, width), the encoder's features (height, width, channels)
    checkpoint.safetensors   the whole float state: checkpoint number one of a task
    <model>-<board>.fmp      a package for each board
    report.json              what was converted, what it costs, what it keeps, and all forms that there were
    report.html              the same for a browser
    pareto.png               accuracy of all forms against what they cost, where accuracies are known and matplotlib is installed

Where boards get different forms of the model, each form has these files in a directory of its own, named after it, that can be
used alone; the report beside them covers all.

Files are written into a new directory beside the target and renamed when all are complete, so a failure changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fedmote.errors import ConfigError
from fedmote.tensors import dump_safetensors
from fedmote_convert import page, pareto
from fedmote_convert.convert import Conversion
from fedmote_convert.report import report_of, tier_reports, to_json
from fedmote_convert.tiers import Tiers

REPORT = "report.json"
PAGE = "report.html"
PLOT = "pareto.png"


def write(result: Tiers, directory: Path) -> dict[str, Any]:
    """Write a conversion; return its report.

    Files of an earlier conversion that its report lists and this one does not make again are removed: packages of two
    conversions in one directory would contradict each other. Other files stay.

    Raises:
        ConfigError: the directory cannot be written.
    """
    contents: dict[str, bytes] = {}
    for tier in result.tiers:
        prefix = f"{tier.name}/" if len(result.tiers) > 1 else ""
        contents |= {prefix + name: content for name, content in contents_of(tier.conversion).items()}
    report = report_of(result, {name: len(content) for name, content in contents.items()})
    write_files(contents | _views(report), directory)
    return report


def write_files(contents: Mapping[str, bytes], directory: Path) -> None:
    """Write files by name, a report among them; what `write` says of earlier ones and of failures holds for all.

    Raises:
        ConfigError: the directory cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _replace(contents, directory)
    except OSError as error:
        raise ConfigError(f"-o {directory}: cannot be written ({error.strerror}); expected a directory of yours") from error


def is_plotted(report: Mapping[str, Any]) -> bool:
    """Whether a report has accuracies to plot."""
    return bool(pareto.panels_of(report))


def _views(report: Mapping[str, Any]) -> dict[str, bytes]:
    """The report and what shows it."""
    views = {REPORT: to_json(report).encode(), PAGE: page.page(report, tier_reports(report)).encode()}
    panels = pareto.panels_of(report)
    return views | {PLOT: pareto.png(panels)} if panels and pareto.has_matplotlib() else views


def contents_of(conversion: Conversion) -> dict[str, bytes]:
    """The files of one conversion by name, the report left out."""
    head = {name: conversion.tensors[name] for layer in conversion.head for name in (layer.weight, layer.bias)}
    metadata = {"model": conversion.model_id, "version": str(conversion.package.host.version)}
    packages = {f"{conversion.model_id}-{board}.fmp": package.to_bytes() for board, package in conversion.packages.items()}
    return {
        "encoder.tflite": conversion.package.encoder_tflite,
        "head.safetensors": dump_safetensors(head, metadata),
        "checkpoint.safetensors": dump_safetensors(conversion.tensors, metadata),
        **packages,
    }


def _replace(contents: Mapping[str, bytes], directory: Path) -> None:
    """Write everything beside the directory, then let it appear: at once where there was none, else file by file."""
    holder = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    staging = holder / directory.name  # a directory of its own, with the rights that the user's mask gives
    try:
        staging.mkdir()
        for name, content in contents.items():
            (staging / name).parent.mkdir(exist_ok=True)
            with (staging / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if not directory.exists():
            staging.rename(directory)
            return
        outdated = _written_before(directory) - contents.keys()
        for name in contents:
            (directory / name).parent.mkdir(exist_ok=True)
            (staging / name).replace(directory / name)
        for name in outdated:
            (directory / name).unlink(missing_ok=True)
        for tier in {(directory / name).parent for name in outdated} - {directory}:
            with contextlib.suppress(OSError):  # whatever else is in it stays, and the directory with it
                tier.rmdir()
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _written_before(directory: Path) -> set[str]:
    """Names of files that the report in the directory lists; paths that lead elsewhere do not count."""
    names: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
        names = {str(name) for name in (*report["files"], PLOT) if _is_inside(str(name))}
    return names


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file of a conversion: in the directory itself, or in a tier's directly below it."""
    parts = PurePosixPath(name).parts
    return "/".join(parts) == name and len(parts) in (1, 2) and not {"..", "/"} & set(parts)
