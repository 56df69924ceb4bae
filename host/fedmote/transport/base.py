# SPDX-License-Identifier: Apache-2.0
"""What all transports share: the interface, the bounded inbox, the learnt limits, the way from bytes to messages."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedmote.errors import LocalWireError, RemoteWireError, TransportError
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.schema import LIMIT_BODY_FLOOR, Channel, Kind, Status

log = logging.getLogger(__name__)

INBOX_MESSAGES = 1024  # a source that finds the inbox this full stops reading until it is half empty


@dataclass(frozen=True)
class Received:
    """A message that arrived.

    Attributes:
        id: the participant: who sent it, as the link proves it; for a partner, itself on the coordinator channel and
            the device on the cell channel.
        channel: coordinator or cell.
        message: what it says.
        body: the bytes that it came in.
    """

    id: str
    channel: Channel
    message: Message
    body: bytes = field(default=b"", compare=False, repr=False)


class Transport(Protocol):
    """Moves messages. One reader: `receive` is awaited by one task."""

    async def start(self) -> None:
        """Connect or listen; TransportError where that is hopeless."""

    async def send(self, id: str, channel: Channel, message: Message) -> None:
        """Send towards a participant, or drop and count where it is not connected or does not keep up.

        Raises:
            LocalWireError: the body is larger than the participant takes.
        """

    async def receive(self) -> Received:
        """The next message; TransportError when there will be none any more."""

    async def close(self) -> None:
        """Say farewell and let go of everything. Harmless twice."""

    def set_max_body(self, id: str, max_body: int) -> None:
        """Bytes of the largest body that a participant takes; learnt from its `hello` without being told."""

    @property
    def errors(self) -> Counter[Status]:
        """What arrived and was dropped, by reason."""


class Inbox:
    """Messages that wait for `receive`; sources stop reading while it is full."""

    def __init__(self, limit: int = INBOX_MESSAGES) -> None:
        self._limit = limit
        self._waiting: deque[Received] = deque()
        self._arrived = asyncio.Event()
        self._error: TransportError | None = None
        self._sources: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._is_paused = False

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Name a source's way to stop reading and to go on."""
        self._sources.append((pause, resume))

    @property
    def is_paused(self) -> bool:
        """Should sources not read now? New connections ask before they begin."""
        return self._is_paused

    def put(self, received: Received) -> None:
        """A message for the reader. A source may overshoot the limit by what it has read already."""
        self._waiting.append(received)
        self._arrived.set()
        if len(self._waiting) >= self._limit and not self._is_paused:
            self._is_paused = True
            for pause, _ in self._sources:
                pause()

    def fail(self, error: TransportError) -> None:
        """End it: the reader gets what waits, then the error."""
        self._error = self._error or error
        self._arrived.set()

    async def get(self) -> Received:
        """The oldest message."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        received = self._waiting.popleft()
        if self._is_paused and len(self._waiting) <= self._limit // 2:
            self._is_paused = False
            for _, resume in self._sources:
                resume()
        return received


class Post:
    """The desk between links and messages: opens bodies, seals messages, keeps the limits and the counts.

    Attributes:
        inbox: where opened messages wait.
        errors: what was dropped on arrival, by reason.
        num_dropped: messages that were not sent because nobody was there or did not keep up.
    """

    def __init__(self, inbox: Inbox | None = None) -> None:
        self.inbox = inbox or Inbox()
        self.errors: Counter[Status] = Counter()
        self.num_dropped = 0
        self._max_body: dict[str, int] = {}

    def set_max_body(self, id: str, max_body: int) -> None:
        """See `Transport`."""
        self._max_body[id] = max(max_body, LIMIT_BODY_FLOOR)

    def forget(self, id: str) -> None:
        """Drop what was learnt of a participant that left."""
        self._max_body.pop(id, None)

    def seal(self, id: str, message: Message) -> bytes:
        """The body for a participant; LocalWireError where it would not take it."""
        body = encode(message)
        limit = self._max_body.get(id, LIMIT_BODY_FLOOR)
        if len(body) > limit:
            words = f"{message.kind.name.lower()} of {len(body)} bytes for {id}, which takes {limit}"
            raise LocalWireError(Status.BODY_TOO_LARGE, words)
        return body

    def open(self, id: str, channel: Channel, kind: int, body: bytes) -> Message | None:
        """The message in a body, now in the inbox; None, counted, where it breaks the schema."""
        try:
            message = decode(kind, body)
        except RemoteWireError as error:
            self.reject(id, error.status, str(error))
            return None
        if message.kind is Kind.HELLO:
            self.set_max_body(id, message["max_body"])
        self.inbox.put(Received(id, channel, message, body))
        return message

    def reject(self, id: str, status: Status, words: str) -> None:
        """Count something that arrived and is dropped."""
        self.errors[status] += 1
        log.debug("rejected id=%s status=%s: %s", id, status.name.lower(), words)

    def drop(self, id: str, kind: int) -> None:
        """Count something that could not be sent."""
        self.num_dropped += 1
        log.debug("dropped id=%s kind=%d", id, kind)


def unknown_kind() -> Message:
    """The answer to a message of a kind that we do not know."""
    return Message.of(Kind.REFUSE, status=Status.UNKNOWN_KIND)


def peek_hello(kind: int, body: bytes) -> Message | None:
    """The hello in a body; None where it is none."""
    try:
        return decode(kind, body) if kind == Kind.HELLO else None
    except RemoteWireError:
        return None
