# SPDX-License-Identifier: Apache-2.0
"""MQTT 3.1.1: the coordinator's and the partner's transport over a broker (device_sdk/protocol/SPEC.md, section 3).

Topics say who sent what: the broker's access lists give every user its own topics. Where messages are sealed, the broker
is not believed even that; it may restart in any case, and may forget sessions, retained messages and what it acknowledged.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedmote.transport.base import Inbox, Post, Received, peek_hello, unknown_kind
from fedmote.transport.mqtt_connection import Login, MqttConnection, Retained
from fedmote.wire.codec import Message, encode
from fedmote.wire.schema import LIMIT_BODY_CEILING, Channel, Kind, Status
from fedmote.wire.seal import Seals
from fedmote.wire.topics import Address, Direction, parse, quality, topic


class _MqttEnd:
    """What both ends have in common: a desk and a connection."""

    def __init__(self, post: Post, connection: MqttConnection) -> None:
        self._post = post
        self._connection = connection
        post.inbox.attach(connection.pause, connection.resume)

    @property
    def errors(self) -> Counter[Status]:
        """See `Transport`."""
        return self._post.errors

    @property
    def num_dropped(self) -> int:
        """Messages that were not sent because the broker was away."""
        return self._post.num_dropped

    def set_max_body(self, id: str, max_body: int) -> None:
        """See `Transport`."""
        self._post.set_max_body(id, max_body)

    async def start(self) -> None:
        """Connect and subscribe; TransportError names broker and user where that fails."""
        await self._connection.start()

    async def receive(self) -> Received:
        """See `Transport`."""
        return await self._post.inbox.get()

    def _take(self, address: Address, back: Direction, body: bytes) -> None:
        """Open a body; answers go out in direction `back`."""

        def reply(kind: Kind, answer: bytes) -> None:
            where = topic(address.site, address.id, back, kind, address.channel)
            self._connection.publish_soon(where, answer, quality(kind))

        kind = address.known_kind
        if kind is None:
            # Its number, which the seal would have proven, cannot be told from the topic: then nobody is answered.
            self._post.reject(address.id, Status.UNKNOWN_KIND, f"kind {address.kind}")
            if not self._post.is_sealed:
                reply(Kind.REFUSE, encode(unknown_kind()))
            return
        if kind is Kind.STATE:
            if body:  # else a retained state that somebody cleared
                self._post.inform(address.id, body)
            return
        hello = peek_hello(kind, body)
        if hello is not None and hello["device"] != address.id:
            self._post.reject(address.id, Status.NOT_EXPECTED, f"a hello of {hello['device']} under the topic of {address.id}")
            return
        self._post.open(address.id, address.channel, kind, body, reply)


class CoordinatorMqtt(_MqttEnd):
    """The coordinator's end: hears `up/#` of every participant of a site, speaks to `dn/`.

    Args:
        url: `mqtt://host:port` or `mqtts://host:port`.
        site: of the fleet.
        username, password: of the broker.
        client_id: fixed for a run, so that the broker keeps what arrives while the coordinator restarts; the user name
            where None.
        ca_file: certificates to trust for `mqtts`.
        seals: the keys of the participants; none: messages are not sealed.
    """

    def __init__(
        self,
        url: str,
        site: str,
        username: str,
        password: str,
        client_id: str | None = None,
        ca_file: Path | None = None,
        seals: Seals | None = None,
    ) -> None:
        self.site = site
        post = Post(seals=seals)
        connection = MqttConnection(
            Login(url, username, password, client_id or username, ca_file),
            [topic(site, "+", "up", "#")],
            self._on_message,
            post.inbox.fail,
            is_session_kept=True,
        )
        super().__init__(post, connection)

    async def send(self, id: str, channel: Channel, message: Message) -> None:
        """See `Transport`."""
        body = self._post.seal(id, channel, message)
        address = topic(self.site, id, "dn", message.kind)
        if body is None or not await self._connection.publish(address, body, quality(message.kind)):
            self._post.drop(id, message.kind)

    async def close(self) -> None:
        """See `Transport`."""
        await self._connection.close()

    def _on_message(self, text: str, body: bytes) -> None:
        address = parse(text)
        if address is None or address.site != self.site or address.channel is not Channel.COORDINATOR:
            self._post.reject("?", Status.FRAME_CHANNEL, f"topic {text}")
        else:
            self._take(address, "dn", body)


class PartnerMqtt(_MqttEnd):
    """A partner's end: hears its own `dn/#` and its devices' `cell/up/#`; its birth and death are retained.

    On the coordinator channel the id of messages is the partner's own, on the cell channel the device's.

    Args:
        url: `mqtt://host:port` or `mqtts://host:port`.
        site: of the fleet.
        id: of the partner.
        devices: that speak MQTT themselves.
        username, password: of the broker; the user name is the id where None.
        inbox: of messages, where several sources share one.
        boot: nonce of this start, the same as in the partner's hello; drawn where None.
        ca_file: certificates to trust for `mqtts`.
        seals: the own key and those of the devices; none: messages are not sealed.
    """

    def __init__(
        self,
        url: str,
        site: str,
        id: str,
        devices: Sequence[str],
        password: str,
        username: str | None = None,
        inbox: Inbox | None = None,
        boot: int | None = None,
        ca_file: Path | None = None,
        seals: Seals | None = None,
    ) -> None:
        self.site = site
        self.id = id
        self.devices = frozenset(devices)
        post = Post(inbox, seals)
        post.set_max_body(id, LIMIT_BODY_CEILING)  # a coordinator takes what it asks for
        self._is_inbox_own = inbox is None
        connection = MqttConnection(
            Login(url, username or id, password, id, ca_file),
            [topic(site, id, "dn", "#"), *(topic(site, device, "up", "#", Channel.CELL) for device in devices)],
            self._on_message,
            post.inbox.fail,
            retained=state(site, id, secrets.randbits(32) if boot is None else boot),
        )
        super().__init__(post, connection)

    async def send(self, id: str, channel: Channel, message: Message) -> None:
        """See `Transport`."""
        body = self._post.seal(id, channel, message)
        direction: Direction = "up" if channel is Channel.COORDINATOR else "dn"
        address = topic(self.site, id, direction, message.kind, channel)
        if body is None or not await self._connection.publish(address, body, quality(message.kind)):
            self._post.drop(id, message.kind)

    async def close(self) -> None:
        """See `Transport`. An inbox that was given stays open for its other sources."""
        await self._connection.close(is_final=self._is_inbox_own)

    def _on_message(self, text: str, body: bytes) -> None:
        address = parse(text)
        if address is None or not self._is_ours(address):
            self._post.reject("?", Status.FRAME_CHANNEL, f"topic {text}")
        else:
            self._take(address, "dn" if address.channel is Channel.CELL else "up", body)

    def _is_ours(self, address: Address) -> bool:
        if address.site != self.site:
            return False
        if address.channel is Channel.CELL:
            return address.direction == "up" and address.id in self.devices
        return address.direction == "dn" and address.id == self.id


def state(site: str, id: str, boot: int) -> Retained:
    """Birth and death of a participant: both with the nonce of the session, so that a late death is known as such."""
    birth, death = (encode(Message.of(Kind.STATE, boot=boot, is_online=is_online)) for is_online in (1, 0))
    return Retained(topic(site, id, "up", Kind.STATE), birth, death)
