# SPDX-License-Identifier: Apache-2.0
"""Folders outside a checkout: what is kept between runs, and data sets that are not part of the product."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from fedmote.errors import RigError
from fedmote.package.boards import sdk_root


def cache_directory(purpose: str) -> Path:
    """Where things of one purpose are kept: below XDG_CACHE_HOME, or in a private temporary folder where the home is read-only.

    Args:
        purpose: name of the folder, for example "build".

    Raises:
        RigError: neither can be made.
    """
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    candidates = (Path(home) / "fedmote" / purpose, Path(tempfile.gettempdir()) / f"fedmote-{os.getuid()}" / purpose)
    for candidate in candidates:
        with contextlib.suppress(OSError):
            candidate.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.access(candidate, os.W_OK) and candidate.stat().st_uid == os.getuid():
                return candidate
    raise RigError(f"no place for {purpose}: neither {candidates[0]} nor {candidates[1]} can be written; set XDG_CACHE_HOME")


def shared_directory() -> Path:
    """Where data sets and reference models are looked for: FEDMOTE_SHARED, or `shared` beside the checkout."""
    return Path(os.environ.get("FEDMOTE_SHARED", sdk_root().parents[1] / "shared"))
