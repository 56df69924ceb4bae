# SPDX-License-Identifier: Apache-2.0
"""Whole runs over memory: rounds, forms of the model, hostile participants, stops."""

import asyncio
import threading
import time

import numpy as np
import pytest

from fedmote.aggregation import Update, merge
from fedmote.config import CellConfig, StrategyConfig
from fedmote.errors import ConfigError
from fedmote.store import Checkpoint, Checkpoints, Ledger
from fedmote.tensors import dump_safetensors
from fedmote.wire.blobs import decode_head_update, encode_head_update
from fedmote.wire.codec import Message
from fedmote.wire.schema import Channel, Kind, Role, Status

from .conftest import HEAD, TENSORS, Actor


def plans(actor):
    return [message for message in actor.seen if message.kind is Kind.PLAN]


def refusals(actor):
    return [Status(message["status"]) for message in actor.seen if message.kind is Kind.REFUSE]


def test_alternating_run_reaches_its_goal(site):
    one = site(rounds=4)
    result = one.serve()
    assert result.is_complete
    assert [entry.phase for entry in result.rounds] == ["device", "partner", "device", "partner"]
    assert [entry.reported for entry in result.rounds] == [3, 2, 3, 2]
    assert result.version == 4
    assert result.accuracy == result.rounds[-1].accuracy
    assert result.to_json()["rounds"][0]["missing"] == {}


def test_merge_is_that_of_the_merge_core_on_what_devices_sent(site):
    one = site(rounds=1, strategy=StrategyConfig(aggregation="mean"))
    sent = {}

    def remember(actor):
        sent[actor.id] = actor.learn(actor)
        return sent[actor.id]

    for actor in one.actors.values():
        actor.blob_of = remember
    one.serve()
    updates = []
    for who, blob in sent.items():
        flat = decode_head_update(blob)
        updates.append(Update(who, 20 + len(who) % 5, {"head.weight": flat[:6].reshape(2, 3), "head.bias": flat[6:]}))
    expected = merge(TENSORS, updates)
    merged = Checkpoints(one.config.run.state_directory / "checkpoints").load(1)
    for name, values in expected.items():
        np.testing.assert_array_equal(merged.tensors[name], values)


def test_package_keeps_its_hash_while_only_the_head_changes(site):
    one = site(rounds=3, cells=site().config.cells[:1], strategy=StrategyConfig(ignore="partners"))
    one.serve()
    seen = plans(one.actors["board-1"])
    assert {plan["model_hash"] for plan in seen} == {seen[0]["model_hash"]}
    assert "head_handle" not in seen[0]
    later = next(plan for plan in seen if plan["round"] == 3)
    assert later["head_size"] == 4 * 8
    assert one.partition.num_builds == 1


def test_package_is_built_anew_when_ranges_alone_changed(site):
    one = site(rounds=3, cells=site().config.cells[:1])
    one.actors["phone-1"].blob_of = lambda actor: full(**{"range/act": [0.0, 5.0]})
    assert one.serve().is_complete
    seen = {plan["round"]: plan["model_hash"] for plan in plans(one.actors["board-1"])}
    assert seen[1] != seen[3]


def test_package_is_built_anew_when_the_encoder_changed(site):
    one = site(rounds=3)
    one.serve()
    seen = plans(one.actors["board-1"])
    last = next(plan for plan in seen if plan["round"] == 3)
    assert last["model_hash"] != seen[0]["model_hash"]
    assert "head_handle" not in last


def test_partner_gets_the_checkpoint_file_and_its_ranges_are_merged_but_not_the_inputs(site):
    one = site(rounds=2)
    one.serve()
    checkpoint = Checkpoint.from_bytes(one.actors["phone-1"].blobs[0])
    assert checkpoint.version == 1
    merged = Checkpoints(one.config.run.state_directory / "checkpoints").load(2)
    assert merged.ranges["input"] == (-1.0, 1.0)
    assert merged.ranges["act"][0] < 0.0 < 2.0 < merged.ranges["act"][1]


def test_simultaneous_round_merges_heads_of_all_and_the_encoder_of_partners(site):
    one = site(rounds=1, strategy=StrategyConfig(form="simultaneous"))
    result = one.serve()
    assert result.rounds[0].reported == 5
    merged = Checkpoints(one.config.run.state_directory / "checkpoints").load(1)
    assert not np.array_equal(merged.tensors["encoder.weight"], TENSORS["encoder.weight"])


