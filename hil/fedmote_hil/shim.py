# SPDX-License-Identifier: Apache-2.0
"""A bad line: stands between a device's TCP stream and whoever it talks to, and does to the bytes what lines do.

    device ----tcp----> Shim ----tcp----> LinkServer, broker
                        |  Impairment of each direction: what happens to its pieces
                        |  pace: how fast its bytes come out

An `Impairment` says what happens, an `Impairer` does it to one direction of one connection, without a clock and without I/O:
the same seed and the same pieces give the same bytes. A piece is a frame with its zero at the end where the stream speaks
serial frames. A stream that promises order and completeness by itself, such as MQTT's, cannot lose or swap pieces: for it
use pacing, `cut`, `stall` and outages, with `is_framed=False`.

    async with Shim(server.url, up=Impairment(loss=0.1), down=Impairment(loss=0.1), rate_bytes_s=11_520, seed=7) as shim:
        device = VirtualDevice("posix", ..., link=shim.url)
        shim.stall(2.0)                 # an outage: whatever is sent meanwhile is lost
        await shim.cut()                # all connections end; the device may come again at once
        await shim.cut(block_s=30.0)    # and not before that
        shim.set(up=Impairment(), down=Impairment())
        print(shim.up, shim.down)       # counters

Also without a network: `Impairer(impairment, seed).feed(piece, now)` returns the pieces that come out.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from fedmote.errors import ConfigError, TransportError
from fedmote.transport.stream import split_url

READ_BYTES = 4096
Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Impairment:
    """What happens to the pieces of one direction.

    Attributes:
        loss: share of pieces that vanish, 0 to 1.
        burst_loss: share of pieces at which a burst of losses begins; it takes `burst_pieces` pieces.
        burst_pieces: length of a burst.
        duplicate: share of pieces that come twice.
        reorder_window: pieces are handed on in random order within this many; 0 or 1: in their order. Held pieces go on when
            `flush` is called, which the shim does after `HOLD_S` without a new one.
        bit_error_rate: share of bits that flip, 0 to 1. A flip may hit a delimiter, and make one.
        noise: share of pieces before which random bytes come, as of a boot loader; zeros are among them.
        noise_bytes: at most so many.
        drop_run: share of pieces that lose a run of bytes, as an overrun of a receiver does.
        drop_run_bytes: at most so many.
        outages: (start, end) in seconds since the connection began: what comes meanwhile is lost.
        outage_every_s, outage_s: beside those, an outage of a random length between both ends of `outage_s` begins after a
            random time, `outage_every_s` on average; 0: none.
    """

    loss: float = 0.0
    burst_loss: float = 0.0
    burst_pieces: int = 8
    duplicate: float = 0.0
    reorder_window: int = 0
    bit_error_rate: float = 0.0
    noise: float = 0.0
    noise_bytes: int = 64
    drop_run: float = 0.0
    drop_run_bytes: int = 16
    outages: tuple[tuple[float, float], ...] = ()
    outage_every_s: float = 0.0
    outage_s: tuple[float, float] = (0.2, 5.0)

    def __post_init__(self) -> None:
        for name in ("loss", "burst_loss", "duplicate", "bit_error_rate", "noise", "drop_run"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{name} = {value}: a share from 0 to 1 is expected")


class Impairer:
    """Does an impairment to the pieces of one direction of one connection.

    Attributes:
        impairment: may be replaced at any time.
        counts: pieces by what happened: "in", "out", "lost", "doubled", "flipped", "noise", "run-dropped", "in-outage".
    """

    def __init__(self, impairment: Impairment, seed: int | str) -> None:
        self.impairment = impairment
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._burst_left = 0
        self._held: list[bytes] = []
        self._outage: tuple[float, float] | None = None

    @property
    def is_holding(self) -> bool:
        """Are pieces held back to be swapped?"""
        return bool(self._held)

    def feed(self, piece: bytes, now: float = 0.0) -> list[bytes]:
        """What comes out for one piece that comes in `now` seconds after the connection began."""
        self.counts["in"] += 1
        if self._is_in_outage(now):
            self.counts["in-outage"] += 1
            return []
        if self._is_lost():
            self.counts["lost"] += 1
            return []
        copies = [piece]
        if self._random.random() < self.impairment.duplicate:
            self.counts["doubled"] += 1
            copies.append(piece)
        return self._swap([self._damage(copy) for copy in copies])

    def flush(self) -> list[bytes]:
        """Hands on what is held back."""
        held, self._held = self._held, []
        self._random.shuffle(held)
        self.counts["out"] += len(held)
        return held

    def _is_in_outage(self, now: float) -> bool:
        shape = self.impairment
        if any(start <= now < end for start, end in shape.outages):
            return True
        if shape.outage_every_s <= 0:
            return False
        while self._outage is None or now >= self._outage[1]:
            begin = (0.0 if self._outage is None else self._outage[1]) + self._random.expovariate(1 / shape.outage_every_s)
            self._outage = (begin, begin + self._random.uniform(*shape.outage_s))
        return self._outage[0] <= now

    def _is_lost(self) -> bool:
        shape = self.impairment
        if self._burst_left == 0 and self._random.random() < shape.burst_loss:
            self._burst_left = shape.burst_pieces
        if self._burst_left > 0:
            self._burst_left -= 1
            return True
        return self._random.random() < shape.loss

    def _damage(self, piece: bytes) -> bytes:
        shape, draw = self.impairment, self._random
        if shape.bit_error_rate > 0:
            piece = self._flip(piece)
        if draw.random() < shape.drop_run:
            self.counts["run-dropped"] += 1
            size = min(len(piece), draw.randint(1, shape.drop_run_bytes))
            start = draw.randint(0, len(piece) - size)
            piece = piece[:start] + piece[start + size :]
        if draw.random() < shape.noise:
            self.counts["noise"] += 1
            piece = draw.randbytes(draw.randint(1, shape.noise_bytes)) + b"\0" + piece
        return piece

    def _flip(self, piece: bytes) -> bytes:
        """Flips bits: their distances are drawn, so that clean pieces cost one draw."""
        rate, bits = self.impairment.bit_error_rate, 8 * len(piece)
        damaged = bytearray(piece)
        position = self._distance(rate)
        while position < bits:
            damaged[position // 8] ^= 1 << position % 8
            position += 1 + self._distance(rate)
        if damaged != piece:
            self.counts["flipped"] += 1
        return bytes(damaged)

    def _distance(self, rate: float) -> int:
        """Sound bits before the next flip."""
        return 0 if rate >= 1 else int(self._random.expovariate(rate)) if rate > 0 else 1 << 62

    def _swap(self, pieces: list[bytes]) -> list[bytes]:
        window = self.impairment.reorder_window
        if window <= 1 and not self._held:
            self.counts["out"] += len(pieces)
            return pieces
        self._held += pieces
        out = []
        while len(self._held) >= max(1, window):
            out.append(self._held.pop(self._random.randrange(len(self._held))))
        self.counts["out"] += len(out)
        return out


class Pieces:
    """Cuts a stream into frames, each with its delimiter; or hands on what comes where it is not framed."""

    def __init__(self, is_framed: bool) -> None:
        self._is_framed = is_framed
        self._pending = b""

    def cut(self, data: bytes) -> list[bytes]:
        """The pieces that `data` completes."""
        if not self._is_framed:
            return [data]
        *ended, self._pending = (self._pending + data).split(b"\0")
        return [piece + b"\0" for piece in ended]


# Pieces that are held to be swapped go on after this time without another one: the last of a burst must not wait for ever.
HOLD_S = 0.05
# The bucket of a paced line: a UART's queue. More would let a whole frame come at once, less would lose the line's rate to the
# lateness of timers on a busy machine.
BUCKET_BYTES = 128
# What may wait in front of a paced line. Beyond it the sender is held back by its own stream, as by a full driver queue.
QUEUE_BYTES = 64 * 1024


@dataclass
class _Line:
    """One direction of one connection: pieces in, bytes out at the line's pace."""

    impairer: Impairer
    pieces: Pieces
    rate_bytes_s: float | None
    delay_s: float
    queue: asyncio.Queue[tuple[float, bytes]] = field(default_factory=asyncio.Queue)
    waiting_bytes: int = 0
    has_room: asyncio.Event = field(default_factory=asyncio.Event)


