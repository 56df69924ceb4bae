# SPDX-License-Identifier: Apache-2.0
"""Transfers: whatever the line does, the blob arrives whole, and nothing is asked for twice without need."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmote.errors import RemoteWireError
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.schema import LIMIT_BODY_FLOOR, LIMIT_SEAL, LIMIT_WINDOW, Kind, Status
from fedmote.wire.transfer import RETRY_LEAST_S, BlobSink, BlobSource, chunk_bytes, handle_of

CHUNK = 96  # of a peer that takes no more than the floor


class Line:
    """A line with a clock of its own that loses, doubles and reorders messages."""

    def __init__(self, seed: int, loss: float = 0.0, doubling: float = 0.0, delay_s: float = 0.0) -> None:
        print("seed", seed)
        self.generator = random.Random(seed)
        self.loss, self.doubling, self.delay_s = loss, doubling, delay_s
        self.now = 0.0
        self.num_gets = 0

    def carry(self, messages: list[Message]) -> list[Message]:
        arriving = []
        for message in messages:
            for _ in range(2 if self.generator.random() < self.doubling else 1):
                if self.generator.random() >= self.loss:
                    arriving.append((self.generator.random() * self.delay_s, decode(message.kind, encode(message))))
        return (
            [message for _, message in sorted(arriving, key=lambda item: item[0])] if self.delay_s else [m for _, m in arriving]
        )

    def run(self, source: BlobSource, sink: BlobSink, max_body: int, steps: int = 10_000) -> None:
        """Alternate between both ends; time passes when nobody has anything to say."""
        outbox = sink.start(self.now)
        while not sink.is_complete and steps:
            steps -= 1
            self.num_gets += len(outbox)
            answers = [answer for get in self.carry(outbox) for answer in source.answer(get, max_body)]
            outbox = [get for data in self.carry(answers) for get in sink.accept(data, self.now)]
            if not outbox:
                self.now = sink.wake_at if sink.wake_at is not None else self.now
                outbox = sink.poll(self.now)


def pair(blob: bytes, max_body: int) -> tuple[BlobSource, BlobSink]:
    handle = handle_of(blob)
    return BlobSource(handle, blob), BlobSink(handle, len(blob), zlib.crc32(blob), max_body)


@given(st.binary(max_size=6000), st.integers(LIMIT_BODY_FLOOR, 600))
def test_a_blob_of_any_size_arrives_over_a_quiet_line(blob, max_body):
    source, sink = pair(blob, max_body)
    line = Line(0)
    line.run(source, sink, max_body)
    assert sink.blob() == blob
    window = LIMIT_WINDOW * chunk_bytes(max_body)
    assert line.num_gets == -(-len(blob) // window)


@pytest.mark.parametrize("seed", range(100))
def test_a_blob_of_64_kib_arrives_over_a_line_that_loses_a_third(seed):
    blob = random.Random(seed).randbytes(65536)
    source, sink = pair(blob, 529)
    Line(seed, loss=0.3, doubling=0.5, delay_s=1.0).run(source, sink, 529)
    assert sink.blob() == blob


def test_only_what_did_not_come_is_asked_for_again():
    blob = bytes(range(256)) * 8
    source, sink = pair(blob, LIMIT_BODY_FLOOR)
    (get,) = sink.start(0.0)
    answers = source.answer(get, LIMIT_BODY_FLOOR)
    for index, data in enumerate(answers):
        if index not in (3, 7):
            assert sink.accept(data, 0.1) == []
    assert sink.poll(0.15) == []
    (again,) = sink.poll(0.21)  # all that was asked for has been sent: waiting longer would bring nothing
    assert again["mask"] == (1 << 3) | (1 << 7)
    assert [data["offset"] for data in source.answer(again, LIMIT_BODY_FLOOR)] == [3 * CHUNK, 7 * CHUNK]


@pytest.mark.parametrize(("round_trip_s", "patience_s"), [(0.01, 0.25), (0.2, 0.6), (5.0, 1.0)])
def test_a_window_whose_end_did_not_come_is_asked_for_again_after_three_round_trips(round_trip_s, patience_s):
    source, sink = pair(bytes(range(256)) * 8, LIMIT_BODY_FLOOR)
    (get,) = sink.start(0.0)
    *answers, last = source.answer(get, LIMIT_BODY_FLOOR)
    now = round_trip_s
    for data in answers:
        assert sink.accept(data, now) == []
    for growth in (1, 1.5, 2.25, 3.375, 100):
        assert sink.poll(now + 0.999 * min(1.0, patience_s * growth)) == []
        now += 1.001 * min(1.0, patience_s * growth)
        assert [again["mask"] for again in sink.poll(now)] == [1 << len(answers)]
    sink.accept(last, now)
    assert sink.is_complete


def test_a_question_without_an_answer_is_repeated_after_a_second():
    _, sink = pair(bytes(1000), LIMIT_BODY_FLOOR)
    sink.start(0.0)
    assert sink.poll(0.99) == []
    assert len(sink.poll(1.0)) == 1
    assert sink.poll(1.99) == []
    assert len(sink.poll(2.0)) == 1


def test_a_transfer_goes_on_where_an_interruption_left_it():
    blob = random.Random(1).randbytes(3 * LIMIT_WINDOW * CHUNK)
    source, sink = pair(blob, LIMIT_BODY_FLOOR)
    (get,) = sink.start(0.0)
    asked = [get]
    for data in source.answer(get, LIMIT_BODY_FLOOR):
        asked += sink.accept(data, 0.0)
    rebooted = BlobSource(source.handle, blob)
    (resumed,) = sink.start(500.0)
    assert resumed["offset"] == LIMIT_WINDOW * CHUNK
    Line(2).run(rebooted, sink, LIMIT_BODY_FLOOR)
    assert sink.blob() == blob


def test_the_chunk_is_the_largest_multiple_of_eight_that_fits():
    assert chunk_bytes(LIMIT_BODY_FLOOR) == CHUNK == 96
    blob = bytes(70_000)
    for max_body in (144, 529, 1041, 65535):
        source, sink = pair(blob, max_body)
        (get,) = sink.start(0.0)
        sizes = [len(encode(data)) for data in source.answer(get, max_body)]
        assert max(sizes) + LIMIT_SEAL <= max_body


def test_a_chunk_that_is_not_the_expected_one_changes_nothing():
    blob = bytes(1000)
    source, sink = pair(blob, LIMIT_BODY_FLOOR)
    (get,) = sink.start(0.0)
    first = source.answer(get, LIMIT_BODY_FLOOR)[0]
    strangers = [
        Message.of(Kind.DATA, handle=source.handle ^ 1, offset=0, data=bytes(CHUNK)),
        Message.of(Kind.DATA, handle=source.handle, offset=4, data=bytes(CHUNK)),
        Message.of(Kind.DATA, handle=source.handle, offset=0, data=bytes(CHUNK - 1)),
        Message.of(Kind.DATA, handle=source.handle, offset=10 * CHUNK, data=bytes(CHUNK)),
        Message.of(Kind.DATA, handle=source.handle, offset=2**32 - 8, data=bytes(8)),
        Message.of(Kind.DATA, handle=source.handle, offset=11 * CHUNK, data=bytes(0)),
    ]
    sink.accept(first, 0.0)
    for stranger in [*strangers, first]:
        assert sink.accept(stranger, 5.0) == []
    assert sink.num_ignored == len(strangers) + 1
    assert sink.progress == CHUNK / 1000
    assert sink.wake_at == RETRY_LEAST_S


def test_a_blob_above_the_limit_is_refused_before_it_is_allocated():
    with pytest.raises(RemoteWireError) as caught:
        BlobSink(1, 2**32 - 1, 0, 529)
    assert caught.value.status is Status.BODY_TOO_LARGE
    with pytest.raises(RemoteWireError):
        BlobSink(1, 101, 0, 529, max_size=100)


def test_a_blob_with_a_wrong_checksum_is_refused():
    blob = bytes(100)
    source, sink = pair(blob, 529)
    sink.crc = 1
    Line(0).run(source, sink, 529)
    with pytest.raises(RemoteWireError) as caught:
        sink.blob()
    assert caught.value.status is Status.CRC


def test_an_unfinished_blob_cannot_be_read():
    with pytest.raises(RemoteWireError) as caught:
        BlobSink(1, 10, None, 529).blob()
    assert caught.value.status is Status.TRUNCATED


def test_a_blob_whose_content_is_proved_elsewhere_needs_no_checksum():
    blob = b"package"
    source, _ = pair(blob, 529)
    sink = BlobSink(source.handle, len(blob), None, 529)
    Line(0).run(source, sink, 529)
    assert sink.blob() == blob


def test_an_empty_blob_is_complete_from_the_start():
    sink = BlobSink(1, 0, 0, 529)
    assert sink.is_complete
    assert sink.start(0.0) == sink.poll(9.0) == []
    assert (sink.blob(), sink.progress) == (b"", 1.0)


def test_a_get_for_an_unknown_handle_or_too_large_a_chunk_is_refused():
    source = BlobSource(5, bytes(100))
    (unknown,) = source.answer(Message.of(Kind.GET, handle=6, offset=0, chunk=8, mask=1), 529)
    assert (unknown.kind, unknown["status"], unknown["handle"]) == (Kind.REFUSE, Status.STALE_ROUND, 6)
    (large,) = source.answer(Message.of(Kind.GET, handle=5, offset=0, chunk=520, mask=1), 529)
    assert large["status"] == Status.BODY_TOO_LARGE


def test_a_get_behind_the_end_has_no_answer():
    assert BlobSource(5, bytes(100)).answer(Message.of(Kind.GET, handle=5, offset=104, chunk=8, mask=2**32 - 1), 529) == []
