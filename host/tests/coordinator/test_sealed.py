# SPDX-License-Identifier: Apache-2.0
"""Runs in sealed messages: restarts, second boards, withdrawn keys, and attacks that must change nothing."""

import asyncio
import random
import sqlite3
import time
from collections import Counter

from fedmote.coordinator.security import GUARD_S
from fedmote.store import Ledger
from fedmote.wire.codec import Message, encode
from fedmote.wire.schema import LIMIT_SEAL, Channel, Kind, Role, Status
from fedmote.wire.seal import Envelope, Way

from .conftest import Actor, Killed

ATTACKS = 100_000


def listen(site, heard):
    """Note every body that goes over the network: (sender, id, kind, body); the coordinator's name is empty."""
    carry = site.network.carry

    def carry_and_note(sender, id, channel, kind, body):
        heard.append((sender, id, int(kind), body))
        return carry(sender, id, channel, kind, body)

    site.network.carry = carry_and_note


def refusals(site):
    with Ledger.open(site.config.run.state_directory / "ledger.sqlite", is_read_only=True) as ledger:
        return [entry for entry in ledger.refusals() if entry.status in (Status.AUTH, Status.REPLAY, Status.REVOKED)]


def test_a_sealed_run_ends_with_the_bytes_of_a_readable_one(site):
    readable, sealed = site("readable"), site("sealed").seal()
    readable.serve()
    heard = []

    async def note(one):
        listen(one, heard)

    assert sealed.serve(while_running=note).is_complete
    assert sealed.checkpoint_bytes() == readable.checkpoint_bytes()
    assert any("not authenticated" in line for line in readable.talk)
    assert not any("not authenticated" in line for line in sealed.talk)
    assert refusals(sealed) == []
    secrets = [plan["model_hash"] for plan in sealed.actors["board-1"].seen if plan.kind is Kind.PLAN]
    assert secrets
    assert not any(secret in body for secret in secrets for _, _, _, body in heard)


def test_a_coordinator_that_is_killed_anywhere_goes_on_under_a_new_epoch_and_ends_with_the_same_bytes(site):
    calm = site("calm", rounds=1).seal()
    places, num_killed = [], 0
    calm.serve(passing=places.append)
    for number in range(0, len(places), 4):
        one = site(f"killed-{number}", rounds=1).seal()
        passed = []

        def passing(place, passed=passed, number=number):
            passed.append(place)
            if len(passed) == number + 1:
                raise Killed

        try:
            one.serve(passing=passing)
        except Killed:
            num_killed += 1
        else:
            break  # it took fewer messages than the calm one
        for actor in one.actors.values():  # these lived on: they have their boot, and the epoch of the dead one
            actor.boot += 1
        assert one.serve().is_complete
        assert one.checkpoint_bytes() == calm.checkpoint_bytes(), number
    assert num_killed >= 5


def test_participants_that_outlive_the_coordinator_learn_its_new_epoch_within_one_message(site):
    one = site(rounds=1).seal()
    calm = site("calm", rounds=1).seal()
    calm.serve()

    heard = []

    async def swap(running):
        """While board-1 trains, the coordinator forgets everything about epochs and boots, as after a restart."""
        listen(running, heard)
        while not any(kind == Kind.REPORT for _, _, kind, _ in heard):
            await asyncio.sleep(0)
        security = running._security()
        running.coordinator._security.end = security.end
        running.network.coordinator.post._seals = security.seals

    assert one.serve(while_running=swap).is_complete
    assert one.checkpoint_bytes() == calm.checkpoint_bytes()


def test_a_participant_that_is_reset_in_a_round_comes_again_under_its_next_boot(site):
    one, calm = site(rounds=1).seal(), site("calm", rounds=1).seal()
    calm.serve()

    async def reset(running):
        actor = running.actors["board-1"]
        while actor.update is None:
            await asyncio.sleep(0)
        running.tasks["board-1"].cancel()
        actor.boot, actor.plan, actor.update, actor.sinks = 2, None, None, []
        running.tasks["again"] = asyncio.create_task(actor.run(running.network))

    assert one.serve(while_running=reset).is_complete
    assert one.checkpoint_bytes() == calm.checkpoint_bytes()


class Endless(Actor):
    """A participant that pulls its model and never reports."""

    async def take(self, sink, now):
        pass


def endless(site, id, boot):
    return Endless(id, Role.DEVICE, boot=boot, key=site.actors[id].key)


