# SPDX-License-Identifier: Apache-2.0
"""The store: what was written is there, whole, once, after every accident."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from fedmote.errors import ConfigError, StoreError
from fedmote.privacy.group import MaskedGroup
from fedmote.store import (
    Blobs,
    Checkpoint,
    CheckpointEntry,
    Checkpoints,
    Ledger,
    MaskBlobEntry,
    PlanEntry,
    RunEntry,
    State,
    UpdateEntry,
)
from fedmote.store.durable import write_durably, write_result
from fedmote.store.schema import SCRIPTS
from fedmote.strategies import Member, RoundPlan
from fedmote.wire.masking import Ring
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


# As runs began with before they could be masked, and as they are now.
STRATEGY = '{"seed": 1, "server_learning_rate": 1.0}'
UPGRADED = '{"seed": 1, "secure_sum": null, "server_learning_rate": 1.0}'


def write_former_ledger(path, version):
    """A ledger of a former version with a run, a round, a plan, an update, a refusal."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for script in SCRIPTS[:version]:
            connection.executescript(script)
        connection.execute(f"PRAGMA user_version = {version}")
        base = () if version == 1 else (bytes(32),)
        for statement, values in (
            ("INSERT INTO run VALUES (1, ?, 42, ?, 'then')", (b"run-0001", STRATEGY)),
            ("INSERT INTO checkpoint VALUES (0, 0, 'h0', 0, 0.5)", ()),
            (f"INSERT INTO round VALUES (1, 1, 0, 7, 'open', NULL, NULL, NULL, 'then'{', NULL' if version >= 3 else ''})", ()),
            ("INSERT INTO member VALUES (1, 'board-1', 1, 'a', NULL)", ()),
            (f"INSERT INTO plan VALUES (1, 'board-1', 2, 77, 'posix', 144{', ?' * len(base)})", base),
            ("INSERT INTO \"update\" VALUES (1, 'board-1', 2, 9, 5, 'c', '{}')", ()),
            ("INSERT INTO refusal VALUES (1, 'board-1', 'coordinator', 50, 'late', 3)", ()),
        ):
            connection.execute(statement, values)
        connection.commit()


@pytest.mark.parametrize("version", range(1, len(SCRIPTS)))
def test_ledger_of_a_former_version_is_read_as_it_is_and_upgraded_with_all_that_it_holds(tmp_path, version):
    write_former_ledger(tmp_path / "l", version)

    def check(ledger, strategy):
        assert ledger.run() == RunEntry(b"run-0001", 42, strategy)
        assert [one.accuracy for one in ledger.checkpoints()] == [0.5]
        (entry,) = ledger.rounds()
        assert (entry.state, entry.plan.seed, entry.opened_at, entry.report_s) == ("open", 7, "then", None)
        assert [one.participant for one in ledger.updates(1)] == ["board-1"]
        assert ledger.refusals()[0].count == 3

    with Ledger.open(tmp_path / "l", is_read_only=True) as ledger:
        check(ledger, STRATEGY)
        assert ledger.mask_blobs(1, 1) == []
        assert ledger.ended_mask_steps(1) == frozenset()
        assert ledger.version == version
    with Ledger.open(tmp_path / "l") as ledger:
        check(ledger, STRATEGY if version == 5 else UPGRADED)
        assert ledger.version == len(SCRIPTS)
        assert ledger.plans(1)["board-1"] == PlanEntry("board-1", 2, 77, "posix", 144, None if version == 1 else bytes(32))
        ledger.close_round(1, {})
        ledger.commit_round(1, CheckpointEntry(1, 1, "h1", 0, None), 2.0)
        second = RoundPlan(2, Phase.DEVICE, 1, 8, (Member("board-1", Role.DEVICE, "a"),))
        ledger.open_round(second, 60.0)
        ledger.add_plan(2, PlanEntry("board-1", 1, 78, "posix", 144, bytes(32)))
        assert ledger.rounds(2)[0].report_s == 60.0


