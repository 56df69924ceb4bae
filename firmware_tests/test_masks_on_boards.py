# SPDX-License-Identifier: Apache-2.0
"""A masked sum of seven devices as processes and one on an emulated STM32F405, of which one process is killed after its keys."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from nacl.bindings import crypto_scalarmult

from fedmote.package.boards import Board
from fedmote.package.file import Package, build_package
from fedmote.package.graph import HeadLayer
from fedmote.package.specimen import random_int8_graph, random_samples
from fedmote.transport.link import LinkServer
from fedmote.wire.codec import Message
from fedmote.wire.regions import samples_region
from fedmote.wire.schema import Channel, Kind, Phase
from fedmote.wire.seal import EpochEnd, FixedKeys, Seals
from fedmote.wire.transfer import BlobSink, BlobSource
from fedmote_hil.build import crypto_sources
from fedmote_hil.virtual import VirtualDevice
from firmware_tests.mask_reference import Participation, Sum, derive, masked_words, members_of
from firmware_tests.masked_peers import CLIP_NORM, identity_in_group, masking_field, sum_of
from firmware_tests.sealed_peers import KEY

_missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}"),
    pytest.mark.skipif(crypto_sources() is None, reason="Monocypher is not here: python -m fedmote_hil.crypto"),
]

MEMBERS, NEIGHBOURS, THRESHOLD = 8, 7, 4
BOARDS = {number: Board.load("stm32f405" if number == MEMBERS else "posix") for number in range(1, MEMBERS + 1)}
RUN, ROUND = b"maskruns", 3
CLASSES, SAMPLES = 3, 24
TWIN, LOST = 1, 5  # of the emulated board: it has the same samples; of nobody: it is killed
TIMEOUT_S = 120
SETTLED_S = 1.0  # after its last acknowledgement


def package_for(board: Board) -> Package:
    """One graph and head, with weights arranged for the board."""
    graph = random_int8_graph(0)
    features = int(np.prod(graph.activations[graph.output].shape))
    rng = np.random.default_rng(1)
    tensors = {"w": rng.normal(size=(CLASSES, features)).astype(np.float32), "b": rng.normal(size=CLASSES).astype(np.float32)}
    return build_package(None, graph, [HeadLayer("w", "b", features, CLASSES)], tensors, {}, board, "specimen", 1)


def name_of(number: int) -> str:
    return f"board-{number}"


class Coordinator:
    """Leads the group through its steps over sealed messages."""

    def __init__(self) -> None:
        self.members = members_of(MEMBERS, NEIGHBOURS, THRESHOLD)
        self.sum = Sum(self.members, RUN, ROUND, {}, {}, {})
        self.packages = {number: package_for(board) for number, board in BOARDS.items()}
        keys = FixedKeys({name_of(number): KEY for number in self.members})
        end = EpochEnd(Channel.COORDINATOR, keys, 7, time.monotonic)
        self.server = LinkServer("tcp://127.0.0.1:0", seals=Seals(coordinator=end))
        self.memory = b""  # of the emulated board, when all is over
        self._step = 1
        self._peers: dict[int, bytes] = {}  # as they were fixed after step 1
        self._sinks: dict[tuple[int, int], BlobSink] = {}

    def plan(self, number: int) -> Message:
        package = self.packages[number]
        blob, group = package.device_form(), self.members[number].group
        if self._step == 1:
            masking = masking_field(group, 1)
        else:
            peers = self._peers[number]
            survivors = self.sum.survivors(number) if self._step == 3 else 0
            masking = masking_field(group, self._step, survivors, peers, handle=zlib.crc32(peers))
        return Message.of(
            Kind.PLAN, run=RUN, round=ROUND, attempt=0, phase=Phase.DEVICE, version=1, remaining_ms=600_000,
            model_hash=package.hash, model_handle=zlib.crc32(blob), model_size=len(blob), seed=7, epochs=2, batch=8,
            learning_rate_micro=50_000, momentum_micro=900_000, alpha_milli=0, beta_milli=0, gamma_milli=0, masking=masking,
        )  # fmt: skip

    async def lead(self, step: int, numbers: Iterable[int]) -> None:
        """Until all of these have handed in the blob of a step."""
        self._step, came = step, {}
        expected = set(numbers)
        for number in expected if step > 1 else ():
            await self._tell(number, self.plan(number))
        while came.keys() != expected:
            received = await self.server.receive()
            number, message = int(received.id.removeprefix("board-")), received.message
            assert message.kind is not Kind.REFUSE, (number, message)
            if message.kind is Kind.HELLO:
                await self._tell(number, self.plan(number))
            elif message.kind is Kind.GET:
                for answer in self._source(number, message["handle"]).answer(message, BOARDS[number].body_max):
                    await self._tell(number, answer)
            elif message.kind is Kind.REPORT and message["mask_step"] == step:
                if (number, step) not in self._sinks:
                    sink = BlobSink(message["handle"], message["size"], message["crc"], BOARDS[number].body_max)
                    self._sinks[number, step] = sink
                    await self._ask(number, sink.start(time.monotonic()))
            elif message.kind is Kind.DATA and (sink := self._sinks.get((number, step))) is not None:
                await self._ask(number, sink.accept(message, time.monotonic()))
            if (number, step) in self._sinks and self._sinks[number, step].is_complete and number not in came:
                sink = self._sinks[number, step]
                came[number] = sink.blob()
                await self._tell(number, Message.of(Kind.ACK, handle=sink.handle, run=RUN, round=ROUND))
        (self.sum.keys, self.sum.masked, self.sum.shares)[step - 1].update(came)
        if step == 1:
            self._peers = {number: self.sum.peers(number) for number in came}

    async def _ask(self, number: int, messages: list[Message]) -> None:
        for message in messages:
            await self._tell(number, message)

    async def _tell(self, number: int, message: Message) -> None:
        await self.server.send(name_of(number), Channel.COORDINATOR, message)

    def _source(self, number: int, handle: int) -> BlobSource:
        package = self.packages[number].device_form()
        blob = package if handle == zlib.crc32(package) else self._peers[number]
        return BlobSource(handle, blob)


def secrets_of(books: Sum, number: int) -> dict[str, bytes]:
    """Keys and shares of a member that nobody else may know."""
    me, mine = books.members[number], Participation(books.members[number], RUN, ROUND, books.keys[number][4:12])
    found = {"x": mine.mask_secret, "b": mine.seed, "own mask key": derive(mine.seed, 6, number, 0, 0, RUN, ROUND, bytes(8))}
    for other in me.neighbours:
        theirs = Participation(books.members[other], RUN, ROUND, books.keys[other][4:12])
        shared, lasting = crypto_scalarmult(mine.mask_secret, theirs.public), crypto_scalarmult(me.secret, me.publics[other])
        place = books.members[other].neighbours.index(number) + 1
        found |= {
            f"secret shared with {other}": lasting,
            f"mask secret shared with {other}": shared,
            f"mask key with {other}": derive(shared, 5, *sorted((number, other)), 0, RUN, ROUND, bytes(8)),
            f"box key to {other}": mine.box_key(number, other, mine.salt),
            f"box key from {other}": theirs.box_key(other, number, theirs.salt),
        }
        found |= {f"share {which} of {other}": theirs.share(which, place) for which in (0, 1)}
        found |= {f"share {which} for {other}": mine.share(which, me.neighbours.index(other) + 1) for which in (0, 1)}
    return found


async def masked_round(directory: Path) -> Coordinator:
    coordinator = Coordinator()
    await coordinator.server.start()
    devices = {}
    try:
        with ExitStack() as stack:
            for number, member in coordinator.members.items():
                data_of = TWIN if number == MEMBERS else number
                x = random_samples(random_int8_graph(0), SAMPLES, data_of)
                regions = samples_region(x, np.arange(SAMPLES) % CLASSES), identity_in_group(name_of(number), member.identity())
                device = VirtualDevice(
                    BOARDS[number], name_of(number), *regions, coordinator.server.url, directory=directory / name_of(number)
                )
                devices[number] = stack.enter_context(device)
            await coordinator.lead(1, coordinator.members)
            devices[LOST].kill()
            left = [number for number in coordinator.members if number != LOST]
            for step in (2, 3):
                await coordinator.lead(step, left)
            await asyncio.sleep(SETTLED_S)
            coordinator.memory = devices[MEMBERS].halt_and_read("ram")
    finally:
        await coordinator.server.close()
    return coordinator


def test_the_sum_of_processes_and_an_emulated_board_is_exact_though_one_was_lost():
    with tempfile.TemporaryDirectory(prefix="fedmote-masks-") as directory:
        total = asyncio.run(asyncio.wait_for(masked_round(Path(directory)), TIMEOUT_S))
    books, words = total.sum, {}
    for number, blob in books.keys.items():
        member = Participation(books.members[number], RUN, ROUND, blob[4:12])
        assert blob == member.keys()
        if number != LOST:
            masked = masked_words(books.masked[number])
            words[number] = masked - member.mask(books.publics(number), len(masked))
            assert books.shares[number] == member.shares(total._peers[number], books.survivors(number))
    assert np.array_equal(books.total(), sum_of(words.values()))
    twin, board = (words[number].view(np.int32).astype(np.float64) for number in (TWIN, MEMBERS))
    step = CLIP_NORM / ((2**31 - 1) // MEMBERS)
    assert np.abs(twin).max() * step > 0.01
    assert np.abs(twin - board).max() * step < 1e-5  # floats of two cores
    for name, secret in {"lasting secret": books.members[MEMBERS].secret, **secrets_of(books, MEMBERS)}.items():
        assert not any(secret[at : at + 8] in total.memory for at in range(0, 32, 8)), f"{name} is left in the RAM of the board"
    assert RUN in total.memory, "this is not the memory of the device"
