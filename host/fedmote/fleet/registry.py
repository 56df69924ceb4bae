# SPDX-License-Identifier: Apache-2.0
"""The registry: who belongs to a fleet, with which key, and whose key was taken away.

One SQLite file (write-ahead log, `synchronous = FULL`) of mode 0600 in a directory of mode 0700. The coordinator has it open
while `fedmote enroll` changes it in another process: every change is one transaction, durable when the method returns, and
`refresh` tells the coordinator what changed. What is asked for every message (`key`) is answered from memory.

The registry holds the key that a participant shares with the coordinator. The cell key, which a device shares with its own
partner, never gets here. A revoked participant's key is wiped, not only marked.

A key that is being replaced stays valid until its owner has spoken under the next one: a one-time token, with which a device is
let in, and a key that is rotated over the air. The next key is made, and durable, before it is said; once it has taken the place
of a token, the token is kept to tell a second board that shows it.

Times are for people. No decision is made from them, with two exceptions: tokens expire; and, on the safe side, an epoch is at
least the Unix time, so that a registry that was lost and made anew does not give an epoch a second time.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from fedmote.config import CellConfig
from fedmote.config.table import require_identifier
from fedmote.database import Database, database_errors, upgrade
from fedmote.errors import ConfigError, StoreError
from fedmote.fleet.schema import SCRIPTS
from fedmote.private_files import FILE_MODE, make_private_directory, refuse_shared
from fedmote.wire.masking import Ring
from fedmote.wire.schema import Role
from fedmote.wire.seal import Renewal

FILE_NAME = "registry.sqlite"
KEY_BYTES = 32
MAX_EPOCH = 2**32 - 1
_BUSY_TIMEOUT_S = 10.0
_COLUMNS = ("id", "role", "cell", "state", "key", "key_version", "added_at", "changed_at")  # in the table's order

_RENEWAL_COLUMNS = ("id", "state", "other", "boot", "expires_at")
_BLOBS = ("key", "other")  # columns that are hexadecimal in a dump

State = Literal["active", "revoked"]
KeyState = Literal["lasting", "token", "token expired", "rotating", "none"]


@dataclass(frozen=True)
class Entry:
    """A participant of the fleet. Its key is not here: see `Registry.key`.

    Attributes:
        id: of the participant.
        role: device or partner.
        cell: name of its cell.
        state: "active" or "revoked".
        key_version: 1 for the first key; each new one counts on.
        key_state: "token" or "token expired" until the device has its lasting key, "rotating" until it has the next one over
            the air, "none" of a revoked one.
        added_at, changed_at: UTC, for people.
    """

    id: str
    role: Role
    cell: str
    state: State
    key_version: int
    key_state: KeyState
    added_at: str
    changed_at: str


@dataclass(frozen=True)
class GroupMember:
    """A device of a group.

    Attributes:
        id: of the participant.
        number: its own in the group.
        public: its X25519 public key, 32 bytes; the secret is in its credentials alone.
        is_lost: it was revoked since.
    """

    id: str
    number: int
    public: bytes
    is_lost: bool = False


@dataclass(frozen=True)
class Group:
    """Devices whose updates are summed under masks.

    Attributes:
        name: for people.
        id: random, 8 bytes.
        ring: who is whose neighbour.
        members: by number.
    """

    name: str
    id: bytes
    ring: Ring
    members: tuple[GroupMember, ...]

    @property
    def numbers(self) -> dict[str, int]:
        """Numbers of the members that were not lost, by id."""
        return {member.id: member.number for member in self.members if not member.is_lost}

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON's types; no secret is in it."""
        return {
            "name": self.name,
            "id": self.id.hex(),
            "num_neighbours": self.ring.num_neighbours,
            "threshold": self.ring.threshold,
            "members": [{**vars(member), "public": member.public.hex()} for member in self.members],
        }


