# SPDX-License-Identifier: Apache-2.0
"""A model beside its own ONNX exports: what both of torch's exporters leave different in the int8 features."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmote.package.execute import run_int8
from fedmote.package.quantize import quantize_values
from fedmote_convert.bench.boards import roomy_board
from fedmote_convert.bench.measures import arranged
from fedmote_convert.bench.subjects import NUM_REAL, Subject
from fedmote_convert.convert import Conversion, convert
from fedmote_convert.onnx_capture import capture_onnx

OPSET = 18


def exporters_missing() -> str | None:
    """Why nothing can be exported here; None where it can."""
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"exports need {' and '.join(absent)}" if absent else None


def exported(module: nn.Module, shape: tuple[int, ...], path: Path, is_dynamo: bool) -> Path:
    """What torch's exporter makes of a module: the one that traces TorchScript, or the one of torch.export ("dynamo").

    Args:
        module: in evaluation mode.
        shape: of one sample.
        path: of the file.
        is_dynamo: which of the two.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = torch.zeros((1, *shape))
        torch.onnx.export(module, (example,), str(path), dynamo=is_dynamo, opset_version=OPSET, verbose=False)
    return path


def converted_through_onnx(subject: Subject, is_dynamo: bool) -> Conversion:
    """The subject's model, exported and converted from that file with the same samples."""
    data = subject.model.data
    with tempfile.TemporaryDirectory(prefix="fedmote-bench-") as directory:
        path = exported(subject.model.module, data.x_test.shape[1:], Path(directory) / "model.onnx", is_dynamo)
        return convert(capture_onnx(path), data.x_calibration, [roomy_board()], model_id=subject.name)


def features_of(conversion: Conversion, subject: Subject) -> NDArray[np.int8]:
    """Int8 features (N, ...) of a conversion for held-out samples of the subject, at most NUM_REAL."""
    graph, x = conversion.package.graph, subject.model.data.x_test[:NUM_REAL]
    entry = graph.activations[graph.input]
    samples = arranged(x, conversion.package.host.input_layout).reshape(len(x), *entry.shape[1:])
    return run_int8(graph, quantize_values(entry, samples))


def has_same_operators(one: Conversion, other: Conversion) -> bool:
    """Whether two conversions have the same operators and shapes in the same order."""
    kinds = [
        [(op.kind, op.activation, op.padding, made.template.activations[op.output].shape) for op in made.template.ops]
        for made in (one, other)
    ]
    return kinds[0] == kinds[1]
