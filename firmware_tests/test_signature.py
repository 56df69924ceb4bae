# SPDX-License-Identifier: Apache-2.0
"""Signatures of packages: what the host signs, the device's cryptography takes, and nothing else."""

import ctypes
import functools
import hashlib
from dataclasses import replace

import pytest

from fedmote.package.signature import SigningKey, Statement
from fedmote_hil.build import crypto_sources
from firmware_tests.native import SDK, compile_c

STATEMENT = Statement(hashlib.blake2b(b"package", digest_size=32).digest(), 4096, 7, 0b1110)


@functools.cache
def monocypher() -> ctypes.CDLL:
    folder = crypto_sources()
    if folder is None:
        pytest.skip("Monocypher is not here: python -m fedmote_hil.crypto")
    port = SDK / "ports" / "monocypher"
    flags = ["-O1", "-shared", "-fPIC", f"-I{folder}", f"-I{port}", "-Wno-error"]
    return ctypes.CDLL(str(compile_c("libmonocypher.so", [port / "monocypher_port.c", folder / "monocypher.c"], flags)))


def is_taken(signature: bytes, verify_key: bytes, message: bytes) -> bool:
    return monocypher().monocypher_verify(signature, verify_key, message, ctypes.c_uint32(len(message))) == 0


def key_of(seed: int) -> SigningKey:
    return SigningKey(hashlib.blake2b(bytes([seed]), digest_size=32).digest())


@pytest.mark.parametrize("seed", range(20))
def test_the_device_takes_what_the_host_signs(seed):
    key, statement = key_of(seed), replace(STATEMENT, serial=seed)
    assert is_taken(key.sign(statement), key.verify_key, statement.to_bytes())
    assert key.sign(statement) == key.sign(statement), "a signature is a function of key and statement"


def test_monocypher_derives_the_same_key_and_signature():
    key, message = key_of(1), STATEMENT.to_bytes()
    secret, public, signature = (ctypes.create_string_buffer(size) for size in (64, 32, 64))
    monocypher().crypto_eddsa_key_pair(secret, public, ctypes.create_string_buffer(key.seed, 32))
    monocypher().crypto_eddsa_sign(signature, secret, message, ctypes.c_size_t(len(message)))
    assert key.verify_key == public.raw
    assert key.sign(STATEMENT) == signature.raw


def test_a_change_of_any_bit_is_refused():
    key, message = key_of(2), STATEMENT.to_bytes()
    signature = key.sign(STATEMENT)
    for index in range(64):
        changed = bytearray(signature)
        changed[index] ^= 1 << index % 8
        assert not is_taken(bytes(changed), key.verify_key, message), f"byte {index} of the signature"
    for index in range(len(message)):
        changed = bytearray(message)
        changed[index] ^= 1 << index % 8
        assert not is_taken(signature, key.verify_key, bytes(changed)), f"byte {index} of the statement"
    assert not is_taken(signature, key_of(3).verify_key, message), "another key"
