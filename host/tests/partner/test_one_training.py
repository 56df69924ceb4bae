# SPDX-License-Identifier: Apache-2.0
"""The partner as a program, on a direct link, with a trainer that takes as long as the test wants."""

import asyncio
import contextlib
import threading

import pytest

from fedmote.config import PartnerConfig
from fedmote.partner.agent import PartnerAgent
from fedmote.partner.session import Trained, blob_hash
from fedmote.transport.link import LinkServer
from fedmote.wire.codec import Message
from fedmote.wire.schema import Channel, Kind, Phase, Status
from fedmote.wire.transfer import BlobSource

CHECKPOINT = b"checkpoint" * 20


class SlowTrainer:
    """Trains until it is released; counts how many train at once."""

    def __init__(self):
        self.release = threading.Event()
        self.began = []
        self.at_once = self.most_at_once = 0

    def update(self, id, plan, checkpoint, offers):
        self.began.append(plan["round"])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.release.wait(20.0)
        self.at_once -= 1
        return Trained(b"update of round %d" % plan["round"], {"num_examples": 3, "trained": 3})


def plan(number, remaining_ms=60_000):
    return Message.of(
        Kind.PLAN, run=b"run-0001", round=number, phase=Phase.PARTNER, version=0, remaining_ms=remaining_ms,
        model_hash=blob_hash(CHECKPOINT), model_handle=7, model_size=len(CHECKPOINT), seed=1, epochs=1, batch=8,
        learning_rate_micro=1, momentum_micro=0,
    )  # fmt: skip


class Scene:
    """A coordinator made of a listening link, and an agent that connects to it."""

    def __init__(self, directory, trainer):
        self.server = LinkServer("tcp://127.0.0.1:0")
        self.directory, self.trainer = directory, trainer

    async def __aenter__(self):
        await self.server.start()
        config = PartnerConfig(id="phone", site="home", state_directory=self.directory, model="x:y", coordinator=self.server.url)
        self.agent = PartnerAgent(config, self.trainer)
        self.task = asyncio.create_task(self.agent.run())
        await self.hear(Kind.HELLO)
        return self

    async def __aexit__(self, *error):
        self.trainer.release.set()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.server.close()

    async def say(self, message):
        await self.server.send("phone", Channel.COORDINATOR, message)

    async def hear(self, kind):
        async with asyncio.timeout(20.0):
            while (received := await self.server.receive()).message.kind is not kind:
                if received.message.kind is Kind.GET:
                    for data in BlobSource(7, CHECKPOINT).answer(received.message, 65_535):
                        await self.say(data)
        return received.message

    async def begin(self, number):
        """Give a plan, and its checkpoint where that is not there yet; wait until the partner trains."""
        await self.say(plan(number))
        if number == 1:
            for data in BlobSource(7, CHECKPOINT).answer(await self.hear(Kind.GET), 65_535):
                await self.say(data)


async def until(condition):
    async with asyncio.timeout(20.0):
        while not condition():
            await asyncio.sleep(0.005)


def test_partner_trains_one_round_at_a_time_and_then_the_newest(tmp_path):
    async def scene():
        trainer = SlowTrainer()
        async with Scene(tmp_path, trainer) as one:
            await one.begin(1)
            await until(lambda: trainer.began == [1])
            for number in (2, 3, 4):
                await one.begin(number)
                await until(lambda number=number: one.agent._session._plan["round"] == number)
            trainer.release.set()
            report = await one.hear(Kind.REPORT)
            assert report["round"] == 4
            assert trainer.began == [1, 4]
            assert trainer.most_at_once == 1

    asyncio.run(scene())


@pytest.mark.parametrize("status", [int(Status.NOT_EXPECTED), 200])
def test_refusal_of_a_known_or_a_newer_status_does_not_end_the_partner(tmp_path, status):
    async def scene():
        async with Scene(tmp_path, SlowTrainer()) as one:
            one.trainer.release.set()
            await one.say(Message.of(Kind.REFUSE, status=status))
            await one.begin(1)
            assert (await one.hear(Kind.REPORT))["round"] == 1

    asyncio.run(scene())
