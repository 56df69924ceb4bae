# SPDX-License-Identifier: Apache-2.0
"""The disk is full at every write in turn: one clear message, nothing damaged, and the run goes on when there is space."""

import asyncio
import errno
import os
import sqlite3
import subprocess
import time

import pytest

from fedmote.config import CellConfig
from fedmote.coordinator import coordinator
from fedmote.coordinator.merging import Merging, load_or_replay
from fedmote.errors import DiskFullError, StoreError
from fedmote.store import Ledger, State
from fedmote.strategies import cells_of, load_strategy
from fedmote.wire.schema import Kind

CELLS = (CellConfig("home-1", ("board-1",), "phone-1"),)


def full_at(monkeypatch, write):
    """From the n-th write of a file on, the disk is full; returns how many were asked for."""
    real, count = os.fsync, 0

    def fsync(descriptor):
        nonlocal count
        count += 1
        if write is not None and count >= write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda: count


def quiet_run(site, monkeypatch):
    """A run with space enough: how many writes it asks for, and the bytes of its checkpoint."""
    quiet = site("quiet", cells=CELLS)
    with monkeypatch.context() as patch:
        count = full_at(patch, None)
        quiet.serve()
        return count(), quiet.checkpoint_bytes()


def test_full_disk_at_every_write_stops_the_run_and_harms_nothing(site, monkeypatch):
    num_writes, expected = quiet_run(site, monkeypatch)
    assert num_writes >= 8
    for write in range(1, num_writes + 1):
        one = site(f"full-{write}", cells=CELLS)
        with monkeypatch.context() as patch:
            full_at(patch, write)
            with pytest.raises(DiskFullError, match="disk is full"):
                one.serve()
        assert_goes_on(one, expected)


async def until_paused(one):
    while not any(line.startswith("paused:") for line in one.talk):
        await asyncio.sleep(0.01)


def test_a_run_pauses_while_the_disk_is_full_and_goes_on_by_itself(site, monkeypatch):
    monkeypatch.setattr(coordinator, "LOOK_S", 0.05)
    num_writes, expected = quiet_run(site, monkeypatch)
    for write in range(1, num_writes + 1):
        one = site(f"full-{write}", cells=CELLS, full_disk_wait_s=20.0)
        with monkeypatch.context() as patch:
            patch.setattr(coordinator, "has_space", lambda directory, size: False)
            full_at(patch, write)

            async def free(one, patch=patch):
                await until_paused(one)
                await asyncio.sleep(0.1)
                patch.undo()

            result = one.serve(while_running=free)
        assert result.is_complete
        assert one.checkpoint_bytes() == expected
        assert len([line for line in one.talk if "the disk is full" in line]) == 1
        assert [entry.reported for entry in result.rounds] == [1, 1]


def test_participants_are_told_to_wait_while_the_disk_is_full_and_the_run_ends_where_it_stays_full(site, monkeypatch):
    monkeypatch.setattr(coordinator, "LOOK_S", 0.05)
    monkeypatch.setattr(coordinator, "has_space", lambda directory, size: False)
    one = site(cells=CELLS, full_disk_wait_s=0.5)
    full_at(monkeypatch, 5)
    with pytest.raises(DiskFullError, match="disk is full"):
        one.serve()
    assert len([line for line in one.talk if line.startswith("paused:")]) == 1
    seen = [message for actor in one.actors.values() for message in actor.seen]
    assert any(message.kind is Kind.WAIT and "disk" in message["reason"] for message in seen)


def test_a_disk_that_is_full_again_at_once_is_the_same_wait(site, monkeypatch):
    monkeypatch.setattr(coordinator, "LOOK_S", 0.05)
    one = site(cells=CELLS, full_disk_wait_s=0.5)
    full_at(monkeypatch, 5)
    with pytest.raises(DiskFullError, match="disk is full"):
        one.serve()
    assert len([line for line in one.talk if line.startswith("paused:")]) == 1


def test_a_run_that_is_stopped_while_the_disk_is_full_ends_at_once(site, monkeypatch):
    monkeypatch.setattr(coordinator, "has_space", lambda directory, size: False)
    one = site(cells=CELLS, full_disk_wait_s=600.0)
    full_at(monkeypatch, 5)

    async def stop(one):
        await until_paused(one)
        one.coordinator.stop()

    began = time.monotonic()
    with pytest.raises(DiskFullError, match="disk is full"):
        one.serve(while_running=stop)
    assert time.monotonic() - began < 5.0


