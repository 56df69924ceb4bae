# SPDX-License-Identifier: Apache-2.0
"""Configuration files written by programs: the other direction of `load`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmote.errors import ConfigError
from fedmote.private_files import write_private


def write_toml(path: Path, tables: Mapping[str, Any]) -> None:
    """Write tables of plain values, one level of tables and lists of tables, into a file for its owner alone.

    Raises:
        ConfigError: a value has no form in TOML, or the file cannot be written.
    """
    lines = [f"{key} = {_toml(value)}" for key, value in tables.items() if not _is_table(value)]
    for key, value in tables.items():
        for table in value if _is_table(value) and isinstance(value, list) else [value] if _is_table(value) else []:
            head = f"[[{key}]]" if isinstance(value, list) else f"[{key}]"
            lines += ["", head, *(f"{name} = {_toml(item)}" for name, item in table.items())]
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)
    write_private(path, text)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _toml(value: object) -> str:
    """JSON's texts, numbers, booleans and lists of them are TOML's."""
    if not isinstance(value, str | int | float | bool | list):
        raise ConfigError(f"{value!r} has no form in a configuration file")
    return json.dumps(value)
