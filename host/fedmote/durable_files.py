# SPDX-License-Identifier: Apache-2.0
"""Putting a file in the place of another one so that it is there in full or not at all, whatever happens in between."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_durably(path: Path, content: bytes, prefix: str) -> None:
    """Put a whole file of mode 0600 in the place of what was there, or leave everything as it was, whatever happens in between.

    The bytes go to a temporary file in the same directory, are forced to the medium, take their name by a rename (atomic on
    POSIX), and the directory is forced to the medium as well: without that the name itself can be lost with the power.

    Args:
        path: of the file.
        content: all of it.
        prefix: of the temporary file's name.

    Raises:
        OSError: it cannot be written there.
    """
    descriptor, name = tempfile.mkstemp(prefix=prefix, dir=path.parent)  # mkstemp makes mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Force a directory's names to the medium."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
