# SPDX-License-Identifier: Apache-2.0
"""Hostile participants against a whole coordinator: what they can do, what is said of them, what a restart remembers."""

import json
import sqlite3
import sys
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest

from fedmote.cli import main
from fedmote.config import CellConfig, CoordinatorConfig, PrivacyConfig, QuarantineConfig, StrategyConfig, load
from fedmote.errors import ConfigError, RemoteWireError
from fedmote.package.graph import HeadLayer
from fedmote.store import Checkpoints, Ledger
from fedmote.strategies import ModelShape
from fedmote.strategies.f32 import Float32
from fedmote.tensors import dump_safetensors
from fedmote.wire.blobs import encode_head_update
from fedmote.wire.codec import Message
from fedmote.wire.schema import Kind, Role, Status

from .conftest import Killed

DEVICES = tuple(CellConfig(f"home-{index}", (f"board-{index}",)) for index in range(6))
NOISE = PrivacyConfig(clip_norm=1.0, noise_multiplier=2.0)
STRATEGIES = {
    "trimmed_mean": StrategyConfig(aggregation="trimmed_mean"),
    "multi_krum": StrategyConfig(aggregation="multi_krum", hostile_share=0.2),
    "mean": StrategyConfig(aggregation="mean"),
    "privacy": StrategyConfig(privacy=NOISE),
}


def with_quarantine(one, **rules):
    one.config = replace(one.config, quarantine=QuarantineConfig(**rules))
    return one


def huge(actor):
    return encode_head_update(np.full(8, 1e6, np.float32))


def ledger_of(one):
    return Ledger.open(one.config.run.state_directory / "ledger.sqlite", is_read_only=True)


# ---- merge ----------------------------------------------------------------------------------------------------------


