# SPDX-License-Identifier: Apache-2.0
"""Groups whose updates are summed under masks: who has which secret, and what the registry says of them."""

from __future__ import annotations

import json
import sqlite3
import stat
from dataclasses import replace

import pytest
from nacl.bindings import crypto_scalarmult_base

from fedmote.cli import main
from fedmote.cli.serve import group_of, unmasked_members, with_population
from fedmote.config import CoordinatorConfig, Credentials, SecureSumConfig, StrategyConfig, load
from fedmote.errors import ConfigError
from fedmote.fleet import Registry
from fedmote.fleet.backup import export_fleet, import_fleet
from fedmote.fleet.broker_files import Accounts
from fedmote.fleet.enrolment import Enrolment
from fedmote.fleet.registry import FILE_NAME
from fedmote.fleet.schema import SCRIPTS
from fedmote.wire.masking import Membership
from fedmote.wire.regions import credentials_region, read_identity_region
from fedmote.wire.schema import Role

NAMES = tuple(f"board-{number:02}" for number in range(1, 11))


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "broker").mkdir()
    with Registry.open(tmp_path / "fleet", is_made=True) as registry:
        one = Enrolment(registry, "lab", tmp_path / "broker")
        for id in NAMES:
            one.add(id, Role.DEVICE, f"cell-{id}")
        one.add("phone-1", Role.PARTNER, "cell-board-01")
        yield one


def membership(fleet, id: str) -> Membership:
    key = load(Credentials, fleet.files.credentials_file(id)).group_key_bytes
    assert key is not None
    return Membership.read(key)


def about_the_street(done) -> list[str]:
    return [note for note in done.notes if "street" in note]


def files_of_the_registry(fleet) -> bytes:
    return b"".join(file.read_bytes() for file in fleet.registry.path.parent.iterdir() if file.is_file())


def test_members_have_secrets_that_fit_together_and_the_registry_has_none(fleet):
    done = fleet.group("street", NAMES)
    assert [one.entry.id for one in done] == list(NAMES)
    assert {one.entry.key_version for one in done} == {2}
    group = fleet.registry.group("street")
    assert (group.ring.num_members, group.ring.num_neighbours, group.ring.threshold) == (10, 8, 5)
    members = {id: membership(fleet, id) for id in NAMES}
    publics = {one.number: crypto_scalarmult_base(one.secret) for one in members.values()}
    assert {one.number: one.public for one in group.members} == publics
    assert sorted(publics) == list(range(1, 11))
    for id, one in members.items():
        assert (one.group, one.number, one.ring) == (group.id, group.numbers[id], group.ring)
        assert one.publics == {near: publics[near] for near in group.ring.neighbours(one.number)}
        assert one.secret not in files_of_the_registry(fleet)
        file = fleet.files.credentials_file(id)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        credentials = load(Credentials, file)
        assert credentials.key_bytes == fleet.registry.key(id)
        assert one.secret.hex() not in repr(credentials)
        region = credentials_region(credentials, "mqtt", is_sending_samples=False)
        assert read_identity_region(region).membership == one
        assert one.secret.hex() not in repr(read_identity_region(region))
    assert len({one.secret for one in members.values()}) == 10
    assert set(Accounts.read(fleet.files).psks) >= set(NAMES)


def test_numbers_are_drawn(fleet):
    drawn = set()
    for _ in range(4):
        fleet.group("street", NAMES, is_again=True)
        drawn.add(tuple(sorted(fleet.registry.group("street").numbers.items())))
    assert len(drawn) == 4


def test_a_group_of_devices_that_cannot_be_one_is_refused_and_changes_nothing(fleet):
    fleet.revoke("board-10")
    before = {id: fleet.registry.key(id) for id in NAMES}
    wrongs = {
        "at least 8": (NAMES[:7], None),
        "named more than once": ((*NAMES[:8], NAMES[0]), None),
        "is not enrolled": ((*NAMES[:8], "stranger"), None),
        "is revoked": (NAMES, None),
        "is a partner": ((*NAMES[:8], "phone-1"), None),
        "more than half": (NAMES[:8], 3),
        "threshold 9": (NAMES[:9], 9),
    }
    for reason, (ids, threshold) in wrongs.items():
        with pytest.raises(ConfigError, match=reason):
            fleet.group("street", ids, threshold)
    with pytest.raises(ConfigError, match="group"):
        fleet.group("The Street", NAMES[:8])
    assert fleet.registry.groups() == ()
    assert {id: fleet.registry.key(id) for id in NAMES} == before
    fleet.group("street", NAMES[:8], 6)
    assert fleet.registry.group("street").ring.threshold == 6
    with pytest.raises(ConfigError, match="board-01 is in group street"):
        fleet.group("road", NAMES[:9])
    with pytest.raises(ConfigError, match="--again"):
        fleet.group("street", NAMES[:9])
    with pytest.raises(ConfigError, match="there is no group road, known: street"):
        fleet.registry.group("road")