def assert_goes_on(one, expected):
    result = one.serve()
    assert result.is_complete
    assert one.checkpoint_bytes() == expected
    assert [entry.reported for entry in result.rounds] == [1, 1]


class FullJournal:
    """A connection whose n-th commit finds the disk full, as SQLite says it; all after it as well."""

    def __init__(self, connection, counter, commit):
        self._connection, self._counter, self._commit = connection, counter, commit

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def execute(self, statement, *values):
        if statement == "COMMIT":
            self._counter.append(statement)
            if self._commit is not None and len(self._counter) >= self._commit:
                self._connection.execute("ROLLBACK")
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorname = "SQLITE_FULL"
                raise error
        return self._connection.execute(statement, *values)


def full_journal_at(monkeypatch, commit):
    counter, real = [], Ledger.open

    def open_ledger(path, is_read_only=False):
        ledger = real(path, is_read_only)
        ledger._connection = FullJournal(ledger._connection, counter, commit)
        return ledger

    monkeypatch.setattr(Ledger, "open", open_ledger)
    return counter


def test_full_disk_at_every_entry_of_the_journal_stops_the_run_and_harms_nothing(site, monkeypatch):
    quiet = site("quiet", cells=CELLS)
    with monkeypatch.context() as patch:
        counter = full_journal_at(patch, None)
        quiet.serve()
    expected = quiet.checkpoint_bytes()
    assert len(counter) >= 10
    for commit in range(1, len(counter) + 1):
        one = site(f"full-{commit}", cells=CELLS)
        with monkeypatch.context() as patch:
            full_journal_at(patch, commit)
            with pytest.raises(DiskFullError, match=r"ledger\.sqlite: the disk is full"):
                one.serve()
        assert_goes_on(one, expected)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_really_small_disk_stops_the_run_at_whatever_size_and_harms_nothing(site, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode != 0:
        pytest.skip("no rights to mount a file system here")
    try:
        quiet = site("disk/quiet", cells=CELLS)
        quiet.serve()
        expected = quiet.checkpoint_bytes()
        num_full = 0
        for free_kib in range(0, 400, 8):
            subprocess.run(["rm", "-rf", *map(str, disk.iterdir())], check=True)
            (disk / "filler").write_bytes(bytes((1024 - free_kib) * 1024))
            one = site("disk/state", cells=CELLS)
            try:
                one.serve()
            except DiskFullError:
                num_full += 1
                (disk / "filler").unlink()
                assert_goes_on(one, expected)
            assert one.checkpoint_bytes() == expected
        print(f"{num_full} of 50 sizes were too small")
        assert 5 <= num_full < 50
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_damage_at_any_byte_of_the_newest_checkpoint_is_mended_from_the_journal(site, monkeypatch):
    one = site(cells=CELLS, rounds=2)
    one.serve()
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power fails here, and a thousand mended files take long
    expected = one.checkpoint_bytes()
    strategy = load_strategy(one.config.strategy, cells_of(one.config.cells))
    with State.open(one.config.run.state_directory) as state:
        newest = state.ledger.checkpoints()[-1]
        path = state.checkpoints.path(newest.version)
        whole = path.read_bytes()
        tensors, ranges = one.partition.first_model()
        merging = Merging(strategy, one.partition.shape(tensors, ranges), state.blobs, b"run-name")
        for position in range(len(whole)):
            flipped = whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :]
            for hurt in (flipped, *([whole[:position]] if position % 8 == 0 else [])):
                path.write_bytes(hurt)
                checkpoint, is_mended = load_or_replay(state, merging, newest)
                assert is_mended
                assert checkpoint.to_bytes() == whole
    assert one.checkpoint_bytes() == expected


def test_damaged_blob_stops_a_merge_with_its_name_and_leaves_the_model(site):
    one = site(cells=CELLS, rounds=1)

    def damage(place):
        if place == "before CloseRound":
            for path in (one.config.run.state_directory / "blobs").iterdir():
                path.write_bytes(b"other")

    with pytest.raises(StoreError, match="damaged"):
        one.serve(passing=damage)
    assert list(one.checkpoint_bytes()) == ["checkpoint-000000.safetensors"]
