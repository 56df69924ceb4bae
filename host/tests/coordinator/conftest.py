# SPDX-License-Identifier: Apache-2.0
"""A coordinator with a small model, and scripted participants that speak the protocol over memory."""

import asyncio
import hashlib
import time
import zlib
from dataclasses import dataclass, field

import numpy as np
import pytest

from fedmote.config import CellConfig, CoordinatorConfig, RunConfig, StrategyConfig, WindowsConfig
from fedmote.coordinator import Coordinator
from fedmote.coordinator.security import Security
from fedmote.package.graph import HeadLayer
from fedmote.strategies import ModelShape
from fedmote.tensors import dump_safetensors
from fedmote.transport.memory import MemoryNetwork
from fedmote.wire.blobs import encode_head_update
from fedmote.wire.codec import Message
from fedmote.wire.schema import Channel, Kind, Role
from fedmote.wire.seal import BootEnd, Seals
from fedmote.wire.transfer import BlobSink, BlobSource, handle_of

TENSORS = {
    "encoder.weight": np.array([1, 2, 3, 4], np.float32),
    "head.weight": np.zeros((2, 3), np.float32),
    "head.bias": np.zeros(2, np.float32),
}
RANGES = {"input": (-1.0, 1.0), "act": (0.0, 1.0)}
LAYERS = (HeadLayer("head.weight", "head.bias", 3, 2),)
HEAD = ("head.weight", "head.bias")
CELLS = (CellConfig("home-1", ("board-1", "board-2"), "phone-1"), CellConfig("home-2", ("board-3",), "phone-2"))


class TinyPartition:
    """A model of twelve numbers whose packages are safetensors files."""

    boards = ("posix",)

    def __init__(self):
        self.num_builds = 0

    def first_model(self):
        return {name: values.copy() for name, values in TENSORS.items()}, dict(RANGES)

    def shape(self, tensors, ranges):
        return ModelShape(tensors, LAYERS, ranges, "input")

    def device_form(self, board, tensors, ranges, version):
        self.num_builds += 1
        blob = dump_safetensors(tensors, {"board": board, "version": str(version), "ranges": str(ranges)})
        return blob, hashlib.blake2b(blob, digest_size=32).digest()

    def max_samples(self, board):
        return 256

    def manifest(self):
        return "{}"

    def evaluate(self, tensors, ranges, version):
        return float(np.float64(sum(values.sum() for values in tensors.values())))


@dataclass
class Actor:
    """A participant: says hello, pulls its model, "trains", reports, answers, until it is told to stop.

    What it learns is a function of the plan's seed, the model and its own name, as it would be with a seeded trainer.
    """

    id: str
    role: Role
    boot: int = 1
    board: str = "posix"
    hello_s: float = 0.02
    end: object = None
    plan: Message | None = None
    sinks: list = field(default_factory=list)
    update: tuple | None = None
    seen: list = field(default_factory=list)
    acks: list = field(default_factory=list)
    blob_of: object = None
    max_body: int = 512
    num_examples: int | None = None
    tensors: dict = field(default_factory=lambda: TENSORS)
    head: tuple = HEAD
    activations: tuple = ("act", "input")
    key: bytes | None = None

    async def run(self, network):
        seals = None if self.key is None else Seals(BootEnd(self.id, Channel.COORDINATOR, self.key, self.boot))
        self.end = network.participant(self.id, seals=seals)
        await self.end.start()
        self.end.set_max_body(self.id, 8192)  # what the coordinator takes
        await self.hello()
        while True:
            try:
                # Not `wait_for`: in Python 3.11 it swallows a cancellation that meets an arriving message.
                async with asyncio.timeout(self.hello_s):
                    received = await self.end.receive()
            except TimeoutError:
                await self.repeat()
                continue
            self.seen.append(received.message)
            await self.handle(received.message)

    async def send(self, message):
        await self.end.send(self.id, Channel.COORDINATOR, message)

    async def hello(self):
        await self.send(
            Message.of(
                Kind.HELLO, device=self.id, role=self.role, boot=self.boot, protocol=1, board=self.board, sdk="test",
                max_body=self.max_body,
            )
        )  # fmt: skip

    async def repeat(self):
        now = asyncio.get_running_loop().time()
        if self.update is not None:
            await self.send(self.update[0])
        elif self.sinks:
            for message in self.sinks[0].poll(now):
                await self.send(message)
        else:
            await self.hello()

    async def handle(self, message):
        now = asyncio.get_running_loop().time()
        match message.kind:
            case Kind.PLAN:
                await self.begin(message, now)
            case Kind.DATA if self.sinks:
                for get in self.sinks[0].accept(message, now):
                    await self.send(get)
                if self.sinks[0].is_complete:
                    await self.take(self.sinks.pop(0), now)
            case Kind.GET if self.update is not None:
                for data in BlobSource(self.update[0]["handle"], self.update[1]).answer(message, self.max_body):
                    await self.send(data)
            case Kind.ACK:
                self.acks.append(message["round"])
                self.plan, self.update = None, None
            case Kind.REFUSE:
                self.plan, self.update, self.sinks = None, None, []

    async def begin(self, plan, now):
        if self.update is not None and self.update[0]["round"] == plan["round"]:
            await self.send(self.update[0])
            return
        if self.plan is not None and self.sinks:
            return
        self.plan, self.update, self.blobs = plan, None, []
        sizes = [(plan["model_handle"], plan["model_size"])]
        if "head_handle" in plan:
            sizes.append((plan["head_handle"], plan["head_size"]))
        self.sinks = [BlobSink(handle, size, handle, self.max_body, 0.05) for handle, size in sizes]
        for get in self.sinks[0].start(now):
            await self.send(get)

    async def take(self, sink, now):
        self.blobs.append(sink.blob())
        if self.sinks:
            for get in self.sinks[0].start(now):
                await self.send(get)
            return
        blob = (self.blob_of or self.learn)(self)
        plan = self.plan
        num_examples = 20 + len(self.id) % 5 if self.num_examples is None else self.num_examples
        report = Message.of(
            Kind.REPORT, handle=handle_of(blob), run=plan["run"], round=plan["round"], size=len(blob), crc=zlib.crc32(blob),
            num_examples=num_examples, version=plan["version"], attempt=plan["attempt"], trained=9,
        )  # fmt: skip
        self.update = (report, blob)
        await self.send(report)

    def learn(self, _):
        text = b"".join(self.blobs) + f"{self.plan['seed']}/{self.id}".encode()
        generator = np.random.default_rng(zlib.crc32(text))
        if self.role is Role.DEVICE:
            size = sum(self.tensors[name].size for name in self.head)
            return encode_head_update(generator.normal(size=size).astype(np.float32))
        tensors = {name: generator.normal(size=values.shape).astype(np.float32) for name, values in self.tensors.items()}
        for name in self.activations:  # what is said of the input must not count: its range is frozen
            tensors[f"range/{name}"] = np.array([-generator.random(), 2.0 + generator.random()], np.float32)
        return dump_safetensors(tensors)