class Registry(Database):
    """The registry of one fleet. Use `Registry.open`, and `close` or a `with` block. Not for several threads at once.

    Attributes:
        path: its file.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, clock: Callable[[], float] = time.time) -> None:
        super().__init__(connection, path)
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._keys: dict[str, bytes] = {}
        self._renewals: dict[str, tuple[str, bytes | None, int | None, int | None]] = {}
        self._data_version = -1
        self._load()
        self._told = self._standing()

    @classmethod
    def open(cls, directory: Path, *, is_made: bool = False, clock: Callable[[], float] = time.time) -> Registry:
        """Open the registry of a directory.

        Args:
            directory: where its file is.
            is_made: make directory and file where there are none.
            clock: Unix time, seconds.

        Raises:
            ConfigError: there is no registry, or others may read it.
            StoreError: the file is no registry, is newer than this program, or cannot be written.
        """
        path = directory / FILE_NAME
        if is_made:
            make_private_directory(directory)
            _make(path)
        if not path.is_file():
            raise ConfigError(f"{directory}: there is no registry of a fleet here; `fedmote enroll add` makes one")
        refuse_shared(path)
        with database_errors(path):
            connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, timeout=_BUSY_TIMEOUT_S)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA secure_delete = ON")  # a key that is taken away leaves the file too
                connection.execute("PRAGMA foreign_keys = ON")
                upgrade(connection, path, "registry", SCRIPTS)
                return cls(connection, path, clock)
            except BaseException:
                connection.close()
                raise

    # ---- what the coordinator asks: from memory, as of the last `refresh` or own change -----------------------------

    def key(self, id: str) -> bytes | None:
        """The 32 bytes that a participant shares with the coordinator; None where it is unknown or revoked."""
        return self._keys.get(id)

    def is_revoked(self, id: str) -> bool:
        """Whether a participant's key was taken away; False for strangers, who have none."""
        entry = self._entries.get(id)
        return entry is not None and entry.state == "revoked"

    def renewal(self, id: str) -> Renewal | None:
        """How the key of a participant is being replaced, or that it took the place of a token; None: neither."""
        row = self._renewals.get(id)
        if row is None:
            return None
        state, other, boot, expires_at = row
        return Renewal(other, state != "rotation", state == "used", self._is_over(expires_at), boot)

    def entries(self) -> list[Entry]:
        """Everybody, revoked ones too, by id."""
        return [self._entries[id] for id in sorted(self._entries)]

    def entry(self, id: str) -> Entry | None:
        """One participant."""
        return self._entries.get(id)

    def cells(self) -> tuple[CellConfig, ...]:
        """The cells of the active participants, by name."""
        active = [entry for entry in self.entries() if entry.state == "active"]
        return tuple(
            CellConfig(
                name,
                tuple(entry.id for entry in active if entry.cell == name and entry.role is Role.DEVICE),
                next((entry.id for entry in active if entry.cell == name and entry.role is Role.PARTNER), None),
            )
            for name in sorted({entry.cell for entry in active})
        )

    def groups(self) -> tuple[Group, ...]:
        """All groups, by name."""
        members: dict[str, list[GroupMember]] = {}
        for row in self._all("SELECT name, participant, number, public, is_lost FROM mask_member ORDER BY name, number"):
            members.setdefault(row[0], []).append(GroupMember(row[1], row[2], bytes(row[3]), bool(row[4])))
        rows = self._all("SELECT name, id, num_neighbours, threshold FROM mask_group ORDER BY name")
        return tuple(
            Group(row[0], bytes(row[1]), Ring(len(members[row[0]]), row[2], row[3]), tuple(members[row[0]])) for row in rows
        )

    def group(self, name: str) -> Group:
        """One group; ConfigError where there is none of this name."""
        found = next((group for group in self.groups() if group.name == name), None)
        if found is None:
            known = ", ".join(group.name for group in self.groups()) or "none"
            raise ConfigError(f"{self.path}: there is no group {name}, known: {known}; `fedmote enroll group` makes one")
        return found

    def group_of(self, id: str) -> Group | None:
        """The group that a participant is in and was not lost for; None where it is in none."""
        return next((group for group in self.groups() if id in group.numbers), None)

    def refresh(self) -> frozenset[str]:
        """Look for changes of other processes; cheap where there are none (a counter in the file's header).

        Returns:
            Ids that were added, revoked, admitted again or got another key since the last call (or since `open`).
        """
        with database_errors(self.path):
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            self._load()
        standing, told = self._standing(), self._told
        self._told = standing
        return frozenset(id for id in standing.keys() | told.keys() if standing.get(id) != told.get(id))

    def next_epoch(self) -> int:
        """A number (32 bits) that was never given before and never will be again; durable before it is returned.

        Numbers rise strictly and are at least the Unix time, so that a lost file does not repeat one.

        Raises:
            StoreError: it cannot be written, or the numbers are used up (the clock stands behind the year 2106).
        """
        with self._transaction():
            (last,) = self._one("SELECT value FROM epoch") or (0,)
            epoch = max(last + 1, int(self._clock()))
            if epoch > MAX_EPOCH:
                raise StoreError(f"{self.path}: epoch {epoch} is beyond {MAX_EPOCH}; is the clock of this machine right?")
            self._write("INSERT INTO epoch VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET value = excluded.value", epoch)
        return int(epoch)

    def last_epoch(self) -> int:
        """The number that `next_epoch` gave last, in whatever process; 0: it gave none yet."""
        (last,) = self._one("SELECT value FROM epoch") or (0,)
        return int(last)

    # ---- what the coordinator does with a key that is being replaced ------------------------------------------------

    def next_key(self, id: str, boot: int) -> bytes | None:
        """The 32 bytes that take the place of a participant's key: made at the first call, durable, and then the same.

        Args:
            id: of a participant.
            boot: of the board that asks; kept at the first call.

        Returns:
            The key; None where there is nothing to replace, or not any more.

        Raises:
            StoreError: it cannot be written.
        """
        with self._transaction():
            self._write(
                "UPDATE renewal SET other = ?, boot = ? WHERE id = ? AND state != 'used' AND other IS NULL",
                *(secrets.token_bytes(KEY_BYTES), boot, id),
            )
        self._load()
        renewal = self.renewal(id)
        return None if renewal is None or renewal.is_used else renewal.other

    def renewed(self, id: str) -> None:
        """A participant spoke under its next key: that is its key now. Of a token is kept that it was used.

        Raises:
            StoreError: it cannot be written.
        """
        with self._transaction():
            row = self._one("SELECT state, other FROM renewal WHERE id = ?", id)
            if row is not None and row[0] != "used" and row[1] is not None:
                if row[0] == "token":
                    self._write(
                        "UPDATE renewal SET state = 'used', expires_at = NULL, "
                        "other = (SELECT key FROM participant WHERE participant.id = renewal.id) WHERE id = ?",
                        id,
                    )
                else:
                    self._write("DELETE FROM renewal WHERE id = ?", id)
                self._write(
                    "UPDATE participant SET key = ?, key_version = key_version + 1, changed_at = ? WHERE id = ?",
                    *(row[1], self._now(), id),
                )
        self._load()

    # ---- what `fedmote enroll` does: one transaction each --------------------------------------------------------------

    def add(self, id: str, role: Role, cell: str, *, is_again: bool = False, token_s: float | None = None) -> bytes:
        """Admit a participant with a new key.

        Args:
            id: of the participant.
            role: device or partner.
            cell: name of its cell.
            is_again: a revoked one may come back, with a new key.
            token_s: the key is a one-time token, which is valid for so many seconds; None: it lasts.

        Returns:
            The key.

        Raises:
            ConfigError: a name breaks the rules, the id is taken, or the cell has a partner already.
        """
        require_identifier("id", id)
        require_identifier("cell", cell)
        now, key = self._now(), secrets.token_bytes(KEY_BYTES)
        with self._transaction():
            row = self._one("SELECT state, key_version FROM participant WHERE id = ?", id)
            if row is not None and row[0] == "active":
                raise ConfigError(f"{id} is enrolled already; `fedmote enroll rotate {id}` gives it a new key")
            if row is not None and not is_again:
                raise ConfigError(f"{id} was revoked; --again admits it anew, with a new key")
            if role is Role.PARTNER and (other := self._partner(cell)) is not None:
                raise ConfigError(f"cell {cell} has the partner {other}; a cell has one")
            self._write(
                "INSERT INTO participant VALUES (?, ?, ?, 'active', ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "role = excluded.role, cell = excluded.cell, state = 'active', key = excluded.key, "
                "key_version = excluded.key_version, changed_at = excluded.changed_at",
                *(id, int(role), cell, key, 1 if row is None else row[1] + 1, now, now),
            )
            self._write("DELETE FROM renewal WHERE id = ?", id)
            if token_s is not None:
                self._write("INSERT INTO renewal VALUES (?, 'token', NULL, NULL, ?)", id, int(self._clock() + token_s))
        self._load()
        return key

    def rotate(self, id: str) -> bytes:
        """Give an active participant a new key; the old one is gone at once.

        Returns:
            The key.

        Raises:
            ConfigError: unknown or revoked.
        """
        key = secrets.token_bytes(KEY_BYTES)
        with self._transaction():
            self._require_active(id)
            self._write(
                "UPDATE participant SET key = ?, key_version = key_version + 1, changed_at = ? WHERE id = ?", key, self._now(), id
            )
            self._write("DELETE FROM renewal WHERE id = ?", id)
        self._load()
        return key

    def rotate_over_the_air(self, id: str) -> None:
        """The coordinator shall give a device another key; the old one is valid until the device speaks under it.

        Raises:
            ConfigError: unknown, revoked, a partner, or a device that has not used its token.
        """
        with self._transaction():
            self._require_active(id)
            if (row := self._one("SELECT role FROM participant WHERE id = ?", id)) is None or row[0] != Role.DEVICE:
                raise ConfigError(f"{id} is a partner: its key is in a file; `fedmote enroll rotate {id}` makes it anew")
            if self._one("SELECT 1 FROM renewal WHERE id = ? AND state = 'token'", id) is not None:
                raise ConfigError(f"{id} has a token that was not used yet; `fedmote enroll rotate {id}` gives it a lasting key")
            self._write(
                "INSERT INTO renewal VALUES (?, 'rotation', NULL, NULL, NULL) ON CONFLICT (id) DO UPDATE SET "
                "state = 'rotation', other = NULL, boot = NULL WHERE state = 'used'",
                id,
            )
        self._load()

    def revoke(self, id: str) -> None:
        """Take a participant's key away.

        Raises:
            ConfigError: unknown or revoked already.
        """
        with self._transaction():
            self._require_active(id)
            self._write("UPDATE participant SET key = NULL, state = 'revoked', changed_at = ? WHERE id = ?", self._now(), id)
            self._write("DELETE FROM renewal WHERE id = ?", id)
            self._write("UPDATE mask_member SET is_lost = 1 WHERE participant = ?", id)
        self._load()

    def make_group(self, group: Group, *, is_again: bool = False) -> None:
        """Register a group.

        Args:
            group: the new one.
            is_again: it may take the place of one of its name.

        Raises:
            ConfigError: a name breaks the rules or is taken, a member is no active device, or in another group.
        """
        require_identifier("group", group.name)
        with self._transaction():
            if is_again:
                self._write("DELETE FROM mask_group WHERE name = ?", group.name)
            elif self._one("SELECT 1 FROM mask_group WHERE name = ?", group.name) is not None:
                raise ConfigError(f"group {group.name} is there already; --again makes it anew, with new secrets for all")
            for member in sorted(group.members, key=lambda member: member.id):
                self._require_active(member.id)
                if self._one("SELECT role FROM participant WHERE id = ?", member.id) != (int(Role.DEVICE),):
                    raise ConfigError(f"{member.id} is a partner; groups are of devices")
                other = self._one("SELECT name FROM mask_member WHERE participant = ? AND NOT is_lost", member.id)
                if other is not None:
                    raise ConfigError(f"{member.id} is in group {other[0]}; a device is in one at most")
            self._add_group(group)

    def dump(self) -> dict[str, Any]:
        """Everything as JSON's types, keys in hexadecimal: epoch, participants, renewals, groups. As secret as the file."""
        (epoch,) = self._one("SELECT value FROM epoch") or (0,)
        tables = {"participants": ("participant", _COLUMNS), "renewals": ("renewal", _RENEWAL_COLUMNS)}
        rows = {
            name: [
                {column: value.hex() if isinstance(value, bytes) else value for column, value in zip(columns, row, strict=True)}
                for row in self._all(f"SELECT {', '.join(columns)} FROM {table} ORDER BY id")
            ]
            for name, (table, columns) in tables.items()
        }
        return {"epoch": epoch, **rows, "groups": [group.to_json() for group in self.groups()]}

    def restore(self, content: Mapping[str, Any], source: str) -> None:
        """Take in what `dump` gave; all of it or nothing.

        Args:
            content: see `dump`.
            source: where it is from, for messages.

        Raises:
            ConfigError: somebody is registered here already, or the content is none.
        """
        try:
            rows = _rows(content["participants"], _COLUMNS)
            renewals = _rows(content.get("renewals", []), _RENEWAL_COLUMNS)  # a backup of fedmote before tokens has none
            for row in rows:
                require_identifier("id", row[0])
                require_identifier("cell", row[2])
                Role(row[1])
            epoch = int(content["epoch"])
            groups = [_restored(one) for one in content.get("groups", ())]
        except (KeyError, TypeError, ValueError) as error:  # their texts could quote a key
            raise ConfigError(
                f"{source}: participants: {type(error).__name__} in an entry; `enroll export` wrote none such"
            ) from None
        with self._transaction():
            if self._one("SELECT 1 FROM participant") is not None:
                raise ConfigError(f"{self.path}: somebody is registered here already; an empty registry is expected")
            try:
                for row in rows:
                    self._write(f"INSERT INTO participant VALUES ({', '.join('?' * len(_COLUMNS))})", *row)
                for row in renewals:
                    self._write(f"INSERT INTO renewal VALUES ({', '.join('?' * len(_RENEWAL_COLUMNS))})", *row)
                for group in groups:
                    self._add_group(group)
            except sqlite3.IntegrityError as error:
                raise ConfigError(f"{source}: participants: an entry breaks a rule of the registry ({error})") from error
            (last,) = self._one("SELECT value FROM epoch") or (0,)
            self._write("INSERT INTO epoch VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET value = excluded.value", max(epoch, last))
        self._load()

    def _add_group(self, group: Group) -> None:
        ring = group.ring
        self._write(
            "INSERT INTO mask_group VALUES (?, ?, ?, ?, ?)",
            *(group.name, group.id, ring.num_neighbours, ring.threshold, self._now()),
        )
        for member in group.members:
            self._write(
                "INSERT INTO mask_member VALUES (?, ?, ?, ?, ?)",
                *(group.name, member.number, member.id, member.public, int(member.is_lost)),
            )

    def _require_active(self, id: str) -> None:
        row = self._one("SELECT state FROM participant WHERE id = ?", id)
        if row is None:
            raise ConfigError(f"{id} is not enrolled; `fedmote enroll list` says who is")
        if row[0] != "active":
            raise ConfigError(f"{id} is revoked already")

    def _partner(self, cell: str) -> str | None:
        row = self._one("SELECT id FROM participant WHERE cell = ? AND role = ? AND state = 'active'", cell, int(Role.PARTNER))
        return None if row is None else str(row[0])

    def _is_over(self, expires_at: int | None) -> bool:
        return expires_at is not None and self._clock() >= expires_at

    def _key_state(self, id: str, state: str) -> KeyState:
        row = self._renewals.get(id)
        if state == "revoked":
            return "none"
        if row is None or row[0] == "used":
            return "lasting"
        if row[0] == "rotation":
            return "rotating"
        return "token expired" if self._is_over(row[3]) else "token"

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds")

    # ---- SQLite -----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Read everything into memory. The counter is read first: a change in between is then found by the next `refresh`."""
        with database_errors(self.path):
            (self._data_version,) = self._connection.execute("PRAGMA data_version").fetchone()
        rows = self._all("SELECT id, role, cell, state, key_version, added_at, changed_at, key FROM participant")
        self._renewals = {row[0]: row[1:] for row in self._all(f"SELECT {', '.join(_RENEWAL_COLUMNS)} FROM renewal")}
        self._entries = {
            id: Entry(id, Role(role), cell, cast(State, state), version, self._key_state(id, state), added_at, changed_at)
            for id, role, cell, state, version, added_at, changed_at, _ in rows
        }
        self._keys = {row[0]: bytes(row[7]) for row in rows if row[3] == "active"}

    def _standing(self) -> dict[str, tuple[State, int]]:
        return {id: (entry.state, entry.key_version) for id, entry in self._entries.items()}


def _rows(entries: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> list[list[Any]]:
    """Rows of a table from a dump."""
    return [
        [bytes.fromhex(one[name]) if name in _BLOBS and one[name] is not None else one[name] for name in columns]
        for one in entries
    ]


def _restored(content: Mapping[str, Any]) -> Group:
    """What `Group.to_json` gave; KeyError, TypeError or ValueError where it is none."""
    members = tuple(
        GroupMember(one["id"], int(one["number"]), bytes.fromhex(one["public"]), bool(one["is_lost"]))
        for one in content["members"]
    )
    require_identifier("group", content["name"])
    ring = Ring(len(members), int(content["num_neighbours"]), int(content["threshold"]))
    if [member.number for member in members] != list(range(1, len(members) + 1)):
        raise ValueError("numbers of members")
    return Group(content["name"], bytes.fromhex(content["id"]), ring, members)


def _make(path: Path) -> None:
    """An empty file for its owner alone, where there is none: SQLite's own files take its mode."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE))
    except FileExistsError:
        return
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
