# SPDX-License-Identifier: Apache-2.0
"""A power cut in the middle of a package's fetch: a native device, a paced line, and what it carries a second time."""

import asyncio
import re
import time

import numpy as np
import pytest

from fedmote.coordinator.exchange import Exchange
from fedmote.package.boards import Board
from fedmote.package.specimen import random_samples
from fedmote.transport.link import LinkServer
from fedmote.wire.codec import Message
from fedmote.wire.regions import identity_region, samples_region
from fedmote.wire.schema import LIMIT_WINDOW, Kind, Phase
from fedmote.wire.transfer import BlobSource, chunk_bytes, handle_of
from fedmote_hil.models import transfer_package
from fedmote_hil.shim import Impairment, Shim
from fedmote_hil.virtual import VirtualDevice

BOARD = Board.load("posix")
RATE_BYTES_S = 46_080
TIMEOUT_S = 120.0
INSTALLED, RESUMED = 5, 15  # events of device_sdk/include/fedmote/fedmote.h


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_package_goes_on_after_a_power_cut_and_no_more_than_a_window_comes_twice(share):
    package = transfer_package(BOARD, 100_000)
    blob = package.device_form()
    window = LIMIT_WINDOW * chunk_bytes(BOARD.body_max)
    assert len(blob) > 2 * window
    x = random_samples(package.graph, 8, 0).reshape(8, -1)
    plan = {
        "run": b"resuming", "round": 1, "phase": Phase.DEVICE, "version": 1, "remaining_ms": 600_000, "model_hash": package.hash,
        "model_handle": handle_of(blob), "model_size": len(blob), "seed": 7, "epochs": 1, "batch": 8,
        "learning_rate_micro": 50_000, "momentum_micro": 0,
    }  # fmt: skip

    async def lead(server, device):
        exchange, attempt, is_cut = Exchange(1), 0, False
        exchange.offer([BlobSource(handle_of(blob), blob, "package")])
        while True:
            received = await server.receive()
            message = received.message
            exchange.heard("board-1", server)
            if message.kind is Kind.HELLO:
                attempt += 1
                exchange.knows("board-1", message["board"], message["max_body"])
                await exchange.send("board-1", Message.of(Kind.PLAN, attempt=attempt, **plan))
            elif message.kind is Kind.GET:
                await exchange.answer("board-1", message)
                if not is_cut and message["offset"] + window > share * len(blob):
                    is_cut = True
                    await asyncio.sleep(0.3 * window / RATE_BYTES_S)  # in the middle of that window
                    await asyncio.to_thread(device.restart)
            elif message.kind is Kind.REPORT:
                return exchange.served("board-1")["package_bytes"]

    async def run():
        server = LinkServer("tcp://127.0.0.1:0")
        await server.start()
        line = Impairment()
        identity = identity_region("board-1", "lab", "serial")
        try:
            async with Shim(server.url, line, line, RATE_BYTES_S, seed=1) as shim:
                samples = samples_region(x, np.arange(8) % 10)
                with VirtualDevice(BOARD, "board-1", samples, identity, shim.url) as device:
                    served = await asyncio.wait_for(lead(server, device), TIMEOUT_S)
                    return served, device.log()
        finally:
            await server.close()

    began = time.monotonic()
    served, log = asyncio.run(run())
    print(f"{served - len(blob)} of {len(blob)} bytes sent again, {time.monotonic() - began:.1f} s")
    offsets = [int(value) for value in re.findall(rf"^{RESUMED} (\d+)$", log, re.MULTILINE)]
    assert len(offsets) == 1
    assert offsets[0] % window == 0
    assert len(re.findall(rf"^{INSTALLED} ", log, re.MULTILINE)) == 1
    assert 0 < served - len(blob) <= window
