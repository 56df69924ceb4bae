# SPDX-License-Identifier: Apache-2.0
"""Blobs by their content: the updates as they came.

A blob is written before the journal names it, so the journal never points at nothing; a blob that no entry names (the
coordinator died in between) is harmless, and is found again by its own name if the update is sent again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedmote.errors import StoreError
from fedmote.store.durable import remove_leftovers, store_errors, write_durably


def content_name(blob: bytes) -> str:
    """BLAKE2b-256 in hexadecimal: the name of a content."""
    return hashlib.blake2b(blob, digest_size=32).hexdigest()


class Blobs:
    """A directory of content-addressed files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with store_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            remove_leftovers(directory)

    def put(self, blob: bytes) -> str:
        """Store a blob durably and return its name; the same content again costs nothing."""
        name = content_name(blob)
        path = self.directory / name
        if not path.exists():
            write_durably(path, blob)
        return name

    def get(self, name: str) -> bytes:
        """Read a blob and prove that it is what its name says.

        Raises:
            StoreError: it is not there, or its bytes changed.
        """
        path = self.directory / name
        with store_errors(path):
            blob = path.read_bytes()
        if content_name(blob) != name:
            raise StoreError(f"{path}: damaged, its bytes do not match its name; the update cannot be merged again")
        return blob
