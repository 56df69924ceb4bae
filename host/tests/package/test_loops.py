# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from itertools import product

import numpy as np
import pytest

from fedmote.package import loops, loops_dsp, loops_helium


def _window(out, stride, pad, kernel, dilation, size):
    """fedmote_window_at() of window.h."""
    origin, first, end = out * stride - pad, 0, kernel
    while first < kernel and origin + first * dilation < 0:
        first += 1
    while end > first and origin + (end - 1) * dilation >= size:
        end -= 1
    return first, end


@pytest.mark.parametrize("seed", range(30))
def test_windows_are_those_of_the_kernels(seed):
    rng = np.random.default_rng(seed)
    outputs, stride, pad, kernel, dilation, size = (int(rng.integers(*limits)) for limits in (
        *((1, 20), (1, 4), (0, 6), (1, 8), (1, 4), (1, 20)),
    ))  # fmt: skip
    axis = loops.axis_of(outputs, stride, pad, kernel, dilation, size)
    expected = [_window(out, stride, pad, kernel, dilation, size) for out in range(outputs)]
    assert list(zip(axis.first.tolist(), axis.end.tolist(), strict=True)) == expected
    assert axis.skipped == sum(kernel - (end - first) for first, end in expected)


@pytest.mark.parametrize("seed", range(10))
def test_places_of_nested_loops_are_counted_by_their_remainders(seed):
    rng = np.random.default_rng(seed)
    extents = tuple(int(n) for n in rng.integers(1, 12, 3))
    strides = tuple((int(a), int(b)) for a, b in rng.integers(-40, 40, (3, 2)))
    expected = Counter(
        tuple(sum(i * stride[side] for i, stride in zip(index, strides, strict=True)) % 4 for side in (0, 1))
        for index in product(*map(range, extents))
    )
    assert loops._places(extents, strides) == expected


def test_moves_go_by_words_where_both_places_allow_it_and_backwards_where_they_meet():
    def moved(source, target, count):
        turns = Counter()
        loops._move(turns, 1, source, target, count)
        return {name.removeprefix("moved_"): times for name, times in turns.items() if times}

    assert moved(0, 64, 39) == {"by_words": 1, "block": 2, "word": 1, "byte": 3}
    assert moved(0, 66, 39) == {"byte": 39}
    assert moved(0, 64, 15) == {"byte": 15}
    assert moved(0, 16, 39) == {"backward": 39}
    assert moved(16, 0, 39) == {"by_words": 1, "block": 2, "word": 1, "byte": 3}


@pytest.mark.parametrize("seed", range(20))
def test_words_of_a_run_are_those_that_edge_word_tells_apart(seed):
    rng = np.random.default_rng(seed)
    words = int(rng.integers(1, 8))
    low, high = sorted(int(edge) for edge in rng.integers(0, 4 * words + 1, 2))
    kinds = Counter()
    i = 0
    while i < words and 4 * i < low:  # the three loops of stage_run()
        kinds[_edge(4 * i, low, high)] += 1
        i += 1
    while i < words and i < high // 4:
        kinds["whole"] += 1
        i += 1
    while i < words:
        kinds[_edge(4 * i, low, high)] += 1
        i += 1
    assert loops_dsp._run_words(low, high, words).tolist() == [kinds[kind] for kind in ("whole", "end", "padding", "part")]


def _edge(place, low, high):
    if high <= place or low >= place + 4:
        return "padding"
    return "end" if low <= place and high - low >= 4 else "part"


def test_positions_share_turns_across_rows_unless_they_are_read_again():
    positions = np.arange(8).reshape(2, 4)
    assert loops_dsp._turns_of(positions, False).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 7]]
    assert loops_dsp._turns_of(positions, True).tolist() == [[0, 1, 2], [3, 3, 3], [4, 5, 6], [7, 7, 7]]


@pytest.mark.parametrize(("width", "limit", "blocks"), [(7, 7, [7]), (8, 7, [4, 4]), (15, 7, [5, 5, 5]), (17, 7, [6, 6, 5])])
def test_blocks_of_a_row_are_as_equal_as_can_be(width, limit, blocks):
    assert loops_helium._blocks(width, limit) == blocks


@pytest.mark.parametrize("seed", range(10))
def test_halves_and_pairs_of_packed_weights_add_up_to_all_of_them(seed):
    rng = np.random.default_rng(seed)
    first, n = rng.integers(0, 50, 9), int(rng.integers(1, 20))
    turns = Counter()
    loops._int4_dots(turns, "single", 3, first, n)
    assert turns["single_dot"] == 27
    assert 2 * turns["single_pair"] + turns["single_half"] == 27 * n
    odd = sum(1 for place in first if place % 2 and n % 2 == 0)
    assert turns["single_half"] == 3 * (9 if n % 2 else 2 * odd)
