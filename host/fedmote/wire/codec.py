# SPDX-License-Identifier: Apache-2.0
"""Messages and their CBOR bodies, by the tables of the schema (device_sdk/protocol/SPEC.md, section 1).

body = encode(Message.of(Kind.WAIT, wait_ms=500))
message = decode(kind, body)        # RemoteWireError for everything that the schema forbids
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar, overload

import cbor2

from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.wire.cbor import Major, Reader
from fedmote.wire.schema import FIELDS, LIMIT_BODY_CEILING, MESSAGES, BytesField, FieldRule, Kind, NumberField, Status, TextField

Value = int | bytes | str
Default = TypeVar("Default")

_MAJORS = {int: Major.UINT, bytes: Major.BYTES, str: Major.TEXT}
_NAMES = {rule.key: name for name, rule in FIELDS.items()}


@dataclass(frozen=True)
class Message:
    """A kind and its fields, by name; valid from the moment it exists.

    The type of `message["round"]` is that of the schema: int, bytes or str.

    Raises:
        LocalWireError: a field is unknown to the kind, missing, of a wrong type or out of range.
    """

    kind: Kind
    fields: Mapping[str, Value]

    def __post_init__(self) -> None:
        values = {name: _plain(value) for name, value in self.fields.items()}
        _check(self.kind, values)
        object.__setattr__(self, "fields", MappingProxyType(values))

    @classmethod
    def of(cls, kind: Kind, **fields: Value) -> Message:
        """A message from keyword arguments."""
        return cls(kind, fields)

    @overload
    def __getitem__(self, name: NumberField) -> int: ...
    @overload
    def __getitem__(self, name: BytesField) -> bytes: ...
    @overload
    def __getitem__(self, name: TextField) -> str: ...
    def __getitem__(self, name: str) -> Value:
        """A field that must be there; KeyError otherwise."""
        return self.fields[name]

    @overload
    def get(self, name: NumberField) -> int | None: ...
    @overload
    def get(self, name: BytesField) -> bytes | None: ...
    @overload
    def get(self, name: TextField) -> str | None: ...
    @overload
    def get(self, name: NumberField, default: Default) -> int | Default: ...
    @overload
    def get(self, name: BytesField, default: Default) -> bytes | Default: ...
    @overload
    def get(self, name: TextField, default: Default) -> str | Default: ...
    def get(self, name: str, default: object = None) -> object:
        """A field, or the default where the message has none."""
        return self.fields.get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def __str__(self) -> str:
        shown = (f"{name}={_short(value)}" for name, value in self.fields.items())
        return f"{self.kind.name.lower()}({', '.join(shown)})"


def encode(message: Message) -> bytes:
    """The body of a message: a CBOR map in deterministic encoding."""
    body = cbor2.dumps({FIELDS[name].key: value for name, value in message.fields.items()}, canonical=True)
    if len(body) > LIMIT_BODY_CEILING:
        raise LocalWireError(Status.BODY_TOO_LARGE, f"{message.kind.name.lower()} has {len(body)} bytes")
    return body


def decode(kind: int, body: bytes) -> Message:
    """The message of a body that came from somebody else.

    Fields that this kind does not list are skipped where they are well formed.

    Raises:
        RemoteWireError: with the status, and in the order of checks, of SPEC section 1.
    """
    try:
        known = Kind(kind)
    except ValueError as error:
        raise RemoteWireError(Status.UNKNOWN_KIND, f"kind {kind}") from error
    if len(body) > LIMIT_BODY_CEILING:
        raise RemoteWireError(Status.BODY_TOO_LARGE, f"{len(body)} bytes, {LIMIT_BODY_CEILING} at most")
    fields = _read_fields(known, Reader(body))
    for name, is_required in MESSAGES[known].items():
        if is_required and name not in fields:
            raise RemoteWireError(Status.MISSING_FIELD, f"{known.name.lower()} without {name}")
    return Message(known, fields)


def _read_fields(kind: Kind, reader: Reader) -> dict[str, Value]:
    listed = MESSAGES[kind]
    fields: dict[str, Value] = {}
    key = -1
    pairs = reader.map_count()
    while pairs > 0:
        key = reader.key(key)
        name = _NAMES.get(key)
        if name is None or name not in listed:
            reader.skip()
        else:
            fields[name] = _read_value(f"{name} of {kind.name.lower()}", FIELDS[name], reader)
        pairs -= 1
    reader.end()
    return fields


def _read_value(name: str, rule: FieldRule, reader: Reader) -> Value:
    """The value of a field: type, then presence of its bytes, then range, then UTF-8, as the device checks them."""
    major, argument = reader.head()
    if major is not _MAJORS[rule.type]:
        raise RemoteWireError(Status.FIELD_TYPE, f"{name} is {major.name.lower()}")
    start = reader.position
    if rule.type is not int:
        reader.take(argument)
    if not rule.low <= argument <= rule.high:
        words = f"{argument}" if rule.type is int else f"{argument} bytes long"
        raise RemoteWireError(Status.FIELD_RANGE, f"{name} is {words}; {rule.low} to {rule.high} expected")
    if rule.type is int:
        return argument
    reader.position = start
    return reader.take(argument) if rule.type is bytes else reader.text(argument)


def _check(kind: Kind, fields: Mapping[str, Value]) -> None:
    listed = MESSAGES[kind]
    for name, value in fields.items():
        if name not in listed:
            raise LocalWireError(Status.ARGUMENT, f"{kind.name.lower()} has no field {name}")
        _check_value(name, value, FIELDS[name])
    for name, is_required in listed.items():
        if is_required and name not in fields:
            raise LocalWireError(Status.MISSING_FIELD, f"{kind.name.lower()} needs {name}")


def _check_value(name: str, value: Value, rule: FieldRule) -> None:
    if not isinstance(value, rule.type):
        raise LocalWireError(Status.FIELD_TYPE, f"{name} is {type(value).__name__}, {rule.type.__name__} expected")
    try:
        measure = _measure(value)
    except UnicodeEncodeError as error:
        raise LocalWireError(Status.FIELD_TYPE, f"{name} has no UTF-8 form") from error
    if not rule.low <= measure <= rule.high:
        raise LocalWireError(Status.FIELD_RANGE, f"{name} is {_short(value)}, from {rule.low} to {rule.high} expected")


def _plain(value: Value) -> Value:
    """Enumerations and booleans as the integers that they are on the wire."""
    return int(value) if isinstance(value, int) else value


def _measure(value: Value) -> int:
    """What the bounds of a field are about: the value of an integer, the bytes of a string."""
    if isinstance(value, int):
        return value
    return len(value.encode("utf-8")) if isinstance(value, str) else len(value)


def _short(value: Value) -> str:
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 8 else f"{value[:8].hex()}.. ({len(value)} bytes)"
    return repr(value)
