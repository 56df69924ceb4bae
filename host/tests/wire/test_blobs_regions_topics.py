# SPDX-License-Identifier: Apache-2.0
"""Head updates, selected samples, flash regions and topics."""

from __future__ import annotations

import struct
import zlib

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.wire.blobs import decode_head_update, decode_selected_samples, encode_head_update, encode_selected_samples
from fedmote.wire.codec import Message, encode
from fedmote.wire.regions import identity_region, read_identity_region, read_samples_region, samples_region
from fedmote.wire.schema import LIMIT_BODY_FLOOR, Channel, Kind, Status
from fedmote.wire.topics import parse, quality, topic


def status_of(call, *arguments) -> Status:
    with pytest.raises(RemoteWireError) as caught:
        call(*arguments)
    return caught.value.status


def test_a_head_update_is_the_bytes_of_the_specification():
    blob = encode_head_update(np.array([1.0, -2.5], np.float32))
    assert blob.hex() == "a2010102d85548" + struct.pack("<2f", 1.0, -2.5).hex()
    np.testing.assert_array_equal(decode_head_update(blob, 2), np.array([1.0, -2.5], np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_head_update_with_a_value_that_is_not_finite_is_refused(value):
    assert status_of(decode_head_update, encode_head_update(np.array([0, value], np.float32))) is Status.UPDATE_NOT_FINITE


@pytest.mark.parametrize("bits", [1, 0x80000001, 0x007FFFFF])
def test_a_head_update_with_a_subnormal_value_is_refused_and_none_is_written(bits):
    floats = struct.pack("<2I", 0x3F800000, bits)
    blob = cbor2.dumps({1: 1, 2: cbor2.CBORTag(85, floats)}, canonical=True)
    assert status_of(decode_head_update, blob) is Status.UPDATE_NOT_FINITE
    written = encode_head_update(np.frombuffer(floats, "<f4"))
    assert written.endswith(struct.pack("<2I", 0x3F800000, 0))
    smallest = np.array([np.finfo(np.float32).tiny, -np.finfo(np.float32).tiny, 0], np.float32)
    np.testing.assert_array_equal(decode_head_update(encode_head_update(smallest)), smallest)


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (cbor2.dumps({1: 1, 2: cbor2.CBORTag(85, bytes(7))}), Status.UPDATE_SHAPE),
        (cbor2.dumps({1: 1, 2: cbor2.CBORTag(85, bytes(12))}), Status.UPDATE_SHAPE),
        (cbor2.dumps({1: 2, 2: cbor2.CBORTag(85, bytes(8))}), Status.FIELD_RANGE),
        (cbor2.dumps({1: 1, 2: cbor2.CBORTag(86, bytes(8))}), Status.FIELD_TYPE),
        (cbor2.dumps({1: 1, 2: bytes(8)}), Status.FIELD_TYPE),
        (cbor2.dumps({1: 1, 3: cbor2.CBORTag(85, bytes(8))}), Status.MISSING_FIELD),
        (cbor2.dumps({1: 1}), Status.MALFORMED),
        (cbor2.dumps({1: 1, 2: cbor2.CBORTag(85, bytes(8))}) + b"\0", Status.TRAILING),
        (cbor2.dumps({1: 1, 2: cbor2.CBORTag(85, bytes(8))})[:-1], Status.TRUNCATED),
    ],
)
def test_a_head_update_of_another_form_is_refused(blob, expected):
    assert status_of(decode_head_update, blob, 2) is expected


@given(st.integers(0, 9), st.integers(1, 20), st.integers(0, 2**31))
def test_selected_samples_survive_the_way_there_and_back(count, width, seed):
    generator = np.random.default_rng(seed)
    index, label, mask = (generator.integers(0, 2**32, count, np.uint32) for _ in range(3))
    x = generator.integers(-128, 128, (count, width), np.int8)
    for sent, received in zip(
        (index, label, mask, x), decode_selected_samples(encode_selected_samples(index, label, mask, x), width), strict=True
    ):
        np.testing.assert_array_equal(sent, received)


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (cbor2.dumps({1: 1, 2: 4, 3: bytes(15)}), Status.UPDATE_SHAPE),
        (cbor2.dumps({1: 0, 2: 2**40, 3: b""}), Status.UPDATE_SHAPE),
        (cbor2.dumps({1: 1, 2: 5, 3: bytes(17)}), Status.UPDATE_SHAPE),
        (cbor2.dumps({1: 1, 2: 0, 3: bytes(12)}), Status.UPDATE_SHAPE),
        (cbor2.dumps({1: 1, 2: 4, 3: "x" * 16}), Status.FIELD_TYPE),
        (cbor2.dumps({1: -1, 2: 4, 3: bytes(16)}), Status.FIELD_TYPE),
    ],
)
def test_selected_samples_whose_sizes_disagree_are_refused(blob, expected):
    assert status_of(decode_selected_samples, blob, 4) is expected


@given(st.binary(max_size=100))
def test_random_blobs_and_regions_raise_remote_wire_errors_or_nothing(data):
    for call in (decode_head_update, decode_selected_samples, read_samples_region, read_identity_region):
        for prefix in (b"", b"FMDS", b"FMID"):
            try:
                call(prefix + data)
            except RemoteWireError:
                continue


def test_a_samples_region_has_the_bytes_of_the_specification():
    x = np.array([[1, -1], [2, -2], [3, -3]], np.int8)
    region = samples_region(x, np.array([7, 8, 9]))
    rest = bytes([7, 8, 9, 0, 1, 255, 2, 254, 3, 253])
    assert region == b"FMDS" + struct.pack("<III", 3, 2, zlib.crc32(rest)) + rest
    read_x, read_y = read_samples_region(region + b"\xff" * 10)
    np.testing.assert_array_equal(read_x, x)
    np.testing.assert_array_equal(read_y, [7, 8, 9])


