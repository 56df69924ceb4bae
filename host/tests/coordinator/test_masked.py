# SPDX-License-Identifier: Apache-2.0
"""Masked sums at a whole coordinator: what is merged is the sum and nothing else, whoever is lost, wherever it is killed."""

from collections import Counter

import numpy as np
import pytest

from fedmote.config import CellConfig, SecureSumConfig, StrategyConfig
from fedmote.coordinator.crash import MASKED_PLACES
from fedmote.privacy.fixed_point import FixedPoint
from fedmote.store import Checkpoint, Ledger
from fedmote.wire.blobs import decode_head_update
from fedmote.wire.schema import Role

from .masked import CLIP_NORM, MaskedActor, group_of, membership_of
from .test_crashes import serve_with_kill

NAMES = tuple(f"board-{number:02}" for number in range(1, 11))
SECURE = StrategyConfig(aggregation="mean", secure_sum=SecureSumConfig("street", CLIP_NORM))


@pytest.fixture
def masked(site):
    """A site whose devices are a group, and others beside it."""

    def make(name="state", names=NAMES, others=(), rounds=1, **windows):
        cells = tuple(CellConfig(f"cell-{who}", (who,)) for who in (*names, *others))
        one = site(name, rounds=rounds, cells=cells, strategy=SECURE, **({"report_s": 4.0, "min_fraction": 0.4} | windows))
        one.group = group_of(names)
        for who in names:
            one.actors[who] = MaskedActor(who, Role.DEVICE, membership=membership_of(one.group, who))
        return one

    return make


def ledger_of(one):
    return Ledger.open(one.config.run.state_directory / "ledger.sqlite", is_read_only=True)


def checkpoint(one, version):
    path = one.config.run.state_directory / "checkpoints" / f"checkpoint-{version:06}.safetensors"
    return Checkpoint.from_bytes(path.read_bytes()).tensors


def head_of(tensors):
    return np.concatenate([tensors[name].ravel() for name in ("head.weight", "head.bias")]).astype(np.float64)


def expected_mean(one, names, others=()):
    """The mean that a coordinator that sees everything would make of the words of these members."""
    grid = FixedPoint(CLIP_NORM, one.group.ring.num_members)
    total = sum((one.actors[who].words for who in names), np.zeros(8, np.uint32))
    mean = (grid.dequantize(total, len(names)) / len(names)).astype(np.float32).astype(np.float64)
    weight = sum(20 + one.group.numbers[who] for who in names)
    top, bottom = weight * mean, weight
    for who in others:
        actor = one.actors[who]
        top, bottom = top + 22 * decode_head_update(actor.learned).astype(np.float64), bottom + 22
    return top / bottom


def test_a_masked_round_merges_the_mean_of_its_members_and_no_blob_tells_one(masked):
    one = masked()
    result = one.serve()
    assert result.is_complete
    moved = head_of(checkpoint(one, 1)) - head_of(checkpoint(one, 0))
    np.testing.assert_allclose(moved, expected_mean(one, NAMES), rtol=0, atol=1e-6)
    assert all(actor.acks[:2] == [(1, 1), (1, 2)] for actor in one.actors.values())
    with ledger_of(one) as ledger:
        assert [update.participant for update in ledger.updates(1)] == list(NAMES)
        for update in ledger.updates(1):
            blob = (one.config.run.state_directory / "blobs" / update.content).read_bytes()
            assert one.actors[update.participant].words.tobytes() not in blob


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("lost", [("board-04",), ("board-01", "board-10")])
def test_members_that_are_lost_at_a_step_leave_the_sum_of_the_others_exact(masked, step, lost):
    one = masked()
    for who in lost:
        one.actors[who].lost = {f"1/{step}"}
    result = one.serve()
    assert result.is_complete
    survivors = NAMES if step == 3 else tuple(who for who in NAMES if who not in lost)
    moved = head_of(checkpoint(one, 1)) - head_of(checkpoint(one, 0))
    np.testing.assert_allclose(moved, expected_mean(one, survivors), rtol=0, atol=1e-6)
    assert result.rounds[0].reported == len(survivors)
    reason = "its keys did not come in time" if step == 1 else "its keys are in"
    assert f"masked sum of {len(survivors)} of 10 in group street" in result.rounds[0].words()
    assert result.rounds[0].missing == ({} if step == 3 else dict.fromkeys(lost, reason))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_member_that_is_reset_makes_new_keys_before_they_are_fixed_and_is_lost_after(masked, step):
    one = masked()
    one.actors["board-05"].resets = {f"1/{step}"}
    one.serve()
    survivors = tuple(who for who in NAMES if who != "board-05" or step != 2)
    moved = head_of(checkpoint(one, 1)) - head_of(checkpoint(one, 0))
    np.testing.assert_allclose(moved, expected_mean(one, survivors), rtol=0, atol=1e-6)
    with ledger_of(one) as ledger:
        assert ledger.plans(1)["board-05"].attempt == (2 if step == 1 else 1)
        assert {blob.participant for blob in ledger.mask_blobs(1, 1)} == set(NAMES)
        if step == 2:
            assert ledger.rounds(1)[0].missing == {"board-05": "reset after its keys were fixed"}


