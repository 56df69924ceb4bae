# SPDX-License-Identifier: Apache-2.0
"""Mosquitto: its configuration for a site, and a private one on loopback for demos and tests.

The access lists are the privacy rule in a file. A device has its own topics and no other, by user name (`pattern`). A
partner has its own, and the cell topics of its devices, in lines made for it. The coordinator has `up/` and `dn/` of
everybody and nothing under `cell/`: `+` stands for one level, so `+/up/#` cannot reach `board/cell/up/...`. Nobody is
anonymous.

Passwords are random (192 bits) and hashed as `mosquitto_passwd` does: `$7$`, PBKDF2 with SHA-512.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fedmote import supervised
from fedmote.config import CellConfig, Credentials, load
from fedmote.errors import ConfigError, TransportError
from fedmote.private_files import write_private
from fedmote.wire.schema import Channel
from fedmote.wire.topics import Direction, topic

COORDINATOR = "coordinator"
READY_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0

_HASH_ROUNDS = 101  # mosquitto_passwd's own; stretching is for passwords that people choose
_SALT_BYTES = 12
_PASSWORD_BYTES = 24
_PORT_ATTEMPTS = 5
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # not on everybody's PATH


def find_mosquitto() -> Path | None:
    """The broker's program, or None."""
    found = shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES]))
    return Path(found) if found else None


@dataclass(frozen=True)
class BrokerFiles:
    """What `write_broker_files` wrote.

    Attributes:
        directory: of `mosquitto.conf`, `acl`, `passwords` and the folder `credentials`.
        site: of the fleet.
        url: where participants reach the broker.
    """

    directory: Path
    site: str
    url: str

    @property
    def configuration(self) -> Path:
        """`mosquitto -c` takes it."""
        return self.directory / "mosquitto.conf"

    def password_file(self, user: str) -> Path:
        """Of the coordinator or a partner: the password alone."""
        return self.directory / "credentials" / f"{user}.password"

    def credentials_file(self, device: str) -> Path:
        """Of a device: TOML, see `fedmote.config.Credentials`."""
        return self.directory / "credentials" / f"{device}.toml"

    def password(self, user: str) -> str:
        """Password of the coordinator, a partner or a device."""
        if (file := self.credentials_file(user)).exists():
            return load(Credentials, file).password
        return self.password_file(user).read_text(encoding="utf-8").strip()


