# SPDX-License-Identifier: Apache-2.0
"""Transports with keys: who a stream belongs to is proven, copies and strangers displace nobody, relays open nothing."""

from __future__ import annotations

import asyncio

import pytest

from fedmote.config import Credentials, load
from fedmote.transport import link
from fedmote.transport.link import LinkServer, SerialLink
from fedmote.transport.mqtt import CoordinatorMqtt, PartnerMqtt
from fedmote.transport.relay import Relay
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.frame import Frame, FrameDecoder, encode_frame
from fedmote.wire.schema import Channel, Kind, Status
from fedmote.wire.seal import BootEnd, EpochEnd, FixedKeys, Seals

UP = Channel.COORDINATOR
KEYS = {"one": bytes(range(32)), "two": bytes(range(1, 33)), "board-1": bytes(32), "phone-1": bytes([9] * 32)}
CELL_KEYS = {"board-1": bytes([7] * 32)}


def coordinator_seals(epoch: int = 50) -> Seals:
    return Seals(coordinator=EpochEnd(UP, FixedKeys(KEYS), epoch, lambda: 0.0, epoch - 10))


def participant_seals(id: str, boot: int = 1) -> Seals:
    cell = EpochEnd(Channel.CELL, FixedKeys(CELL_KEYS), boot, lambda: 0.0)
    return Seals(coordinator=BootEnd(id, UP, KEYS[id], boot), cell=cell)


async def server_of(**options) -> LinkServer:
    server = LinkServer("tcp://127.0.0.1:0", seals=coordinator_seals(), **options)
    await server.start()
    return server


class Raw:
    """A connection that sends and takes bodies as they are."""

    def __init__(self, reader, writer) -> None:
        self._reader, self._writer, self._decoder, self._frames = reader, writer, FrameDecoder(), []

    @classmethod
    async def to(cls, server: LinkServer) -> Raw:
        host, tcp_port = server.url.removeprefix("tcp://").split(":")
        return cls(*await asyncio.open_connection(host, int(tcp_port)))

    def send(self, kind: Kind, body: bytes) -> None:
        self._writer.write(encode_frame(Frame(UP, kind, 0, body)))

    async def receive(self) -> Frame | None:
        """The next frame; None at the end of the stream."""
        while not self._frames:
            data = await asyncio.wait_for(self._reader.read(4096), 10)
            if not data:
                return None
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)


async def introduce(kit, server: LinkServer, peer: SerialLink) -> None:
    """Greeting, challenge, hello: as a device does."""
    await peer.start()
    await peer.send(peer.id, UP, kit.hello(peer.id))
    assert (await kit.soon(peer.receive())).message == kit.wait(0)
    await peer.send(peer.id, UP, kit.hello(peer.id))
    assert (await kit.soon(server.receive())).message.kind is Kind.HELLO


def test_a_peer_that_proves_itself_is_known_and_answered(kit):
    async def story():
        server = await server_of()
        peer = SerialLink(server.url, "one", seals=participant_seals("one"))
        await introduce(kit, server, peer)
        assert server.peers == ("one",)
        await server.send("one", UP, kit.wait(77))
        assert (await kit.soon(peer.receive())).message == kit.wait(77)
        await peer.close()
        await server.close()

    kit.run(story())


def test_neither_a_readable_hello_nor_a_copied_one_nor_a_copied_greeting_displaces_a_peer(kit):
    async def story():
        server = await server_of()
        seals = participant_seals("one")
        peer = await Raw.to(server)
        greeting = seals.seal("one", UP, Kind.HELLO, encode(kit.hello("one")))
        peer.send(Kind.HELLO, greeting)
        seals.open("one", UP, Kind.WAIT, (await peer.receive()).body)
        hello = seals.seal("one", UP, Kind.HELLO, encode(kit.hello("one")))
        peer.send(Kind.HELLO, hello)
        await kit.soon(server.receive())

        foe = await Raw.to(server)
        foreign = BootEnd("one", UP, KEYS["two"], 9).seal("one", Kind.HELLO, encode(kit.hello("one", boot=9)))
        for body in (encode(kit.hello("one")), hello, greeting, foreign):
            foe.send(Kind.HELLO, body)
        foe.send(Kind.STATE, encode(Message.of(Kind.STATE, boot=1, is_online=1)))
        challenge = await foe.receive()  # the copied greeting is answered; who has no key learns nothing of it
        assert challenge.kind == Kind.WAIT
        await kit.until(lambda: server.errors == {Status.AUTH: 3, Status.REPLAY: 1})
        await server.send("one", UP, kit.wait(5))
        answer = await peer.receive()
        assert decode(Kind.WAIT, seals.open("one", UP, Kind.WAIT, answer.body).payload) == kit.wait(5)
        await server.close()
        assert await foe.receive() is None

    kit.run(story())


def test_a_connection_that_proves_nothing_is_closed_in_time(kit):
    async def story():
        server = await server_of(hello_timeout_s=0.1)
        foe = await Raw.to(server)
        foe.send(Kind.HELLO, encode(kit.hello("one")))
        assert await foe.receive() is None
        await server.close()

    kit.run(story())


