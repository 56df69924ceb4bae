# SPDX-License-Identifier: Apache-2.0
"""The rows of the matrix, by what they are about; importing a module registers its rows."""

from __future__ import annotations

import importlib

_MODULES = ("broker", "coordinator", "disk", "updates", "rounds", "links", "crowds", "boards", "security", "hostile", "versions")


def load() -> None:
    """Register all rows."""
    for name in _MODULES:
        importlib.import_module(f"{__name__}.{name}")
