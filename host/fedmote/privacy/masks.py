# SPDX-License-Identifier: Apache-2.0
"""Keys and keystreams of masked sums: X25519, BLAKE2b, XChaCha20-Poly1305, the suite that devices have.

Every key is made for one purpose of one round and, by its salt, of one participation (device_sdk/protocol/SPEC.md, section 13);
so no nonce is ever used twice under a key.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

import nacl.bindings
import nacl.exceptions
import numpy as np
from numpy.typing import NDArray

from fedmote.wire.masking import KEY_BYTES, SALT_BYTES, TAG_BYTES

Words = NDArray[np.uint32]

_DOMAIN = b"fedmote masking1"
_TEXT = struct.Struct("<16sBBBB8sI8s")  # domain, purpose, a, b, i, run, round, salt
_NONCE_BYTES = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
_ZERO_NONCE = bytes(_NONCE_BYTES)
_PIECE_BYTES = 256


class Purpose(IntEnum):
    """What a key is for."""

    MASK_SECRET = 1
    SEED = 2
    COEFFICIENT = 3
    BOX = 4
    PAIR_MASK = 5
    OWN_MASK = 6


@dataclass(frozen=True)
class Derivation:
    """How keys of one round are made.

    Attributes:
        run: its random name, 8 bytes.
        round: its number.
    """

    run: bytes
    round: int

    def key(self, key: bytes, purpose: Purpose, a: int, b: int = 0, i: int = 0, salt: bytes = bytes(SALT_BYTES)) -> bytes:
        """32 bytes from a key of 32; a, b, i and salt as the table of the protocol says for the purpose."""
        text = _TEXT.pack(_DOMAIN, purpose, a, b, i, self.run, self.round, salt)
        return hashlib.blake2b(key + text, digest_size=KEY_BYTES).digest()


def hash_of(seed: bytes) -> bytes:
    """By which a seed that was put together is known."""
    return hashlib.blake2b(seed, digest_size=KEY_BYTES).digest()


def public_key(secret: bytes) -> bytes:
    """The X25519 public key of 32 secret bytes."""
    return nacl.bindings.crypto_scalarmult_base(secret)


def agreed_key(secret: bytes, public: bytes) -> bytes:
    """What two agree on; the other side has the same.

    Raises:
        ValueError: the public key is none: every secret would agree with it on zeros.
    """
    try:
        return nacl.bindings.crypto_scalarmult(secret, public)
    except (RuntimeError, TypeError, nacl.exceptions.CryptoError) as error:
        raise ValueError("a public key is none") from error


def keystream(key: bytes, size: int) -> Words:
    """A mask uint32 (size,): keystreams of pieces of 256 bytes, each under its number, from 0, as the nonce."""
    pieces = []
    for piece in range(-(-4 * size // _PIECE_BYTES)):
        nonce = piece.to_bytes(4, "little").ljust(_NONCE_BYTES, b"\0")
        sealed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(bytes(_PIECE_BYTES), None, nonce, key)
        pieces.append(sealed[:-TAG_BYTES])
    return np.frombuffer(b"".join(pieces), "<u4", size).astype(np.uint32)


def seal(key: bytes, content: bytes) -> bytes:
    """Encrypt and authenticate; the key must be of this content alone."""
    return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(content, None, _ZERO_NONCE, key)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The content; ValueError where it was changed or is another's."""
    try:
        return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, None, _ZERO_NONCE, key)
    except (nacl.exceptions.CryptoError, TypeError) as error:
        raise ValueError("a box was changed, or is another's") from error