def test_samples_of_any_shape_are_stored_flat():
    x = np.arange(24, dtype=np.int8).reshape(2, 3, 4, 1)
    np.testing.assert_array_equal(read_samples_region(samples_region(x, np.zeros(2, int)))[0], x.reshape(2, 12))


def test_samples_that_a_region_cannot_hold_are_our_own_mistake():
    for x, y in (
        (np.zeros((2, 3), np.float32), np.zeros(2, int)),
        (np.zeros((2, 3), np.int8), np.zeros(3, int)),
        (np.zeros((1, 3), np.int8), np.array([256])),
    ):
        with pytest.raises(LocalWireError):
            samples_region(x, y)


def test_a_damaged_samples_region_is_refused():
    region = bytearray(samples_region(np.zeros((4, 4), np.int8), np.zeros(4, int)))
    region[-1] ^= 1
    assert status_of(read_samples_region, bytes(region)) is Status.CRC
    assert status_of(read_samples_region, bytes(region[:-1])) is Status.TRUNCATED
    assert status_of(read_samples_region, bytes(40)) is Status.MALFORMED


def test_an_identity_survives_the_way_there_and_back_and_hides_its_password():
    region = identity_region("board-1", "lab", "mqtt", "board-1", "canary", True, 20)
    identity = read_identity_region(region + b"\xff" * 100)
    assert (identity.id, identity.site, identity.link, identity.username, identity.password) == (
        "board-1",
        "lab",
        "mqtt",
        "board-1",
        "canary",
    )
    assert (identity.is_sending_samples, identity.keep_alive_s) == (True, 20)
    assert "canary" not in repr(identity)


def test_an_identity_with_keys_survives_the_way_there_and_back_and_hides_them():
    key, cell_key = bytes(range(32)), bytes(range(32, 64))
    for keys in ((key, cell_key), (key, None), (None, None)):
        identity = read_identity_region(identity_region("board-1", "lab", "serial", key=keys[0], cell_key=keys[1]))
        assert (identity.key, identity.cell_key) == keys
        assert str(key) not in repr(identity)


def test_keys_of_another_length_and_a_cell_key_alone_are_refused():
    for keys in ((bytes(31), None), (bytes(32), bytes(33)), (None, bytes(32))):
        with pytest.raises(LocalWireError):
            identity_region("board-1", "lab", "serial", key=keys[0], cell_key=keys[1])
    body = cbor2.dumps({1: "a", 2: "b", 3: 0, 4: "", 5: "", 6: 0, 7: 30, 8: bytes(31)})
    region = b"FMID" + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body
    assert status_of(read_identity_region, region) is Status.FIELD_RANGE


def test_the_cbor_of_an_identity_has_the_keys_of_the_specification():
    region = identity_region("a", "b", "serial")
    assert cbor2.loads(region[12:]) == {1: "a", 2: "b", 3: 0, 4: "", 5: "", 6: 0, 7: 30}


def test_topics_are_those_of_the_specification():
    assert topic("lab", "board-1", "up", Kind.HELLO) == "fedmote/1/lab/board-1/up/hello"
    assert topic("lab", "board-1", "dn", Kind.PLAN) == "fedmote/1/lab/board-1/dn/plan"
    assert topic("lab", "board-1", "up", Kind.SAMPLES, Channel.CELL) == "fedmote/1/lab/board-1/cell/up/samples"
    assert topic("lab", "+", "up", "#") == "fedmote/1/lab/+/up/#"


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("channel", Channel)
@pytest.mark.parametrize("direction", ["up", "dn"])
def test_a_topic_says_who_where_and_what(kind, channel, direction):
    address = parse(topic("s", "a" * 32, direction, kind, channel))
    assert (address.site, address.id, address.direction, address.channel, address.known_kind) == (
        "s",
        "a" * 32,
        direction,
        channel,
        kind,
    )


def test_the_topic_of_a_newer_kind_still_says_who():
    assert parse("fedmote/1/s/a/up/dance").kind == "dance"
    assert parse("fedmote/1/s/a/up/dance").known_kind is None


@pytest.mark.parametrize(
    "text",
    ["", "fedmote/2/s/a/up/get", "fedmote/1/s/a/up", "fedmote/1/s/a/up/get/x", "fedmote/1/S/a/up/get", "fedmote/1/s/a/x/up/get",
     "fedmote/1/s/" + "a" * 33 + "/up/get", "fedmote/1/s/a/up/get\n"],
)  # fmt: skip
def test_topics_that_are_not_ours_are_nothing(text):
    assert parse(text) is None


@pytest.mark.parametrize("name", ["", "A", "a/b", "#", "a" * 33])
def test_a_name_that_cannot_be_a_level_is_our_own_mistake(name):
    with pytest.raises(LocalWireError):
        topic(name, "a", "up", Kind.GET)


def test_the_transfer_alone_travels_unacknowledged():
    assert {kind for kind in Kind if quality(kind) == 0} == {Kind.GET, Kind.DATA}


def test_the_smallest_body_in_the_longest_topic_stays_within_256_bytes():
    longest = max((topic("s" * 32, "d" * 32, "up", kind, Channel.CELL) for kind in (Kind.SAMPLES, Kind.REPORT)), key=len)
    data = Message.of(Kind.DATA, handle=2**32 - 1, offset=2**32 - 1, data=bytes(120))
    assert 1 + 2 + 2 + len(longest) + 2 + LIMIT_BODY_FLOOR <= 256
    assert len(encode(data)) <= LIMIT_BODY_FLOOR
