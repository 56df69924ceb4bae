# SPDX-License-Identifier: Apache-2.0
"""No decision depends on the wall clock: a coordinator whose clock jumps by an hour keeps its deadlines."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedmote

from .conversion import write_conversion
from .test_links import NAMES, Served, real_actors, write_config

# Preloaded into the process: every fiftieth look at the wall clock, it has jumped an hour back, or forth, or home again.
JUMPING_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static long jump(void) { static unsigned looks; return ((long)(looks++ / 50 % 3) - 1) * 3600; }
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, now);
    if (id == CLOCK_REALTIME) now->tv_sec += jump();
    return status;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
DEADLINE_S = 2.0


def jumping_clock(directory):
    source, library = directory / "clock.c", directory / "clock.so"
    source.write_text(JUMPING_CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    looks = "import time; print(*(int(time.time()) for _ in range(200)))"
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    said = subprocess.run([sys.executable, "-c", looks], env=environment, capture_output=True, check=True)
    seen = [int(word) for word in said.stdout.split()]
    assert max(seen) - min(seen) > 7000, "the clock jumps"
    return library


def test_deadlines_hold_while_the_wall_clock_jumps_by_an_hour(tmp_path, monkeypatch):
    write_conversion(tmp_path / "tiny")
    served = Served(*write_config(tmp_path, "state", 1))
    served.path.write_text(served.path.read_text().replace("report_s = 60", f"report_s = {DEADLINE_S}\nmin_fraction = 0.5"))
    monkeypatch.setenv("LD_PRELOAD", str(jumping_clock(tmp_path)))
    seen = {}

    def watch(process, line):
        for word in ("3 participants", "checkpoint 1"):
            if word in line:
                seen.setdefault(word, time.monotonic())
        return process

    async def never(plan, now):
        """Takes its plan, and is not heard of again."""

    actors = real_actors(NAMES)
    actors["board-3"].begin = never
    result, code = served.serve(watch, actors)
    assert code == 0
    assert [list(entry["missing"]) for entry in result["rounds"]] == [["board-3"]]
    assert DEADLINE_S - 0.1 <= seen["checkpoint 1"] - seen["3 participants"] <= DEADLINE_S + 1.0
    assert DEADLINE_S <= result["rounds"][0]["seconds"] <= DEADLINE_S + 1.0


# Where times are written down for people; and where a counter that was lost begins high enough, which only ever rises.
ALLOWED = {"store/ledger.py": {"datetime"}, "partner/state.py": {"time.time"}}


@pytest.mark.parametrize("room", ["aggregation", "coordinator", "partner", "rounds", "store", "strategies", "transport", "wire"])
def test_no_room_that_decides_looks_at_the_wall_clock(room):
    root = Path(fedmote.__file__).parent
    files = sorted((root / room).rglob("*.py"))
    assert files
    for path in files:
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                found |= {"time"} if node.module == "time" and any(alias.name != "monotonic" for alias in node.names) else set()
            found |= {name for name in names if name == "datetime"}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                found |= set() if node.attr in ("monotonic", "sleep") else {f"time.{node.attr}"}
        assert found == ALLOWED.get(str(path.relative_to(root)), set()), path
