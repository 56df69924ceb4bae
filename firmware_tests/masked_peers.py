# SPDX-License-Identifier: Apache-2.0
"""A group of devices and its coordinator: a `MaskedPeers` for each device, one `Group` behind all of them.

The coordinator follows SPEC.md, section 13, but for one thing: it sums whatever survives, however few they are, so that a small
group shows every loss.
"""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import cbor2
import numpy as np

from fedmote.wire.regions import identity_region
from fedmote.wire.schema import Kind
from firmware_tests.device_bench import Device, FlashModel
from firmware_tests.mask_reference import Member, Participation, Sum, members_of
from firmware_tests.one_round import MODEL_HANDLE, PACKAGE, data, plan_for
from firmware_tests.scripted_peers import COORDINATOR, RUN, Fields, Packet, Pull
from firmware_tests.sealed_peers import CELL_KEY, KEY, SealedPeers

CLIP_NORM = 0.5
PEERS_HANDLE = 0x700
ROUND = 1
JOURNAL_BYTES = 2048


def masking_field(
    group: bytes,
    step: int,
    survivors: int = 0,
    peers: bytes | None = None,
    clip_norm: float = CLIP_NORM,
    handle: int = PEERS_HANDLE,
) -> bytes:
    """`masking` of a plan."""
    told = (handle, len(peers), zlib.crc32(peers)) if peers is not None else (0, 0, 0)
    return struct.pack("<8sfBBHIII", group, clip_norm, step, survivors, 0, *told)


@dataclass
class MaskedPeers(SealedPeers):
    """Coordinator and partner of one member.

    Attributes:
        masking: makes the field of its next plan; None: the plan has none.
        blobs_of_step: what the member handed in, by step.
        deaf_to: steps whose reports are not heard.
    """

    masking: Callable[[], bytes | None] = lambda: None
    blobs_of_step: dict[int, bytes] = field(default_factory=dict)
    deaf_to: set[int] = field(default_factory=set)

    def plan_packet(self) -> Packet:
        packet, masking = super().plan_packet(), self.masking()
        return packet if masking is None else Packet(packet.channel, packet.kind, packet.fields | {"masking": masking})

    def hear_offer(self, device: Device, packet: Packet) -> None:
        if packet.kind != Kind.REPORT:
            super().hear_offer(device, packet)
            return
        self.reports.append(packet.fields)
        handle, step = int(packet.fields["handle"]), int(packet.fields.get("mask_step", 0))
        if step in self.deaf_to:
            return
        pull = self.pulls.get((COORDINATOR, step))
        if pull and pull.is_complete and pull.handle == handle:
            self.acknowledge(device, pull)
        elif pull is None or pull.handle != handle:
            self.pulls[COORDINATOR, step] = Pull(
                COORDINATOR, ROUND, handle, int(packet.fields["size"]), int(packet.fields["crc"])
            )

    def hear_data(self, device: Device, packet: Packet) -> None:
        super().hear_data(device, packet)
        for (channel, step), pull in self.pulls.items():
            if channel == COORDINATOR and pull.is_complete:
                self.blobs_of_step[step] = pull.blob()

    def acknowledge(self, device: Device, pull: Pull) -> None:
        """The round goes on until step 3 was handed in."""
        if pull.channel != COORDINATOR:
            super().acknowledge(device, pull)
        elif self.is_acking:
            self.tell(device, Packet(COORDINATOR, Kind.ACK, {"handle": pull.handle, "run": RUN, "round": pull.round}))


