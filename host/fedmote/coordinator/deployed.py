# SPDX-License-Identifier: Apache-2.0
"""The partition that a run works on: packages and checkpoint of a conversion, and a host test set.

Accuracy is that of what is deployed: the int8 encoder as devices compute it, and the float head. The encoder's features of
the test set are kept as long as the encoder stays the same, so that a device round costs one matrix product.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmote.aggregation.ranges import Ranges
from fedmote.arrays import load_npz
from fedmote.errors import ConfigError
from fedmote.package.boards import Board
from fedmote.package.head import dense_layers, head_bytes, head_tensors, logits_of
from fedmote.package.partition import Partition, run_features
from fedmote.strategies import ModelShape
from fedmote.tensors import Tensors, checksum, load_safetensors

CHECKPOINT = "checkpoint.safetensors"


class DeployedPartition:
    """A conversion's directory, as the coordinator sees it.

    Args:
        directory: what `fedmote convert` wrote, or one with a package that was imported.
        test_data: `.npz` with `x` (N, ...) in the layout of data files and `y` (N,); None: no accuracy.

    Raises:
        PackageError: no packages, or not of one conversion.
        ConfigError: checkpoint or test data cannot be read or do not belong to the packages.
    """

    def __init__(self, directory: Path, test_data: Path | None = None) -> None:
        self._partition = Partition.load(directory)
        self._has_template = self._partition.package.host.template is not None
        self._tensors = self._read_checkpoint(directory / CHECKPOINT)
        self._data = None if test_data is None else read_data(test_data)
        self._pushed: tuple[bytes, int, Partition] | None = None
        self._features: tuple[bytes, NDArray[np.float32]] | None = None
        self._first_encoder = self._encoder_key(self._tensors, self._partition.ranges)

    @property
    def boards(self) -> tuple[str, ...]:
        """Boards with a package."""
        return tuple(self._partition.packages)

    @property
    def partition(self) -> Partition:
        """The packages as they were converted."""
        return self._partition

    def first_model(self) -> tuple[Tensors, Ranges]:
        """The converted checkpoint and its ranges."""
        return dict(self._tensors), dict(self._partition.ranges)

    def shape(self, tensors: Tensors, ranges: Ranges) -> ModelShape:
        """Names of head and input."""
        name = self._partition.template.input if self._has_template else ""
        return ModelShape(tensors, self._partition.head, ranges, name)

    def device_form(self, board: str, tensors: Tensors, ranges: Ranges, version: int) -> tuple[bytes, bytes]:
        """The package of a board; that of the first model is the converted file, which boards may be provisioned with."""
        package = self._push(tensors, ranges, version).packages[board]
        return package.device_form(), package.hash

    def max_samples(self, board: str) -> int:
        """Of its budget in the SDK: nothing that the device says of itself."""
        return Board.load(board).max_samples

    def manifest(self) -> str:
        """Of any board: what partners read of it is the same in all."""
        return self._partition.package.host.to_bytes().decode()

    def evaluate(self, tensors: Tensors, ranges: Ranges, version: int) -> float | None:
        """Accuracy of the deployed form, 0 to 1; None without test data.

        Raises:
            ConversionError: no package can be made of the model, which is therefore not to be committed.
        """
        key = self._encoder_key(tensors, ranges)
        if self._data is None:
            if self._pushed is None or self._pushed[0] != key:
                self._push(tensors, ranges, version)
            return None
        x, y = self._data
        if self._features is None or self._features[0] != key:
            self._features = (key, run_features(self._push(tensors, ranges, version).package, x))
        logits = logits_of(dense_layers(self._partition.head, tensors), self._features[1])
        return float((logits.argmax(axis=1) == y).mean())

    def packages(self, tensors: Tensors, ranges: Ranges, version: int) -> Partition:
        """Packages of every board with exactly these tensors, head included, for export."""
        if not self._has_template:
            return self._partition.push(tensors, ranges, version)  # says that imported packages take no new weights
        return self._partition if checksum(tensors) == checksum(self._tensors) else self._partition.push(tensors, ranges, version)

    def _push(self, tensors: Tensors, ranges: Ranges, version: int) -> Partition:
        """Packages with this encoder; their head may be an older one."""
        key = self._encoder_key(tensors, ranges)
        if key == self._first_encoder:
            return self._partition
        # A local name: a merge in its thread and a plan in the loop may push at the same time.
        pushed = self._pushed
        if pushed is None or pushed[:2] != (key, version):
            pushed = (key, version, self._partition.push(tensors, ranges, version))
            self._pushed = pushed
        return pushed[2]

    def _encoder_key(self, tensors: Tensors, ranges: Ranges) -> bytes:
        head = self._partition.head_tensor_names
        parts = {name: values for name, values in tensors.items() if name not in head}
        parts |= {f"range/{name}": np.array(bounds, np.float32) for name, bounds in ranges.items()}
        return checksum(parts)

    def _read_checkpoint(self, path: Path) -> Tensors:
        """The conversion's checkpoint; of imported packages the head alone."""
        packed = self._partition.package.head_blob
        if not self._has_template:
            return head_tensors(self._partition.head, packed)
        tensors = load_safetensors(path)
        needed = (*self._partition.encoder_tensor_names, *self._partition.head_tensor_names)
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise ConfigError(f"{path}: tensor {missing[0]} is missing, the packages beside it need it")
        if head_bytes(self._partition.head, tensors) != packed.astype("<f4").tobytes():
            raise ConfigError(f"{path}: its head is not that of the packages beside it; convert the model again")
        return tensors


def read_data(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Samples and labels of a data file.

    Raises:
        ConfigError: the file cannot be read, lacks `x` or `y`, or they do not agree.
    """
    arrays = load_npz(path)
    x, y = arrays["x"], arrays["y"]
    if not len(x) or y.shape != (len(x),):
        raise ConfigError(f"{path}: x of shape {x.shape} and y of shape {y.shape}, expected (N, ...) and (N,) with N above 0")
    return x.astype(np.float32), y.astype(np.int64)
