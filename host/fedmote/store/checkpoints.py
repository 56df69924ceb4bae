# SPDX-License-Identifier: Apache-2.0
"""Numbered checkpoints: safetensors files with the model's tensors, and activation ranges in the metadata.

One content has one sequence of bytes, so that a checkpoint computed again after a crash can be compared with the first one
by its hash. Wall-clock times, machine names and the run's random name are left out for the same reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmote.aggregation.ranges import Ranges
from fedmote.errors import ConfigError, StoreError
from fedmote.store.durable import remove_leftovers, store_errors, write_durably
from fedmote.tensors import Tensors, dump_safetensors, load_metadata, load_safetensors

# Where the form that travels to partners carries the host manifest.
MANIFEST_KEY = "manifest"
_NAME = re.compile(r"checkpoint-(\d{6,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A model at one version.

    Attributes:
        version: number, 0 for the model that the run began with.
        round: the round that made it, 0 for none.
        tensors: all tensors of the model.
        ranges: activation ranges of the encoder.
    """

    version: int
    round: int
    tensors: Tensors
    ranges: Ranges

    def to_bytes(self, manifest: str | None = None) -> bytes:
        """The file: the same content gives the same bytes.

        Args:
            manifest: the model's host manifest, for the form that travels to partners: they train and observe by it.
        """
        ranges = {name: list(bounds) for name, bounds in sorted(self.ranges.items())}
        metadata = {"ranges": json.dumps(ranges), "round": str(self.round), "version": str(self.version)}
        return dump_safetensors(self.tensors, metadata if manifest is None else {**metadata, MANIFEST_KEY: manifest})

    @classmethod
    def from_bytes(cls, blob: bytes, where: str = "checkpoint") -> Checkpoint:
        """Read a checkpoint; ConfigError where the bytes are none."""
        metadata = load_metadata(blob)
        try:
            version, number, ranges = int(metadata["version"]), int(metadata["round"]), parse_ranges(metadata)
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"{where}: no fedmote checkpoint ({error})") from error
        return cls(version, number, load_safetensors(blob), ranges)


def parse_ranges(metadata: Mapping[str, str]) -> Ranges:
    """Activation ranges of a checkpoint file's metadata."""
    return {str(name): (float(low), float(high)) for name, (low, high) in json.loads(metadata["ranges"]).items()}


def file_hash(blob: bytes) -> str:
    """BLAKE2b-256 of a checkpoint file, hexadecimal."""
    return hashlib.blake2b(blob, digest_size=32).hexdigest()


class Checkpoints:
    """A directory of numbered checkpoints."""

    def __init__(self, directory: Path, is_read_only: bool = False) -> None:
        self.directory = directory
        if is_read_only:
            return
        with store_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            remove_leftovers(directory)

    def path(self, version: int) -> Path:
        """Where a version is, or would be."""
        return self.directory / f"checkpoint-{version:06}.safetensors"

    def versions(self) -> list[int]:
        """Numbers of the files that are there, ascending; whether they are sound, `load` says."""
        found = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def save(self, checkpoint: Checkpoint) -> str:
        """Write a checkpoint durably, over a damaged or half-committed one of this number; returns the file's hash."""
        blob = checkpoint.to_bytes()
        write_durably(self.path(checkpoint.version), blob)
        return file_hash(blob)

    def load(self, version: int, expected_hash: str | None = None) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            StoreError: it is missing, damaged, or not the file that the ledger names.
        """
        path = self.path(version)
        with store_errors(path):
            blob = path.read_bytes()
        if expected_hash is not None and file_hash(blob) != expected_hash:
            raise StoreError(f"{path}: damaged, its bytes are not those that the ledger names")
        try:
            return Checkpoint.from_bytes(blob, str(path))
        except ConfigError as error:
            raise StoreError(str(error)) from error
