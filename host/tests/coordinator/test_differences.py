# SPDX-License-Identifier: Apache-2.0
"""What the coordinator offers beside a package, to whom, and what it writes down about it."""

import asyncio
import json
import zlib
from argparse import ArgumentParser
from dataclasses import dataclass

import numpy as np
import pytest

from fedmote.cli import rounds as rounds_verb
from fedmote.config import StrategyConfig
from fedmote.package import container
from fedmote.package.difference import apply_difference
from fedmote.store import Ledger
from fedmote.tensors import dump_safetensors
from fedmote.wire.codec import Message
from fedmote.wire.schema import Kind, Role, Status
from fedmote.wire.transfer import BlobSink

from .conftest import Actor, Killed, TinyPartition


class PackagePartition(TinyPartition):
    """Packages are containers with a kilobyte that every checkpoint moves by little."""

    def device_form(self, board, tensors, ranges, version):
        self.num_builds += 1
        seed = zlib.crc32(dump_safetensors(tensors, {"ranges": str(ranges)}))
        steps = np.random.default_rng(seed).integers(-1, 2, 1024)
        weights = (np.random.default_rng(0).integers(0, 256, 1024) + steps).astype(np.uint8).tobytes()
        sections = {1: version.to_bytes(4, "little"), 2: bytes(48), 3: weights, 4: bytes(64)}
        package = container.join_sections(sections)
        return package, container.hash_of(package)


@dataclass
class PatchingActor(Actor):
    """A device that makes packages from differences.

    Attributes:
        installed: its package.
        is_failing: it says that differences are of no use.
        fetched: of every package that it fetched: "whole" or "difference", and its bytes.
    """

    installed: bytes = b""
    is_failing: bool = False
    difference_format: int = 1

    def __post_init__(self):
        self.fetched = []

    async def hello(self):
        fields = {"model_hash": container.hash_of(self.installed)} if self.installed else {}
        await self.send(
            Message.of(
                Kind.HELLO, device=self.id, role=self.role, boot=self.boot, protocol=1, board=self.board, sdk="test",
                max_body=self.max_body, difference_format=self.difference_format, **fields,
            )
        )  # fmt: skip

    async def begin(self, plan, now):
        if self.update is not None or (self.plan is not None and self.sinks):
            await super().begin(plan, now)
            return
        self.plan, self.update, self.blobs = plan, None, []
        self.is_whole = True
        sizes = [(plan["model_handle"], plan["model_size"])]
        if self.installed and container.hash_of(self.installed) == plan["model_hash"]:
            sizes = []
        elif "difference_handle" in plan:
            self.is_whole = False
            sizes = [(plan["difference_handle"], plan["difference_size"])]
        if "head_handle" in plan:
            sizes.append((plan["head_handle"], plan["head_size"]))
        if not sizes:
            await self.done()
            return
        self.sinks = [BlobSink(handle, size, handle, self.max_body, 0.05) for handle, size in sizes]
        for get in self.sinks[0].start(now):
            await self.send(get)

    async def take(self, sink, now):
        plan = self.plan
        if not self.is_whole and sink.handle == plan["difference_handle"]:
            if self.is_failing:
                await self.send(Message.of(Kind.REFUSE, status=Status.PACKAGE_CRC, handle=sink.handle))
                self.is_whole = True
                self.sinks.insert(0, BlobSink(plan["model_handle"], plan["model_size"], None, self.max_body, 0.05))
            else:
                self.install("difference", apply_difference(self.installed, sink.blob()), len(sink.blob()))
        elif sink.handle == plan["model_handle"]:
            self.install("whole", sink.blob(), sink.size)
        else:
            self.blobs.append(sink.blob())
        if self.sinks:
            for get in self.sinks[0].start(now):
                await self.send(get)
            return
        await self.done()

    def install(self, how, package, size):
        assert container.hash_of(package) == self.plan["model_hash"]
        self.installed = package
        self.fetched.append((how, size))

    async def done(self):
        """Learns from the installed package and whatever else came."""
        self.blobs.insert(0, self.installed)
        await super().take(BlobSink(0, 0, None, self.max_body), 0.0)


@pytest.fixture
def fleet(site):
    """A site whose devices make packages from differences, simultaneous rounds: the encoder changes in each."""

    def make(name="state", rounds=3):
        one = site(name, rounds=rounds, strategy=StrategyConfig(form="simultaneous"))
        one.partition = PackagePartition()
        one.actors = {
            id: PatchingActor(id, Role.DEVICE) if actor.role is Role.DEVICE else actor for id, actor in one.actors.items()
        }
        return one

    return make


def assert_all_whole(one):
    one.serve()
    assert {how for actor in devices(one) for how, _ in actor.fetched} == {"whole"}


def devices(one):
    return [actor for actor in one.actors.values() if actor.role is Role.DEVICE]


def ledger_of(one):
    return Ledger.open(one.config.run.state_directory / "ledger.sqlite", is_read_only=True)


