# SPDX-License-Identifier: Apache-2.0
"""How a host reaches an MQTT broker, and what a device needs to log in there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fedmote.config.table import Bounds, Identifier, MqttUrl, Secret, Table
from fedmote.errors import ConfigError


@dataclass(frozen=True)
class BrokerConfig(Table):
    """An MQTT broker and one user of it.

    Attributes:
        url: `mqtt://host:port` or, with TLS, `mqtts://host:port`.
        username: the broker knows us by it; access lists of participants use their ids.
        password_file: a text file with the password alone.
        password_environment: name of an environment variable with the password, instead of the file.
        ca_file: certificates to trust for `mqtts`; those of the system otherwise.
    """

    url: MqttUrl
    username: str
    password_file: Path | None = None
    password_environment: str | None = None
    ca_file: Path | None = None

    def check(self) -> None:
        """One source of the password."""
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
        try:
            text = self.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"password_file {self.password_file}: {error}") from error
        if not text:
            raise ConfigError(f"password_file {self.password_file} is empty")
        return text


@dataclass(frozen=True)
class Credentials(Table):
    """A device's name and broker login: what is written into its identity region, and what a relay uses for it.

    Attributes:
        id: the device.
        site: the site that it belongs to.
        username: of the broker; equal to the id where access lists use patterns.
        password: of the broker.
        keep_alive_s: MQTT keep-alive, seconds.
    """

    id: Identifier
    site: Identifier
    username: str
    password: Annotated[str, Secret()] = field(repr=False)
    keep_alive_s: Annotated[int, Bounds(1, 65535)] = 30
