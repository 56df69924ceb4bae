# SPDX-License-Identifier: Apache-2.0
"""A device on a partner's serial line: the coordinator cannot tell it from a direct one, and its samples stay in the cell."""

from __future__ import annotations

import cbor2
import pytest

from fedmote.config import Credentials, load
from fedmote.errors import TransportError
from fedmote.transport import link
from fedmote.transport.base import Inbox
from fedmote.transport.link import LinkServer, SerialLink
from fedmote.transport.mqtt import CoordinatorMqtt, PartnerMqtt
from fedmote.transport.relay import Relay
from fedmote.wire.codec import Message, encode
from fedmote.wire.schema import Channel, Kind, Status

UP = Channel.COORDINATOR


class Cell:
    """A partner as its program is put together: its own way up and a relay, with one inbox."""

    def __init__(self, device, *, broker=None, coordinator=None) -> None:
        self.inbox = Inbox()
        if broker is not None:
            credentials = load(Credentials, broker.files.credentials_file("board-1"))
            self.own = PartnerMqtt(broker.url, "lab", "phone-1", [], broker.password("phone-1"), inbox=self.inbox)
            self.relay = Relay("board-1", device.path, broker_url=broker.url, credentials=credentials, inbox=self.inbox)
        else:
            self.own = SerialLink(coordinator, "phone-1", self.inbox)
            self.relay = Relay("board-1", device.path, coordinator_url=coordinator, inbox=self.inbox)

    async def start(self) -> None:
        await self.own.start()
        await self.relay.start()

    async def send(self, id, channel, message) -> None:
        await (self.relay if channel is Channel.CELL else self.own).send(id, channel, message)

    async def receive(self):
        return await self.inbox.get()

    async def close(self) -> None:
        await self.relay.close()
        await self.own.close()


async def next_of(kit, coordinator, id: str, kind: Kind):
    while True:
        received = await kit.soon(coordinator.receive())
        if (received.id, received.message.kind) == (id, kind):
            return received


@pytest.mark.broker
def test_a_serial_device_is_relayed_to_the_broker_unopened(kit, broker):
    async def story():
        coordinator = CoordinatorMqtt(broker.url, "lab", "coordinator", broker.password("coordinator"))
        await coordinator.start()
        device = kit.FakeDevice()
        cell = Cell(device, broker=broker)
        await cell.start()
        newer = encode(kit.hello("board-1", boot=77))
        newer = cbor2.dumps(cbor2.loads(newer) | {500: [1, "later"]}, canonical=True)
        device.send_body(Kind.HELLO, newer)
        born = await next_of(kit, coordinator, "board-1", Kind.STATE)
        assert (born.message["boot"], born.message["is_online"]) == (77, 1)
        assert (await next_of(kit, coordinator, "board-1", Kind.HELLO)).body == newer

        await coordinator.send("board-1", UP, kit.wait(250))
        frame = await device.receive()
        assert (frame.channel, frame.kind, frame.body) == (UP, Kind.WAIT, encode(kit.wait(250)))

        device.send(kit.samples(3), Channel.CELL)
        offered = await kit.soon(cell.receive())
        assert (offered.id, offered.channel, offered.message) == ("board-1", Channel.CELL, kit.samples(3))
        get = Message.of(Kind.GET, handle=3, offset=0, chunk=512, mask=1)
        await cell.send("board-1", Channel.CELL, get)
        frame = await device.receive()
        assert (frame.channel, frame.kind, frame.body) == (Channel.CELL, Kind.GET, encode(get))

        await cell.send("phone-1", UP, kit.wait(1))
        assert (await next_of(kit, coordinator, "phone-1", Kind.WAIT)).message == kit.wait(1)
        device.unplug()
        died = await next_of(kit, coordinator, "board-1", Kind.STATE)
        assert (died.message["boot"], died.message["is_online"]) == (77, 0)
        await cell.close()
        await coordinator.close()

    kit.run(story())


@pytest.mark.broker
def test_a_device_that_booted_again_is_born_again(kit, broker):
    async def story():
        coordinator = CoordinatorMqtt(broker.url, "lab", "coordinator", broker.password("coordinator"))
        await coordinator.start()
        device = kit.FakeDevice()
        cell = Cell(device, broker=broker)
        await cell.start()
        for boot in (1, 2):
            device.send(kit.hello("board-1", boot))
            assert (await next_of(kit, coordinator, "board-1", Kind.HELLO)).message["boot"] == boot
        await cell.close()
        await coordinator.close()
        device.unplug()

    kit.run(story())


