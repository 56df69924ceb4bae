# SPDX-License-Identifier: Apache-2.0
"""Messages and bodies: what is written is read, what the schema forbids is refused with the schema's status."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.schema import FIELDS, MESSAGES, FieldRule, Kind, Status

WAIT = Message.of(Kind.WAIT, wait_ms=500)


def values(rule: FieldRule) -> st.SearchStrategy:
    if rule.type is int:
        return st.integers(rule.low, rule.high)
    if rule.type is bytes:
        return st.binary(min_size=rule.low, max_size=min(rule.high, 600))
    return st.text(max_size=rule.high).filter(lambda text: rule.low <= len(text.encode()) <= rule.high)


@st.composite
def messages(draw) -> Message:
    kind = draw(st.sampled_from(Kind))
    names = [name for name, is_required in MESSAGES[kind].items() if is_required or draw(st.booleans())]
    return Message(kind, {name: draw(values(FIELDS[name])) for name in names})


def status_of(kind: int, body: bytes) -> Status:
    with pytest.raises(RemoteWireError) as caught:
        decode(kind, body)
    return caught.value.status


@given(messages())
def test_every_message_survives_the_way_there_and_back(message):
    assert decode(message.kind, encode(message)) == message


@given(messages())
def test_bodies_are_what_an_independent_canonical_encoder_writes(message):
    pairs = {FIELDS[name].key: value for name, value in message.fields.items()}
    assert encode(message) == cbor2.dumps(dict(sorted(pairs.items())), canonical=True)


@given(messages(), st.data())
def test_every_cut_of_a_body_is_truncated(message, data):
    body = encode(message)
    end = data.draw(st.integers(0, len(body) - 1))
    assert status_of(message.kind, body[:end]) is Status.TRUNCATED


@given(st.integers(0, 255), st.binary(max_size=200))
def test_random_bytes_raise_a_remote_wire_error_or_nothing(kind, body):
    try:
        message = decode(kind, body)
    except RemoteWireError:
        return
    assert message.kind == kind


@given(messages(), st.data())
def test_a_changed_byte_raises_a_remote_wire_error_or_gives_a_valid_message(message, data):
    body = bytearray(encode(message))
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    try:
        changed = decode(message.kind, bytes(body))
    except RemoteWireError:
        return
    assert decode(changed.kind, encode(changed)) == changed


@given(messages(), st.dictionaries(st.integers(1000, 2**64 - 1), st.integers() | st.binary() | st.text(), max_size=3))
def test_fields_of_a_newer_peer_are_skipped(message, extension):
    extension = {key: value for key, value in extension.items() if not isinstance(value, int) or abs(value) < 2**63}
    pairs = {FIELDS[name].key: value for name, value in message.fields.items()} | extension
    assert decode(message.kind, cbor2.dumps(pairs, canonical=True)) == message


REFUSED = {
    "nothing": ("", Status.TRUNCATED),
    "a map without its key": ("a1", Status.TRUNCATED),
    "a key without its value": ("a11818", Status.TRUNCATED),
    "half an argument": ("a1181819", Status.TRUNCATED),
    "a list": ("80", Status.MALFORMED),
    "a number": ("01", Status.MALFORMED),
    "a text key": ("a1616100", Status.MALFORMED),
    "a negative key": ("a12000", Status.MALFORMED),
    "a reserved initial byte": ("a118181c", Status.MALFORMED),
    "a break without a beginning": ("a11903e8ff", Status.MALFORMED),
    "a simple value below 32 in two bytes": ("a21818001903e8f818", Status.MALFORMED),
    "a text that is not UTF-8": ("a2181800183561ff", Status.MALFORMED),
    "an item nested five deep": ("a21818001903e881818181818100"[:-2] + "00", Status.MALFORMED),
    "a small value in two bytes": ("a118181805", Status.NOT_DETERMINISTIC),
    "a small value in nine bytes": ("a118181b0000000000000005", Status.NOT_DETERMINISTIC),
    "a key in a longer form": ("a119001805", Status.NOT_DETERMINISTIC),
    "a map length in a longer form": ("b801181805", Status.NOT_DETERMINISTIC),
    "an indefinite map": ("bf181805ff", Status.NOT_DETERMINISTIC),
    "an indefinite skipped list": ("a21818001903e89fff", Status.NOT_DETERMINISTIC),
    "keys that descend": ("a2183560181805", Status.NOT_DETERMINISTIC),
    "a key twice": ("a2181805181805", Status.DUPLICATE_FIELD),
    "an unknown key twice": ("a31818051903e8001903e800", Status.DUPLICATE_FIELD),
    "a byte behind the end": ("a118180500", Status.TRAILING),
    "a required field that is missing": ("a0", Status.MISSING_FIELD),
    "a text where a number belongs": ("a118186135", Status.FIELD_TYPE),
    "a negative number": ("a1181820", Status.FIELD_TYPE),
    "a list where a number belongs": ("a1181880", Status.FIELD_TYPE),
    "a number where a text belongs": ("a21818051835f6", Status.FIELD_TYPE),
    "a number above its range": ("a118181b0000000100000000", Status.FIELD_RANGE),
    "a text above its length": ("a218180018357841" + "61" * 65, Status.FIELD_RANGE),
}


@pytest.mark.parametrize(("body", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_wait_is_refused_with_the_status_of_the_specification(body, expected):
    assert status_of(Kind.WAIT, bytes.fromhex(body)) is expected


@pytest.mark.parametrize(
    "item", ["00", "20", "40", "60", "80", "a0", "f4", "f6", "f97e00", "fb7ff0000000000000", "c100", "8181818100"]
)
def test_a_well_formed_item_behind_an_unknown_key_is_skipped(item):
    assert decode(Kind.WAIT, bytes.fromhex("a21818051903e8" + item)) == Message.of(Kind.WAIT, wait_ms=5)


def test_a_field_of_another_kind_is_skipped():
    assert decode(Kind.WAIT, bytes.fromhex("a20a05181805")) == Message.of(Kind.WAIT, wait_ms=5)


def test_an_unknown_kind_is_refused():
    assert status_of(200, encode(WAIT)) is Status.UNKNOWN_KIND


def test_a_body_above_the_ceiling_is_refused_unread():
    assert status_of(Kind.DATA, b"\xa3" + bytes(65535)) is Status.BODY_TOO_LARGE


def test_a_count_that_the_bytes_cannot_hold_ends_at_the_end_of_the_bytes():
    assert status_of(Kind.WAIT, bytes.fromhex("a218180519 03e8 9bffffffffffffffff")) is Status.TRUNCATED


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (Kind.WAIT, {}, Status.MISSING_FIELD),
        (Kind.WAIT, {"wait_ms": -1}, Status.FIELD_RANGE),
        (Kind.WAIT, {"wait_ms": "5"}, Status.FIELD_TYPE),
        (Kind.WAIT, {"wait_ms": 5, "reason": "\ud800"}, Status.FIELD_TYPE),
        (Kind.WAIT, {"wait_ms": 5, "reason": "ä" * 33}, Status.FIELD_RANGE),
        (Kind.WAIT, {"wait_ms": 5, "boot": 1}, Status.ARGUMENT),
        (Kind.ACK, {"handle": 1, "run": b"short", "round": 1}, Status.FIELD_RANGE),
    ],
)
def test_our_own_mistakes_are_local_errors_before_anything_is_sent(kind, fields, expected):
    with pytest.raises(LocalWireError) as caught:
        Message(kind, fields)
    assert caught.value.status is expected


def test_a_body_that_no_frame_can_carry_is_our_own_mistake():
    with pytest.raises(LocalWireError) as caught:
        encode(Message.of(Kind.DATA, handle=1, offset=0, data=bytes(65535)))
    assert caught.value.status is Status.BODY_TOO_LARGE


def test_a_message_reads_like_a_mapping():
    message = Message.of(Kind.STATE, boot=7, is_online=True)
    assert (message["boot"], message["is_online"], message.get("reason"), message.get("round", 3)) == (7, 1, None, 3)
    assert "boot" in message
    assert "round" not in message


def test_a_message_cannot_be_changed():
    fields = {"wait_ms": 5}
    message = Message(Kind.WAIT, fields)
    fields["wait_ms"] = 6
    assert message["wait_ms"] == 5
    with pytest.raises(TypeError):
        message.fields["wait_ms"] = 6  # type: ignore[index]
