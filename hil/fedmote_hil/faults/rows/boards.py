# SPDX-License-Identifier: Apache-2.0
"""What happens inside a board: its flash fails, wears, loses power; its memory is too small; its cable is pulled.

Flash is the model of `firmware_tests/flash_model.c`, on which the SDK's store, journal and client are cut and failed at every
operation: units that are written once, torn and unordered writes, wear. Its stories run as the tests that they are.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from fedmote.package.boards import Board, sdk_root
from fedmote.package.budget import layout
from fedmote.package.partition import Partition
from fedmote_hil.faults.fleet import ERROR, INSTALLED, Device
from fedmote_hil.faults.matrix import Bench, NotRunError, VainError, row
from fedmote_hil.faults.rows.rounds import start_partner
from fedmote_hil.faults.serving import environment
from fedmote_hil.faults.site import Site

_PATIENCE_S = 120.0
_FIGURES = re.compile(r"(\w+), (\w+), (\w+), erased (\w+), seed \d+: (.+)")
_ARENA_STATUS = -30


def _tell_stories(selection: str) -> list[tuple[str, str, str, dict[str, int]]]:
    """Run stories of the flash; story, what was done, how writes tear, and its figures.

    Raises:
        NotRunError: the tests of the firmware are not here.
        VainError: a story found something wrong.
    """
    root = sdk_root().parent
    test = root / "firmware_tests" / "test_flash_accidents.py"
    if not test.is_file() or importlib.util.find_spec("pytest") is None:
        raise NotRunError("the flash model belongs to firmware_tests of a checkout, and needs pytest")
    paths = os.pathsep.join([str(root), *(path for path in sys.path if path)])
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", "not slow", "-k", selection, str(test)]
    done = subprocess.run(
        command, cwd=root, env={**environment(), "PYTHONPATH": paths}, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise VainError(f"stories of the flash: {done.stdout[-400:]}")
    found = []
    for story, what, tear, _, words in _FIGURES.findall(done.stdout):
        values = words.split()
        figures = {name: int(value) for name, value in zip(values[::2], values[1::2], strict=True)}
        found.append((story, what, tear, figures))
    return found


@row(
    8,
    fault="power loss in flash write",
    injected="C flash model, the SDK's client on it: cut at every program and erase of an installation, of an installation by "
    "a difference and of an update record, writes torn in 4 ways, both erased values; random pairs of cuts",
    required="old or new model, never mixed; SDK state valid",
    target="100 % of indices for one cut; 10,000 random pairs",
)
def power_loss(bench: Bench) -> None:
    """Row 8."""
    found = _tell_stories(
        "every_operation and 255 and whole" if bench.is_quick else "may_fail_at_every_operation or may_fail_twice"
    )
    cuts = [(figures["cuts"], figures["operations"]) for _, what, _, figures in found if what == "cuts"]
    pairs = sum(figures["pairs"] for _, what, _, figures in found if what == "pairs")
    done, of = sum(one for one, _ in cuts), sum(one for _, one in cuts)
    bench.facts.must(done == of > 0, f"{done} of {of} indices in {len(cuts)} stories: old or new")
    bench.facts.must(bench.is_quick or pairs >= 10_000, f"{pairs} random pairs likewise")


@row(
    9,
    fault="flash write or erase error, bad sector",
    injected="C flash model: an error at every operation, with and without effect, of installation, difference and update record",
    required="round reported failed, device stays up",
    target="100 % of indices",
)
def flash_error(bench: Bench) -> None:
    """Row 9."""
    found = _tell_stories("may_fail_with_an_error and 255 and whole" if bench.is_quick else "may_fail_with_an_error")
    done = sum(figures["errors"] for *_, figures in found)
    of = 2 * sum(figures["operations"] for *_, figures in found)
    refused = sum(figures["refused"] for *_, figures in found)
    bench.facts.must(done == of > 0, f"{done} of {of} errors survived in {len(found)} stories")
    bench.facts.must(refused > 0, f"{refused} rounds reported as failed, the others had room to write again")


@row(
    10,
    fault="flash wear",
    injected="C flash model that counts erases: 40 rounds, each with another package",
    required="few erases",
    target="1 erase of a slot for each model, 1 small record for each round at most",
)
def flash_wear(bench: Bench) -> None:
    """Row 10."""
    rounds = 40
    (*_, figures), *_ = _tell_stories("costs_an_erase")
    slots = figures["erases_0"] + figures["erases_1"]
    journal = figures["erases_2"] + figures["erases_3"]
    bench.facts.must(slots <= rounds, f"{slots} erases of slots in {rounds} rounds with {rounds} models")
    bench.facts.must(journal <= rounds // 10, f"{journal} erases of the journal")


# ---- memory ---------------------------------------------------------------------------------------------------------------


@row(
    35,
    fault="arena too small",
    injected="native devices with arenas from 16 bytes to what a package needs, 16 bytes less than that, and exactly that",
    required="init error that names the bytes needed",
    target="never at run time: refused before anything is installed; the number is the converter's own",
)
def small_arena(bench: Bench) -> None:
    """Row 35."""
    facts, board = bench.facts, Board.load("posix")
    site = bench.hold(Site(bench.directory, 8))
    package = Partition.load(site.model.partition).package
    needed = layout(24, board.body_max, package.header, package.head_shape, board.arithmetic).required
    link = 2 * ((board.body_max + 128 + 15) // 16 * 16)
    sizes = [16, link - 16, link, (link + needed) // 2 // 16 * 16, needed - 64, needed - 16, needed, needed + 16]
    fleet = site.fleet()
    windows = {"report_s": 12.0, "selection_s": 6.0, "min_fraction": 0.1}
    serving = site.serve(site.configure("small", 1, windows=windows))
    for device, size in zip(fleet, sizes, strict=True):
        device.start("--arena", str(size))
    result = serving.finish(_PATIENCE_S)
    counted = {one["participant"] for one in result["rounds"][0]["updates"]}
    enough = {device.id for device, size in zip(fleet, sizes, strict=True) if size >= needed}
    facts.must(counted == enough, f"{len(counted)} of {len(sizes)} arenas trained: those of {needed} bytes or more")
    for device, size in zip(fleet, sizes, strict=True):
        words = device.events.read_text(encoding="ascii", errors="replace")
        if size < link:
            facts.must(device.exit_code == 3 and str(link) in words, f"{size} bytes: ends at init, names {link}")
        elif size < needed:
            is_early = device.count(ERROR, _ARENA_STATUS) > 0 and device.count(INSTALLED) == 0
            facts.must(is_early and str(needed) in words, f"{size} bytes: refused before installation, names {needed}")


# ---- cable ----------------------------------------------------------------------------------------------------------------


@row(
    36,
    fault="serial unplug and replug",
    injected="the pseudo terminal of a native device is closed with its board (a real partner relays it) and comes back as "
    "another one under the same name, 5 times",
    required="reconnect by id",
    target="3 s at most after the node returns",
)
def replug(bench: Bench) -> None:
    """Row 36."""
    times = bench.sized(5, 2)
    site = bench.hold(Site(bench.directory, 1, partners={0: "partner-0"}))
    (device,) = site.fleet(link=["--pty"])
    by_id = bench.directory / "by-id"
    device.start()
    _plug(bench, device, by_id)
    start_partner(site, "partner-0", [], **{device.id.replace("-", "_"): by_id})
    windows = {"report_s": 60.0, "selection_s": 60.0}
    site.serve(site.configure("before", 1, windows=windows)).finish(_PATIENCE_S)
    slowest_s = 0.0
    for _ in range(times):
        device.cut_power()
        by_id.unlink()
        time.sleep(1.0)  # the port is away, and the partner looks for it in vain
        device.start()
        _plug(bench, device, by_id)
        took_s = bench.wait_for("the partner at the port", partial(_has_read, device, _bytes_read(device)), 30.0)
        slowest_s = max(slowest_s, took_s)
    bench.facts.must(
        slowest_s <= 3.0, f"{times} times: the partner has the port again {slowest_s:.2f} s at most after it returned"
    )
    result = site.serve(site.configure("after", 1, windows=windows)).finish(_PATIENCE_S)
    bench.facts.must(result["rounds"][0]["reported"] == result["rounds"][0]["expected"], "a round over the new port")


def _plug(bench: Bench, device: Device, by_id: Path) -> None:
    """Give the device's new terminal the name that it always has."""
    path = device.directory / "stdout.txt"
    bench.wait_for("a pseudo terminal", lambda: path.read_text(encoding="utf-8").startswith("/dev/"), 10.0)
    by_id.symlink_to(path.read_text(encoding="utf-8").split()[0])


def _has_read(device: Device, before: int) -> bool:
    return _bytes_read(device) > before


def _bytes_read(device: Device) -> int:
    """Characters that a device read from its terminal and from its files so far."""
    for line in Path(f"/proc/{device.pid}/io").read_text(encoding="ascii").splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    return 0
