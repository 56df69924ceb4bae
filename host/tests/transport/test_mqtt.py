# SPDX-License-Identifier: Apache-2.0
"""MQTT against a real Mosquitto: who may see what, what a broken broker costs, how refusals are told."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys

import pytest

from fedmote.errors import LocalWireError, LoginError, TransportError
from fedmote.fleet.broker_files import COORDINATOR
from fedmote.transport.broker import find_mosquitto
from fedmote.transport.mqtt import CoordinatorMqtt, PartnerMqtt, state
from fedmote.transport.mqtt_connection import Login, MqttConnection, backoff
from fedmote.wire.codec import Message, encode
from fedmote.wire.schema import Channel, Kind, Status
from fedmote.wire.topics import topic

UP, CELL = Channel.COORDINATOR, Channel.CELL
pytestmark = pytest.mark.broker


class Listener:
    """A user of the broker that subscribes to what it likes and keeps what it gets."""

    def __init__(self, broker, user: str, *filters: str, password: str | None = None) -> None:
        self.heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        login = Login(broker.url, user, broker.password(user) if password is None else password, f"listener-{user}")
        self.connection = MqttConnection(login, filters, lambda *item: self.heard.put_nowait(item), lambda error: None)

    async def start(self) -> Listener:
        await self.connection.start()
        return self

    async def say(self, text: str, body: bytes) -> None:
        assert await self.connection.publish(text, body, 1)


def coordinator_of(broker) -> CoordinatorMqtt:
    return CoordinatorMqtt(broker.url, "lab", COORDINATOR, broker.password(COORDINATOR))


def partner_of(broker, id="phone-1", devices=("board-1", "board-2"), boot=5) -> PartnerMqtt:
    return PartnerMqtt(broker.url, "lab", id, devices, broker.password(id), boot=boot)


async def receive(kit, transport, kind: Kind):
    while True:
        received = await kit.soon(transport.receive())
        if received.message.kind is kind:
            return received


def test_selected_samples_reach_the_own_partner_and_nobody_else(kit, broker):
    async def story():
        board = await Listener(broker, "board-1").start()
        everybody = [
            await Listener(broker, user, "#", "fedmote/1/lab/+/cell/#", "fedmote/1/lab/board-1/cell/up/samples").start()
            for user in (COORDINATOR, "phone-2", "board-2", "board-3")
        ]
        coordinator, own = coordinator_of(broker), partner_of(broker)
        await coordinator.start()
        await own.start()
        await board.say(topic("lab", "board-1", "up", Kind.SAMPLES, CELL), encode(kit.samples(1)))
        data = Message.of(Kind.DATA, handle=1, offset=0, data=b"a private sample")
        await board.say(topic("lab", "board-1", "up", Kind.DATA, CELL), encode(data))
        for expected in (kit.samples(1), data):
            received = await kit.soon(own.receive())
            assert (received.id, received.channel, received.message) == ("board-1", CELL, expected)
        # The broker is one thread: what it sends now comes after everything that it had to send before.
        await board.say(topic("lab", "board-1", "up", Kind.WAIT), encode(kit.wait(1)))
        for user in ("phone-2", "board-2", "board-3"):
            await everybody[0].say(topic("lab", user, "dn", Kind.WAIT), encode(kit.wait(1)))
        for listener in everybody:
            while True:
                text, body = await kit.soon(listener.heard.get())
                assert "/cell/" not in text
                assert b"private" not in body
                if text.endswith("/wait"):
                    break
        assert (await receive(kit, coordinator, Kind.WAIT)).id == "board-1"
        assert coordinator.errors == {}
        for part in (board.connection, coordinator, own, *(listener.connection for listener in everybody)):
            await part.close()

    kit.run(story())


def test_a_device_can_neither_write_nor_read_topics_of_another(kit, broker):
    async def story():
        coordinator = coordinator_of(broker)
        await coordinator.start()
        board = await Listener(broker, "board-1", "#").start()
        partner = partner_of(broker)
        await partner.start()
        for direction, kind in (("up", Kind.HELLO), ("up", Kind.STATE), ("dn", Kind.PLAN)):
            for channel in Channel:
                await board.say(topic("lab", "board-2", direction, kind, channel), encode(kit.hello("board-2")))
        await board.say(topic("lab", "board-1", "dn", Kind.WAIT), encode(kit.wait(3)))
        await board.say(topic("other", "board-1", "up", Kind.WAIT), encode(kit.wait(3)))
        await coordinator.send("board-2", UP, kit.wait(4))
        await partner.send("board-2", CELL, kit.wait(4))
        await partner.send("board-1", CELL, kit.wait(6))
        await coordinator.send("board-1", UP, kit.wait(5))
        heard = {await kit.soon(board.heard.get()) for _ in range(2)}
        assert heard == {
            (topic("lab", "board-1", "dn", Kind.WAIT), encode(kit.wait(5))),
            (topic("lab", "board-1", "dn", Kind.WAIT, CELL), encode(kit.wait(6))),
        }
        await board.say(topic("lab", "board-1", "up", Kind.WAIT), encode(kit.wait(7)))
        received = await receive(kit, coordinator, Kind.WAIT)
        assert (received.id, received.message) == ("board-1", kit.wait(7))
        assert board.heard.empty()
        for part in (board.connection, coordinator, partner):
            await part.close()

    kit.run(story())


def test_a_partner_cannot_reach_into_another_cell(kit, broker):
    async def story():
        stranger = partner_of(broker, "phone-2", ("board-1",))
        board = await Listener(broker, "board-1", "#").start()
        own = partner_of(broker)
        await stranger.start()
        await own.start()
        await stranger.send("board-1", CELL, kit.wait(1))
        await own.send("board-1", CELL, kit.wait(2))
        assert (await kit.soon(board.heard.get()))[1] == encode(kit.wait(2))
        for part in (board.connection, stranger, own):
            await part.close()

    kit.run(story())


@pytest.mark.parametrize("user", ["coordinator", "phone-1", "board-1"])
def test_a_wrong_password_is_told_with_broker_and_user_and_without_the_password(kit, broker, user):
    async def story():
        with pytest.raises(LoginError) as caught:
            await CoordinatorMqtt(broker.url, "lab", user, "wrong-canary").start()
        assert broker.url in str(caught.value)
        assert user in str(caught.value)
        assert "canary" not in str(caught.value)

    kit.run(story())


def test_a_stranger_is_refused_with_and_without_a_name(kit, broker):
    async def story():
        with pytest.raises(TransportError, match="nobody"):
            await Listener(broker, "nobody", password="guess").start()

    kit.run(story())
    host, tcp_port = broker.url.removeprefix("mqtt://").split(":")
    with socket.create_connection((host, int(tcp_port)), timeout=10) as anonymous:
        anonymous.sendall(bytes.fromhex("100d00044d515454040200050001") + b"x")
        assert anonymous.recv(4) == bytes.fromhex("20020005")  # CONNACK: not authorized


def test_a_broker_that_is_not_there_is_told_in_time(kit, monkeypatch):
    monkeypatch.setattr("fedmote.transport.mqtt_connection.START_TIMEOUT_S", 0.2)

    async def story():
        with pytest.raises(TransportError, match=r"mqtt://127\.0\.0\.1:9 as coordinator"):
            await CoordinatorMqtt("mqtt://127.0.0.1:9", "lab", "coordinator", "x").start()

    kit.run(story())


def test_a_start_that_failed_can_be_tried_again(kit, broker, monkeypatch):
    monkeypatch.setattr("fedmote.transport.mqtt_connection.START_TIMEOUT_S", 0.2)
    partner = broker.password("phone-1")
    broker.kill9()

    async def story():
        end = PartnerMqtt(broker.url, "lab", "phone-1", [], partner)
        with pytest.raises(TransportError, match="phone-1"):
            await end.start()
        broker.start()
        monkeypatch.setattr("fedmote.transport.mqtt_connection.START_TIMEOUT_S", 10.0)
        await end.start()
        coordinator = coordinator_of(broker)
        await coordinator.start()
        await end.send("phone-1", UP, kit.wait(1))
        assert (await receive(kit, coordinator, Kind.WAIT)).id == "phone-1"
        for part in (end, coordinator):
            await part.close()

    kit.run(story())


def test_clients_come_back_after_the_broker_was_killed_and_forgot_everything(kit, broker):
    async def story():
        coordinator, partner = coordinator_of(broker), partner_of(broker)
        await coordinator.start()
        await partner.start()
        await receive(kit, coordinator, Kind.STATE)
        for _ in range(2):
            broker.restart()
            born = await receive(kit, coordinator, Kind.STATE)
            assert (born.message["boot"], born.message["is_online"]) == (5, 1)
        late = await Listener(broker, COORDINATOR, topic("lab", "+", "up", "#")).start()
        assert (await kit.soon(late.heard.get()))[0].endswith("phone-1/up/state")
        await partner.send("phone-1", UP, kit.wait(3))
        assert (await receive(kit, coordinator, Kind.WAIT)).message == kit.wait(3)
        await coordinator.send("phone-1", UP, kit.wait(4))
        assert (await receive(kit, partner, Kind.WAIT)).message == kit.wait(4)
        for part in (coordinator, partner, late.connection):
            await part.close()

    kit.run(story(), limit_s=60)


def test_messages_to_an_absent_broker_are_dropped_and_counted(kit, broker):
    async def story():
        coordinator = coordinator_of(broker)
        await coordinator.start()
        broker.kill9()
        await kit.until(lambda: not coordinator._connection.is_ready)
        for _ in range(3):
            await coordinator.send("board-1", UP, kit.wait(1))
        assert coordinator.num_dropped == 3
        await coordinator.close()

    kit.run(story())


def test_a_partner_that_vanishes_is_dead_with_the_nonce_of_its_session(kit, broker):
    async def story():
        coordinator, partner = coordinator_of(broker), partner_of(broker, boot=99)
        await coordinator.start()
        await partner.start()
        assert (await receive(kit, coordinator, Kind.STATE)).message == Message.of(Kind.STATE, boot=99, is_online=1)
        for task in partner._connection._tasks:
            task.cancel()
        partner._connection._drop_socket()
        assert (await receive(kit, coordinator, Kind.STATE)).message == Message.of(Kind.STATE, boot=99, is_online=0)
        await coordinator.close()

    kit.run(story())


def test_a_partner_that_leaves_says_so(kit, broker):
    async def story():
        coordinator, partner = coordinator_of(broker), partner_of(broker)
        await coordinator.start()
        await partner.start()
        await partner.close()
        states = [(await receive(kit, coordinator, Kind.STATE)).message["is_online"] for _ in range(2)]
        assert states == [1, 0]
        await coordinator.close()
        with pytest.raises(TransportError, match="closed"):
            await kit.soon(coordinator.receive())

    kit.run(story())


def test_a_coordinator_that_restarts_finds_what_came_meanwhile(kit, broker):
    async def story():
        coordinator, partner = coordinator_of(broker), partner_of(broker)
        await coordinator.start()
        await partner.start()
        await receive(kit, coordinator, Kind.STATE)
        for task in coordinator._connection._tasks:
            task.cancel()
        coordinator._connection._drop_socket()
        await partner.send("phone-1", UP, kit.wait(3))
        again = coordinator_of(broker)
        await again.start()
        assert (await receive(kit, again, Kind.WAIT)).message == kit.wait(3)
        for part in (again, partner):
            await part.close()

    kit.run(story())


def test_a_hello_of_somebody_else_and_an_unknown_kind_are_refused(kit, broker):
    async def story():
        coordinator = coordinator_of(broker)
        await coordinator.start()
        board = await Listener(broker, "board-1", "fedmote/1/lab/board-1/dn/#").start()
        await board.say(topic("lab", "board-1", "up", Kind.HELLO), encode(kit.hello("board-2")))
        await board.say("fedmote/1/lab/board-1/up/dance", b"\xa0")
        text, body = await kit.soon(board.heard.get())
        assert (text, body) == (
            topic("lab", "board-1", "dn", Kind.REFUSE),
            encode(Message.of(Kind.REFUSE, status=Status.UNKNOWN_KIND)),
        )
        await board.say(topic("lab", "board-1", "up", Kind.WAIT), b"\xa1")
        await board.say(topic("lab", "board-1", "up", Kind.WAIT), encode(kit.wait(1)))
        await receive(kit, coordinator, Kind.WAIT)
        assert coordinator.errors == {Status.NOT_EXPECTED: 1, Status.UNKNOWN_KIND: 1, Status.TRUNCATED: 1}
        for part in (board.connection, coordinator):
            await part.close()

    kit.run(story())


def test_limits_are_learnt_from_hello(kit, broker):
    async def story():
        coordinator, partner = coordinator_of(broker), partner_of(broker)
        await coordinator.start()
        await partner.start()
        large = Message.of(Kind.DATA, handle=0, offset=0, data=bytes(60_000))
        with pytest.raises(LocalWireError):
            await coordinator.send("phone-1", UP, large)
        await partner.send("phone-1", UP, kit.hello("phone-1", max_body=65535))
        await receive(kit, coordinator, Kind.HELLO)
        await coordinator.send("phone-1", UP, large)
        assert (await receive(kit, partner, Kind.DATA)).message == large
        await partner.send("phone-1", UP, large)
        assert (await receive(kit, coordinator, Kind.DATA)).message == large
        for part in (partner, coordinator):
            await part.close()

    kit.run(story())


def test_a_thousand_messages_at_quality_one_arrive_in_order(kit, broker):
    async def story():
        coordinator, partner = coordinator_of(broker), partner_of(broker)
        await coordinator.start()
        await partner.start()
        await receive(kit, coordinator, Kind.STATE)

        async def speak():
            for number in range(1, 1001):
                await partner.send("phone-1", UP, kit.wait(number))

        speaking = asyncio.create_task(speak())
        heard = [(await receive(kit, coordinator, Kind.WAIT)).message["wait_ms"] for _ in range(1000)]
        await speaking
        assert heard == list(range(1, 1001))
        assert partner.num_dropped == 0
        for part in (partner, coordinator):
            await part.close()

    kit.run(story())


def test_a_reader_that_pauses_holds_the_broker_and_reads_on_later(kit, broker):
    async def story():
        coordinator, partner = coordinator_of(broker), partner_of(broker)
        await coordinator.start()
        await partner.start()
        await receive(kit, coordinator, Kind.STATE)
        coordinator._connection.pause()
        await partner.send("phone-1", UP, kit.wait(1))
        await kit.until(lambda: not partner._connection._unsent)  # the broker has it
        assert not coordinator._post.inbox._waiting
        coordinator._connection.resume()
        assert (await receive(kit, coordinator, Kind.WAIT)).message == kit.wait(1)
        for part in (partner, coordinator):
            await part.close()

    kit.run(story())


def test_attempts_are_spread_over_a_time_that_doubles_up_to_its_bound():
    seed = 5
    print("seed", seed)
    generator = random.Random(seed)
    for attempt, bound in ((0, 1), (1, 2), (3, 8), (6, 60), (1000, 60)):
        pauses = [backoff(attempt, (1.0, 60.0), generator) for _ in range(200)]
        assert 0 <= min(pauses) < 0.1 * bound
        assert 0.9 * bound < max(pauses) <= bound


def test_birth_and_death_name_the_same_session():
    retained = state("lab", "phone-1", 7)
    assert retained.topic == "fedmote/1/lab/phone-1/up/state"
    assert (retained.birth, retained.death) == tuple(encode(Message.of(Kind.STATE, boot=7, is_online=on)) for on in (1, 0))


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_the_private_broker_ends_with_the_process_that_started_it(kit, tmp_path):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from fedmote.transport.broker import PrivateBroker\n"
        "broker = PrivateBroker(Path(sys.argv[1]), 'lab', ())\n"
        "broker.start()\n"
        "print(broker.url, flush=True)\n"
        "time.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "broker")], stdout=subprocess.PIPE, text=True)
    host, tcp_port = child.stdout.readline().strip().removeprefix("mqtt://").split(":")
    socket.create_connection((host, int(tcp_port)), timeout=10).close()
    child.kill()
    child.wait()

    def is_gone() -> bool:
        try:
            socket.create_connection((host, int(tcp_port)), timeout=10).close()
        except ConnectionRefusedError:
            return True
        return False

    kit.run(kit.until(is_gone))
