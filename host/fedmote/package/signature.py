# SPDX-License-Identifier: Apache-2.0
"""Signatures of packages (device_sdk/protocol/SPEC.md, section 12): what a device checks before it erases anything.

The scheme is EdDSA over Curve25519 (RFC 8032) with BLAKE2b-512 in the place of SHA-512, as Monocypher's `crypto_eddsa_check`
has it: a device that has BLAKE2b for the packages' hashes needs no second hash function. Group and scalar arithmetic are
libsodium's, in constant time.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nacl import bindings

from fedmote.errors import ConfigError
from fedmote.package import container
from fedmote.package.plan_check import check_plan
from fedmote.private_files import read_private, write_private
from fedmote.wire.schema import Section

KEY_BYTES: Final = 32
_DOMAIN: Final = b"fedmote package\x01"


@dataclass(frozen=True)
class Statement:
    """What the operator says about a package.

    Attributes:
        package_hash: 32 bytes, `model_hash` of the device form.
        size: bytes of the device form.
        serial: rises with each package that is signed; a device takes none that is older than the one it has.
        operators: opcodes of the plan, bit k for opcode k.
    """

    package_hash: bytes
    size: int
    serial: int
    operators: int

    @classmethod
    def of(cls, package: bytes, serial: int) -> Statement:
        """About a package in device form; PackageError where it is none."""
        return cls(container.hash_of(package), len(package), serial, operator_mask(package))

    def to_bytes(self) -> bytes:
        """The bytes that are signed."""
        numbers = (self.size, self.serial, self.operators)
        return _DOMAIN + self.package_hash + b"".join(number.to_bytes(4, "little") for number in numbers)


@dataclass(frozen=True)
class SigningKey:
    """The operator's secret.

    Attributes:
        seed: 32 secret bytes.
    """

    seed: bytes = field(repr=False)

    @classmethod
    def make(cls, path: Path) -> SigningKey:
        """A new key, written to a file that only its owner may read; ConfigError where there is one already."""
        if path.exists():
            raise ConfigError(f"{path}: there is a key already; devices that know it refuse packages signed with another one")
        key = cls(secrets.token_bytes(KEY_BYTES))
        write_private(path, key.seed.hex() + "\n")
        return key

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """The key in a file; ConfigError where it is none, or others may read it."""
        text = read_private(path).strip()
        try:
            seed = bytes.fromhex(text)
        except ValueError:  # its text would quote the key
            seed = b""
        if len(seed) != KEY_BYTES:
            raise ConfigError(f"{path}: {2 * KEY_BYTES} hexadecimal digits expected, as `fedmote package key` writes them")
        return cls(seed)

    @property
    def verify_key(self) -> bytes:
        """The public key: what devices get at enrolment, 32 bytes."""
        return bindings.crypto_scalarmult_ed25519_base_noclamp(self._scalar)

    def sign(self, statement: Statement) -> bytes:
        """The signature under a statement, 64 bytes; the same statement gives the same."""
        message = statement.to_bytes()
        nonce = _reduced(hashlib.blake2b(self._expanded[KEY_BYTES:] + message).digest())
        point = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
        challenge = _reduced(hashlib.blake2b(point + self.verify_key + message).digest())
        product = bindings.crypto_core_ed25519_scalar_mul(challenge, self._scalar)
        return point + bindings.crypto_core_ed25519_scalar_add(product, nonce)

    @property
    def _expanded(self) -> bytes:
        return hashlib.blake2b(self.seed).digest()

    @property
    def _scalar(self) -> bytes:
        """The secret scalar, clamped as RFC 8032 says, modulo the order of the group."""
        low = bytearray(self._expanded[:KEY_BYTES])
        low[0] &= 0xF8
        low[31] = low[31] & 0x7F | 0x40
        return _reduced(bytes(low) + bytes(KEY_BYTES))


def operator_mask(package: bytes) -> int:
    """Opcodes in the plan of a package, bit k for opcode k; PackageError where it is no package."""
    sections = container.split_sections(package)
    _, records = check_plan(sections[Section.PLAN], sections[Section.WEIGHTS])
    return sum({1 << record.opcode for record in records})


def _reduced(digest: bytes) -> bytes:
    return bindings.crypto_core_ed25519_scalar_reduce(digest)
