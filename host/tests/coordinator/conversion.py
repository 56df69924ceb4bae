# SPDX-License-Identifier: Apache-2.0
"""A real, small conversion: an encoder of one dense layer (4 to 3), a head (3 to 2), packages for two boards, test data."""

import numpy as np

from fedmote.package.boards import Board
from fedmote.package.graph import Activation, Activations, Graph, HeadLayer, Op, OpKind, WeightRef
from fedmote.package.partition import Partition, assemble
from fedmote.tensors import dump_safetensors

TEMPLATE = Graph(
    "x",
    "f",
    {"x": Activations("x", (1, 4)), "f": Activations("f", (1, 3))},
    (
        Op(
            OpKind.FULLY_CONNECTED,
            "dense",
            ("x",),
            "f",
            activation=Activation.RELU,
            source=WeightRef("encoder.weight", "encoder.bias", layout="linear"),
        ),
    ),
)
HEAD = (HeadLayer("head.weight", "head.bias", 3, 2),)
HEAD_NAMES = ("head.weight", "head.bias")
RANGES = {"x": (-2.0, 2.0), "f": (0.0, 4.0)}


def tensors(seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"encoder.weight": (3, 4), "encoder.bias": (3,), "head.weight": (2, 3), "head.bias": (2,)}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_conversion(directory):
    """What `fedmote convert` leaves in a directory, and `test.npz`."""
    directory.mkdir()
    boards = [Board.load("posix"), Board.load("stm32f405")]
    Partition(assemble(TEMPLATE, HEAD, tensors(), RANGES, boards, "tiny", 0, "nf")).save(directory)
    (directory / "checkpoint.safetensors").write_bytes(dump_safetensors(tensors()))
    generator = np.random.default_rng(1)
    np.savez(directory / "test.npz", x=generator.normal(size=(50, 4)).astype(np.float32), y=generator.integers(0, 2, 50))
    return directory
