# SPDX-License-Identifier: Apache-2.0
"""The files of a Mosquitto for one site: configuration, accounts, access lists, pre-shared keys.

The access lists are the privacy rule in a file. A device has its own topics and no other, by user name (`pattern`). A
partner has its own, and the cell topics of its devices, in lines made for it. The coordinator has `up/` and `dn/` of
everybody and nothing under `cell/`: `+` stands for one level, so `+/up/#` cannot reach `board/cell/up/...`. Nobody is
anonymous. Who was revoked is denied everything by name as well: a connection that stands when the lists are read again
is cut where it has a password, but one that logged in with a pre-shared key stays, with nothing that it may do.

Listeners: plain text on loopback; beyond it TLS with a certificate for hosts, and TLS with pre-shared keys (PSK) for devices.
Two of them, since Python's `ssl` before 3.13 cannot do PSK and devices without a clock cannot judge certificates.

Passwords are random (192 bits) and hashed as `mosquitto_passwd` does: `$7$`, PBKDF2 with SHA-512.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
import secrets
import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmote.config import CellConfig, Credentials, PartnerCredentials, load
from fedmote.config.broker import is_loopback
from fedmote.config.write import write_toml
from fedmote.errors import ConfigError
from fedmote.private_files import make_private_directory, read_private, write_private
from fedmote.wire.schema import Channel
from fedmote.wire.topics import Direction, topic

COORDINATOR = "coordinator"
MAX_CONNECTIONS = 4096

_HASH_ROUNDS = 101  # mosquitto_passwd's own; stretching is for passwords that people choose
_SALT_BYTES = 12
_PASSWORD_BYTES = 24


@dataclass(frozen=True)
class Binding:
    """Where a broker listens.

    Attributes:
        names: host names and addresses by which others reach it; the first one stands in URLs, all in the certificate.
        address: of the network that it serves; None: loopback alone, in plain text.
        tcp_port: plain text, on loopback; at `address` too where `is_insecure`.
        tls_port: TLS for hosts, at `address`.
        psk_port: TLS with pre-shared keys for devices, at `address`.
        is_insecure: plain text beyond loopback: whoever can listen there reads everything that is not sealed end to end.
        is_one_connection_per_user: a client is known by its user name alone, so that nobody can take over another's session.
        max_connections: of each listener.
    """

    names: tuple[str, ...] = ("127.0.0.1",)
    address: str | None = None
    tcp_port: int = 1883
    tls_port: int = 8883
    psk_port: int = 8884
    is_insecure: bool = False
    is_one_connection_per_user: bool = True
    max_connections: int = MAX_CONNECTIONS

    def __post_init__(self) -> None:
        ports = [self.tcp_port, self.tls_port, self.psk_port] if self.has_tls else [self.tcp_port]
        if not all(1 <= port <= 65_535 for port in ports) or len(set(ports)) != len(ports):
            raise ConfigError(f"ports {', '.join(map(str, ports))}: different ones from 1 to 65535 are expected")
        if not self.names or any(not name or set(name) & set(" /:@,\n") for name in self.names):
            raise ConfigError(f"names {', '.join(map(repr, self.names))}: host names or IPv4 addresses are expected")
        if self.max_connections < 1:
            raise ConfigError(f"max_connections {self.max_connections}: at least 1 is expected")
        if self.address is not None and is_loopback(self.address) and self.is_insecure:
            raise ConfigError(f"{self.address} is loopback, where plain text is allowed anyway; leave the insecure option out")

    @property
    def has_tls(self) -> bool:
        """Whether it listens with TLS."""
        return self.address is not None

    @property
    def url(self) -> str:
        """Where hosts reach it."""
        scheme, port = ("mqtts", self.tls_port) if self.has_tls else ("mqtt", self.tcp_port)
        return f"{scheme}://{self.names[0]}:{port}"


@dataclass(frozen=True)
class BrokerFiles:
    """The files of a broker in one directory, all for its owner alone.

    Attributes:
        directory: of `mosquitto.conf`, `acl`, `passwords`, `psk`, `tls/` and `credentials/`.
        site: of the fleet.
        url: where participants reach the broker; empty where these files are only changed.
    """

    directory: Path
    site: str
    url: str = ""

    @property
    def configuration(self) -> Path:
        """`mosquitto -c` takes it."""
        return self.directory / "mosquitto.conf"

    @property
    def passwords(self) -> Path:
        """Hashes by user."""
        return self.directory / "passwords"

    @property
    def psk(self) -> Path:
        """Pre-shared keys by device."""
        return self.directory / "psk"

    @property
    def acl(self) -> Path:
        """Access lists."""
        return self.directory / "acl"

    @property
    def pid(self) -> Path:
        """Written by the broker that runs with these files."""
        return self.directory / "mosquitto.pid"

    @property
    def tls(self) -> Path:
        """Of the certificate authority and the broker's certificate."""
        return self.directory / "tls"

    @property
    def credentials(self) -> Path:
        """Of everybody's credentials, until they are handed over."""
        return self.directory / "credentials"

    def password_file(self, user: str) -> Path:
        """Of the coordinator or a partner: the password alone."""
        return self.credentials / f"{user}.password"

    def credentials_file(self, device: str) -> Path:
        """Of a device: TOML, see `fedmote.config.Credentials`."""
        return self.credentials / f"{device}.toml"

    def keys_file(self, partner: str) -> Path:
        """Of a partner: TOML, see `fedmote.config.PartnerCredentials`."""
        return self.credentials / f"{partner}.keys.toml"

    def password(self, user: str) -> str:
        """Password of the coordinator, a partner or a device, from the credentials that are still here."""
        if (file := self.credentials_file(user)).exists():
            return load(Credentials, file).password
        return read_private(self.password_file(user)).strip()


