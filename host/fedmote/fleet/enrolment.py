# SPDX-License-Identifier: Apache-2.0
"""Enrolment: who is let into a fleet, gets new keys, or is put out. What `fedmote enroll` does, without its printing.

The order makes every interruption harmless. Admission: registry, credentials file, broker; what a kill leaves half done is
mended by `rotate`. Revocation: registry first, so that the coordinator refuses within a second; then the broker's accounts and
access lists; then the broker is told; then the files of credentials go. Each action writes the broker's files from the whole
registry, so that the next action, whichever it is, mends what an interrupted one left.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

from nacl.bindings import crypto_scalarmult_base

from fedmote.config import CellConfig, CellKey, Credentials, PartnerCredentials, load
from fedmote.errors import ConfigError
from fedmote.fleet.broker_files import (
    COORDINATOR,
    Accounts,
    BrokerFiles,
    access_list,
    ask_to_reload,
    new_password,
    password_of,
    write_credentials,
    write_partner_credentials,
)
from fedmote.fleet.registry import KEY_BYTES, Entry, Group, GroupMember, Registry
from fedmote.private_files import make_private_directory, write_private
from fedmote.wire.masking import GROUP_BYTES, Membership, Ring
from fedmote.wire.schema import Role

BrokerState = Literal["told", "not running here", "none"]


@dataclass(frozen=True)
class Done:
    """What an action did.

    Attributes:
        entry: the participant as it stands now.
        files: credentials that were written, to be handed over.
        broker: "told" (it reads accounts and access lists again), "not running here" (files written; whoever runs it must
            reload it), or "none" (this fleet has no broker files here).
        notes: what is left to do, in words.
    """

    entry: Entry
    files: tuple[Path, ...] = ()
    broker: BrokerState = "none"
    notes: tuple[str, ...] = ()


class Enrolment:
    """Changes a fleet.

    Args:
        registry: of the fleet.
        site: of the fleet.
        broker: directory of the broker's files; None: they are elsewhere, or there is no broker.
        coordinator: its user name at the broker.
        verify_key: 32 bytes, public: devices that are let in or get new keys take only packages signed for it; none: all.
    """

    def __init__(
        self,
        registry: Registry,
        site: str,
        broker: Path | None,
        coordinator: str = COORDINATOR,
        verify_key: bytes | None = None,
    ) -> None:
        self.registry = registry
        self._verify_key = None if verify_key is None else verify_key.hex()
        self._has_broker = broker is not None
        # Without a broker the credentials stand beside the registry.
        self.files = BrokerFiles((broker or registry.path.parent).resolve(), site)
        self._site = site
        self._coordinator = coordinator

    def add(self, id: str, role: Role, cell: str, *, is_again: bool = False) -> Done:
        """Admit a participant: keys, password, credentials files, account, access list.

        Raises:
            ConfigError: a name breaks the rules or is taken, the cell has a partner already, or files cannot be written.
        """
        self._check(id)
        self.registry.add(id, role, cell, is_again=is_again)
        return self._issue(id)

    def add_with_token(self, id: str, cell: str, token_s: float, *, is_again: bool = False) -> Done:
        """Admit a device as `add` does, but its key is a one-time token: the coordinator gives it a lasting one.

        Args:
            id: of the device.
            cell: name of its cell.
            token_s: so many seconds the token is valid.
            is_again: a revoked one may come back.

        Raises:
            ConfigError: see `add`.
        """
        self._check(id)
        self.registry.add(id, Role.DEVICE, cell, is_again=is_again, token_s=token_s)
        done = self._issue(id)
        note = f"its key is a token, for one board: the coordinator gives it a lasting key at its first hello, {_within(token_s)}"
        return replace(done, notes=(note, *done.notes))

    def add_cells(self, cells: Iterable[CellConfig]) -> None:
        """Admit everybody of some cells; see `add`."""
        for cell in cells:
            for member in cell.participants:
                self.add(member, Role.PARTNER if member == cell.partner else Role.DEVICE, cell.name)

    def rotate(self, id: str) -> Done:
        """New keys and a new password; the old ones are refused at once.

        Raises:
            ConfigError: unknown or revoked.
        """
        self.registry.rotate(id)
        return self._issue(id)

    def rotate_over_the_air(self, id: str) -> Done:
        """Let the coordinator give a device a new key; password, PSK and cell key stay, and no file is written.

        Raises:
            ConfigError: unknown, revoked, a partner, or it has a token that was not used yet.
        """
        self.registry.rotate_over_the_air(id)
        note = f"{id} gets its new key at its next hello; the old one is valid until it has spoken under the new one"
        return Done(self._entry(id), notes=(note,))

    def group(self, name: str, ids: Sequence[str], threshold: int | None = None, *, is_again: bool = False) -> list[Done]:
        """Make a group whose updates are summed under masks; its members get new keys as by `rotate`, and a secret each.

        Secrets are in the members' credentials alone. Numbers are drawn, so that nobody chooses who is whose neighbour.

        Args:
            name: of the group.
            ids: active devices, each once, in no other group.
            threshold: of a member's neighbours, so many must answer; None: more than half of them.
            is_again: it may take the place of one of its name.

        Returns:
            One for each member, in the order of their ids.

        Raises:
            ConfigError: a rule above is broken, the members are fewer than 8, or files cannot be written.
        """
        if doubled := [id for id, count in Counter(ids).items() if count > 1]:
            raise ConfigError(f"{', '.join(doubled)}: named more than once")
        ring = Ring.of(len(ids), threshold)
        drawn = list(ids)
        secrets.SystemRandom().shuffle(drawn)
        numbers = {id: number for number, id in enumerate(drawn, start=1)}
        own = {number: secrets.token_bytes(KEY_BYTES) for number in numbers.values()}
        publics = {number: crypto_scalarmult_base(secret) for number, secret in own.items()}
        members = tuple(GroupMember(id, number, publics[number]) for id, number in numbers.items())
        former = [group for group in self.registry.groups() if group.name == name]
        group = Group(name, secrets.token_bytes(GROUP_BYTES), ring, members)
        self.registry.make_group(group, is_again=is_again)
        keys = {
            id: Membership(
                group.id, number, ring, own[number], {near: publics[near] for near in ring.neighbours(number)}
            ).to_bytes()
            for id, number in numbers.items()
        }
        for id in sorted(ids):
            self.registry.rotate(id)
        left = [id for one in former for id in one.numbers if id not in numbers]
        notes = (f"no longer in group {name}, and to be rotated before they take part again: {', '.join(sorted(left))}",)
        return self._issue_all(sorted(ids), keys, notes if left else ())

    def revoke(self, id: str) -> Done:
        """Put a participant out; once more does no harm.

        Raises:
            ConfigError: it was never enrolled.
        """
        entry, lost = self.registry.entry(id), self._lost(id)
        if entry is None or entry.state == "active":
            self.registry.revoke(id)
        broker = self.synchronise()
        for file in (self.files.credentials_file(id), self.files.password_file(id), self.files.keys_file(id)):
            file.unlink(missing_ok=True)
        entry = self._entry(id)
        files = self._write_partner(entry.cell) if entry.role is Role.DEVICE else ()
        return Done(entry, files, broker, (*lost, *self._notes(broker)))

    def synchronise(self, accounts: Accounts | None = None) -> BrokerState:
        """Write the broker's accounts and access lists as the registry has it, and tell the broker.

        Args:
            accounts: with somebody new in it; those of the broker's files where None.
        """
        if not self._has_broker:
            return "none"
        accounts = accounts or Accounts.read(self.files)
        if self._coordinator not in accounts.hashes:
            make_private_directory(self.files.credentials)
            accounts.admit(self._coordinator, password_of(self.files, self._coordinator, is_device=False))
        cells = self.registry.cells()
        accounts.keep({self._coordinator, *(member for cell in cells for member in cell.participants)})
        accounts.write(self.files)
        revoked = [entry.id for entry in self.registry.entries() if entry.state == "revoked"]
        write_private(self.files.acl, access_list(self._site, cells, self._coordinator, revoked))
        return "told" if ask_to_reload(self.files) else "not running here"

    def _check(self, id: str) -> None:
        """ConfigError where nobody of this name can be let in here."""
        if id == self._coordinator:
            raise ConfigError(f"{id} is the coordinator's own name at the broker")
        if self._has_broker and not self.files.directory.is_dir():
            raise ConfigError(f"{self.files.directory}: there are no broker files; `fedmote broker init` makes them")

    def _issue(self, id: str) -> Done:
        """Credentials for the key that the registry has now; a member of a group stays one where its secret is here."""
        group, group_key = self.registry.group_of(id), self._group_key(id)
        notes: tuple[str, ...] = ()
        if group is not None and group_key is None:
            notes = (
                f"{id} is in group {group.name}, and its secret is not here any more: until the group is made again, it is lost",
            )
        return self._issue_all([id], {} if group_key is None else {id: group_key}, notes)[0]

    def _issue_all(self, ids: Sequence[str], group_keys: Mapping[str, bytes], notes: tuple[str, ...]) -> list[Done]:
        """Credentials for the keys that the registry has now, and then the broker's files, once."""
        accounts = Accounts.read(self.files)
        make_private_directory(self.files.credentials)
        written = {id: self._write_credentials(id, accounts, group_keys.get(id)) for id in ids}
        broker = self.synchronise(accounts)
        done = []
        for id in ids:
            entry = self._entry(id)
            said = (*self._for_partner(entry), *self._lacking(entry.cell), *notes, *self._notes(broker))
            done.append(Done(entry, written[id], broker, said))
        return done

    def _write_credentials(self, id: str, accounts: Accounts, group_key: bytes | None) -> tuple[Path, ...]:
        """The files of a participant with a new password, which its account gets."""
        entry, password = self._entry(id), new_password()
        psk = None
        if entry.role is Role.DEVICE:
            key, cell_key, psk = self._key(id).hex(), secrets.token_bytes(KEY_BYTES).hex(), secrets.token_bytes(KEY_BYTES).hex()
            credentials = Credentials(
                id,
                self._site,
                id,
                password,
                key=key,
                cell_key=cell_key,
                psk=psk,
                verify_key=self._verify_key,
                group_key=None if group_key is None else group_key.hex(),
            )
            write_credentials(self.files.credentials_file(id), credentials)
            files = [self.files.credentials_file(id)]
        else:
            write_private(self.files.password_file(id), password + "\n")
            files = [self.files.password_file(id)]
        accounts.admit(id, password, psk)
        return (*files, *self._write_partner(entry.cell))

    def _group_key(self, id: str) -> bytes | None:
        """What a device has of the group that it is in, from its own file; None where it is in none, or the file is not here."""
        group, file = self.registry.group_of(id), self.files.credentials_file(id)
        if group is None or not file.exists():
            return None
        key = load(Credentials, file).group_key_bytes
        return key if key is not None and key[:GROUP_BYTES] == group.id else None

    def _write_partner(self, cell: str) -> tuple[Path, ...]:
        """The keys file of a cell's partner: its own key, and the cell keys of its active devices as far as they are here."""
        partner = self._partner(cell)
        if partner is None:
            return ()
        keys = self._cell_keys(partner, cell)
        entries = tuple(CellKey(device, key) for device, key in keys.items() if key is not None)
        path = self.files.keys_file(partner)
        write_partner_credentials(path, PartnerCredentials(partner, self._site, self._key(partner).hex(), entries))
        return (path,)

    def _cell_keys(self, partner: str, cell: str) -> dict[str, str | None]:
        """The cell key of every active device, from its own file, or from the partner's where that one was handed over."""
        path = self.files.keys_file(partner)
        known = {one.id: one.key for one in load(PartnerCredentials, path).cell_keys} if path.exists() else {}
        found: dict[str, str | None] = {}
        for device in self._devices(cell):
            file = self.files.credentials_file(device)
            found[device] = load(Credentials, file).cell_key if file.exists() else known.get(device)
        return found

    def _for_partner(self, entry: Entry) -> tuple[str, ...]:
        partner = self._partner(entry.cell)
        if partner is None or entry.role is Role.PARTNER:
            return ()
        return (
            f"{partner} needs {self.files.keys_file(partner).name} anew, and [[devices]] with {entry.id} in its partner.toml",
        )

    def _lost(self, id: str) -> tuple[str, ...]:
        """What it means to its group that a participant is put out."""
        group = self.registry.group_of(id)
        if group is None:
            return ()
        left, least = len(group.numbers) - 1, group.ring.least_members
        words = f"group {group.name} has {left} members left: {id} keeps its number there and is lost in every round"
        return (words if left >= least else f"{words}; {least} are needed: make the group again with others",)

    def _lacking(self, cell: str) -> tuple[str, ...]:
        partner = self._partner(cell)
        if partner is None:
            return ()
        lacking = [device for device, key in self._cell_keys(partner, cell).items() if key is None]
        if not lacking:
            return ()
        return (f"{partner} has no cell key for {', '.join(lacking)}, whose credentials are not here any more: rotate them",)

    def _notes(self, broker: BrokerState) -> tuple[str, ...]:
        if broker != "not running here":
            return ()
        return (f"no broker runs with the files in {self.files.directory}: start or reload it (SIGHUP) where it runs",)

    def _devices(self, cell: str) -> Sequence[str]:
        return next((one.devices for one in self.registry.cells() if one.name == cell), ())

    def _partner(self, cell: str) -> str | None:
        return next((one.partner for one in self.registry.cells() if one.name == cell), None)

    def _entry(self, id: str) -> Entry:
        entry = self.registry.entry(id)
        assert entry is not None  # the registry knows whom it just changed
        return entry

    def _key(self, id: str) -> bytes:
        key = self.registry.key(id)
        assert key is not None  # of an active one
        return key


def _within(token_s: float) -> str:
    return f"within {timedelta(seconds=token_s)}"