class Group:
    """Devices, their peers, and the coordinator's books.

    Attributes:
        sum: what came.
        step: that is wanted.
    """

    def __init__(self, members: int = 8, neighbours: int = 7, threshold: int = 4, **changes: Any) -> None:
        self.members = members_of(members, neighbours, threshold)
        self.sum = Sum(self.members, RUN, ROUND, {}, {}, {})
        self.step = 1
        self.devices: dict[int, Device] = {}
        self.peers: dict[int, MaskedPeers] = {}
        for number in self.members:
            self.devices[number], self.peers[number] = self._member(number, changes)

    def _member(self, number: int, changes: Fields) -> tuple[Device, MaskedPeers]:
        name = f"board-{number}"
        device = member_device(self.members[number], name)
        peers = MaskedPeers(plan_for(PACKAGE, **changes), {MODEL_HANDLE: PACKAGE}, id=name)
        peers.masking = lambda: self.masking_of(number)
        return device, peers

    def masking_of(self, number: int) -> bytes:
        group, peers = self.members[number].group, self.sum.peers(number) if self.step > 1 else None
        if peers is not None:
            self.peers[number].blobs[PEERS_HANDLE] = peers
        return masking_field(group, self.step, self.sum.survivors(number) if self.step == 3 else 0, peers)

    def run(self, step: int, numbers: Iterable[int]) -> None:
        """Members hand in the blob of a step; then the step is over."""
        kept = (self.sum.keys, self.sum.masked, self.sum.shares)[step - 1]
        self.step = step
        came = {}
        for number in numbers:
            device, peers = self.devices[number], self.peers[number]
            if step > 1:
                peers.tell(device, peers.plan_packet())
            peers.run(device, lambda peers=peers, device=device: self._is_done(peers, device, step))
            came[number] = peers.blobs_of_step[step]
        kept.update(came)

    def _is_done(self, peers: MaskedPeers, device: Device, step: int) -> bool:
        return step in peers.blobs_of_step and (step < 3 or device.state == "idle") and not device.info.is_update_held

    def participation(self, number: int) -> Participation:
        """The reference's member, under the salt that the device chose."""
        return Participation(self.members[number], RUN, ROUND, self.sum.keys[number][4:12])

    def remember(self) -> object:
        """All of the group, to come back to."""
        ends = {number: copy.deepcopy(peers.ends) for number, peers in self.peers.items()}
        devices = {
            number: (device._memory.copy(), device._guarded.copy(), device.now, device.seed, bytes(device.rx), bytes(device.tx))
            for number, device in self.devices.items()
        }
        peers = {
            number: (dict(one.blobs_of_step), dict(one.pulls), one._sequence, one.now_s) for number, one in self.peers.items()
        }
        return devices, peers, ends, (dict(self.sum.keys), dict(self.sum.masked), dict(self.sum.shares)), self.step

    def come_back(self, memory: Any) -> None:
        """To what `remember` gave."""
        devices, peers, ends, books, self.step = memory
        for number, (inside, arena, now, seed, rx, tx) in devices.items():
            device = self.devices[number]
            device._memory[:], device._guarded[:], device.now, device.seed = inside, arena, now, seed
            device.rx[:], device.tx[:] = rx, tx
        for number, (blobs, pulls, sequence, now_s) in peers.items():
            one = self.peers[number]
            one.blobs_of_step, one.pulls, one._sequence, one.now_s = dict(blobs), dict(pulls), sequence, now_s
            one.ends = copy.deepcopy(ends[number])
        self.sum.keys, self.sum.masked, self.sum.shares = (dict(book) for book in books)


def member_device(member: Member, name: str = "board-1", **options: Any) -> Device:
    """A device in a group, with samples of its own."""
    x, y = data(seed=options.pop("seed", member.number))
    flash = options.pop("flash", None) or FlashModel(journal_bytes=JOURNAL_BYTES)
    return Device(x, y, identifier=name, flash=flash, key=KEY, cell_key=CELL_KEY, masking=member.identity(), **options)


def identity_in_group(name: str, group: bytes) -> bytes:
    """An identity region with keys and a group."""
    region = identity_region(name, "lab", "serial", key=KEY, cell_key=CELL_KEY)
    body = cbor2.dumps(cbor2.loads(region[12:]) | {11: group}, canonical=True)
    return struct.pack("<4sII", b"FMID", len(body), zlib.crc32(body)) + body


def sum_of(words: Iterable[np.ndarray]) -> np.ndarray:
    return np.sum(list(words), axis=0, dtype=np.uint32)
