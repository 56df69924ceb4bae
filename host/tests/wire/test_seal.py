# SPDX-License-Identifier: Apache-2.0
"""Sealed messages: the vectors that the device passes too, and every way in which an end may be deceived."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from fedmote.errors import LocalWireError, RemoteWireError
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.schema import LIMIT_SEAL, LIMIT_SEAL_WINDOW, Channel, Kind, Status
from fedmote.wire.seal import CHALLENGE_BURST, MAX_SILENCE, BootEnd, Envelope, EpochEnd, FixedKeys, Seals, Way, Window

VECTORS = Path(__file__).resolve().parents[3] / "device_sdk" / "protocol" / "vectors" / "seal.json"
ROWS = json.loads(VECTORS.read_text(encoding="utf-8"))
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
COORDINATOR = Channel.COORDINATOR


def envelope(row: dict) -> Envelope:
    numbers = (row["epoch"], row["boot"], row["sequence"])
    return Envelope(Way(row["way"]), Channel(row["channel"]), row["id"], row["kind"], *numbers)


@pytest.mark.parametrize("row", [row for row in ROWS if row["status"] == "ok"], ids=lambda row: row["name"])
def test_a_vector_is_sealed_and_opened_as_the_device_does(row):
    key, payload, body = (bytes.fromhex(row[name]) for name in ("key", "payload", "body"))
    assert envelope(row).close(key, payload) == body
    assert envelope(row).open(key, body) == payload


@pytest.mark.parametrize("row", [row for row in ROWS if row["way"] == Way.DOWN], ids=lambda row: row["name"])
def test_an_end_opens_a_vector_or_refuses_it_as_the_device_does(row):
    end = BootEnd(row["id"], Channel(row["channel"]), bytes.fromhex(row["key"]), row["boot"])
    if "seen" in row:
        numbers = (row["seen"]["epoch"], row["boot"], row["seen"]["sequence"])
        before = Envelope(Way.DOWN, Channel(row["channel"]), row["id"], row["kind"], *numbers)
        end.open(row["id"], row["kind"], before.close(bytes.fromhex(row["key"]), bytes.fromhex("a1181805")))
    try:
        answer, payload = "ok", end.open(row["id"], row["kind"], bytes.fromhex(row["body"])).payload
    except RemoteWireError as error:
        answer, payload = error.status.name.lower(), b""
    assert answer == row["status"]
    assert payload.hex() == row.get("payload", "")


class Site:
    """A coordinator with two devices whose clock is ours."""

    def __init__(self, epoch: int = 7, former: int = 6) -> None:
        self.now = 0.0
        self.keys = {"board-1": KEY, "board-2": OTHER}
        self.end = EpochEnd(COORDINATOR, FixedKeys(self.keys), epoch, lambda: self.now, former)

    def restart(self, epoch: int, former: int) -> None:
        self.end = EpochEnd(COORDINATOR, FixedKeys(self.keys), epoch, lambda: self.now, former)

    def board(self, boot: int, id: str = "board-1") -> BootEnd:
        return BootEnd(id, COORDINATOR, self.keys[id], boot)

    def hear(self, board: BootEnd, kind: Kind = Kind.REPORT, payload: bytes = b"x", id: str = "board-1") -> bool:
        """Whether a message of a board is acted on; a challenge is delivered."""
        body = board.seal(id, kind, payload)
        assert body is not None
        opened = self.end.open(id, kind, body)
        if opened.challenge is not None:
            board.open(id, Kind.WAIT, opened.challenge)
        assert opened.payload == payload
        return opened.is_fresh

    def tell(self, board: BootEnd, id: str = "board-1") -> bytes:
        body = self.end.seal(id, Kind.ACK, b"answer")
        assert body is not None
        return board.open(id, Kind.ACK, body).payload


def status_of(call) -> Status:
    with pytest.raises(RemoteWireError) as caught:
        call()
    return caught.value.status


def test_a_board_that_knows_no_epoch_is_told_it_and_then_believed():
    site = Site()
    board = site.board(1)
    assert not site.hear(board, Kind.HELLO)
    assert site.hear(board, Kind.HELLO)
    assert site.tell(board) == b"answer"


def test_a_hello_is_readable_and_everything_else_is_not():
    secret = b"a text of the plan that nobody else may read"
    shown, hidden = (Site().board(1).seal("board-1", kind, secret) for kind in (Kind.HELLO, Kind.PLAN))
    assert shown is not None and hidden is not None
    assert secret in shown
    assert secret not in hidden
    assert len(shown) == len(hidden) == len(secret) + LIMIT_SEAL


def test_a_greeting_changes_nothing_however_often_it_is_copied():
    site = Site()
    greeting = site.board(1).seal("board-1", Kind.HELLO, b"x")
    for _ in range(3):
        assert not site.end.open("board-1", Kind.HELLO, greeting).is_fresh
    board = site.board(2)
    site.hear(board), site.hear(board)
    assert not site.end.open("board-1", Kind.HELLO, greeting).is_fresh
    assert site.tell(board) == b"answer"


def test_the_answer_to_a_copied_greeting_is_worthless_to_the_present_boot():
    site = Site()
    greeting = site.board(1).seal("board-1", Kind.HELLO, b"x")
    challenge = site.end.open("board-1", Kind.HELLO, greeting).challenge
    assert status_of(lambda: site.board(2).open("board-1", Kind.WAIT, challenge)) is Status.AUTH


def test_challenges_are_limited_and_come_again_with_time():
    site = Site()
    greeting = site.board(1).seal("board-1", Kind.HELLO, b"x")
    answers = [site.end.open("board-1", Kind.HELLO, greeting).challenge for _ in range(100)]
    assert sum(answer is not None for answer in answers) == CHALLENGE_BURST
    site.now = 0.1
    assert site.end.open("board-1", Kind.HELLO, greeting).challenge is not None
    assert site.end.open("board-1", Kind.HELLO, greeting).challenge is None


def test_nothing_is_heard_twice_and_nothing_of_an_older_boot():
    site = Site()
    old, new = site.board(1), site.board(2)
    site.hear(old), site.hear(old)
    early = old.seal("board-1", Kind.REPORT, b"early")
    assert site.end.open("board-1", Kind.REPORT, early).is_fresh
    assert status_of(lambda: site.end.open("board-1", Kind.REPORT, early)) is Status.REPLAY
    late = old.seal("board-1", Kind.REPORT, b"late")
    site.hear(new), site.hear(new)
    assert status_of(lambda: site.end.open("board-1", Kind.REPORT, late)) is Status.REPLAY
    assert site.hear(new)


def test_messages_that_overtake_each_other_within_the_window_are_all_heard_once():
    site, board = Site(), Site().board(1)
    site.hear(board), site.hear(board)
    bodies = [board.seal("board-1", Kind.DATA, bytes([number])) for number in range(LIMIT_SEAL_WINDOW)]
    order = bodies[:]
    random.Random(3).shuffle(order)
    assert {site.end.open("board-1", Kind.DATA, body).payload[0] for body in order} == set(range(LIMIT_SEAL_WINDOW))
    for body in bodies:
        assert status_of(lambda body=body: site.end.open("board-1", Kind.DATA, body)) is Status.REPLAY


@pytest.mark.parametrize("seed", range(20))
def test_the_window_takes_what_a_set_of_all_numbers_would_take(seed):
    generator, window, taken, newest = random.Random(seed), Window(), set(), (-1, -1)
    for _ in range(2000):
        number = (newest[0] + generator.choice([0, 0, 0, 0, 0, 0, 0, 1, -1]), max(0, newest[1] + generator.randint(-80, 20)))
        number = (max(0, number[0]), number[1])
        is_new = number[0] > newest[0] or (
            number[0] == newest[0] and number not in taken and number[1] > newest[1] - LIMIT_SEAL_WINDOW
        )
        assert window.take(*number, b"tag") == is_new
        if is_new:
            taken.add(number)
            newest = max(newest, number)


def test_a_restarted_coordinator_answers_the_former_epoch_with_its_own():
    site = Site()
    board = site.board(1)
    site.hear(board), site.hear(board)
    site.restart(epoch=900, former=7)
    assert site.end.seal("board-1", Kind.ACK, b"") is None  # it knows no boot of the board yet
    assert not site.hear(board)
    assert site.hear(board)
    assert site.tell(board) == b"answer"


def test_a_board_that_slept_through_two_restarts_doubts_its_epoch_after_a_few_messages():
    site = Site()
    board = site.board(1)
    site.hear(board), site.hear(board), site.tell(board)
    site.restart(epoch=900, former=800)
    for _ in range(MAX_SILENCE):
        body = board.seal("board-1", Kind.REPORT, b"x")
        assert status_of(lambda body=body: site.end.open("board-1", Kind.REPORT, body)) is Status.AUTH
    assert not site.hear(board)
    assert site.hear(board)


def test_no_answer_of_an_earlier_epoch_is_believed():
    site = Site()
    board = site.board(1)
    site.hear(board), site.hear(board)
    old = site.end.seal("board-1", Kind.ACK, b"old")
    site.restart(epoch=900, former=7)
    site.hear(board)
    assert status_of(lambda: board.open("board-1", Kind.ACK, old)) is Status.REPLAY


def test_a_message_is_that_of_its_key_way_channel_kind_and_participant():
    site = Site()
    board, stranger = site.board(1), site.board(1, "board-2")
    site.hear(board), site.hear(board), site.hear(stranger, id="board-2"), site.hear(stranger, id="board-2")
    body, down = board.seal("board-1", Kind.REPORT, b"x"), site.end.seal("board-1", Kind.ACK, b"x")
    assert status_of(lambda: site.end.open("board-2", Kind.REPORT, body)) is Status.AUTH
    assert status_of(lambda: site.end.open("board-1", Kind.REFUSE, body)) is Status.AUTH
    assert status_of(lambda: site.end.open("board-1", Kind.ACK, down)) is Status.AUTH
    assert status_of(lambda: board.open("board-1", Kind.REPORT, body)) is Status.AUTH
    assert status_of(lambda: stranger.open("board-2", Kind.ACK, down)) is Status.AUTH
    cell = EpochEnd(Channel.CELL, FixedKeys(site.keys), 7, lambda: 0.0)
    assert status_of(lambda: cell.open("board-1", Kind.REPORT, body)) is Status.AUTH
    assert site.end.open("board-1", Kind.REPORT, body).is_fresh


def test_a_second_board_with_the_same_key_is_noticed_by_its_new_messages_under_an_older_boot():
    site = Site()
    old, new = site.board(4), site.board(9)
    site.hear(old), site.hear(old), site.tell(old)
    copy = old.seal("board-1", Kind.REPORT, b"copied")
    site.end.open("board-1", Kind.REPORT, copy)
    site.hear(new), site.hear(new)
    for _ in range(5):  # copies are no second board
        status_of(lambda: site.end.open("board-1", Kind.REPORT, copy))
    assert site.end.take_doubles() == []
    status_of(lambda: site.hear(old))
    status_of(lambda: site.hear(old))
    assert site.end.take_doubles() == ["board-1", "board-1"]


def test_two_boards_in_the_same_boot_are_noticed_by_two_messages_of_one_number():
    site = Site()
    one, two = site.board(4), site.board(4)
    site.hear(one, Kind.HELLO), site.hear(two, Kind.HELLO)
    site.hear(one, Kind.HELLO)
    assert status_of(lambda: site.hear(two, Kind.HELLO)) is Status.REPLAY
    assert site.end.take_doubles() == []  # the same words: it may be a copy
    site.hear(one, Kind.GET, b"mine")
    assert status_of(lambda: site.hear(two, Kind.GET, b"another")) is Status.REPLAY
    assert site.end.take_doubles() == ["board-1"]


def test_no_number_of_boots_grows_the_memory_of_second_boards_or_fakes_one():
    site = Site()
    bodies = []
    for boot in range(1, 60):
        board = site.board(boot)
        site.now += 1
        site.hear(board), site.hear(board)
        bodies.append(board.seal("board-1", Kind.REPORT, b"x"))
        site.end.open("board-1", Kind.REPORT, bodies[-1])
    for body in bodies:
        status_of(lambda body=body: site.end.open("board-1", Kind.REPORT, body))
    assert site.end.take_doubles() == []
    assert len(site.end._peers["board-1"].old_boots) <= 8


class RevocableKeys(FixedKeys):
    """Keys of which some are withdrawn."""

    revoked: frozenset[str] = frozenset()

    def key(self, id: str) -> bytes | None:
        return None if id in self.revoked else super().key(id)

    def is_revoked(self, id: str) -> bool:
        return id in self.revoked


def test_a_revoked_participant_and_a_stranger_are_refused_and_counted_by_reason():
    keys = RevocableKeys({"board-1": KEY})
    end, board = EpochEnd(COORDINATOR, keys, 7, lambda: 0.0), BootEnd("board-1", COORDINATOR, KEY, 1)
    board.open("board-1", Kind.WAIT, end.open("board-1", Kind.HELLO, board.seal("board-1", Kind.HELLO, b"x")).challenge)
    assert end.open("board-1", Kind.HELLO, board.seal("board-1", Kind.HELLO, b"x")).is_fresh
    object.__setattr__(keys, "revoked", frozenset({"board-1"}))
    assert status_of(lambda: end.open("board-1", Kind.HELLO, board.seal("board-1", Kind.HELLO, b"x"))) is Status.REVOKED
    assert end.seal("board-1", Kind.PLAN, b"") is None
    for number in range(3):
        name = f"invented-{number}"
        body = BootEnd(name, COORDINATOR, KEY, 1).seal(name, Kind.HELLO, b"x")
        assert status_of(lambda name=name, body=body: end.open(name, Kind.HELLO, body)) is Status.AUTH
    assert end.take_refusals() == Counter({("board-1", Status.REVOKED): 1, ("others", Status.AUTH): 3})
    assert end.take_refusals() == Counter()


def test_a_channel_without_an_end_takes_and_sends_nothing():
    seals = Seals(coordinator=Site().end)
    assert seals.seal("board-1", Channel.CELL, Kind.ACK, b"") is None
    assert status_of(lambda: seals.open("board-1", Channel.CELL, Kind.SAMPLES, bytes(100))) is Status.AUTH


def test_a_body_that_is_not_sealed_is_refused_where_keys_are_used():
    wait = encode(Message.of(Kind.WAIT, wait_ms=5))
    for body in (b"", wait, bytes(LIMIT_SEAL - 1), bytes(LIMIT_SEAL), bytes(200)):
        assert status_of(lambda body=body: Site().end.open("board-1", Kind.REPORT, body)) is Status.AUTH
    assert decode(Kind.WAIT, wait)["wait_ms"] == 5


def test_an_epoch_that_does_not_rise_is_our_own_fault():
    for epoch, former in ((0, 0), (7, 7), (7, 8), (2**32, 0)):
        with pytest.raises(LocalWireError):
            EpochEnd(COORDINATOR, FixedKeys({}), epoch, lambda: 0.0, former)