def test_rotation_leaves_the_group_as_it_is_while_the_secret_is_here(fleet):
    fleet.group("street", NAMES)
    group, before = fleet.registry.group("street"), membership(fleet, "board-03")
    assert about_the_street(fleet.rotate("board-03")) == []
    assert membership(fleet, "board-03") == before
    assert fleet.registry.group("street") == group
    fleet.files.credentials_file("board-04").unlink()  # handed over
    (note,) = about_the_street(fleet.rotate("board-04"))
    assert "its secret is not here any more" in note
    assert load(Credentials, fleet.files.credentials_file("board-04")).group_key is None


def test_a_revoked_member_is_lost_for_good_and_keeps_its_number(fleet):
    fleet.group("street", NAMES)
    numbers = fleet.registry.group("street").numbers
    (note, *_) = fleet.revoke("board-05").notes
    assert note == "group street has 9 members left: board-05 keeps its number there and is lost in every round"
    group = fleet.registry.group("street")
    assert group.numbers == {id: number for id, number in numbers.items() if id != "board-05"}
    assert group.ring.num_members == 10
    fleet.add("board-05", Role.DEVICE, "cell-board-05", is_again=True)
    assert "board-05" not in fleet.registry.group("street").numbers
    assert load(Credentials, fleet.files.credentials_file("board-05")).group_key is None
    fleet.revoke("board-06")
    assert "8 are needed: make the group again" in fleet.revoke("board-07").notes[0]
    left = [id for id in NAMES if id not in ("board-06", "board-07")]
    assert about_the_street(fleet.group("street", left, is_again=True)[0]) == []
    assert set(fleet.registry.group("street").numbers) == set(left)


def test_a_group_that_is_made_again_has_other_secrets_and_says_who_is_left_out(fleet):
    fleet.group("street", NAMES)
    former = {id: membership(fleet, id) for id in NAMES}
    done = fleet.group("street", NAMES[:9], is_again=True)
    (note,) = about_the_street(done[0])
    assert note == "no longer in group street, and to be rotated before they take part again: board-10"
    for id in NAMES[:9]:
        assert membership(fleet, id).group != former[id].group
        assert membership(fleet, id).secret != former[id].secret
    fleet.rotate("board-10")
    assert load(Credentials, fleet.files.credentials_file("board-10")).group_key is None


def test_a_backup_has_the_groups_and_no_secret_of_them(fleet, tmp_path):
    fleet.group("street", NAMES)
    fleet.revoke("board-05")
    path = tmp_path / "fleet.json"
    export_fleet(path, fleet.registry, "lab", fleet.files)
    for id in NAMES[:4]:
        assert membership(fleet, id).secret.hex() not in path.read_text()
    (tmp_path / "other-broker").mkdir()
    with Registry.open(tmp_path / "other", is_made=True) as registry:
        import_fleet(path, Enrolment(registry, "lab", tmp_path / "other-broker"), "lab")
        assert registry.groups() == fleet.registry.groups()
    content = json.loads(path.read_text())
    for change in ({"members": content["groups"][0]["members"][1:]}, {"name": "The Street"}, {"threshold": 1}, {"id": "00"}):
        path.write_text(json.dumps({**content, "groups": [{**content["groups"][0], **change}]}))
        with Registry.open(tmp_path / "broken", is_made=True) as registry, pytest.raises(ConfigError):
            import_fleet(path, Enrolment(registry, "lab", None), "lab")
    del content["groups"]
    path.write_text(json.dumps({**content, "format": 1}))
    with Registry.open(tmp_path / "old", is_made=True) as registry:
        import_fleet(path, Enrolment(registry, "lab", None), "lab")
        assert registry.groups() == ()
        assert len(registry.entries()) == 11


def test_a_registry_of_the_version_before_is_upgraded_with_all_that_it_holds(tmp_path):
    Registry.open(tmp_path, is_made=True).close()
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).touch(0o600)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.executescript(SCRIPTS[0])
        connection.execute("PRAGMA user_version = 1")
        connection.execute("INSERT INTO participant VALUES ('board-01', 1, 'desk', 'active', ?, 3, 'then', 'now')", (bytes(32),))
        connection.execute("INSERT INTO epoch VALUES (1, 99)")
    connection.close()
    with Registry.open(tmp_path) as registry:
        assert registry.key("board-01") == bytes(32)
        assert registry.entry("board-01").key_version == 3
        assert registry.last_epoch() == 99
        assert registry.groups() == ()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(SCRIPTS),)
    connection.close()


