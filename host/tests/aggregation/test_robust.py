# SPDX-License-Identifier: Apache-2.0
"""Clipping, capping, trimming and filtering against values worked by hand, and against their laws."""

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmote.aggregation import Survey, Update, merge_ranges
from fedmote.aggregation.blocks import blocks
from fedmote.aggregation.groups import grouped, norms
from fedmote.aggregation.krum import choose, num_hostile, squared_distances
from fedmote.aggregation.survey import lower_median
from fedmote.aggregation.trim import num_trimmed, trimmed_merge
from fedmote.package.graph import HeadLayer
from fedmote.strategies import MergeContext, ModelShape
from fedmote.strategies.clipped_mean import ClippedMean
from fedmote.strategies.covered_mean import CoveredMean
from fedmote.strategies.multi_krum import MultiKrum
from fedmote.strategies.trimmed_mean import TrimmedMean
from fedmote.wire.schema import Role


def f32(*values):
    return np.array(values, dtype=np.float32)


HEAD = ("h", "b")
OLD = {"w": np.zeros(4, np.float32), "n.running_var": np.ones(2, np.float32), "h": np.zeros(2, np.float32), "b": f32(0.0)}
CONTEXT = MergeContext(ModelShape(OLD, (HeadLayer("h", "b", 2, 1),), {}))


def device(who, h, examples=10):
    return Role.DEVICE, Update(who, examples, {"h": f32(*h), "b": f32(0.0)}), {}


def partner(who, w, h, var=(0.0, 0.0), examples=10, ranges=None):
    tensors = {"w": f32(*w), "n.running_var": f32(*var), "h": f32(*h), "b": f32(0.0)}
    return Role.PARTNER, Update(who, examples, tensors), ranges or {}


def merged(rule, updates, old=OLD, ranges=None):
    ordered = sorted(updates, key=lambda one: one[1].participant)
    return rule.merge({name: values.copy() for name, values in old.items()}, ranges or {}, lambda: iter(ordered), CONTEXT)


def test_head_encoder_and_statistics_have_norms_of_their_own():
    assert grouped(OLD, HEAD) == {"encoder": ("w",), "head": ("b", "h"), "statistics": ("n.running_var",)}
    found = norms(partner("p", (3, 4, 0, 0), (6, 8), (1, 0))[1], HEAD)
    assert found == {"encoder": 5.0, "head": 10.0, "statistics": 1.0}
    assert norms(device("d", (3, 4))[1], HEAD) == {"head": 5.0}


@pytest.mark.parametrize(("values", "middle"), [([], None), ([3], 3), ([5, 2], 2), ([9, 1, 4], 4), ([1, 2, 3, 4], 2)])
def test_median_of_two_is_the_smaller(values, middle):
    assert lower_median(values) == middle


def test_long_update_is_cut_to_the_median_norm_and_keeps_its_direction():
    result = merged(ClippedMean(), [device("a", (1, 0)), device("b", (0, 2)), device("c", (-2000, 0))])
    # norms 1, 2, 2000; median 2: (1 + 0 - 2) / 3 and (0 + 2 + 0) / 3
    np.testing.assert_allclose(result.tensors["h"], [-1 / 3, 2 / 3], rtol=1e-6)
    assert [round(one.ratio, 3) for one in result.findings] == [0.5, 1.0, 1000.0]


def test_one_of_three_cannot_move_the_model_further_than_the_longer_of_the_two_others():
    honest = [device("a", (1, 0)), device("b", (2, 0))]
    for length in (1e3, 1e20, 3e38):
        result = merged(ClippedMean(), [*honest, device("c", (0, length))])
        np.testing.assert_allclose(result.tensors["h"], [1.0, 2 / 3], rtol=1e-6)


def test_single_update_is_not_cut_and_of_two_the_smaller_is_the_limit():
    np.testing.assert_array_equal(merged(ClippedMean(), [device("a", (7, 0))]).tensors["h"], f32(7, 0))
    np.testing.assert_array_equal(merged(ClippedMean(), [device("a", (1, 0)), device("b", (0, 8))]).tensors["h"], f32(0.5, 0.5))