def test_one_hostile_device_cannot_carry_the_model_away(site):
    ends = {}
    for rule in ("clipped_mean", "trimmed_mean", "multi_krum", "mean"):
        one = site(rule, rounds=3, cells=DEVICES, strategy=StrategyConfig(aggregation=rule))
        one.actors["board-3"].blob_of = huge
        one.serve()
        tensors = Checkpoints(one.config.run.state_directory / "checkpoints").load(3).tensors
        ends[rule] = float(np.abs(tensors["head.weight"]).max())
    print(ends)
    assert ends.pop("mean") > 1e5
    assert all(end < 10 for end in ends.values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_crash_at_every_step_of_a_merge_gives_the_same_bytes_under_every_rule(site, name):
    def make(place):
        return site(f"{name}-{place.replace(' ', '-')}", rounds=2, cells=DEVICES, strategy=STRATEGIES[name])

    key = b"k" * 32
    quiet = make("quiet")
    _serve_with_key(quiet, key)
    expected = quiet.checkpoint_bytes()
    for place in ("round-closed", "merge-computed", "checkpoint-written", "round-committed"):
        one = make(place)

        def passing(passed, place=place):
            if passed == place:
                raise Killed(place)

        with pytest.raises(Killed):
            _serve_with_key(one, key, passing)
        result = one.serve()
        assert result.is_complete
        assert one.checkpoint_bytes() == expected
        # What the rounds say of their updates is journaled once, too.
        with ledger_of(one) as ledger, ledger_of(quiet) as other:
            assert [ledger.conduct(number) for number in (1, 2)] == [other.conduct(number) for number in (1, 2)]


def _serve_with_key(one, key, passing=None):
    """Serve with this noise key in place of a random one."""

    def hook(place):
        if place == "privacy-begun":
            with sqlite3.connect(one.config.run.state_directory / "ledger.sqlite") as connection:
                connection.execute("UPDATE privacy SET noise_key = ?", (key,))
            raise Killed(place)
        if passing is not None:
            passing(place)

    try:
        return one.serve(passing=hook)
    except Killed as killed:
        if str(killed) != "privacy-begun":
            raise
        return one.serve(passing=passing)


@pytest.mark.parametrize("name", STRATEGIES)
def test_lost_checkpoint_is_computed_again_under_every_rule(site, name):
    one = site(name, rounds=3, cells=DEVICES, strategy=STRATEGIES[name])
    one.serve()
    expected = one.checkpoint_bytes()
    for version in (1, 2, 3):
        (one.config.run.state_directory / "checkpoints" / f"checkpoint-{version:06}.safetensors").unlink()
    one.serve()
    assert one.checkpoint_bytes().items() >= {key: expected[key] for key in ("checkpoint-000003.safetensors",)}.items()
    assert any("byte for byte" in line for line in one.talk)


# ---- quarantine -----------------------------------------------------------------------------------------------------


def test_hostile_device_is_left_out_after_three_rounds_named_everywhere_and_remembered_over_a_restart(site, capsys):
    one = with_quarantine(site(rounds=6, cells=DEVICES), unsound_updates=3, rounds=4)
    one.actors["board-3"].blob_of = huge
    count = 0

    def passing(place):
        nonlocal count
        count += place == "round-committed"
        if place == "round-committed" and count == 4:
            raise Killed(place)

    with pytest.raises(Killed):
        one.serve(passing=passing)
    result = one.serve()
    assert [entry.expected for entry in result.rounds] == [6, 6, 6, 5, 5, 5]
    assert [list(entry.quarantined) for entry in result.rounds] == [[], [], *[["board-3"]] * 4]
    assert "until round 7" in result.rounds[5].quarantined["board-3"]
    assert "times the median norm" in result.rounds[5].quarantined["board-3"]
    assert any("; quarantined board-3 (until round 7" in line for line in one.talk)
    waits = [message for message in one.actors["board-3"].seen if message.kind is Kind.WAIT]
    assert any("in quarantine until round 7" in message.get("reason", "") for message in waits)
    state = str(one.config.run.state_directory)
    assert main(["rounds", "show", "5", "--state", state]) == 0
    assert "quarantined: board-3 until round 7" in capsys.readouterr().err
    assert main(["rounds", "show", "3", "--state", state, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown["quarantined"]) == ["board-3"]
    found = {update["participant"]: update["finding"] for update in shown["updates"]}
    assert found.pop("board-3") == "far"
    assert set(found.values()) == {"sound"}
    assert main(["rounds", "list", "--state", state, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["rounds"][5]["quarantined"]) == ["board-3"]


def test_quarantine_ends_and_an_honest_update_wipes_the_slate(site):
    one = with_quarantine(site(rounds=6, cells=DEVICES), unsound_updates=1, rounds=2)
    one.actors["board-3"].blob_of = lambda actor: huge(actor) if actor.plan["round"] == 1 else actor.learn(actor)
    result = one.serve()
    assert [entry.expected for entry in result.rounds] == [6, 5, 5, 6, 6, 6]


def test_device_that_sends_garbage_is_left_out_with_the_reason_of_the_refusal(site):
    one = with_quarantine(site(rounds=4, cells=DEVICES), unsound_updates=2, rounds=9)
    one.actors["board-0"].blob_of = lambda actor: encode_head_update(np.full(8, np.nan, np.float32))
    result = one.serve()
    assert [entry.expected for entry in result.rounds] == [6, 6, 5, 5]
    assert "update-not-finite" in result.rounds[-1].quarantined["board-0"]


@pytest.mark.parametrize(("num_examples", "is_taken"), [(0, True), (20, False)])
def test_empty_update_is_that_of_a_partner_without_samples_alone(site, num_examples, is_taken):
    one = site(rounds=1, strategy=StrategyConfig(form="simultaneous"))
    one.actors["phone-2"].blob_of = lambda actor: dump_safetensors({})
    one.actors["phone-2"].num_examples = num_examples
    result = one.serve()
    assert result.rounds[0].reported == (5 if is_taken else 4)


# ---- few samples ----------------------------------------------------------------------------------------------------


def test_update_from_few_samples_never_reaches_the_disk(site):
    one = site(rounds=1, cells=DEVICES)
    one.actors["board-1"].num_examples = 15
    result = one.serve()
    assert result.rounds[0].missing == {"board-1": "update refused: 15 examples, at least 16"}
    assert result.rounds[0].quarantined == {}
    refused = [message for message in one.actors["board-1"].seen if message.kind is Kind.REFUSE]
    assert {message["status"] for message in refused} == {Status.NO_SAMPLES}
    assert len(list((one.config.run.state_directory / "blobs").iterdir())) == 5


def test_configuration_that_leaks_single_samples_is_warned_about_by_name_of_its_keys(site):
    one = site(rounds=1, strategy=StrategyConfig(min_examples=1, epochs=1, batch=1))
    one.serve()
    (line,) = [line for line in one.talk if line.startswith("warning")]
    for key in ("min_examples = 1", "epochs = 1", "batch = 1", "learning_rate = 0.05", "a single sample"):
        assert key in line
    quiet = site("quiet", rounds=1)
    quiet.serve()
    assert not any(line.startswith("warning") for line in quiet.talk)


# ---- noise ----------------------------------------------------------------------------------------------------------


def test_run_with_noise_says_what_it_may_claim_after_every_round(site, capsys):
    one = site(rounds=3, cells=DEVICES, strategy=StrategyConfig(privacy=NOISE))
    result = one.serve()
    found = [entry.privacy.epsilon for entry in result.rounds]
    assert 0 < found[0] < found[1] < found[2]
    assert result.privacy == result.rounds[-1].privacy
    assert result.privacy.delta == pytest.approx(6**-1.1)
    assert any("epsilon" in line and "at delta 0.14" in line for line in one.talk)
    state = str(one.config.run.state_directory)
    assert main(["rounds", "list", "--state", state, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["rounds"]
    assert [entry["privacy"]["epsilon"] for entry in shown] == found
    assert main(["rounds", "list", "--state", state]) == 0
    assert "epsilon" in capsys.readouterr().out.splitlines()[0]


def test_secret_of_the_noise_is_in_no_output(site, capsys):
    one = site(rounds=1, cells=DEVICES, strategy=StrategyConfig(privacy=NOISE))
    result = one.serve()
    with ledger_of(one) as ledger:
        entry = ledger.privacy()
    assert len(entry.noise_key) == 32
    words = " ".join([*one.talk, json.dumps(result.to_json()), repr(entry), repr(one.coordinator)])
    assert entry.noise_key.hex() not in words
    assert repr(entry.noise_key) not in words


def test_no_claim_is_made_where_fewer_cells_were_there_than_the_draw_counts_on(site):
    noise = PrivacyConfig(clip_norm=1.0, noise_multiplier=2.0, sampling="cells")
    strategy = StrategyConfig(privacy=noise, cells_per_round=2)
    full = site("full", rounds=2, cells=DEVICES, strategy=strategy).serve()
    assert full.privacy.epsilon is not None
    one = site("thin", rounds=2, cells=DEVICES, strategy=strategy, selection_s=0.3)
    result = one.serve(only=[f"board-{index}" for index in range(4)])
    assert result.privacy.epsilon is None
    assert "4 that were there" in result.privacy.reason
    assert "2 of 6" in result.privacy.reason
    assert any("no privacy claim" in line for line in one.talk)


def test_fleet_of_one_makes_no_claim(site):
    result = site(rounds=1, cells=DEVICES[:1], strategy=StrategyConfig(privacy=NOISE)).serve()
    assert result.privacy.epsilon is None
    assert "one device" in result.privacy.reason


def test_noise_without_its_accountant_is_refused_at_the_start(site, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    monkeypatch.setitem(sys.modules, "dp_accounting.rdp", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedmote\[privacy\]'"):
        site(rounds=1, cells=DEVICES, strategy=StrategyConfig(privacy=NOISE)).serve()


# ---- sizes ----------------------------------------------------------------------------------------------------------

SIZE = 1 << 20
BIG = {
    "w": np.zeros((SIZE - 64,), np.float32),
    "head.weight": np.zeros((2, 31), np.float32),
    "head.bias": np.zeros(2, np.float32),
}
BIG_MODEL = ModelShape(BIG, (HeadLayer("head.weight", "head.bias", 31, 2),), {"act": (0.0, 1.0)})
MEGABYTE = 1 << 20


def file_of(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


MANY = {f"t{index}": entry((0,), (0, 0)) for index in range(50_000)}
HOSTILE_BLOBS = {
    "header of 2^63 bytes": (Role.PARTNER, (2**63).to_bytes(8, "little") + b"{}", Status.UPDATE_SHAPE),
    "header as long as an update": (Role.PARTNER, file_of(b" " * (4 * SIZE)), Status.UPDATE_SHAPE),
    "fifty thousand tensors": (Role.PARTNER, file_of(MANY), Status.UPDATE_SHAPE),
    "nested a thousand deep": (Role.PARTNER, file_of(b"[" * 4000), Status.UPDATE_SHAPE),
    "name that stands twice": (Role.PARTNER, file_of(b'{"w":1,"w":2}'), Status.UPDATE_SHAPE),
    "shape beyond memory": (Role.PARTNER, file_of({"w": entry((2**40, 2**20), (0, 2**62))}), Status.UPDATE_SHAPE),
    "offsets behind the end": (Role.PARTNER, file_of({"head.bias": entry((2,), (0, 8))}), Status.UPDATE_SHAPE),
    "offsets that overlap": (
        Role.PARTNER,
        file_of({"head.bias": entry((2,), (0, 8)), "range/act": entry((2,), (0, 8))}, bytes(16)),
        Status.UPDATE_SHAPE,
    ),
    "bytes that nobody names": (Role.PARTNER, file_of({"head.bias": entry()}, bytes(100)), Status.UPDATE_SHAPE),
    "negative offsets": (Role.PARTNER, file_of({"head.bias": entry((2,), (-8, 0))}, bytes(8)), Status.UPDATE_SHAPE),
    "true for a number": (Role.PARTNER, file_of({"head.bias": entry((2,), (False, 8))}, bytes(8)), Status.UPDATE_SHAPE),
    "another type": (Role.PARTNER, file_of({"head.bias": entry(dtype="F64")}, bytes(8)), Status.UPDATE_SHAPE),
    "another shape": (Role.PARTNER, file_of({"head.bias": entry((1, 2))}, bytes(8)), Status.UPDATE_SHAPE),
    "unknown tensor": (Role.PARTNER, file_of({"stranger": entry()}, bytes(8)), Status.UPDATE_SHAPE),
    "unknown range": (Role.PARTNER, file_of({"range/x": entry()}, bytes(8)), Status.UPDATE_SHAPE),
    "no object": (Role.PARTNER, file_of(b"[]"), Status.UPDATE_SHAPE),
    "entry that is no object": (Role.PARTNER, file_of({"w": 7}), Status.UPDATE_SHAPE),
    "value that is no number": (
        Role.PARTNER,
        file_of({"head.bias": entry()}, np.array([0, np.nan], "<f4").tobytes()),
        Status.UPDATE_NOT_FINITE,
    ),
    "range without end": (
        Role.PARTNER,
        file_of({"range/act": entry()}, np.array([0, np.inf], "<f4").tobytes()),
        Status.UPDATE_NOT_FINITE,
    ),
    "range upside down": (
        Role.PARTNER,
        file_of({"range/act": entry()}, np.array([1, 0], "<f4").tobytes()),
        Status.UPDATE_SHAPE,
    ),
    "head of 2^32 bytes": (Role.DEVICE, b"\xa2\x01\x01\x02\xd8\x55\x5a\xff\xff\xff\xff", Status.TRUNCATED),
    "head of 2^64 bytes": (Role.DEVICE, b"\xa2\x01\x01\x02\xd8\x55\x5b" + b"\xff" * 8, Status.TRUNCATED),
    "map of 2^32 keys": (Role.DEVICE, b"\xba\xff\xff\xff\xff", Status.MALFORMED),
    "head of another size": (Role.DEVICE, encode_head_update(np.zeros(63, np.float32)), Status.UPDATE_SHAPE),
    "another encoding": (Role.DEVICE, b"\xa2\x01\x07\x02\xd8\x55\x40", Status.FIELD_RANGE),
    "head that is not finite": (Role.DEVICE, encode_head_update(np.full(64, np.inf, np.float32)), Status.UPDATE_NOT_FINITE),
}


@pytest.mark.parametrize("name", HOSTILE_BLOBS)
def test_hostile_blob_is_refused_with_its_status_before_memory_is_taken(name):
    role, blob, status = HOSTILE_BLOBS[name]
    tracemalloc.start()
    with pytest.raises(RemoteWireError) as refused:
        Float32().decode(role, blob, BIG_MODEL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"peak {peak} bytes for a blob of {len(blob)}")
    assert refused.value.status is status
    assert peak < MEGABYTE


def test_honest_partner_update_is_read_without_a_copy():
    blob = dump_safetensors({**BIG, "range/act": np.array([0, 2], np.float32)}, {"note": "x" * 100})
    assert len(blob) <= Float32().max_bytes(Role.PARTNER, BIG_MODEL)
    tracemalloc.start()
    decoded = Float32().decode(Role.PARTNER, blob, BIG_MODEL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decoded.tensors.keys() == BIG.keys()
    assert peak < MEGABYTE + SIZE  # one byte per value says whether it is finite


REPORTS = {
    "size of 2^32": ({"size": 2**32 - 1}, Status.UPDATE_SHAPE),
    "size of nothing": ({"size": 0}, Status.UPDATE_SHAPE),
    "examples of 2^32": ({"num_examples": 2**32 - 1}, Status.FIELD_RANGE),
    "another version": ({"version": 77}, Status.WRONG_MODEL),
    "another run": ({"run": b"stranger"}, Status.UNKNOWN_RUN),
    "a round to come": ({"round": 9}, Status.NOT_EXPECTED),
}


@pytest.mark.parametrize("name", REPORTS)
def test_hostile_report_is_refused_with_its_status_before_a_byte_is_pulled(site, name):
    changes, status = REPORTS[name]
    one = site(rounds=1, cells=DEVICES, selection_s=1.0, report_s=1.5, grace_s=0.0)
    liar = one.actors["board-2"]
    asked = []

    def lie(actor):
        blob = actor.learn(actor)
        fields = {
            "handle": 7, "size": len(blob), "crc": zlib.crc32(blob), "run": actor.plan["run"], "round": 1, "version": 0,
            "num_examples": 20, "attempt": actor.plan["attempt"],
        }  # fmt: skip
        asked.append(Message.of(Kind.REPORT, **(fields | changes)))
        return blob

    liar.blob_of = lie
    honest_send = liar.send

    async def send(message):
        await honest_send(asked[0] if message.kind is Kind.REPORT and asked else message)

    liar.send = send
    tracemalloc.start()
    result = one.serve(timeout=25.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    refused = {message["status"] for message in liar.seen if message.kind is Kind.REFUSE}
    assert status in refused
    assert not any(message.kind is Kind.GET for message in liar.seen)
    assert result.is_complete or result.rounds[0].reported == 5
    assert peak < 16 * MEGABYTE, "a buffer of the announced size would be 4096"


def test_configuration_tables_of_the_defence_are_read_from_toml(tmp_path):
    path = tmp_path / "coordinator.toml"
    path.write_text(
        """
listen = "tcp://127.0.0.1:0"
[run]
site = "s"
name = "n"
state_directory = "state"
partition_directory = "model"
[strategy]
min_examples = 32
[strategy.privacy]
clip_norm = 0.5
noise_multiplier = 1.1
[quarantine]
factor = 6.0
[[cells]]
name = "a"
devices = ["d"]
"""
    )
    config = load(CoordinatorConfig, path, ["quarantine.rounds=3"])
    assert config.strategy.privacy == PrivacyConfig(0.5, 1.1)
    assert config.quarantine == QuarantineConfig(6.0, 3, 3)
    with pytest.raises(ConfigError, match="noise_multiplier"):
        load(CoordinatorConfig, path, ["strategy.privacy.noise_multiplier=0"])
