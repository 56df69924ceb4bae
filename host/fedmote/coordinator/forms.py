# SPDX-License-Identifier: Apache-2.0
"""The forms that a checkpoint takes: a package per board for devices, a whole file for partners, a head alone.

A package carries an encoder and a head. In a device round only the head changes, so the package stays what it was, with
the same hash, and the newer head travels beside it: a device erases no flash for a few kilobytes of floats. A package is
built from the oldest checkpoint that has the encoder and the ranges of the newest one (`encoder_version` in the ledger), so
that a restarted coordinator builds the same bytes.

A device that makes packages from differences is offered one from the package that it has, where that is one of the last few of
this run and the difference is smaller than the package. Earlier packages are built from their checkpoints like the newest one,
so a restart forgets none, and offers the same bytes under the same handle.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from fedmote.aggregation.ranges import Ranges
from fedmote.background import in_background
from fedmote.errors import ConversionError, FedmoteError, PackageError
from fedmote.package.difference import make_difference
from fedmote.package.graph import HeadLayer
from fedmote.package.head import head_bytes
from fedmote.store import Checkpoint
from fedmote.strategies import ModelShape
from fedmote.tensors import Tensors
from fedmote.wire.schema import Role
from fedmote.wire.transfer import BlobSource, handle_of

log = logging.getLogger(__name__)

# What a plan says of a package that it signs.
Sign = Callable[[bytes], Mapping[str, int | bytes]]

# Packages back from the newest that a difference may start from: who missed more rounds gets the whole.
EARLIER_PACKAGES = 4


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
        name: what the model is: "package" or "checkpoint".
        difference: what makes the package out of the one that a device has, or None.
        signature: fields about a signed package; none where packages are not signed.
    """

    model_hash: bytes
    model: bytes
    head: bytes | None
    name: str
    difference: bytes | None = None
    signature: Mapping[str, int | bytes] = field(default_factory=dict)

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
        if self.difference is not None:
            fields |= {"difference_handle": handle_of(self.difference), "difference_size": len(self.difference)}
        return fields | dict(self.signature)

    def sources(self) -> list[BlobSource]:
        """What participants will ask for."""
        blobs = {self.name: self.model, "head": self.head, "difference": self.difference}
        return [BlobSource(handle_of(blob), blob, name) for name, blob in blobs.items() if blob is not None]


@dataclass(frozen=True)
class _Package:
    """A package of one board: device form, its hash, and the head inside as a blob."""

    content: bytes
    hash: bytes
    head: bytes


class Forms:
    """Forms of the newest checkpoint, made when somebody needs them."""

    def __init__(self, partition: Partition, load: Callable[[int], Checkpoint], sign: Sign | None = None) -> None:
        """`load` gives the checkpoint of a version, `sign` what plans say of a package in device form."""
        self._partition = partition
        self._load = load
        self._sign = sign
        self._signatures: dict[bytes, Mapping[str, int | bytes]] = {}
        self._packages: dict[tuple[str, int], _Package] = {}
        self._planned: dict[tuple[Role, str], PlannedModel] = {}
        self._differences: dict[tuple[bytes, bytes], bytes] = {}
        self._checkpoint: Checkpoint | None = None
        self._encoder_version = 0
        self._earlier: tuple[int, ...] = ()

    def show(self, checkpoint: Checkpoint, encoder_versions: Sequence[int]) -> None:
        """From now on this is the newest checkpoint.

        Args:
            checkpoint: the newest one.
            encoder_versions: of the run's checkpoints, ascending; the last one is that of the newest.
        """
        self._checkpoint, self._encoder_version = checkpoint, encoder_versions[-1]
        self._earlier = tuple(encoder_versions[-2 : -2 - EARLIER_PACKAGES : -1])
        kept = {self._encoder_version, *self._earlier}
        self._packages = {key: package for key, package in self._packages.items() if key[1] in kept}
        self._planned, self._differences = {}, {}

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

    async def with_difference(self, planned: PlannedModel, board: str, base_hash: bytes) -> PlannedModel:
        """The same with a difference from the package `base_hash`, where there is a smaller one than the package."""
        if base_hash == planned.model_hash:
            return planned  # it has the package
        key = (base_hash, planned.model_hash)
        if key not in self._differences:
            base = self._earlier_package(board, base_hash)
            if base is None:
                return planned
            self._differences[key] = await in_background(partial(make_difference, base, planned.model))
        difference = self._differences[key]
        return replace(planned, difference=difference) if len(difference) < len(planned.model) else planned

    def _earlier_package(self, board: str, package_hash: bytes) -> bytes | None:
        """An earlier device form by its hash; None for one that is not of this run's last few."""
        assert self._checkpoint is not None  # shown before the first round
        layers = self._partition.shape(self._checkpoint.tensors, self._checkpoint.ranges).layers
        for version in self._earlier:
            try:
                package = self._package(board, version, layers)
            except FedmoteError as error:
                log.warning("no differences from the package of checkpoint %d: %s", version, error)
                continue
            if package.hash == package_hash:
                return package.content
        return None

    def _for_partner(self) -> PlannedModel:
        assert self._checkpoint is not None  # shown before the first round
        blob = self._checkpoint.to_bytes(self._partition.manifest())
        return PlannedModel(hashlib.blake2b(blob, digest_size=32).digest(), blob, None, "checkpoint")

    def _for_device(self, board: str) -> PlannedModel:
        assert self._checkpoint is not None  # shown before the first round
        layers = self._partition.shape(self._checkpoint.tensors, self._checkpoint.ranges).layers
        package = self._package(board, self._encoder_version, layers)
        head = head_bytes(layers, self._checkpoint.tensors)
        newer = None if head == package.head else head
        return PlannedModel(package.hash, package.content, newer, "package", signature=self._signature(package))

    def _signature(self, package: _Package) -> Mapping[str, int | bytes]:
        """Once per package and start: a head alone needs no new one."""
        if self._sign is None:
            return {}
        if package.hash not in self._signatures:
            self._signatures[package.hash] = self._sign(package.content)
        return self._signatures[package.hash]

    def _package(self, board: str, version: int, layers: tuple[HeadLayer, ...]) -> _Package:
        if (board, version) not in self._packages:
            base = self._load(version)
            content, package_hash = self._partition.device_form(board, base.tensors, base.ranges, version)
            self._packages[board, version] = _Package(content, package_hash, head_bytes(layers, base.tensors))
        return self._packages[board, version]