def test_partner_with_a_hostile_encoder_keeps_its_head_and_loses_the_force_of_its_encoder():
    honest = [partner(f"p{index}", (1, 0, 0, 0), (1, 0)) for index in range(4)]
    result = merged(ClippedMean(), [*honest, partner("q", (0, 1e6, 0, 0), (1, 0))])
    np.testing.assert_allclose(result.tensors["w"], [0.8, 0.2, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(result.tensors["h"], [1, 0], rtol=1e-6)


def test_weights_are_capped_at_three_times_the_median():
    result = merged(ClippedMean(), [device("a", (1, 0), 10), device("b", (1, 0), 10), device("c", (0, 1), 10**9)])
    np.testing.assert_allclose(result.tensors["h"], [20 / 50, 30 / 50], rtol=1e-6)


def test_updates_without_weight_or_norm_do_not_lower_the_median():
    quiet = [device(f"q{index}", (0, 0)) for index in range(5)] + [device(f"z{index}", (1e-9, 0), 0) for index in range(5)]
    result = merged(ClippedMean(), [device("a", (3, 0)), device("b", (3, 0)), *quiet])
    assert result.tensors["h"][0] == pytest.approx(6 / 7)


@pytest.mark.parametrize("rule", [ClippedMean(), TrimmedMean(), MultiKrum()])
def test_equal_updates_are_merged_as_by_the_plain_mean(rule):
    updates = [device(f"d{index}", (1, 2)) for index in range(7)]
    np.testing.assert_allclose(merged(rule, updates).tensors["h"], merged(CoveredMean(), updates).tensors["h"], rtol=1e-7)


@pytest.mark.parametrize("rule", [ClippedMean(), TrimmedMean(), MultiKrum()])
def test_ignored_role_is_left_out(rule):
    updates = [device(f"d{index}", (1, 0)) for index in range(6)] + [partner("p", (9, 9, 9, 9), (5, 5))]
    result = merged(replace(rule, ignored=Role.PARTNER), updates)
    np.testing.assert_array_equal(result.tensors["w"], OLD["w"])
    np.testing.assert_allclose(result.tensors["h"], [1, 0], rtol=1e-6)


@pytest.mark.parametrize("rule", [ClippedMean(), TrimmedMean(), MultiKrum(), CoveredMean()])
def test_nothing_to_merge_keeps_the_model(rule):
    result = merged(rule, [(Role.PARTNER, Update("p", 0, {}), {})])
    assert all(np.array_equal(result.tensors[name], OLD[name]) for name in OLD)


def test_trimmed_mean_drops_at_least_one_at_either_end_of_three():
    counts = np.array([0, 1, 2, 3, 5, 10, 11])
    np.testing.assert_array_equal(num_trimmed(counts, 0.2), [0, 0, 0, 1, 1, 2, 2])
    result = merged(TrimmedMean(), [device("a", (1, 5)), device("b", (2, -1e9)), device("c", (1e30, 6))])
    np.testing.assert_allclose(result.tensors["h"], [2, 5])


@settings(deadline=None, max_examples=60)
@given(
    num=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.01, 0.49),
    block_values=st.sampled_from([1, 7, 40, 10**6]),
)
def test_trimmed_mean_equals_that_of_a_sorted_table_whatever_the_blocks(num, seed, share, block_values):
    generator = np.random.default_rng(seed)
    old = {"x": generator.normal(size=(3, 4)).astype(np.float32), "y": generator.normal(size=5).astype(np.float32)}
    updates = [
        Update(
            f"{index:02}",
            1 + index,
            {name: generator.normal(size=values.shape).astype(np.float32) for name, values in old.items()},
            {"x": generator.random((3, 4)) < 0.7},
        )
        for index in range(num)
    ]
    found = trimmed_merge(old, lambda: iter(updates), {one.participant: one.num_examples for one in updates}, share, block_values)
    for name, values in old.items():
        for at in np.ndindex(values.shape):
            rows = [
                (float(one.tensors[name][at]), one.participant, one.num_examples)
                for one in updates
                if name != "x" or one.coverage["x"][at]
            ]
            cut = int(num_trimmed(np.array([len(rows)]), share)[0])
            kept = sorted(rows)[cut : len(rows) - cut]
            step = sum(value * weight for value, _, weight in kept) / sum(weight for *_, weight in kept) if kept else 0.0
            assert found[name][at] == pytest.approx(values[at] + step, rel=1e-5, abs=1e-6)


def test_multi_krum_leaves_out_those_that_are_far_and_says_so():
    generator = np.random.default_rng(1)
    honest = [device(f"d{index}", (1 + generator.normal() / 10, generator.normal() / 10)) for index in range(7)]
    hostile = [device(f"e{index}", (-5, 0)) for index in range(3)]
    result = merged(MultiKrum(0.3), [*honest, *hostile])
    assert {one.participant for one in result.findings if one.is_filtered} == {"e0", "e1", "e2"}
    assert all(one.ratio > 4 for one in result.findings if one.is_filtered)
    assert result.tensors["h"][0] > 0.8


def test_multi_krum_judges_head_and_encoder_apart_and_drops_the_ranges_of_a_filtered_encoder():
    honest = [partner(f"p{index}", (1, index / 10, 0, 0), (1, 0), ranges={"a": (0.0, 1.0)}) for index in range(6)]
    hostile = partner("q", (-50, 0, 0, 0), (1, 0), ranges={"a": (-2.0, 2.0)})
    result = merged(MultiKrum(0.2), [*honest, hostile], ranges={"a": (0.0, 0.5)})
    assert result.tensors["w"][0] == pytest.approx(1.0, rel=0.05)
    assert result.ranges == {"a": (0.0, 1.0)}
    assert {one.participant for one in result.findings if one.is_filtered and one.ratio > 4} == {"q"}


def test_krum_takes_no_more_for_hostile_than_its_proof_allows():
    assert [num_hostile(count, 0.3) for count in (1, 3, 4, 5, 7, 10, 50)] == [0, 0, 0, 1, 2, 3, 15]
    assert num_hostile(10, 0.49) == 3


@settings(deadline=None, max_examples=40)
@given(num=st.integers(1, 8), seed=st.integers(0, 2**32 - 1), block_values=st.sampled_from([1, 5, 64, 10**6]))
def test_distances_are_those_of_whole_updates_whatever_the_blocks(num, seed, block_values):
    generator = np.random.default_rng(seed)
    old = {"x": np.zeros((2, 3), np.float32), "y": np.zeros(4, np.float32)}
    names = tuple(f"{index:02}" for index in range(num))
    updates = [Update(who, 1, {k: generator.normal(size=v.shape).astype(np.float32) for k, v in old.items()}) for who in names]
    found = squared_distances(old, ("x", "y"), names, lambda: iter(updates), block_values)
    flat = [np.concatenate([one.tensors["x"].ravel(), one.tensors["y"]]).astype(np.float64) for one in updates]
    expected = [[((one - other) ** 2).sum() for other in flat] for one in flat]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_equal_scores_are_kept_in_order_of_ids():
    names = tuple("abcde")
    assert choose(names, np.zeros((5, 5)), 0.2).kept == frozenset("abcd")


def test_liar_moves_a_range_to_three_times_the_median_at_most():
    old = {"a": (0.0, 1.0), "b": (-1.0, 1.0)}
    honest = [{"a": (0.0, 1.0 + index / 10), "b": (-1.0, 2.0)} for index in range(4)]
    found = merge_ranges(old, [*honest, {"a": (-1e30, 1e30), "b": (-1e30, 1e30)}], cap=3.0)
    assert found == {"a": (0.0, pytest.approx(3.6)), "b": (-3.0, 6.0)}
    assert merge_ranges(old, honest, cap=3.0) == merge_ranges(old, honest)


RULES = [CoveredMean(), ClippedMean(), TrimmedMean(), MultiKrum(0.3)]


@pytest.mark.parametrize("rule", RULES)
def test_arrival_order_does_not_change_a_bit(rule):
    generator = np.random.default_rng(3)
    updates = [device(f"d{index}", generator.normal(size=2) * 10.0 ** generator.integers(-3, 4)) for index in range(6)]
    first = merged(rule, updates).tensors["h"].tobytes()
    for order in itertools.islice(itertools.permutations(updates), 0, 720, 37):
        assert merged(rule, list(order)).tensors["h"].tobytes() == first


@pytest.mark.parametrize("rule", [CoveredMean(), ClippedMean()])
def test_memory_of_mean_and_clipping_does_not_grow_with_the_cohort(rule):
    size = 100_000
    old = {"h": np.zeros(size, np.float32)}
    context = MergeContext(ModelShape(old, (HeadLayer("h", "b", size, 1),), {}))

    def peak(num):
        def updates():
            for index in range(num):
                values = np.random.default_rng(index).random(size, dtype=np.float32)
                yield Role.DEVICE, Update(f"d{index:03}", 10, {"h": values}), {}

        tracemalloc.start()
        rule.merge(old, {}, updates, context)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(3), peak(60)
    print(f"peak {few} and {many} bytes")
    assert many < few + 64 * 1024


def test_blocks_hold_no_more_than_they_may():
    old = {"x": np.zeros(1000, np.float32), "y": np.zeros((7, 11), np.float32)}
    updates = [Update(f"{index}", 1, {name: values + index for name, values in old.items()}) for index in range(5)]
    seen = dict.fromkeys(old, 0)
    for block in blocks(old, sorted(old), 5, lambda: iter(updates), 200):
        assert block.values.size <= 200
        assert block.values.shape == block.is_covered.shape == (5, block.stop - block.start)
        seen[block.name] += block.stop - block.start
    assert seen == {"x": 1000, "y": 77}


def test_survey_without_anybody_has_no_limits():
    limits = Survey(HEAD, "examples").limits(1.0, 3.0)
    assert dict(limits.norms) == {}
    assert limits.scales(device("a", (1, 1))[1]) == {"h": 1.0, "b": 1.0}
