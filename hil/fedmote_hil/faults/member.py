# SPDX-License-Identifier: Apache-2.0
"""A participant in Python that speaks the real protocol over the broker, and can be told to say what none should.

What it learns is a function of the plan's seed and its name, so that a run repeats byte by byte. Subclasses and `Conduct` change
what it says; everything else is as a device does it: it speaks first, repeats itself, pulls and lets itself be pulled from.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fedmote.errors import RemoteWireError, TransportError
from fedmote.tensors import dump_safetensors, load_safetensors
from fedmote.wire.blobs import encode_head_update
from fedmote.wire.codec import Message, Value, decode, encode
from fedmote.wire.schema import Kind, Role, Status
from fedmote.wire.topics import parse, quality, topic
from fedmote.wire.transfer import BlobSink, BlobSource, handle_of
from fedmote_hil.faults.model import NUM_PARAMETERS
from fedmote_hil.faults.mqtt import MqttClient

_HELLO_MIN_S, _HELLO_MAX_S = 1.0, 60.0
_REPORT_S = 2.0
_RECONNECT_MIN_S, _RECONNECT_MAX_S = 1.0, 60.0
_LEARNED = 0.01  # size of what it learns


@dataclass
class Conduct:
    """What a participant says differently.

    Attributes:
        hello: fields of its hello that replace the true ones; None leaves a field out.
        report: the same of its report.
        blob: makes its update from the plan; None: a sound one.
        is_silent: it takes its plan and never reports.
        hello_s: it repeats its hello so often, without backing off; None: as devices do.
    """

    hello: dict[str, Value | None] = field(default_factory=dict)
    report: dict[str, Value | None] = field(default_factory=dict)
    blob: Callable[[Message], bytes] | None = None
    is_silent: bool = False
    hello_s: float | None = None


class Member:
    """One participant.

    Args:
        address: HOST, port of the broker.
        site: of the fleet.
        id: its name, which is its user name.
        password: at the broker.
        conduct: see there.
        role, board: as its hello says.

    Attributes:
        heard: everything that came, by kind.
        refusals: statuses that it was told.
        acked: rounds that were acknowledged.
        plan: the newest one.
        blobs: what it pulled for the newest plan: package or checkpoint, and a newer head.
        reports: how many it sent.
        times: loop times of the first of each kind that came, since the last `times.clear()`.
    """

    def __init__(
        self,
        address: tuple[str, int],
        site: str,
        id: str,
        password: str,
        conduct: Conduct | None = None,
        role: Role = Role.DEVICE,
        board: str = "posix",
    ) -> None:
        self.id, self.site = id, site
        self.conduct = conduct or Conduct()
        self.role, self.board = role, board
        self.boot = random.SystemRandom().getrandbits(32)
        self.heard: Counter[Kind] = Counter()
        self.refusals: list[tuple[Status, str]] = []
        self.acked: list[int] = []
        self.plan: Message | None = None
        self.times: dict[Kind, float] = {}
        self.num_connections = 0
        self.reports = 0
        self._address, self._password = address, password
        self._client: MqttClient | None = None
        self._sinks: list[BlobSink] = []
        self.blobs: list[bytes] = []
        self._update: tuple[Message, bytes] | None = None
        self._hello_at, self._backoff_s = 0.0, _HELLO_MIN_S
        self._report_at = 0.0
        self._is_finished: tuple[bytes, int] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether it has a session at the broker."""
        return self._client is not None and self._client.is_open

    async def run(self) -> None:
        """For ever: connect, take part, connect again."""
        pause_s = _RECONNECT_MIN_S
        while True:
            with contextlib.suppress(TransportError, OSError):  # the broker may be gone at any moment
                async with self._new_client() as client:
                    self._client = client
                    await client.subscribe([topic(self.site, self.id, "dn", "#")])
                    state = encode(Message.of(Kind.STATE, boot=self.boot, is_online=1))
                    await client.publish(topic(self.site, self.id, "up", Kind.STATE), state, 1, is_retained=True)
                    self.num_connections += 1
                    pause_s, self._hello_at, self._backoff_s = _RECONNECT_MIN_S, 0.0, _HELLO_MIN_S
                    await self._take_part(client)
            self._client = None
            await asyncio.sleep(random.random() * pause_s)
            pause_s = min(2 * pause_s, _RECONNECT_MAX_S)

    async def say(self, message: Message) -> None:
        """Send a message as it is."""
        await self.say_raw(message.kind, encode(message))

    async def say_raw(self, kind: Kind, body: bytes, id: str | None = None) -> None:
        """Send any bytes, also under another's topic."""
        if self._client is not None:
            await self._client.publish(topic(self.site, id or self.id, "up", kind), body, quality(kind))

    def _new_client(self) -> MqttClient:
        death = encode(Message.of(Kind.STATE, boot=self.boot, is_online=0))
        will = (topic(self.site, self.id, "up", Kind.STATE), death)
        return MqttClient(*self._address, self.id, self.id, self._password, will=will)

    async def _take_part(self, client: MqttClient) -> None:
        while True:
            await self._speak()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.01, self._wake_at() - _now())):
                    published = await client.inbox.get()
                    if published is None:
                        return
                    await self._hear(published.topic, published.payload)

    def _wake_at(self) -> float:
        times = [sink.wake_at for sink in self._sinks[:1] if sink.wake_at is not None]
        if self._update is not None:
            times.append(self._report_at)
        elif not self._sinks:
            times.append(self._hello_at)
        return min(times, default=_now() + 1.0)

    async def _speak(self) -> None:
        """Whatever is due: questions for chunks, the report, or a hello."""
        now = _now()
        if self._sinks:
            for message in self._sinks[0].poll(now):
                await self.say(message)
        elif self._update is not None:
            if now >= self._report_at:
                self._report_at = now + _REPORT_S
                self.reports += 1
                await self.say(self._update[0])
        elif now >= self._hello_at:
            pause_s = self.conduct.hello_s or random.random() * self._backoff_s
            self._hello_at, self._backoff_s = now + pause_s, min(2 * self._backoff_s, _HELLO_MAX_S)
            await self.say_raw(Kind.HELLO, self.hello())

    def hello(self) -> bytes:
        """The body of its hello."""
        true: dict[str, Value] = {
            "device": self.id,
            "role": self.role,
            "boot": self.boot,
            "protocol": 1,
            "board": self.board,
            "sdk": "fault matrix",
            "max_body": 1041,
        }
        return encode(Message(Kind.HELLO, _changed(true, self.conduct.hello)))

    async def _hear(self, text: str, body: bytes) -> None:
        address = parse(text)
        if address is None or address.known_kind is None:
            return
        try:
            message = decode(address.known_kind, body)
        except RemoteWireError:
            return
        self.heard[message.kind] += 1
        self.times.setdefault(message.kind, _now())
        match message.kind:
            case Kind.PLAN:
                await self._begin(message)
            case Kind.DATA:
                await self._data(message)
            case Kind.GET if self._update is not None:
                for data in BlobSource(self._update[0]["handle"], self._update[1]).answer(message, 8192):
                    await self.say(data)
            case Kind.WAIT:
                self._backoff_s = _HELLO_MIN_S
                self._hello_at = _now() + message["wait_ms"] / 1000
            case Kind.ACK:
                self._finish(message["round"])
                self.acked.append(message["round"])
                self._hello_at = 0.0
            case Kind.REFUSE:
                self.refusals.append((Status(message["status"]), message.get("reason", "")))
                self._finish(None)

    def _finish(self, round: int | None) -> None:
        if self.plan is not None and round is not None:
            self._is_finished = (self.plan["run"], round)
        self._update, self._sinks = None, []

    async def _begin(self, plan: Message) -> None:
        is_known = self.plan is not None and (self.plan["run"], self.plan["round"]) == (plan["run"], plan["round"])
        if self._sinks or self._is_finished == (plan["run"], plan["round"]) or (is_known and self.conduct.is_silent):
            return
        if self._update is not None and self._update[0].get("round") == plan["round"]:
            self._report_at = 0.0
            return
        self.plan, self._update, self.blobs = plan, None, []
        wanted = [(plan["model_handle"], plan["model_size"])]
        if "head_handle" in plan:
            wanted.append((plan["head_handle"], plan["head_size"]))
        self._sinks = [BlobSink(handle, size, handle, 1041) for handle, size in wanted]
        for message in self._sinks[0].start(_now()):
            await self.say(message)

    async def _data(self, data: Message) -> None:
        if not self._sinks:
            return
        for message in self._sinks[0].accept(data, _now()):
            await self.say(message)
        if not self._sinks[0].is_complete:
            return
        self.blobs.append(self._sinks.pop(0).blob())
        if self._sinks:
            for message in self._sinks[0].start(_now()):
                await self.say(message)
        elif not self.conduct.is_silent and self.plan is not None:
            blob = (self.conduct.blob or self.learn)(self.plan)
            if not self.conduct.is_silent:  # making it may have changed its mind
                self._update, self._report_at = (self.report(self.plan, blob), blob), 0.0

    def learn(self, plan: Message) -> bytes:
        """A sound update: of the head, or for a partner of every tensor of the checkpoint."""
        generator = np.random.default_rng([plan["seed"], zlib.crc32(self.id.encode())])
        if self.role is Role.DEVICE:
            return encode_head_update(generator.normal(0, _LEARNED, NUM_PARAMETERS).astype(np.float32))
        base = load_safetensors(self.blobs[0])
        return dump_safetensors(
            {name: generator.normal(0, _LEARNED, values.shape).astype(np.float32) for name, values in base.items()}
        )

    def report(self, plan: Message, blob: bytes) -> Message:
        """The report of an update."""
        true: dict[str, Value] = {
            "handle": handle_of(blob),
            "run": plan["run"],
            "round": plan["round"],
            "size": len(blob),
            "crc": zlib.crc32(blob),
            "num_examples": 24,
            "version": plan["version"],
            "attempt": plan["attempt"],
        }
        return Message(Kind.REPORT, _changed(true, self.conduct.report))


def _changed(true: dict[str, Value], changes: dict[str, Value | None]) -> dict[str, Value]:
    merged = {**true, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def _now() -> float:
    return asyncio.get_running_loop().time()