def test_the_first_package_comes_whole_and_the_others_as_differences(fleet):
    one = fleet()
    assert one.serve().is_complete
    for actor in devices(one):
        assert [how for how, _ in actor.fetched] == ["whole", "difference", "difference"]
        assert max(size for how, size in actor.fetched if how == "difference") < actor.fetched[0][1] // 2
    with ledger_of(one) as ledger:
        numbers = [{one.participant: one.numbers for one in ledger.updates(number)} for number in (1, 2, 3)]
        plans = [ledger.plans(number) for number in (1, 2)]
        assert ledger.refusals() == []
    for actor in devices(one):
        assert numbers[0][actor.id]["package_bytes"] >= actor.fetched[0][1]
        for number in (1, 2):
            assert "package_bytes" not in numbers[number][actor.id]
            assert numbers[number][actor.id]["difference_bytes"] >= actor.fetched[number][1]
        assert plans[0][actor.id].base is None
        assert plans[1][actor.id].base is not None


def test_rounds_show_tells_what_was_sent(fleet, capsys):
    one = fleet(rounds=2)
    one.serve()
    parser = ArgumentParser()
    rounds_verb.add_arguments(parser)
    rounds_verb.run(parser.parse_args(["show", "2", "--state", str(one.config.run.state_directory), "--json"]))
    shown = json.loads(capsys.readouterr().out)
    assert all(update["difference_bytes"] > 0 for update in shown["updates"] if update["role"] == "device")
    rounds_verb.run(parser.parse_args(["show", "2", "--state", str(one.config.run.state_directory)]))
    assert "difference_bytes" in capsys.readouterr().out


@pytest.mark.parametrize("difference_format", [2, 255])
def test_a_device_of_another_format_gets_whole_packages(fleet, difference_format):
    one = fleet(rounds=2)
    for actor in devices(one):
        actor.difference_format = difference_format
    assert_all_whole(one)


def test_a_package_that_is_not_of_this_run_is_no_base(fleet):
    one = fleet(rounds=1)
    stranger = container.join_sections({1: b"another", 2: bytes(48), 3: bytes(1024), 4: bytes(64)})
    for actor in devices(one):
        actor.installed = stranger
    assert_all_whole(one)


def test_a_device_that_cannot_use_a_difference_gets_the_whole_and_is_named_in_the_ledger(fleet):
    one = fleet(rounds=2)
    failing = one.actors["board-1"]
    failing.is_failing = True
    assert one.serve().is_complete
    assert [how for how, _ in failing.fetched] == ["whole", "whole"]
    with ledger_of(one) as ledger:
        assert [(no.participant, no.side, no.status, no.round) for no in ledger.refusals()] == [
            ("board-1", "participant", Status.PACKAGE_CRC, 2)
        ]
        assert len(ledger.updates(2)) == 5  # it took part
    assert any("board-1 could not use a difference (package-crc)" in line for line in one.talk)


def test_a_difference_that_was_of_no_use_is_not_offered_again(fleet):
    """A device that was reset in the middle says hello again; the plan is the same, without the difference."""
    one = fleet(rounds=2)
    failing = one.actors["board-1"]
    failing.is_failing = True
    plans = []
    begin = failing.begin

    async def watched(plan, now):
        plans.append(plan)
        await begin(plan, now)

    take = failing.take

    async def reset_once(sink, now):
        await take(sink, now)
        if failing.is_failing and failing.is_whole and failing.sinks:
            failing.is_failing = False  # and forgets what it was doing
            failing.boot, failing.plan, failing.sinks = failing.boot + 1, None, []
            await failing.hello()

    failing.begin, failing.take = watched, reset_once
    assert one.serve().is_complete
    offers = ["difference_handle" in plan for plan in plans if plan["round"] == 2]  # a plan may come twice
    assert offers == sorted(offers, reverse=True)
    assert set(offers) == {True, False}
    assert [how for how, _ in failing.fetched] == ["whole", "whole"]


@pytest.mark.parametrize("place", ["after JournalPlan", "after SendPlan", "before Pull"])
def test_a_restarted_coordinator_offers_the_same_differences(fleet, place):
    quiet = fleet("quiet")
    quiet.serve()
    one = fleet("killed")
    seen = 0

    def passing(name):
        nonlocal seen
        seen += name == "after OpenRound"
        if seen == 2 and name == place:
            raise Killed(name)

    with pytest.raises(Killed):
        one.serve(passing=passing)
    assert one.serve().is_complete
    assert one.checkpoint_bytes() == quiet.checkpoint_bytes()
    for actor, calm in zip(devices(one), devices(quiet), strict=True):
        assert actor.fetched == calm.fetched


def test_a_blob_that_was_asked_for_before_the_restart_is_served_without_another_hello(fleet):
    """The difference of a plan that an earlier coordinator gave, asked for by its handle alone."""
    one = fleet(rounds=2)
    plans = {}
    actor = one.actors["board-3"]
    begin = actor.begin

    async def stop_at_the_difference(plan, now):
        if "difference_handle" not in plan:
            await begin(plan, now)
            return
        plans["second"] = plan

    actor.begin = stop_at_the_difference

    def passing(name):
        if "second" in plans:
            raise Killed(name)

    with pytest.raises(Killed):
        one.serve(passing=passing)
    actor.hello_s = 3600.0  # it says nothing but what follows

    async def ask(site):
        while actor.end is None:
            await asyncio.sleep(0.01)
        actor.begin = begin
        await begin(plans["second"], asyncio.get_running_loop().time())

    actor.hello = lambda: asyncio.sleep(0)
    actor.end = None
    assert one.serve(while_running=ask).is_complete
    assert [how for how, _ in actor.fetched] == ["whole", "difference"]
