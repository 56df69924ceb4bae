# SPDX-License-Identifier: Apache-2.0
"""Blobs in chunks, pulled by the receiver (device_sdk/protocol/SPEC.md, section 4).

The receiver owns all state: the offset of its window of 32 chunks and a mask of those still missing. The sender answers
`get` and remembers nothing. So loss, doubling, reordering, a reboot of the sender and a broker that forgets everything
are the same case: ask again for what did not come.

Neither class reads a clock: `now` is a float of seconds that only ever grows.
"""

from __future__ import annotations

import zlib

from fedmote.errors import RemoteWireError
from fedmote.wire.codec import Message
from fedmote.wire.schema import LIMIT_CHUNK_ALIGN, LIMIT_CHUNK_OVERHEAD, LIMIT_SEAL, LIMIT_WINDOW, Kind, Status

MAX_BLOB_BYTES = 64 * 1024 * 1024
# A window without a new chunk is asked for again after three round trips, within these bounds; each time in vain half as late
# again.
RETRY_S, RETRY_LEAST_S = 1.0, 0.25
_RETRY_ROUND_TRIPS, _RETRY_GROWTH, _SHARE_OF_NEWEST = 3.0, 1.5, 0.25
# Long enough for chunks that overtook each other, and short beside a window on a slow line.
HOLES_S = 0.1


def chunk_bytes(max_body: int) -> int:
    """Largest chunk of a transfer between peers that both accept bodies of `max_body` bytes, sealed or not."""
    return (max_body - LIMIT_CHUNK_OVERHEAD - LIMIT_SEAL) // LIMIT_CHUNK_ALIGN * LIMIT_CHUNK_ALIGN


def body_bytes(chunk: int) -> int:
    """The least that a peer accepts which asks for chunks of this size."""
    return chunk + LIMIT_CHUNK_OVERHEAD + LIMIT_SEAL


def handle_of(blob: bytes) -> int:
    """A handle that is the same after a restart: the blob's CRC-32."""
    return zlib.crc32(blob)


class BlobSource:
    """The sender's side of one blob; `name` is a word for what it is."""

    def __init__(self, handle: int, blob: bytes, name: str = "blob") -> None:
        self.handle = handle
        self.blob = blob
        self.name = name

    def answer(self, get: Message, max_body: int) -> list[Message]:
        """One `data` for each chunk that `get` asks for and the blob has.

        A `get` for another blob, or for chunks that do not fit `max_body` (what the receiver accepts), is answered
        with `refuse`.
        """
        if get["handle"] != self.handle:
            return [unknown_handle(get)]
        chunk = get["chunk"]
        if body_bytes(chunk) > max_body:
            return [Message.of(Kind.REFUSE, status=Status.BODY_TOO_LARGE, handle=self.handle)]
        answers = []
        for bit in range(LIMIT_WINDOW):
            offset = get["offset"] + bit * chunk
            if get["mask"] >> bit & 1 and offset < len(self.blob):
                data = self.blob[offset : offset + chunk]
                answers.append(Message.of(Kind.DATA, handle=self.handle, offset=offset, data=data))
        return answers


def unknown_handle(get: Message) -> Message:
    """The answer to a `get` for a blob that is no longer, or never was, here."""
    return Message.of(Kind.REFUSE, status=Status.STALE_ROUND, handle=get["handle"])


