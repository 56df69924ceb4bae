# SPDX-License-Identifier: Apache-2.0
"""A device on the partner's serial line, as if it were connected to the coordinator itself.

Frames of the coordinator channel go on with kind and body as they are, under the device's own credentials; what comes
down goes to the device likewise. Frames of the cell channel are the partner's. The relay reads one thing: the boot nonce
of a hello, which a seal leaves readable, because the device's birth and death on the broker carry it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from pathlib import Path
from typing import Protocol

from fedmote.config import Credentials
from fedmote.errors import TransportError
from fedmote.transport.base import Inbox, Received, peek_hello
from fedmote.transport.link import SerialLink
from fedmote.transport.mqtt import state
from fedmote.transport.mqtt_connection import Login, MqttConnection
from fedmote.wire.codec import Message
from fedmote.wire.frame import Frame
from fedmote.wire.schema import Channel, Kind, Status
from fedmote.wire.seal import Seals
from fedmote.wire.topics import parse, quality, topic

log = logging.getLogger(__name__)

MAX_WAITING_FRAMES = 256  # upward frames that wait for the broker; more are dropped, and asked for again by their senders


class Upstream(Protocol):
    """A way to the coordinator for one device's bodies."""

    async def send(self, kind: int, body: bytes) -> bool:
        """Pass a body on; False where it was dropped."""

    async def close(self) -> None:
        """The device is gone."""


class MqttUpstream:
    """To the broker, as the device: own client id and user, own will, own retained state.

    The connection begins with the device's first hello and is made anew when the device booted again.
    """

    def __init__(self, url: str, credentials: Credentials, link: SerialLink, ca_file: Path | None = None) -> None:
        self._url = url
        self._ca_file = ca_file
        self._credentials = credentials
        self._link = link
        self._connection: MqttConnection | None = None
        self._boot: int | None = None

    async def send(self, kind: int, body: bytes) -> bool:
        """See `Upstream`."""
        if (hello := peek_hello(kind, body)) is not None and hello["boot"] != self._boot:
            await self._begin(hello["boot"])
        if self._connection is None or kind not in tuple(Kind):
            return False
        known, who = Kind(kind), self._credentials
        return await self._connection.publish(topic(who.site, who.id, "up", known), body, quality(known))

    async def close(self) -> None:
        """See `Upstream`."""
        self._boot = None
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _begin(self, boot: int) -> None:
        await self.close()
        who = self._credentials
        connection = MqttConnection(
            Login(self._url, who.username, who.password, who.id, self._ca_file),
            [topic(who.site, who.id, "dn", "#")],
            self._on_message,
            self._on_fatal,
            retained=state(who.site, who.id, boot),
        )
        await connection.start()
        self._connection, self._boot = connection, boot

    def _on_fatal(self, error: TransportError) -> None:
        log.info("relay of %s: %s", self._credentials.id, error)
        self._boot = None  # the next hello tries again

    def _on_message(self, text: str, body: bytes) -> None:
        address = parse(text)
        if address is not None and address.known_kind is not None:
            self._link.forward(Channel.COORDINATOR, address.known_kind, body)


class LinkUpstream:
    """To a coordinator that listens without a broker: a connection of the device's own."""

    def __init__(self, url: str, id: str, link: SerialLink) -> None:
        self._link = link
        self._up = SerialLink(url, id, Inbox(), on_frame=self._on_frame)
        self._is_started = False

    async def send(self, kind: int, body: bytes) -> bool:
        """See `Upstream`."""
        if not self._is_started:
            await self._up.start()
            self._is_started = True
        return self._up.forward(Channel.COORDINATOR, kind, body)

    async def close(self) -> None:
        """See `Upstream`."""
        if self._is_started:
            self._is_started = False
            await self._up.close()

    def _on_frame(self, frame: Frame) -> None:
        if frame.channel is Channel.COORDINATOR:
            self._link.forward(Channel.COORDINATOR, frame.kind, frame.body)


class Relay:
    """One serial device of a partner; a `Transport` of its cell channel.

    Args:
        id: of the device; frames of another one are dropped.
        port: see `SerialLink`.
        broker_url: `mqtt://...`, with `credentials`, or
        coordinator_url: `tcp://...` of a coordinator without a broker.
        credentials: the device's own.
        inbox: of cell messages, where several sources share one.
        baud: of a real port.
        ca_file: certificates to trust for `mqtts`.
        seals: the cell key of the device; none: cell messages are not sealed.
    """

    def __init__(
        self,
        id: str,
        port: str,
        *,
        broker_url: str | None = None,
        coordinator_url: str | None = None,
        credentials: Credentials | None = None,
        inbox: Inbox | None = None,
        baud: int = 115_200,
        ca_file: Path | None = None,
        seals: Seals | None = None,
    ) -> None:
        self.id = id
        self.num_dropped = 0
        self._link = SerialLink(port, id, inbox or Inbox(), baud, self._on_frame, self._on_lost, seals)
        self._upstream: Upstream
        if broker_url is not None and credentials is not None:
            self._upstream = MqttUpstream(broker_url, credentials, self._link, ca_file)
        elif coordinator_url is not None:
            self._upstream = LinkUpstream(coordinator_url, id, self._link)
        else:
            raise ValueError("a relay needs broker_url with credentials, or coordinator_url")
        self._waiting: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(MAX_WAITING_FRAMES)
        self._task: asyncio.Task[None] | None = None

    @property
    def link(self) -> SerialLink:
        """The line to the device."""
        return self._link

    @property
    def errors(self) -> Counter[Status]:
        """See `Transport`."""
        return self._link.errors

    def set_max_body(self, id: str, max_body: int) -> None:
        """See `Transport`."""
        self._link.set_max_body(id, max_body)

    async def start(self) -> None:
        """Open the port; the way up is opened when the device first says hello. May be tried again after an error."""
        await self._link.start()
        self._task = asyncio.create_task(self._pass_on(), name=f"relay {self.id}")

    async def send(self, id: str, channel: Channel, message: Message) -> None:
        """Send to the device on the cell channel; see `Transport`."""
        await self._link.send(id, channel, message)

    async def receive(self) -> Received:
        """The next cell message; see `Transport`."""
        return await self._link.receive()

    async def close(self) -> None:
        """See `Transport`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._link.close()
        await self._upstream.close()

    def _on_frame(self, frame: Frame) -> None:
        hello = peek_hello(frame.kind, frame.body)
        if hello is not None:
            self._link.set_max_body(self.id, hello["max_body"])
        if frame.channel is Channel.CELL:
            self._link.deliver(frame)
        elif self._waiting.full():
            self.num_dropped += 1
        else:
            self._waiting.put_nowait((frame.kind, frame.body))

    def _on_lost(self) -> None:
        """The device is gone: so is what it said, and its connection."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    async def _pass_on(self) -> None:
        while True:
            item = await self._waiting.get()
            try:
                if item is None:
                    await self._upstream.close()
                elif not await self._upstream.send(*item):
                    self.num_dropped += 1
            except TransportError as error:  # the device repeats itself; so does this attempt
                log.warning("relay of %s: %s", self.id, error)
                self.num_dropped += 1
            except Exception:  # our bug: one frame must not silence the device for good
                log.exception("relay of %s", self.id)
                self.num_dropped += 1