@dataclass
class Accounts:
    """Who may log in: password hashes by user, pre-shared keys by device."""

    hashes: dict[str, str] = field(default_factory=dict, repr=False)
    psks: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, files: BrokerFiles) -> Accounts:
        """Those of a broker; none where its files do not exist yet."""
        return cls(_read_lines(files.passwords), _read_lines(files.psk))

    def admit(self, user: str, password: str, psk: str | None = None) -> None:
        """Let somebody in."""
        self.hashes[user] = password_hash(password)
        if psk is not None:
            self.psks[user] = psk

    def keep(self, users: Collection[str]) -> None:
        """Let nobody else in."""
        self.hashes = {user: one for user, one in self.hashes.items() if user in users}
        self.psks = {user: one for user, one in self.psks.items() if user in users}

    def write(self, files: BrokerFiles) -> None:
        """Replace the broker's files."""
        write_private(files.passwords, _lines(self.hashes))
        write_private(files.psk, _lines(self.psks))


def write_broker_files(
    directory: Path,
    site: str,
    cells: Sequence[CellConfig],
    *,
    binding: Binding | None = None,
    coordinator: str = COORDINATOR,
) -> BrokerFiles:
    """Write a broker's files and credentials without keys for cells; passwords that exist already are kept.

    Files are readable for their owner alone. Devices get `credentials/<id>.toml`, the coordinator and the partners
    `credentials/<user>.password`. Fleets with keys are made by `fedmote.fleet.enrolment`.

    Raises:
        ConfigError: a participant is called as the coordinator is, or is in two cells.
    """
    binding = binding or Binding()
    devices = {device for cell in cells for device in cell.devices}
    files = BrokerFiles(Path(directory).resolve(), site, binding.url)
    make_private_directory(files.credentials)
    accounts = Accounts()
    for user in users_of(cells, coordinator):
        accounts.admit(user, password_of(files, user, user in devices))
    accounts.write(files)
    write_private(files.acl, access_list(site, cells, coordinator))
    write_configuration(files, binding)
    return files


def users_of(cells: Sequence[CellConfig], coordinator: str = COORDINATOR) -> list[str]:
    """Everybody who logs in; ConfigError where two have one name."""
    users = [coordinator, *(member for cell in cells for member in cell.participants)]
    if len(set(users)) != len(users):
        raise ConfigError(f"every user of the broker needs a name of its own; there are {', '.join(sorted(users))}")
    return users


def new_password() -> str:
    """192 random bits as text."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def password_of(files: BrokerFiles, user: str, is_device: bool) -> str:
    """The password of a user: the one in its file, or a new one that is now there."""
    path = files.credentials_file(user) if is_device else files.password_file(user)
    if path.exists():
        return files.password(user)
    password = new_password()
    if is_device:
        write_credentials(path, Credentials(user, files.site, user, password))
    else:
        write_private(path, password + "\n")
    return password


def write_credentials(path: Path, credentials: Credentials) -> None:
    """Write a device's credentials file."""
    values = {"id": credentials.id, "site": credentials.site, "username": credentials.username, "password": credentials.password}
    names = ("key", "cell_key", "psk", "verify_key", "group_key")
    keys: dict[str, str | None] = {name: getattr(credentials, name) for name in names}
    write_toml(path, values | {name: key for name, key in keys.items() if key is not None})


