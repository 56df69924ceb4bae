# SPDX-License-Identifier: Apache-2.0
"""Direct links without a broker: a server for many peers over TCP, and one peer on a serial line, pty or TCP.

A peer is known by the `device` of its first hello. Where messages are sealed, its first authentic one proves it. Where
they are not, nothing does: then direct links are for one desk, one cable, one loopback, and the listening address says
who can reach it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from fedmote.errors import TransportError
from fedmote.transport.base import Inbox, Post, Received, peek_hello
from fedmote.transport.stream import FrameStream, open_serial, open_tcp, split_url
from fedmote.wire.codec import Message
from fedmote.wire.frame import Frame
from fedmote.wire.schema import LIMIT_BODY_CEILING, Channel, Kind, Status
from fedmote.wire.seal import Seals

log = logging.getLogger(__name__)

MAX_PEERS = 1024
# A peer says hello at once, and five times more within 31 s where it is not answered: one that does not is none.
HELLO_TIMEOUT_S = 45.0
REOPEN_S = 0.5  # a port that went away is looked for this often


class LinkServer:
    """Many peers over TCP: the coordinator's transport where there is no broker.

    Frames of the cell channel are dropped unopened: they are for the cell's partner and never for the coordinator.

    Args:
        url: `tcp://host:port` to listen at; port 0 takes a free one, `url` says which after `start`.
        max_peers: more connections are closed at once.
        hello_timeout_s: a connection that has not shown whose it is, is closed after this time.
        seals: the keys of the participants; none: messages are not sealed.
    """

    def __init__(
        self,
        url: str,
        max_peers: int = MAX_PEERS,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        seals: Seals | None = None,
    ) -> None:
        _, self._host, self._port = split_url(url)
        self._post = Post(seals=seals)
        self._post.inbox.attach(self._pause, self._resume)
        self._max_peers = max_peers
        self._hello_timeout_s = hello_timeout_s
        self._streams: set[FrameStream] = set()
        self._peers: dict[str, FrameStream] = {}
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"tcp://{self._host}:{self._port}"

    @property
    def peers(self) -> tuple[str, ...]:
        """Who has shown itself, by a hello or by a sealed message, and is still connected."""
        return tuple(self._peers)

    @property
    def errors(self) -> Counter[Status]:
        """See `Transport`; frames that were dropped are among them."""
        return sum((stream.errors for stream in self._streams), self._post.errors.copy())

    @property
    def num_dropped(self) -> int:
        """Messages that could not be sent."""
        return self._post.num_dropped

    def set_max_body(self, id: str, max_body: int) -> None:
        """See `Transport`."""
        self._post.set_max_body(id, max_body)

    async def start(self) -> None:
        """Listen; TransportError where the address is taken."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, self._host, self._port)
        except OSError as error:
            raise TransportError(f"cannot listen at {self.url}: {error.strerror or error}") from error
        self._port = self._server.sockets[0].getsockname()[1]

    async def send(self, id: str, channel: Channel, message: Message) -> None:
        """See `Transport`."""
        body = self._post.seal(id, channel, message)
        stream = self._peers.get(id)
        if body is None or stream is None or not stream.send(channel, message.kind, body):
            self._post.drop(id, message.kind)

    def disconnect(self, id: str) -> None:
        """Close every connection that calls itself by a name."""
        for stream in tuple(self._streams):
            if stream.id == id:
                stream.close()

    async def receive(self) -> Received:
        """See `Transport`."""
        return await self._post.inbox.get()

    async def close(self) -> None:
        """See `Transport`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for stream in tuple(self._streams):
            stream.close()
        self._post.inbox.fail(TransportError(f"{self.url} is closed"))

    def _accept(self) -> FrameStream:
        stream = FrameStream(self._on_frame, self._on_lost)
        self._streams.add(stream)
        loop = asyncio.get_running_loop()
        if len(self._streams) > self._max_peers:
            log.warning("refused a connection: %d peers are here", self._max_peers)
            stream.close()
        else:
            loop.call_later(self._hello_timeout_s, self._expect_hello, stream)
        if self._post.inbox.is_paused:
            stream.pause()
        return stream

    def _expect_hello(self, stream: FrameStream) -> None:
        if not self._is_peer(stream) and not stream.lost.is_set():
            log.warning("closed a connection that did not show whose it is in %g s", self._hello_timeout_s)
            stream.close()

    def _on_frame(self, stream: FrameStream, frame: Frame) -> None:
        if frame.channel is not Channel.COORDINATOR:
            self._post.reject(stream.id or "?", Status.FRAME_CHANNEL, "a frame of the cell channel at the coordinator")
            return
        if not self._is_named(stream, frame):
            return
        if stream.id is None:
            self._post.reject("?", Status.NOT_EXPECTED, f"kind {frame.kind} before hello")
            return

        def reply(kind: Kind, body: bytes) -> None:
            stream.send(frame.channel, kind, body)

        if self._post.open(stream.id, frame.channel, frame.kind, frame.body, reply) is not None:
            self._meet(stream, stream.id)

    def _is_peer(self, stream: FrameStream) -> bool:
        return stream.id is not None and self._peers.get(stream.id) is stream

    def _is_named(self, stream: FrameStream, frame: Frame) -> bool:
        """Learn from its first hello whose a stream says it is; False where it was closed for changing its name."""
        id = hello_id(frame)
        if id is None or stream.id == id:
            return True
        if stream.id is not None:
            self._post.reject(stream.id, Status.NOT_EXPECTED, f"calls itself {id} now")
            stream.close()
            return False
        stream.id = id
        return True

    def _meet(self, stream: FrameStream, id: str) -> None:
        """A stream has shown whose it is: by a message that only this peer can have sealed, or, without keys, by its word.

        A newer stream of the same peer replaces the older one: a rebooted device need not wait for a time-out.
        """
        former = self._peers.get(id)
        self._peers[id] = stream
        if former is not None and former is not stream:
            former.close()

    def _on_lost(self, stream: FrameStream) -> None:
        self._streams.discard(stream)
        self._post.errors += stream.errors
        if stream.id is not None and self._peers.get(stream.id) is stream:
            del self._peers[stream.id]
            self._post.forget(stream.id)

    def _pause(self) -> None:
        for stream in self._streams:
            stream.pause()

    def _resume(self) -> None:
        for stream in self._streams:
            stream.resume()


class SerialLink:
    """One peer on a serial line, a pty or a TCP connection; connected again whenever it was lost.

    Args:
        port: a path such as `/dev/serial/by-id/...` or `/dev/pts/3`; `tcp://host:port` to connect to; or
            `listen://host:port` to wait for a peer that connects to us (the newest one counts; port 0 takes a free one).
        id: the peer, where it is known; otherwise the `device` of its first hello. A hello of another id is dropped.
        inbox: of messages; its own where None.
        baud: of a real port.
        on_frame: takes every frame, unopened, instead of the inbox: the relay's way in.
        on_lost: called whenever the stream was lost.
        seals: the keys; none: messages are not sealed.
    """

    def __init__(
        self,
        port: str,
        id: str | None = None,
        inbox: Inbox | None = None,
        baud: int = 115_200,
        on_frame: Callable[[Frame], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        seals: Seals | None = None,
    ) -> None:
        self.port = port
        self.id = id
        self._baud = baud
        self._post = Post(inbox, seals)
        self._post.inbox.attach(self._pause, self._resume)
        self._is_inbox_own = inbox is None
        self._unopened = on_frame
        self._on_lost_call = on_lost
        self._stream: FrameStream | None = None
        self._is_stranger = False
        self._hello: tuple[Channel, Message | bytes] | None = None
        self._server: asyncio.Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Is there a stream now?"""
        return self._stream is not None

    @property
    def errors(self) -> Counter[Status]:
        """See `Transport`."""
        return self._post.errors + (self._stream.errors if self._stream is not None else Counter())

    @property
    def num_dropped(self) -> int:
        """Messages that could not be sent."""
        return self._post.num_dropped

    def set_max_body(self, id: str, max_body: int) -> None:
        """See `Transport`."""
        self._post.set_max_body(id, max_body)

    async def start(self) -> None:
        """Open the port, and again whenever it goes away; TransportError where the first time fails."""
        if self.port.startswith("listen://"):
            await self._listen()
        else:
            await self._open()
            self._task = asyncio.create_task(self._keep_open(), name=f"keep {self.port} open")

    async def send(self, id: str, channel: Channel, message: Message) -> None:
        """See `Transport`."""
        body = self._post.seal(id, channel, message)
        if body is None or not self.forward(channel, message.kind, body):
            self._post.drop(id, message.kind)
        if message.kind is Kind.HELLO:
            self._hello = (channel, message)

    def forward(self, channel: Channel, kind: int, body: bytes) -> bool:
        """Send a body as it is; False where nobody is there or keeps up.

        The last hello is kept and said again after every loss of the stream, sealed anew where it is our own: the other
        side knows nobody without one.
        """
        if kind == Kind.HELLO:
            self._hello = (channel, body)
            if self.id is not None:  # we are the participant; a coordinator, which says no hello, takes what it asks for
                self._post.set_max_body(self.id, LIMIT_BODY_CEILING)
        return self._stream is not None and self._stream.send(channel, kind, body)

    async def receive(self) -> Received:
        """See `Transport`."""
        return await self._post.inbox.get()

    def deliver(self, frame: Frame) -> None:
        """Open a frame and put its message into the inbox."""
        if self.id is None:
            self._post.reject("?", Status.NOT_EXPECTED, f"kind {frame.kind} before hello")
            return

        def reply(kind: Kind, body: bytes) -> None:
            self.forward(frame.channel, kind, body)

        self._post.open(self.id, frame.channel, frame.kind, frame.body, reply)

    async def close(self) -> None:
        """See `Transport`. An inbox that was given stays open for its other sources."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._stream is not None:
            self._stream.close()
        if self._is_inbox_own:
            self._post.inbox.fail(TransportError(f"{self.port} is closed"))

    async def _listen(self) -> None:
        _, host, port = split_url(self.port)
        try:
            self._server = await asyncio.get_running_loop().create_server(self._take, host, port)
        except OSError as error:
            raise TransportError(f"cannot listen at {self.port}: {error.strerror or error}") from error
        self.port = f"listen://{host}:{self._server.sockets[0].getsockname()[1]}"

    def _take(self) -> FrameStream:
        """A peer connects to us: the newest one counts."""
        former, self._stream = self._stream, self._new_stream()
        if former is not None:
            former.close()
        return self._stream

    async def _open(self) -> None:
        stream = self._new_stream()
        if self.port.startswith("tcp://"):
            await open_tcp(self.port, stream)
        else:
            await open_serial(self.port, self._baud, stream)
        if not stream.lost.is_set():
            self._stream = stream
            self._say_hello_again(stream)

    def _say_hello_again(self, stream: FrameStream) -> None:
        if self._hello is None:
            return
        channel, hello = self._hello
        body = self._post.seal(hello["device"], channel, hello) if isinstance(hello, Message) else hello
        if body is not None:
            stream.send(channel, Kind.HELLO, body)

    async def _keep_open(self) -> None:
        while True:
            if self._stream is not None:
                await self._stream.lost.wait()
                log.warning("lost %s, trying again", self.port)
            await asyncio.sleep(REOPEN_S)
            try:
                await self._open()
                log.info("opened %s again", self.port)
            except TransportError as error:
                log.debug("not yet: %s", error)
            except Exception:  # our bug, or a port of a kind that we do not know: said, and tried again
                log.exception("cannot open %s", self.port)

    def _new_stream(self) -> FrameStream:
        self._is_stranger = False
        stream = FrameStream(self._on_frame, self._on_stream_lost)
        if self._post.inbox.is_paused:
            stream.pause()
        return stream

    def _on_frame(self, stream: FrameStream, frame: Frame) -> None:
        if not self._is_expected(frame):
            return
        if self._unopened is not None:
            self._unopened(frame)
        else:
            self.deliver(frame)

    def _is_expected(self, frame: Frame) -> bool:
        """Is this the peer that we wait for? Another one is not heard until the right one says hello."""
        named = hello_id(frame)
        if named is not None:
            self.id = self.id or named
            self._is_stranger = named != self.id
            if self._is_stranger:
                self._post.reject(named, Status.NOT_EXPECTED, f"{self.id} is expected at {self.port}")
        return not self._is_stranger

    def _on_stream_lost(self, stream: FrameStream) -> None:
        self._post.errors += stream.errors
        if self._stream is stream:
            self._stream = None
            if self._on_lost_call is not None:
                self._on_lost_call()

    def _pause(self) -> None:
        if self._stream is not None:
            self._stream.pause()

    def _resume(self) -> None:
        if self._stream is not None:
            self._stream.resume()


def hello_id(frame: Frame) -> str | None:
    """Who a hello says it is; None where it is no valid hello."""
    message = peek_hello(frame.kind, frame.body)
    return None if message is None else message["device"]