@pytest.mark.parametrize(("ignored", "kept"), [("devices", "encoder.weight"), ("partners", "head.weight")])
def test_ignored_updates_are_journaled_and_not_merged(site, ignored, kept):
    one = site(rounds=2, strategy=StrategyConfig(ignore=ignored))
    result = one.serve()
    assert [entry.reported for entry in result.rounds] == [3, 2]
    model = Checkpoints(one.config.run.state_directory / "checkpoints")
    first, second, third = (model.load(version).tensors for version in range(3))
    if ignored == "devices":
        np.testing.assert_array_equal(first["head.weight"], second["head.weight"])
    else:
        assert all(np.array_equal(second[name], third[name]) for name in TENSORS)
    assert not np.array_equal(first[kept], third[kept])


def test_fedavg_trains_partners_alone(site):
    one = site(rounds=2, strategy=StrategyConfig(preset="fedavg"))
    result = one.serve()
    assert [entry.phase for entry in result.rounds] == ["partner", "partner"]
    assert not plans(one.actors["board-1"])


# ---- hostile and broken participants --------------------------------------------------------------------------------


def full(**tensors):
    return dump_safetensors({name.replace("_", "."): np.array(values, np.float32) for name, values in tensors.items()})


HOSTILE_HEADS = [
    (encode_head_update(np.full(8, np.nan, np.float32)), Status.UPDATE_NOT_FINITE),
    (encode_head_update(np.full(8, -np.inf, np.float32)), Status.UPDATE_NOT_FINITE),
    (encode_head_update(np.zeros(7, np.float32)), Status.UPDATE_SHAPE),
    (encode_head_update(np.zeros(9, np.float32)), Status.UPDATE_SHAPE),
    (encode_head_update(np.zeros(5000, np.float32)), Status.UPDATE_SHAPE),
    (b"\x00", None),
    (b"\xa2\x01\x01\x02\xd8\x55\x5a\xff\xff\xff\xff", None),
]


@pytest.mark.parametrize(("blob", "status"), HOSTILE_HEADS)
def test_hostile_head_update_is_refused_and_the_round_goes_on_without_it(site, blob, status):
    one = site(rounds=1)
    one.actors["board-2"].blob_of = lambda actor: blob
    result = one.serve(timeout=20.0)
    assert result.is_complete
    assert result.rounds[0].reported == 2
    assert list(result.rounds[0].missing) == ["board-2"]
    assert refusals(one.actors["board-2"])
    if status is not None:
        assert set(refusals(one.actors["board-2"])) == {status}
    assert any(entry["participant"] == "board-2" for entry in result.refusals)


HOSTILE_FILES = [
    (full(encoder_weight=[1, 2, np.nan, 4]), Status.UPDATE_NOT_FINITE),
    (full(encoder_weight=[1, 2, 1e-40, 4]), Status.UPDATE_NOT_FINITE),
    (full(**{"range/act": [-1e-44, 1.0]}), Status.UPDATE_NOT_FINITE),
    (full(encoder_weight=[1, 2, 3]), Status.UPDATE_SHAPE),
    (full(stranger=[1.0]), Status.UPDATE_SHAPE),
    (full(**{"range/act": [1.0, 0.0]}), Status.UPDATE_SHAPE),
    (full(**{"range/act": [0.0, np.inf]}), Status.UPDATE_NOT_FINITE),
    (full(**{"range/other": [0.0, 1.0]}), Status.UPDATE_SHAPE),
    (b"\xff" * 64, Status.UPDATE_SHAPE),
    (b"\x10\x00\x00\x00\x00\x00\x00\x00" + b"{" * 16, Status.UPDATE_SHAPE),
]


@pytest.mark.parametrize(("blob", "status"), HOSTILE_FILES)
def test_hostile_partner_update_is_refused_with_its_status(site, blob, status):
    one = site(rounds=1, strategy=StrategyConfig(form="simultaneous"))
    one.actors["phone-2"].blob_of = lambda actor: blob
    result = one.serve()
    assert result.rounds[0].reported == 4
    assert set(refusals(one.actors["phone-2"])) == {status}


def test_partner_round_of_garbage_alone_is_abandoned_and_the_model_stays(site):
    one = site(rounds=2, max_failed_rounds=1)
    for who in ("phone-1", "phone-2"):
        one.actors[who].blob_of = lambda actor: full(encoder_weight=[np.inf] * 4)
    result = one.serve()
    assert not result.is_complete
    assert "0 of 2 reported" in result.complaint
    assert result.version == 1
    assert result.rounds[-1].state == "abandoned"


