# SPDX-License-Identifier: Apache-2.0
"""Regions of a board's flash outside the image: samples and identity (device_sdk/protocol/SPEC.md, section 8)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Literal

import cbor2
import numpy as np
from numpy.typing import NDArray

from fedmote.config import Credentials
from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.wire.cbor import Major, Reader
from fedmote.wire.masking import Membership
from fedmote.wire.schema import LIMIT_IDENTIFIER, LIMIT_TEXT, Status
from fedmote.wire.seal import KEY_BYTES

_SAMPLES_HEAD = struct.Struct("<4sIII")  # magic, count, input_bytes, CRC-32 of the rest
_IDENTITY_HEAD = struct.Struct("<4sII")  # magic, size of the CBOR, CRC-32 of it
_SAMPLES_MAGIC = b"FMDS"
_IDENTITY_MAGIC = b"FMID"
_MAX_LABEL = 255

Link = Literal["serial", "mqtt"]
_LINKS: tuple[Link, ...] = ("serial", "mqtt")  # the number of a link is its place here


@dataclass(frozen=True)
class Identity:
    """Who a board is, and what its firmware allows.

    Attributes:
        id, site: 1 to 32 characters of a-z, 0-9 and "-".
        link: "serial" or "mqtt".
        username, password: of the broker, at most 64 bytes; empty for serial boards.
        is_sending_samples: firmware policy: may selected samples leave for the own partner?
        keep_alive_s: MQTT keep-alive, seconds.
        key: 32 bytes that the board shares with the coordinator; none: its messages are not sealed.
        cell_key: 32 bytes that it shares with its partner; none beside a key: it sends no samples.
        verify_key: 32 bytes, public: it takes only packages that the key's owner signed; none: all.
        membership: of a group whose updates are summed under masks; none: it is in none.
    """

    id: str
    site: str
    link: Link
    username: str = ""
    password: str = field(default="", repr=False)
    is_sending_samples: bool = False
    keep_alive_s: int = 30
    key: bytes | None = field(default=None, repr=False)
    cell_key: bytes | None = field(default=None, repr=False)
    verify_key: bytes | None = None
    membership: Membership | None = None


def samples_region(x: NDArray[np.int8], y: NDArray[np.integer]) -> bytes:
    """The region of int8 samples (N, ...), in the encoder's input quantization, and labels (N,) from 0 to 255."""
    if x.dtype != np.int8 or len(x) != len(y) or x.ndim < 2:
        raise LocalWireError(Status.ARGUMENT, f"samples {x.dtype}{x.shape} with {len(y)} labels; int8 (N, ...) expected")
    if len(y) and (y.min() < 0 or y.max() > _MAX_LABEL):
        raise LocalWireError(Status.FIELD_RANGE, f"labels from {y.min()} to {y.max()}; 0 to {_MAX_LABEL} fit")
    flat = np.ascontiguousarray(x).reshape(len(x), int(np.prod(x.shape[1:])))
    labels = y.astype(np.uint8).tobytes()
    rest = labels + bytes(-len(labels) % 4) + flat.tobytes()
    return _SAMPLES_HEAD.pack(_SAMPLES_MAGIC, len(x), flat.shape[1], zlib.crc32(rest)) + rest


def read_samples_region(region: bytes) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Samples int8 (N, input_bytes) and labels uint8 (N,); what follows the region in the flash is ignored."""
    magic, (count, input_bytes, crc) = _unpack(_SAMPLES_HEAD, region)
    if magic != _SAMPLES_MAGIC:
        raise RemoteWireError(Status.MALFORMED, "no samples region here")
    padded = count + -count % 4
    rest = _content(region, _SAMPLES_HEAD.size, padded + count * input_bytes, crc)
    labels = np.frombuffer(rest, np.uint8, count)
    return np.frombuffer(rest, np.int8, offset=padded).reshape(count, input_bytes), labels


def identity_region(
    id: str,
    site: str,
    link: Link,
    username: str = "",
    password: str = "",
    is_sending_samples: bool = False,
    keep_alive_s: int = 30,
    key: bytes | None = None,
    cell_key: bytes | None = None,
    verify_key: bytes | None = None,
    group_key: bytes | None = None,
) -> bytes:
    """The region of an identity; LocalWireError for texts, numbers or keys that do not fit."""
    for name, text, limit in (("id", id, LIMIT_IDENTIFIER), ("site", site, LIMIT_IDENTIFIER)):
        if not 1 <= len(text.encode()) <= limit:
            raise LocalWireError(Status.FIELD_RANGE, f"{name} {text!r} is not 1 to {limit} bytes long")
    for name, text in (("username", username), ("password", password)):
        if len(text.encode()) > LIMIT_TEXT:
            raise LocalWireError(Status.FIELD_RANGE, f"{name} is longer than {LIMIT_TEXT} bytes")
    if link not in _LINKS or not 0 <= keep_alive_s <= 0xFFFF:
        raise LocalWireError(Status.FIELD_RANGE, f"link {link!r}, keep-alive {keep_alive_s} s")
    if key is None and cell_key is not None:
        raise LocalWireError(Status.ARGUMENT, "a cell key without a key: the board could not prove itself to the coordinator")
    if group_key is not None:
        if key is None:
            raise LocalWireError(Status.ARGUMENT, "a group without a key: members need their boots counted")
        Membership.read(group_key)
    keys = {number: one for number, one in ((8, key), (9, cell_key), (10, verify_key)) if one is not None}
    for one in keys.values():
        if len(one) != KEY_BYTES:
            raise LocalWireError(Status.FIELD_RANGE, f"a key has {len(one)} bytes; {KEY_BYTES} expected")
    numbers = {3: _LINKS.index(link), 6: int(is_sending_samples), 7: keep_alive_s}
    groups = {} if group_key is None else {11: group_key}
    body = cbor2.dumps({1: id, 2: site, 4: username, 5: password} | numbers | keys | groups, canonical=True)
    return _IDENTITY_HEAD.pack(_IDENTITY_MAGIC, len(body), zlib.crc32(body)) + body


def credentials_region(credentials: Credentials, link: Link, is_sending_samples: bool) -> bytes:
    """The region of a device's credentials, with what its firmware allows; see `identity_region`."""
    return identity_region(
        credentials.id,
        credentials.site,
        link,
        credentials.username,
        credentials.password,
        is_sending_samples,
        credentials.keep_alive_s,
        credentials.key_bytes,
        credentials.cell_key_bytes,
        credentials.verify_key_bytes,
        credentials.group_key_bytes,
    )


