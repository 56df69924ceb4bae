# SPDX-License-Identifier: Apache-2.0
"""Direct links: many peers over TCP, one on a pty."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fedmote.errors import ConfigError, LocalWireError, TransportError
from fedmote.transport import link, stream
from fedmote.transport.base import INBOX_MESSAGES, Inbox
from fedmote.transport.link import LinkServer, SerialLink
from fedmote.wire.codec import Message, encode
from fedmote.wire.frame import Frame, encode_frame
from fedmote.wire.schema import Channel, Kind, Status

UP = Channel.COORDINATOR


async def server_and_peers(kit, *ids: str, **options) -> tuple[LinkServer, list[SerialLink]]:
    server = LinkServer("tcp://127.0.0.1:0", **options)
    await server.start()
    peers = [SerialLink(server.url, id) for id in ids]
    for peer in peers:
        await peer.start()
        await peer.send(peer.id, UP, kit.hello(peer.id))
        await kit.soon(server.receive())
    return server, peers


async def raw_connection(server: LinkServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, tcp_port = server.url.removeprefix("tcp://").split(":")
    return await asyncio.open_connection(host, int(tcp_port))


async def close(server: LinkServer, *peers: SerialLink) -> None:
    for part in (*peers, server):
        await part.close()


def test_peers_are_known_by_their_first_hello_and_answered_by_their_id(kit):
    async def story():
        server, (one, two) = await server_and_peers(kit, "one", "two")
        assert sorted(server.peers) == ["one", "two"]
        await server.send("two", UP, kit.wait(2))
        await server.send("one", UP, kit.wait(1))
        assert (await kit.soon(one.receive())).message["wait_ms"] == 1
        assert (await kit.soon(two.receive())).message["wait_ms"] == 2
        await two.send("two", UP, kit.wait(9))
        received = await kit.soon(server.receive())
        assert (received.id, received.channel, received.body) == ("two", UP, encode(kit.wait(9)))
        await close(server, one, two)

    kit.run(story())


def test_the_coordinator_drops_frames_of_the_cell_channel_unopened(kit):
    async def story():
        server, (one,) = await server_and_peers(kit, "one")
        await one.send("one", Channel.CELL, kit.samples(1))
        await one.send("one", UP, kit.wait(7))
        assert (await kit.soon(server.receive())).message == kit.wait(7)
        assert server.errors == {Status.FRAME_CHANNEL: 1}
        await close(server, one)

    kit.run(story())


def test_messages_before_hello_are_dropped(kit):
    async def story():
        server, _ = await server_and_peers(kit)
        _reader, writer = await raw_connection(server)
        writer.write(encode_frame(Frame(UP, Kind.WAIT, 0, encode(kit.wait(1)))))
        writer.write(encode_frame(Frame(UP, Kind.HELLO, 1, encode(kit.hello("late")))))
        assert (await kit.soon(server.receive())).message.kind is Kind.HELLO
        assert server.errors == {Status.NOT_EXPECTED: 1}
        writer.close()
        await close(server)

    kit.run(story())


def test_a_message_to_nobody_is_counted(kit):
    async def story():
        server, _ = await server_and_peers(kit)
        await server.send("nobody", UP, kit.wait(1))
        assert server.num_dropped == 1
        await close(server)

    kit.run(story())


def test_a_body_larger_than_the_peer_takes_is_an_error_of_ours(kit):
    async def story():
        server, (one,) = await server_and_peers(kit, "one")
        fits = Message.of(Kind.DATA, handle=0, offset=0, data=bytes(512))
        await server.send("one", UP, fits)
        assert (await kit.soon(one.receive())).message == fits
        with pytest.raises(LocalWireError) as caught:
            await server.send("one", UP, Message.of(Kind.DATA, handle=0, offset=0, data=bytes(530)))
        assert caught.value.status is Status.BODY_TOO_LARGE
        server.set_max_body("one", 1041)
        await server.send("one", UP, Message.of(Kind.DATA, handle=0, offset=0, data=bytes(530)))
        await close(server, one)

    kit.run(story())


def test_a_kind_of_a_newer_peer_is_refused_by_its_code(kit):
    async def story():
        server, (one,) = await server_and_peers(kit, "one")
        one.forward(UP, 99, b"\xa0")
        refused = (await kit.soon(one.receive())).message
        assert (refused.kind, refused["status"]) == (Kind.REFUSE, Status.UNKNOWN_KIND)
        assert server.errors == {Status.UNKNOWN_KIND: 1}
        await close(server, one)

    kit.run(story())


def test_a_body_that_breaks_the_schema_is_counted_and_nothing_else(kit):
    async def story():
        server, (one,) = await server_and_peers(kit, "one")
        one.forward(UP, Kind.WAIT, b"\xa1\x18")
        await one.send("one", UP, kit.wait(5))
        assert (await kit.soon(server.receive())).message == kit.wait(5)
        assert server.errors == {Status.TRUNCATED: 1}
        await close(server, one)

    kit.run(story())


def test_a_peer_that_sends_junk_is_closed(kit):
    async def story():
        server, (one,) = await server_and_peers(kit, "one")
        reader, writer = await raw_connection(server)
        writer.write(b"GET / HTTP/1.1\r\n" * (stream.MAX_JUNK_BYTES // 8))
        with contextlib.suppress(ConnectionResetError):  # the server left with junk unread
            await kit.soon(reader.read())
        await one.send("one", UP, kit.wait(5))
        assert (await kit.soon(server.receive())).message == kit.wait(5)
        assert server.errors[Status.FRAME_LENGTH] >= 1
        await close(server, one)

    kit.run(story())


def test_a_connection_without_a_hello_is_closed(kit):
    async def story():
        server, _ = await server_and_peers(kit, hello_timeout_s=0.01)
        reader, _writer = await raw_connection(server)
        assert await kit.soon(reader.read()) == b""
        await close(server)

    kit.run(story())


def test_more_peers_than_allowed_are_closed_at_once(kit):
    async def story():
        server, (one,) = await server_and_peers(kit, "one", max_peers=1)
        reader, _writer = await raw_connection(server)
        assert await kit.soon(reader.read()) == b""
        await one.send("one", UP, kit.wait(5))
        assert (await kit.soon(server.receive())).message == kit.wait(5)
        await close(server, one)

    kit.run(story())


def test_a_newer_connection_of_a_peer_replaces_the_older_one(kit):
    async def story():
        server, _ = await server_and_peers(kit)
        connections = [await raw_connection(server) for _ in range(2)]
        for boot, (_, writer) in enumerate(connections):
            writer.write(encode_frame(Frame(UP, Kind.HELLO, 0, encode(kit.hello("one", boot)))))
            assert (await kit.soon(server.receive())).message["boot"] == boot
        assert await kit.soon(connections[0][0].read()) == b""
        await server.send("one", UP, kit.wait(5))
        assert encode_frame(Frame(UP, Kind.WAIT, 0, encode(kit.wait(5)))) == await kit.soon(connections[1][0].readuntil(b"\0"))
        connections[1][1].close()
        await close(server)

    kit.run(story())


def test_a_connection_that_changes_its_name_is_closed(kit):
    async def story():
        server, _ = await server_and_peers(kit)
        reader, writer = await raw_connection(server)
        for id in ("one", "two"):
            writer.write(encode_frame(Frame(UP, Kind.HELLO, 0, encode(kit.hello(id)))))
        assert await kit.soon(reader.read()) == b""
        assert (await kit.soon(server.receive())).id == "one"
        assert server.errors == {Status.NOT_EXPECTED: 1}
        await close(server)

    kit.run(story())


def test_a_reader_that_does_not_read_bounds_the_inbox_and_loses_nothing(kit):
    async def story():
        server, (one,) = await server_and_peers(kit, "one")
        total = 5 * INBOX_MESSAGES
        data = Message.of(Kind.DATA, handle=0, offset=0, data=b"\1" * 500)
        sent = 0
        while sent < total:  # the line holds some of it; what it does not take is counted, not sent
            dropped = one.num_dropped
            await one.send("one", UP, data)
            if one.num_dropped > dropped:
                break
            sent += 1
            if sent % 100 == 0:
                await asyncio.sleep(0)
        await kit.until(lambda: server._post.inbox.is_paused)
        largest_read = 256 * 1024 // len(encode(data)) + 1
        assert len(server._post.inbox._waiting) <= INBOX_MESSAGES + largest_read
        for _ in range(sent):
            assert (await kit.soon(server.receive())).message == data
        await close(server, one)

    kit.run(story())


def test_a_peer_that_does_not_read_delays_nobody(kit, monkeypatch):
    monkeypatch.setattr(stream, "MAX_BACKLOG_BYTES", 100_000)

    async def story():
        server, (one,) = await server_and_peers(kit, "one")
        _, writer = await raw_connection(server)
        writer.write(encode_frame(Frame(UP, Kind.HELLO, 0, encode(kit.hello("slow", max_body=65535)))))
        writer.transport.pause_reading()
        await kit.soon(server.receive())
        for _ in range(300):
            await server.send("slow", UP, Message.of(Kind.DATA, handle=0, offset=0, data=b"\1" * 65000))
        assert server.num_dropped > 0
        await server.send("one", UP, kit.wait(5))
        assert (await kit.soon(one.receive())).message == kit.wait(5)
        writer.close()
        await close(server, one)

    kit.run(story())


def test_a_lost_connection_comes_back_and_says_hello_again(kit, monkeypatch):
    monkeypatch.setattr(link, "REOPEN_S", 0.01)

    async def story():
        server, (one,) = await server_and_peers(kit, "one")
        address = server.url
        await server.close()
        await kit.until(lambda: not one.is_open)
        again = LinkServer(address)
        await again.start()
        assert (await kit.soon(again.receive())).message == kit.hello("one")
        await close(again, one)

    kit.run(story())


def test_a_serial_line_carries_frames_both_ways_behind_boot_text(kit):
    async def story():
        device = kit.FakeDevice()
        line = SerialLink(device.path)
        await line.start()
        device.write(b"\xff\xfe ROM boot v1.2\r\nfree heap 12345\r\n")
        device.write(encode_frame(Frame(Channel.CELL, Kind.WAIT, 0, encode(kit.wait(1))))[:-3])
        device.write(b"\0")
        device.send(kit.hello("board-1"))
        received = await kit.soon(line.receive())
        assert (received.id, received.message) == ("board-1", kit.hello("board-1"))
        assert line.errors.total() == 1
        await line.send("board-1", Channel.CELL, kit.wait(3))
        frame = await device.receive()
        assert (frame.channel, frame.kind, frame.body) == (Channel.CELL, Kind.WAIT, encode(kit.wait(3)))
        every_byte = Message.of(Kind.DATA, handle=0, offset=0, data=bytes(range(256)))
        device.send(every_byte)
        assert (await kit.soon(line.receive())).message == every_byte
        await line.close()
        device.unplug()

    kit.run(story())


def test_a_serial_line_is_for_one_program(kit):
    async def story():
        device = kit.FakeDevice()
        line = SerialLink(device.path)
        await line.start()
        with pytest.raises(TransportError, match=device.path):
            await SerialLink(device.path).start()
        await line.close()
        device.unplug()

    kit.run(story())


def test_a_replugged_serial_line_is_opened_again(kit, monkeypatch, tmp_path):
    monkeypatch.setattr(link, "REOPEN_S", 0.01)

    async def story():
        device = kit.FakeDevice(tmp_path / "by-id")
        line = SerialLink(device.path, "board-1")
        await line.start()
        device.unplug()
        await kit.until(lambda: not line.is_open)
        await line.send("board-1", UP, kit.wait(1))
        assert line.num_dropped == 1
        device = kit.FakeDevice(tmp_path / "by-id")
        await kit.until(lambda: line.is_open)
        device.send(kit.hello("board-1", boot=2))
        assert (await kit.soon(line.receive())).message["boot"] == 2
        await line.close()
        device.unplug()

    kit.run(story())


def test_a_device_that_is_not_the_expected_one_is_not_heard(kit):
    async def story():
        device = kit.FakeDevice()
        line = SerialLink(device.path, "board-1")
        await line.start()
        device.send(kit.hello("board-9"))
        device.send(kit.wait(9))
        device.send(kit.hello("board-1"))
        assert (await kit.soon(line.receive())).message["device"] == "board-1"
        assert line.errors == {Status.NOT_EXPECTED: 1}
        await line.close()
        device.unplug()

    kit.run(story())


def test_a_link_can_wait_for_the_device_to_connect(kit):
    async def story():
        line = SerialLink("listen://127.0.0.1:0")
        await line.start()
        device = SerialLink(line.port.replace("listen", "tcp"), "board-1")
        await device.start()
        await device.send("board-1", UP, kit.hello("board-1"))
        assert (await kit.soon(line.receive())).id == "board-1"
        await line.send("board-1", Channel.CELL, kit.wait(4))
        assert (await kit.soon(device.receive())).message == kit.wait(4)
        await device.close()
        await line.close()

    kit.run(story())


def test_an_address_that_cannot_be_opened_is_named(kit):
    async def story():
        with pytest.raises(TransportError, match="/dev/nothing"):
            await SerialLink("/dev/nothing").start()
        server, _ = await server_and_peers(kit)
        with pytest.raises(TransportError, match=server.url):
            await LinkServer(server.url).start()
        address = server.url
        await server.close()
        with pytest.raises(TransportError, match=address):
            await SerialLink(address).start()
        with pytest.raises(ConfigError, match="tcp://host:port"):
            LinkServer("localhost")

    kit.run(story())


def test_a_closed_transport_says_so_to_its_reader(kit):
    async def story():
        server, _ = await server_and_peers(kit)
        reading = asyncio.create_task(server.receive())
        await asyncio.sleep(0)
        await close(server)
        with pytest.raises(TransportError, match="closed"):
            await kit.soon(reading)

    kit.run(story())


def test_what_waits_in_an_inbox_is_read_before_its_error(kit):
    async def story():
        inbox = Inbox()
        server, (one,) = await server_and_peers(kit, "one")
        await one.send("one", UP, kit.wait(1))
        received = await kit.soon(server.receive())
        inbox.put(received)
        inbox.fail(TransportError("over"))
        assert await inbox.get() == received
        with pytest.raises(TransportError, match="over"):
            await inbox.get()
        await close(server, one)

    kit.run(story())