@pytest.mark.parametrize(("who", "most"), [("board-2", 256), ("phone-1", 1000)])
def test_participant_that_claims_more_examples_than_it_can_hold_is_refused(site, who, most):
    strategy = StrategyConfig(form="simultaneous", partner_max_examples=1000)
    for claim, is_taken in ((most, True), (most + 1, False), (2**32 - 1, False)):
        one = site(f"claim-{claim}", rounds=1, strategy=strategy)
        one.actors[who].num_examples = claim
        result = one.serve()
        assert result.rounds[0].reported == (5 if is_taken else 4)
        assert refusals(one.actors[who]) == ([] if is_taken else [Status.FIELD_RANGE])


def test_strangers_boards_without_package_and_wrong_protocol_are_refused(site):
    one = site(rounds=1)
    strangers = [Actor("mallory", Role.DEVICE), Actor("board-1x", Role.PARTNER)]
    one.actors |= {actor.id: actor for actor in strangers}

    async def speak(site):
        end = site.network.participant("phone-1")
        for protocol, board, name in ((2, "posix", "phone-1"), (1, "posix", "phone-2")):
            hello = Message.of(
                Kind.HELLO, device=name, role=Role.PARTNER, boot=1, protocol=protocol, board=board, sdk="x", max_body=512
            )  # fmt: skip
            await end.send("phone-1", Channel.COORDINATOR, hello)
        await end.send("phone-1", Channel.COORDINATOR, Message.of(Kind.GET, handle=1, offset=0, chunk=8, mask=1))

    result = one.serve(only={"board-1", "board-2", "board-3", "mallory", "board-1x"}, while_running=speak)
    assert result.is_complete
    found = {(entry["participant"], entry["status"]) for entry in result.refusals}
    assert {
        ("mallory", "not-expected"),
        ("board-1x", "not-expected"),
        ("phone-1", "protocol"),
        ("phone-1", "not-expected"),
    } <= found


def test_device_whose_board_has_no_package_is_refused(site):
    one = site(rounds=1, selection_s=0.2)
    one.actors["board-3"].board = "toaster"
    result = one.serve()
    assert result.is_complete
    assert set(refusals(one.actors["board-3"])) == {Status.NOT_EXPECTED}
    assert result.rounds[0].expected == 2


def test_device_killed_in_the_middle_is_named_and_takes_part_again(site):
    one = site(rounds=2, cells=(CellConfig("home-1", ("board-1", "board-2")),), report_s=1.0)

    actor = one.actors["board-2"]

    def die(actor):
        actor.blob_of = None
        raise asyncio.CancelledError

    actor.blob_of = die

    async def restart(site):
        while not any("missing board-2" in line and "checkpoint 1" in line for line in site.talk):
            await asyncio.sleep(0.01)
        actor.boot, actor.plan, actor.update, actor.sinks = 2, None, None, []
        site.tasks["board-2"] = asyncio.create_task(actor.run(site.network))

    result = one.serve(while_running=restart)
    assert result.rounds[0].missing.keys() == {"board-2"}
    assert result.rounds[0].reported == 1
    assert result.rounds[1].reported == 2


def test_reset_device_gets_attempt_two_and_is_counted_once(site):
    one = site(rounds=1)

    def reset(actor):
        actor.blob_of, actor.boot, actor.plan = None, 2, None
        one.tasks["board-1"] = asyncio.create_task(actor.run(one.network))
        raise asyncio.CancelledError

    one.actors["board-1"].blob_of = reset
    result = one.serve()
    assert result.rounds[0].reported == 3
    attempts = {entry["participant"]: entry["attempt"] for entry in result.rounds[0].updates}
    assert attempts == {"board-1": 2, "board-2": 1, "board-3": 1}


def test_model_of_a_former_round_is_no_longer_offered(site):
    one = site(rounds=2, strategy=StrategyConfig(form="simultaneous"))
    actor = one.actors["phone-1"]
    asked = []

    def ask(actor):
        if actor.plan["round"] == 1:
            asked.append(actor.plan["model_handle"])
        elif len(asked) == 1:
            asked.append(asyncio.ensure_future(actor.send(Message.of(Kind.GET, handle=asked[0], offset=0, chunk=8, mask=1))))
        return actor.learn(actor)

    actor.blob_of = ask
    assert one.serve().is_complete
    found = [message for message in actor.seen if message.kind is Kind.REFUSE]
    assert [(message["status"], message["handle"]) for message in found] == [(Status.STALE_ROUND, asked[0])]


