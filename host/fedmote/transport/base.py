# SPDX-License-Identifier: Apache-2.0
"""What all transports share: the interface, the bounded inbox, the learnt limits, the way from bytes to messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedmote.errors import LocalWireError, RemoteWireError, TransportError
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.schema import LIMIT_BODY_FLOOR, LIMIT_SEAL, Channel, Kind, Status
from fedmote.wire.seal import Opened, Seals

log = logging.getLogger(__name__)

# Sends a body straight back to where something came from.
Reply = Callable[[Kind, bytes], None]

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

    Args:
        inbox: of messages, where several sources share one.
        seals: the keys; none: whoever reaches the link is believed.

    Attributes:
        inbox: where opened messages wait.
        errors: what was dropped on arrival, by reason.
        num_dropped: messages that were not sent because nobody was there or did not keep up.
    """

    def __init__(self, inbox: Inbox | None = None, seals: Seals | None = None) -> None:
        self.inbox = inbox or Inbox()
        self._seals = seals
        self.errors: Counter[Status] = Counter()
        self.num_dropped = 0
        self._max_body: dict[str, int] = {}

    def set_max_body(self, id: str, max_body: int) -> None:
        """See `Transport`."""
        self._max_body[id] = max(max_body, LIMIT_BODY_FLOOR)

    def forget(self, id: str) -> None:
        """Drop what was learnt of a participant that left."""
        self._max_body.pop(id, None)

    @property
    def is_sealed(self) -> bool:
        """Do messages prove who they come from?"""
        return self._seals is not None

    def seal(self, id: str, channel: Channel, message: Message) -> bytes | None:
        """The body for a participant; None where it cannot be sealed for it now.

        Raises:
            LocalWireError: it is larger than the participant takes.
        """
        body = encode(message)
        limit = self._max_body.get(id, LIMIT_BODY_FLOOR)
        size = len(body) + (LIMIT_SEAL if self.is_sealed else 0)
        if size > limit:
            words = f"{message.kind.name.lower()} of {size} bytes for {id}, which takes {limit}"
            raise LocalWireError(Status.BODY_TOO_LARGE, words)
        return body if self._seals is None else self._seals.seal(id, channel, message.kind, body)

    def open(self, id: str, channel: Channel, kind: int, body: bytes, reply: Reply) -> Message | None:
        """The message in a body, now in the inbox; None, counted, where it is not to be believed or breaks the schema.

        A message of a kind that we do not know is answered with a refusal; a sender that does not know our epoch is told
        it, and nothing else comes of what it said.
        """
        try:
            opened = self._opened(id, channel, kind, body)
            if opened is not None and not opened.is_fresh:
                if opened.challenge is not None:
                    reply(Kind.WAIT, opened.challenge)
                return None
            message = decode(kind, body if opened is None else opened.payload)
            if opened is not None and message.kind is Kind.HELLO and message["boot"] != opened.boot:
                raise RemoteWireError(Status.AUTH, f"hello of boot {message['boot']}, sealed in boot {opened.boot}")
        except RemoteWireError as error:
            self.reject(id, error.status, str(error))
            if error.status is Status.UNKNOWN_KIND and (refusal := self.seal(id, channel, unknown_kind())) is not None:
                reply(Kind.REFUSE, refusal)
            return None
        if message.kind is Kind.HELLO:
            self.set_max_body(id, message["max_body"])
        self.inbox.put(Received(id, channel, message, body))
        return message

    def inform(self, id: str, body: bytes) -> None:
        """Take a state, which a broker keeps and says in its owner's name: it is never sealed, and believed nothing."""
        try:
            self.inbox.put(Received(id, Channel.COORDINATOR, decode(Kind.STATE, body), body))
        except RemoteWireError as error:
            self.reject(id, error.status, str(error))

    def _opened(self, id: str, channel: Channel, kind: int, body: bytes) -> Opened | None:
        """What was sealed; None without keys."""
        return None if self._seals is None else self._seals.open(id, channel, kind, body)

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
    """The hello in a body, sealed or not; None where it is none. A seal is not opened: it proves nothing."""
    for content in (body, body[:-LIMIT_SEAL]) if kind == Kind.HELLO else ():
        with contextlib.suppress(RemoteWireError):
            return decode(kind, content)
    return None