@dataclass
class TestKeys:
    """Keys that a test may withdraw.

    Attributes:
        keys: by id.
        revoked: ids.
    """

    __test__ = False
    keys: dict
    revoked: set = field(default_factory=set)
    told: set = field(default_factory=set)

    def renewal(self, id):
        return None

    def key(self, id):
        return None if id in self.revoked else self.keys.get(id)

    def is_revoked(self, id):
        return id in self.revoked

    def refresh(self):
        news, self.told = frozenset(self.revoked - self.told), set(self.revoked)
        return news


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Site:
    """A state directory, a fleet of actors, and as many coordinators as it takes."""

    config: CoordinatorConfig
    actors: dict
    talk: list = field(default_factory=list)
    statuses: list = field(default_factory=list)
    partition: TinyPartition = field(default_factory=TinyPartition)
    keys: "TestKeys | None" = None
    epoch: int = 0

    def serve(self, passing=None, is_fresh=False, only=None, while_running=None, timeout=30.0):
        return asyncio.run(asyncio.wait_for(self._serve(passing, is_fresh, only, while_running), timeout))

    async def _serve(self, passing, is_fresh, only, while_running):
        security = self._security()
        network = MemoryNetwork(seals=None if security is None else security.seals)
        self.coordinator = Coordinator(
            self.config,
            [network.coordinator],
            self.partition,
            is_fresh=is_fresh,
            talk=self.talk.append,
            tell=self.statuses.append,
            passing=passing,
            security=security,
        )
        self.network = network
        self.tasks = {
            id: asyncio.create_task(actor.run(network)) for id, actor in self.actors.items() if only is None or id in only
        }
        helper = asyncio.create_task(while_running(self)) if while_running else None
        try:
            return await self.coordinator.run()
        finally:
            for task in [*self.tasks.values(), *([helper] if helper else [])]:
                task.cancel()
            ended = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
            assert [error for error in ended if isinstance(error, Exception)] == []

    def _security(self):
        """Of the next start; epochs rise by leaps, as those of a registry do."""
        if self.keys is None:
            return None
        former, self.epoch = self.epoch, self.epoch + 100
        return Security.begin(self.keys, self.epoch, time.monotonic, former)

    def seal(self):
        """Give everybody a key."""
        self.keys = TestKeys({id: hashlib.blake2b(id.encode(), digest_size=32).digest() for id in self.actors})
        for id, actor in self.actors.items():
            actor.key = self.keys.keys[id]
        return self

    def checkpoint_bytes(self):
        directory = self.config.run.state_directory / "checkpoints"
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def site(tmp_path):
    def make(name="state", rounds=2, cells=CELLS, strategy=None, full_disk_wait_s=0.0, max_pulls_at_once=64, **windows):
        values = {"selection_s": 5.0, "report_s": 20.0, "min_fraction": 0.5, "wait_ms": 10, "after_failures": "end"} | windows
        config = CoordinatorConfig(
            run=RunConfig(
                "site",
                "run",
                tmp_path / name,
                tmp_path,
                rounds=rounds,
                seed=7,
                full_disk_wait_s=full_disk_wait_s,
                max_pulls_at_once=max_pulls_at_once,
            ),
            cells=cells,
            listen="tcp://127.0.0.1:0",
            strategy=strategy or StrategyConfig(),
            windows=WindowsConfig(**values),
        )
        actors = {}
        for cell in cells:
            actors |= {device: Actor(device, Role.DEVICE) for device in cell.devices}
            if cell.partner:
                actors[cell.partner] = Actor(cell.partner, Role.PARTNER, board="partner")
        return Site(config, actors)

    return make