class Shim:
    """A listening address that is a bad line to another one. Use as an asynchronous context manager.

    Args:
        target: `tcp://host:port` or `mqtt://host:port` of whoever listens behind it.
        up, down: what happens to pieces from the device, and to it.
        rate_bytes_s: bytes that come out per second and direction; None: as fast as they come. 11,520 is a UART at 115,200 baud.
        delay_s: on the way, in each direction.
        is_framed: the stream speaks serial frames; otherwise pieces are what a read returns.
        seed: of all draws; each connection and direction has its own.

    Attributes:
        up, down: counters of all connections, by direction; see `Impairer.counts`, and "bytes" that came out.
        num_connections: taken so far.
    """

    def __init__(
        self,
        target: str,
        up: Impairment | None = None,
        down: Impairment | None = None,
        rate_bytes_s: float | None = None,
        delay_s: float = 0.0,
        is_framed: bool = True,
        seed: int = 0,
    ) -> None:
        _, self._host, self._port = split_url(target)
        self._impairments: dict[Direction, Impairment] = {"up": up or Impairment(), "down": down or Impairment()}
        self._rate_bytes_s = rate_bytes_s
        self._delay_s = delay_s
        self._is_framed = is_framed
        self._seed = seed
        self._server: asyncio.Server | None = None
        self._impairers: dict[Direction, list[Impairer]] = {"up": [], "down": []}
        self._bytes: Counter[Direction] = Counter()
        self._connections: set[asyncio.Task[None]] = set()
        self._stalled_until = 0.0
        self._blocked_until = 0.0
        self.num_connections = 0

    @property
    def url(self) -> str:
        """Where the device connects to."""
        if self._server is None:
            raise TransportError("the shim does not run")
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def up(self) -> Counter[str]:
        """Counters of what came from devices."""
        return self._counts("up")

    @property
    def down(self) -> Counter[str]:
        """Counters of what went to devices."""
        return self._counts("down")

    def _counts(self, direction: Direction) -> Counter[str]:
        total: Counter[str] = Counter(bytes=self._bytes[direction])
        for impairer in self._impairers[direction]:
            total.update(impairer.counts)
        return total

    async def start(self) -> None:
        """Listens at a free port of this machine."""
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)

    async def close(self) -> None:
        """Ends all connections and listens no more. Harmless twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def set(self, up: Impairment | None = None, down: Impairment | None = None) -> None:
        """Replaces what happens, for running connections too."""
        for direction, given in (("up", up), ("down", down)):
            if given is not None:
                key: Direction = "up" if direction == "up" else "down"
                self._impairments[key] = given
                for impairer in self._impairers[key]:
                    impairer.impairment = given

    def stall(self, duration_s: float) -> None:
        """An outage of both directions from now on: what is sent meanwhile is lost, connections stay."""
        self._stalled_until = asyncio.get_running_loop().time() + duration_s

    async def cut(self, block_s: float = 0.0) -> None:
        """Ends all connections; new ones are closed at once for `block_s` seconds."""
        self._blocked_until = asyncio.get_running_loop().time() + block_s
        tasks = tuple(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # asyncio runs this as a task
        self._connections.add(task)
        try:
            if asyncio.get_running_loop().time() >= self._blocked_until:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either side went away, or the line was cut: both ends see their stream end
        finally:
            self._connections.discard(task)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection(self._host, self._port)
        number, self.num_connections = self.num_connections, self.num_connections + 1
        began = asyncio.get_running_loop().time()
        try:
            lines = {name: self._line(name, number) for name in ("up", "down")}
            tasks = [
                asyncio.create_task(work)
                for work in (
                    self._fill(lines["up"], reader, began),
                    self._drain(lines["up"], other_writer, "up"),
                    self._fill(lines["down"], other_reader, began),
                    self._drain(lines["down"], writer, "down"),
                )
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            other_writer.close()

    def _line(self, name: str, number: int) -> _Line:
        direction: Direction = "up" if name == "up" else "down"
        impairer = Impairer(self._impairments[direction], f"{self._seed}/{number}/{direction}")
        self._impairers[direction].append(impairer)
        return _Line(impairer, Pieces(self._is_framed), self._rate_bytes_s, self._delay_s)

    async def _fill(self, line: _Line, reader: asyncio.StreamReader, began: float) -> None:
        """Reads, impairs and queues until the stream ends."""
        clock = asyncio.get_running_loop().time

        def put(pieces: list[bytes]) -> None:
            for piece in pieces:
                line.waiting_bytes += len(piece)
                line.queue.put_nowait((clock() + line.delay_s, piece))

        while True:
            data = await _read(reader, HOLD_S if line.impairer.is_holding else None)
            if data is None:
                put(line.impairer.flush())
                continue
            if not data:
                return
            for piece in line.pieces.cut(data):
                now = clock()
                put([] if now < self._stalled_until else line.impairer.feed(piece, now - began))
            while line.waiting_bytes > QUEUE_BYTES:
                line.has_room.clear()
                await line.has_room.wait()

    async def _drain(self, line: _Line, writer: asyncio.StreamWriter, direction: Direction) -> None:
        """Writes what is queued, at the line's pace."""
        clock = asyncio.get_running_loop().time
        bucket = Bucket(line.rate_bytes_s, BUCKET_BYTES, clock)
        while True:
            due, piece = await line.queue.get()
            if (wait_s := due - clock()) > 0:
                await asyncio.sleep(wait_s)
            for start in range(0, len(piece), BUCKET_BYTES):
                part = piece[start : start + BUCKET_BYTES]
                await bucket.take(len(part))
                writer.write(part)
                self._bytes[direction] += len(part)
            await writer.drain()
            line.waiting_bytes -= len(piece)
            line.has_room.set()


class Bucket:
    """A token bucket: so many bytes per second on average, whatever the timer's resolution.

    Args:
        rate_bytes_s: None: no limit.
        capacity_bytes: may come at once after a pause.
        clock: monotonic seconds.
    """

    def __init__(self, rate_bytes_s: float | None, capacity_bytes: int, clock: Callable[[], float]) -> None:
        self._rate = rate_bytes_s
        self._clock = clock
        self._credit_s = 0.0 if rate_bytes_s is None else capacity_bytes / rate_bytes_s
        self._free_at = clock()

    async def take(self, size_bytes: int) -> None:
        """Waits until all that was taken is on the line, but for the bucket's content: a late timer costs no rate."""
        if self._rate is None:
            return
        self._free_at = max(self._free_at, self._clock()) + size_bytes / self._rate
        if (wait_s := self._free_at - self._clock() - self._credit_s) > 0:
            await asyncio.sleep(wait_s)


async def _read(reader: asyncio.StreamReader, timeout_s: float | None) -> bytes | None:
    """Some bytes, nothing at the end of the stream, None where the time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            return await reader.read(READ_BYTES)
    return None