@pytest.mark.broker
def test_a_relay_comes_back_after_the_broker_forgot_everything(kit, broker):
    async def story():
        coordinator = CoordinatorMqtt(broker.url, "lab", "coordinator", broker.password("coordinator"))
        await coordinator.start()
        device = kit.FakeDevice()
        cell = Cell(device, broker=broker)
        await cell.start()
        device.send(kit.hello("board-1"))
        await next_of(kit, coordinator, "board-1", Kind.HELLO)
        broker.restart()
        born = await next_of(kit, coordinator, "board-1", Kind.STATE)
        assert born.message["is_online"] == 1
        device.send(kit.wait(5))
        assert (await next_of(kit, coordinator, "board-1", Kind.WAIT)).message == kit.wait(5)
        await cell.close()
        await coordinator.close()
        device.unplug()

    kit.run(story())


def test_a_serial_device_is_relayed_to_a_listening_coordinator(kit):
    async def story():
        server = LinkServer("tcp://127.0.0.1:0")
        await server.start()
        device = kit.FakeDevice()
        cell = Cell(device, coordinator=server.url)
        await cell.start()
        await cell.send("phone-1", UP, kit.hello("phone-1"))
        device.send(kit.hello("board-1"))
        assert {(await kit.soon(server.receive())).id for _ in range(2)} == {"phone-1", "board-1"}
        device.send(kit.samples(3), Channel.CELL)
        assert (await kit.soon(cell.receive())).message == kit.samples(3)
        await server.send("board-1", UP, kit.wait(9))
        assert (await device.receive()).body == encode(kit.wait(9))
        await server.send("phone-1", UP, kit.wait(8))
        received = await kit.soon(cell.receive())
        assert (received.id, received.channel, received.message) == ("phone-1", UP, kit.wait(8))
        assert server.errors == {}
        device.unplug()
        await kit.until(lambda: server.peers == ("phone-1",))
        await cell.close()
        await server.close()

    kit.run(story())


def test_a_relayed_device_is_known_again_after_the_coordinator_restarted(kit, monkeypatch):
    monkeypatch.setattr(link, "REOPEN_S", 0.01)

    async def story():
        server = LinkServer("tcp://127.0.0.1:0")
        await server.start()
        device = kit.FakeDevice()
        cell = Cell(device, coordinator=server.url)
        await cell.start()
        device.send(kit.hello("board-1"))
        await kit.soon(server.receive())
        await server.close()
        again = LinkServer(server.url)
        await again.start()
        assert (await kit.soon(again.receive())).message == kit.hello("board-1")
        await cell.close()
        await again.close()
        device.unplug()

    kit.run(story())


def test_another_device_on_the_line_does_not_speak_under_the_first_ones_name(kit):
    async def story():
        server = LinkServer("tcp://127.0.0.1:0")
        await server.start()
        device = kit.FakeDevice()
        cell = Cell(device, coordinator=server.url)
        await cell.start()
        device.send(kit.hello("board-9"))
        device.send(kit.wait(1))
        device.send(kit.samples(1), Channel.CELL)
        device.send(kit.hello("board-1"))
        assert (await kit.soon(server.receive())).message == kit.hello("board-1")
        assert cell.relay.errors == {Status.NOT_EXPECTED: 1}
        await cell.close()
        await server.close()
        device.unplug()

    kit.run(story())


def test_a_relay_whose_port_appears_later_can_be_started_again(kit, tmp_path):
    async def story():
        server = LinkServer("tcp://127.0.0.1:0")
        await server.start()
        path = tmp_path / "by-id"
        relay = Relay("board-1", str(path), coordinator_url=server.url)
        with pytest.raises(TransportError, match="by-id"):
            await relay.start()
        device = kit.FakeDevice(path)
        await relay.start()
        device.send(kit.hello("board-1"))
        assert (await kit.soon(server.receive())).id == "board-1"
        await relay.close()
        await server.close()
        device.unplug()

    kit.run(story())
