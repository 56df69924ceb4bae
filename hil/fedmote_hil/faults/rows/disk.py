# SPDX-License-Identifier: Apache-2.0
"""The coordinator's disk is full, closed to it, or damaged."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import time
from collections import Counter
from functools import partial
from pathlib import Path

from fedmote.errors import DiskFullError, StoreError
from fedmote.store import Ledger
from fedmote.store.checkpoints import Checkpoints
from fedmote_hil.faults.crowd import Background, member
from fedmote_hil.faults.matrix import Bench, NotRunError, row
from fedmote_hil.faults.member import Conduct
from fedmote_hil.faults.serving import Serving
from fedmote_hil.faults.site import Site
from fedmote_hil.faults.small_disk import SmallDisk

_PATIENCE_S = 60.0
_LARGE_BYTES = 64 * 2**20
_PAGE_BYTES = 4096
_START_S = 1.0
_WAL_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24
_ROUNDS = 2
_PAUSED = "the disk is full; nothing that was written is damaged: free space within"
_FULL_DISK_WAIT_S = 3.0


def _quick_members(site: Site, background: Background) -> None:
    """Participants that say hello ten times a second: runs of these rows begin and end hundreds of times."""
    for number in range(len(site.names)):
        background.begin(member(site, number, Conduct(hello_s=0.1)).run())


# ---- full -----------------------------------------------------------------------------------------------------------------


@row(
    20,
    fault="disk full",
    injected="state directory on a tmpfs that is full from page n on, n in steps through all pages that a run writes, each with "
    "a new run; space is freed while the process waits for it (every second n), or after its wait of 3 s",
    required="pause, one clear message, distinct exit code",
    target="no damaged checkpoint; goes on exactly after space is freed, 100 % of n",
)
def disk_full(bench: Bench) -> None:
    """Row 20."""
    facts = bench.facts
    site = bench.hold(Site(bench.directory, 3))
    _quick_members(site, bench.hold(Background()))
    disk = bench.hold(SmallDisk(bench.directory / "disk", _LARGE_BYTES))
    quiet = site.configure("quiet", _ROUNDS, state=disk.directory / "quiet")
    site.serve(quiet, wrapper=disk.wrapper).finish(_PATIENCE_S)
    expected = _checkpoint(disk, "quiet")
    shutil.rmtree(disk.outside / "quiet")
    pages = _pages_at_the_end(site, disk)
    budgets = range(1, pages + 1, bench.sized(max(1, pages // 30), max(1, pages // 4)))
    paused: Counter[bool] = Counter()  # by whether space was freed
    right: Counter[bool] = Counter()  # of these
    exact = clear = damaged = 0
    for index, budget in enumerate(budgets):
        name, is_freed = f"full-{budget}", index % 2 == 0
        disk.remount(f"size={budget * _PAGE_BYTES}")
        wait = {"full_disk_wait_s": _PATIENCE_S if is_freed else _FULL_DISK_WAIT_S}
        config = site.configure(name, _ROUNDS, state=disk.directory / name, run=wait)
        serving = site.serve(config, wrapper=disk.wrapper)
        bench.wait_for("a full disk", partial(_is_full_or_over, serving), _PATIENCE_S)
        is_paused = _PAUSED in serving.words()
        damaged += _num_damaged(disk, name)
        if is_freed:
            disk.remount(f"size={_LARGE_BYTES}")
        code = serving.wait(_PATIENCE_S)
        is_clear = serving.words().count(_PAUSED) == is_paused
        is_right = code == (DiskFullError.exit_code if is_paused and not is_freed else 0)
        if not is_clear or not is_right:
            bench.say(f"{budget} pages: exit {code}: {serving.quote()}")
        paused[is_freed] += is_paused
        right[is_freed] += is_paused and is_right
        clear += is_clear
        damaged += _num_damaged(disk, name)
        if code != 0:
            disk.remount(f"size={_LARGE_BYTES}")
            site.serve(config, wrapper=disk.wrapper).finish(_PATIENCE_S)
        exact += _checkpoint(disk, name) == expected
        shutil.rmtree(disk.outside / name)
    count = len(budgets)
    facts.note(f"{count} sizes up to {pages} pages, {paused.total()} of them too small")
    facts.must(0 < paused[True] == right[True], f"{right[True]} of {paused[True]} paused and went on when space was freed")
    code = DiskFullError.exit_code
    facts.must(0 < paused[False] == right[False], f"{right[False]} of {paused[False]} paused in vain and ended with exit {code}")
    facts.must(clear == count, f"one message in {clear} of {count}")
    facts.must(damaged == 0, f"{damaged} damaged checkpoints")
    facts.must(exact == count, f"{exact} of {count} went on to the same bytes")


def _pages_at_the_end(site: Site, disk: SmallDisk) -> int:
    """Pages that a run has taken when it was killed at its end, journal and all."""
    config = site.configure("measured", _ROUNDS, state=disk.directory / "measured")
    site.serve(config, wrapper=disk.wrapper).finish(_PATIENCE_S)
    used = disk.used_bytes
    shutil.rmtree(disk.outside / "measured")
    return -(-used // _PAGE_BYTES)


def _is_full_or_over(serving: Serving) -> bool:
    """Whether a coordinator waits for space, or has ended without a full disk."""
    return _PAUSED in serving.words() or not serving.is_running


def _checkpoint(disk: SmallDisk, name: str) -> bytes:
    return (disk.outside / name / "checkpoints" / f"checkpoint-{_ROUNDS:06}.safetensors").read_bytes()


def _num_damaged(disk: SmallDisk, name: str) -> int:
    """Checkpoints that the ledger names and whose files are not what it says."""
    state = disk.outside / name
    if not (state / "ledger.sqlite").exists():
        return 0
    count = 0
    try:
        with sqlite3.connect(f"file:{state / 'ledger.sqlite'}?mode=ro", uri=True) as connection:
            entries = connection.execute("SELECT version, hash FROM checkpoint").fetchall()
    except sqlite3.OperationalError:  # no table was made before the disk was full
        return 0
    for version, digest in entries:
        try:
            Checkpoints(state / "checkpoints", is_read_only=True).load(version, digest)
        except StoreError:
            count += 1
    return count


# ---- closed ---------------------------------------------------------------------------------------------------------------


@row(
    21,
    fault="read-only or missing state directory, wrong owner",
    injected="chmod 0500; a directory of another user; a read-only file system; a parent that is a file; each without the "
    "rights of root",
    required="refuse to start, name the path",
    target="exit code not 0 in 1 s",
)
def state_closed(bench: Bench) -> None:
    """Row 21."""
    if shutil.which("setpriv") is None:
        raise NotRunError("setpriv (util-linux) is not installed: root could write anywhere")
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"] if os.geteuid() == 0 else []
    site = bench.hold(Site(bench.directory, 1))
    disk = bench.hold(SmallDisk(bench.directory / "disk", _LARGE_BYTES))
    disk.remount("ro")
    read_only = bench.directory / "read-only"
    read_only.mkdir(mode=0o500)
    (bench.directory / "file").touch()
    cases: list[tuple[str, Path, list[str]]] = [
        ("read-only directory", read_only, powerless),
        ("read-only file system", disk.directory / "state", disk.wrapper),
        ("parent is a file", bench.directory / "file" / "state", powerless),
    ]
    if os.geteuid() == 0:
        foreign = bench.directory / "foreign"
        foreign.mkdir(mode=0o700)
        os.chown(foreign, 65534, 65534)
        cases.append(("another's directory", foreign, powerless))
    else:
        cases.append(("another's directory", Path(site.directory.anchor) / "fedmote-state", []))
    slowest_s = 0.0
    for name, state, wrapper in cases:
        serving = site.serve(site.configure(name.replace(" ", "-").replace("'", ""), state=state), wrapper=wrapper)
        code = serving.wait(10.0)
        slowest_s = max(slowest_s, time.monotonic() - serving.began)
        lines = serving.words().strip().splitlines()
        is_named = bool(lines) and str(state) in lines[-1]
        bench.facts.must(code == 3 and is_named, f"{name}: exit {code}{'' if is_named else ', the path is not named'}")
    bench.facts.must(slowest_s <= _START_S, f"the slowest in {slowest_s:.2f} s")


# ---- damaged --------------------------------------------------------------------------------------------------------------


@row(
    22,
    fault="damaged checkpoint or journal tail",
    injected="every byte of the last record of the journal (write-ahead log) flipped, and the log cut behind it, in the store "
    "itself; 32 of these and 32 bytes of the newest checkpoint with a coordinator process each",
    required="fall back to the last good one, say so",
    target="every byte position of the last record; exact in the end",
)
def state_damaged(bench: Bench) -> None:
    """Row 22."""
    site = bench.hold(Site(bench.directory, 3))
    config = site.configure("damaged", _ROUNDS)
    with Background() as background:
        _quick_members(site, background)
        site.serve(site.configure("quiet", _ROUNDS)).finish(_PATIENCE_S)
        expected = site.checkpoint("quiet", _ROUNDS)
        serving = site.serve(config)
        bench.wait_for("an update of round 2", lambda: site.num_counted("damaged", 2) > 0, _PATIENCE_S, 0.001)
        serving.kill9()
    kept = bench.directory / "kept"
    shutil.copytree(site.state("damaged"), kept)
    start, log = _last_record(kept / "ledger.sqlite-wal")
    _damage_journal(bench, kept, start, log)
    _damage_with_processes(bench, site, config, kept, expected, start, log)


def _last_record(path: Path) -> tuple[int, bytes]:
    """Where the last record of a write-ahead log begins, and the log up to its end.

    A record is all frames of one transaction: it ends with a frame that says how many pages the database has then.
    """
    log = path.read_bytes()
    (page_bytes,) = struct.unpack_from(">I", log, 8)
    salts = log[16:24]
    size = _FRAME_HEADER_BYTES + page_bytes
    commits = [_WAL_HEADER_BYTES]
    at = _WAL_HEADER_BYTES
    while at + size <= len(log) and log[at + 8 : at + 16] == salts:
        if struct.unpack_from(">I", log, at + 4)[0]:
            commits.append(at + size)
        at += size
    return commits[-2], log[: commits[-1]]


def _summary(path: Path) -> tuple[object, ...]:
    with Ledger.open(path) as ledger:
        rounds = ledger.rounds()
        updates = [[one.participant for one in ledger.updates(entry.plan.round)] for entry in rounds]
        plans = [sorted(ledger.plans(entry.plan.round)) for entry in rounds]
        return [entry.state for entry in rounds], updates, plans, len(ledger.checkpoints()), len(ledger.refusals())


def _damage_journal(bench: Bench, kept: Path, start: int, log: bytes) -> None:
    """Flip each byte of the last record, and cut the log at each place inside it: what is there is then the state before it."""
    scratch = bench.directory / "scratch"
    scratch.mkdir()
    database = (kept / "ledger.sqlite").read_bytes()

    def open_with(content: bytes) -> tuple[object, ...] | None:
        (scratch / "ledger.sqlite").write_bytes(database)
        (scratch / "ledger.sqlite-shm").unlink(missing_ok=True)
        (scratch / "ledger.sqlite-wal").write_bytes(content)
        try:
            return _summary(scratch / "ledger.sqlite")
        except StoreError:
            return None

    whole, before = open_with(log), open_with(log[:start])
    bench.facts.must(whole is not None and before is not None and whole != before, "the last record tells something")
    positions = range(start, len(log), bench.sized(1, 64))
    good = 0
    for position in positions:
        damaged = bytearray(log)
        damaged[position] ^= 0x55
        good += open_with(bytes(damaged)) == before
    cuts = range(start, len(log), bench.sized(31, 256))
    good_cuts = sum(open_with(log[:cut]) == before for cut in cuts)
    bench.facts.must(good == len(positions), f"{good} of {len(positions)} flipped bytes give the state before the record")
    bench.facts.must(good_cuts == len(cuts), f"{good_cuts} of {len(cuts)} cuts likewise")


def _damage_with_processes(bench: Bench, site: Site, config: Path, kept: Path, expected: bytes, start: int, log: bytes) -> None:
    """Coordinators go on from a damaged journal, and from a damaged newest checkpoint."""
    count = bench.sized(16, 2)
    state = site.state("damaged")

    def go_on() -> tuple[bool, str]:
        # Participants that were told that their update is durable have dropped it: only a reset makes them do the round again.
        with Background() as background:
            _quick_members(site, background)
            serving = site.serve(config)
            serving.finish(_PATIENCE_S)
        return site.checkpoint("damaged", _ROUNDS) == expected, serving.words()

    exact = 0
    for number in range(count):
        shutil.rmtree(state)
        shutil.copytree(kept, state)
        damaged = bytearray(log)
        damaged[start + number * (len(log) - start) // count] ^= 0x55
        (state / "ledger.sqlite-shm").unlink(missing_ok=True)
        (state / "ledger.sqlite-wal").write_bytes(damaged if number % 2 == 0 else damaged[: len(damaged) - 100 * number])
        exact += go_on()[0]
    bench.facts.must(exact == count, f"{exact} of {count} coordinators went on from a damaged journal to the same bytes")
    exact = said = 0
    for number in range(count):
        shutil.rmtree(state)
        shutil.copytree(kept, state)
        path = state / "checkpoints" / "checkpoint-000001.safetensors"
        content = bytearray(path.read_bytes())
        content[number * len(content) // count] ^= 0x55
        path.write_bytes(content if number % 2 == 0 else content[: len(content) // 2])
        is_exact, words = go_on()
        exact, said = exact + is_exact, said + ("missing or damaged" in words)
    bench.facts.must(exact == said == count, f"{exact} of {count} from a damaged checkpoint, {said} said so")
