# SPDX-License-Identifier: Apache-2.0
"""The network in memory keeps the rules of the real ones."""

from __future__ import annotations

import pytest

from fedmote.errors import LocalWireError
from fedmote.transport.memory import MemoryNetwork
from fedmote.wire.codec import Message
from fedmote.wire.schema import Channel, Kind

UP, CELL = Channel.COORDINATOR, Channel.CELL


def test_messages_reach_those_whom_they_reach_over_a_broker(kit):
    async def story():
        network = MemoryNetwork()
        partner = network.participant("phone-1", ["board-1"])
        board = network.participant("board-1")
        await board.send("board-1", UP, kit.hello("board-1"))
        await network.coordinator.send("board-1", UP, kit.wait(1))
        await board.send("board-1", CELL, kit.samples(2))
        await partner.send("board-1", CELL, kit.wait(3))
        await partner.send("phone-1", UP, kit.wait(4))
        heard = [await kit.soon(end.receive()) for end in (network.coordinator, board, partner, board, network.coordinator)]
        assert [(item.id, item.channel, item.message.kind) for item in heard] == [
            ("board-1", UP, Kind.HELLO),
            ("board-1", UP, Kind.WAIT),
            ("board-1", CELL, Kind.SAMPLES),
            ("board-1", CELL, Kind.WAIT),
            ("phone-1", UP, Kind.WAIT),
        ]
        assert not network.coordinator.post.inbox._waiting

    kit.run(story())


def test_limits_hold_in_memory_too(kit):
    async def story():
        network = MemoryNetwork()
        board = network.participant("board-1")
        large = Message.of(Kind.DATA, handle=0, offset=0, data=bytes(400))
        with pytest.raises(LocalWireError):
            await network.coordinator.send("board-1", UP, large)
        await board.send("board-1", UP, kit.hello("board-1"))
        await network.coordinator.send("board-1", UP, large)
        assert (await kit.soon(board.receive())).message == large

    kit.run(story())


def test_the_same_seed_loses_the_same_messages(kit):
    async def story(seed: int) -> list[int]:
        print("seed", seed)
        network = MemoryNetwork(loss=0.5, seed=seed)
        board = network.participant("board-1")
        for number in range(1, 51):
            await board.send("board-1", UP, kit.wait(number))
        return [received.message["wait_ms"] for received in network.coordinator.post.inbox._waiting]

    first, again, other = (kit.run(story(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert 10 < len(first) < 40


def test_a_message_to_nobody_is_counted(kit):
    async def story():
        network = MemoryNetwork()
        await network.coordinator.send("nobody", UP, kit.wait(1))
        assert network.coordinator.post.num_dropped == 1

    kit.run(story())