def read_identity_region(region: bytes) -> Identity:
    """The identity in a region; what follows it in the flash is ignored."""
    magic, (size, crc) = _unpack(_IDENTITY_HEAD, region)
    if magic != _IDENTITY_MAGIC:
        raise RemoteWireError(Status.MALFORMED, "no identity region here")
    reader = Reader(_content(region, _IDENTITY_HEAD.size, size, crc))
    items = _read_items(reader)
    try:
        texts = [_text(items[key]) for key in (1, 2, 4, 5)]
        link, is_sending, keep_alive = (_number(items[key]) for key in (3, 6, 7))
        keys = [_key(items[number]) if number in items else None for number in (8, 9, 10)]
    except KeyError as error:
        raise RemoteWireError(Status.MISSING_FIELD, f"key {error} of an identity") from error
    if link >= len(_LINKS) or is_sending > 1:
        raise RemoteWireError(Status.FIELD_RANGE, f"link {link}, is_sending_samples {is_sending}")
    membership = Membership.read(_bytes(items[11])) if 11 in items else None
    return Identity(
        texts[0],
        texts[1],
        _LINKS[link],
        texts[2],
        texts[3],
        bool(is_sending),
        keep_alive,
        key=keys[0],
        cell_key=keys[1],
        verify_key=keys[2],
        membership=membership,
    )


def _unpack(head: struct.Struct, region: bytes) -> tuple[bytes, list[int]]:
    if len(region) < head.size:
        raise RemoteWireError(Status.TRUNCATED, f"{len(region)} bytes are no region")
    magic, *numbers = head.unpack_from(region)
    return magic, numbers


def _content(region: bytes, start: int, size: int, crc: int) -> bytes:
    if len(region) < start + size:
        raise RemoteWireError(Status.TRUNCATED, f"a region of {start + size} bytes in {len(region)}")
    content = region[start : start + size]
    if zlib.crc32(content) != crc:
        raise RemoteWireError(Status.CRC, "the checksum of a region differs")
    return content


Item = int | str | bytes


def _read_items(reader: Reader) -> dict[int, Item]:
    """Numbers and strings by key; keys with anything else are skipped."""
    items: dict[int, Item] = {}
    key = -1
    for _ in range(reader.map_count()):
        key = reader.key(key)
        start = reader.position
        major, argument = reader.head()
        if major is Major.UINT:
            items[key] = argument
        elif major is Major.TEXT:
            items[key] = reader.text(argument)
        elif major is Major.BYTES:
            items[key] = bytes(reader.take(argument))
        else:
            reader.position = start
            reader.skip()
    reader.end()
    return items


def _text(item: Item) -> str:
    if not isinstance(item, str):
        raise RemoteWireError(Status.FIELD_TYPE, "a text expected, something else found")
    return item


def _number(item: Item) -> int:
    if not isinstance(item, int):
        raise RemoteWireError(Status.FIELD_TYPE, "a number expected, something else found")
    return item


def _bytes(item: Item) -> bytes:
    if not isinstance(item, bytes):
        raise RemoteWireError(Status.FIELD_TYPE, "a key expected, something else found")
    return item


def _key(item: Item) -> bytes:
    item = _bytes(item)
    if len(item) != KEY_BYTES:
        raise RemoteWireError(Status.FIELD_RANGE, f"a key of {len(item)} bytes")
    return item
