# SPDX-License-Identifier: Apache-2.0
"""Frames over byte streams: TCP connections, serial ports, ptys.

A `FrameStream` is one end of one stream. Where the streams come from differs, and has one `open_...` function each.
"""

from __future__ import annotations

import asyncio
import os
import termios
from collections import Counter
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import serial

from fedmote.errors import ConfigError, TransportError
from fedmote.wire.frame import Frame, FrameDecoder, encode_frame
from fedmote.wire.schema import LIMIT_BODY_CEILING, Channel, Status

# A window of 32 chunks of the largest size fits twice; a peer that lets more pile up is not reading.
MAX_BACKLOG_BYTES = 4 * 1024 * 1024
# Text of boot loaders and half a frame fit a hundred times; a peer that sends more without a frame speaks something else.
MAX_JUNK_BYTES = 256 * 1024
CONNECT_TIMEOUT_S = 5.0


class FrameStream(asyncio.Protocol):
    """One end of a byte stream that speaks frames.

    Args:
        on_frame: called with the stream and every frame.
        on_lost: called once, when the stream has ended.
        max_body: largest body that is accepted; bounds the memory.

    Attributes:
        id: the peer, once its hello has said it.
    """

    def __init__(
        self,
        on_frame: Callable[[FrameStream, Frame], None],
        on_lost: Callable[[FrameStream], None],
        max_body: int = LIMIT_BODY_CEILING,
    ) -> None:
        self.id: str | None = None
        self.lost = asyncio.Event()
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._decoder = FrameDecoder(max_body)
        self._sequence = 0
        self._junk_bytes = 0
        self._reader: asyncio.ReadTransport | None = None
        self._writer: asyncio.WriteTransport | None = None
        self._is_paused = False
        self._is_closed = False

    @property
    def errors(self) -> Counter[Status]:
        """Frames that were dropped, by reason."""
        return self._decoder.errors

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: the stream is there. A serial port gets its writing half by `write_through`."""
        self._reader = cast(asyncio.ReadTransport, transport)
        if hasattr(transport, "write"):
            self._writer = cast(asyncio.WriteTransport, transport)
        if self._is_closed:
            self.close()
        if self._is_paused:  # after asyncio has begun to read, which it does in the next turn of the loop
            asyncio.get_running_loop().call_soon(self._pause_again)

    def write_through(self, transport: asyncio.WriteTransport) -> None:
        """Name the writing half of a stream whose halves are two."""
        self._writer = transport

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes arrived."""
        frames = self._decoder.feed(data)
        self._junk_bytes = 0 if frames else self._junk_bytes + len(data)
        for frame in frames:
            if not self._is_closed:
                self._on_frame(self, frame)
        if self._junk_bytes > MAX_JUNK_BYTES:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Asyncio: the stream has ended."""
        if not self.lost.is_set():
            self.lost.set()
            self.close()
            self._on_lost(self)

    def send(self, channel: Channel, kind: int, body: bytes) -> bool:
        """Write a frame; False, with nothing written, where the stream has ended or the peer does not keep up."""
        writer = self._writer
        if writer is None or writer.is_closing() or writer.get_write_buffer_size() > MAX_BACKLOG_BYTES:
            return False
        writer.write(encode_frame(Frame(channel, kind, self._sequence, body)))
        self._sequence = (self._sequence + 1) & 0xFFFF
        return True

    def pause(self) -> None:
        """Stop reading: the stream's own flow control holds the peer."""
        self._is_paused = True
        if self._reader is not None and not self._reader.is_closing():
            self._reader.pause_reading()

    def _pause_again(self) -> None:
        if self._is_paused:
            self.pause()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        if self._reader is not None and not self._reader.is_closing():
            self._reader.resume_reading()

    def close(self) -> None:
        """End the stream: nothing more is received; what has been written still goes out where the peer takes it."""
        self._is_closed = True
        for half in (self._reader, self._writer):
            if half is not None and not half.is_closing():
                half.close()


def split_url(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of `tcp://host:port`; ConfigError for anything else."""
    try:
        parts = urlsplit(url)
        if parts.scheme and parts.hostname and parts.port is not None and not parts.path.strip("/"):
            return parts.scheme, parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError(f"{url!r} is no address; tcp://host:port expected")


async def open_tcp(url: str, stream: FrameStream) -> None:
    """Connect a stream to `tcp://host:port`."""
    _, host, port = split_url(url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().create_connection(lambda: stream, host, port)
    except (OSError, TimeoutError) as error:
        raise TransportError(f"{url}: no connection: {error or 'timed out'}; is the other side listening?") from error


async def open_serial(path: str, baud: int, stream: FrameStream) -> None:
    """Connect a stream to a serial port or pty, for ourselves alone."""
    try:
        port = serial.Serial(path, baud, timeout=0, exclusive=True)
        _wait_for_one_byte(port.fileno())
    except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError
        raise TransportError(f"serial port {path}: {error}; see `fedmote doctor` for ports and rights") from error
    loop = asyncio.get_running_loop()
    # Two halves on two descriptors, so that each can be closed without the other; pyserial's own object goes.
    reading, writing = (os.fdopen(os.dup(port.fileno()), mode, buffering=0) for mode in ("rb", "wb"))
    port.close()
    writer, _ = await loop.connect_write_pipe(lambda: _Half(stream), writing)
    stream.write_through(writer)
    await loop.connect_read_pipe(lambda: stream, cast(Any, reading))


class _Half(asyncio.BaseProtocol):
    """The writing half of a serial port: its loss is the stream's."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream

    def connection_lost(self, error: Exception | None) -> None:
        self._stream.connection_lost(error)


def _wait_for_one_byte(descriptor: int) -> None:
    """Let "nothing there" and "hung up" be two answers of `read`; pyserial's setting (VMIN 0) makes them one."""
    attributes = termios.tcgetattr(descriptor)
    attributes[6][termios.VMIN] = 1
    attributes[6][termios.VTIME] = 0
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
