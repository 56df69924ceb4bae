# SPDX-License-Identifier: Apache-2.0
"""The tests of the client once more, with AddressSanitizer in the library: it has to be loaded before Python is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = (
    "test_client.py",
    "test_client_accidents.py",
    "test_client_cache.py",
    "test_client_journal.py",
    "test_client_masks.py",
    "test_client_refusals.py",
    "test_client_resume.py",
    "test_client_trial.py",
    "test_mqtt.py",
)


@pytest.mark.slow
def test_the_client_touches_no_memory_but_its_own():
    sanitizer = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout.strip()
    environment = os.environ | {"LD_PRELOAD": sanitizer, "ASAN_OPTIONS": "detect_leaks=0", "FEDMOTE_SANITIZE": "address"}
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not broker",
        *(str(here / name) for name in TESTS),
    ]
    result = subprocess.run(command, cwd=here.parent, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr
