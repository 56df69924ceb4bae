# SPDX-License-Identifier: Apache-2.0
"""Messages, a private broker, the far end of a serial line, and bounded ways to await."""

from __future__ import annotations

import asyncio
import os
import tty
from types import SimpleNamespace

import pytest

from fedmote.config import CellConfig
from fedmote.transport.broker import PrivateBroker, find_mosquitto
from fedmote.wire.codec import Message, encode
from fedmote.wire.frame import Frame, FrameDecoder, encode_frame
from fedmote.wire.schema import Channel, Kind, Role

SITE = "lab"
CELLS = (CellConfig("one", ("board-1", "board-2"), "phone-1"), CellConfig("two", ("board-3",), "phone-2"))


def hello(id: str, boot: int = 1, max_body: int = 529) -> Message:
    return Message.of(Kind.HELLO, device=id, role=Role.DEVICE, boot=boot, protocol=1, board="posix", sdk="0", max_body=max_body)


def samples(handle: int) -> Message:
    return Message.of(Kind.SAMPLES, handle=handle, run=bytes(8), round=1, size=1, crc=1, count=1, input_bytes=1)


def wait(wait_ms: int) -> Message:
    return Message.of(Kind.WAIT, wait_ms=wait_ms)


def run(coroutine, limit_s: float = 30.0):
    """Run a test's coroutine; a test that hangs fails instead."""
    return asyncio.run(asyncio.wait_for(coroutine, limit_s))


async def soon(awaitable, limit_s: float = 10.0):
    """What must come. The limit is for failing tests alone."""
    return await asyncio.wait_for(awaitable, limit_s)


async def until(condition, limit_s: float = 10.0) -> None:
    """Until something outside of messages is so."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


class FakeDevice:
    """The far end of a serial line: a pty's master. `path` is what a partner opens."""

    def __init__(self, path=None) -> None:
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        os.close(slave)
        os.set_blocking(self._master, False)
        if path is not None:
            path.unlink(missing_ok=True)
            path.symlink_to(self.path)
            self.path = str(path)
        self._decoder = FrameDecoder()
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._sequence = 0
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 4096)
        except OSError:  # nobody has the other end open
            return
        for frame in self._decoder.feed(data):
            self._frames.put_nowait(frame)

    def write(self, data: bytes) -> None:
        os.write(self._master, data)

    def send(self, message: Message, channel: Channel = Channel.COORDINATOR) -> None:
        self.send_body(message.kind, encode(message), channel)

    def send_body(self, kind: int, body: bytes, channel: Channel = Channel.COORDINATOR) -> None:
        self.write(encode_frame(Frame(channel, kind, self._sequence, body)))
        self._sequence += 1

    async def receive(self) -> Frame:
        return await soon(self._frames.get())

    def unplug(self) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@pytest.fixture
def kit() -> SimpleNamespace:
    """The names of this file, because test modules do not import each other."""
    return SimpleNamespace(
        SITE=SITE, CELLS=CELLS, hello=hello, samples=samples, wait=wait, run=run, soon=soon, until=until, FakeDevice=FakeDevice
    )


@pytest.fixture
def broker(tmp_path):
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with PrivateBroker(tmp_path / "broker", SITE, CELLS) as started:
        yield started
