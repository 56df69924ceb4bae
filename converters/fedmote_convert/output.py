# SPDX-License-Identifier: Apache-2.0
"""The directory that a conversion leaves.

    encoder.tflite           the int8 encoder, for any TFLite tool
    head.safetensors         float tensors of the head in torch's order; where report.json gives its layer a `chw`, the columns
                             follow a flatten of (channels, height, width), the encoder's features (height, width, channels)
    checkpoint.safetensors   the whole float state: checkpoint number one of a task
    <model>-<board>.fmp      a package for each board
    report.json              what was converted, what it costs, what it keeps

Files are written into a new directory beside the target and renamed when all are complete, so a failure changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmote.errors import ConfigError
from fedmote.package.boards import Board
from fedmote.tensors import dump_safetensors
from fedmote_convert.convert import Conversion
from fedmote_convert.report import report_of, to_json

REPORT = "report.json"


def write(conversion: Conversion, boards: Sequence[Board], directory: Path) -> dict[str, Any]:
    """Write a conversion; return its report.

    Files of an earlier conversion that its report lists and this one does not make again are removed: packages of two
    conversions in one directory would contradict each other. Other files stay.

    Raises:
        ConfigError: the directory cannot be written.
    """
    contents = _contents(conversion)
    report = report_of(conversion, boards, {name: len(content) for name, content in contents.items()})
    contents[REPORT] = to_json(report).encode()
    write_files(contents, directory)
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


def _contents(conversion: Conversion) -> dict[str, bytes]:
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
            with (staging / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if not directory.exists():
            staging.rename(directory)
            return
        outdated = _written_before(directory) - contents.keys()
        for name in contents:
            (staging / name).replace(directory / name)
        for name in outdated:
            (directory / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _written_before(directory: Path) -> set[str]:
    """Names of files that the report in the directory lists; paths that lead elsewhere do not count."""
    names: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
        names = {str(name) for name in report["files"] if Path(str(name)).name == str(name)}
    return names
