# SPDX-License-Identifier: Apache-2.0
"""An identity for a board that has none, over its serial line (device_sdk/protocol/SPEC.md, section 14)."""

from __future__ import annotations

import asyncio
import contextlib

from fedmote.errors import ConfigError, RemoteWireError, TransportError
from fedmote.transport.stream import FrameStream, open_serial, open_tcp
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.frame import Frame
from fedmote.wire.regions import read_identity_region
from fedmote.wire.schema import LIMIT_PROTOCOL, Channel, Kind, Status
from fedmote.wire.transfer import BlobSource, chunk_bytes, handle_of

NOBODY = "unprovisioned"  # the name in the hellos of a board without an identity
ANSWER_S = 10.0  # a board says something once a second

_REFUSALS = {
    Status.STATE: "its identity region is not erased: erase it with the programmer that flashes the part, then try again",
    Status.SLOT_IO: "it cannot write its identity region: flash the identity image instead",
    Status.SLOT: "its identity region is too small",
}


async def provision(port: str, baud: int, region: bytes, board: str | None = None, answer_s: float = ANSWER_S) -> str:
    """Give a board its identity.

    Args:
        port: path of a serial port or pty, or "tcp://host:port" where one is served there.
        baud: of the port, bit/s.
        region: the identity region.
        board: name of the board that is expected; None: any.
        answer_s: how long is waited for the board's next frame, seconds.

    Returns:
        Name of the board, which has the identity in its flash now.

    Raises:
        ConfigError: the board is another one, has an identity already, or refused this one.
        TransportError: no such port, or no answer.
        RemoteWireError: `region` is no identity region.
    """
    talk = _Talk(region, board)
    stream = FrameStream(talk.on_frame, lambda _: talk.frames.put_nowait(None))
    if "://" in port:
        await open_tcp(port, stream)
    else:
        await open_serial(port, baud, stream)
    try:
        while True:
            try:
                async with asyncio.timeout(answer_s):
                    frame = await talk.frames.get()
            except TimeoutError:
                raise TransportError(f"{port}: {talk.silence(stream)} within {answer_s:g} s") from None
            if frame is None:
                raise TransportError(f"{port}: the line has ended; {talk.standing()}")
            if talk.hear(stream, frame):
                return talk.board
    finally:
        stream.close()


class _Talk:
    """What was said so far."""

    def __init__(self, region: bytes, expected: str | None) -> None:
        self.frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self.board = ""
        self._id = read_identity_region(region).id
        self._source = BlobSource(handle_of(region), region)
        self._expected = expected
        self._max_body = 0
        self._is_sent = False

    def on_frame(self, stream: FrameStream, frame: Frame) -> None:
        """Take a frame; see `FrameStream`."""
        self.frames.put_nowait(frame)

    def standing(self) -> str:
        """How far it came, in words."""
        if self._is_sent:
            return "the identity was sent and not acknowledged: start the board anew and see whether it says who it is"
        return "nothing was written" if self.board else "no board has answered"

    def silence(self, stream: FrameStream) -> str:
        """What a time without frames means, in words."""
        if self.board:
            return f"{self.board} fell silent; {self.standing()}; no answer"
        junk = sum(stream.errors.values())
        hint = "bytes come that are no frames: another baud rate, or a board that speaks MQTT, so has an identity" if junk else ""
        return f"no answer{': ' + hint if hint else ': is it the right port, and the board on and without an identity?'}"

    def hear(self, stream: FrameStream, frame: Frame) -> bool:
        """Answer a frame; True once the board has its identity.

        Raises:
            ConfigError: see `provision`.
        """
        message = None
        with contextlib.suppress(RemoteWireError):  # of another protocol, or sealed: it is told by its kind alone
            message = decode(Kind(frame.kind), frame.body) if frame.kind in set(Kind) else None
        if frame.channel is not Channel.COORDINATOR or message is None:
            self._refuse_sealed(frame)
            return False
        if frame.kind == Kind.HELLO:
            return self._hello(stream, message)
        if message.get("handle") != self._source.handle:
            return False
        if frame.kind == Kind.GET and self._max_body:
            for answer in self._source.answer(message, self._max_body):
                self._send(stream, answer)
        elif frame.kind == Kind.REFUSE:
            raise ConfigError(f"{self.board} refused the identity: {_words(message['status'])}")
        return frame.kind == Kind.ACK

    def _hello(self, stream: FrameStream, hello: Message) -> bool:
        if hello["device"] != NOBODY:
            if self._is_sent and hello["device"] == self._id:
                return True  # its acknowledgement was lost, and it has started under its name
            raise ConfigError(f"the board has an identity already: it is {hello['device']}; erase its identity region first")
        if hello["protocol"] != LIMIT_PROTOCOL:
            raise ConfigError(f"the board speaks protocol {hello['protocol']}, we speak {LIMIT_PROTOCOL}")
        self.board = str(hello["board"])
        if self._expected is not None and self.board != self._expected:
            raise ConfigError(f"the board is a {self.board}, and {self._expected} was expected; nothing was written")
        self._max_body = int(hello["max_body"])
        first = {"handle": self._source.handle, "offset": 0, "chunk": chunk_bytes(self._max_body), "mask": 1}
        for answer in self._source.answer(Message(Kind.GET, first), self._max_body):
            self._send(stream, answer)
        return False

    def _refuse_sealed(self, frame: Frame) -> None:
        """A hello that cannot be read whole is a sealed one: that of a board with keys."""
        if frame.kind == Kind.HELLO and frame.channel is Channel.COORDINATOR:
            raise ConfigError("the board has an identity already: its hello is sealed; erase its identity region first")

    def _send(self, stream: FrameStream, message: Message) -> None:
        stream.send(Channel.COORDINATOR, message.kind, encode(message))
        end = message.get("offset", 0) + len(message.get("data", b""))
        self._is_sent = self._is_sent or end == len(self._source.blob)


def _words(status: int) -> str:
    known = Status(status) if status in set(Status) else None
    if known is None:
        return f"status {status}"
    return _REFUSALS.get(known, f"status {known.name.lower().replace('_', '-')}")
