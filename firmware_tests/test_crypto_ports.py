# SPDX-License-Identifier: Apache-2.0
"""The ports of Mbed TLS and of the PSA Crypto API seal and open the bytes that Monocypher's does, and libsodium."""

from __future__ import annotations

import ctypes
import functools
import random
from pathlib import Path

import pytest
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as libsodium_encrypt

from fedmote_hil.build import crypto_sources
from firmware_tests.device_bench import Crypto
from firmware_tests.native import SDK, compile_c

BODY_MAX = 1024
SIZES = [*range(70), 127, 128, 129, 255, 256, 500, 1000, 1023, 1024]
PORTS = ["monocypher", "mbedtls", "psa"]
_TAG = 16


@functools.cache
def library() -> ctypes.CDLL:
    if not Path("/usr/include/mbedtls/chachapoly.h").exists():
        pytest.skip("libmbedtls-dev is not installed")
    folder = crypto_sources()
    if folder is None:
        pytest.skip("Monocypher is not here: python -m fedmote_hil.crypto")
    ports = SDK / "ports"
    sources = [*(path for name in PORTS for path in sorted((ports / name).glob("*.c"))), folder / "monocypher.c"]
    flags = ["-O1", "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover=all", f"-DFEDMOTE_BODY_MAX={BODY_MAX}"]
    flags += [*(f"-I{ports / name}" for name in PORTS), f"-isystem{folder}", "-Wno-error=conversion", "-Wno-error=shadow"]
    lib = ctypes.CDLL(str(compile_c("libcrypto_ports.so", sources, [*flags, "-Wl,--no-as-needed", "-lmbedcrypto"])))
    assert lib.psa_crypto_init() == 0
    return lib


@pytest.fixture(params=PORTS)
def port(request: pytest.FixtureRequest) -> Crypto:
    return Crypto.in_dll(library(), f"{request.param}_crypto")


class Message:
    """A text, what is associated, key and nonce, as random as the seed says."""

    def __init__(self, size: int, associated: int, seed: object) -> None:
        draw = random.Random(f"{size} {associated} {seed}")
        self.text, self.associated, self.key, self.nonce = (draw.randbytes(count) for count in (size, associated, 32, 24))
        sealed = libsodium_encrypt(self.text, self.associated, self.nonce, self.key)
        self.sealed, self.tag = sealed[:-_TAG], sealed[-_TAG:]


def lock(port: Crypto, message: Message) -> tuple[bytes, bytes]:
    """Ciphertext and tag; nothing behind them may change."""
    text = ctypes.create_string_buffer(message.text + b"end", len(message.text) + 3)
    tag = ctypes.create_string_buffer(b"\x55" * (_TAG + 3), _TAG + 3)
    port.lock(text, len(message.text), tag, message.key, message.nonce, message.associated, len(message.associated))
    assert (text.raw[-3:], tag.raw[-3:]) == (b"end", b"\x55" * 3)
    return text.raw[:-3], tag.raw[:-3]


def unlock(port: Crypto, message: Message, sealed: bytes, tag: bytes, associated: bytes | None = None) -> tuple[int, bytes]:
    """Status, and the buffer afterwards."""
    about = message.associated if associated is None else associated
    text = ctypes.create_string_buffer(sealed + b"end", len(sealed) + 3)
    status = port.unlock(text, len(sealed), tag, message.key, message.nonce, about, len(about))
    assert text.raw[-3:] == b"end"
    return status, text.raw[:-3]


@pytest.mark.parametrize("associated", [0, 1, 15, 16, 17, 37, 300])
def test_every_port_seals_and_opens_the_bytes_of_libsodium_in_every_length(port: Crypto, associated: int) -> None:
    for size in SIZES:
        message = Message(size, associated, "lengths")
        assert lock(port, message) == (message.sealed, message.tag), size
        assert unlock(port, message, message.sealed, message.tag) == (0, message.text), size


def test_every_nonce_of_the_protocol_and_random_ones_give_the_same_bytes(port: Crypto) -> None:
    """The first four bytes of a nonce are the counter of the block that makes the subkey."""
    for number in range(300):
        message = Message(40, 20, number)
        if number < 4:
            message.nonce = bytes([number & 1, number >> 1]) + bytes(2) + message.nonce[4:16] + bytes(8)
            sealed = libsodium_encrypt(message.text, message.associated, message.nonce, message.key)
            message.sealed, message.tag = sealed[:-_TAG], sealed[-_TAG:]
        assert lock(port, message) == (message.sealed, message.tag)


def test_every_changed_bit_of_tag_text_and_what_is_associated_is_refused_and_nothing_is_changed(port: Crypto) -> None:
    message = Message(33, 9, "changed")

    def flipped(data: bytes, bit: int) -> bytes:
        return bytes(byte ^ (1 << bit % 8 if at == bit // 8 else 0) for at, byte in enumerate(data))

    for bit in range(8 * _TAG):
        status, left = unlock(port, message, message.sealed, flipped(message.tag, bit))
        assert status != 0
        assert left == message.sealed
    for bit in range(8 * len(message.sealed)):
        sealed = flipped(message.sealed, bit)
        assert (unlock(port, message, sealed, message.tag)[0] != 0, unlock(port, message, sealed, message.tag)[1]) == (
            True,
            sealed,
        )
    for bit in range(8 * len(message.associated)):
        status, left = unlock(port, message, message.sealed, message.tag, flipped(message.associated, bit))
        assert (status != 0, left) == (True, message.sealed)


def test_a_body_that_is_longer_than_any_leaves_the_psa_port_as_zeros() -> None:
    port = Crypto.in_dll(library(), "psa_crypto")
    message = Message(BODY_MAX + 1, 5, "long")
    assert lock(port, message) == (bytes(BODY_MAX + 1), bytes(_TAG))
    status, left = unlock(port, message, message.sealed, message.tag)
    assert (status != 0, left) == (True, message.sealed)
