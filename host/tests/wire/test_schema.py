# SPDX-License-Identifier: Apache-2.0
"""The tables of both languages are what the schema gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

from fedmote.wire.schema import FIELDS, BytesField, NumberField, TextField

PROTOCOL = Path(__file__).resolve().parents[3] / "device_sdk" / "protocol"


def test_the_committed_tables_equal_what_the_generator_writes():
    result = subprocess.run([sys.executable, PROTOCOL / "generate.py", "--check"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_every_field_has_one_type_for_the_type_checker():
    names = {int: get_args(NumberField), bytes: get_args(BytesField), str: get_args(TextField)}
    assert {name: kind for kind, listed in names.items() for name in listed} == {name: rule.type for name, rule in FIELDS.items()}
