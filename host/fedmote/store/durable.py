# SPDX-License-Identifier: Apache-2.0
"""The store's files, and results: written so that they are there in full or not at all; what stands in the way, as our errors."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from fedmote.durable_files import replace_durably
from fedmote.errors import ConfigError, DiskFullError, StoreError

TEMPORARY_PREFIX = ".partial-"


def write_durably(path: Path, content: bytes) -> None:
    """Write a whole file, or leave everything as it was.

    Raises:
        DiskFullError: the disk is full.
        StoreError: it is read-only or failing.
    """
    with store_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(path, content, TEMPORARY_PREFIX)


def write_result(path: Path, content: bytes) -> None:
    """Write a result where a user asked for it: afterwards it is there in full, or what was there before is.

    Unlike the store's own files it is readable as the user's mask says, and links, devices and pipes are followed.

    Raises:
        ConfigError: it cannot be written there.
    """
    target = path.resolve()
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name}")
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)  # a device or a pipe takes it, a directory refuses
            return
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(target)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); what was there is unchanged") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> int:
    """Remove temporary files of writers that were killed; returns how many."""
    leftovers = list(directory.glob(f"{TEMPORARY_PREFIX}*"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def has_space(directory: Path, size: int) -> bool:
    """Whether a file of `size` bytes (at least 1) would find room in a directory; it is made, and removed again."""
    path = directory / f"{TEMPORARY_PREFIX}space"
    try:
        with store_errors(path), path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        return True
    except DiskFullError:
        return False
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Translate the operating system's errors, once, at the edge."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(path) from error
        raise StoreError(f"{path}: {error.strerror or error}") from error
