# SPDX-License-Identifier: Apache-2.0
"""The merge core against values worked by hand, and against its laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmote.aggregation import MergeRun, Update, merge, merge_ranges
from fedmote.errors import RoundError


def f32(*values):
    return np.array(values, dtype=np.float32)


OLD = {"encoder": f32(10.0, 20.0), "head": f32(1.0, 2.0)}
DEVICE = Update("device-1", 3, {"head": f32(4.0, 0.0)})
PARTNER = Update("phone-1", 1, {"encoder": f32(1.0, -1.0), "head": f32(0.0, 8.0)})


def test_simultaneous_merge_averages_the_head_over_both_and_takes_the_encoder_from_the_partner():
    merged = merge(OLD, [DEVICE, PARTNER])
    # head: (3*4 + 1*0)/4 = 3, (3*0 + 1*8)/4 = 2; encoder: the partner's alone
    np.testing.assert_array_equal(merged["head"], f32(4.0, 4.0))
    np.testing.assert_array_equal(merged["encoder"], f32(11.0, 19.0))


def test_missing_counts_as_the_old_value_under_rule_old():
    merged = merge(OLD, [DEVICE, PARTNER], uncovered="old")
    np.testing.assert_array_equal(merged["encoder"], f32(10.25, 19.75))
    np.testing.assert_array_equal(merged["head"], f32(4.0, 4.0))


def test_missing_counts_as_a_zero_under_rule_zero():
    merged = merge(OLD, [DEVICE, PARTNER], uncovered="zero")
    np.testing.assert_array_equal(merged["encoder"], f32(11.0 / 4, 19.0 / 4))


def test_weights_of_one_ignore_the_numbers_of_examples():
    merged = merge(OLD, [DEVICE, PARTNER], weights="one")
    np.testing.assert_array_equal(merged["head"], f32(3.0, 6.0))


@pytest.mark.parametrize("rule", ["ignore", "old", "zero"])
def test_coordinates_nobody_sent_keep_their_old_value_under_every_rule(rule):
    mask = np.array([True, False])
    updates = [Update("a", 2, {"head": f32(1.0, np.nan)}, {"head": mask}), Update("b", 0, {"encoder": f32(5.0, 5.0)})]
    merged = merge(OLD, updates, uncovered=rule)
    assert merged["head"][1] == OLD["head"][1]
    np.testing.assert_array_equal(merged["encoder"], OLD["encoder"])


def test_masks_are_honoured_per_coordinate():
    updates = [
        Update("a", 1, {"head": f32(1.0, 7.0)}, {"head": np.array([True, False])}),
        Update("b", 3, {"head": f32(3.0, 5.0)}),
    ]
    np.testing.assert_array_equal(merge(OLD, updates)["head"], f32(1.0 + 10.0 / 4, 2.0 + 5.0))
    np.testing.assert_array_equal(merge(OLD, updates, "old")["head"], f32(1.0 + 10.0 / 4, 2.0 + 15.0 / 4))


def test_merging_nothing_returns_a_copy_of_the_old_model():
    merged = merge(OLD, [])
    np.testing.assert_array_equal(merged["head"], OLD["head"])
    merged["head"][0] = 99.0
    assert OLD["head"][0] == 1.0


@pytest.mark.parametrize(
    ("update", "word"),
    [
        (Update("a", 1, {"tail": f32(1.0)}), "unknown"),
        (Update("a", 1, {"head": f32(1.0)}), "shape"),
        (Update("a", 1, {"head": f32(np.inf, 0.0)}), "not finite"),
        (Update("a", 1, {"head": f32(0.0, np.nan)}), "not finite"),
        (Update("a", -1, {"head": f32(0.0, 0.0)}), "examples"),
        (Update("a", 1, {"head": f32(0.0, 0.0)}, {"head": np.array([True])}), "coverage"),
    ],
)
def test_updates_that_do_not_fit_are_refused_with_the_reason(update, word):
    with pytest.raises(RoundError, match=word):
        merge(OLD, [update])


def test_two_updates_of_one_participant_are_refused():
    with pytest.raises(RoundError, match="each participant once"):
        merge(OLD, [DEVICE, DEVICE])


def test_streaming_refuses_updates_out_of_order():
    run = MergeRun(OLD, "ignore", "examples")
    run.add(PARTNER)
    with pytest.raises(RoundError, match="ascending"):
        run.add(DEVICE)


def test_results_that_overflow_float32_are_refused():
    huge = np.finfo(np.float32).max
    with pytest.raises(RoundError, match="not finite"):
        merge({"w": f32(huge)}, [Update("a", 1, {"w": f32(huge)})])


def test_unknown_rules_are_refused():
    with pytest.raises(RoundError, match="no merge rule"):
        merge(OLD, [], uncovered="skip")


SMALL = st.floats(-100, 100, width=32)
DELTAS = st.fixed_dictionaries(
    {}, optional={name: st.lists(SMALL, min_size=2, max_size=2).map(lambda v: f32(*v)) for name in ("encoder", "head")}
)
UPDATES = st.lists(st.tuples(st.integers(0, 50), DELTAS), max_size=6).map(
    lambda rows: [Update(f"p{index}", count, tensors) for index, (count, tensors) in enumerate(rows)]
)


@settings(deadline=None)
@given(updates=UPDATES, rule=st.sampled_from(["ignore", "old", "zero"]), data=st.data())
def test_arrival_order_never_changes_a_bit(updates, rule, data):
    shuffled = data.draw(st.permutations(updates))
    first, second = merge(OLD, updates, rule), merge(OLD, shuffled, rule)
    assert all(first[name].tobytes() == second[name].tobytes() for name in OLD)


@settings(deadline=None)
@given(updates=UPDATES)
def test_ignore_equals_the_published_fedavg_of_a_phase_where_all_cover_the_same(updates):
    """Centaur, step 8: sum n_k w_k / sum n_k over the classifiers of a device round."""
    heads = [one for one in updates if "head" in one.tensors and one.num_examples > 0]
    alone = [Update(one.participant, one.num_examples, {"head": one.tensors["head"]}) for one in heads]
    merged = merge(OLD, alone)
    np.testing.assert_array_equal(merged["encoder"], OLD["encoder"])
    if alone:
        total = sum(one.num_examples for one in alone)
        mean = sum(one.num_examples * (OLD["head"].astype(np.float64) + one.tensors["head"]) for one in alone) / total
        np.testing.assert_allclose(merged["head"], mean, rtol=1e-6, atol=1e-5)


@settings(deadline=None)
@given(updates=UPDATES)
def test_merged_values_stay_inside_the_hull_of_what_was_sent(updates):
    merged = merge(OLD, updates)
    for name, old in OLD.items():
        sent = [old + one.tensors[name] for one in updates if name in one.tensors and one.num_examples > 0]
        low, high = (np.min(sent, axis=0), np.max(sent, axis=0)) if sent else (old, old)
        assert (merged[name] >= low - 1e-4).all()
        assert (merged[name] <= high + 1e-4).all()


@settings(deadline=None)
@given(updates=UPDATES, factor=st.integers(1, 5))
def test_scaling_all_weights_changes_nothing(updates, factor):
    scaled = [Update(one.participant, one.num_examples * factor, one.tensors) for one in updates]
    for name, values in merge(OLD, updates).items():
        np.testing.assert_allclose(merge(OLD, scaled)[name], values, rtol=1e-6, atol=1e-6)


def test_ranges_take_the_minimum_of_minima_and_the_maximum_of_maxima():
    old = {"a": (-1.0, 1.0), "b": (0.0, 6.0)}
    seen = [{"a": (-2.0, 0.5)}, {"a": (-1.0, 3.0)}]
    assert merge_ranges(old, seen) == merge_ranges(old, reversed(seen)) == {"a": (-2.0, 3.0), "b": (0.0, 6.0)}
    assert merge_ranges(old, [{"a": (-0.5, 0.5)}])["a"] == (-0.5, 0.5)  # of this round alone: ranges can shrink


@pytest.mark.parametrize("dead", [(0.0, 0.0), (2.0, 2.0), (-0.0, 1e-40)])
def test_activation_that_was_constant_in_the_round_keeps_its_range(dead):
    old = {"a": (-1.0, 1.0), "b": (0.0, 6.0)}
    assert merge_ranges(old, [{"b": dead}, {"b": dead}]) == old
    assert merge_ranges(old, [{"b": (0.0, 0.0)}, {"b": (0.0, 3.0)}])["b"] == (0.0, 3.0)  # alive for one partner


@pytest.mark.parametrize("bad", [{"c": (0.0, 1.0)}, {"a": (1.0, 0.0)}, {"a": (0.0, float("inf"))}])
def test_unsound_ranges_are_refused(bad):
    with pytest.raises(RoundError):
        merge_ranges({"a": (-1.0, 1.0)}, [bad])
