# SPDX-License-Identifier: Apache-2.0
"""What is written for a broker: access lists, hashed passwords, private files."""

from __future__ import annotations

import base64
import shutil
import subprocess

import pytest

from fedmote.config import CellConfig
from fedmote.errors import ConfigError
from fedmote.fleet.broker_files import COORDINATOR, access_list, password_hash, write_broker_files

CELLS = (CellConfig("one", ("board-1", "board-2"), "phone-1"), CellConfig("two", ("board-3",), "phone-2"))


def test_the_access_list_names_no_cell_topic_for_the_coordinator():
    text = access_list("lab", CELLS)
    blocks = {block.split("\n")[0]: block for block in text.split("\n\n")}
    assert "cell" not in blocks["user coordinator"]
    assert "topic read fedmote/1/lab/board-1/cell/up/#" in text
    assert "pattern write fedmote/1/lab/%u/cell/up/#" in text


def test_broker_files_are_private_and_passwords_are_kept(tmp_path):
    files = write_broker_files(tmp_path / "broker", "lab", CELLS)
    before = {user: files.password(user) for user in (COORDINATOR, "phone-1", "board-1")}
    again = write_broker_files(tmp_path / "broker", "lab", CELLS)
    assert {user: again.password(user) for user in before} == before
    assert len(set(before.values())) == len(before)
    for path in files.directory.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    hashed = (files.directory / "passwords").read_text()
    assert not any(password in hashed for password in before.values())


def test_a_participant_called_as_the_coordinator_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a name of its own"):
        write_broker_files(tmp_path, "lab", CELLS, coordinator="board-1")


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="mosquitto_passwd is not installed")
def test_a_password_hash_is_the_one_that_mosquitto_passwd_writes(tmp_path):
    file = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", file, "user", "secret"], check=True, capture_output=True)
    written = file.read_text().strip().removeprefix("user:")
    assert password_hash("secret", base64.b64decode(written.split("$")[3])) == written
