# SPDX-License-Identifier: Apache-2.0
"""A raw MQTT 3.1.1 client on asyncio streams: small enough that one process holds a thousand of them.

It does what it is told, also what a good client would not do: messages go out as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fedmote.errors import TransportError

_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK, _PINGREQ, _DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 14
_ANSWER_S = 30.0


@dataclass(frozen=True)
class Published:
    """What came: topic, payload, and whether the broker had kept it."""

    topic: str
    payload: bytes
    is_retained: bool


class MqttClient:
    """One session. Use as an asynchronous context manager, or call `open` and `close`.

    Args:
        host, tcp_port: of the broker.
        client_id, username, password: of the session.
        keep_alive_s: a PINGREQ goes out every half of it.
        will: topic and payload, published and kept by the broker where the session ends without a word.
    """

    def __init__(
        self,
        host: str,
        tcp_port: int,
        client_id: str,
        username: str,
        password: str,
        keep_alive_s: int = 60,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self._address = (host, tcp_port)
        self._login = (client_id, username, password)
        self._keep_alive_s = keep_alive_s
        self._will = will
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._ping: asyncio.Task[None] | None = None
        self._packet_id = 0
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self.inbox: asyncio.Queue[Published | None] = asyncio.Queue()

    async def open(self) -> None:
        """Connect.

        Raises:
            TransportError: the broker is not there, or refuses the user.
        """
        try:
            async with asyncio.timeout(_ANSWER_S):
                self._reader, self._writer = await asyncio.open_connection(*self._address)
                client_id, username, password = self._login
                flags = 0xC2 | (0x2C if self._will else 0)
                body = _text("MQTT") + bytes([4, flags]) + struct.pack(">H", self._keep_alive_s) + _text(client_id)
                if self._will is not None:
                    body += _text(self._will[0]) + _bytes(self._will[1])
                self._write(_CONNECT << 4, body + _text(username) + _text(password))
                kind, answer = await self._read()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            await self.close()
            raise TransportError(f"the broker at {self._address} does not answer: {error!r}") from error
        if kind >> 4 != _CONNACK or len(answer) != 2 or answer[1] != 0:
            await self.close()
            raise TransportError(f"the broker refused {self._login[1]}: {answer.hex()}")
        self._task = asyncio.create_task(self._receive())
        self._ping = asyncio.create_task(self._keep_alive())

    async def close(self) -> None:
        """End the session. Harmless twice."""
        for task in (self._task, self._ping):
            if task is not None:
                task.cancel()
        if self._writer is not None:
            with contextlib.suppress(OSError, TransportError):
                self._write(_DISCONNECT << 4, b"")
            self._writer.close()
            self._writer = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._writer is not None and not self._writer.is_closing()

    async def subscribe(self, filters: list[str]) -> bytes:
        """Subscribe at QoS 1; the broker's answers, 0x80 for a refusal."""
        body = b"".join(_text(one) + b"\1" for one in filters)
        return await self._ask(_SUBSCRIBE << 4 | 2, lambda number: struct.pack(">H", number) + body)

    async def publish(self, topic: str, payload: bytes, quality: int, is_retained: bool = False) -> None:
        """Publish; at QoS 1 wait for the broker's word."""
        flags = quality << 1 | is_retained
        if quality == 0:
            self._write(_PUBLISH << 4 | flags, _text(topic) + payload)
            if self._writer is not None:
                await self._writer.drain()
            return
        await self._ask(_PUBLISH << 4 | flags, lambda number: _text(topic) + struct.pack(">H", number) + payload)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # ---- packets --------------------------------------------------------------------------------------------------------

    async def _ask(self, head: int, body: Callable[[int], bytes]) -> bytes:
        self._packet_id = self._packet_id % 0xFFFF + 1
        number = self._packet_id
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._write(head, body(number))
            async with asyncio.timeout(_ANSWER_S):
                return await answer
        except TimeoutError as error:
            raise TransportError(f"the broker did not answer {self._login[1]} within {_ANSWER_S:g} s") from error
        finally:
            self._waiting.pop(number, None)

    def _write(self, head: int, body: bytes) -> None:
        if self._writer is None or self._writer.is_closing():
            raise TransportError(f"{self._login[1]} has no connection")
        size, length = len(body), bytearray()
        while True:
            size, low = size >> 7, size & 0x7F
            length.append(low | (0x80 if size else 0))
            if not size:
                break
        self._writer.write(bytes([head]) + bytes(length) + body)

    async def _read(self) -> tuple[int, bytes]:
        assert self._reader is not None  # opened
        head = (await self._reader.readexactly(1))[0]
        size = shift = 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return head, await self._reader.readexactly(size)

    async def _receive(self) -> None:
        try:
            while True:
                head, body = await self._read()
                kind = head >> 4
                if kind == _PUBLISH:
                    self._take(head, body)
                elif kind in (_PUBACK, _SUBACK):
                    answer = self._waiting.get(struct.unpack_from(">H", body)[0])
                    if answer is not None and not answer.done():
                        answer.set_result(body[2:])
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(TransportError(f"{self._login[1]} lost its connection"))
            if self._writer is not None:
                self._writer.close()
            self.inbox.put_nowait(None)

    def _take(self, head: int, body: bytes) -> None:
        size = struct.unpack_from(">H", body)[0]
        topic, at = body[2 : 2 + size].decode(), 2 + size
        if head >> 1 & 3:
            self._write(_PUBACK << 4, body[at : at + 2])
            at += 2
        self.inbox.put_nowait(Published(topic, body[at:], bool(head & 1)))

    async def _keep_alive(self) -> None:
        while self.is_open:
            await asyncio.sleep(self._keep_alive_s / 2)
            with contextlib.suppress(TransportError):
                self._write(_PINGREQ << 4, b"")


def _text(text: str) -> bytes:
    return _bytes(text.encode())


def _bytes(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content
