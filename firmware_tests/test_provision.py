# SPDX-License-Identifier: Apache-2.0
"""An identity over a serial line: the device's C at one end of a pseudo terminal, `fedmote enroll serial` at the other."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest

from fedmote.cli import main
from fedmote.fleet.registry import Registry
from fedmote.lab.demo.prepare import Materials
from fedmote.transport.broker import find_mosquitto
from fedmote.wire.regions import identity_region, read_identity_region
from fedmote.wire.schema import Kind, Status
from fedmote_hil.virtual import VirtualDevice
from firmware_tests.device_bench import PORT_ERROR, FlashModel, Port, _callbacks, library
from firmware_tests.generate_vectors import frame
from firmware_tests.native import aligned
from firmware_tests.scripted_peers import bodies_of
from firmware_tests.whole_round import Part, Stage, make_materials

KEY, CELL_KEY, VERIFY_KEY = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
LONGEST = identity_region("d" * 32, "s" * 32, "serial", "u" * 64, "p" * 64, True, 65535, KEY, CELL_KEY, VERIFY_KEY)
REGION = identity_region("board-1", "lab", "mqtt", "board-1", "a password, secret", True, 30, KEY, CELL_KEY)
SHORT = identity_region("b", "l", "serial")
OK, IDLE, BUSY = 0, 1, 2
REGION_BYTES = 1024
COORDINATOR = 0

_write_type = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)


class Provisioning(ctypes.Structure):
    """`struct fedmote_provisioning`."""

    _fields_ = [
        ("port", ctypes.c_void_p), ("board", ctypes.c_char_p), ("region", ctypes.c_void_p),
        ("region_bytes", ctypes.c_uint32), ("write", _write_type),
    ]  # fmt: skip


class Board:
    """A board without an identity: the C, its line in memory or a descriptor, its identity region a slot of a flash model.

    Attributes:
        rx, tx: its line, where it has no descriptor.
        now: milliseconds, where it has no descriptor.
    """

    def __init__(self, descriptor: int | None = None, is_erased: bool = True, arena_bytes: int = 4096) -> None:
        self.rx, self.tx, self.now = bytearray(), bytearray(), 0
        self._descriptor = descriptor
        self.flash = FlashModel(slot_bytes=REGION_BYTES)
        if is_erased:
            self.flash.erase(0)
        self.arena = aligned(arena_bytes)
        calls = {"now_ms": self._now_ms, "random": lambda _: 7, "stream_read": self._read, "stream_write": self._send}
        self._port = Port(None, **{name: _callbacks[name](call) for name, call in calls.items()})
        write = _write_type(lambda _context, offset, data, size: self.flash.write(0, offset, ctypes.string_at(data, size)))
        region = self.flash.slots[0].ctypes.data
        self._about = Provisioning(ctypes.addressof(self._port), b"bench", region, REGION_BYTES, write)
        self.status = library().fedmote_provision_begin(
            ctypes.byref(self._about), ctypes.c_void_p(self.arena.ctypes.data), ctypes.c_uint32(arena_bytes)
        )

    def step(self) -> int:
        return int(library().fedmote_provision_step(ctypes.c_void_p(self.arena.ctypes.data)))

    def run(self, limit: int = 400) -> int:
        """Steps until it has nothing to do or is done."""
        for _ in range(limit):
            if (status := self.step()) != BUSY:
                return status
        raise AssertionError("it does not rest")

    @property
    def region(self) -> bytes:
        return self.flash.slots[0].tobytes()

    def _now_ms(self, _context: None) -> int:
        return self.now if self._descriptor is None else int(time.monotonic() * 1000) & 0xFFFFFFFF

    def _read(self, _context: None, out: int, capacity: int) -> int:
        if self._descriptor is None:
            data = bytes(self.rx[:capacity])
            del self.rx[: len(data)]
        else:
            try:
                data = os.read(self._descriptor, capacity)
            except BlockingIOError:
                data = b""
            except OSError:
                return PORT_ERROR
        ctypes.memmove(out, data, len(data))
        return len(data)

    def _send(self, _context: None, data: int, size: int) -> int:
        if self._descriptor is None:
            self.tx += ctypes.string_at(data, size)
            return size
        try:
            return os.write(self._descriptor, ctypes.string_at(data, size))
        except BlockingIOError:
            return 0


def data_frame(region: bytes, offset: int, size: int, handle: int = 9) -> bytes:
    return frame(
        COORDINATOR, int(Kind.DATA), 0, cbor2.dumps({1: handle, 2: offset, 3: region[offset : offset + size]}, canonical=True)
    )


# ---- the device's part -------------------------------------------------------------------------------------------------


def heard(board: Board) -> list[tuple[int, dict[int, object]]]:
    return [(kind, cbor2.loads(body)) for _, kind, body in bodies_of(board.tx)]


def test_a_board_says_once_a_second_that_it_has_no_name_and_which_board_it_is() -> None:
    board = Board()
    assert board.status == OK
    for _ in range(3):
        assert board.run() == IDLE
        board.now += 1000
    hellos = heard(board)
    assert [kind for kind, _ in hellos] == [Kind.HELLO] * 3
    assert (hellos[0][1][13], hellos[0][1][17]) == ("unprovisioned", "bench")


@pytest.mark.parametrize("region", [SHORT, REGION, LONGEST], ids=["shortest", "usual", "longest"])
@pytest.mark.parametrize("chunk", [8, 64, 160])
def test_chunks_are_asked_for_one_by_one_and_written_at_once_when_all_are_there(region: bytes, chunk: int) -> None:
    board, offset = Board(), 0
    board.run()
    assert [kind for kind, _ in heard(board)] == [Kind.HELLO]
    while True:
        assert board.flash.log[1:] == []
        board.rx += data_frame(region, offset, chunk)
        status = board.run()
        (kind, fields), *rest = heard(board)
        assert not rest
        if kind == Kind.ACK:
            break
        assert (kind, fields[2], fields[1]) == (Kind.GET, offset + chunk, 9)
        offset += chunk
    assert status == OK
    padded = -(-len(region) // 8) * 8
    assert [(what, size) for what, _, _, size in board.flash.log[1:]] == [("write", padded)]
    assert board.region[: len(region)] == region
    assert read_identity_region(board.region) == read_identity_region(region)
    assert not board.arena.any()  # wiped of keys and password


def test_lost_doubled_and_strange_chunks_do_no_harm() -> None:
    board = Board()
    board.run()
    board.rx += data_frame(REGION, 64, 64)  # not the first one
    board.run()
    board.rx += (
        data_frame(REGION, 0, 64) + data_frame(REGION, 0, 64) + data_frame(REGION, 128, 64) + b"noise\0" + frame(0, 3, 0, b"\xa0")
    )
    assert board.run() == IDLE
    heard(board)
    board.now += 1000
    board.run()
    assert [(kind, fields[2]) for kind, fields in heard(board)] == [(Kind.GET, 64)]
    for offset in range(64, len(REGION), 64):
        board.rx += data_frame(REGION, offset, 64)
    assert board.run() == OK
    assert board.region[: len(REGION)] == REGION


def deliver(board: Board, region: bytes, handle: int = 9) -> int:
    """Sends all chunks; the status that it refuses with, or 0."""
    board.run()
    heard(board)
    for offset in range(0, max(1, len(region)), 64):
        board.rx += data_frame(region, offset, 64, handle)
        board.run()
    answers = {kind: fields for kind, fields in heard(board) if kind in (Kind.REFUSE, Kind.ACK)}
    return int(answers[Kind.REFUSE][8]) if Kind.REFUSE in answers else 0  # type: ignore[call-overload]


def test_a_region_that_is_none_is_damaged_or_too_long_is_refused_and_the_next_one_is_taken() -> None:
    board = Board()
    damaged = bytearray(REGION)
    damaged[40] ^= 1
    assert deliver(board, bytes(damaged), 1) == Status.CRC
    assert deliver(board, b"FMID" + bytes([255, 255, 0, 0]) + bytes(56), 2) == Status.MALFORMED
    assert deliver(board, b"FMDS" + REGION[4:], 3) == Status.MALFORMED
    assert board.flash.log[1:] == []
    assert deliver(board, REGION, 4) == 0
    assert board.region[: len(REGION)] == REGION


def test_a_region_that_is_not_erased_is_never_written_over() -> None:
    board = Board()
    board.flash.slots[0][16:24] = 3
    before = board.region
    assert deliver(board, REGION) == Status.STATE
    assert board.region == before
    assert board.flash.log[1:] == []


def test_a_write_that_fails_is_told_and_a_small_arena_or_a_missing_call_refused() -> None:
    board = Board()
    board.flash.fail_at = len(board.flash.log)
    assert deliver(board, REGION) == Status.SLOT_IO
    assert Board(arena_bytes=512).status == -Status.ARENA
    assert library().fedmote_provision_begin(None, ctypes.c_void_p(0), ctypes.c_uint32(0)) == -Status.ARGUMENT


# ---- both parts --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plugged_in(is_erased: bool = True, talk: bytes | None = None) -> Iterator[tuple[str, list[Board]]]:
    """Path of a line with a board at its other end; with `talk`, something else that says this again and again."""
    ours, theirs = os.openpty()
    for descriptor in (ours, theirs):
        tty.setraw(descriptor)
    os.set_blocking(ours, False)
    board = Board(ours, is_erased)
    ended = threading.Event()

    def live() -> None:
        while not ended.is_set():
            if talk is not None:
                os.write(ours, talk)
                time.sleep(0.05)
            elif board.step() == OK:
                return
            else:
                time.sleep(0.001)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield os.ttyname(theirs), [board]
    finally:
        ended.set()
        thread.join()
        os.close(theirs)
        os.close(ours)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "board-1.bin"
    path.touch(0o600)
    path.write_bytes(REGION)
    return path


def enroll(port: str, image: Path, *arguments: str) -> int:
    return main(["enroll", "serial", "board-1", "--port", port, "--image", str(image), "--patience", "3", *arguments])


def test_a_board_gets_the_identity_of_an_image_over_a_line_and_nothing_secret_is_said(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with plugged_in() as (port, (board,)):
        assert enroll(port, image, "--json") == 0
        told = capsys.readouterr()
        assert json.loads(told.out) == {"id": "board-1", "board": "bench", "port": port, "bytes": len(REGION)}
        assert board.region[: len(REGION)] == REGION
    for secret in (KEY.hex(), CELL_KEY.hex(), "a password"):
        assert secret not in told.out + told.err


@pytest.mark.parametrize(
    ("is_erased", "talk", "arguments", "words"),
    [
        (True, None, ("--board", "stm32f405"), "the board is a bench, and stm32f405 was expected"),
        (True, None, ("--board", "posix"), "takes no identity over its line"),
        (False, None, (), "not erased"),
        (True, b"", (), "no answer: is it the right port"),
        (True, b"\x10\x20 CONNECT\0", (), "bytes come that are no frames"),
        (True, frame(0, 1, 0, bytes(80)), (), "has an identity already: its hello is sealed"),
    ],
    ids=["another board", "a board that takes none", "not erased", "silence", "another language", "keys"],
)
def test_what_is_wrong_is_named_within_a_bounded_time(
    image: Path, capsys: pytest.CaptureFixture[str], is_erased: bool, talk: bytes | None, arguments: tuple[str, ...], words: str
) -> None:
    start = time.monotonic()
    with plugged_in(is_erased, talk) as (port, _):
        assert enroll(port, image, *arguments) != 0
    assert words in capsys.readouterr().err
    assert time.monotonic() - start < 20


def test_an_image_of_another_device_one_that_others_may_read_and_a_missing_one_are_refused(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with plugged_in() as (port, (board,)):
        assert main(["enroll", "serial", "board-2", "--port", port, "--image", str(image)]) == 2
        assert "the identity of board-1, and that of board-2" in capsys.readouterr().err
        image.chmod(0o644)
        assert enroll(port, image) == 2
        assert "mode 0644" in capsys.readouterr().err
        assert enroll(port, image.parent / "none.bin") == 2
        assert "none.bin" in capsys.readouterr().err
        assert (board.region[:8] == b"\xff" * 8, enroll("/dev/none", image.parent / "none.bin")) == (True, 2)


# ---- a board in the emulator -------------------------------------------------------------------------------------------

has_emulator = shutil.which("qemu-system-arm") is not None and shutil.which("arm-none-eabi-gcc") is not None


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    return make_materials(tmp_path_factory.mktemp("stage"), boards=("posix", "nrf51822"))


@pytest.mark.broker
@pytest.mark.emulator
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
@pytest.mark.skipif(not has_emulator, reason="qemu-system-arm or arm-none-eabi-gcc is not installed")
def test_an_emulated_board_whose_identity_is_erased_gets_one_and_takes_part_in_a_round(
    tmp_path: Path, materials: Materials
) -> None:
    with Stage(tmp_path, materials, [Part("b", "nrf51822", "serial", has_partner=True)], {"form": "alternating"}) as stage:
        stage.start_devices(is_provisioned=False)
        device: VirtualDevice = stage.devices["b"]
        image = tmp_path / "device-b.bin"
        image.touch(0o600)
        image.write_bytes(stage.identities["b"])
        arguments = ["--image", str(image), "--board", "nrf51822", "--patience", "30"]
        assert main(["enroll", "serial", "device-b", "--port", device.port, *arguments]) == 0
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=1))
        assert result["rounds"][0]["reported"] == 1
        assert result["rounds"][0]["updates"][0]["trained"] > 0
        with Registry.open(stage.directory / "registry") as registry:
            assert registry.key("device-b") == read_identity_region(stage.identities["b"]).key
        device.kill()
        assert (device.directory / "identity.bin").read_bytes().startswith(image.read_bytes())
