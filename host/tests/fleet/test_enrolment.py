# SPDX-License-Identifier: Apache-2.0
"""Enrolment without a broker that runs: which files there are, who can read what, what an interruption leaves."""

from __future__ import annotations

import json
import stat

import pytest

from fedmote.config import Credentials, PartnerCredentials, load
from fedmote.errors import ConfigError
from fedmote.fleet import Registry
from fedmote.fleet.backup import export_fleet, import_fleet
from fedmote.fleet.broker_files import Accounts, BrokerFiles, ask_to_reload
from fedmote.fleet.enrolment import Enrolment
from fedmote.wire.schema import Role


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "broker").mkdir()
    with Registry.open(tmp_path / "fleet", is_made=True) as registry:
        yield Enrolment(registry, "lab", tmp_path / "broker")


def of_desk(fleet):
    for id in ("board-1", "board-2"):
        fleet.add(id, Role.DEVICE, "desk")
    fleet.add("phone-1", Role.PARTNER, "desk")
    return fleet


def device(fleet, id: str) -> Credentials:
    return load(Credentials, fleet.files.credentials_file(id))


def partner(fleet, id: str = "phone-1") -> PartnerCredentials:
    return load(PartnerCredentials, fleet.files.keys_file(id))


@pytest.mark.parametrize("is_partner_first", [True, False])
def test_device_coordinator_and_partner_get_the_keys_that_they_share_and_no_others(fleet, is_partner_first):
    if is_partner_first:
        fleet.add("phone-1", Role.PARTNER, "desk")
    fleet.add("board-1", Role.DEVICE, "desk")
    fleet.add("board-9", Role.DEVICE, "elsewhere")
    if not is_partner_first:
        fleet.add("phone-1", Role.PARTNER, "desk")
    assert fleet.registry.key("board-1") == device(fleet, "board-1").key_bytes
    assert fleet.registry.key("phone-1") == partner(fleet).key_bytes
    assert partner(fleet).cell_key("board-1") == device(fleet, "board-1").cell_key_bytes
    assert partner(fleet).cell_key("board-9") is None
    registry = b"".join(file.read_bytes() for file in fleet.registry.path.parent.iterdir() if file.is_file())
    for id in ("board-1", "board-9"):
        assert device(fleet, id).key_bytes in registry
        assert device(fleet, id).cell_key_bytes not in registry
        assert device(fleet, id).password.encode() not in registry


def test_no_secret_is_used_twice(fleet):
    of_desk(fleet)
    secrets = [
        one
        for id in ("board-1", "board-2")
        for one in (device(fleet, id).key, device(fleet, id).cell_key, device(fleet, id).psk, device(fleet, id).password)
    ]
    secrets += [partner(fleet).key, fleet.files.password("phone-1"), fleet.files.password("coordinator")]
    assert len(set(secrets)) == len(secrets)