def test_participant_without_a_plan_is_given_no_blob(site):
    one = site(rounds=1)
    seen = []

    async def ask(site):
        end = site.network.participant("phone-1")  # not of a device round
        while not plans(site.actors["board-1"]):
            await asyncio.sleep(0.001)
        handle = plans(site.actors["board-1"])[0]["model_handle"]
        await end.send("phone-1", Channel.COORDINATOR, Message.of(Kind.GET, handle=handle, offset=0, chunk=8, mask=1))
        while True:
            seen.append((await end.receive()).message)

    one.serve(only={"board-1", "board-2", "board-3"}, while_running=ask)
    assert {(message.kind, message.get("status")) for message in seen} == {(Kind.REFUSE, Status.NOT_EXPECTED)}


# ---- stop, resume, fresh ---------------------------------------------------------------------------------------------


def test_stop_ends_the_run_and_a_second_start_goes_on(site):
    one = site(rounds=4)

    async def stop(site):
        while not any("checkpoint 2" in line for line in site.talk):
            await asyncio.sleep(0.001)
        site.coordinator.stop()

    result = one.serve(while_running=stop)
    assert not result.is_complete
    assert result.complaint is None
    assert 2 <= result.version < 4
    again = one.serve()
    assert again.is_complete
    assert again.run == result.run
    assert again.version == 4


def test_stop_does_not_wait_for_a_merge_that_takes_long_and_the_next_start_merges(site):
    quiet = site("quiet", rounds=1)
    quiet.serve()
    one = site(rounds=1)
    began, times = threading.Event(), []

    class Slow(type(one.partition)):
        def evaluate(self, tensors, ranges, version):
            if version == 1:
                began.set()
                time.sleep(5)
            return super().evaluate(tensors, ranges, version)

    fast, one.partition = one.partition, Slow()

    async def stop(site):
        while not began.is_set():
            await asyncio.sleep(0.001)
        times.append(time.monotonic())
        site.coordinator.stop()

    result = one.serve(while_running=stop)
    assert time.monotonic() - times[0] <= 2.0
    assert (result.is_complete, result.version, result.rounds[0].state) == (False, 0, "closed")
    one.partition = fast
    assert one.serve(only=()).is_complete
    assert one.checkpoint_bytes() == quiet.checkpoint_bytes()


def test_fresh_start_begins_another_run(site):
    one = site(rounds=1)
    first = one.serve()
    second = one.serve(is_fresh=True)
    assert second.run != first.run
    assert second.version == 1
    assert (one.config.run.state_directory / "earlier" / first.run / "ledger.sqlite").exists()


def test_finished_run_is_reported_again_without_participants(site):
    one = site(rounds=1)
    first = one.serve()
    assert one.serve(only=()).to_json() == first.to_json()


def test_other_strategy_on_the_same_state_is_refused(site):
    one = site(rounds=1)
    one.serve()
    other = site(rounds=2, strategy=StrategyConfig(uncovered="old"))
    with pytest.raises(ConfigError, match="--fresh"):
        other.serve()


def test_other_model_on_the_same_state_is_refused(site):
    one = site(rounds=1)
    one.serve()
    one.partition.first_model = lambda: ({"head.weight": np.zeros(3, np.float32)}, {})
    one.partition.shape = lambda tensors, ranges: type(site().partition)().shape(TENSORS, ranges)
    with pytest.raises(ConfigError, match="another model"):
        one.serve()


def test_damaged_checkpoint_is_computed_again_from_the_journal(site):
    one = site(rounds=3)
    one.serve()
    before = one.checkpoint_bytes()
    for name in ("checkpoint-000003.safetensors", "checkpoint-000002.safetensors"):
        path = one.config.run.state_directory / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:-5])
    one.serve(only=())
    assert one.checkpoint_bytes() == before
    assert any("computed again" in line for line in one.talk)


def test_ledger_says_what_devices_reported(site):
    one = site(rounds=1)
    one.serve()
    with Ledger.open(one.config.run.state_directory / "ledger.sqlite", is_read_only=True) as ledger:
        numbers = [entry.numbers for entry in ledger.updates(1)]
        assert [set(one) for one in numbers] == [{"package_bytes", "trained"}] * 3  # what was sent to it as well
        assert [one["trained"] for one in numbers] == [9] * 3
        assert HEAD  # the head alone is what they sent
