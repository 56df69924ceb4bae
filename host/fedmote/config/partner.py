# SPDX-License-Identifier: Apache-2.0
"""`partner.toml`: the phone or PC of a cell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fedmote.config.broker import BrokerConfig, refuse_plain_text
from fedmote.config.table import U32, Bounds, Form, Identifier, Table, TcpUrl
from fedmote.errors import ConfigError


@dataclass(frozen=True)
class PartnerDevice(Table):
    """One device of the partner's cell.

    Attributes:
        id: of the device.
        link: "mqtt" (the device reaches the broker itself) or "serial" (it hangs here and is relayed).
        port: of a serial device: `/dev/serial/by-id/...`, a pty, or `tcp://host:port`.
        baud: of a real port.
        credentials_file: the device's own login (TOML, `Credentials`), used by the relay to the broker.
    """

    id: Identifier
    link: Literal["mqtt", "serial"] = "mqtt"
    port: str | None = None
    baud: Annotated[int, Bounds(300, 12_000_000)] = 115_200
    credentials_file: Path | None = None

    def check(self) -> None:
        """A serial device has a port, another has none."""
        if (self.link == "serial") != (self.port is not None):
            raise ConfigError(f'device {self.id}: port belongs to link = "serial", and only there')


@dataclass(frozen=True)
class PartnerConfig(Table):
    """The whole file.

    Attributes:
        id: of the partner.
        site: the fleet's.
        model: `package.module:function`; the function returns the torch module of the whole model.
        state_directory: what the partner keeps between starts.
        broker: the MQTT broker, or none where `coordinator` is given.
        coordinator: `tcp://host:port` of a coordinator that listens without a broker.
        devices: the cell's devices; may be empty.
        data: `.npz` with `x` (float, torch layout) and `y`: the partner's own samples.
        seed: of everything that is drawn.
        torch_threads: threads that torch may use.
        credentials_file: the partner's keys (TOML, `PartnerCredentials`); none: messages are not authenticated.
        is_insecure: `coordinator` may be beyond loopback, in plain text; said at every start.
    """

    id: Identifier
    site: Identifier
    model: Annotated[str, Form(r"[\w.]+:\w+", "package.module:function")]
    state_directory: Path
    broker: BrokerConfig | None = None
    coordinator: TcpUrl | None = None
    devices: tuple[PartnerDevice, ...] = ()
    data: Path | None = None
    seed: Annotated[int, U32] = 0
    torch_threads: Annotated[int, Bounds(1, 1024)] = 1
    credentials_file: Path | None = None
    is_insecure: bool = False

    def check(self) -> None:
        """One way to the coordinator, devices that the relay can log in for."""
        if (self.broker is None) == (self.coordinator is None):
            raise ConfigError('exactly one of the table [broker] and the key coordinator = "tcp://host:port" is needed')
        if self.coordinator is not None and not self.is_insecure:
            refuse_plain_text("coordinator", self.coordinator, "is_insecure")
        if doubled := [name for name, count in Counter(device.id for device in self.devices).items() if count > 1]:
            raise ConfigError(f"devices: {', '.join(doubled)} is named more than once")
        for device in self.devices:
            if self.broker is None and device.link == "mqtt":
                raise ConfigError(f'device {device.id}: link = "mqtt" needs the table [broker]')
            if self.broker is not None and device.link == "serial" and device.credentials_file is None:
                raise ConfigError(f"device {device.id}: the relay to the broker needs credentials_file")
