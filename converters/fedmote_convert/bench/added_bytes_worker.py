# SPDX-License-Identifier: Apache-2.0
"""Counts what distributions add to an environment; a program of the standard library alone, run inside that environment.

    python added_bytes_worker.py BASE[,BASE] NAME[,NAME] [FOLDER ...]

Prints one JSON object: bytes of the files of NAMEs and of all that they require, without those of BASEs and of all that those
require. Compiled Python is left out, because it comes and goes. Files of FOLDERs count as the NAMEs' own.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path


def closure(names: Iterable[str]) -> set[str]:
    """Names and all that they require, as far as it is installed; what only extras require is left out."""
    found: set[str] = set()
    waiting = [normalised(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # its marker is for another platform
        found.add(name)
        waiting += [normalised(one) for one in required if "extra ==" not in one]
    return found


def normalised(requirement: str) -> str:
    """The name in a requirement, in the form that comparisons need."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def files_of(names: Iterable[str]) -> set[Path]:
    """Files of distributions."""
    listed = (path for name in names for path in importlib.metadata.files(name) or [])
    return {Path(str(path.locate())).resolve() for path in listed}


def main(arguments: list[str]) -> None:
    """Count and print."""
    base, names, *folders = arguments
    added = closure(names.split(",")) - closure(base.split(","))
    files = files_of(added)
    for folder in folders:
        files |= {path.resolve() for path in Path(folder).rglob("*")}
    kept = [path for path in files if path.is_file() and path.suffix != ".pyc"]
    sys.stdout.write(json.dumps({"distributions": sorted(added), "bytes": sum(path.stat().st_size for path in kept)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
