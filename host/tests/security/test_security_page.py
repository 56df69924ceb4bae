# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md promises tests by name; they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_test_that_the_security_page_names_exists():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    folders = [ROOT / name for name in ("host/tests", "hil/tests", "firmware_tests")]
    files = [file for folder in folders for file in folder.rglob("test_*.py")]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    functions = set(re.findall(r"def (test_\w+)", code))
    paths = re.findall(r"`((?:host|hil|firmware_tests)/\S+?\.py)`", page)
    names = re.findall(r"`(\S*test_\w+|\.\.\.\w+)(\.\.\.)?`", page)
    assert len(paths) > 10
    assert len(names) > 12
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    stems = {file.stem for file in files}
    for name, is_cut in names:
        fits = [
            one
            for one in functions
            if one == name or (is_cut and one.startswith(name)) or (name[:3] == "..." and one.endswith(name[3:]))
        ]
        assert fits or name in stems, name
