# SPDX-License-Identifier: Apache-2.0
"""The forms that a checkpoint takes: a package per board for devices, a whole file for partners, a head alone.

A package carries an encoder and a head. In a device round only the head changes, so the package stays what it was, with
the same hash, and the newer head travels beside it: a device erases no flash for a few kilobytes of floats. A package is
built from the oldest checkpoint that has the encoder and the ranges of the newest one (`encoder_version` in the ledger), so
that a restarted coordinator builds the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fedmote.aggregation.ranges import Ranges
from fedmote.errors import ConversionError, PackageError
from fedmote.package.graph import HeadLayer
from fedmote.package.head import head_bytes
from fedmote.store import Checkpoint
from fedmote.strategies import ModelShape
from fedmote.tensors import Tensors
from fedmote.wire.schema import Role
from fedmote.wire.transfer import BlobSource, handle_of


class Partition(Protocol):
    """What the coordinator asks of the converted model (`DeployedPartition` in production)."""

    @property
    def boards(self) -> tuple[str, ...]:
        """Boards that there is a package for."""
        ...

    def first_model(self) -> tuple[Tensors, Ranges]:
        """The model that a run begins with, and its activation ranges."""
        ...

    def shape(self, tensors: Tensors, ranges: Ranges) -> ModelShape:
        """Names of the head's tensors and of the encoder's input."""
        ...

    def device_form(self, board: str, tensors: Tensors, ranges: Ranges, version: int) -> tuple[bytes, bytes]:
        """The package of a board in device form, and its 32-byte hash; the same arguments give the same bytes."""
        ...

    def max_samples(self, board: str) -> int:
        """Samples that a board can hold."""
        ...

    def manifest(self) -> str:
        """The host manifest as JSON: template, input quantization and layout, which partners train and observe by."""
        ...

    def evaluate(self, tensors: Tensors, ranges: Ranges, version: int) -> float | None:
        """Accuracy of the deployed form on the host test set, 0 to 1; None where there is none.

        ConversionError where the model cannot be deployed: it is not committed then.
        """
        ...


@dataclass(frozen=True)
class PlannedModel:
    """Fields of a plan message that say which model.

    Attributes:
        model: handle and bytes of the package or checkpoint, and its hash.
        head: a newer head than the package carries, or None.
    """

    model_hash: bytes
    model: bytes
    head: bytes | None

    def fields(self) -> dict[str, int | bytes]:
        """As the plan message has them."""
        fields: dict[str, int | bytes] = {
            "model_hash": self.model_hash,
            "model_handle": handle_of(self.model),
            "model_size": len(self.model),
        }
        if self.head is not None:
            crc = zlib.crc32(self.head)
            fields |= {"head_handle": handle_of(self.head), "head_size": len(self.head), "head_crc": crc}
        return fields

    def sources(self) -> list[BlobSource]:
        """What participants will ask for."""
        blobs = [self.model] if self.head is None else [self.model, self.head]
        return [BlobSource(handle_of(blob), blob) for blob in blobs]


class Forms:
    """Forms of the newest checkpoint, made when somebody needs them."""

    def __init__(self, partition: Partition, load: Callable[[int], Checkpoint]) -> None:
        """`load` gives the checkpoint of a version."""
        self._partition = partition
        self._load = load
        self._packages: dict[str, tuple[int, bytes, bytes, bytes]] = {}
        self._planned: dict[tuple[Role, str], PlannedModel] = {}
        self._checkpoint: Checkpoint | None = None
        self._encoder_version = 0

    def show(self, checkpoint: Checkpoint, encoder_version: int) -> None:
        """From now on this is the newest checkpoint."""
        self._checkpoint, self._encoder_version = checkpoint, encoder_version
        self._planned = {}

    def planned(self, role: Role, board: str) -> PlannedModel:
        """The model as a participant gets it; FedmoteError where the board has no package or the model no longer fits."""
        key = (role, board if role is Role.DEVICE else "")
        if key not in self._planned:
            self._planned[key] = self._for_device(board) if role is Role.DEVICE else self._for_partner()
        return self._planned[key]

    def all_planned(self) -> list[PlannedModel]:
        """Every form: a restarted coordinator is asked for blobs before it heard who wants which."""
        planned = [self.planned(Role.PARTNER, "")]
        for board in self._partition.boards:
            with contextlib.suppress(ConversionError, PackageError):  # a board without a package asks for none
                planned.append(self.planned(Role.DEVICE, board))
        return planned

    def _for_partner(self) -> PlannedModel:
        assert self._checkpoint is not None  # shown before the first round
        blob = self._checkpoint.to_bytes(self._partition.manifest())
        return PlannedModel(hashlib.blake2b(blob, digest_size=32).digest(), blob, None)

    def _for_device(self, board: str) -> PlannedModel:
        assert self._checkpoint is not None  # shown before the first round
        layers = self._partition.shape(self._checkpoint.tensors, self._checkpoint.ranges).layers
        if self._packages.get(board, (-1,))[0] != self._encoder_version:
            self._packages[board] = self._build(board, layers)
        _, package, package_hash, packed_head = self._packages[board]
        head = head_bytes(layers, self._checkpoint.tensors)
        return PlannedModel(package_hash, package, None if head == packed_head else head)

    def _build(self, board: str, layers: tuple[HeadLayer, ...]) -> tuple[int, bytes, bytes, bytes]:
        base = self._load(self._encoder_version)
        package, package_hash = self._partition.device_form(board, base.tensors, base.ranges, self._encoder_version)
        return self._encoder_version, package, package_hash, head_bytes(layers, base.tensors)