def test_too_few_masked_updates_are_left_out_and_the_minimum_decides(masked):
    one = masked(names=NAMES[:8], others=("other-1", "other-2"), min_fraction=0.2)
    for actor in (one.actors["other-1"], one.actors["other-2"]):
        actor.blob_of = remember
    one.actors["board-03"].lost = {"1/2"}
    result = one.serve()
    assert result.is_complete
    moved = head_of(checkpoint(one, 1)) - head_of(checkpoint(one, 0))
    learned = [decode_head_update(one.actors[who].learned).astype(np.float64) for who in ("other-1", "other-2")]
    np.testing.assert_allclose(moved, np.mean(learned, axis=0), rtol=0, atol=1e-6)
    left_out = "its masked sum is left out: 7 masked updates, 8 are needed for a masked sum"
    assert result.rounds[0].missing == dict.fromkeys(NAMES[:8], left_out) | {"board-03": "its keys are in"}
    assert result.rounds[0].reported == 2
    assert result.rounds[0].masked.left_out == left_out
    assert result.rounds[0].to_json()["masked"]["survivors"] == 7


def test_too_few_masked_updates_abandon_a_round_that_needs_them(masked):
    one = masked(names=NAMES[:8], max_failed_rounds=1)
    one.actors["board-03"].lost = {"1/1"}
    result = one.serve()
    assert not result.is_complete
    assert result.rounds[0].state == "abandoned"
    assert result.rounds[0].missing["board-01"] == "keys of 7 members, 8 are needed for a masked sum"


def test_shares_of_too_few_leave_the_sum_out(masked):
    one = masked(max_failed_rounds=1)
    for who in NAMES[:6]:
        one.actors[who].lost = {"1/3"}
    result = one.serve()
    assert result.rounds[0].state == "abandoned"
    assert result.rounds[0].reason == "0 of 10 reported, 4 are needed"
    assert "fewer than 5 neighbours gave their shares" in result.rounds[0].missing["board-10"]


def remember(actor):
    actor.learned = actor.learn(actor)
    return actor.learned


def test_members_and_others_are_one_mean_weighted_by_examples(masked):
    one = masked(others=("other-1",))
    one.actors["other-1"].blob_of = remember
    one.actors["other-1"].num_examples = 22
    one.serve()
    moved = head_of(checkpoint(one, 1)) - head_of(checkpoint(one, 0))
    np.testing.assert_allclose(moved, expected_mean(one, NAMES, ("other-1",)), rtol=0, atol=1e-6)


def test_a_sum_that_its_members_cannot_have_made_is_refused_with_words(masked):
    one = masked(max_failed_rounds=1)
    steps = FixedPoint(CLIP_NORM, 10).max_steps
    # Nine times the clip norm in every one of eight coordinates: each fits in 32 bits, and no ten members can come to it.
    one.actors["board-02"].uncut = np.full(8, 9 * steps, np.int64).astype(np.uint32)
    result = one.serve()
    assert result.rounds[0].state == "abandoned"
    assert "masked sum of group street: a sum of norm" in result.rounds[0].reason


# ---- kills ----------------------------------------------------------------------------------------------------------


def test_a_kill_at_every_step_of_a_masked_round_leaves_the_checkpoint_byte_identical(masked):
    passed = Counter()
    quiet = masked("quiet", rounds=2)
    quiet.serve(passing=lambda place: passed.update([place]))
    expected = quiet.checkpoint_bytes()
    assert passed["after EndMaskStep"] == 4
    for place in (
        *MASKED_PLACES,
        "before SendPlan",
        "after SendPlan",
        "after JournalUpdate",
        "round-closed",
        "checkpoint-written",
    ):
        number = passed[place]
        for occurrence in sorted({1, 2, number // 2, number - 1} & set(range(1, number + 1))):
            one = masked(f"{place.replace(' ', '-')}-{occurrence}", rounds=2)
            result = serve_with_kill(one, place, occurrence)
            assert result.is_complete
            assert one.checkpoint_bytes() == expected, (place, occurrence)
            with ledger_of(one) as ledger:
                assert all(len(ledger.updates(entry.plan.round)) == 10 for entry in ledger.rounds())


def test_a_damaged_checkpoint_of_a_masked_round_is_computed_again(masked):
    one = masked(rounds=2)
    one.serve()
    expected = one.checkpoint_bytes()
    for version in (1, 2):
        path = one.config.run.state_directory / "checkpoints" / f"checkpoint-{version:06}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    one.serve()
    assert one.checkpoint_bytes()["checkpoint-000002.safetensors"] == expected["checkpoint-000002.safetensors"]
