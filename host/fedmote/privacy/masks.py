# SPDX-License-Identifier: Apache-2.0
"""Keys and keystreams of secure aggregation: X25519, BLAKE2b, XChaCha20-Poly1305, the suite that devices have.

Every key is made for one round and one purpose, by a keyed hash over the round's label, the purpose and the two names; so no
nonce is ever used twice under a key, and all are zero.
"""

from __future__ import annotations

import hashlib

import nacl.bindings
import nacl.exceptions
import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
_NONCE = bytes(nacl.bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES)


def public_key(secret: bytes) -> bytes:
    """The X25519 public key of 32 secret bytes."""
    return nacl.bindings.crypto_scalarmult_base(secret)


def agreed_key(secret: bytes, public: bytes, label: bytes, purpose: str, names: tuple[str, str]) -> bytes:
    """A key that two agree on; the other side, with the same label, purpose and names, has the same.

    Raises:
        ValueError: the public key is none: every secret would agree with it on the same.
    """
    try:
        shared = nacl.bindings.crypto_scalarmult(secret, public)
    except (RuntimeError, TypeError, nacl.exceptions.CryptoError) as error:
        raise ValueError(f"the public key of {names[0]} or {names[1]} is none") from error
    return _derived(shared, label, purpose, names)


def own_key(seed: bytes, label: bytes, name: str) -> bytes:
    """The key of a member's own mask."""
    return _derived(seed, label, "own", (name, name))


def _derived(key: bytes, label: bytes, purpose: str, names: tuple[str, str]) -> bytes:
    text = b"".join(len(part).to_bytes(2, "little") + part for part in (label, *(word.encode() for word in (purpose, *names))))
    return hashlib.blake2b(text, key=key, digest_size=KEY_BYTES).digest()


def keystream(key: bytes, size: int) -> NDArray[np.uint32]:
    """A mask uint32 (size,): the XChaCha20 keystream from block 1 on, little endian."""
    sealed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(bytes(4 * size), None, _NONCE, key)
    return np.frombuffer(sealed, "<u4", size).astype(np.uint32)


def seal(key: bytes, content: bytes) -> bytes:
    """Encrypt and authenticate; the key must be of this content alone."""
    return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(content, None, _NONCE, key)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The content; ValueError where it was changed or is another's."""
    try:
        return nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, None, _NONCE, key)
    except (nacl.exceptions.CryptoError, TypeError) as error:
        raise ValueError("a sealed share was changed, or is another's") from error
