# SPDX-License-Identifier: Apache-2.0
"""The table of invariants in the README names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_invariant_of_the_readme_has_tests_of_these_names():
    text = (ROOT / "host" / "README.md").read_text()
    rows = re.findall(r"^\| (\d) \| .* \| (`.*`) \|$", text, re.MULTILINE)
    assert [number for number, _ in rows] == [str(number) for number in range(1, 9)]
    for _, cell in rows:
        for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", cell):
            tests = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}
            assert name in tests, f"{path}::{name}"
