# SPDX-License-Identifier: Apache-2.0
"""The `.fmp` container: header, checksum, hash and section table (protocol/SPEC.md, section 7).

Checks and their order are those of `fedmote_package_open` in `device_sdk/src/package.c`, with the same statuses, so that what the
host accepts the device accepts.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping
from typing import Final

from fedmote.errors import PackageError
from fedmote.wire.schema import Section, Status

MAGIC: Final = b"FMP1"
FORMAT: Final = 2
HEADER_BYTES: Final = 48
HASH_BYTES: Final = 32
HOST_SECTIONS: Final = 128  # sections from this type on stay on the host
REQUIRED: Final = (Section.MANIFEST, Section.PLAN, Section.WEIGHTS, Section.HEAD)
_ENTRY = struct.Struct("<4I")
_HASH_START: Final = 16


def join_sections(sections: Mapping[int, bytes]) -> bytes:
    """The file of these sections, in ascending order of their types."""
    start = HEADER_BYTES + _ENTRY.size * len(sections)
    table, body = b"", b""
    for kind in sorted(sections):
        table += _ENTRY.pack(kind, start + len(body), len(sections[kind]), 0)
        body += sections[kind] + bytes(-len(sections[kind]) % 16)
    return seal(table + body, len(sections))


def seal(rest: bytes, section_count: int) -> bytes:
    """Puts the header with its hash and checksum before the section table and the sections."""
    head = MAGIC + struct.pack("<HHI", FORMAT, section_count, HEADER_BYTES + len(rest))
    digest = package_hash(head, rest)
    return head + struct.pack("<I", zlib.crc32(rest, zlib.crc32(digest, zlib.crc32(head)))) + digest + rest


def package_hash(head: bytes, rest: bytes) -> bytes:
    """BLAKE2b-256 of the header's first 12 bytes and everything from byte 48 on."""
    return hashlib.blake2b(head + rest, digest_size=HASH_BYTES).digest()


def hash_of(package: bytes) -> bytes:
    """The hash in a package's header: the `model_hash` of a device form."""
    return package[_HASH_START:HEADER_BYTES]


def split_sections(data: bytes) -> dict[int, bytes]:
    """Checks the container and takes it apart.

    Args:
        data: a package; bytes behind its own size are ignored, as in a slot.

    Raises:
        PackageError: with the status that a device would give.
    """
    return {kind: data[start:end] for kind, (start, end) in section_spans(data).items()}


def section_spans(data: bytes) -> dict[int, tuple[int, int]]:
    """Checks the container and says where each section begins and ends; see `split_sections`."""
    size, count = _check_header(data)
    data = data[:size]
    (crc,) = struct.unpack_from("<I", data, 12)
    expected = zlib.crc32(data[_HASH_START:], zlib.crc32(data[:12]))
    if crc != expected:
        raise PackageError(f"checksum {crc:08x} at byte 12, expected {expected:08x}: the file is damaged", Status.PACKAGE_CRC)
    found, digest = data[_HASH_START:HEADER_BYTES], package_hash(data[:12], data[HEADER_BYTES:])
    if found != digest:
        words = f"hash {found.hex()[:8]}... at byte {_HASH_START}, expected {digest.hex()[:8]}...: the file was changed"
        raise PackageError(words, Status.PACKAGE_HASH)
    return _read_table(data, count)


def _check_header(data: bytes) -> tuple[int, int]:
    """Size of the package and number of its sections."""
    if len(data) < HEADER_BYTES:
        raise PackageError(f"{len(data)} bytes are no package: its header has {HEADER_BYTES}", Status.PACKAGE_SIZE)
    if data[:4] != MAGIC:
        raise PackageError(f"no package: it begins with {data[:4]!r}, not {MAGIC!r}", Status.PACKAGE_MAGIC)
    form, count, size = struct.unpack_from("<HHI", data, 4)
    if form != FORMAT:
        raise PackageError(f"package format {form}, this version reads {FORMAT}", Status.PACKAGE_VERSION)
    if size > len(data) or size < HEADER_BYTES or size % 16:
        raise PackageError(f"the file has {len(data)} bytes, its header expects {size}", Status.PACKAGE_SIZE)
    return size, count


def _read_table(data: bytes, count: int) -> dict[int, tuple[int, int]]:
    end = HEADER_BYTES + _ENTRY.size * count
    if end > len(data):
        raise PackageError(f"a table of {count} sections does not fit the file", Status.PACKAGE_SECTION)
    sections: dict[int, tuple[int, int]] = {}
    is_doubled = False
    for index in range(count):
        kind, offset, size, reserved = _ENTRY.unpack_from(data, HEADER_BYTES + _ENTRY.size * index)
        is_misplaced = offset % 16 or offset < end or offset > len(data) or size > len(data) - offset
        if is_misplaced or reserved or (kind in REQUIRED and kind in sections):
            raise PackageError(f"section {kind} is doubled, misplaced or misaligned", Status.PACKAGE_SECTION)
        is_doubled |= kind in sections
        end = offset + size
        sections[kind] = (offset, end)
    missing = [kind.name.lower() for kind in REQUIRED if kind not in sections]
    if missing:
        raise PackageError(f"sections are missing: {', '.join(missing)}", Status.PACKAGE_SECTION)
    if is_doubled:  # a device does not look at sections that it does not need
        raise PackageError("a section of the host is doubled", Status.PACKAGE_SECTION)
    return sections
