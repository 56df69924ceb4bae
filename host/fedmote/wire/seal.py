# SPDX-License-Identifier: Apache-2.0
"""Sealed messages: encryption, proof of origin, protection against replay (device_sdk/protocol/SPEC.md, section 11).

Two kinds of ends share a key. One has a *boot* number, which only rises: a device, or a partner towards the coordinator.
The other has an *epoch*, which only rises: the coordinator, or a partner towards the devices of its cell.

    BootEnd --- body, boot, sequence, tag ---> EpochEnd
            <-- body, epoch, sequence, tag ---

Nothing here does I/O. What is refused is a `RemoteWireError` with `AUTH`, `REPLAY` or `REVOKED`, and has changed nothing.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as decrypt
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt
from nacl.exceptions import CryptoError

from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.wire.codec import Message, encode
from fedmote.wire.schema import LIMIT_PROTOCOL, LIMIT_SEAL, LIMIT_SEAL_WINDOW, Channel, Kind, Status

KEY_BYTES: Final = 32
_TAG_BYTES: Final = 16
_COUNTERS = struct.Struct("<II")  # boot or epoch, sequence
_NONCE = struct.Struct("<BBHIIIQ")  # direction, channel, zero, epoch, boot, sequence, zero
_MAX_U32: Final = 2**32 - 1
GREETING_EPOCH: Final = 0  # of whoever does not know the epoch
MAX_SILENCE: Final = 3  # messages without an answer before a sender doubts its epoch
# Challenges: so many at once for one peer, and then so many in a second. A device needs one for each of its boots.
CHALLENGE_BURST: Final = 8
CHALLENGES_PER_S: Final = 10.0
# Older boots of a peer in this epoch that are remembered, to tell a second board from a late message.
_MAX_OLD_BOOTS: Final = 8
# Boots between a board's first word under a one-time token and the present one. A new journal begins at random below 2^24, so
# that another board with the same token is that near in one case of 2,000.
TOKEN_BOOTS: Final = 4096
_STRANGER = "others"  # in counts, for ids without a key: whoever invents ids must not grow a table


class Way(IntEnum):
    """Direction of a message."""

    UP = 0
    DOWN = 1


@dataclass(frozen=True)
class Renewal:
    """A key that takes the place of another one, or has taken it.

    Attributes:
        other: 32 bytes: the next key, None where it is not made yet; where `is_used`, the token that it took the place of.
        is_token: the key whose place is taken is a one-time token.
        is_used: the next key has taken its place.
        is_expired: the time of the token is over.
        boot: of the board that the next key was made for; None where it is not made yet.
    """

    other: bytes | None = field(repr=False)
    is_token: bool = True
    is_used: bool = False
    is_expired: bool = False
    boot: int | None = None


class Keys(Protocol):
    """Who has which key."""

    def key(self, id: str) -> bytes | None:
        """32 bytes that are shared with a participant; None: it is unknown, or its key was withdrawn."""

    def is_revoked(self, id: str) -> bool:
        """Was its key withdrawn?"""

    def renewal(self, id: str) -> Renewal | None:
        """How its key is being replaced; None where it is not."""

    def renewed(self, id: str) -> None:
        """It has spoken under its next key, which is its key from now on."""


@dataclass(frozen=True)
class FixedKeys:
    """Keys that do not change while a process runs; nobody is revoked."""

    keys: Mapping[str, bytes] = field(repr=False)

    def key(self, id: str) -> bytes | None:
        """See `Keys`."""
        return self.keys.get(id)

    def is_revoked(self, id: str) -> bool:
        """See `Keys`."""
        return False

    def renewal(self, id: str) -> Renewal | None:
        """See `Keys`."""
        return None

    def renewed(self, id: str) -> None:
        """See `Keys`."""


@dataclass(frozen=True)
class Envelope:
    """What of a sealed message is not its content, but proven with it.

    Attributes:
        way: up or down.
        channel: coordinator or cell.
        id: of the participant; on the cell channel of the device.
        kind: of the message, a number, as a newer peer may know more kinds.
        epoch, boot, sequence: never the same three twice under one key, way and channel.
    """

    way: Way
    channel: Channel
    id: str
    kind: int
    epoch: int
    boot: int
    sequence: int

    def close(self, key: bytes, payload: bytes) -> bytes:
        """The sealed body: a hello stays readable, everything else is encrypted."""
        hidden, shown = (b"", payload) if self.kind == Kind.HELLO else (payload, b"")
        sealed = encrypt(hidden, self._header() + shown, self._nonce(), key)
        counters = _COUNTERS.pack(self.boot if self.way is Way.UP else self.epoch, self.sequence)
        return shown + sealed[:-_TAG_BYTES] + counters + sealed[-_TAG_BYTES:]

    def open(self, key: bytes, body: bytes) -> bytes | None:
        """The content of a body of at least `LIMIT_SEAL` bytes; None where it was not sealed as this says."""
        content, tag = body[:-LIMIT_SEAL], body[-_TAG_BYTES:]
        is_shown = self.kind == Kind.HELLO
        hidden, shown = (tag, content) if is_shown else (content + tag, b"")
        try:
            opened = decrypt(hidden, self._header() + shown, self._nonce(), key)
        except CryptoError:
            return None
        return shown if is_shown else opened

    def _header(self) -> bytes:
        name = self.id.encode()
        return bytes((LIMIT_PROTOCOL, self.kind, self.way, self.channel, len(name))) + name

    def _nonce(self) -> bytes:
        return _NONCE.pack(self.way, self.channel, 0, self.epoch, self.boot, self.sequence, 0)


@dataclass(frozen=True)
class Opened:
    """An authentic message.

    Attributes:
        payload: its body.
        boot: of the participant.
        is_fresh: whether it may be acted on. A greeting, or a message for an earlier epoch, may not: it may be a copy.
        challenge: body of a `wait` that tells the sender the epoch; to be sent back, where there is one.
    """

    payload: bytes
    boot: int
    is_fresh: bool = True
    challenge: bytes | None = None


class Window:
    """Which messages were taken: those of the newest generation (boot or epoch), at most 64 back.

    Attributes:
        generation: the newest one; -1 before the first message.
        newest: its highest sequence.
    """

    def __init__(self) -> None:
        self.generation = -1
        self.newest = -1
        self._tags: dict[int, bytes] = {}

    def take(self, generation: int, sequence: int, tag: bytes) -> bool:
        """Take a message; False where it was taken before, or is too old to tell."""
        if generation < self.generation:
            return False
        if generation > self.generation:
            self.generation, self.newest, self._tags = generation, -1, {}
        if sequence <= self.newest - LIMIT_SEAL_WINDOW or sequence in self._tags:
            return False
        self._tags[sequence] = tag
        if sequence > self.newest:
            self.newest = sequence
            self._tags = {number: one for number, one in self._tags.items() if number > sequence - LIMIT_SEAL_WINDOW}
        return True

    def is_other(self, generation: int, sequence: int, tag: bytes) -> bool:
        """Whether a message of these numbers was taken that is not this one: two senders have the key."""
        return generation == self.generation and self._tags.get(sequence, tag) != tag


class End(Protocol):
    """One end of one channel."""

    def seal(self, id: str, kind: Kind, payload: bytes) -> bytes | None:
        """The sealed body for, or of, a participant; None where it cannot be sealed now: nobody could open it."""

    def open(self, id: str, kind: int, body: bytes) -> Opened:
        """Open a body; RemoteWireError, and nothing has changed, where it is not to be believed."""


class BootEnd:
    """The end that says hello: a device, or a partner at the coordinator.

    Args:
        id: of the participant.
        channel: of the messages.
        key: 32 bytes.
        boot: number of this start; higher than that of every start before.
    """

    def __init__(self, id: str, channel: Channel, key: bytes, boot: int) -> None:
        self._id, self._channel, self._key, self._boot = id, channel, key, boot
        self._window = Window()
        self._next = 0
        self._silence = 0

    def seal(self, id: str, kind: Kind, payload: bytes) -> bytes | None:
        """See `End`."""
        if id != self._id or self._next >= _MAX_U32:
            return None
        is_greeting = kind is not Kind.DATA and self._silence >= MAX_SILENCE
        epoch = GREETING_EPOCH if is_greeting else max(self._window.generation, GREETING_EPOCH)
        body = Envelope(Way.UP, self._channel, id, kind, epoch, self._boot, self._next).close(self._key, payload)
        self._next += 1
        self._silence += kind is not Kind.DATA
        return body

    def open(self, id: str, kind: int, body: bytes) -> Opened:
        """See `End`."""
        epoch, sequence = _counters(body)
        envelope = Envelope(Way.DOWN, self._channel, id, kind, epoch, self._boot, sequence)
        payload = envelope.open(self._key, body) if id == self._id and epoch != GREETING_EPOCH else None
        if payload is None:
            raise RemoteWireError(Status.AUTH, f"kind {kind} for {id} is not sealed with our key")
        if not self._window.take(epoch, sequence, body[-_TAG_BYTES:]):
            raise RemoteWireError(Status.REPLAY, f"kind {kind} for {id} was heard before")
        self._silence = 0
        return Opened(payload, self._boot)


@dataclass
class _Peer:
    """What an `EpochEnd` keeps of one participant."""

    window: Window = field(default_factory=Window)
    next: int = 0
    tokens: float = CHALLENGE_BURST
    refilled_at: float = 0.0
    old_boots: dict[int, int] = field(default_factory=dict)  # newest sequence, by boot
    forgotten_boot: int = -1


class EpochEnd:
    """The end that hears many participants: the coordinator, or a partner towards its cell.

    Args:
        channel: of the messages.
        keys: of the participants.
        epoch: number of this start, at least 1; higher than that of every start before.
        clock: monotonic seconds.
        former: epoch of the start before, whose messages are answered with the present one; 0: there was none.

    Attributes:
        on_refusal: called after a refusal was counted.
    """

    def __init__(self, channel: Channel, keys: Keys, epoch: int, clock: Callable[[], float], former: int = 0) -> None:
        if not GREETING_EPOCH <= former < epoch <= _MAX_U32:
            raise LocalWireError(Status.ARGUMENT, f"epoch {epoch} after {former}")
        self.on_refusal: Callable[[], None] = lambda: None
        self._channel, self._keys, self._epoch, self._clock = channel, keys, epoch, clock
        self._epochs = (epoch, GREETING_EPOCH, former)[: 2 if former == 0 else 3]  # that a message may be for, likeliest first
        self._peers: dict[str, _Peer] = {}
        self._refusals: Counter[tuple[str, Status]] = Counter()
        self._doubles: list[str] = []

    def seal(self, id: str, kind: Kind, payload: bytes) -> bytes | None:
        """See `End`."""
        peer, key = self._peers.get(id), self._keys.key(id)
        if peer is None or key is None or peer.window.generation < 0:
            return None
        return self._close(peer, key, id, peer.window.generation, kind, payload)

    def open(self, id: str, kind: int, body: bytes) -> Opened:
        """See `End`."""
        try:
            return self._open(id, kind, body)
        except RemoteWireError as error:
            self._refusals[id if self._is_known(id) else _STRANGER, error.status] += 1
            self.on_refusal()
            raise

    def take_refusals(self) -> Counter[tuple[str, Status]]:
        """What was refused since the last call, by participant ("others" for ids without a key) and reason."""
        taken, self._refusals = self._refusals, Counter()
        return taken

    def take_doubles(self) -> list[str]:
        """Participants, one entry for each sign since the last call that a second sender has their key."""
        taken, self._doubles = self._doubles, []
        return taken

    def _is_known(self, id: str) -> bool:
        return self._keys.key(id) is not None or self._keys.is_revoked(id)

    def _open(self, id: str, kind: int, body: bytes) -> Opened:
        key = self._keys.key(id)
        if key is None:
            status = Status.REVOKED if self._keys.is_revoked(id) else Status.AUTH
            raise RemoteWireError(status, f"kind {kind} of {id}, which has no key here")
        boot, sequence = _counters(body)
        found = self._unseal(key, id, kind, boot, sequence, body)
        if (renewal := self._keys.renewal(id)) is not None:
            if found is None and renewal.other is not None:
                found = self._unseal(renewal.other, id, kind, boot, sequence, body)
                if found is not None and renewal.is_used:
                    raise RemoteWireError(Status.TOKEN_USED, f"kind {kind} of {id} under a token that was used")
                if found is not None:
                    self._keys.renewed(id)
                    key = renewal.other
                    if self._keys.key(id) != key:  # somebody revoked or rotated it meanwhile
                        raise RemoteWireError(Status.AUTH, f"kind {kind} of {id} under a key that was given up")
            elif found is not None and not renewal.is_used:
                _refuse_token(renewal, id, boot)
        if found is None:
            raise RemoteWireError(Status.AUTH, f"kind {kind} of {id} is not sealed with its key")
        epoch, payload = found
        peer = self._peers.setdefault(id, _Peer())
        if epoch != self._epoch:
            return Opened(payload, boot, is_fresh=False, challenge=self._challenge(peer, key, id, boot))
        tag = body[-_TAG_BYTES:]
        former, former_newest = peer.window.generation, peer.window.newest
        if not peer.window.take(boot, sequence, tag):
            if self._is_second_sender(peer, boot, sequence, tag):
                self._doubles.append(id)
            raise RemoteWireError(Status.REPLAY, f"kind {kind} of {id} was heard before")
        if 0 <= former < boot:
            _remember(peer, former, former_newest)
        return Opened(payload, boot)

    def _unseal(self, key: bytes, id: str, kind: int, boot: int, sequence: int, body: bytes) -> tuple[int, bytes] | None:
        """Epoch and content of a body that is sealed with this key; None where it is not."""
        for epoch in self._epochs:
            payload = Envelope(Way.UP, self._channel, id, kind, epoch, boot, sequence).open(key, body)
            if payload is not None:
                return epoch, payload
        return None

    def _challenge(self, peer: _Peer, key: bytes, id: str, boot: int) -> bytes | None:
        """A `wait` for one boot of a participant; None where it had too many of late."""
        now = self._clock()
        peer.tokens = min(CHALLENGE_BURST, peer.tokens + CHALLENGES_PER_S * (now - peer.refilled_at))
        peer.refilled_at = now
        if peer.tokens < 1:
            return None
        peer.tokens -= 1
        return self._close(peer, key, id, boot, Kind.WAIT, encode(Message.of(Kind.WAIT, wait_ms=0)))

    def _close(self, peer: _Peer, key: bytes, id: str, boot: int, kind: Kind, payload: bytes) -> bytes | None:
        if peer.next >= _MAX_U32:
            return None
        sequence, peer.next = peer.next, peer.next + 1
        return Envelope(Way.DOWN, self._channel, id, kind, self._epoch, boot, sequence).close(key, payload)

    @staticmethod
    def _is_second_sender(peer: _Peer, boot: int, sequence: int, tag: bytes) -> bool:
        """Whether a refused message shows a second board, and is no copy of one that was heard.

        A board knows the epoch only where it was answered in it. So a new message of an older boot comes from a board that
        runs beside the newer one, or was long under way; one alone proves nothing.
        """
        if boot == peer.window.generation:
            return peer.window.is_other(boot, sequence, tag)
        if boot <= peer.forgotten_boot or sequence <= peer.old_boots.get(boot, -1):
            return False
        _remember(peer, boot, sequence)
        return True


@dataclass(frozen=True)
class Seals:
    """Both channels of one process. A channel without an end takes and sends nothing.

    Attributes:
        coordinator: of the coordinator channel.
        cell: of the cell channel.
    """

    coordinator: End | None = None
    cell: End | None = None

    def seal(self, id: str, channel: Channel, kind: Kind, payload: bytes) -> bytes | None:
        """See `End`."""
        end = self._end(channel)
        return None if end is None else end.seal(id, kind, payload)

    def open(self, id: str, channel: Channel, kind: int, body: bytes) -> Opened:
        """See `End`."""
        end = self._end(channel)
        if end is None:
            raise RemoteWireError(Status.AUTH, f"kind {kind} of {id} on a channel without keys")
        return end.open(id, kind, body)

    def _end(self, channel: Channel) -> End | None:
        return self.cell if channel is Channel.CELL else self.coordinator


def _counters(body: bytes) -> tuple[int, int]:
    """Boot or epoch, and sequence, of a sealed body."""
    if len(body) < LIMIT_SEAL:
        raise RemoteWireError(Status.AUTH, f"{len(body)} bytes are no sealed message")
    generation, sequence = _COUNTERS.unpack_from(body, len(body) - LIMIT_SEAL)
    return generation, sequence


def _refuse_token(renewal: Renewal, id: str, boot: int) -> None:
    """A token serves until its time is over, and one board."""
    if renewal.is_expired:
        raise RemoteWireError(Status.TOKEN_EXPIRED, f"the time of {id}'s token is over")
    if renewal.is_token and renewal.boot is not None and abs(boot - renewal.boot) >= TOKEN_BOOTS:
        raise RemoteWireError(Status.TOKEN_USED, f"boot {boot} of {id} under a token that serves a board of boot {renewal.boot}")


def _remember(peer: _Peer, boot: int, newest: int) -> None:
    peer.old_boots[boot] = max(newest, peer.old_boots.get(boot, -1))
    if len(peer.old_boots) > _MAX_OLD_BOOTS:
        peer.forgotten_boot = min(peer.old_boots)
        del peer.old_boots[peer.forgotten_boot]
