# SPDX-License-Identifier: Apache-2.0
"""How a host reaches an MQTT broker, and what a device needs to log in there."""

from __future__ import annotations

import ipaddress
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fedmote.config.table import Bounds, Identifier, MqttUrl, Secret, SecretBytes, SecretKey, Table
from fedmote.errors import ConfigError
from fedmote.private_files import refuse_shared


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(url: str) -> str:
    """The host of `scheme://host:port`."""
    return url.partition("://")[2].rpartition(":")[0] or url.partition("://")[2]


def is_plain_text(url: str) -> bool:
    """Whether a URL is plain text that leaves this machine."""
    return not url.startswith("mqtts://") and not is_loopback(host_of(url))


def refuse_plain_text(key: str, url: str, switch: str, remedy: str = "") -> None:
    """Refuse a plain-text URL that leads beyond loopback; ConfigError names the switch that allows it."""
    if is_plain_text(url):
        raise ConfigError(
            f"{key} {url}: plain text beyond loopback; expected {remedy}{switch} = true where the network is trusted"
        )


@dataclass(frozen=True)
class BrokerConfig(Table):
    """An MQTT broker and one user of it.

    Attributes:
        url: `mqtt://host:port` or, with TLS, `mqtts://host:port`.
        username: the broker knows us by it; access lists of participants use their ids.
        password_file: a text file with the password alone.
        password_environment: name of an environment variable with the password, instead of the file.
        ca_file: certificates to trust for `mqtts`; those of the system otherwise. They are always verified.
        is_insecure: `mqtt` may lead beyond loopback, in plain text; said at every start.
    """

    url: MqttUrl
    username: str
    password_file: Path | None = None
    password_environment: str | None = None
    ca_file: Path | None = None
    is_insecure: bool = False

    def check(self) -> None:
        """One source of the password; no plain text beyond loopback unless it is spelled out."""
        if not self.is_insecure:
            refuse_plain_text("url", self.url, "is_insecure", "mqtts://, or ")
        if (self.password_file is None) == (self.password_environment is None):
            raise ConfigError("exactly one of password_file and password_environment is needed")

    def password(self, environment: Mapping[str, str] | None = None) -> str:
        """The password, read now, so that no configuration object holds it; ConfigError where it is missing."""
        if self.password_file is None:
            variables = os.environ if environment is None else environment
            name = self.password_environment or ""
            if not variables.get(name):
                raise ConfigError(f"environment variable {name} with the password of {self.username} is not set")
            return variables[name]
        refuse_shared(self.password_file)
        try:
            text = self.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"password_file {self.password_file}: {error}") from error
        if not text:
            raise ConfigError(f"password_file {self.password_file} is empty")
        return text


@dataclass(frozen=True)
class Credentials(Table):
    """A device's name, broker login and keys: what is written into its identity region, and what a relay uses for it.

    Attributes:
        id: the device.
        site: the site that it belongs to.
        username: of the broker; equal to the id where access lists use patterns.
        password: of the broker.
        keep_alive_s: MQTT keep-alive, seconds.
        key: 32 bytes that the device shares with the coordinator, in hexadecimal; none: its messages are not authenticated.
        cell_key: 32 bytes that it shares with its own partner alone, in hexadecimal; the coordinator never has them.
        verify_key: 32 bytes, public, in hexadecimal: the device takes only packages that its owner signed; none: all.
        group_key: what makes it a member of a group whose updates are summed under masks, in hexadecimal; none: it is in none.
        psk: 32 bytes for the broker's TLS-PSK listener, in hexadecimal, where the device speaks TLS; its identity is the id.
    """

    id: Identifier
    site: Identifier
    username: str
    password: Annotated[str, Secret()] = field(repr=False)
    keep_alive_s: Annotated[int, Bounds(1, 65535)] = 30
    key: SecretKey | None = field(default=None, repr=False)
    cell_key: SecretKey | None = field(default=None, repr=False)
    verify_key: SecretKey | None = None
    psk: SecretKey | None = field(default=None, repr=False)
    group_key: SecretBytes | None = field(default=None, repr=False)

    @property
    def key_bytes(self) -> bytes | None:
        """The key as 32 bytes."""
        return _bytes(self.key)

    @property
    def verify_key_bytes(self) -> bytes | None:
        """The verify key as 32 bytes."""
        return _bytes(self.verify_key)

    @property
    def group_key_bytes(self) -> bytes | None:
        """The group key as bytes."""
        return _bytes(self.group_key)

    @property
    def cell_key_bytes(self) -> bytes | None:
        """The cell key as 32 bytes."""
        return _bytes(self.cell_key)


@dataclass(frozen=True)
class CellKey(Table):
    """A device of the partner's cell and the key that the two share.

    Attributes:
        id: the device.
        key: 32 bytes, in hexadecimal.
    """

    id: Identifier
    key: SecretKey = field(repr=False)


@dataclass(frozen=True)
class PartnerCredentials(Table):
    """A partner's keys. Its broker password has a file of its own, see `BrokerConfig`.

    Attributes:
        id: the partner.
        site: the site that it belongs to.
        key: 32 bytes that it shares with the coordinator, in hexadecimal.
        cell_keys: of the devices of its cell.
    """

    id: Identifier
    site: Identifier
    key: SecretKey = field(repr=False)
    cell_keys: tuple[CellKey, ...] = ()

    def check(self) -> None:
        """One key for each device."""
        if doubled := [name for name, count in Counter(one.id for one in self.cell_keys).items() if count > 1]:
            raise ConfigError(f"cell_keys: {', '.join(doubled)} is named more than once")

    @property
    def key_bytes(self) -> bytes:
        """The key as 32 bytes."""
        return bytes.fromhex(self.key)

    def cell_key(self, device: str) -> bytes | None:
        """The key that is shared with a device; None where there is none."""
        return next((bytes.fromhex(one.key) for one in self.cell_keys if one.id == device), None)


def _bytes(key: str | None) -> bytes | None:
    return None if key is None else bytes.fromhex(key)
