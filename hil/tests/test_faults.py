# SPDX-License-Identifier: Apache-2.0
"""The fault matrix itself: rows are complete, what they state decides, they leave nothing behind; then the rows one by one."""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import pytest

from fedmote.cli.bench import Subject
from fedmote.errors import ConfigError
from fedmote.transport.broker import find_mosquitto
from fedmote_hil.cli.faults import SUBJECT
from fedmote_hil.faults.matrix import Bench, NotRunError, Row, VainError, chosen, registered, run_row

# Of the matrix: those that a release needs.
REQUIRED = {*range(1, 7), 8, 9, 11, 12, 13, *range(15, 32), *range(34, 41)}
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


def made_up(run) -> Row:
    return Row(999, "a fault", "in a test", "nothing", "none", run)


def result_of(run):
    return run_row(made_up(run), True, print)


def test_every_required_row_is_there_and_says_what_it_is():
    rows = registered()
    assert set(rows) >= REQUIRED
    for one in rows.values():
        assert all((one.fault, one.injected, one.required, one.target)), one.id


def test_rows_are_chosen_by_numbers_and_ranges():
    assert [one.id for one in chosen("15-17,3,16")] == [15, 16, 17, 3]
    assert len(chosen(None)) == len(registered())
    for text in ("0", "4-x", "", "1,999"):
        with pytest.raises(ConfigError, match="--rows"):
            chosen(text)


def test_a_row_passes_when_all_that_must_be_is():
    def run(bench: Bench) -> None:
        bench.facts.must(True, "one of one")
        bench.facts.note("by the way")

    result = result_of(run)
    assert (result.state, result.figure, result.has_passed) == ("passed", "one of one; by the way", True)


def test_a_row_fails_when_one_thing_is_not_as_required():
    def run(bench: Bench) -> None:
        bench.facts.must(True, "first")
        bench.facts.must(False, "7 s")

    result = result_of(run)
    assert (result.state, result.has_passed) == ("failed", False)
    assert result.figure == "first; NOT AS REQUIRED: 7 s"


def test_a_row_that_decides_nothing_or_breaks_has_failed():
    def broken(bench: Bench) -> None:
        bench.facts.must(True, "so far")
        raise VainError("waited in vain")

    assert result_of(lambda bench: bench.facts.note("nice weather")).state == "failed"
    result = result_of(broken)
    assert result.state == "failed" and "so far" in result.figure and "waited in vain" in result.figure


def test_a_row_that_cannot_run_is_not_run_and_has_not_passed():
    def run(bench: Bench) -> None:
        raise NotRunError("mosquitto is not installed")

    result = result_of(run)
    assert (result.state, result.has_passed) == ("not run", False)
    assert "mosquitto is not installed" in result.figure


def test_whatever_a_row_held_ends_with_it_also_when_it_breaks():
    seen: list[Path] = []

    class Held:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            seen.append(Path("ended"))

    def run(bench: Bench) -> None:
        seen.append(bench.directory)
        bench.hold(Held())
        raise RuntimeError("broken")

    assert result_of(run).state == "failed"
    assert seen[1] == Path("ended") and not seen[0].exists()


def test_a_wait_has_an_end():
    def run(bench: Bench) -> None:
        bench.wait_for("rain", lambda: False, 0.2)

    began = time.monotonic()
    assert "waited 0.2 s in vain for rain" in result_of(run).figure
    assert time.monotonic() - began < 5


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_fleet_ends_with_the_process_that_started_it_even_after_kill_9():
    program = (
        "import os, subprocess, sys\n"
        "from fedmote.supervised import Group\n"
        "group = Group()\n"
        "pids = [group.start(['sleep', '60'], subprocess.DEVNULL, subprocess.DEVNULL).pid for _ in range(3)]\n"
        "os.kill(pids[0], 19)\n"  # one that stands still ends, too
        "print(*pids, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    pids = [int(word) for word in done.stdout.split()]
    assert done.returncode == -9 and len(pids) == 3, done.stderr
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a child outlived the process that started it"
        time.sleep(0.02)


def fedmote_processes() -> set[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines() if "fedmote-fault-3-" in line or "fedmote-fault-40-" in line}


@needs_mosquitto
@pytest.mark.broker
def test_some_rows_pass_and_the_command_says_so_in_json(capsys: pytest.CaptureFixture[str]):
    assert isinstance(SUBJECT, Subject)
    parser = ArgumentParser()
    SUBJECT.add_arguments(parser)
    before = fedmote_processes()
    code = SUBJECT.run(parser.parse_args(["--rows", "40,3", "--quick", "--json"]))
    output = capsys.readouterr()
    rows = json.loads(output.out)["rows"]
    print(output.err)
    assert [one["id"] for one in rows] == [40, 3]
    assert {"id", "fault", "injected", "required", "figure", "target", "passed"} <= set(rows[0])
    assert [one["passed"] for one in rows] == [True, True], rows
    assert code == 0
    assert fedmote_processes() <= before


@needs_mosquitto
@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize("number", sorted(REQUIRED))
def test_row(number: int):
    (one,) = chosen(str(number))
    result = run_row(one, True, print)
    assert result.has_passed, result.figure