# ---- the command ----------------------------------------------------------------------------------------------------

COORDINATOR = """\
listen = "tcp://127.0.0.1:0"
[run]
site = "lab"
name = "first"
state_directory = "state"
partition_directory = "model"
[security]
registry = "fleet"
[strategy]
aggregation = "mean"
[strategy.secure_sum]
group = "street"
clip_norm = 0.5
"""


def fedmote(directory, capsys, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments, "--config", str(directory / "coordinator.toml")])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_command_makes_groups_and_images_and_lists_them(tmp_path, capsys):
    (tmp_path / "coordinator.toml").write_text(COORDINATOR)
    (tmp_path / "images").mkdir()
    for id in NAMES[:9]:
        assert fedmote(tmp_path, capsys, "enroll", "add", id, "--role", "device", "--cell", f"cell-{id}")[0] == 0
    images = ("--identity-images", str(tmp_path / "images"), "--link", "serial")
    code, out, _ = fedmote(tmp_path, capsys, "enroll", "group", "street", *NAMES[:8], *images, "--json")
    assert code == 0
    made = json.loads(out)
    assert (made["name"], made["num_neighbours"], made["threshold"]) == ("street", 7, 4)
    assert sorted(member["id"] for member in made["members"]) == list(NAMES[:8])
    for id in NAMES[:8]:
        image = tmp_path / "images" / f"{id}.bin"
        assert stat.S_IMODE(image.stat().st_mode) == 0o600
        assert str(image) in made["files"]
        identity = read_identity_region(image.read_bytes())
        assert (identity.id, identity.link, identity.membership.group.hex()) == (id, "serial", made["id"])
        assert identity.membership.secret.hex() not in out
    code, out, _ = fedmote(tmp_path, capsys, "enroll", "list")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][-2:] == ["group", "number"]
    assert [row[-2] for row in rows[1:]][:8] == 8 * ["street"]
    code, out, _ = fedmote(tmp_path, capsys, "enroll", "list", "--json")
    assert [group["name"] for group in json.loads(out)["groups"]] == ["street"]
    code, _, err = fedmote(tmp_path, capsys, "enroll", "group", "road", *NAMES[1:9])
    assert (code, "board-02 is in group street" in err) == (2, True)
    code, _, err = fedmote(tmp_path, capsys, "enroll", "group", "street", *NAMES[:9], "--again")
    assert code == 0
    assert "9 members, each with 8 neighbours of whom 5 must answer" in err
    code, _, err = fedmote(tmp_path, capsys, "enroll", "group", "street", *NAMES[:9], "--identity-images", "nowhere")
    assert (code, "there is no such directory" in err) == (2, True)


def test_a_run_takes_its_group_from_the_registry(tmp_path, capsys):
    (tmp_path / "coordinator.toml").write_text(COORDINATOR)
    for id in NAMES[:9]:
        fedmote(tmp_path, capsys, "enroll", "add", id, "--role", "device", "--cell", f"cell-{id}")
    config = load(CoordinatorConfig, tmp_path / "coordinator.toml")
    with pytest.raises(ConfigError, match="there is no group street, known: none"):
        group_of(config)
    fedmote(tmp_path, capsys, "enroll", "group", "street", *NAMES[:9])
    fedmote(tmp_path, capsys, "enroll", "revoke", NAMES[2])
    group = group_of(config)
    assert sorted(group.numbers) == [id for id in NAMES[:9] if id != NAMES[2]]
    assert (group.clip_norm, group.ring.num_members) == (0.5, 9)


def test_members_of_groups_that_a_run_does_not_mask_are_named(tmp_path, capsys):
    (tmp_path / "coordinator.toml").write_text(COORDINATOR)
    for id in NAMES[:9]:
        fedmote(tmp_path, capsys, "enroll", "add", id, "--role", "device", "--cell", f"cell-{id}")
    fedmote(tmp_path, capsys, "enroll", "group", "street", *NAMES[:8])
    path = tmp_path / "coordinator.toml"
    config = with_population(load(CoordinatorConfig, path), path)
    assert list(unmasked_members(config)) == []
    for strategy in (StrategyConfig(), replace(config.strategy, secure_sum=SecureSumConfig("road", 1.0))):
        (words,) = unmasked_members(replace(config, strategy=strategy))
        assert words.startswith(f"{', '.join(NAMES[:8])} will refuse to take part: they are in group street")