def write_broker_files(
    directory: Path,
    site: str,
    cells: Sequence[CellConfig],
    *,
    host: str = "127.0.0.1",
    tcp_port: int = 1883,
    coordinator: str = COORDINATOR,
) -> BrokerFiles:
    """Write the broker's configuration and everybody's credentials; passwords that exist already are kept.

    Files are readable for their owner alone. Devices get `credentials/<id>.toml`, the coordinator and the partners
    `credentials/<user>.password`.

    Raises:
        ConfigError: a participant is called as the coordinator is, or is in two cells.
    """
    devices = [device for cell in cells for device in cell.devices]
    partners = [cell.partner for cell in cells if cell.partner is not None]
    users = [coordinator, *partners, *devices]
    if len(set(users)) != len(users):
        raise ConfigError(f"every user of the broker needs a name of its own; there are {', '.join(sorted(users))}")
    files = BrokerFiles(Path(directory).resolve(), site, f"mqtt://{host}:{tcp_port}")
    for folder in (files.directory, files.directory / "credentials"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    passwords = {user: _password(files, user, user in devices) for user in users}
    lines = [f"{user}:{password_hash(password)}" for user, password in passwords.items()]
    write_private(files.directory / "passwords", "\n".join(lines) + "\n")
    write_private(files.directory / "acl", access_list(site, cells, coordinator))
    write_private(files.configuration, _configuration(files, host, tcp_port))
    return files


def access_list(site: str, cells: Sequence[CellConfig], coordinator: str = COORDINATOR) -> str:
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


class PrivateBroker:
    """A Mosquitto of our own on a free loopback port; ends with us, whatever happens to us.

    Args:
        directory: for its files and its log; kept.
        site: of the fleet.
        cells: who may log in, beside the coordinator.

    Use as a context manager, or call `start` and `stop`.
    """

    def __init__(self, directory: Path, site: str, cells: Sequence[CellConfig]) -> None:
        self._directory = Path(directory)
        self._site = site
        self._cells = tuple(cells)
        self._files: BrokerFiles | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def files(self) -> BrokerFiles:
        """Its files, once it was started."""
        if self._files is None:
            raise TransportError("the private broker was not started")
        return self._files

    @property
    def url(self) -> str:
        """Where it listens; the same after a restart."""
        return self.files.url

    @property
    def log(self) -> Path:
        """What it said."""
        return self._directory / "mosquitto.log"

    @property
    def is_running(self) -> bool:
        """Does its process live?"""
        return self._process is not None and self._process.poll() is None

    def password(self, user: str) -> str:
        """Password of a user."""
        return self.files.password(user)

    def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            TransportError: there is no mosquitto, or it does not come up; the message quotes its log.
        """
        program = find_mosquitto()
        if program is None:
            raise TransportError("mosquitto is not installed; on Debian: apt install mosquitto")
        is_first = self._files is None
        for _ in range(_PORT_ATTEMPTS if is_first else 1):
            if is_first:  # another process may take a port between our look and the broker's
                self._files = write_broker_files(self._directory, self._site, self._cells, tcp_port=supervised.free_tcp_port())
            self._launch(program)
            if self._is_accepting():
                return
            self.kill9()
        words = self.log.read_text(encoding="utf-8", errors="replace")[-500:].strip()
        raise TransportError(f"mosquitto did not come up at {self.url}: {words}")

    def stop(self) -> None:
        """End it in order, or at once where it does not go within a few seconds."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.stdin.write(b"\n")
                self._process.wait(STOP_TIMEOUT_S)
        self.kill9()

    def kill9(self) -> None:
        """End it at once. It keeps nothing on disk, so sessions, queues and retained messages are gone."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Kill it and start it again at the same address, with nothing remembered."""
        self.kill9()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _launch(self, program: Path) -> None:
        with self.log.open("ab") as log:
            self._process = supervised.start([program, "-c", self.files.configuration], log, log)

    def _is_accepting(self) -> bool:
        host, tcp_port = self.url.removeprefix("mqtt://").split(":")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self.is_running and time.monotonic() < deadline:
            try:
                with socket.create_connection((host, int(tcp_port)), timeout=1.0):
                    return self.is_running
            except OSError:
                time.sleep(0.02)
        return False


def _password(files: BrokerFiles, user: str, is_device: bool) -> str:
    """The password of a user: the one in its file, or a new one that is now there."""
    path = files.credentials_file(user) if is_device else files.password_file(user)
    if path.exists():
        return files.password(user)
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    if is_device:
        write_private(path, f'id = "{user}"\nsite = "{files.site}"\nusername = "{user}"\npassword = "{password}"\n')
    else:
        write_private(path, password + "\n")
    return password


def _configuration(files: BrokerFiles, host: str, tcp_port: int) -> str:
    """The text of `mosquitto.conf`. Limits first: nothing a client sends may grow the broker without bound."""
    lines = [
        "# Written by fedmote; change the project's configuration and write it again.",
        f"listener {tcp_port} {host}",
        "allow_anonymous false",
        f"password_file {files.directory / 'passwords'}",
        f"acl_file {files.directory / 'acl'}",
        f"user {pwd.getpwuid(os.geteuid()).pw_name}",  # a broker started as root would leave for a user who may not read this
        "persistence false",  # the protocol survives a broker that forgets
        "max_packet_size 70000",  # the largest body in the longest topic, and room
        "max_queued_messages 1000",
        "max_inflight_messages 100",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    return "\n".join(lines) + "\n"
