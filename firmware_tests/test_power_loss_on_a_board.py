# SPDX-License-Identifier: Apache-2.0
"""Power loss on the emulated nRF51822, whose flash is emulated with its controller: the living board is reset.

Slots and journal lie in flash that no file was loaded into, so that a reset keeps what they hold at that instant. One board goes
through many rounds, each with another package than the two in its slots; in each it is reset at another moment.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedmote.package.boards import Board
from fedmote.package.file import Package, build_package
from fedmote.package.graph import HeadLayer
from fedmote.package.specimen import random_int8_graph, random_samples
from fedmote.transport.link import LinkServer
from fedmote.wire.codec import Message
from fedmote.wire.regions import identity_region, samples_region
from fedmote.wire.schema import LIMIT_WINDOW, Channel, Kind, Phase, Status
from fedmote.wire.transfer import BlobSink, BlobSource, chunk_bytes
from fedmote_hil.virtual import VirtualDevice

_missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
pytestmark = [pytest.mark.emulator, pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")]

BOARD = Board.load("nrf51822")
CLASSES, SAMPLES = 3, 24
TIMEOUT_S = 90
PACKAGES = 3
Moment = tuple[str, int]


def package_of(version: int) -> Package:
    """One graph with another head each time."""
    graph = random_int8_graph(0)
    features = int(np.prod(graph.activations[graph.output].shape))
    rng = np.random.default_rng(version)
    tensors = {"w": rng.normal(size=(CLASSES, features)).astype(np.float32), "b": rng.normal(size=CLASSES).astype(np.float32)}
    return build_package(None, graph, [HeadLayer("w", "b", features, CLASSES)], tensors, {}, BOARD, "specimen", version)


def plan(package: Package, number: int, attempt: int) -> Message:
    blob = package.device_form()
    return Message.of(
        Kind.PLAN, run=b"powerrun", round=number, attempt=attempt, phase=Phase.DEVICE, version=1, remaining_ms=600_000,
        model_hash=package.hash, model_handle=zlib.crc32(blob), model_size=len(blob), seed=7, epochs=2, batch=8,
        learning_rate_micro=50_000, momentum_micro=900_000, alpha_milli=0, beta_milli=0, gamma_milli=0,
    )  # fmt: skip


@dataclass
class Coordinator:
    """Leads one device through rounds, and resets it at a moment of each.

    A moment is a word and a number: the board is reset behind the so many-th "chunk" that it was sent, "report" that it said or
    "piece" of its update that came.

    Attributes:
        boots: the boot of every hello, in order.
        installed: packages that a hello named, as numbers.
        served: bytes of chunks that the board was sent, round by round.
    """

    server: LinkServer
    device: VirtualDevice
    packages: list[Package]
    boots: list[int] = field(default_factory=list)
    installed: list[int | None] = field(default_factory=list)
    served: list[int] = field(default_factory=list)

    async def say(self, message: Message) -> None:
        await self.server.send("board-1", Channel.COORDINATOR, message)

    async def lead(self, number: int, moment: Moment | None) -> bytes:
        """One round to its end; the update as it came."""
        package = self.packages[number % PACKAGES]
        source = BlobSource(zlib.crc32(package.device_form()), package.device_form())
        counts: Counter[str] = Counter()
        attempt, sink, max_body = 0, None, BOARD.body_max
        self.served.append(0)

        def happens(word: str) -> None:
            counts[word] += 1
            if moment is not None and (word, counts[word]) == moment and not counts["reset"]:
                counts["reset"] += 1
                self.device.reset()

        while True:
            message = (await self.server.receive()).message
            if message.kind is Kind.HELLO:
                if self.boots and message["boot"] != self.boots[-1]:
                    assert message["boot"] > self.boots[-1]
                    attempt, sink = attempt + 1, None
                self.boots.append(message["boot"])
                self.installed.append(self._installed(message))
                max_body = message["max_body"]
                await self.say(plan(package, number, attempt))
            elif message.kind is Kind.GET:
                for chunk in source.answer(message, max_body):
                    await self.say(chunk)
                    self.served[-1] += len(chunk["data"])
                    happens("chunk")
            elif message.kind is Kind.REPORT and message["round"] == number:
                happens("report")
                is_waiting = moment is not None and moment[0] == "report" and attempt == 0  # for the reset
                if message["attempt"] == attempt and sink is None and not is_waiting:
                    sink = BlobSink(message["handle"], message["size"], message["crc"], max_body)
                    for get in sink.start(time.monotonic()):
                        await self.say(get)
            elif message.kind is Kind.DATA and sink is not None:
                answers = sink.accept(message, time.monotonic())
                happens("piece")
                if sink.is_complete and not (counts["reset"] and attempt == 0):
                    await self.say(Message.of(Kind.ACK, handle=message["handle"], run=b"powerrun", round=number))
                    return sink.blob()
                for get in answers:
                    await self.say(get)
            elif message.kind is Kind.REFUSE:  # of a question that met the board after its reset
                assert (message["status"], counts["reset"]) == (Status.STALE_ROUND, 1), message

    def _installed(self, hello: Message) -> int | None:
        if "model_hash" not in hello:
            return None
        return [package.hash for package in self.packages].index(hello["model_hash"])


async def _rounds(moments: list[Moment]) -> tuple[Coordinator, list[bytes], list[bytes]]:
    """Updates of three undisturbed rounds, then those of one round for each moment."""
    packages = [package_of(version) for version in range(PACKAGES)]
    x = random_samples(packages[0].graph, SAMPLES, 8)
    y = np.random.default_rng(8).integers(0, CLASSES, SAMPLES)
    server = LinkServer("tcp://127.0.0.1:0")
    await server.start()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fedmote-power-") as directory,
            VirtualDevice(
                BOARD, "board-1", samples_region(x, y), identity_region("board-1", "lab", "serial"), server.url,
                directory=Path(directory), is_checked=True,
            ) as device,
        ):  # fmt: skip
            coordinator = Coordinator(server, device, packages)
            calm = [await asyncio.wait_for(coordinator.lead(number, None), TIMEOUT_S) for number in range(1, PACKAGES + 1)]
            disturbed = []
            for number, moment in enumerate(moments, PACKAGES + 1):
                try:
                    disturbed.append(await asyncio.wait_for(coordinator.lead(number, moment), TIMEOUT_S))
                except (AssertionError, TimeoutError) as error:
                    raise AssertionError(f"moment {moment}: {error}; the board said: {device.log()}") from error
            return coordinator, calm, disturbed
    finally:
        await server.close()


def check(moments: list[Moment]) -> None:
    coordinator, calm, disturbed = asyncio.run(_rounds(moments))
    for number, (moment, update) in enumerate(zip(moments, disturbed, strict=True), PACKAGES + 1):
        assert update == calm[(number - 1) % PACKAGES], f"moment {moment}"
    window = LIMIT_WINDOW * chunk_bytes(BOARD.body_max)
    sizes = [len(package.device_form()) for package in coordinator.packages]
    for number, (moment, served) in enumerate(zip(moments, coordinator.served[PACKAGES:], strict=True), PACKAGES + 1):
        assert served <= sizes[number % PACKAGES] + window, f"moment {moment}: what was written is fetched once"
    boots = sorted(set(coordinator.boots))
    assert boots == list(range(boots[0], boots[0] + len(moments) + 1)), "every reset was one boot"
    assert coordinator.installed[0] is None
    assert None not in coordinator.installed[1:]
    print(f"{len(moments)} resets of {BOARD.name}, boots {boots[0]} to {boots[-1]}")


def chunks() -> int:
    """Chunks of a package, at least."""
    return -(-len(package_of(0).device_form()) // BOARD.body_max)


def test_an_emulated_part_that_is_reset_keeps_old_or_new_and_finishes() -> None:
    check([("chunk", 1), ("chunk", chunks() // 2), ("chunk", chunks()), ("report", 1), ("report", 2), ("piece", 1)])


@pytest.mark.slow
def test_an_emulated_part_may_be_reset_behind_every_chunk_report_and_piece() -> None:
    features = int(package_of(0).header.feature_count)
    parts = -(-4 * CLASSES * (features + 1) // BOARD.body_max)  # of an update, at least
    pieces = [("piece", number) for number in range(1, parts + 1)]
    check([("chunk", number) for number in range(1, chunks() + 1)] + [("report", number) for number in (1, 2, 3)] + pieces)
