# SPDX-License-Identifier: Apache-2.0
"""The registry: keys that last, keys that go, epochs that never come back, two processes at one file."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time

import pytest

from fedmote.config import CellConfig
from fedmote.errors import ConfigError, StoreError
from fedmote.fleet import Registry
from fedmote.fleet.registry import FILE_NAME, MAX_EPOCH
from fedmote.wire.schema import Role


@pytest.fixture
def registry(tmp_path):
    with Registry.open(tmp_path / "fleet", is_made=True) as opened:
        yield opened


def in_another_process(directory, *lines: str, exit_code: int = 0) -> str:
    """What Python prints that has the same registry open as `registry`."""
    start = [
        "from pathlib import Path",
        "from fedmote.fleet import Registry",
        "from fedmote.wire.schema import Role",
        f"registry = Registry.open(Path({str(directory)!r}))",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", "\n".join([*start, *lines])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == exit_code, done.stderr
    return done.stdout.strip()


def test_a_key_is_there_after_a_restart_and_every_participant_has_its_own(registry, tmp_path):
    keys = {id: registry.add(id, Role.DEVICE, "desk") for id in ("board-1", "board-2")}
    keys["phone-1"] = registry.add("phone-1", Role.PARTNER, "desk")
    assert len(set(keys.values())) == 3
    assert {len(key) for key in keys.values()} == {32}
    registry.close()
    with Registry.open(tmp_path / "fleet") as again:
        assert {id: again.key(id) for id in keys} == keys
        assert again.key("stranger") is None
        assert again.cells() == (CellConfig("desk", ("board-1", "board-2"), "phone-1"),)
        assert [(entry.id, entry.state, entry.key_version) for entry in again.entries()] == [
            ("board-1", "active", 1),
            ("board-2", "active", 1),
            ("phone-1", "active", 1),
        ]


def test_file_and_directory_are_their_owners_alone(registry, tmp_path):
    registry.add("board-1", Role.DEVICE, "desk")  # the write-ahead log is there now
    assert stat.S_IMODE((tmp_path / "fleet").stat().st_mode) == 0o700
    files = list((tmp_path / "fleet").iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_registry_that_others_may_read_is_refused_with_path_and_mode(registry, tmp_path):
    (tmp_path / "fleet" / FILE_NAME).chmod(0o640)
    with pytest.raises(ConfigError, match=rf"{FILE_NAME}: holds secrets and has mode 0640"):
        Registry.open(tmp_path / "fleet")


def test_a_directory_without_a_registry_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no registry of a fleet"):
        Registry.open(tmp_path)


def test_a_revoked_key_is_gone_from_memory_and_from_the_file(registry, tmp_path):
    key = registry.add("board-1", Role.DEVICE, "desk")
    registry.revoke("board-1")
    assert registry.key("board-1") is None
    assert registry.is_revoked("board-1")
    assert not registry.is_revoked("stranger")
    assert registry.cells() == ()
    registry.close()
    assert [file.name for file in (tmp_path / "fleet").iterdir()] == [FILE_NAME]
    assert key not in (tmp_path / "fleet" / FILE_NAME).read_bytes()
    with Registry.open(tmp_path / "fleet") as again:
        assert again.is_revoked("board-1")


def test_a_revoked_participant_comes_back_only_when_asked_for_and_with_another_key(registry):
    key = registry.add("board-1", Role.DEVICE, "desk")
    registry.revoke("board-1")
    with pytest.raises(ConfigError, match="--again"):
        registry.add("board-1", Role.DEVICE, "desk")
    assert registry.add("board-1", Role.DEVICE, "desk", is_again=True) != key
    assert registry.entry("board-1").key_version == 2
    assert not registry.is_revoked("board-1")


def test_a_rotated_key_replaces_the_old_one_at_once(registry):
    key = registry.add("board-1", Role.DEVICE, "desk")
    new = registry.rotate("board-1")
    assert registry.key("board-1") == new != key
    assert registry.entry("board-1").key_version == 2


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda one: one.add("board-1", Role.DEVICE, "desk"), "enrolled already"),
        (lambda one: one.add("Board 1", Role.DEVICE, "desk"), "a-z"),
        (lambda one: one.add("board-9", Role.DEVICE, "the desk"), "a-z"),
        (lambda one: one.add("phone-2", Role.PARTNER, "desk"), "has the partner phone-1"),
        (lambda one: one.rotate("stranger"), "not enrolled"),
        (lambda one: one.revoke("stranger"), "not enrolled"),
        (lambda one: [one.revoke("board-1"), one.revoke("board-1")], "revoked already"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(registry, act, words):
    registry.add("board-1", Role.DEVICE, "desk")
    registry.add("phone-1", Role.PARTNER, "desk")
    key = registry.key("board-1")
    with pytest.raises(ConfigError, match=words) as caught:
        act(registry)
    assert key.hex() not in str(caught.value)
    assert len(registry.entries()) == 2


def test_refresh_names_what_another_process_changed_and_nothing_twice(registry, tmp_path):
    for id in ("board-1", "board-2", "board-3"):
        registry.add(id, Role.DEVICE, "desk")
    assert registry.refresh() == {"board-1", "board-2", "board-3"}
    assert registry.refresh() == frozenset()
    key = registry.key("board-2")
    in_another_process(
        tmp_path / "fleet", "registry.revoke('board-1')", "registry.rotate('board-2')", "registry.add('x', Role.DEVICE, 'desk')"
    )
    assert registry.key("board-1") is not None  # until refresh looks
    assert registry.refresh() == {"board-1", "board-2", "x"}
    assert registry.key("board-1") is None
    assert registry.key("board-2") not in (None, key)
    assert registry.refresh() == frozenset()


def test_refresh_costs_less_than_a_millisecond_where_nothing_changed(registry):
    for number in range(200):
        registry.add(f"board-{number}", Role.DEVICE, "desk")
    registry.refresh()
    start = time.process_time()
    for _ in range(100):
        registry.refresh()
    assert (time.process_time() - start) / 100 < 1e-3


def test_epochs_rise_strictly_across_processes_and_restarts_and_start_at_the_unix_time(registry, tmp_path):
    before = int(time.time())
    first = [registry.next_epoch() for _ in range(3)]
    other = int(in_another_process(tmp_path / "fleet", "print(registry.next_epoch())"))
    registry.close()
    with Registry.open(tmp_path / "fleet") as again:
        last = again.next_epoch()
    assert before <= first[0]
    assert [*first, other, last] == sorted({*first, other, last})


def test_a_clock_that_goes_back_does_not_bring_an_epoch_back(tmp_path):
    times = iter([5_000.0, 100.0, 0.0])
    with Registry.open(tmp_path, is_made=True, clock=lambda: next(times)) as registry:
        assert [registry.next_epoch() for _ in range(3)] == [5_000, 5_001, 5_002]


def test_a_lost_registry_does_not_repeat_an_epoch(tmp_path):
    with Registry.open(tmp_path / "one", is_made=True, clock=lambda: 1_000.0) as registry:
        given = registry.next_epoch()
    with Registry.open(tmp_path / "two", is_made=True, clock=lambda: 1_001.0) as registry:
        assert registry.next_epoch() > given


def test_epochs_end_with_32_bits(tmp_path):
    with Registry.open(tmp_path, is_made=True, clock=lambda: float(MAX_EPOCH)) as registry:
        assert registry.next_epoch() == MAX_EPOCH
        with pytest.raises(StoreError, match="is the clock of this machine right"):
            registry.next_epoch()


def test_an_epoch_and_a_key_that_were_given_survive_a_kill(tmp_path):
    Registry.open(tmp_path, is_made=True).close()
    text = in_another_process(
        tmp_path,
        "import os, signal",
        "print(registry.next_epoch(), registry.add('board-1', Role.DEVICE, 'desk').hex(), flush=True)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        exit_code=-signal.SIGKILL,
    )
    epoch, key = text.split()
    with Registry.open(tmp_path) as registry:
        assert registry.key("board-1") == bytes.fromhex(key)
        assert registry.next_epoch() > int(epoch)


def test_a_newer_registry_and_a_file_that_is_none_are_refused(tmp_path):
    Registry.open(tmp_path, is_made=True).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="version 99"):
        Registry.open(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(os.urandom(5000))
    with pytest.raises(StoreError, match=FILE_NAME):
        Registry.open(tmp_path)


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be made"):
        Registry.open(tmp_path / "file" / "fleet", is_made=True)


def test_two_processes_that_change_at_once_both_succeed(tmp_path):
    Registry.open(tmp_path, is_made=True).close()
    lines = [
        "import sys; from pathlib import Path; from fedmote.fleet import Registry; from fedmote.wire.schema import Role",
        f"registry = Registry.open(Path({str(tmp_path)!r}))",
        "for number in range(20): registry.add(f'{sys.argv[1]}-{number}', Role.DEVICE, 'desk'); print(registry.next_epoch())",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    children = [
        subprocess.Popen([sys.executable, "-c", "\n".join(lines), name], stdout=subprocess.PIPE, text=True, env=environment)
        for name in ("a", "b")
    ]
    epochs = [int(word) for child in children for word in child.communicate(timeout=60)[0].split()]
    assert len(set(epochs)) == len(epochs) == 40
    with Registry.open(tmp_path) as registry:
        assert len(registry.entries()) == 40


# ---- keys that are being replaced ------------------------------------------------------------------------------------


def test_a_next_key_is_made_once_lasts_over_a_restart_and_takes_the_place_of_the_token_when_it_was_used(registry, tmp_path):
    token = registry.add("board-1", Role.DEVICE, "desk", token_s=60)
    assert registry.renewal("board-1").other is None
    made = registry.next_key("board-1", 7)
    assert made != token
    registry.close()
    with Registry.open(tmp_path / "fleet") as again:
        assert again.next_key("board-1", 8) == made
        assert (again.renewal("board-1").boot, again.key("board-1")) == (7, token)
        again.renewed("board-1")
        again.renewed("board-1")  # twice does no harm
        assert (again.key("board-1"), again.entry("board-1").key_version) == (made, 2)
        renewal = again.renewal("board-1")
        assert (renewal.other, renewal.is_used, renewal.is_expired) == (token, True, False)
        assert again.next_key("board-1", 9) is None


@pytest.mark.parametrize("act", ["revoke", "rotate"])
def test_a_key_that_was_revoked_or_rotated_meanwhile_is_not_replaced_any_more(registry, act):
    registry.add("board-1", Role.DEVICE, "desk", token_s=60)
    made = registry.next_key("board-1", 7)
    getattr(registry, act)("board-1")
    registry.renewed("board-1")
    assert registry.key("board-1") != made
    assert registry.renewal("board-1") is None
    assert registry.next_key("board-1", 7) is None


def test_a_dump_holds_keys_that_are_being_replaced_and_an_older_one_has_none(registry, tmp_path):
    registry.add("board-1", Role.DEVICE, "desk", token_s=60)
    registry.next_key("board-1", 7)
    content = registry.dump()
    with Registry.open(tmp_path / "other", is_made=True) as other:
        other.restore(content, "x")
        assert other.renewal("board-1") == registry.renewal("board-1")
        assert other.entry("board-1") == registry.entry("board-1")
    del content["renewals"]
    with Registry.open(tmp_path / "third", is_made=True) as third:
        third.restore(content, "x")
        assert third.entry("board-1").key_state == "lasting"
