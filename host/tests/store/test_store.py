# SPDX-License-Identifier: Apache-2.0
"""The store: what was written is there, whole, once, after every accident."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmote.errors import ConfigError, StoreError
from fedmote.store import Blobs, Checkpoint, CheckpointEntry, Checkpoints, Ledger, PlanEntry, RunEntry, State, UpdateEntry
from fedmote.store.durable import write_durably, write_result
from fedmote.store.schema import SCRIPTS
from fedmote.strategies import Member, RoundPlan
from fedmote.wire.schema import Phase, Role, Status

PLAN = RoundPlan(1, Phase.DEVICE, 0, 7, (Member("board-1", Role.DEVICE, "a"), Member("phone-1", Role.PARTNER, "a")))
MODEL = Checkpoint(3, 4, {"w": np.array([1.5, -2.0], np.float32)}, {"act": (-1.0, 0.1)})


def begun(path):
    ledger = Ledger.open(path)
    ledger.begin_run(RunEntry(b"run-0001", 42, "{}"), CheckpointEntry(0, 0, "h0", 0, None))
    return ledger


def update(who="board-1", **changes):
    fields = {"role": Role.DEVICE, "attempt": 1, "num_examples": 9, "crc": 5, "content": "c", "numbers": {"trained": 3}}
    return UpdateEntry(who, **(fields | changes))


def test_refusals_are_bounded_whatever_strangers_say(tmp_path, monkeypatch):
    monkeypatch.setattr("fedmote.store.ledger._MAX_REFUSAL_ROWS", 5)
    with begun(tmp_path / "ledger") as ledger:
        ledger.add_refusal(0, "phone-1", "coordinator", Status.CRC, "known")
        for number in range(50):
            ledger.add_refusal(0, f"stranger-{number}", "coordinator", Status.NOT_EXPECTED, f"reason {number}")
        ledger.add_refusal(0, "phone-1", "coordinator", Status.CRC, "known")
        found = ledger.refusals()
        assert len(found) == 6
        assert {one.participant: one.count for one in found}["others"] == 46
        assert {one.participant: one.count for one in found}["phone-1"] == 2


def test_directory_of_a_run_is_its_owners_alone(tmp_path):
    with State.open(tmp_path / "state"):
        assert (tmp_path / "state").stat().st_mode & 0o077 == 0


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, call, number):
    path = tmp_path / "file"
    write_durably(path, b"old")

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreError, match="disk is full" if number == errno.ENOSPC else "Input/output"):
        write_durably(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_result_that_does_not_fit_leaves_the_earlier_one_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_result(path, b"old")

    def fail(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ConfigError, match=r"file: cannot be written \(No space"):
        write_result(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_result_goes_through_links_and_into_pipes_and_is_readable_as_the_mask_says(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_result(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_result(tmp_path / "pipe", b"flows")
    assert os.read(reader, 9) == b"flows"
    os.close(reader)
    (tmp_path / "plain").touch()
    write_result(tmp_path / "fresh", b"")
    assert (tmp_path / "fresh").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    blobs = Blobs(tmp_path)
    (tmp_path / ".partial-x").write_bytes(b"half")
    blobs = Blobs(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert blobs.get(blobs.put(b"whole")) == b"whole"


def test_damaged_blob_is_refused_at_every_byte(tmp_path):
    blobs = Blobs(tmp_path)
    name = blobs.put(bytes(range(50)))
    for index in range(50):
        damaged = bytearray(range(50))
        damaged[index] ^= 1
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(StoreError, match="damaged"):
            blobs.get(name)


def test_checkpoint_survives_a_round_trip_and_has_one_sequence_of_bytes(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    digest = checkpoints.save(MODEL)
    read = checkpoints.load(3, digest)
    assert (read.version, read.round, read.ranges) == (3, 4, {"act": (-1.0, 0.1)})
    assert read.to_bytes() == MODEL.to_bytes()
    assert checkpoints.versions() == [3]


def test_damaged_checkpoint_is_refused_at_every_byte(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    digest = checkpoints.save(MODEL)
    whole = checkpoints.path(3).read_bytes()
    for index in range(len(whole)):
        checkpoints.path(3).write_bytes(whole[:index] + bytes([whole[index] ^ 255]) + whole[index + 1 :])
        with pytest.raises(StoreError):
            checkpoints.load(3, digest)


# ---- ledger ----------------------------------------------------------------------------------------------------------


def test_ledger_gives_back_what_was_written(tmp_path):
    with begun(tmp_path / "l") as ledger:
        ledger.open_round(PLAN)
        ledger.add_plan(1, PlanEntry("board-1", 1, 77, "posix", 144))
        ledger.add_plan(1, PlanEntry("board-1", 2, 78, "posix", 144))
        ledger.add_update(1, update())
        ledger.add_refusal(1, "phone-1", "coordinator", Status.UPDATE_SHAPE, "tensor x")
        ledger.add_refusal(1, "phone-1", "coordinator", Status.UPDATE_SHAPE, "tensor x")
        ledger.close_round(1, {"phone-1": "training"})
        ledger.commit_round(1, CheckpointEntry(1, 1, "h1", 0, 0.5), 2.5)
    with Ledger.open(tmp_path / "l", is_read_only=True) as ledger:
        assert ledger.run() == RunEntry(b"run-0001", 42, "{}")
        entry = ledger.rounds()[0]
        assert entry.plan == PLAN
        assert (entry.state, entry.version, entry.seconds, entry.missing) == ("committed", 1, 2.5, {"phone-1": "training"})
        assert ledger.updates(1) == [update()]
        assert ledger.plans(1) == {"board-1": PlanEntry("board-1", 2, 78, "posix", 144)}
        assert ledger.last_updates() == {"board-1": (1, 5)}
        assert ledger.refusals(1)[0].count == 2
        assert [one.version for one in ledger.checkpoints()] == [0, 1]


def test_second_update_of_a_participant_breaks_the_key(tmp_path):
    with begun(tmp_path / "l") as ledger:
        ledger.open_round(PLAN)
        ledger.add_update(1, update())
        with pytest.raises(StoreError, match="refuses an entry"):
            ledger.add_update(1, update(attempt=2, content="other"))
        assert ledger.updates(1) == [update()]


@pytest.mark.parametrize("state", ["closed", "committed", "abandoned"])
def test_update_of_a_round_that_is_not_open_is_refused(tmp_path, state):
    with begun(tmp_path / "l") as ledger:
        ledger.open_round(PLAN)
        if state == "abandoned":
            ledger.abandon_round(1, "nobody", 1.0, {})
        else:
            ledger.close_round(1, {})
        if state == "committed":
            ledger.commit_round(1, CheckpointEntry(1, 1, "h", 0, None), 1.0)
        with pytest.raises(StoreError, match="not open"):
            ledger.add_update(1, update())


def test_update_of_somebody_unexpected_is_refused(tmp_path):
    with begun(tmp_path / "l") as ledger:
        ledger.open_round(PLAN)
        with pytest.raises(StoreError):
            ledger.add_update(1, update("mallory"))


def test_ledger_of_the_first_version_is_upgraded(tmp_path):
    with sqlite3.connect(tmp_path / "l") as connection:
        connection.executescript(f"{SCRIPTS[0]} PRAGMA user_version = 1;")
    with Ledger.open(tmp_path / "l") as ledger:
        ledger.begin_run(RunEntry(b"run-0001", 42, "{}"), CheckpointEntry(0, 0, "h0", 0, None))
        ledger.open_round(PLAN)
        ledger.add_plan(1, PlanEntry("board-1", 1, 77, "posix", 144, bytes(32)))
        assert ledger.plans(1)["board-1"].base == bytes(32)


def test_newer_ledger_is_refused(tmp_path):
    begun(tmp_path / "l").close()
    with sqlite3.connect(tmp_path / "l") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="version 99"):
        Ledger.open(tmp_path / "l")


def test_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "l").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError):
        Ledger.open(tmp_path / "l")


def test_full_disk_is_one_clear_message_and_the_journal_stays_sound(tmp_path):
    with begun(tmp_path / "l") as ledger:
        ledger.open_round(PLAN)
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="disk is full"):
            ledger.add_update(1, update(content="x" * 100_000))
        ledger._connection.execute("PRAGMA max_page_count = 100000")
        assert ledger.updates(1) == []
        ledger.add_update(1, update())
        assert ledger.updates(1) == [update()]


def test_journal_cut_at_any_byte_of_its_log_falls_back_to_whole_entries(tmp_path):
    """A power cut leaves a prefix of the write-ahead log: what is read is a prefix of the entries."""
    source = tmp_path / "source"
    source.mkdir()
    ledger = begun(source / "l")
    ledger.open_round(PLAN)
    ledger.add_update(1, update())
    ledger.add_update(1, update("phone-1", role=Role.PARTNER))
    whole = (source / "l-wal").read_bytes()
    seen = set()
    for length in range(0, len(whole) + 1, 509):
        target = tmp_path / "cut"
        target.mkdir()
        shutil.copy(source / "l", target / "l")
        (target / "l-wal").write_bytes(whole[:length])
        with Ledger.open(target / "l") as cut:
            found = [one.participant for one in cut.updates(1)] if cut.run() else []
        assert found in ([], ["board-1"], ["board-1", "phone-1"])
        seen.add(len(found))
        shutil.rmtree(target)
    ledger.close()
    assert 0 in seen


# ---- directory -------------------------------------------------------------------------------------------------------


def test_second_coordinator_is_kept_out_of_a_state_directory(tmp_path):
    with State.open(tmp_path / "state"):
        with pytest.raises(StoreError, match="another coordinator"):
            State.open(tmp_path / "state")
        code = f"from fedmote.store import State; from pathlib import Path; State.open(Path({str(tmp_path / 'state')!r}))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another coordinator" in other.stderr
    State.open(tmp_path / "state").close()


def test_fresh_start_sets_the_earlier_run_aside_and_removes_nothing(tmp_path):
    with State.open(tmp_path) as state:
        state.ledger.begin_run(RunEntry(b"run-0001", 1, "{}"), CheckpointEntry(0, 0, "h", 0, None))
        state.checkpoints.save(MODEL)
    with State.open(tmp_path, is_fresh=True) as state:
        assert state.ledger.run() is None
        assert state.checkpoints.versions() == []
    earlier = tmp_path / "earlier" / b"run-0001".hex()
    with Ledger.open(earlier / "ledger.sqlite", is_read_only=True) as ledger:
        assert ledger.run().name == b"run-0001"
    assert Checkpoints(earlier / "checkpoints").versions() == [3]


def test_state_directory_that_cannot_be_made_is_refused_by_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        State.open(tmp_path / "file" / "state")