def test_a_hello_whose_boot_is_not_that_of_its_seal_is_refused(kit):
    async def story():
        server = await server_of()
        seals = participant_seals("one")
        peer = await Raw.to(server)
        peer.send(Kind.HELLO, seals.seal("one", UP, Kind.HELLO, encode(kit.hello("one"))))
        seals.open("one", UP, Kind.WAIT, (await peer.receive()).body)
        peer.send(Kind.HELLO, seals.seal("one", UP, Kind.HELLO, encode(kit.hello("one", boot=2))))
        await kit.until(lambda: server.errors == {Status.AUTH: 1})
        assert server.peers == ()
        await server.close()

    kit.run(story())


def test_a_disconnected_peer_is_gone(kit):
    async def story():
        server = await server_of()
        peer = SerialLink(server.url, "one", seals=participant_seals("one"))
        await introduce(kit, server, peer)
        server.disconnect("one")
        await kit.until(lambda: server.peers == ())
        await peer.close()
        await server.close()

    kit.run(story())


def test_a_peer_whose_connection_was_lost_says_a_new_hello_and_is_known_again(kit, monkeypatch):
    monkeypatch.setattr(link, "REOPEN_S", 0.01)

    async def story():
        server = await server_of()
        peer = SerialLink(server.url, "one", seals=participant_seals("one"))
        await introduce(kit, server, peer)
        server.disconnect("one")
        assert (await kit.soon(server.receive())).message.kind is Kind.HELLO
        assert server.errors == {}
        await peer.close()
        await server.close()

    kit.run(story())


def test_a_relay_passes_a_sealed_device_on_unopened_and_answers_its_cell(kit):
    async def story():
        server = await server_of()
        device = kit.FakeDevice()
        seals = Seals(BootEnd("board-1", UP, KEYS["board-1"], 3), BootEnd("board-1", Channel.CELL, CELL_KEYS["board-1"], 3))
        relay = Relay("board-1", device.path, coordinator_url=server.url, seals=participant_seals("phone-1"))
        await relay.start()

        def say(channel, message):
            device.send_body(message.kind, seals.seal("board-1", channel, message.kind, encode(message)), channel)

        async def hear():
            frame = await device.receive()
            return frame.channel, decode(frame.kind, seals.open("board-1", frame.channel, frame.kind, frame.body).payload)

        say(UP, kit.hello("board-1", boot=3))
        assert await hear() == (UP, kit.wait(0))
        say(UP, kit.hello("board-1", boot=3))
        assert (await kit.soon(server.receive())).id == "board-1"
        say(Channel.CELL, kit.samples(4))
        assert await hear() == (Channel.CELL, kit.wait(0))
        say(Channel.CELL, kit.samples(4))
        assert (await kit.soon(relay.receive())).message == kit.samples(4)
        await relay.send("board-1", Channel.CELL, kit.wait(11))
        assert await hear() == (Channel.CELL, kit.wait(11))
        device.send_body(Kind.SAMPLES, encode(kit.samples(5)), Channel.CELL)
        await kit.until(lambda: relay.errors == {Status.AUTH: 1})
        await relay.close()
        await server.close()

    kit.run(story())


@pytest.mark.broker
def test_over_a_broker_everything_but_hellos_and_states_is_unreadable_and_forgeries_are_counted(kit, broker):
    async def story():
        seals = coordinator_seals()
        coordinator = CoordinatorMqtt(broker.url, "lab", "coordinator", broker.password("coordinator"), seals=seals)
        await coordinator.start()
        partner = PartnerMqtt(
            broker.url, "lab", "phone-1", ["board-1"], broker.password("phone-1"), boot=1, seals=participant_seals("phone-1")
        )
        await partner.start()
        assert (await kit.soon(coordinator.receive())).message.kind is Kind.STATE
        for _ in range(2):
            await partner.send("phone-1", UP, kit.hello("phone-1"))
            if _ == 0:
                assert (await kit.soon(partner.receive())).message == kit.wait(0)
        assert (await kit.soon(coordinator.receive())).message.kind is Kind.HELLO
        await coordinator.send("phone-1", UP, kit.wait(123))
        assert (await kit.soon(partner.receive())).message == kit.wait(123)

        # A device whose broker password was stolen, but not its key, is not heard, whatever it says.
        login = load(Credentials, broker.files.credentials_file("board-1"))
        thief = PartnerMqtt(broker.url, "lab", "board-1", [], login.password, boot=1)
        await thief.start()
        await thief.send("board-1", UP, kit.hello("board-1"))
        await thief.send("board-1", UP, kit.wait(1))
        assert (await kit.soon(coordinator.receive())).message.kind is Kind.STATE  # its birth, which informs and no more
        await kit.until(lambda: coordinator.errors == {Status.AUTH: 2})
        for end in (thief, partner, coordinator):
            await end.close()

    kit.run(story())
