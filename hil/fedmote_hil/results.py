# SPDX-License-Identifier: Apache-2.0
"""What a program on an emulated board hands back: one blob of known size over its serial line, or a refusal."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path

from fedmote.errors import DeviceError, RemoteWireError
from fedmote.package.boards import Board
from fedmote.wire import codec
from fedmote.wire.frame import FrameDecoder
from fedmote.wire.schema import Kind, Status
from fedmote_hil.build import Image
from fedmote_hil.emulator import Emulator

_SILENCE_S = 60.0  # an emulated board that says nothing for so long has stopped


def collect_results(image: Image, regions: Mapping[str, Path], size: int, directory: Path, *, is_counting: bool = False) -> bytes:
    """Starts an image in the emulator and takes the blob that it sends.

    Args:
        image: of an emulated board.
        regions: files by the board's names of its regions.
        size: of the blob, in bytes.
        directory: for the emulator's files.
        is_counting: see `Emulator`.

    Raises:
        DeviceError: the board refused or stopped.
        RemoteWireError: it sent something else.
        RigError: no emulator.
    """
    board, path = image.board, directory / "line"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))
        server.listen(1)
        server.settimeout(_SILENCE_S)
        emulator = Emulator(board, image.path, regions, f"unix:{path}", directory, is_counting)
        try:
            connection, _ = server.accept()
            with contextlib.closing(connection):
                connection.settimeout(_SILENCE_S)
                return _receive(board, connection, size)
        except (TimeoutError, EOFError) as error:
            said = emulator.text() or "it says nothing"
            raise DeviceError(f"board {board.name} stopped: {said}") from error
        finally:
            emulator.kill()
            path.unlink()


def refused(board: Board, number: int) -> DeviceError:
    """The error of a board that refused with a status."""
    try:
        status = Status(number)
    except ValueError:  # of a newer schema
        return DeviceError(f"board {board.name} refused: status {number}")
    return DeviceError(f"board {board.name} refused: {status.name.lower().replace('_', '-')}", status)


def _receive(board: Board, connection: socket.socket, size: int) -> bytes:
    """The blob that the board sends, chunk after chunk."""
    decoder = FrameDecoder()
    blob = bytearray()
    while len(blob) < size:
        received = connection.recv(65536)
        if not received:
            raise EOFError
        for frame in decoder.feed(received):
            message = codec.decode(frame.kind, frame.body)
            if message.kind is Kind.REFUSE:
                raise refused(board, message["status"])
            if message.kind is Kind.DATA:
                if message["offset"] != len(blob):
                    raise RemoteWireError(Status.FRAME_LENGTH, f"results from {message['offset']} on, {len(blob)} expected")
                blob += message["data"]
    return bytes(blob[:size])  # several frames may come at once
