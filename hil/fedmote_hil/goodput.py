# SPDX-License-Identifier: Apache-2.0
"""How fast a bad line carries a package to a device and its update back.

    device, a process ---- Shim: pace, losses ---- LinkServer, Exchange

The device is the SDK's own image; the other side is what the coordinator moves blobs with; messages are sealed with a key. Only
the round around it is written down here: one plan, one report. Times are the device's own events: a package takes from the plan
to its installation, an update from its announcement to its last chunk, so that lost plans cost nothing and lost reports do.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import zlib
from dataclasses import dataclass

import numpy as np

from fedmote.coordinator.exchange import Exchange
from fedmote.errors import DeviceError, DoesNotFitError, RigError
from fedmote.package.boards import Board
from fedmote.package.file import Package
from fedmote.package.specimen import random_samples
from fedmote.transport import Received
from fedmote.transport.link import LinkServer
from fedmote.wire.codec import Message
from fedmote.wire.regions import identity_region, samples_region
from fedmote.wire.schema import Channel, Kind, Phase
from fedmote.wire.seal import KEY_BYTES, EpochEnd, FixedKeys, Seals
from fedmote.wire.transfer import BlobSource, chunk_bytes, handle_of
from fedmote_hil.build import build
from fedmote_hil.models import transfer_package
from fedmote_hil.shim import Impairment, Shim
from fedmote_hil.virtual import VirtualDevice

# Of a UART at 115,200 baud: a start bit and a stop bit beside eight of a byte.
LINE_RATE_BYTES_S = 11_520
PAYLOAD_BYTES = 65_536
# Share of the line's rate that must come through, by share of frames that are lost in each direction.
REQUIRED = {0.0: 0.85, 0.01: 0.60, 0.10: 0.35}

_ID, _RUN, _NUM_SAMPLES = "board-1", b"goodput1", 8
_SLOT_RECORD_BYTES = 16
_POLL_S = 0.005
# Longer than the worst line of the benchmark takes, shorter than patience.
_TIMEOUT_S = 300.0
# Numbers of device_sdk/include/fedmote/fedmote.h.
_EVENT_STATE, _EVENT_PLAN, _EVENT_INSTALLED = 3, 4, 5
_STATE_REPORT = 5


@dataclass(frozen=True)
class Transfer:
    """One blob over one line.

    Attributes:
        direction: "download" of a package, "upload" of an update.
        loss: share of frames that the line loses in each direction.
        seed: of the line.
        payload_bytes: of the blob.
        chunk_bytes: of one frame.
        seconds: that it took.
        share: payload per second, as a part of the line's rate.
        carried_bytes: that the line carried in the blob's direction while the device ran.
    """

    direction: str
    loss: float
    seed: int
    payload_bytes: int
    chunk_bytes: int
    seconds: float
    share: float
    carried_bytes: int


async def measure(
    board: Board,
    line: Impairment,
    seed: int,
    rate_bytes_s: int = LINE_RATE_BYTES_S,
    payload_bytes: int = PAYLOAD_BYTES,
) -> list[Transfer]:
    """One download and one upload over a line that is as bad in both directions.

    Raises:
        DoesNotFitError: the package does not fit the board's slots.
        DeviceError: the device refused, or took more than five minutes.
        RigError: a tool is missing, or the build fails.
    """
    package = transfer_package(board, payload_bytes)
    blob = package.device_form()
    if len(blob) > board.slot_bytes - _SLOT_RECORD_BYTES:
        raise DoesNotFitError(board.name, "slot", len(blob), board.slot_bytes - _SLOT_RECORD_BYTES)
    await asyncio.to_thread(build, board)
    x = random_samples(package.graph, _NUM_SAMPLES, 0).reshape(_NUM_SAMPLES, -1)
    samples = samples_region(x, np.arange(_NUM_SAMPLES) % 10)
    keys = FixedKeys({_ID: os.urandom(KEY_BYTES)})
    seals = Seals(EpochEnd(Channel.COORDINATOR, keys, 1, time.monotonic))
    identity = identity_region(_ID, "lab", "serial", key=keys.key(_ID))
    server = LinkServer("tcp://127.0.0.1:0", seals=seals)
    await server.start()
    try:
        async with Shim(server.url, line, line, rate_bytes_s, seed=seed) as shim:
            with VirtualDevice(board, _ID, samples, identity, shim.url) as device:
                desk = _Desk(server, package, blob)
                watch = asyncio.create_task(_watch(device))
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        upload_bytes, uploaded_at = await desk.run()
                        planned_at, installed_at, ready_at = await watch
                except TimeoutError as error:
                    raise DeviceError(f"board {board.name}: no update within {_TIMEOUT_S:g} s: {device.log()}") from error
                finally:
                    watch.cancel()
                carried = shim.down["bytes"], shim.up["bytes"]
    finally:
        await server.close()
    chunk = chunk_bytes(board.body_max)

    def transfer(direction: str, size: int, seconds: float, carried_bytes: int) -> Transfer:
        return Transfer(direction, line.loss, seed, size, chunk, seconds, size / seconds / rate_bytes_s, carried_bytes)

    return [
        transfer("download", len(blob), installed_at - planned_at, carried[0]),
        transfer("upload", upload_bytes, uploaded_at - ready_at, carried[1]),
    ]


class _Desk:
    """The coordinator's side of one round."""

    def __init__(self, server: LinkServer, package: Package, blob: bytes) -> None:
        self._server = server
        self._exchange = Exchange(max_pulls=1)
        self._source = BlobSource(handle_of(blob), blob, "package")
        self._plan = Message.of(
            Kind.PLAN,
            run=_RUN,
            round=1,
            phase=Phase.DEVICE,
            version=1,
            remaining_ms=int(1000 * _TIMEOUT_S),
            model_hash=package.hash,
            model_handle=zlib.crc32(blob),
            model_size=len(blob),
            seed=7,
            epochs=1,
            batch=8,
            learning_rate_micro=50_000,
            momentum_micro=0,
        )

    async def run(self) -> tuple[int, float]:
        """Until the update is here: its bytes, and when that was."""
        self._exchange.offer([self._source])
        while True:
            received = await self._receive()
            if received is not None and (done := await self._take(received)):
                return done

    async def _receive(self) -> Received | None:
        """The next message; None where it is time to ask again."""
        now = time.monotonic()
        await self._exchange.poll(now)
        wake_s = min(1.0, max(0.001, self._exchange.wake_at() - now))
        try:
            async with asyncio.timeout(wake_s):
                return await self._server.receive()
        except TimeoutError:
            return None

    async def _take(self, received: Received) -> tuple[int, float] | None:
        message, now = received.message, time.monotonic()
        self._exchange.heard(_ID, self._server)
        match message.kind:
            case Kind.HELLO:
                self._exchange.knows(_ID, message["board"], message["max_body"])
                await self._exchange.send(_ID, self._plan)
            case Kind.GET:
                await self._exchange.answer(_ID, message)
            case Kind.REPORT if not self._exchange.is_pulling(_ID, message["handle"]):
                await self._exchange.pull(_ID, message["handle"], message["size"], message["crc"], now)
            case Kind.DATA:
                sink = await self._exchange.accept(_ID, message, now)
                if sink is not None:
                    return len(sink.blob()), now
            case Kind.REFUSE:
                raise DeviceError(f"the device refused: {message}")
        return None


async def _watch(device: VirtualDevice) -> tuple[float, float, float]:
    """When the device had its plan, its package, and its update."""
    wanted = [rf"^{_EVENT_PLAN} ", rf"^{_EVENT_INSTALLED} ", rf"^{_EVENT_STATE} {_STATE_REPORT}$"]
    times: list[float] = []
    while len(times) < len(wanted):
        if re.search(wanted[len(times)], device.log(), re.MULTILINE):
            times.append(time.monotonic())
            continue
        if not device.is_running:
            raise RigError(f"the device ended: {device.log()}")
        await asyncio.sleep(_POLL_S)
    return times[0], times[1], times[2]
