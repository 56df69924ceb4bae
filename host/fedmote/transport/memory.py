# SPDX-License-Identifier: Apache-2.0
"""Messages between tasks of one process, for tests and for partners in the coordinator's own process.

What travels are bodies: everything is encoded and decoded as on a line. A line can be told to lose messages.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from fedmote.errors import TransportError
from fedmote.transport.base import Post, Received
from fedmote.wire.codec import Message
from fedmote.wire.schema import LIMIT_BODY_CEILING, Channel, Kind, Status
from fedmote.wire.seal import Seals


class MemoryNetwork:
    """The coordinator and its participants, joined in memory.

    Args:
        loss: share of the messages that are lost.
        seed: of the loss.
        seals: the coordinator's keys; none: messages are not sealed.
    """

    def __init__(self, loss: float = 0.0, seed: int = 0, seals: Seals | None = None) -> None:
        self._loss = loss
        self._generator = random.Random(seed)
        self._ends: dict[str, MemoryEnd] = {}
        self._partners: dict[str, str] = {}
        self.coordinator = MemoryEnd(self, "", seals)

    def participant(self, id: str, devices: Sequence[str] = (), seals: Seals | None = None) -> MemoryEnd:
        """The end of a device, or of a partner with its devices. A second call is a restart: the former end is dead."""
        end = self._ends[id] = MemoryEnd(self, id, seals)
        self._partners |= dict.fromkeys(devices, id)
        return end

    def carry(self, sender: str, id: str, channel: Channel, kind: int, body: bytes) -> bool:
        """Bring a body from one end to another; False where nobody is there. The coordinator's name is empty."""
        if self._generator.random() < self._loss:
            return True
        if channel is Channel.CELL:
            receiver = self._ends.get(id if sender != id else self._partners.get(id, ""))
            named = id
        elif sender:
            receiver, named = self.coordinator, sender
        else:
            receiver, named = self._ends.get(id), id
        if receiver is None:
            return False
        answerer = receiver
        receiver.post.open(named, channel, kind, body, lambda answer, sealed: answerer.answer(named, channel, answer, sealed))
        return True


class MemoryEnd:
    """One end; a `Transport`. Made by `MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, id: str, seals: Seals | None = None) -> None:
        self.id = id
        self.post = Post(seals=seals)
        self.post.set_max_body(id, LIMIT_BODY_CEILING)  # a coordinator takes what it asks for
        self._network = network

    @property
    def errors(self) -> Counter[Status]:
        """See `Transport`."""
        return self.post.errors

    def set_max_body(self, id: str, max_body: int) -> None:
        """See `Transport`."""
        self.post.set_max_body(id, max_body)

    async def start(self) -> None:
        """See `Transport`: it is there already."""

    async def send(self, id: str, channel: Channel, message: Message) -> None:
        """See `Transport`."""
        body = self.post.seal(id, channel, message)
        if body is None or not self._network.carry(self.id, id, channel, message.kind, body):
            self.post.drop(id, message.kind)

    def answer(self, id: str, channel: Channel, kind: Kind, body: bytes) -> None:
        """Send a body as it is."""
        if not self._network.carry(self.id, id, channel, kind, body):
            self.post.drop(id, kind)

    async def receive(self) -> Received:
        """See `Transport`."""
        return await self.post.inbox.get()

    async def close(self) -> None:
        """See `Transport`."""
        self.post.inbox.fail(TransportError(f"the end of {self.id or 'the coordinator'} is closed"))
