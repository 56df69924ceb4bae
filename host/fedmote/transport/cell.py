# SPDX-License-Identifier: Apache-2.0
"""The transports that a configuration asks for: the coordinator's one, and a partner's with all its devices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from fedmote.config import CoordinatorConfig, Credentials, PartnerConfig, load
from fedmote.errors import ConfigError, TransportError
from fedmote.transport.base import Inbox, Received, Transport
from fedmote.transport.link import LinkServer, SerialLink
from fedmote.transport.mqtt import CoordinatorMqtt, PartnerMqtt
from fedmote.transport.relay import Relay
from fedmote.wire.codec import Message
from fedmote.wire.schema import Channel, Status


class CellTransport:
    """A partner's transport: its own way to the coordinator, and the ways to its devices.

    Coordinator channel: the id is the partner's. Cell channel: the id is the device's, wherever it hangs.

    Args:
        own: to the coordinator, and to devices that speak MQTT; shares `inbox`.
        relays: of devices on serial lines; share `inbox`.
        inbox: of all of them.
    """

    def __init__(self, own: Transport, relays: Sequence[Relay], inbox: Inbox) -> None:
        self._own = own
        self._relays = {relay.id: relay for relay in relays}
        self._inbox = inbox

    @property
    def relays(self) -> dict[str, Relay]:
        """The relays, by device."""
        return dict(self._relays)

    @property
    def errors(self) -> Counter[Status]:
        """See `Transport`."""
        return sum((relay.errors for relay in self._relays.values()), Counter(self._own.errors))

    def set_max_body(self, id: str, max_body: int) -> None:
        """See `Transport`."""
        self._relays.get(id, self._own).set_max_body(id, max_body)

    async def start(self) -> None:
        """Open everything; TransportError names what does not open, and nothing stays open then."""
        try:
            for part in (self._own, *self._relays.values()):
                await part.start()
        except TransportError:
            await self.close()
            raise

    async def send(self, id: str, channel: Channel, message: Message) -> None:
        """See `Transport`."""
        on_cell = self._relays.get(id) if channel is Channel.CELL else None
        await (on_cell or self._own).send(id, channel, message)

    async def receive(self) -> Received:
        """See `Transport`."""
        return await self._inbox.get()

    async def close(self) -> None:
        """See `Transport`."""
        await asyncio.gather(self._own.close(), *(relay.close() for relay in self._relays.values()))
        self._inbox.fail(TransportError("the cell's transport is closed"))


def coordinator_transport(config: CoordinatorConfig) -> CoordinatorMqtt | LinkServer:
    """The transport of `coordinator.toml`: over its broker, or listening for direct links."""
    if config.listen is not None:
        return LinkServer(config.listen)
    broker = config.broker
    if broker is None:
        raise ConfigError("neither broker nor listen is configured")
    client_id = f"{broker.username}-{config.run.site}-{config.run.name}"
    return CoordinatorMqtt(broker.url, config.run.site, broker.username, broker.password(), client_id, broker.ca_file)


def partner_transport(config: PartnerConfig, boot: int | None = None) -> CellTransport:
    """The transport of `partner.toml`.

    Args:
        config: of the partner.
        boot: nonce of this start, the same as in the partner's hello; drawn where None.
    """
    inbox = Inbox()
    broker = config.broker
    own: Transport
    if broker is not None:
        devices = [device.id for device in config.devices if device.link == "mqtt"]
        own = PartnerMqtt(
            broker.url, config.site, config.id, devices, broker.password(), broker.username, inbox, boot, broker.ca_file
        )
    elif config.coordinator is not None:
        own = SerialLink(config.coordinator, config.id, inbox)
    else:
        raise ConfigError("neither broker nor coordinator is configured")
    relays = []
    for device in config.devices:
        if device.link == "serial" and device.port is not None:
            credentials = load(Credentials, device.credentials_file) if device.credentials_file is not None else None
            relays.append(
                Relay(
                    device.id,
                    device.port,
                    broker_url=broker.url if broker is not None else None,
                    coordinator_url=config.coordinator,
                    credentials=credentials,
                    inbox=inbox,
                    baud=device.baud,
                    ca_file=broker.ca_file if broker is not None else None,
                )
            )
    return CellTransport(own, relays, inbox)