class BlobSink:
    """The receiver's side of one blob.

    Args:
        handle: the sender's name of the blob.
        size: bytes of the blob.
        crc: its CRC-32; None where something else proves the content, such as the hash of a package.
        max_body: bytes of the largest body that both peers accept.
        retry_s: a window without a new chunk for this long is asked for again; sooner where questions were answered sooner, or
            the window's last chunk is here.
        max_size: more is refused before a byte is allocated.

    Raises:
        RemoteWireError: the announced size is above `max_size`.
    """

    def __init__(
        self,
        handle: int,
        size: int,
        crc: int | None,
        max_body: int,
        retry_s: float = RETRY_S,
        max_size: int = MAX_BLOB_BYTES,
    ) -> None:
        if size > max_size:
            raise RemoteWireError(Status.BODY_TOO_LARGE, f"a blob of {size} bytes is announced, {max_size} at most")
        self.handle = handle
        self.size = size
        self.crc = crc
        self.chunk = chunk_bytes(max_body)
        self.retry_s = retry_s
        self._patience_s = retry_s
        self._round_trip_s: float | None = None
        self._asked_at: float | None = None  # of a question that was said once, and has no answer yet
        self.num_ignored = 0
        self._content = bytearray(size)
        self._received = 0
        self._window = 0
        self._missing = self._full_mask()
        self._ask_at: float | None = None

    @property
    def is_complete(self) -> bool:
        """Is every chunk here? The checksum is `blob`'s matter."""
        return self._missing == 0

    @property
    def progress(self) -> float:
        """Share of the bytes that are here, 0 to 1."""
        return self._received / self.size if self.size else 1.0

    @property
    def wake_at(self) -> float | None:
        """When `poll` has something to say; None when it never will, or before `start`."""
        return None if self.is_complete else self._ask_at

    def start(self, now: float) -> list[Message]:
        """Ask for what is missing of the window, at the beginning and after every reconnection."""
        if self.is_complete:
            return []
        self._ask_at, self._asked_at = now + self._patience_s, now
        return [Message.of(Kind.GET, handle=self.handle, offset=self._window, chunk=self.chunk, mask=self._missing)]

    def poll(self, now: float) -> list[Message]:
        """Ask again where the time is up."""
        if self.wake_at is None or now < self.wake_at:
            return []
        self._patience_s = min(self.retry_s, _RETRY_GROWTH * self._patience_s)
        again = self.start(now)
        self._asked_at = None  # the answer may be that to the question before
        return again

    def accept(self, data: Message, now: float) -> list[Message]:
        """Take a chunk; the next `get` where it was the last one of its window.

        Chunks that come twice, late, misaligned or of a wrong length are counted in `num_ignored` and change nothing.
        """
        bit = self._bit_of(data)
        if bit is None:
            self.num_ignored += 1
            return []
        content = data["data"]
        self._content[data["offset"] : data["offset"] + len(content)] = content
        self._received += len(content)
        self._missing &= ~(1 << bit)
        self._learn_pace(now)
        # Chunks come in their order: where only earlier ones are missing, none of them will come by itself.
        self._ask_at = now + (min(HOLES_S, self.retry_s) if self._missing >> bit == 0 else self._patience_s)
        if self._missing:
            return []
        self._window += LIMIT_WINDOW * self.chunk
        self._missing = self._full_mask()
        return self.start(now)

    def blob(self) -> bytes:
        """The content; RemoteWireError with CRC where it is not what was announced, TRUNCATED where it is not complete."""
        content = bytes(self._content)
        if not self.is_complete:
            raise RemoteWireError(Status.TRUNCATED, f"{self._received} of {self.size} bytes are here")
        if self.crc is not None and zlib.crc32(content) != self.crc:
            raise RemoteWireError(Status.CRC, f"blob {self.handle:08x} of {self.size} bytes")
        return content

    def _learn_pace(self, now: float) -> None:
        """A chunk came: from a question to the first of them is a round trip, with what the sender did meanwhile."""
        if self._asked_at is not None:
            newest, self._asked_at = now - self._asked_at, None
            known = newest if self._round_trip_s is None else self._round_trip_s
            self._round_trip_s = known + _SHARE_OF_NEWEST * (newest - known)
        if self._round_trip_s is not None:
            self._patience_s = min(self.retry_s, max(RETRY_LEAST_S, _RETRY_ROUND_TRIPS * self._round_trip_s))

    def _bit_of(self, data: Message) -> int | None:
        """Which missing chunk of the window this is."""
        bit, rest = divmod(data["offset"] - self._window, self.chunk)
        if data["handle"] != self.handle or rest or not 0 <= bit < LIMIT_WINDOW or not self._missing >> bit & 1:
            return None
        return bit if len(data["data"]) == min(self.chunk, self.size - data["offset"]) else None

    def _full_mask(self) -> int:
        """Bits of the chunks that the blob has in the window; 0 behind the end."""
        chunks = -(-max(0, self.size - self._window) // self.chunk)
        return (1 << min(chunks, LIMIT_WINDOW)) - 1
