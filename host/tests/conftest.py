# SPDX-License-Identifier: Apache-2.0
"""No test of this room reaches for another machine: the interpreter refuses it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _watch():
    path = Path(__file__).parent / "security/loopback/sitecustomize.py"
    specification = importlib.util.spec_from_file_location("loopback_watch", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


sys.addaudithook(_watch().refuse)
