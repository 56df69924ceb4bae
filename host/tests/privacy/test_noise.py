# SPDX-License-Identifier: Apache-2.0
"""Draws against the distribution, clipped sums against their bound, the accountant against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedmote.aggregation import Update
from fedmote.config import PrivacyConfig, StrategyConfig
from fedmote.errors import ConfigError, RoundError
from fedmote.package.graph import HeadLayer
from fedmote.privacy.accountant import delta_of, epsilon, epsilon_of_draws
from fedmote.privacy.discrete_gaussian import Bits, discrete_gaussian
from fedmote.strategies import Cell, MergeContext, ModelShape, load_strategy
from fedmote.strategies.private_mean import PrivateMean
from fedmote.wire.schema import Role

OLD = {"h": np.zeros((5, 40), np.float32), "b": np.zeros(5, np.float32)}
MODEL = ModelShape(OLD, (HeadLayer("h", "b", 40, 5),), {})
CONTEXT = MergeContext(MODEL, 3, b"k" * 32)


def update(who, h, b=0.0):
    return Role.DEVICE, Update(who, 20, {"h": np.full((5, 40), h, np.float32), "b": np.full(5, b, np.float32)}), {}


def merge(rule, updates, context=CONTEXT):
    return rule.merge(OLD, {}, lambda: iter(updates), context).tensors


@pytest.mark.parametrize("sigma", [1, 3, 40])
def test_draws_have_the_frequencies_of_the_discrete_gaussian(sigma):
    size = 30_000
    drawn = discrete_gaussian(Bits(b"seed", f"frequencies/{sigma}"), sigma, size)
    values = np.arange(-8 * sigma, 8 * sigma + 1)
    density = np.exp(-(values.astype(float) ** 2) / (2 * sigma**2))
    density /= density.sum()
    expected = density * size
    is_large = expected > 8
    observed = np.array([(drawn == value).sum() for value in values])
    found = np.append(observed[is_large], size - observed[is_large].sum())
    wanted = np.append(expected[is_large], size - expected[is_large].sum())
    probability = stats.chisquare(found, wanted).pvalue
    print(f"sigma {sigma}: p = {probability:.4f}")
    assert probability > 1e-3


def test_draws_of_one_key_and_label_are_the_same_and_of_others_are_not():
    first = discrete_gaussian(Bits(b"a" * 32, "1/h"), 1 << 20, 50)
    np.testing.assert_array_equal(first, discrete_gaussian(Bits(b"a" * 32, "1/h"), 1 << 20, 50))
    for key, label in ((b"b" * 32, "1/h"), (b"a" * 32, "2/h"), (b"a" * 32, "1/b")):
        assert not np.array_equal(first, discrete_gaussian(Bits(key, label), 1 << 20, 50))


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    clip=st.floats(1e-3, 1e3),
    noise=st.floats(0.01, 100.0),
)
def test_one_update_changes_the_sum_by_no_more_than_the_clip_norm(values, clip, noise):
    rule = PrivateMean(clip, noise)
    steps = rule.on_grid(Update("d", 20, {"h": np.array(values, np.float32)}))["h"]
    length = math.isqrt(sum(int(step) ** 2 for step in steps))
    assert length * (noise * clip / (1 << 20)) <= clip * (1 + 1e-9)


def test_noise_has_the_standard_deviation_that_was_asked_for():
    rule = PrivateMean(clip_norm=0.5, noise_multiplier=3.0)
    updates = [update("a", 0.0), update("b", 0.0)]
    seen = np.concatenate([merge(rule, updates, MergeContext(MODEL, number, b"k" * 32))["h"].ravel() for number in range(40)])
    # 0.5 * 3 / 2 updates; 8000 draws know their deviation to 0.8 %
    assert seen.std() == pytest.approx(0.75, rel=0.03)
    assert abs(seen.mean()) < 4 * 0.75 / math.sqrt(len(seen))


def test_noise_is_that_of_the_round_and_the_key_alone():
    rule = PrivateMean(1.0, 1.0)
    near = [update("a", 0.001), update("b", 0.002)]
    far = [update("a", 0.003), update("b", -0.001)]
    difference = merge(rule, near)["h"] - merge(rule, far)["h"]
    np.testing.assert_allclose(difference, (0.0015 - 0.001), atol=1e-6)
    assert merge(rule, near)["h"].tobytes() == merge(rule, near)["h"].tobytes()
    assert merge(rule, near)["h"].tobytes() != merge(rule, near, MergeContext(MODEL, 4, b"k" * 32))["h"].tobytes()


def test_weights_do_not_count_and_a_divisor_that_is_fixed_does():
    _, one, _ = update("a", 0.001)
    loud = [(Role.DEVICE, Update("a", 1_000_000, one.tensors), {}), update("b", 0.003)]
    quiet = [update("a", 0.001), update("b", 0.003)]
    assert merge(PrivateMean(1.0, 1.0), loud)["h"].tobytes() == merge(PrivateMean(1.0, 1.0), quiet)["h"].tobytes()
    halved = merge(PrivateMean(1.0, 1.0, divisor=4), quiet)["h"]
    np.testing.assert_allclose(2 * halved, merge(PrivateMean(1.0, 1.0), quiet)["h"], rtol=1e-6, atol=1e-8)


def test_merge_without_a_key_is_refused():
    with pytest.raises(RoundError, match="noise key"):
        merge(PrivateMean(1.0, 1.0), [update("a", 0.0)], MergeContext(MODEL, 1))


def test_epsilon_of_one_gaussian_is_near_its_exact_value_and_above():
    # Balle and Wang (arXiv 1805.06530): delta(eps) = F(1/2s - eps s) - e^eps F(-1/2s - eps s)
    noise, delta = 2.0, 1e-3
    found = epsilon(noise, 1, delta)

    def exact(eps):
        return stats.norm.cdf(0.5 / noise - eps * noise) - math.exp(eps) * stats.norm.cdf(-0.5 / noise - eps * noise)

    assert exact(found) < delta
    assert exact(0.7 * found) > delta


def test_epsilon_grows_with_rounds_and_falls_with_noise_and_with_a_smaller_draw():
    assert epsilon(1.0, 0, 1e-3) == 0.0
    assert epsilon(1.0, 1, 1e-3) < epsilon(1.0, 10, 1e-3)
    assert epsilon(4.0, 10, 1e-3) < epsilon(1.0, 10, 1e-3)
    assert epsilon_of_draws(4.0, 10, 1e-3, 10, 1000, 1) < epsilon(4.0, 10, 1e-3)
    assert epsilon_of_draws(4.0, 10, 1e-3, 10, 1000, 1) < epsilon_of_draws(4.0, 10, 1e-3, 10, 1000, 3)


def test_delta_is_below_one_in_the_number_of_devices():
    assert all(delta_of(count) < 1 / count for count in (2, 20, 1000))


LONE = (Cell("a", ("d1",), None), Cell("b", ("d2",), None))
PAIRED = (Cell("a", ("d1",), "p1"), Cell("b", ("d2",), None))
NOISE = PrivacyConfig(1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "cells", "reason"),
    [
        ({}, PAIRED, "fleet without partners"),
        ({"preset": "fedavg"}, PAIRED, "fleet without partners"),
        ({"aggregation": "multi_krum"}, LONE, "let one update change so little"),
        ({"aggregation": "trimmed_mean"}, LONE, "let one update change so little"),
        ({"uncovered": "old"}, LONE, "uncovered"),
        ({"ignore": "partners", "is_sending_samples": True}, PAIRED, "not private any more"),
        ({"privacy": PrivacyConfig(1.0, 1.0, "cells")}, LONE, "nothing is drawn"),
    ],
)
def test_privacy_beside_what_would_give_the_data_away_is_refused_with_the_reason(changes, cells, reason):
    with pytest.raises(ConfigError, match=reason):
        load_strategy(StrategyConfig(**({"privacy": NOISE} | changes)), cells)


def test_privacy_is_taken_where_devices_alone_are_merged():
    assert load_strategy(StrategyConfig(privacy=NOISE), LONE).aggregation == PrivateMean(1.0, 1.0)
    drawn = StrategyConfig(privacy=PrivacyConfig(1.0, 1.0, "cells"), cells_per_round=2)
    assert load_strategy(drawn, LONE).aggregation.divisor == 2
    assert load_strategy(StrategyConfig(privacy=NOISE, ignore="partners"), PAIRED).aggregation.ignored is Role.PARTNER
