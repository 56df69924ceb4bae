# SPDX-License-Identifier: Apache-2.0
"""Strict reading of deterministic CBOR (RFC 8949, section 4.2.1).

A library decoder accepts what the protocol refuses (longer forms than needed, indefinite lengths) and allocates by the
lengths that it reads. This reader walks the bytes once, allocates nothing before the bytes are there, and says which of
the schema's statuses is the matter. Writing is left to cbor2, which has the canonical form.
"""

from __future__ import annotations

from enum import IntEnum

from fedmote.errors import RemoteWireError
from fedmote.wire.schema import LIMIT_MAP_DEPTH, Status

_INDEFINITE = 31
_IMMEDIATE = 24  # arguments below it stand in the initial byte
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}


class Major(IntEnum):
    """Major types of CBOR."""

    UINT = 0
    NEGATIVE = 1
    BYTES = 2
    TEXT = 3
    ARRAY = 4
    MAP = 5
    TAG = 6
    SIMPLE = 7


class Reader:
    """A position in bytes that came from somebody else; every method raises RemoteWireError alone."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    @property
    def is_at_end(self) -> bool:
        """Has everything been read?"""
        return self.position == len(self.data)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self.data) - self.position:
            raise RemoteWireError(Status.TRUNCATED, f"{count} bytes expected at {self.position} of {len(self.data)}")
        start, self.position = self.position, self.position + count
        return self.data[start : self.position]

    def head(self) -> tuple[Major, int]:
        """Major type and argument of the next item: value, length, count, tag or simple value."""
        initial = self.take(1)[0]
        major, short = Major(initial >> 5), initial & 0x1F
        if short < _IMMEDIATE:
            return major, short
        if short == _INDEFINITE and major in (Major.BYTES, Major.TEXT, Major.ARRAY, Major.MAP):
            raise RemoteWireError(Status.NOT_DETERMINISTIC, f"indefinite length at {self.position - 1}")
        if short not in _WIDTHS:
            raise RemoteWireError(Status.MALFORMED, f"initial byte 0x{initial:02x} at {self.position - 1}")
        width = _WIDTHS[short]
        argument = int.from_bytes(self.take(width), "big")
        if major is Major.SIMPLE:
            if width == 1 and argument < 32:
                raise RemoteWireError(Status.MALFORMED, f"simple value {argument} in two bytes")
        elif argument < (_IMMEDIATE if width == 1 else 1 << (4 * width)):
            raise RemoteWireError(Status.NOT_DETERMINISTIC, f"{argument} in {width} bytes at {self.position - width}")
        return major, argument

    def map_count(self) -> int:
        """Number of pairs of the map that must come next."""
        major, count = self.head()
        if major is not Major.MAP:
            raise RemoteWireError(Status.MALFORMED, f"a map expected, {major.name.lower()} found")
        return count

    def key(self, previous: int) -> int:
        """The next key of a map of ascending unsigned keys, after `previous` (-1 before the first)."""
        major, key = self.head()
        if major is not Major.UINT:
            raise RemoteWireError(Status.MALFORMED, f"an unsigned key expected, {major.name.lower()} found")
        if key == previous:
            raise RemoteWireError(Status.DUPLICATE_FIELD, f"key {key} comes twice")
        if key < previous:
            raise RemoteWireError(Status.NOT_DETERMINISTIC, f"key {key} after {previous}")
        return key

    def text(self, length: int) -> str:
        """The content of a text of so many bytes."""
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise RemoteWireError(Status.MALFORMED, f"text that is not UTF-8: {error.reason}") from error

    def skip(self, depth: int = LIMIT_MAP_DEPTH) -> None:
        """Pass over one well-formed item, nested at most `depth` deep; its texts are not looked into."""
        major, argument = self.head()
        if major in (Major.BYTES, Major.TEXT):
            self.take(argument)
        elif major in (Major.ARRAY, Major.MAP, Major.TAG):
            if major is not Major.TAG and argument > len(self.data) - self.position:  # every item takes a byte or more
                raise RemoteWireError(Status.TRUNCATED, f"{argument} items expected at {self.position} of {len(self.data)}")
            if depth == 0:
                raise RemoteWireError(Status.MALFORMED, f"nested more than {LIMIT_MAP_DEPTH} deep")
            for _ in range({Major.ARRAY: argument, Major.MAP: 2 * argument}.get(major, 1)):
                self.skip(depth - 1)

    def end(self) -> None:
        """Nothing may follow."""
        if not self.is_at_end:
            raise RemoteWireError(Status.TRAILING, f"{len(self.data) - self.position} bytes after the end")