def write_partner_credentials(path: Path, credentials: PartnerCredentials) -> None:
    """Write a partner's keys."""
    cell_keys: list[Any] = [{"id": one.id, "key": one.key} for one in credentials.cell_keys]
    write_toml(path, {"id": credentials.id, "site": credentials.site, "key": credentials.key, "cell_keys": cell_keys})


def access_list(site: str, cells: Sequence[CellConfig], coordinator: str = COORDINATOR, revoked: Iterable[str] = ()) -> str:
    """The text of mosquitto's `acl_file`."""

    def allow(word: str, access: str, id: str, direction: Direction, channel: Channel) -> str:
        return f"{word} {access} " + topic(site, "+", direction, "#", channel).replace("+", id, 1)

    lines = [
        f"user {coordinator}",
        allow("topic", "read", "+", "up", Channel.COORDINATOR),
        allow("topic", "write", "+", "dn", Channel.COORDINATOR),
    ]
    for cell in cells:
        if cell.partner is not None and cell.devices:
            lines += ["", f"# cell {cell.name}", f"user {cell.partner}"]
            for device in cell.devices:
                lines.append(allow("topic", "read", device, "up", Channel.CELL))
                lines.append(allow("topic", "write", device, "dn", Channel.CELL))
    for id in revoked:
        lines += ["", "# revoked", f"user {id}", "topic deny #"]
    lines += ["", "# every participant: its own topics, by user name"]
    for channel in Channel:
        lines.append(allow("pattern", "write", "%u", "up", channel))
        lines.append(allow("pattern", "read", "%u", "dn", channel))
    return "\n".join(lines) + "\n"


def password_hash(password: str, salt: bytes | None = None) -> str:
    """A password in mosquitto's `$7$` form."""
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _HASH_ROUNDS)
    return f"$7${_HASH_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def write_configuration(files: BrokerFiles, binding: Binding) -> None:
    """Write `mosquitto.conf`. Limits first: nothing a client sends may grow the broker without bound."""
    lines = [
        "# Written by fedmote; `fedmote broker init` writes it again.",
        "per_listener_settings false",
        "allow_anonymous false",
        f"password_file {files.passwords}",
        f"acl_file {files.acl}",
        f"pid_file {files.pid}",  # `fedmote enroll` asks this process to read the files again
        f"user {pwd.getpwuid(os.geteuid()).pw_name}",  # a broker started as root would leave for a user who may not read this
        "persistence false",  # the protocol survives a broker that forgets
        "max_packet_size 70000",  # the largest body in the longest topic, and room
        "max_queued_messages 20000",  # small ones, so that a thousand participants may come at once; the bytes are the bound
        "max_queued_bytes 16777216",
        "max_inflight_messages 100",
        "max_keepalive 600",  # of MQTT 5; 3.1.1 has no word for it
        "memory_limit 1073741824",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    if binding.has_tls:
        lines.append(f"psk_file {files.psk}")
    each = [f"max_connections {binding.max_connections}"]
    if binding.is_one_connection_per_user:
        each.append("use_username_as_clientid true")
    plain = ["127.0.0.1"]
    if binding.is_insecure and binding.address is not None:
        plain = [binding.address] if _is_everywhere(binding.address) else ["127.0.0.1", binding.address]
    for address in plain:
        lines += ["", f"listener {binding.tcp_port} {address}", *each]
    if binding.has_tls:
        tls = [*each, "tls_version tlsv1.2"]  # the lowest that is taken
        lines += ["", f"listener {binding.tls_port} {binding.address}", *tls]
        lines += [f"certfile {files.tls / 'server.crt'}", f"keyfile {files.tls / 'server.key'}"]
        lines += ["", f"listener {binding.psk_port} {binding.address}", *tls]
        lines += [f"psk_hint {files.site}", "use_identity_as_username true", "ciphers PSK+AESGCM:PSK+AESCCM:PSK+CHACHA20"]
    write_private(files.configuration, "\n".join(lines) + "\n")


def ask_to_reload(files: BrokerFiles) -> bool:
    """Let the broker that runs with these files read accounts and access lists again (SIGHUP).

    Returns:
        False where none runs here: another one must be told by whoever runs it.
    """
    try:
        pid = int(files.pid.read_text(encoding="ascii"))
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        if name != "mosquitto":  # the number is another process's now
            return False
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError):
        return False
    return True


def _is_everywhere(address: str) -> bool:
    return address in ("0.0.0.0", "::")


def _read_lines(path: Path) -> dict[str, str]:
    """`name:value` on each line; nothing where there is no file."""
    if not path.exists():
        return {}
    pairs = [line.partition(":") for line in read_private(path).splitlines() if line]
    return {name: value for name, _, value in pairs}


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{name}:{value}\n" for name, value in sorted(values.items()))
