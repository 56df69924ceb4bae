# SPDX-License-Identifier: Apache-2.0
"""Ranks, draws and groups of the sample selection, against SciPy and a twin in Python."""

import ctypes
import math

import numpy as np
import pytest
from scipy.stats import rankdata

from firmware_tests.native import Selector, library

DISCARD, DEVICE, PARTNER = range(3)
MASK = 0xFFFFFFFF

# (seed, device, epoch, sample, k): draw. A change here changes the groups of every recorded run.
DRAWS = {
    (0, 0, 0, 0, 0): 0xA040DBE3,
    (1, 2, 3, 4, 5): 0x1F53384D,
    (0xFFFFFFFF, 0xDEADBEEF, 31, 4095, 2): 0x19EE2A7E,
}


def c_rank(values: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(values, np.float32)
    rank = np.zeros(len(values) + 1, np.uint16)
    rank[-1] = 0xABCD
    library().fedmote_rank(ctypes.c_void_p(values.ctypes.data), len(values), ctypes.c_void_p(rank.ctypes.data))
    assert rank[-1] == 0xABCD
    return rank[:-1]


def c_draw(*words: int) -> int:
    return library().fedmote_draw(*(ctypes.c_uint32(word) for word in words))


def draw(*words: int) -> int:
    """SPEC.md, section 5: words are seed, device, epoch, sample, k."""
    h = words[0]
    for word in words[1:]:
        h = ((h ^ word) + 0x9E3779B9) & MASK
        h ^= h >> 16
        h = h * 0x85EBCA6B & MASK
        h ^= h >> 13
        h = h * 0xC2B2AE35 & MASK
        h ^= h >> 16
    return h


class Selection:
    """One selector of the SDK and its twin."""

    def __init__(self, n: int, alpha: float, beta: float, gamma: float = 0.0, gamma_order: int = 0, gain: float = 1.0) -> None:
        rng = np.random.default_rng(n)
        self.rank, self.norm_rank = c_rank(rng.random(n)), c_rank(rng.random(n))
        self.n, self.limit, self.seed, self.device = n, math.floor(n * gain), 12345, 0xDEADBEEF
        self.exponents, self.gamma_order = (alpha, beta, gamma), gamma_order
        ranks = (self.rank.ctypes.data, self.norm_rank.ctypes.data)
        self.struct = Selector(self.seed, self.device, alpha, beta, gamma, gamma_order, n, self.limit, *ranks)

    def groups(self, epoch: int) -> np.ndarray:
        select, struct = library().fedmote_select, ctypes.byref(self.struct)
        return np.array([select(struct, sample, epoch) for sample in range(self.n)])

    def twin(self, epoch: int) -> np.ndarray:
        return np.array([self._group(sample, epoch) for sample in range(self.n)])

    def _group(self, sample: int, epoch: int) -> int:
        u, v = (np.float32(r[sample]) / np.float32(self.n) for r in (self.rank, self.norm_rank))
        chances = [
            float(base) ** exponent if exponent else 0.0
            for base, exponent in zip((np.float32(1) - u, u, v), self.exponents, strict=True)
        ]
        dropped, partner, more = (draw(self.seed, self.device, epoch, sample, k) < p * 2**32 for k, p in enumerate(chances))
        adds, reduces = partner or (not dropped and more), partner and (more or not self.exponents[2])
        is_partner = reduces if self.gamma_order else adds
        if sample >= self.limit:
            return DISCARD
        return PARTNER if is_partner else DISCARD if dropped else DEVICE


@pytest.mark.parametrize("n", [1, 2, 3, 64, 257, 4096, 16383])
def test_ranks_equal_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)

    np.testing.assert_array_equal(c_rank(values), rankdata(values.astype(np.float32), method="min"))


@pytest.mark.parametrize("distinct", [1, 2, 7, 100])
def test_equal_values_share_the_lowest_rank(distinct: int) -> None:
    for n in (1, 2, 10, 500, 4096):
        values = np.random.default_rng(n + distinct).integers(0, distinct, n)

        np.testing.assert_array_equal(c_rank(values), rankdata(values, method="min"), err_msg=f"n {n}")


@pytest.mark.parametrize("n", [2, 9, 1000])
def test_ranks_of_sorted_reversed_and_rotated_values(n: int) -> None:
    for values in (np.arange(n), np.arange(n)[::-1], np.roll(np.arange(n), 1), np.roll(np.arange(n), n // 2)):
        np.testing.assert_array_equal(c_rank(values), values + 1)


def test_ranks_of_values_that_are_no_numbers_stay_within_bounds() -> None:
    values = np.random.default_rng(0).choice([np.nan, np.inf, -np.inf, 0.0, 1.0], 999)

    rank = c_rank(values)

    assert rank.min() >= 1
    assert rank.max() <= 999


def test_draws_equal_the_specification() -> None:
    rng = np.random.default_rng(0)
    for words in rng.integers(0, 2**32, (500, 5)).tolist():
        assert c_draw(*words) == draw(*words), words


def test_draws_equal_their_frozen_vectors() -> None:
    assert {words: c_draw(*words) for words in DRAWS} == DRAWS


def test_draws_are_uniform_over_samples_and_epochs() -> None:
    draws = np.array([c_draw(7, 8, epoch, sample, 0) for epoch in range(10) for sample in range(2000)]) / 2**32

    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert np.sum((counts - 1000) ** 2 / 1000) < 43.8  # chi-squared with 19 degrees of freedom, 0.1 %


@pytest.mark.parametrize("gamma_order", [0, 1])
@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(5, 3, 0), (5, 3, 2), (0, 0, 1), (0.5, 0, 0), (0, 4, 0), (0, 0, 0)])
def test_groups_equal_the_twin_sample_by_sample(alpha: float, beta: float, gamma: float, gamma_order: int) -> None:
    selection = Selection(400, alpha, beta, gamma, gamma_order)
    for epoch in (0, 3):
        np.testing.assert_array_equal(selection.groups(epoch), selection.twin(epoch))


def test_device_share_meets_its_closed_form() -> None:
    selection = Selection(4000, alpha=5, beta=3)
    groups = np.concatenate([selection.groups(epoch) for epoch in range(10)])

    beta_function = math.gamma(4) * math.gamma(6) / math.gamma(10)
    device_share = 1 - 1 / 6 - 1 / 4 + beta_function  # integral of (1 - (1-u)^5)(1 - u^3) over [0, 1]
    assert device_share == pytest.approx(0.5853, abs=1e-4)
    assert np.mean(groups == DEVICE) == pytest.approx(device_share, abs=0.01)
    assert np.mean(groups == PARTNER) == pytest.approx(1 / 4, abs=0.01)


def test_gain_leaves_samples_beyond_the_limit_alone() -> None:
    selection = Selection(100, alpha=0, beta=0, gain=0.25)

    np.testing.assert_array_equal(selection.groups(0), [DEVICE] * 25 + [DISCARD] * 75)
