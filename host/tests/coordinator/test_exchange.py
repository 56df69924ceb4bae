# SPDX-License-Identifier: Apache-2.0
"""Updates that are pulled: so many at once, whatever is offered; who is silent gives its place to those who wait."""

import asyncio
import tracemalloc
import zlib

from fedmote.config import CellConfig
from fedmote.coordinator.exchange import STALL_S, Exchange
from fedmote.wire.schema import Kind
from fedmote.wire.transfer import BlobSource, handle_of

MAX_BODY = 8192


class Desk:
    """An exchange, and senders that answer it at once or never."""

    def __init__(self, max_pulls):
        self.exchange = Exchange(max_pulls)
        self.blobs, self.silent, self.asked, self.done = {}, set(), [], {}
        self.now = 0.0

    def set_max_body(self, id, max_body):
        pass

    async def send(self, id, channel, message):
        self.asked.append((id, message))

    async def offer(self, id, blob):
        self.exchange.heard(id, self)
        self.exchange.knows(id, "partner", MAX_BODY)
        self.blobs[id] = blob
        await self.exchange.pull(id, handle_of(blob), len(blob), zlib.crc32(blob), self.now)

    async def answer(self):
        """Senders answer what they were asked; complete updates are checked and forgotten."""
        asked, self.asked = self.asked, []
        for id, get in asked:
            if id in self.silent:
                continue
            for data in BlobSource(get["handle"], self.blobs[id]).answer(get, MAX_BODY):
                sink = await self.exchange.accept(id, data, self.now)
                if sink is not None:
                    self.done[id] = zlib.crc32(sink.blob())
        await self.exchange.poll(self.now)


def test_memory_is_bounded_by_the_size_of_an_update_times_the_pulls_at_once():
    size, count, limit = 1_000_000, 40, 8
    blob = bytes(range(250)) * (size // 250)

    async def run():
        desk = Desk(limit)
        tracemalloc.start()
        for number in range(count):
            await desk.offer(f"phone-{number}", blob)
        most = len(desk.exchange.waiting())
        while len(desk.done) < count:
            await desk.answer()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return desk, most, peak

    desk, most, peak = asyncio.run(run())
    assert most == count - limit
    assert set(desk.done.values()) == {zlib.crc32(blob)}
    print(f"peak {peak} bytes, {limit} updates of {size}")
    assert (limit - 1) * size < peak <= 1.2 * limit * size


def test_a_silent_sender_gives_its_place_to_those_who_wait_and_has_another_turn():
    async def run():
        desk = Desk(1)
        desk.silent = {"phone-0"}
        await desk.offer("phone-0", bytes(1000))
        await desk.offer("phone-1", bytes(2000))
        assert desk.exchange.waiting() == {"phone-1"}
        desk.now = STALL_S - 0.1
        await desk.answer()
        assert desk.exchange.waiting() == {"phone-1"}
        assert desk.exchange.wake_at() <= STALL_S
        desk.now = STALL_S
        await desk.answer()
        assert desk.exchange.waiting() == set()  # one has its place, the other one had its turn
        assert desk.exchange.is_pulling("phone-0", handle_of(bytes(1000)))
        await desk.answer()
        assert set(desk.done) == {"phone-1"}
        desk.silent.clear()
        while len(desk.done) < 2:
            await desk.answer()
        assert desk.exchange.wake_at() == float("inf")

    asyncio.run(run())


def test_a_silent_sender_keeps_its_place_while_nobody_waits():
    async def run():
        desk = Desk(1)
        desk.silent = {"phone-0"}
        await desk.offer("phone-0", bytes(1000))
        desk.now = 10 * STALL_S
        await desk.answer()
        assert [id for id, _ in desk.asked] == ["phone-0"]
        desk.exchange.drop("phone-0")
        assert not desk.exchange.is_pulling("phone-0", handle_of(bytes(1000)))

    asyncio.run(run())


def test_an_update_that_waits_for_its_turn_at_the_deadline_is_named_as_waiting(site):
    cells = (CellConfig("home-1", ("board-1", "board-2", "board-3"), None),)
    one = site(cells=cells, rounds=1, max_pulls_at_once=1, report_s=2.0, lease_s=0.0, grace_s=0.0, max_failed_rounds=1)

    def mute(actor):
        handle = actor.handle

        async def deaf_to_get(message):
            if message.kind is not Kind.GET or actor.update is None:
                await handle(message)

        actor.handle = deaf_to_get

    for actor in one.actors.values():
        mute(actor)
    result = one.serve()
    reasons = sorted(result.rounds[0].missing.values())
    assert reasons == ["its update waits for its turn", "its update waits for its turn", "sending its update"]