GROUP = MaskedGroup("street", b"group-01", Ring.of(9), 0.5, {"board-1": 4, "board-2": 9})
MASKED = RoundPlan(
    1, Phase.DEVICE, 0, 7, tuple(Member(who, Role.DEVICE, "a") for who in ("board-1", "board-2", "board-3")), masked=GROUP
)


@pytest.fixture
def masked(tmp_path):
    with Ledger.open(tmp_path / "l") as ledger:
        ledger.begin_run(RunEntry(b"run-0001", 42, "{}"), CheckpointEntry(0, 0, "h0", 0, None))
        ledger.open_round(MASKED, 60.0)
        for who in ("board-1", "board-2"):
            ledger.add_plan(1, PlanEntry(who, 1, 5, "posix", 144))
        yield ledger


def test_the_group_of_a_round_and_what_its_members_hand_in_come_back(masked):
    assert masked.rounds()[0].plan == MASKED
    keys = [MaskBlobEntry(who, 1, 1, 7, f"keys of {who}") for who in ("board-1", "board-2")]
    for one in reversed(keys):
        masked.add_mask_blob(1, one)
    masked.end_mask_step(1, 1)
    masked.add_mask_blob(1, MaskBlobEntry("board-2", 3, 1, 8, "shares"))
    assert masked.mask_blobs(1, 1) == keys
    assert [one.content for one in masked.mask_blobs(1, 3)] == ["shares"]
    assert masked.ended_mask_steps(1) == {1}


def test_keys_go_with_their_attempt_until_they_are_fixed(masked):
    masked.add_mask_blob(1, MaskBlobEntry("board-1", 1, 1, 7, "first"))
    masked.add_plan(1, PlanEntry("board-1", 2, 6, "posix", 144))
    assert masked.mask_blobs(1, 1) == []
    masked.add_mask_blob(1, MaskBlobEntry("board-1", 1, 2, 8, "second"))
    masked.end_mask_step(1, 1)
    masked.add_plan(1, PlanEntry("board-1", 3, 7, "posix", 144))
    assert [one.content for one in masked.mask_blobs(1, 1)] == ["second"]


def test_what_comes_after_a_step_was_fixed_or_twice_breaks_the_journal(masked):
    masked.add_mask_blob(1, MaskBlobEntry("board-1", 1, 1, 7, "keys"))
    with pytest.raises(StoreError):
        masked.add_mask_blob(1, MaskBlobEntry("board-1", 1, 1, 9, "other keys"))
    masked.end_mask_step(1, 1)
    with pytest.raises(StoreError, match="over or not open"):
        masked.add_mask_blob(1, MaskBlobEntry("board-2", 1, 1, 7, "late keys"))
    masked.end_mask_step(1, 2)
    with pytest.raises(StoreError, match="updates are fixed"):
        masked.add_update(1, update("board-1"))
    with pytest.raises(StoreError):
        masked.end_mask_step(1, 2)
    masked.close_round(1, {})
    with pytest.raises(StoreError, match="over or not open"):
        masked.add_mask_blob(1, MaskBlobEntry("board-1", 3, 1, 7, "late shares"))


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


