# SPDX-License-Identifier: Apache-2.0
"""Files with secrets: readable for their owner alone, written in full or not at all, refused where others may read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fedmote.durable_files import replace_durably
from fedmote.errors import ConfigError

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def refuse_shared(path: Path) -> None:
    """Refuse a file with secrets that its group or everybody may read, write or run.

    A missing file is the reader's matter. Systems without such modes (Windows) are not judged.

    Raises:
        ConfigError: it names the path and the mode.
    """
    if os.name != "posix":
        return
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode & _OTHERS:
        raise ConfigError(
            f"{path}: holds secrets and has mode {mode:04o}, so that others may use it; expected 0600: chmod 600 {path}"
        )


def read_private(path: Path) -> str:
    """The text of a file with secrets; ConfigError where it cannot be read or others may read it."""
    refuse_shared(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it, that its owner alone may enter; one that is there keeps its mode.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from error


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner may read; an existing one is replaced at once, and both survive a power cut whole.

    Raises:
        ConfigError: it cannot be written there.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        replace_durably(path, data, f".{path.name}-")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