def test_every_file_with_secrets_is_its_owners_alone(fleet, tmp_path):
    of_desk(fleet)
    files = [path for folder in ("broker", "fleet") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert len(files) >= 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_broker_knows_exactly_those_who_are_in(fleet):
    of_desk(fleet)
    fleet.revoke("board-2")
    accounts = Accounts.read(fleet.files)
    assert set(accounts.hashes) == {"coordinator", "board-1", "phone-1"}
    assert accounts.psks == {"board-1": device(fleet, "board-1").psk}
    acl = fleet.files.acl.read_text()
    assert "topic read fedmote/1/lab/board-1/cell/up/#" in acl
    assert "topic read fedmote/1/lab/board-2" not in acl
    assert "user board-2\ntopic deny #" in acl


def test_a_rotation_changes_every_secret_of_the_device_and_the_partner_gets_the_new_cell_key(fleet):
    of_desk(fleet)
    before, hashes = device(fleet, "board-1"), Accounts.read(fleet.files).hashes
    done = fleet.rotate("board-1")
    after = device(fleet, "board-1")
    for name in ("key", "cell_key", "psk", "password"):
        assert getattr(before, name) != getattr(after, name)
    assert done.entry.key_version == 2
    assert set(done.files) == {fleet.files.credentials_file("board-1"), fleet.files.keys_file("phone-1")}
    assert partner(fleet).cell_key("board-1") == after.cell_key_bytes
    assert partner(fleet).cell_key("board-2") == device(fleet, "board-2").cell_key_bytes
    changed = {user for user, one in Accounts.read(fleet.files).hashes.items() if hashes[user] != one}
    assert changed == {"board-1"}


def test_a_revocation_removes_credentials_and_cell_key_and_may_be_repeated(fleet):
    of_desk(fleet)
    for _ in range(2):
        done = fleet.revoke("board-1")
        assert done.entry.state == "revoked"
    assert not fleet.files.credentials_file("board-1").exists()
    assert partner(fleet).cell_key("board-1") is None
    assert partner(fleet).cell_key("board-2") is not None
    with pytest.raises(ConfigError, match="not enrolled"):
        fleet.revoke("stranger")


def test_credentials_that_were_handed_over_are_not_needed_to_change_others(fleet):
    of_desk(fleet)
    key = device(fleet, "board-1").cell_key_bytes
    fleet.files.credentials_file("board-1").unlink()
    fleet.rotate("board-2")
    assert partner(fleet).cell_key("board-1") == key
    fleet.files.keys_file("phone-1").unlink()
    done = fleet.rotate("board-2")
    assert any("no cell key for board-1" in note for note in done.notes)
    assert set(Accounts.read(fleet.files).hashes) == {"coordinator", "board-1", "board-2", "phone-1"}


def test_the_next_action_mends_what_a_killed_one_left(fleet, monkeypatch):
    """A revocation is cut after each file that it writes; the registry has it from the first moment on."""
    from fedmote.fleet import broker_files, enrolment

    class CutError(Exception):
        pass

    real = broker_files.write_private
    for num_written in range(4):
        id = f"board-{num_written}-x"
        fleet.add(id, Role.DEVICE, "desk")
        left = [num_written]

        def write(path, content, left=left):
            if left[0] == 0:
                raise CutError
            left[0] -= 1
            real(path, content)

        for module in (broker_files, enrolment):
            monkeypatch.setattr(module, "write_private", write)
        if num_written < 3:  # passwords, psk, acl
            with pytest.raises(CutError):
                fleet.revoke(id)
        for module in (broker_files, enrolment):
            monkeypatch.setattr(module, "write_private", real)
        if num_written == 3:
            fleet.revoke(id)
        else:
            assert fleet.registry.is_revoked(id)
            fleet.add(f"other-{num_written}", Role.DEVICE, "desk")
        assert id not in Accounts.read(fleet.files).hashes
        assert f"user {id}\ntopic deny #" in fleet.files.acl.read_text()


def test_without_broker_files_credentials_stand_beside_the_registry(tmp_path):
    with Registry.open(tmp_path / "fleet", is_made=True) as registry:
        done = Enrolment(registry, "lab", None).add("board-1", Role.DEVICE, "desk")
    assert done.broker == "none"
    assert [str(path.relative_to(tmp_path)) for path in done.files] == ["fleet/credentials/board-1.toml"]


def test_a_broker_directory_that_is_not_there_is_told_before_anything_changes(tmp_path):
    with Registry.open(tmp_path / "fleet", is_made=True) as registry:
        with pytest.raises(ConfigError, match="fedmote broker init"):
            Enrolment(registry, "lab", tmp_path / "nowhere").add("board-1", Role.DEVICE, "desk")
        with pytest.raises(ConfigError, match="own name"):
            Enrolment(registry, "lab", None).add("coordinator", Role.DEVICE, "desk")
        assert registry.entries() == []


@pytest.mark.parametrize("text", ["", "no number", "1", "-1", "0", "99999999"])
def test_a_pid_file_that_names_no_broker_stops_nobody(tmp_path, text):
    files = BrokerFiles(tmp_path, "lab")
    files.pid.write_text(text)
    assert not ask_to_reload(files)


def test_a_fleet_moves_in_one_private_file(fleet, tmp_path):
    of_desk(fleet)
    fleet.revoke("board-2")
    epoch = fleet.registry.next_epoch()
    path = tmp_path / "fleet.json"
    export_fleet(path, fleet.registry, "lab", fleet.files)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert device(fleet, "board-1").cell_key not in path.read_text()
    with pytest.raises(ConfigError, match="exists"):
        export_fleet(path, fleet.registry, "lab", fleet.files)
    (tmp_path / "other").mkdir()
    with Registry.open(tmp_path / "new", is_made=True, clock=lambda: 0.0) as registry:
        other = Enrolment(registry, "lab", tmp_path / "other")
        import_fleet(path, other, "lab")
        assert registry.entries() == fleet.registry.entries()
        assert {id: registry.key(id) for id in ("board-1", "board-2", "phone-1")} == {
            id: fleet.registry.key(id) for id in ("board-1", "board-2", "phone-1")
        }
        assert registry.is_revoked("board-2")
        assert registry.next_epoch() > epoch
        before, after = Accounts.read(fleet.files), Accounts.read(other.files)
        assert after.psks == before.psks
        assert {user: after.hashes[user] for user in ("board-1", "phone-1")} == {
            user: before.hashes[user] for user in ("board-1", "phone-1")
        }
        with pytest.raises(ConfigError, match="empty registry"):
            import_fleet(path, other, "lab")


def test_a_file_that_is_no_fleet_is_refused_without_a_word_of_its_content(fleet, tmp_path):
    of_desk(fleet)
    path = tmp_path / "fleet.json"
    export_fleet(path, fleet.registry, "lab", fleet.files)
    sound = json.loads(path.read_text())
    key = fleet.registry.key("board-1").hex()
    wrongs = [
        "{" + key,
        json.dumps([key]),
        json.dumps({**sound, "format": 3}),
        json.dumps({**sound, "site": "barn"}),
        json.dumps({**sound, "psks": {"board-1": "x\ny"}}),
        json.dumps({**sound, "participants": [{**sound["participants"][0], "key": key + "zz"}]}),
        json.dumps({**sound, "participants": [{**sound["participants"][0], "key": key[:-2]}]}),
        json.dumps({**sound, "participants": [{**sound["participants"][0], "state": "revoked"}]}),
        json.dumps({**sound, "participants": [{**sound["participants"][0], "id": "../x"}]}),
        json.dumps({**sound, "participants": [{**sound["participants"][0], "role": 7}]}),
        json.dumps({**sound, "participants": [key]}),
        json.dumps({**sound, "participants": 2 * sound["participants"]}),
    ]
    with Registry.open(tmp_path / "new", is_made=True) as registry:
        for wrong in wrongs:
            path.write_text(wrong)
            with pytest.raises(ConfigError) as caught:
                import_fleet(path, Enrolment(registry, "lab", None), "lab")
            assert key[:12] not in str(caught.value)
            assert registry.entries() == []
        path.chmod(0o644)
        with pytest.raises(ConfigError, match="mode 0644"):
            import_fleet(path, Enrolment(registry, "lab", None), "lab")
