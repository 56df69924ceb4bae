# SPDX-License-Identifier: Apache-2.0
"""Messages and blobs between the coordinator and its participants: who is reached how, what is offered, what is pulled."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.transport import Transport
from fedmote.wire.codec import Message
from fedmote.wire.schema import LIMIT_BODY_FLOOR, Channel, Kind, Status
from fedmote.wire.transfer import BlobSink, BlobSource, body_bytes, unknown_handle

log = logging.getLogger(__name__)

# Bodies that we take: a window of 32 such chunks is a quarter of a megabyte, which a loopback broker takes in its stride.
MAX_BODY = 8 * 1024
_MAX_REASON_BYTES = 64
# A sender of which no new chunk came for so long gives its place to another one, where others wait; at its next turn it begins
# anew.
STALL_S = 5.0


@dataclass
class Peer:
    """What is known of a participant.

    Attributes:
        transport: on which it was heard last; None before it was heard.
        board: as its hello said.
        max_body: bytes of the largest body that it takes.
        base: hash of its installed package, where it makes packages from differences.
        lost: handles of differences that it could not use.
        served: bytes of chunks that it was sent in this round, by what they were of.
    """

    transport: Transport | None = None
    board: str = ""
    max_body: int = LIMIT_BODY_FLOOR
    base: bytes | None = None
    lost: set[int] = field(default_factory=set)
    served: Counter[str] = field(default_factory=Counter)


@dataclass
class _Pull:
    """An update on its way; `heard_at`: when it got on last."""

    sink: BlobSink
    heard_at: float


@dataclass(frozen=True)
class _Waiting:
    """An announced update that waits for a place; `has_stalled`: it had one, and its sender fell silent."""

    handle: int
    size: int
    crc: int | None
    has_stalled: bool = False


class Exchange:
    """The coordinator's desk for messages and blobs. `now` is the coordinator's monotonic time in seconds.

    Args:
        max_pulls: updates that are pulled at once; further ones wait for their turn. So memory for updates is bounded by
            so many of the largest size, and one more while it is checked.
    """

    def __init__(self, max_pulls: int) -> None:
        self.peers: dict[str, Peer] = {}
        self.dropped: Counter[str] = Counter()
        self._max_pulls = max_pulls
        self._sources: dict[int, BlobSource] = {}
        self._pulls: dict[str, _Pull] = {}
        self._waiting: dict[str, _Waiting] = {}

    # ---- peers ------------------------------------------------------------------------------------------------------

    def heard(self, who: str, transport: Transport) -> None:
        """Answers go where the last word came from."""
        peer = self.peers.setdefault(who, Peer())
        if peer.transport is not transport:
            peer.transport = transport
            if peer.max_body > LIMIT_BODY_FLOOR:
                transport.set_max_body(who, peer.max_body)

    def knows(self, who: str, board: str, max_body: int, base: bytes | None = None) -> None:
        """What a hello said, now or before a restart."""
        peer = self.peers.setdefault(who, Peer())
        peer.board, peer.max_body, peer.base = board, max_body, base
        if peer.transport is not None:
            peer.transport.set_max_body(who, max_body)

    async def send(self, who: str, message: Message) -> None:
        """Send a message; one that cannot be sent is dropped and counted, as the network would do."""
        transport = self.peers[who].transport if who in self.peers else None
        if transport is None:
            self.dropped[who] += 1
            return
        try:
            await transport.send(who, Channel.COORDINATOR, message)
        except LocalWireError as error:
            self.dropped[who] += 1
            log.warning("dropped id=%s: %s", who, error)

    async def send_all(self, who: str, messages: Iterable[Message]) -> None:
        """Send messages in order."""
        for message in messages:
            await self.send(who, message)

    # ---- blobs that we offer ----------------------------------------------------------------------------------------

    def offer(self, sources: Iterable[BlobSource]) -> None:
        """Let participants pull these blobs."""
        for source in sources:
            self._sources[source.handle] = source

    def withdraw(self) -> None:
        """Offer nothing any more: the model has changed."""
        self._sources = {}

    def is_offered(self, handle: int) -> bool:
        """Whether a blob of this handle can be pulled."""
        return handle in self._sources

    def name_of(self, handle: int) -> str | None:
        """What the blob of this handle is; None where it cannot be pulled."""
        return self._sources[handle].name if handle in self._sources else None

    def begin_round(self) -> None:
        """Count anew what participants are sent."""
        for peer in self.peers.values():
            peer.served.clear()

    def served(self, who: str) -> dict[str, int]:
        """Bytes that a participant was sent in this round, as numbers of its update: "package_bytes" and the like."""
        return {f"{name}_bytes": size for name, size in sorted(self.peers[who].served.items())}

    async def answer(self, who: str, get: Message) -> None:
        """Answer a request for chunks.

        The receiver chose the chunk by what it takes, so a chunk is also a word about its largest body: after a restart it
        is the first one that is heard.
        """
        source = self._sources.get(get["handle"])
        if source is None:
            await self.send(who, unknown_handle(get))
            return
        peer = self.peers[who]
        needed = body_bytes(get["chunk"])
        if needed > peer.max_body:
            self.knows(who, peer.board, needed, peer.base)
        answers = source.answer(get, peer.max_body)
        peer.served[source.name] += sum(len(answer["data"]) for answer in answers if answer.kind is Kind.DATA)
        await self.send_all(who, answers)

    # ---- blobs that we pull -----------------------------------------------------------------------------------------

    async def pull(self, who: str, handle: int, size: int, crc: int, now: float) -> None:
        """Pull an update, now or when there is a place; the size was checked by the round machine."""
        self.drop(who)
        self._waiting[who] = _Waiting(handle, size, crc)
        await self._begin_waiting(now)

    async def _begin_waiting(self, now: float) -> None:
        """Give free places to those who wait, the first one first."""
        while self._waiting and len(self._pulls) < self._max_pulls:
            who = next(iter(self._waiting))
            waiting = self._waiting.pop(who)
            max_body = min(MAX_BODY, self.peers.get(who, Peer()).max_body)
            sink = BlobSink(waiting.handle, waiting.size, waiting.crc, max_body, max_size=waiting.size)
            self._pulls[who] = _Pull(sink, now)
            await self.send_all(who, sink.start(now))

    def drop(self, who: str) -> None:
        """Forget what was pulled from a participant, or was to be."""
        self._pulls.pop(who, None)
        self._waiting.pop(who, None)

    def waiting(self) -> set[str]:
        """Ids whose updates wait for a place through no fault of theirs."""
        return {who for who, waiting in self._waiting.items() if not waiting.has_stalled}

    def is_pulling(self, who: str, handle: int) -> bool:
        """Whether this blob is on its way, or waits for its turn."""
        known = self._pulls[who].sink.handle if who in self._pulls else None
        return handle in (known, self._waiting[who].handle if who in self._waiting else None)

    async def accept(self, who: str, data: Message, now: float) -> BlobSink | None:
        """Take a chunk; returns the sink when its blob is complete."""
        pull = self._pulls.get(who)
        if pull is None or data["handle"] != pull.sink.handle:
            return None
        before = pull.sink.progress
        await self.send_all(who, pull.sink.accept(data, now))
        if pull.sink.progress > before:
            pull.heard_at = now
        return self._pulls.pop(who).sink if pull.sink.is_complete else None

    async def poll(self, now: float) -> None:
        """Ask again for what did not come; whoever is silent gives its place to those who wait."""
        for who, pull in list(self._pulls.items()):
            if self._waiting and now >= pull.heard_at + STALL_S:
                del self._pulls[who]
                sink = pull.sink
                self._waiting[who] = _Waiting(sink.handle, sink.size, sink.crc, has_stalled=True)
            else:
                await self.send_all(who, pull.sink.poll(now))
        await self._begin_waiting(now)

    def wake_at(self) -> float:
        """When `poll` has something to do."""
        if self._waiting and len(self._pulls) < self._max_pulls:
            return -math.inf
        asks = [pull.sink.wake_at for pull in self._pulls.values() if pull.sink.wake_at is not None]
        stalls = [pull.heard_at + STALL_S for pull in self._pulls.values()] if self._waiting else []
        return min([*asks, *stalls], default=math.inf)


def refuse(status: Status, reason: str, handle: int | None, run: bytes, number: int | None) -> Message:
    """A coded no, its reason cut to what the schema takes."""
    fields: dict[str, int | bytes | str] = {"status": status, "reason": clip(reason)}
    if handle is not None:
        fields["handle"] = handle
    if number is not None:
        fields |= {"run": run, "round": number}
    return Message(Kind.REFUSE, fields)


def clip(text: str) -> str:
    """A text of at most 64 bytes; a character that would be cut in half is left out."""
    return text.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")


def sound_blob(sink: BlobSink) -> bytes | RemoteWireError:
    """The pulled blob, or why it is none."""
    try:
        return sink.blob()
    except RemoteWireError as error:
        return error
