# SPDX-License-Identifier: Apache-2.0
"""Devices of a group that speak the masked rounds of the protocol, on the wire of the scripted participants."""

import hashlib
import zlib
from dataclasses import dataclass, field

import numpy as np

from fedmote.errors import RemoteWireError
from fedmote.privacy import masks
from fedmote.privacy.fixed_point import FixedPoint
from fedmote.privacy.group import MaskedGroup
from fedmote.privacy.secure_sum import Member, salt_of
from fedmote.wire.blobs import decode_head_update, encode_masked_update
from fedmote.wire.codec import Message
from fedmote.wire.masking import Membership, Ring, Word
from fedmote.wire.schema import Kind
from fedmote.wire.transfer import BlobSink, handle_of

from .conftest import Actor

GROUP = b"group-01"
CLIP_NORM = 2.5


def secret_of(number):
    return hashlib.blake2b(f"secret {number}".encode(), digest_size=32).digest()


def group_of(names, ring=None, clip_norm=CLIP_NORM):
    """A group of these devices, numbered in their order."""
    numbers = {who: number for number, who in enumerate(names, start=1)}
    return MaskedGroup("street", GROUP, ring or Ring.of(len(names)), clip_norm, numbers)


def membership_of(group, who):
    number = group.numbers[who]
    publics = {other: masks.public_key(secret_of(other)) for other in group.ring.neighbours(number)}
    return Membership(group.id, number, group.ring, secret_of(number), publics)


@dataclass
class MaskedActor(Actor):
    """A device of a group.

    Attributes:
        membership: what its identity holds.
        lost: "round/step" texts whose blob it does not hand in: it stays silent for good then.
        resets: the same, where it is reset instead, before it hands the blob in.
        uncut: words that it hands in whatever it learned; None: those of the cut update.
        acked: steps of this participation that were acknowledged.
    """

    membership: Membership | None = None
    lost: set = field(default_factory=set)
    resets: set = field(default_factory=set)
    uncut: object = None
    member: Member | None = None
    words: object = None
    acked: set = field(default_factory=set)
    num_began: int = 0
    is_silent: bool = False

    async def repeat(self):
        if not self.is_silent:
            await super().repeat()

    async def handle(self, message):
        if self.is_silent:
            return
        if message.kind is Kind.ACK and self.update is not None and message["handle"] == self.update[0]["handle"]:
            self.acked.add(self.update[0]["mask_step"])
            self.acks.append((message["round"], self.update[0]["mask_step"]))
            self.update = None
            if self.acked >= {1, 2, 3}:
                self.end_participation()
        elif message.kind is Kind.ACK or (message.kind is Kind.WAIT and message["wait_ms"] == 0):
            pass  # the ack of an earlier step, or the challenge of a new epoch
        elif message.kind in (Kind.WAIT, Kind.REFUSE):
            self.end_participation()
        else:
            await super().handle(message)

    def end_participation(self):
        self.plan, self.update, self.sinks, self.member, self.acked = None, None, [], None, set()

    async def begin(self, plan, now):
        if "masking" not in plan:
            await self.send(Message.of(Kind.REFUSE, status=44, run=plan["run"], round=plan["round"]))
            return
        word = Word.read(plan["masking"])
        assert word.group == self.membership.group
        if self.plan is not None and (self.plan["run"], self.plan["round"]) != (plan["run"], plan["round"]):
            self.end_participation()
        if self.member is None:
            if word.step == 1 and not self.sinks:
                await super().begin(plan, now)
            return
        if self.sinks or self.update is not None or word.step in self.acked:
            return
        self.plan = plan
        if word.step == 2:
            handle, size, crc = word.peers
            self.sinks = [BlobSink(handle, size, crc, self.max_body, 0.05)]
            for get in self.sinks[0].start(now):
                await self.send(get)
        elif word.step == 3 and 2 in self.acked:
            await self.hand_in(3, self.member.answer(word.survivors))

    async def take(self, sink, now):
        if self.member is None:
            self.blobs.append(sink.blob())
            if self.sinks:
                for get in self.sinks[0].start(now):
                    await self.send(get)
                return
            delta = decode_head_update(self.learn(self))
            grid = FixedPoint(float(np.float32(Word.read(self.plan["masking"]).clip_norm)), self.membership.ring.num_members)
            self.words = grid.quantize(delta) if self.uncut is None else self.uncut
            salt = salt_of(self.boot, self.num_began)
            self.num_began += 1
            self.member = Member(self.membership, self.plan["run"], self.plan["round"], salt)
            await self.hand_in(1, self.member.keys())
            return
        try:
            self.member.take_peers(sink.blob())
            masked = self.member.masked(self.words)
        except RemoteWireError as error:
            refuse = Message.of(Kind.REFUSE, status=int(error.status), run=self.plan["run"], round=self.plan["round"])
            self.end_participation()
            await self.send(refuse)
            return
        await self.hand_in(2, encode_masked_update(masked))

    async def hand_in(self, step, blob):
        plan = self.plan
        if f"{plan['round']}/{step}" in self.lost:
            self.is_silent = True
            return
        if f"{plan['round']}/{step}" in self.resets:
            self.resets.discard(f"{plan['round']}/{step}")
            self.boot += 1
            self.end_participation()
            return
        report = Message.of(
            Kind.REPORT, handle=handle_of(blob), run=plan["run"], round=plan["round"], size=len(blob), crc=zlib.crc32(blob),
            num_examples=20 + self.membership.number, version=plan["version"], attempt=plan["attempt"], mask_step=step,
        )  # fmt: skip
        self.update = (report, blob)
        await self.send(report)
