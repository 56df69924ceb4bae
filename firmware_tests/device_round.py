# SPDX-License-Identifier: Apache-2.0
"""One round of one virtual device on a package that a conversion made, and what the device says and keeps of it."""

from __future__ import annotations

import asyncio
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmote.package.boards import Board
from fedmote.package.budget import SLOT_END_BYTES
from fedmote.package.file import Package
from fedmote.transport.link import LinkServer
from fedmote.wire.codec import Message
from fedmote.wire.regions import identity_region, samples_region
from fedmote.wire.schema import Channel, Kind, Phase
from fedmote.wire.transfer import BlobSource
from fedmote_hil.virtual import VirtualDevice

TIMEOUT_S = 60
_RECORD = struct.Struct("<4sII")


@dataclass(frozen=True)
class Installed:
    """What a device did with a package.

    Attributes:
        arena_used_bytes: what it said in its report that it used.
        slot: the slot that it wrote, to its end; empty on boards without memory to look into.
    """

    arena_used_bytes: int
    slot: bytes

    @property
    def slot_bytes(self) -> int:
        """Bytes of the slot in use: the package, by the commit record at the end, and that end."""
        magic, _, size = _RECORD.unpack_from(self.slot, len(self.slot) - _RECORD.size - 4)
        assert magic == b"FMCR"
        return size + SLOT_END_BYTES


def install(board: Board, package: Package, x: np.ndarray) -> Installed:
    """Lead a device with samples x int8 (N, input bytes) through one round: it fetches, installs and trains the package."""
    return asyncio.run(asyncio.wait_for(_install(board, package, x), TIMEOUT_S))


def plan_of_a_round(package: Package) -> Message:
    blob = package.device_form()
    return Message.of(
        Kind.PLAN, run=b"accept01", round=1, phase=Phase.DEVICE, version=1, remaining_ms=60_000, model_hash=package.hash,
        model_handle=zlib.crc32(blob), model_size=len(blob), seed=7, epochs=1, batch=16, learning_rate_micro=50_000,
        momentum_micro=900_000, alpha_milli=0, beta_milli=0, gamma_milli=0,
    )  # fmt: skip


async def _install(board: Board, package: Package, x: np.ndarray) -> Installed:
    server = LinkServer("tcp://127.0.0.1:0")
    await server.start()
    regions = samples_region(x, np.zeros(len(x), np.int64)), identity_region("board-1", "lab", "serial")
    source, max_body = BlobSource(zlib.crc32(package.device_form()), package.device_form()), 0
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fedmote-round-") as directory,
            VirtualDevice(board, "board-1", *regions, server.url, directory=Path(directory)) as device,
        ):
            while True:
                message = (await server.receive()).message
                answers = []
                if message.kind is Kind.HELLO:
                    max_body = message["max_body"]
                    answers = [plan_of_a_round(package)]
                elif message.kind is Kind.GET:
                    answers = source.answer(message, max_body)
                elif message.kind is Kind.REPORT:
                    return Installed(message["arena_used_bytes"], _slot(device, Path(directory)))
                assert message.kind is not Kind.REFUSE, message
                for answer in answers:
                    await server.send("board-1", Channel.COORDINATOR, answer)
    finally:
        await server.close()


def _slot(device: VirtualDevice, directory: Path) -> bytes:
    """The slot that holds a package, as the memory of an emulated board has it."""
    board = device.board
    names = [name for name in ("ram_slots", "slot0", "slot1") if name in board.regions and board.emulator is not None]
    if "ram_slots" in names:
        names = ["ram_slots"]
    if not names:
        return b""
    device._child.save(names, directory)  # type: ignore[union-attr]  # it is an emulator's
    memory = b"".join((directory / f"{name}.bin").read_bytes() for name in names)
    slots = [memory[start : start + board.slot_bytes] for start in range(0, 2 * board.slot_bytes, board.slot_bytes)]
    return next(slot for slot in slots if slot[: len(b"FMP1")] == b"FMP1")
