# SPDX-License-Identifier: Apache-2.0
"""Coordinator and partner as a device sees them: scripted, in virtual time, on the serial framing.

Written after SPEC.md and on cbor2 alone; nothing of `fedmote.wire` but the generated numbers is used, so that these
tests judge the C code and not an agreement of two codes of ours.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import cbor2

from fedmote.wire.schema import FIELDS, Kind
from firmware_tests.device_bench import BUSY, CHUNK, Device
from firmware_tests.generate_vectors import frame

COORDINATOR, CELL = 0, 1
RUN = b"run-0001"
_NAMES = {rule.key: name for name, rule in FIELDS.items()}
Fields = dict[str, int | str | bytes]


@dataclass(frozen=True)
class Packet:
    """One message on one channel."""

    channel: int
    kind: Kind
    fields: Fields

    def to_body(self) -> bytes:
        return cbor2.dumps({FIELDS[name].key: value for name, value in self.fields.items()}, canonical=True)

    @classmethod
    def of_body(cls, channel: int, kind: int, body: bytes) -> Packet:
        return cls(channel, Kind(kind), {_NAMES[key]: value for key, value in cbor2.loads(body).items()})

    def to_frame(self, sequence: int) -> bytes:
        return frame(self.channel, int(self.kind), sequence & 0xFFFF, self.to_body())


def uncobs(data: bytes) -> bytes:
    """Inverse of COBS, without the delimiter."""
    out, at = bytearray(), 0
    while at < len(data):
        code = data[at]
        out += data[at + 1 : at + code]
        at += code
        if code < 255 and at < len(data):
            out.append(0)
    return bytes(out)


def bodies_of(stream: bytearray) -> list[tuple[int, int, bytes]]:
    """Takes all complete frames off the stream, as channel, kind and body; the device never sends a bad one."""
    bodies = []
    while (end := stream.find(0)) >= 0:
        raw = uncobs(bytes(stream[:end]))
        del stream[: end + 1]
        if raw:
            channel, kind, _, length = struct.unpack_from("<BBHH", raw)
            assert zlib.crc32(raw[:-4]) == struct.unpack("<I", raw[-4:])[0]
            assert length == len(raw) - 10
            bodies.append((channel, kind, raw[6:-4]))
    return bodies


def packets_of(stream: bytearray) -> list[Packet]:
    """Takes all complete frames off the stream."""
    return [Packet.of_body(*frame) for frame in bodies_of(stream)]


@dataclass
class Pull:
    """A blob on its way from the device."""

    channel: int
    round: int
    handle: int
    size: int
    crc: int
    chunk: int = CHUNK
    offset: int = 0
    chunks: dict[int, bytes] = field(default_factory=dict)
    asked_at: int = -(10**9)

    @property
    def is_complete(self) -> bool:
        return len(self.chunks) == -(-self.size // self.chunk)

    def blob(self) -> bytes:
        blob = b"".join(self.chunks[offset] for offset in sorted(self.chunks))
        assert len(blob) == self.size
        assert zlib.crc32(blob) == self.crc
        return blob

    def get(self) -> Packet:
        """Asks for the missing chunks of the first window that is not complete."""
        first = next(at for at in range(0, self.size, self.chunk) if at not in self.chunks)
        self.offset = first // (32 * self.chunk) * 32 * self.chunk
        window = [self.offset + i * self.chunk for i in range(32) if self.offset + i * self.chunk < self.size]
        mask = sum(1 << i for i, at in enumerate(window) if at not in self.chunks)
        return Packet(self.channel, Kind.GET, {"handle": self.handle, "offset": self.offset, "chunk": self.chunk, "mask": mask})


@dataclass
class Peers:
    """Coordinator (rounds 1 to `rounds`, one plan each) and partner of one device.

    Attributes:
        plan: fields of the plan besides run, round and attempt.
        blobs: handle -> bytes that the coordinator serves.
        updates, samples: blobs as pulled, by round.
        heard: every packet of the device.
        alter: may lose, double or reorder: (number of the frame, packet, is it to the device) -> packets to deliver.
    """

    plan: Fields
    blobs: dict[int, bytes]
    rounds: int = 1
    has_partner: bool = True
    is_acking: bool = True
    round: int = 1
    attempt: int = 0
    boot: int | None = None
    updates: dict[int, list[bytes]] = field(default_factory=dict)
    samples: dict[int, list[bytes]] = field(default_factory=dict)
    reports: list[Fields] = field(default_factory=list)
    heard: list[Packet] = field(default_factory=list)
    told: list[Packet] = field(default_factory=list)
    pulls: dict[tuple[int, int], Pull] = field(default_factory=dict)
    alter: Callable[[int, Packet, bool], list[Packet]] = lambda _number, packet, _is_down: [packet]
    frames: int = 0
    _sequence: int = 65530

    # -- the wire --

    def tell(self, device: Device, packet: Packet) -> None:
        number, self.frames = self.frames, self.frames + 1
        for delivered in self.alter(number, packet, True):
            self.told.append(delivered)
            self.write(device, delivered.channel, int(delivered.kind), self.close(delivered))

    def write(self, device: Device, channel: int, kind: int, body: bytes) -> None:
        """One frame to the device."""
        device.rx += frame(channel, kind, self._sequence & 0xFFFF, body)
        self._sequence += 1

    def close(self, packet: Packet) -> bytes:
        """The body of a packet to the device."""
        return packet.to_body()

    def take(self, device: Device) -> list[Packet]:
        """What the device said."""
        return packets_of(device.tx)

    def exchange(self, device: Device) -> bool:
        """Hears what the device said and answers; also repeats its own questions after 1 s."""
        packets = self.take(device)
        for packet in packets:
            number, self.frames = self.frames, self.frames + 1
            for delivered in self.alter(number, packet, False):
                self.heard.append(delivered)
                self.answer(device, delivered)
        for pull in list(self.pulls.values()):
            if not pull.is_complete and device.now - pull.asked_at >= 1000:
                pull.asked_at = device.now
                self.tell(device, pull.get())
        return bool(packets)

    # -- behaviour --

    def answer(self, device: Device, packet: Packet) -> None:
        if packet.channel == CELL and not self.has_partner:
            return
        handler = {
            Kind.HELLO: self.hear_hello, Kind.GET: self.hear_get, Kind.DATA: self.hear_data,
            Kind.REPORT: self.hear_offer, Kind.SAMPLES: self.hear_offer,
        }.get(packet.kind)  # fmt: skip
        if handler:
            handler(device, packet)

    def hear_hello(self, device: Device, packet: Packet) -> None:
        if self.boot not in (None, packet.fields["boot"]):
            self.attempt += 1  # it lost what it had begun
            self.pulls.clear()
        self.boot = int(packet.fields["boot"])
        if self.round > self.rounds:
            self.tell(device, Packet(COORDINATOR, Kind.WAIT, {"wait_ms": 5000}))
        else:
            self.tell(device, self.plan_packet())

    def plan_packet(self) -> Packet:
        return Packet(COORDINATOR, Kind.PLAN, dict(self.plan, run=RUN, round=self.round, attempt=self.attempt))

    def hear_get(self, device: Device, packet: Packet) -> None:
        offset, chunk, mask, handle = (int(packet.fields[name]) for name in ("offset", "chunk", "mask", "handle"))
        if handle not in self.blobs:
            self.tell(device, Packet(packet.channel, Kind.REFUSE, {"status": 50, "handle": handle}))
            return
        for bit in range(32):
            at = offset + bit * chunk
            if mask >> bit & 1 and at < len(self.blobs[handle]):
                data = self.blobs[handle][at : at + chunk]
                self.tell(device, Packet(packet.channel, Kind.DATA, {"handle": handle, "offset": at, "data": data}))

    def hear_offer(self, device: Device, packet: Packet) -> None:
        if packet.kind == Kind.REPORT:
            self.reports.append(packet.fields)
        handle, number, size, crc = (int(packet.fields[name]) for name in ("handle", "round", "size", "crc"))
        pull = self.pulls.get((packet.channel, number))
        if pull and pull.is_complete and pull.handle == handle:
            self.acknowledge(device, pull)
        elif (pull is None or pull.handle != handle) and (number == self.round or packet.channel == CELL):
            self.pulls[packet.channel, number] = Pull(packet.channel, number, handle, size, crc)

    def hear_data(self, device: Device, packet: Packet) -> None:
        for pull in self.pulls.values():
            if (pull.channel, pull.handle) == (packet.channel, packet.fields["handle"]) and not pull.is_complete:
                pull.chunks[int(packet.fields["offset"])] = bytes(packet.fields["data"])  # type: ignore[arg-type]
                pull.asked_at = device.now
                if pull.is_complete:
                    kept = self.updates if pull.channel == COORDINATOR else self.samples
                    kept.setdefault(pull.round, []).append(pull.blob())
                    self.acknowledge(device, pull)
                elif pull.get().fields["offset"] != pull.offset:
                    pull.asked_at = device.now - 1000  # the window is done

    def acknowledge(self, device: Device, pull: Pull) -> None:
        """The coordinator's round ends with its first acknowledged update; an ack that got lost is given again."""
        if not self.is_acking:
            return
        self.tell(device, Packet(pull.channel, Kind.ACK, {"handle": pull.handle, "run": RUN, "round": pull.round}))
        if pull.channel == COORDINATOR and pull.round == self.round:
            self.round, self.attempt = self.round + 1, 0

    # -- time --

    def run(self, device: Device, until: Callable[[], bool], limit_ms: int = 300_000, max_steps: int = 100_000) -> None:
        """Steps the device until the condition holds; where it idles, the clock jumps to the next timer of either side."""
        end = device.now + limit_ms
        for _ in range(max_steps):
            if until():
                return
            assert device.now <= end, f"not within {limit_ms} ms: {device.state}, {device.info.error}"
            status = device.step()
            if device.flash.is_dead:
                device.rx.clear()
                device.tx.clear()
                device.boot()
                continue
            unread = len(device.rx)
            if not self.exchange(device) and status != BUSY and len(device.rx) == unread:
                due = [pull.asked_at + 1000 - device.now for pull in self.pulls.values() if not pull.is_complete]
                device.now += max(1, min([device.wake_ms(), 60_000, *due]))
        raise AssertionError(f"not within {max_steps} steps: {device.state}")