@pytest.fixture
def memory_path():
    """A directory in memory where there is one: thousands of ledgers are opened, and each forces its files to the medium."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as directory:
        yield Path(directory)


def test_journal_cut_at_any_byte_of_its_log_falls_back_to_whole_entries(memory_path):
    """A power cut leaves a prefix of the write-ahead log: what is read is a prefix of the entries."""
    source = memory_path / "source"
    source.mkdir()
    ledger = begun(source / "l")
    ledger.open_round(PLAN)
    ledger.add_update(1, update())
    ledger.add_update(1, update("phone-1", role=Role.PARTNER))
    whole = (source / "l-wal").read_bytes()
    seen = set()
    for length in range(0, len(whole) + 1, 509):
        target = memory_path / "cut"
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


def last_entry(directory):
    """A ledger with small pages whose process was killed, and where its last entry, the update of phone-1, lies in the log."""
    directory.mkdir()
    with contextlib.closing(sqlite3.connect(directory / "l")) as connection:
        connection.executescript("PRAGMA page_size = 512; VACUUM;")
    ledger = begun(directory / "l")
    ledger.open_round(PLAN)
    ledger.add_update(1, update())
    log = directory / "l-wal"
    start = log.stat().st_size
    ledger.add_update(1, update("phone-1", role=Role.PARTNER))
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "l-shm"}
    ledger.close()
    return files, start


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_damage_at_any_byte_of_the_last_entry_falls_back_to_the_one_before_and_is_said(memory_path, damage):
    files, start = last_entry(memory_path / "source")
    whole = files["l-wal"]
    assert len(whole) > start
    for position in range(start, len(whole)):
        directory = memory_path / "damaged"
        directory.mkdir()
        hurt = bytearray(whole[:position] if damage == "cut" else whole)
        if damage == "flipped":
            hurt[position] ^= 0x10
        (directory / "l").write_bytes(files["l"])
        (directory / "l-wal").write_bytes(hurt)
        with Ledger.open(directory / "l") as ledger:
            assert [one.participant for one in ledger.updates(1)] == ["board-1"], position
            is_clean_cut = damage == "cut" and position == start
            assert (ledger.damage is None) == is_clean_cut, position
            if not is_clean_cut:
                assert str(directory / "l-wal") in ledger.damage
        if position % 100 == 0:
            with Ledger.open(directory / "l") as ledger:
                assert ledger.damage is None  # said once
        shutil.rmtree(directory)


def test_a_whole_log_is_no_damage_also_where_an_earlier_turn_left_frames_behind(tmp_path):
    ledger = begun(tmp_path / "l")
    ledger.open_round(PLAN)
    ledger._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # the next entry begins a new turn of the log
    ledger.add_update(1, update())
    (tmp_path / "copy").mkdir()
    for name in ("l", "l-wal"):
        shutil.copy(tmp_path / name, tmp_path / "copy" / name)
    ledger.close()
    with Ledger.open(tmp_path / "copy" / "l") as ledger:
        assert ledger.damage is None
        assert ledger.updates(1) == [update()]


@pytest.mark.parametrize("position", range(32))
def test_a_damaged_head_of_the_log_is_said_as_well(tmp_path, position):
    files, _ = last_entry(tmp_path / "source")
    hurt = bytearray(files["l-wal"])
    hurt[position] ^= 0x10
    (tmp_path / "l").write_bytes(files["l"])
    (tmp_path / "l-wal").write_bytes(hurt)
    with Ledger.open(tmp_path / "l") as ledger:
        # Some bits of it, such as those of a counter that nobody reads, are covered by its checksum all the same.
        assert ledger.damage is not None
        assert ledger.run() is None


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


@pytest.mark.parametrize("what", ["", "ledger.sqlite", "checkpoints", "blobs"])
def test_what_may_not_be_written_is_refused_by_name_before_anything_is(tmp_path, what):
    State.open(tmp_path / "state").close()
    path = tmp_path / "state" / what
    mode = path.stat().st_mode
    path.chmod(mode & ~0o222)
    began = time.monotonic()
    with pytest.raises(StoreError, match=rf"{re.escape(str(path))}: cannot be written"):
        State.open(tmp_path / "state")
    assert time.monotonic() - began <= 1.0
    path.chmod(mode)
    State.open(tmp_path / "state").close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["", "ledger.sqlite", "blobs"])
def test_a_directory_of_somebody_else_is_refused_by_name(tmp_path, what):
    State.open(tmp_path / "state").close()
    path = tmp_path / "state" / what
    os.chown(path, 12345, -1)
    with pytest.raises(StoreError, match=rf"{re.escape(str(path))}: belongs to user 12345"):
        State.open(tmp_path / "state")


def test_a_directory_whose_medium_is_not_there_is_refused_and_not_made(tmp_path):
    with pytest.raises(StoreError, match=r"usb is not there"):
        State.open(tmp_path / "usb" / "state")
    assert not (tmp_path / "usb").exists()