def test_two_boards_with_one_key_are_both_left_out_of_the_round(site):
    one = site(rounds=1, min_fraction=0.3).seal()
    one.actors["board-1"] = endless(one, "board-1", 1)
    twin = endless(one, "board-1", 2)

    async def join(running):
        while running.actors["board-1"].plan is None:
            await asyncio.sleep(0)
        running.tasks["board-1"].cancel()  # its end is ours now: the network knows one end of a name
        first = running.actors["board-1"].end
        running.tasks["twin"] = asyncio.create_task(twin.run(running.network))
        while twin.plan is None:
            await asyncio.sleep(0)

        def to_first(kind, answer):
            first.post.open("board-1", Channel.COORDINATOR, kind, answer, to_first)

        for number in range(20):  # the first board speaks on, under its older boot, in the epoch that it knows
            get = Message.of(Kind.GET, handle=number, offset=0, chunk=8, mask=1)
            body = first.post.seal("board-1", Channel.COORDINATOR, get)
            running.network.coordinator.post.open("board-1", Channel.COORDINATOR, Kind.GET, body, to_first)
            await asyncio.sleep(0.01)

    result = one.serve(while_running=join)
    assert result.rounds[0].missing["board-1"] == "two boards use this id"
    assert any((entry.participant, entry.status) == ("board-1", Status.REPLAY) for entry in refusals(one))


def test_a_key_that_is_withdrawn_within_a_round_ends_the_part_of_its_owner_within_five_seconds(site):
    one = site(rounds=1, min_fraction=0.3).seal()
    one.actors["board-1"] = endless(one, "board-1", 1)
    times = {}

    async def revoke(running):
        while running.actors["board-1"].plan is None:
            await asyncio.sleep(0)
        running.keys.revoked.add("board-1")
        times["revoked"] = time.monotonic()

    result = one.serve(while_running=revoke)
    assert time.monotonic() - times["revoked"] < 5.0
    assert result.rounds[0].missing["board-1"] == "its key was revoked"
    assert any("board-1: its key was revoked" in line for line in one.talk)
    assert {entry.participant for entry in refusals(one) if entry.status is Status.REVOKED} == {"board-1"}


# ---- attacks ---------------------------------------------------------------------------------------------------------


def picture(thing, seen=None):
    """All that an object holds, as text; clocks and callables aside."""
    seen = seen or set()
    if id(thing) in seen or callable(thing):
        return "."
    if isinstance(thing, dict):
        items = sorted(thing.items(), key=lambda item: str(item[0]))
        return "{" + ",".join(f"{key}:{picture(value, seen)}" for key, value in items) + "}"
    if isinstance(thing, list | tuple):
        return "[" + ",".join(picture(one, seen) for one in thing) + "]"
    if isinstance(thing, set | frozenset):
        return str(sorted(map(str, thing)))
    if hasattr(thing, "__dict__"):
        return type(thing).__name__ + picture(vars(thing), seen | {id(thing)})
    return repr(thing)


def standing_of(site, run):
    """The ledger but for its counts of refusals, the round machine, and what is known of peers and blobs."""
    with sqlite3.connect(f"file:{site.config.run.state_directory / 'ledger.sqlite'}?mode=ro", uri=True) as connection:
        rows = [line for line in connection.iterdump() if "refusal" not in line]
    peers = {id: (peer.board, peer.max_body, peer.base, peer.lost, dict(peer.served)) for id, peer in run.exchange.peers.items()}
    pulled = [(id, pull.sink) for id, pull in run.exchange._pulls.items()]
    sinks = {id: (sink.handle, sink.size, sink.progress) for id, sink in pulled}
    return "\n".join([*rows, picture(run.machine), picture(peers), picture(sinks), picture(run.exchange._sources)])


