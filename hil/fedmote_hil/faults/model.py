# SPDX-License-Identifier: Apache-2.0
"""The small model that all rows learn: two dense layers, the last one trained on the device in milliseconds.

It is made without torch, by the chain that every package goes through. `MODULE` is the same model for partners, who train
with torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmote.package.boards import Board
from fedmote.package.graph import Activation, Activations, Graph, HeadLayer, Op, OpKind, WeightRef
from fedmote.package.partition import Partition, assemble
from fedmote.package.quantize import quantize_input
from fedmote.tensors import Tensors, dump_safetensors

INPUTS, FEATURES, CLASSES = 16, 24, 4
HEAD = (HeadLayer("head.weight", "head.bias", FEATURES, CLASSES),)
NUM_PARAMETERS = FEATURES * CLASSES + CLASSES
MODULE = f"""from torch import nn
import torch


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear({INPUTS}, {FEATURES})
        self.head = nn.Linear({FEATURES}, {CLASSES})

    def forward(self, x):
        return self.head(torch.relu(self.encoder(x)))


def build():
    return Small().eval()
"""
_BOARD = "posix"
_TEST_SAMPLES = 200
_RANGE = 4.0


@dataclass(frozen=True)
class Model:
    """Files of the model, and data for participants.

    Attributes:
        directory: of the files.
        partition: directory of the package and the first checkpoint.
        test: `.npz` of the test set.
        package: bytes of the package as a device has it.
    """

    directory: Path
    partition: Path
    test: Path
    package: bytes

    def samples(self, seed: int, count: int = 24) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
        """Samples of a device, int8 (count, INPUTS) and labels (count,), the same for the same seed."""
        x, y = draw(seed, count)
        return quantize_input(Partition.load(self.partition).package.graph, x), y


def make_model(directory: Path, padding: int = 0) -> Model:
    """Write the model.

    Args:
        directory: for its files; made.
        padding: units of a hidden layer that makes the package about 52 bytes larger for each; 0: no such layer.
    """
    partition, test = directory / "partition", directory / "test.npz"
    directory.mkdir(parents=True, exist_ok=True)
    template, tensors = _template(padding), _tensors(padding)
    ranges = {name: (-_RANGE, _RANGE) if name == "x" else (0.0, 2 * _RANGE) for name in template.activations}
    made = Partition(assemble(template, HEAD, tensors, ranges, [Board.load(_BOARD)], "small", 0, "nf"))
    made.save(partition)
    (partition / "checkpoint.safetensors").write_bytes(dump_safetensors(tensors))
    (directory / "small_model.py").write_text(MODULE, encoding="utf-8")
    x, y = draw(1, _TEST_SAMPLES)
    np.savez(test, x=x, y=y)
    return Model(directory, partition, test, made.package.device_form())


def draw(seed: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Samples float32 (count, INPUTS) around a centre for each class, and labels (count,)."""
    centres = np.random.default_rng(0).normal(0, 1, (CLASSES, INPUTS))
    generator = np.random.default_rng([1, seed])
    y = generator.integers(0, CLASSES, count)
    return (centres[y] + generator.normal(0, 0.7, (count, INPUTS))).astype(np.float32), y


def _template(padding: int) -> Graph:
    names = ["x", *(["h"] if padding else []), "f"]
    sizes = {"x": INPUTS, "h": padding, "f": FEATURES}
    layers = ["padding", "encoder"][0 if padding else 1 :]
    ops = tuple(
        Op(
            OpKind.FULLY_CONNECTED,
            layer,
            (source,),
            target,
            activation=Activation.RELU,
            source=WeightRef(f"{layer}.weight", f"{layer}.bias", layout="linear"),
        )
        for layer, source, target in zip(layers, names, names[1:], strict=False)
    )
    return Graph("x", "f", {name: Activations(name, (1, sizes[name])) for name in names}, ops)


def _tensors(padding: int) -> Tensors:
    generator = np.random.default_rng(2)
    shapes: dict[str, tuple[int, ...]] = {}
    if padding:
        shapes |= {"padding.weight": (padding, INPUTS), "padding.bias": (padding,)}
    shapes |= {
        "encoder.weight": (FEATURES, padding or INPUTS),
        "encoder.bias": (FEATURES,),
        "head.weight": (CLASSES, FEATURES),
        "head.bias": (CLASSES,),
    }
    return {name: generator.normal(0, shape[-1] ** -0.5, shape).astype(np.float32) for name, shape in shapes.items()}
