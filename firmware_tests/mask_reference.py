# SPDX-License-Identifier: Apache-2.0
"""Masked sums once more, from SPEC.md, section 13, alone: members, their blobs and what a coordinator makes of them.

Nothing of `fedmote.privacy` is used: GF(256) is multiplied bit by bit, and inverses are found by trying.
"""

from __future__ import annotations

import hashlib
import random
import struct
from dataclasses import dataclass
from functools import cache

import cbor2
import numpy as np
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from numpy.typing import NDArray

Words = NDArray[np.uint32]
ZERO_SALT = bytes(8)
NO_NONCE = bytes(24)
PIECE = 256


def derive(key: bytes, purpose: int, a: int, b: int, index: int, run: bytes, number: int, salt: bytes) -> bytes:
    about = b"fedmote masking1" + bytes([purpose, a, b, index]) + run + struct.pack("<I", number) + salt
    assert len(about) == 40
    return hashlib.blake2b(key + about, digest_size=32).digest()


def multiply(a: int, b: int) -> int:
    """In GF(256) modulo 0x11B."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


@cache
def inverse(a: int) -> int:
    return next(b for b in range(256) if multiply(a, b) == 1)


def evaluate(rows: list[bytes], at: int) -> bytes:
    """sum of rows[j] * at^j, byte by byte."""
    total, power = bytes(32), 1
    for row in rows:
        total = bytes(value ^ multiply(byte, power) for value, byte in zip(total, row, strict=True))
        power = multiply(power, at)
    return total


def interpolate(shares: dict[int, bytes]) -> bytes:
    """The value at 0 of the polynomials through these shares."""
    total = bytes(32)
    for at, share in shares.items():
        factor = 1
        for other in shares:
            if other != at:
                factor = multiply(factor, multiply(other, inverse(other ^ at)))
        total = bytes(value ^ multiply(byte, factor) for value, byte in zip(total, share, strict=True))
    return total


def keystream(key: bytes, size: int) -> Words:
    stream = b"".join(
        crypto_aead_xchacha20poly1305_ietf_encrypt(bytes(PIECE), b"", struct.pack("<I", piece) + bytes(20), key)[:PIECE]
        for piece in range(-(-4 * size // PIECE))
    )
    return np.frombuffer(stream, "<u4")[:size].astype(np.uint32)


def quantized(delta: NDArray[np.float32], clip_norm: float, members: int) -> Words:
    """Words of an update (P,), in the arithmetic of the device: float32, in the order of the parameters."""
    square = np.float32(0)
    for value in delta:
        square = np.float32(square + np.float32(value * value))
    bound, most = max(np.sqrt(square), np.float32(clip_norm)), (2**31 - 1) // members
    steps = (delta / bound * np.float32(most)).astype(np.float64)
    assert steps.dtype == np.float64 and delta.dtype == np.float32
    rounded = np.clip(np.trunc(steps + np.copysign(0.5, steps)), -most, most)
    return rounded.astype(np.int64).astype(np.uint32)


@dataclass(frozen=True)
class Member:
    """One member of a group and what its identity holds."""

    group: bytes
    number: int
    members: int
    neighbours: tuple[int, ...]
    threshold: int
    secret: bytes
    publics: dict[int, bytes]

    def identity(self) -> bytes:
        """Identity key 11."""
        head = self.group + bytes([self.number, self.members, len(self.neighbours), self.threshold]) + self.secret
        return head + b"".join(bytes([other]) + self.publics[other] for other in self.neighbours)


def members_of(members: int, neighbours: int, threshold: int, seed: int = 1) -> dict[int, Member]:
    """A group with random secrets, by number."""
    rng = random.Random(seed)
    group, secrets = rng.randbytes(8), {number: rng.randbytes(32) for number in range(1, members + 1)}
    publics = {number: crypto_scalarmult_base(secret) for number, secret in secrets.items()}
    made = {}
    for number in secrets:
        near = {(number - 1 + offset) % members + 1 for half in range(1, neighbours // 2 + 1) for offset in (half, -half)}
        near = near if neighbours % 2 == 0 else set(secrets) - {number}
        ordered = tuple(sorted(near))
        made[number] = Member(group, number, members, ordered, threshold, secrets[number], {one: publics[one] for one in ordered})
    return made


@dataclass(frozen=True)
class Participation:
    """A member in one round, under one salt: everything that it must hand in."""

    member: Member
    run: bytes
    round: int
    salt: bytes

    def _own(self, purpose: int, b: int = 0, index: int = 0) -> bytes:
        me = self.member
        return derive(me.secret, purpose, me.number, b, index, self.run, self.round, self.salt)

    @property
    def mask_secret(self) -> bytes:
        return self._own(1)

    @property
    def seed(self) -> bytes:
        return self._own(2)

    @property
    def public(self) -> bytes:
        return crypto_scalarmult_base(self.mask_secret)

    def share(self, which: int, place: int) -> bytes:
        """Of x (0) or b (1) at a place."""
        coefficients = [self._own(3, which, j) for j in range(1, self.member.threshold)]
        return evaluate([self.seed if which else self.mask_secret, *coefficients], place)

    def box_key(self, sender: int, receiver: int, salt: bytes) -> bytes:
        other = receiver if sender == self.member.number else sender
        shared = crypto_scalarmult(self.member.secret, self.member.publics[other])
        return derive(shared, 4, sender, receiver, 0, self.run, self.round, salt)

    def keys(self) -> bytes:
        """The blob of step 1."""
        me = self.member
        boxes = b""
        for place, other in enumerate(me.neighbours, start=1):
            content = self.share(0, place) + self.share(1, place)
            key = self.box_key(me.number, other, self.salt)
            boxes += crypto_aead_xchacha20poly1305_ietf_encrypt(content, b"", NO_NONCE, key)
        head = bytes([1, me.number, 0, 0]) + self.salt + self.public
        return head + hashlib.blake2b(self.seed, digest_size=32).digest() + boxes

    def pair_mask(self, other: int, public: bytes, size: int) -> Words:
        low, high = sorted((self.member.number, other))
        shared = crypto_scalarmult(self.mask_secret, public)
        return keystream(derive(shared, 5, low, high, 0, self.run, self.round, ZERO_SALT), size)

    def own_mask(self, size: int) -> Words:
        return own_mask(self.seed, self.member.number, self.run, self.round, size)

    def mask(self, publics: dict[int, bytes], size: int) -> Words:
        """All that it adds to its words; X by the numbers of the neighbours whose keys came."""
        total = self.own_mask(size)
        for other, public in publics.items():
            mask = self.pair_mask(other, public, size)
            total = total + mask if self.member.number < other else total - mask
        return total

    def shares(self, peers: bytes, survivors: int) -> bytes:
        """The blob of step 3."""
        me, out = self.member, b""
        for index, other in enumerate(me.neighbours):
            entry = peers[4 + 120 * index :][:120]
            content = bytes(64)
            if any(entry):
                key = self.box_key(other, me.number, entry[:8])
                content = crypto_aead_xchacha20poly1305_ietf_decrypt(entry[40:], b"", NO_NONCE, key)
            out += content[32:] if survivors >> index & 1 else content[:32]
        return bytes([1, len(me.neighbours), 0, 0]) + out


def own_mask(seed: bytes, number: int, run: bytes, round_number: int, size: int) -> Words:
    return keystream(derive(seed, 6, number, 0, 0, run, round_number, ZERO_SALT), size)


def masked_words(blob: bytes) -> Words:
    """The words of a masked update, its form checked."""
    content = cbor2.loads(blob)
    assert cbor2.dumps(content, canonical=True) == blob
    assert (content[1], content[2].tag) == (2, 70)
    return np.frombuffer(content[2].value, "<u4").astype(np.uint32)


@dataclass
class Sum:
    """The coordinator's side of a round: blobs as they come, by member, and what it makes of them."""

    members: dict[int, Member]
    run: bytes
    round: int
    keys: dict[int, bytes]
    masked: dict[int, bytes]
    shares: dict[int, bytes]

    def publics(self, number: int) -> dict[int, bytes]:
        """X of the neighbours of a member whose keys came."""
        return {other: self.keys[other][12:44] for other in self.members[number].neighbours if other in self.keys}

    def peers(self, number: int) -> bytes:
        """The peers blob of a member."""
        out = bytes([1, len(self.members[number].neighbours), 0, 0])
        for other in self.members[number].neighbours:
            if other in self.keys:
                blob, place = self.keys[other], self.members[other].neighbours.index(number)
                out += blob[4:44] + blob[76 + 80 * place :][:80]
            else:
                out += bytes(120)
        return out

    def survivors(self, number: int) -> int:
        return sum(1 << index for index, other in enumerate(self.members[number].neighbours) if other in self.masked)

    def joined(self, number: int) -> bytes:
        """x or b of a member, from the shares that its neighbours gave."""
        me = self.members[number]
        found = {}
        for place, other in enumerate(me.neighbours, start=1):
            if other in self.shares:
                at = self.members[other].neighbours.index(number)
                found[place] = self.shares[other][4 + 32 * at :][:32]
        assert len(found) >= me.threshold, "too few shares"
        return interpolate(dict(list(found.items())[: me.threshold]))

    def total(self) -> Words:
        """The sum of the survivors' words."""
        words = {number: masked_words(blob) for number, blob in self.masked.items()}
        size = len(next(iter(words.values())))
        total = np.zeros(size, np.uint32)
        for number, one in words.items():
            seed = self.joined(number)
            assert hashlib.blake2b(seed, digest_size=32).digest() == self.keys[number][44:76]
            total = total + one - own_mask(seed, number, self.run, self.round, size)
        for number in self.keys.keys() - self.masked.keys():
            secret = self.joined(number)
            assert crypto_scalarmult_base(secret) == self.keys[number][12:44]
            for other in self.members[number].neighbours:
                if other in self.masked:
                    low, high = sorted((number, other))
                    shared = crypto_scalarmult(secret, self.keys[other][12:44])
                    mask = keystream(derive(shared, 5, low, high, 0, self.run, self.round, ZERO_SALT), size)
                    total = total - mask if other < number else total + mask  # what the survivor added
        return total.astype(np.uint32)
