# SPDX-License-Identifier: Apache-2.0
"""Bytes of masked sums: a member's key, what a plan says of it, three blobs (device_sdk/protocol/SPEC.md, section 13).

Layouts and the ring of neighbours alone; what the bytes mean to a sum is `fedmote.privacy.secure_sum`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fedmote.errors import ConfigError, RemoteWireError
from fedmote.wire.schema import Status

GROUP_BYTES: Final = 8
KEY_BYTES: Final = 32
SALT_BYTES: Final = 8
TAG_BYTES: Final = 16
BOX_BYTES: Final = 2 * KEY_BYTES + TAG_BYTES
# Fewer members would hide a single one among too few.
LEAST_MEMBERS: Final = 8
MAX_MEMBERS: Final = 255
MAX_NEIGHBOURS: Final = 8  # the bits of `survivors`

_FORMAT: Final = 1
_KEY_HEAD = struct.Struct("<8sBBBB32s")  # group, own number, n, k, t, secret
_PUBLIC = struct.Struct("<B32s")  # number, public key
_KEYS_HEAD = struct.Struct("<BBH8s32s32s")  # format, own number, zero, salt, X, hash of b
_LIST_HEAD = struct.Struct("<BBH")  # format, k, zero
_PEER = struct.Struct(f"<8s32s{BOX_BYTES}s")  # salt, X, box
_WORD = struct.Struct("<8sfBBHIII")  # group, clip norm, step, survivors, zero, peers: handle, size, CRC


@dataclass(frozen=True)
class Ring:
    """Who is whose neighbour among the members of a group, numbered from 1.

    Attributes:
        num_members: n.
        num_neighbours: k; even, or everybody else.
        threshold: t: so many of a member's neighbours must answer.
        least_members: fewer updates are not summed.

    Raises:
        ConfigError: numbers that protect nothing or cannot work; the message says why.
    """

    num_members: int
    num_neighbours: int
    threshold: int
    least_members: int = LEAST_MEMBERS

    def __post_init__(self) -> None:
        count, near, needed = self.num_members, self.num_neighbours, self.threshold
        if not self.least_members <= count <= MAX_MEMBERS:
            raise ConfigError(f"a group of {count} members: at least {self.least_members} hide one among them, {MAX_MEMBERS} fit")
        if not 1 <= near < count or (near % 2 and near != count - 1) or near > MAX_NEIGHBOURS:
            raise ConfigError(
                f"{near} neighbours in a group of {count}: an even number up to {min(count - 1, MAX_NEIGHBOURS)}, "
                "or all others where they are so few, is expected"
            )
        if not near < 2 * needed <= 2 * near:
            raise ConfigError(
                f"threshold {needed} of {near} neighbours: more than half are needed, or their shares could open an update that "
                "was called lost"
            )

    @classmethod
    def of(cls, num_members: int, threshold: int | None = None) -> Ring:
        """The ring of a group that is made: as many neighbours as there can be; by default more than half must answer."""
        near = min(num_members - 1, MAX_NEIGHBOURS)
        return cls(num_members, near, near // 2 + 1 if threshold is None else threshold)

    def neighbours(self, number: int) -> tuple[int, ...]:
        """Numbers of a member's neighbours, ascending; whoever is one's neighbour has one for a neighbour."""
        count, half = self.num_members, self.num_neighbours // 2
        if self.num_neighbours == count - 1:
            return tuple(other for other in range(1, count + 1) if other != number)
        return tuple(sorted((number - 1 + offset) % count + 1 for offset in range(-half, half + 1) if offset))


@dataclass(frozen=True)
class Membership:
    """Identity key 11: what a member has for life.

    Attributes:
        group: random name of the group, 8 bytes.
        number: its own.
        ring: of the group.
        secret: X25519, 32 bytes; the coordinator never has it.
        publics: public keys of its neighbours, by their numbers.
    """

    group: bytes
    number: int
    ring: Ring
    secret: bytes = field(repr=False)
    publics: Mapping[int, bytes]

    def to_bytes(self) -> bytes:
        """The byte string of the identity."""
        ring = self.ring
        head = (self.group, self.number, ring.num_members, ring.num_neighbours, ring.threshold, self.secret)
        return _KEY_HEAD.pack(*head) + b"".join(_PUBLIC.pack(*item) for item in sorted(self.publics.items()))

    @classmethod
    def read(cls, content: bytes, least_members: int = LEAST_MEMBERS) -> Membership:
        """From the byte string; RemoteWireError where it is none."""
        if len(content) < _KEY_HEAD.size:
            raise RemoteWireError(Status.TRUNCATED, f"{len(content)} bytes of a group's key")
        group, number, count, near, threshold, secret = _KEY_HEAD.unpack_from(content)
        if len(content) != _KEY_HEAD.size + near * _PUBLIC.size:
            raise RemoteWireError(Status.FIELD_RANGE, f"{len(content)} bytes of a group's key with {near} neighbours")
        try:
            ring = Ring(count, near, threshold, least_members)
        except ConfigError as error:
            raise RemoteWireError(Status.FIELD_RANGE, str(error)) from error
        publics = dict(_PUBLIC.iter_unpack(content[_KEY_HEAD.size :]))
        if not 1 <= number <= count or tuple(publics) != ring.neighbours(number):
            raise RemoteWireError(Status.FIELD_RANGE, f"neighbours {tuple(publics)} of member {number} of {count}")
        return cls(group, number, ring, secret, publics)


@dataclass(frozen=True)
class Word:
    """`masking` of a plan.

    Attributes:
        group: its random name, 8 bytes.
        clip_norm: that members cut their updates to.
        step: that is wanted, 1 to 3.
        survivors: bit i: the member's neighbour i, counted from 0, is one.
        peers: handle, size and CRC-32 of the peers blob; zeros before step 2.
    """

    group: bytes
    clip_norm: float
    step: int
    survivors: int = 0
    peers: tuple[int, int, int] = (0, 0, 0)

    def to_bytes(self) -> bytes:
        """The field."""
        return _WORD.pack(self.group, self.clip_norm, self.step, self.survivors, 0, *self.peers)

    @classmethod
    def read(cls, content: bytes) -> Word:
        """From the field; RemoteWireError where it is none."""
        if len(content) != _WORD.size:
            raise RemoteWireError(Status.FIELD_RANGE, f"{len(content)} bytes of masking, {_WORD.size} expected")
        group, clip_norm, step, survivors, zero, *peers = _WORD.unpack(content)
        if not 1 <= step <= 3 or zero:
            raise RemoteWireError(Status.FIELD_RANGE, f"step {step} of masking")
        return cls(group, clip_norm, step, survivors, (peers[0], peers[1], peers[2]))


@dataclass(frozen=True)
class Keys:
    """Blob of step 1.

    Attributes:
        number: whose.
        salt: of its participation, 8 bytes.
        public: X.
        seed_hash: BLAKE2b-256 of b.
        boxes: for its neighbours, in ascending order, 80 bytes each.
    """

    number: int
    salt: bytes
    public: bytes
    seed_hash: bytes
    boxes: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """The blob."""
        return _KEYS_HEAD.pack(_FORMAT, self.number, 0, self.salt, self.public, self.seed_hash) + b"".join(self.boxes)

    @classmethod
    def read(cls, blob: bytes, ring: Ring, number: int) -> Keys:
        """From the blob of member `number`; RemoteWireError where it is none."""
        _require(blob, keys_bytes(ring), "keys")
        form, own, zero, salt, public, seed_hash = _KEYS_HEAD.unpack_from(blob)
        if (form, own, zero) != (_FORMAT, number, 0):
            raise RemoteWireError(Status.FIELD_RANGE, f"keys of format {form} of member {own}; those of {number} are expected")
        return cls(number, salt, public, seed_hash, _split(blob[_KEYS_HEAD.size :], BOX_BYTES))


@dataclass(frozen=True)
class Peer:
    """What a member is told of a neighbour whose keys came: its salt, its X, and its box for this member."""

    salt: bytes
    public: bytes
    box: bytes


def peers_blob(peers: tuple[Peer | None, ...]) -> bytes:
    """The peers blob: one for each neighbour, in ascending order; None where no keys came."""
    entries = (bytes(_PEER.size) if one is None else _PEER.pack(one.salt, one.public, one.box) for one in peers)
    return _LIST_HEAD.pack(_FORMAT, len(peers), 0) + b"".join(entries)


def read_peers(blob: bytes, ring: Ring) -> tuple[Peer | None, ...]:
    """From the peers blob; RemoteWireError where it is none."""
    entries = _listed(blob, ring, _PEER.size, "peers")
    return tuple(Peer(*_PEER.unpack(entry)) if any(entry) else None for entry in entries)


def shares_blob(shares: tuple[bytes | None, ...]) -> bytes:
    """Blob of step 3: one share for each neighbour, in ascending order; None where there is none to give."""
    return _LIST_HEAD.pack(_FORMAT, len(shares), 0) + b"".join(share or bytes(KEY_BYTES) for share in shares)


def read_shares(blob: bytes, ring: Ring) -> tuple[bytes, ...]:
    """From the blob of step 3; RemoteWireError where it is none."""
    return _listed(blob, ring, KEY_BYTES, "shares")


def keys_bytes(ring: Ring) -> int:
    """Size of the blob of step 1."""
    return _KEYS_HEAD.size + ring.num_neighbours * BOX_BYTES


def shares_bytes(ring: Ring) -> int:
    """Size of the blob of step 3."""
    return _LIST_HEAD.size + ring.num_neighbours * KEY_BYTES


def _listed(blob: bytes, ring: Ring, each: int, what: str) -> tuple[bytes, ...]:
    _require(blob, _LIST_HEAD.size + ring.num_neighbours * each, what)
    if (head := _LIST_HEAD.unpack_from(blob)) != (_FORMAT, ring.num_neighbours, 0):
        raise RemoteWireError(Status.FIELD_RANGE, f"{what} of format {head[0]} for {head[1]} neighbours")
    return _split(blob[_LIST_HEAD.size :], each)


def _split(content: bytes, each: int) -> tuple[bytes, ...]:
    return tuple(content[at : at + each] for at in range(0, len(content), each))


def _require(blob: bytes, size: int, what: str) -> None:
    if len(blob) != size:
        raise RemoteWireError(Status.UPDATE_SHAPE, f"{len(blob)} bytes of {what}, {size} expected")