class Attacker:
    """Owns the network, knows all that ever went over it, here and in an earlier run, and the key of one device: not these."""

    def __init__(self, heard, earlier, keys, seed):
        self._random = random.Random(seed)
        self._up = [(id, kind, body) for sender, id, kind, body in heard if sender]
        self._down = [(id, kind, body) for sender, id, kind, body in heard if not sender]
        self._earlier = [(id, kind, body) for sender, id, kind, body in earlier if sender]
        self._keys = keys
        self.sent = Counter()

    def next(self):
        """Id under which it comes, kind and body."""
        what = self._random.choice(["flipped", "cut", "longer", "replayed", "another run", "reflected", "another device",
                                    "another kind", "stolen key", "readable", "noise", "counters"])  # fmt: skip
        self.sent[what] += 1
        source = {"reflected": self._down, "another run": self._earlier}.get(what, self._up)
        id, kind, body = self._random.choice(source)
        match what:
            case "flipped":
                at = self._random.randrange(len(body))
                body = body[:at] + bytes([body[at] ^ 1 << self._random.randrange(8)]) + body[at + 1 :]
            case "cut":
                body = body[: self._random.randrange(len(body))]
            case "longer":
                body = body[: self._random.randrange(len(body))] + self._random.randbytes(9) + body[-LIMIT_SEAL:]
            case "another device":
                id = self._random.choice([other for other in (*self._keys, "stranger") if other != id])
            case "another kind":
                kind = (kind + self._random.randrange(1, 8)) % 9 + 1
            case "stolen key":  # of board-3, used in the name of the others
                id = self._random.choice([other for other in self._keys if other != "board-3"])
                report = Message.of(Kind.ACK, handle=5, run=bytes(8), round=2)
                numbers = (200, self._random.randrange(9), self._random.randrange(2**20))
                body = Envelope(Way.UP, Channel.COORDINATOR, id, kind, *numbers).close(self._keys["board-3"], encode(report))
            case "readable":
                kind, body = Kind.REFUSE, encode(Message.of(Kind.REFUSE, status=Status.NO_SAMPLES))
            case "noise":
                body = self._random.randbytes(self._random.randrange(200))
            case "counters":
                body = body[:-LIMIT_SEAL] + self._random.randbytes(8) + body[-16:]
        return id, kind, body


def test_a_hundred_thousand_forged_and_replayed_messages_change_nothing(site):
    """In the second round, with an update that is half pulled."""
    earlier, heard, answers = [], [], Counter()
    before = site("earlier", rounds=1).seal()

    async def note_earlier(running):
        listen(running, earlier)

    before.serve(while_running=note_earlier)
    one, calm = site(rounds=2, report_s=600.0).seal(), site("calm", rounds=2).seal()
    calm.serve()
    one.epoch = before.epoch  # the earlier run had the former epoch: its messages are answered, and nothing else
    seed, outcome = 20261124, {}

    async def attack(running):
        listen(running, heard)
        coordinator, post = running.coordinator, running.network.coordinator.post
        guard = coordinator._guard
        runs = []

        async def guard_and_note(run, *arguments):
            runs[:] = [run]
            await guard(run, *arguments)

        coordinator._guard = guard_and_note
        while not (runs and runs[0].machine.plan is not None and runs[0].machine.plan.round == 2 and runs[0].machine.num_counted):
            await asyncio.sleep(0)
        for task in running.tasks.values():  # nobody else speaks meanwhile
            task.cancel()
        await asyncio.gather(*running.tasks.values(), return_exceptions=True)
        await asyncio.sleep(0.05)
        attacker = Attacker(list(heard), earlier, running.keys.keys, seed)
        standing, errors = standing_of(running, runs[0]), post.errors.copy()
        for number in range(ATTACKS):
            id, kind, body = attacker.next()
            post.open(id, Channel.COORDINATOR, kind, body, lambda kind, answer: answers.update([kind]))
            if number % 2000 == 1999:
                await asyncio.sleep(0)
        await asyncio.sleep(GUARD_S + 0.1)  # what was refused is written
        outcome["is_same"] = standing_of(running, runs[0]) == standing
        outcome["errors"] = post.errors - errors
        outcome["sent"] = attacker.sent
        for id, actor in running.actors.items():  # they come again after a reset, and all is as well as before
            actor.boot, actor.plan, actor.update, actor.sinks = 2, None, None, []
            running.tasks[f"{id} again"] = asyncio.create_task(actor.run(running.network))

    assert one.serve(while_running=attack, timeout=120.0).is_complete
    print(f"seed {seed}: {dict(outcome['sent'])}: {dict(outcome['errors'])}, answers {dict(answers)}")
    assert outcome["is_same"]
    assert min(outcome["sent"].values()) > ATTACKS // 20
    refused = outcome["errors"][Status.AUTH] + outcome["errors"][Status.REPLAY]
    assert set(outcome["errors"]) == {Status.AUTH, Status.REPLAY}
    greetings = ATTACKS - refused  # copies of greetings, and of the earlier run's messages: answered within bounds, and forgotten
    assert 0 < greetings <= outcome["sent"]["another run"] + outcome["sent"]["replayed"] // 2
    assert set(answers) == {Kind.WAIT}
    assert answers[Kind.WAIT] < 2000
    counts = Counter()
    for entry in refusals(one):
        counts[entry.status] += entry.count
    assert counts[Status.AUTH] >= outcome["errors"][Status.AUTH]
    assert counts[Status.REPLAY] >= outcome["errors"][Status.REPLAY]
    assert len(refusals(one)) <= 2 * 2 * (len(one.actors) + 1)
    assert one.checkpoint_bytes() == calm.checkpoint_bytes()
