# SPDX-License-Identifier: Apache-2.0
"""Frames: COBS, checksum, and a receiver that is right again at the next zero."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.wire.frame import Frame, FrameDecoder, cobs_decode, cobs_encode, encode_frame
from fedmote.wire.schema import Channel, Status

frames = st.builds(Frame, st.sampled_from(Channel), st.integers(0, 255), st.integers(0, 65535), st.binary(max_size=600))

# Examples of "Consistent Overhead Byte Stuffing" (Cheshire, Baker; table of the usual implementations).
COBS = [
    ("", "01"),
    ("00", "0101"),
    ("0000", "010101"),
    ("11220033", "0311220233"),
    ("11223344", "0511223344"),
    ("11000000", "0211010101"),
    (bytes(range(1, 255)).hex(), "ff" + bytes(range(1, 255)).hex()),
    ("00" + bytes(range(1, 255)).hex(), "01ff" + bytes(range(1, 255)).hex()),
    (bytes(range(1, 256)).hex(), "ff" + bytes(range(1, 255)).hex() + "02ff"),
    (bytes(range(2, 256)).hex() + "00", "ff" + bytes(range(2, 256)).hex() + "0101"),
]


def raw(channel: int = 0, kind: int = 2, length: int | None = None, body: bytes = b"abc", crc: int | None = None) -> bytes:
    """A frame with any mistake in it, without the zero at the end."""
    content = struct.pack("<BBHH", channel, kind, 0, len(body) if length is None else length) + body
    return cobs_encode(content + struct.pack("<I", zlib.crc32(content) if crc is None else crc))


@pytest.mark.parametrize(("plain", "encoded"), COBS)
def test_cobs_gives_the_published_examples(plain, encoded):
    assert cobs_encode(bytes.fromhex(plain)).hex() == encoded
    assert cobs_decode(bytes.fromhex(encoded)).hex() == plain


@given(st.binary(max_size=2000))
def test_cobs_removes_all_zeros_and_brings_them_back(data):
    encoded = cobs_encode(data)
    assert 0 not in encoded
    assert len(encoded) <= len(data) + len(data) // 254 + 1
    assert cobs_decode(encoded) == data


@given(st.lists(frames, max_size=5), st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_out_of_a_stream_however_it_is_cut(sent, cuts):
    stream = b"".join(encode_frame(frame) for frame in sent)
    decoder = FrameDecoder()
    received, position, turn = [], 0, 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        received += decoder.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert received == sent
    assert not decoder.errors


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b"\x09abc", Status.FRAME_COBS),
        (cobs_encode(b"123456789"), Status.FRAME_LENGTH),
        (raw(length=4), Status.FRAME_LENGTH),
        (raw(length=2), Status.FRAME_LENGTH),
        (raw(crc=0), Status.FRAME_CRC),
        (raw(channel=2), Status.FRAME_CHANNEL),
        (raw(channel=2, crc=0), Status.FRAME_CRC),
        (raw(length=9, crc=0), Status.FRAME_LENGTH),
    ],
)
def test_a_bad_frame_is_dropped_and_counted_by_its_first_reason(encoded, expected):
    decoder = FrameDecoder()
    good = Frame(Channel.CELL, 3, 9, b"good")
    assert decoder.feed(encoded + b"\0" + encode_frame(good)) == [good]
    assert decoder.errors == {expected: 1}


@given(st.binary(max_size=300), frames, frames)
def test_noise_costs_at_most_the_frame_that_it_touches(noise, touched, after):
    received = FrameDecoder().feed(noise + encode_frame(touched) + encode_frame(after))
    assert received[-1] == after
    assert len(received) <= 2 + noise.count(b"\0")


def test_ten_thousand_damaged_frames_give_no_wrong_frame():
    seed = 20260101
    print("seed", seed)
    generator = random.Random(seed)
    decoder = FrameDecoder()
    sent, received = set(), []
    for sequence in range(10_000):
        frame = Frame(Channel.COORDINATOR, 5, sequence, generator.randbytes(40))
        sent.add(frame)
        encoded = bytearray(encode_frame(frame))
        if generator.random() < 0.5:
            encoded[generator.randrange(len(encoded))] ^= 1 << generator.randrange(8)
        received += decoder.feed(bytes(encoded))
    assert set(received) <= sent
    assert len(received) > 4_000
    assert decoder.errors.total() > 4_000


def test_a_stream_without_an_end_costs_the_memory_of_one_frame():
    decoder = FrameDecoder(max_body=144)
    for _ in range(100):
        assert decoder.feed(b"x" * 1000) == []
    assert len(decoder._pending) == 0
    good = Frame(Channel.CELL, 3, 9, bytes(range(144)))
    assert decoder.feed(b"x\0" + encode_frame(good)) == [good]
    assert decoder.errors == {Status.FRAME_LENGTH: 1}


def test_the_largest_frame_is_accepted():
    good = Frame(Channel.CELL, 3, 9, b"\1" * 65535)
    assert FrameDecoder().feed(encode_frame(good)) == [good]


def test_extra_zeros_between_frames_mean_nothing():
    good = Frame(Channel.CELL, 3, 9, b"")
    decoder = FrameDecoder()
    assert decoder.feed(b"\0\0" + encode_frame(good) + b"\0" + encode_frame(good)) == [good, good]
    assert not decoder.errors


def test_a_gap_in_the_sequence_is_counted_across_the_wrap():
    decoder = FrameDecoder()
    for sequence in (65534, 65535, 2, 3):
        decoder.feed(encode_frame(Frame(Channel.CELL, 3, sequence, b"")))
    assert decoder.num_lost == 2


def test_a_peer_that_begins_anew_is_no_loss():
    decoder = FrameDecoder()
    for sequence in (500, 0, 1):
        decoder.feed(encode_frame(Frame(Channel.CELL, 3, sequence, b"")))
    assert decoder.num_lost == 0


def test_a_body_that_does_not_fit_is_our_own_mistake():
    with pytest.raises(LocalWireError):
        encode_frame(Frame(Channel.CELL, 3, 0, bytes(65536)))
    with pytest.raises(LocalWireError):
        encode_frame(Frame(Channel.CELL, 256, 0, b""))


@given(st.binary(max_size=400))
def test_cobs_of_random_bytes_raises_a_remote_wire_error_or_nothing(data):
    try:
        cobs_decode(data)
    except RemoteWireError as error:
        assert error.status is Status.FRAME_COBS
