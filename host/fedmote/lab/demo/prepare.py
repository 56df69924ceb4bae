# SPDX-License-Identifier: Apache-2.0
"""Everything that a run needs, as files in a work directory: first weights, packages, test data, data of the devices."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedmote.errors import ConfigError
from fedmote.lab import models
from fedmote.lab.demo.data import CELLS, DataSet, Split
from fedmote.lab.demo.settings import DemoSettings
from fedmote.lab.demo.training import pretrain, state_of
from fedmote.package.inputs import arrange
from fedmote.package.partition import Partition
from fedmote.package.quantize import quantize_input
from fedmote.tensors import dump_safetensors

# Runs `fedmote ARGUMENTS` and returns its stdout.
Command = Callable[..., str]

_CONVERT_TIMEOUT_S = 120.0
_MODEL_MODULE = "demo_model"


@dataclass(frozen=True)
class ModelChoice:
    """A model for data of one shape.

    Attributes:
        spec: `package.module:function`, as `fedmote convert` and `partner.toml` take it.
        build: the function.
        source: text of the module, where it is written into the work directory; empty where it is fedmote's own.
    """

    spec: str
    build: Callable[[], nn.Module]
    source: str = ""


@dataclass(frozen=True)
class Materials:
    """Files of one work directory.

    Attributes:
        directory: of all of them, and on the Python path of the commands, for the model's module.
        model: what is trained.
        weights: the first checkpoint.
        test: `.npz` of the test set.
        partition: directory of the packages.
        devices: `.npz` of each cell's device, int8 in the encoder's input quantization, channels last.
        conversion: the report of the conversion.
    """

    directory: Path
    model: ModelChoice
    weights: Path
    test: Path
    partition: Path
    devices: Mapping[str, Path]
    conversion: Mapping[str, Any]


def standardised(data: DataSet, split: Split) -> DataSet:
    """Signals with mean 0 and deviation 1 per channel, by the numbers of the pre-training set alone; images as they are."""
    if data.x.ndim != 3:
        return data
    seen = data.x[split.pretraining]
    mean, deviation = seen.mean(axis=(0, 2), keepdims=True), seen.std(axis=(0, 2), keepdims=True)
    return replace(data, x=((data.x - mean) / np.maximum(deviation, np.finfo(np.float32).tiny)).astype(np.float32))


def choose_model(data: DataSet) -> ModelChoice:
    """A model of `fedmote.lab.models` for the data's shape; ConfigError where there is none."""
    shape, num_classes = data.x.shape[1:], data.num_classes
    if (shape, num_classes) == ((1, 8, 8), 10):
        return ModelChoice("fedmote.lab.models:digits_cnn", models.digits_cnn)
    if (shape, num_classes) == ((9, 128), 6):
        return ModelChoice("fedmote.lab.models:har_cnn", models.har_cnn)
    if len(shape) == 3:
        return _written("image_cnn", models.image_cnn, shape[0], num_classes)
    if len(shape) == 2:
        return _written("sequence_cnn", models.sequence_cnn, shape[0], num_classes)
    raise ConfigError(f"{data.name}: samples of shape {shape}; the demonstration has models for images and for signals (C, W)")


def _written(name: str, function: Callable[[int, int], nn.Module], inputs: int, num_classes: int) -> ModelChoice:
    source = f"from fedmote.lab.models import {name}\n\n\ndef build():\n    return {name}({inputs}, {num_classes})\n"
    return ModelChoice(f"{_MODEL_MODULE}:build", lambda: function(inputs, num_classes), source)


def prepare(
    data: DataSet,
    split: Split,
    settings: DemoSettings,
    boards: Sequence[str],
    directory: Path,
    command: Command,
    model: ModelChoice | None = None,
    cut: str = "last",
) -> Materials:
    """Pre-train, convert for `boards`, write the files.

    Args:
        data: standardised.
        split: of it.
        settings: of the demonstration.
        boards: that packages are made for.
        directory: where the files go; made.
        command: `Fleet.run`.
        model: what is trained; None: what suits the data.
        cut: of `fedmote convert`.

    Raises:
        FedmoteError: the conversion failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model = model or choose_model(data)
    if model.source:
        (directory / f"{_MODEL_MODULE}.py").write_text(model.source, encoding="utf-8")
    module = model.build()
    pretrain(module, data.part(split.pretraining), settings.pretraining, settings.seed)
    weights = directory / "first.safetensors"
    weights.write_bytes(dump_safetensors(state_of(module)))
    calibration, test = directory / "calibration.npz", directory / "test.npz"
    write_samples(calibration, *data.part(split.pretraining))
    write_samples(test, *data.part(split.test))
    partition = directory / "partition"
    arguments = ["--weights", weights, "--calibration", calibration, "--boards", ",".join(dict.fromkeys(boards))]
    arguments += ["--cut", cut, "-o", partition, "--json"]
    report = json.loads(command("convert", _CONVERT_TIMEOUT_S, "convert", model.spec, *arguments))
    devices = {name: directory / f"device-{name}.npz" for name in CELLS}
    for name, path in devices.items():
        x, y = data.part(split.cells[name])
        write_samples(path, for_devices(Partition.load(partition), x), y)
    return Materials(directory, model, weights, test, partition, devices, report)


def for_devices(partition: Partition, x: NDArray[np.float32]) -> NDArray[np.int8]:
    """Samples (N, ...) in torch layout as devices store them: int8 (N, ...), channels last."""
    graph = partition.package.graph
    arranged = arrange(x, partition.package.host.input_layout, graph.activations[graph.input].shape)
    return quantize_input(graph, arranged)


def write_samples(path: Path, x: NDArray[Any], y: NDArray[np.int64]) -> None:
    """An `.npz` with x and y."""
    np.savez_compressed(path, x=x, y=y)
