# SPDX-License-Identifier: Apache-2.0
"""Virtual devices start, speak, survive a power cut and say what is wrong with them."""

import contextlib
import os
import select
import termios
import time
import tty

import pytest

from fedmote.errors import ConfigError, DoesNotFitError, RigError
from fedmote.package.boards import Board
from fedmote.wire import codec
from fedmote.wire.frame import FrameDecoder
from fedmote.wire.schema import Kind
from fedmote_hil.virtual import VirtualDevice

from .rig import BOARDS, first_message, link_of, listener, regions, small_package


@pytest.mark.parametrize("board", BOARDS)
def test_a_started_device_says_hello_with_its_name_board_and_budgets(board):
    samples, identity = regions()
    budgets = Board.load(board)
    with listener() as server, VirtualDevice(board, "board-1", samples, identity, link_of(server)):
        connection, _ = server.accept()
        with contextlib.closing(connection):
            hello = first_message(connection)
    assert hello.kind is Kind.HELLO
    assert (hello["device"], hello["board"], hello["num_samples"]) == ("board-1", board, 4)
    assert hello["slot_bytes"] == budgets.slot_bytes - 48  # what a package may fill beside marks and commit record
    assert hello["arena_bytes"] == budgets.arena_bytes
    assert hello["max_body"] == budgets.body_max


@pytest.mark.parametrize("board", BOARDS)
def test_a_restarted_device_says_hello_with_another_boot_nonce(board):
    samples, identity = regions()
    boots = []
    with listener() as server, VirtualDevice(board, "board-1", samples, identity, link_of(server)) as device:
        for _ in range(2):
            connection, _ = server.accept()
            with contextlib.closing(connection):
                boots.append(first_message(connection)["boot"])
            device.restart()
    assert boots[0] != boots[1]


@pytest.mark.parametrize("board", [board for board in BOARDS if board == "posix" or board.values[0] != "lm3s6965"])
def test_boots_are_counted_over_power_cuts(board):
    """Where the board has a journal: the boot of hello is the next one, however often the power goes."""
    samples, identity = regions()
    boots = []
    with listener() as server, VirtualDevice(board, "board-1", samples, identity, link_of(server)) as device:
        for _ in range(4):
            connection, _ = server.accept()
            with contextlib.closing(connection):
                boots.append(first_message(connection)["boot"])
            device.restart()
    assert boots == list(range(boots[0], boots[0] + 4))


@pytest.mark.parametrize("board", BOARDS)
def test_a_device_connects_again_when_its_line_breaks(board):
    samples, identity = regions()
    with listener() as server, VirtualDevice(board, "board-1", samples, identity, link_of(server)):
        for _ in range(2):
            connection, _ = server.accept()
            with contextlib.closing(connection):
                assert first_message(connection).kind is Kind.HELLO


@pytest.mark.parametrize("board", BOARDS)
def test_a_device_speaks_over_a_pseudo_terminal(board):
    samples, identity = regions()
    with VirtualDevice(board, "board-1", samples, identity, "pty") as device:
        line = os.open(device.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(line, termios.TCSANOW)
            assert _hello_from(line)["device"] == "board-1"
        finally:
            os.close(line)


def _hello_from(line):
    decoder = FrameDecoder()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if select.select([line], [], [], 1)[0]:
            with contextlib.suppress(BlockingIOError):
                for frame in decoder.feed(os.read(line, 4096)):
                    return codec.decode(frame.kind, frame.body)
    raise AssertionError("no message within 30 s")


@pytest.mark.parametrize("board", BOARDS)
def test_an_installed_package_is_in_the_hello(board):
    samples, identity = regions()
    package = small_package(2, board)
    with (
        listener() as server,
        VirtualDevice(board, "board-1", samples, identity, link_of(server), package=package.device_form()),
    ):
        connection, _ = server.accept()
        with contextlib.closing(connection):
            assert first_message(connection)["model_hash"] == package.hash


@pytest.mark.parametrize("name", ["identity", "samples"])
def test_a_process_without_identity_or_samples_ends_and_says_so(name):
    parts = dict(zip(("samples", "identity"), regions(), strict=True)) | {name: bytes(64)}
    device = VirtualDevice("posix", "board-1", parts["samples"], parts["identity"], "tcp://127.0.0.1:9")
    with device:
        _wait_for_end(device)
        assert device.exit_code == 2
        assert f"{name}.bin: status -2" in device.log()


@pytest.mark.parametrize("name", ["identity", "samples"])
@pytest.mark.parametrize("board", BOARDS[1:])
def test_a_board_without_identity_or_samples_says_so_in_words(board, name):
    parts = dict(zip(("samples", "identity"), regions(), strict=True)) | {name: bytes(64)}
    with listener() as server, VirtualDevice(board, "board-1", parts["samples"], parts["identity"], link_of(server)):
        connection, _ = server.accept()
        with contextlib.closing(connection):
            connection.settimeout(30)
            said, words, deadline = b"", f"fedmote: no {name} in flash: status -2\r\n".encode(), time.monotonic() + 60
            while words not in said:  # a board without an identity says hello as well, in frames
                assert time.monotonic() < deadline, said
                said += connection.recv(256)


def test_a_process_keeps_its_slots_over_a_restart(tmp_path):
    samples, identity = regions()
    package = small_package(2, "posix")
    with listener() as server:
        device = VirtualDevice(
            "posix", "d", samples, identity, link_of(server), package=package.device_form(), directory=tmp_path
        )
        for _ in range(2):
            with device:
                connection, _ = server.accept()
                with contextlib.closing(connection):
                    assert first_message(connection)["model_hash"] == package.hash


@pytest.mark.parametrize("link", ["http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "mqtt://:1883"])
def test_links_that_cannot_be_read_are_refused_at_once(link):
    with pytest.raises(ConfigError, match="expected mqtt://HOST:PORT"):
        VirtualDevice("posix", "board-1", b"", b"", link)


def test_a_package_larger_than_a_slot_is_refused():
    with pytest.raises(DoesNotFitError):
        VirtualDevice("stm32f405", "board-1", b"", b"", "pty", package=bytes(24576))


def test_a_device_is_started_once():
    samples, identity = regions()
    with VirtualDevice("posix", "board-1", samples, identity, "tcp://127.0.0.1:9") as device:
        with pytest.raises(RigError, match="runs already"):
            device.start()
        device.kill()
        device.kill()
        assert not device.is_running


def _wait_for_end(device):
    deadline = time.monotonic() + 30
    while device.is_running:
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.01)
