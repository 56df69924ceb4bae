# SPDX-License-Identifier: Apache-2.0
"""Coordinator and partner of scripted_peers.py where messages are sealed, and their restarts under a new epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmote.errors import RemoteWireError
from fedmote.wire.schema import Channel, Kind, Status
from fedmote.wire.seal import EpochEnd, FixedKeys
from firmware_tests.device_bench import Device
from firmware_tests.scripted_peers import Packet, Peers, bodies_of

KEY, CELL_KEY = bytes(range(32)), bytes(range(100, 132))


@dataclass
class SealedPeers(Peers):
    """`Peers` with keys.

    Attributes:
        id: of the device.
        seen: every sealed body that went over the line: (is it to the device, channel, kind, body).
        refused: why messages of the device were not believed.
    """

    id: str = "board-1"
    epoch: int = 1000
    seen: list[tuple[bool, int, int, bytes]] = field(default_factory=list)
    refused: list[Status] = field(default_factory=list)

    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.ends: dict[int, EpochEnd] = {}
        self._epochs: dict[int, int] = {}
        for channel in Channel:
            self.restart(channel)

    def restart(self, channel: Channel) -> None:
        """One of both forgets whom it heard, and begins a new epoch."""
        keys = FixedKeys({self.id: KEY if channel is Channel.COORDINATOR else CELL_KEY})
        self.epoch += 10
        self.ends[channel] = EpochEnd(channel, keys, self.epoch, lambda: self.now_s, self._epochs.get(channel, 0))
        self._epochs[channel] = self.epoch

    def close(self, packet: Packet) -> bytes:
        body = self.ends[packet.channel].seal(self.id, packet.kind, packet.to_body())
        return b"" if body is None else body

    def write(self, device: Device, channel: int, kind: int, body: bytes) -> None:
        if body:  # else the restarted peer does not know the device yet, and its words are lost
            self.seen.append((True, channel, kind, body))
            super().write(device, channel, kind, body)

    def take(self, device: Device) -> list[Packet]:
        self.now_s += 0.01
        packets = []
        for channel, kind, body in bodies_of(device.tx):
            self.seen.append((False, channel, kind, body))
            try:
                opened = self.ends[channel].open(self.id, kind, body)
            except RemoteWireError as error:
                self.refused.append(error.status)
                continue
            if opened.challenge is not None:
                self.write(device, channel, int(Kind.WAIT), opened.challenge)
            if opened.is_fresh:
                packets.append(Packet.of_body(channel, kind, opened.payload))
        return packets
