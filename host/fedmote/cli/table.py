# SPDX-License-Identifier: Apache-2.0
"""Results on stdout: a table for people, or one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO


def write_table(columns: Sequence[str], rows: Iterable[Sequence[object]], out: TextIO | None = None) -> None:
    """Write rows under a heading; numbers to the right, None as "-", floats with four places."""
    rows = list(rows)
    texts = [[_text(value) for value in row] for row in rows]
    widths = [max(len(column), *(len(row[index]) for row in texts), 0) for index, column in enumerate(columns)]
    is_number = [all(isinstance(row[index], int | float | None) for row in rows) and bool(rows) for index in range(len(columns))]
    out = out or sys.stdout
    for line in [list(columns), *texts]:
        cells = (
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        out.write("  ".join(cells).rstrip() + "\n")


def write_json(content: Mapping[str, object], out: TextIO | None = None) -> None:
    """Write one JSON object on one line."""
    (out or sys.stdout).write(json.dumps(content, sort_keys=False) + "\n")


def shown(path: Path) -> str:
    """A path as people like to read it: from the working directory, where it lies below that."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def say(line: str) -> None:
    """Talk and progress belong on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)
