# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmote.errors import RigError
from fedmote_hil.process import Child


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not happen within 20 s"
        time.sleep(0.01)


def _pid_of(path: Path) -> int:
    _wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


_SLEEPER = ["/bin/sh", "-c", "echo $$; exec sleep 1000"]


def test_a_killed_child_is_gone_when_kill_returns(tmp_path):
    child = Child(_SLEEPER, tmp_path)
    pid = _pid_of(child.stdout)
    assert child.is_running
    child.kill()
    assert not _is_alive(pid)
    assert child.exit_code == 128 + signal.SIGKILL
    child.kill()


def test_a_child_dies_with_its_parent(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from fedmote_hil.process import Child;"
        f"child = Child({_SLEEPER!r}, Path(sys.argv[1])); time.sleep(1000)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    pid = _pid_of(tmp_path / "stdout.txt")
    parent.kill()
    parent.wait()
    _wait_until(lambda: not _is_alive(pid))


def test_the_exit_code_and_the_words_of_a_child_arrive(tmp_path):
    child = Child(["/bin/sh", "-c", "echo broken >&2; exit 7"], tmp_path)
    assert child.wait(20) == 7
    assert child.text() == "broken"


def test_a_child_that_does_not_end_is_an_error_and_is_killed(tmp_path):
    child = Child(_SLEEPER, tmp_path)
    pid = _pid_of(child.stdout)
    with pytest.raises(RigError, match="did not end"):
        child.wait(0.05)
    assert not _is_alive(pid)
