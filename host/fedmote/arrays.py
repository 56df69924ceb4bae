# SPDX-License-Identifier: Apache-2.0
"""Arrays of users' `.npz` and `.npy` files: nothing in them is run, and whatever is wrong with them becomes one sentence."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConfigError

_EXPECTED = {"x": "x (N, ...)", "y": "y (N,)"}
# What NumPy and zipfile raise for files that are absent, damaged, encrypted, or claim more than the memory holds.
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
_ZIP_MAGIC = b"PK"
_NPY_MAGIC = b"\x93NUMPY"


def load_npz(
    path: Path, required: Sequence[str] = ("x", "y"), optional: Sequence[str] = (), origin: str = ""
) -> dict[str, NDArray[Any]]:
    """Some arrays of a `.npz` file by name.

    Args:
        path: the file.
        required: keys that must be there.
        optional: keys that are read where they are there.
        origin: words before the path in messages, for example the option that named the file.

    Raises:
        ConfigError: the file cannot be read or lacks a key; what it holds and what was expected is said.
    """
    place = f"{origin} {path}".strip()
    expected = f"expected a .npz file with {' and '.join(_EXPECTED.get(key, key) for key in required)}"
    _check_magic(path, _ZIP_MAGIC, place, expected)
    try:
        with np.load(path, allow_pickle=False) as content:
            for key in required:
                if key not in content.files:
                    held = ", ".join(sorted(content.files)) or "no arrays"
                    raise ConfigError(f"{place}: key {key!r} is missing, it holds {held}; {expected}")
            return {key: content[key] for key in (*required, *optional) if key in content.files}
    except _UNREADABLE as error:
        raise ConfigError(f"{place}: cannot be read ({error}); {expected}") from error


def load_npy(path: Path) -> NDArray[Any]:
    """The array of a `.npy` file.

    Raises:
        ConfigError: the file cannot be read.
    """
    expected = "expected a .npy file with one array"
    _check_magic(path, _NPY_MAGIC, str(path), expected)
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read ({error}); {expected}") from error
    return array


def _check_magic(path: Path, magic: bytes, place: str, expected: str) -> None:
    """NumPy takes what it does not know for pickled data, and its complaint about that leads astray."""
    try:
        with path.open("rb") as file:
            found = file.read(len(magic))
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; {expected}") from error
    if found != magic:
        raise ConfigError(f"{place}: begins with {found!r}, not {magic!r}; {expected}")
