# SPDX-License-Identifier: Apache-2.0
"""Turns of the loops of device_sdk/variants/cortex_m_dsp: see `loops`."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from fedmote.package.loops import (
    PORTABLE,
    Axis,
    Ints,
    Numbers,
    Subject,
    Work,
    axes_of,
    ceil_div,
    parts,
    sum_elements,
    walk,
)
from fedmote.wire.schema import Opcode

_WORDS = 448  # on the stack
_POSITIONS = 3  # of a turn of conv_2d
_GROUP_WORDS = 2 * _POSITIONS
_MAX_PAIRS = 32
_MAX_PLAIN_SHIFT = 30
_COLUMN_GROUPS = _WORDS // 2  # of fully_connected
_MAX_COLUMNS = _WORDS // 6  # of depthwise_conv_2d
_TAPS = 9  # of its kernel for 3 x 3
_MOST_ELEMENTS = 255  # of a window of average_pool_2d whose sums are halves of words
_HALF = 1 << 30


def _is_plain(subject: Subject) -> bool:
    return bool(subject.scaling[0, 2] <= _MAX_PLAIN_SHIFT)


def _clamped(v: Numbers, count: int) -> int:
    """Elements that fedmote_dsp_clamp() goes over."""
    return 0 if (v["activation_min"], v["activation_max"]) == (-128, 127) else count


# ---- convolution -----------------------------------------------------------------------------------------------


def _turns_of(positions: Ints, is_read_again: bool) -> Ints:
    """Numbers (turns, 3) of the positions of each turn; `positions`: (rows, columns). The last one fills its turn."""
    lines = positions if is_read_again else positions.reshape(1, -1)
    missing = -lines.shape[1] % _POSITIONS
    return np.concatenate([lines, np.repeat(lines[:, -1:], missing, axis=1)], axis=1).reshape(-1, _POSITIONS)


def _run_words(low: int, high: int, words: int) -> Ints:
    """Words of a run whose bytes [low, high) are in the input: whole ones, its end, padding, all other ones."""
    place = 4 * np.arange(words)
    is_whole = (np.arange(words) >= ceil_div(low, 4)) & (np.arange(words) < high // 4)
    is_padding = ~is_whole & ((high <= place) | (low >= place + 4))
    is_end = ~is_whole & ~is_padding & (low <= place) & (high - low >= 4)
    counts = [np.count_nonzero(kind) for kind in (is_whole, is_end, is_padding)]
    return np.array([*counts, words - sum(counts)], np.int64)


def _staged_words(v: Numbers, axes: tuple[Axis, Axis], runs: int, run_groups: int) -> Ints:
    """Words by the kinds of _run_words() of the patch at each position, (rows, columns, 4)."""
    rows, columns = axes
    nothing = runs * _run_words(0, 0, run_groups)
    of_row = []
    for first, end in zip(columns.first.tolist(), columns.end.tolist(), strict=True):
        if runs == 1:
            of_row.append(_run_words(first * v["group_in_c"], end * v["group_in_c"], run_groups))
        else:
            inside = end - first
            of_row.append(inside * _run_words(0, v["group_in_c"], run_groups) + (runs - inside) * _run_words(0, 0, run_groups))
    inside_rows = rows.taps[:, None, None]
    return np.asarray(inside_rows * np.stack(of_row)[None] + (v["kernel_h"] - inside_rows) * nothing, np.int64)


def _conv_2d(subject: Subject) -> Work:
    v = subject.values
    axes = axes_of(v)
    rows, columns = axes
    runs = 1 if v["dilation_w"] == 1 and v["groups"] == 1 else v["kernel_w"]
    run = v["kernel_w"] // runs * v["group_in_c"]
    run_groups = ceil_div(run, 4)
    groups = v["kernel_h"] * runs * run_groups
    is_in_parts = _is_plain(subject) or groups > _WORDS // _GROUP_WORDS
    pairs = ceil_div(v["group_out_c"], 2)
    whole = rows.is_whole[:, None] & columns.is_whole[None, :]
    turns = Counter(row=v["out_h"], position=whole.size, edge=int(np.count_nonzero(~whole)))
    turns["skipped"] = rows.skipped + int((~whole * (columns.kernel - columns.taps)[None, :]).sum())
    order = _turns_of(np.arange(whole.size).reshape(whole.shape), v["groups"] > 1 or (is_in_parts and pairs > _MAX_PAIRS))
    is_direct = run % 4 == 0 if subject.is_unaligned else v["in_c"] % 4 == 0 and v["group_in_c"] % 4 == 0
    direct = whole.reshape(-1)[order].all(axis=1) & is_direct
    turns["turn"] = len(order)
    turns["group"] = len(order) * v["groups"]
    turns["clamped"] = _clamped(v, order.size * v["out_c"])
    staged = order[~direct].reshape(-1)
    is_simple = runs == 1 and run >= 4
    words = _staged_words(v, axes, runs, run_groups).reshape(-1, 4)
    counts = len(order), int(direct.sum())
    times = v["groups"]
    if is_in_parts:
        is_whole = _in_parts(turns, v, counts, (groups, runs * run_groups, runs), _is_plain(subject))
        is_simple, times = is_simple and is_whole, times * (1 if is_whole else ceil_div(pairs, _MAX_PAIRS))
    else:
        _columns(turns, v, counts, groups, runs)
    copied = staged[whole.reshape(-1)[staged] & is_simple]
    turns["copy"] += times * len(copied)
    turns["copy_row"] += times * len(copied) * v["kernel_h"]
    turns["copy_word"] += times * len(copied) * v["kernel_h"] * (run // 4)
    turns["copy_rest"] += times * len(copied) * v["kernel_h"] * (run % 4 > 0)
    edges = staged[~(whole.reshape(-1)[staged] & is_simple)]
    turns["stage"] += times * len(edges)
    turns["stage_row"] += times * len(edges) * v["kernel_h"]
    turns["stage_run"] += times * len(edges) * v["kernel_h"] * runs
    _stage(turns, times, words[edges])
    return Work("conv_2d.parts" if is_in_parts else "conv_2d.whole", dict(turns))


def _stage(turns: Counter[str], times: int, words: NDArray[np.int64]) -> None:
    """stage_run() and edge_word() of patches whose words (patches, 4) are given."""
    for name, count in zip(("stage_word", "edge_end", "edge_padding", "edge_part"), words.sum(axis=0).tolist(), strict=True):
        turns[name] += times * count


def _columns(turns: Counter[str], v: Numbers, counts: tuple[int, int], groups: int, runs: int) -> None:
    """convolve_whole(): the columns of `counts` turns, of them some direct ones, and the pairs that run over them."""
    total, direct = (count * v["groups"] for count in counts)
    turns["direct"] += direct
    turns["direct_run"] += direct * v["kernel_h"] * runs
    turns["direct_word"] += direct * groups
    turns["staged"] += total - direct
    turns["staged_word"] += (total - direct) * groups
    pairs = ceil_div(v["group_out_c"], 2)
    turns["block"] += total * (v["group_out_c"] >= 2)
    turns["single"] += total * (v["group_out_c"] % 2)
    turns["pair"] += total * pairs
    turns["pair_turn"] += total * pairs * ceil_div(groups, 4)
    turns["pair_group"] += total * pairs * groups


def _in_parts(turns: Counter[str], v: Numbers, counts: tuple[int, int], sizes: tuple[int, int, int], is_plain: bool) -> bool:
    """convolve_group_in_parts(); sizes: groups of a patch, of a kernel row, and runs of a row. Whether the patch is one part."""
    total, direct = (count * v["groups"] for count in counts)
    groups, row_groups, runs = sizes
    part_count = 1
    for channels in parts(v["group_out_c"], 2 * _MAX_PAIRS):
        pairs = ceil_div(channels, 2)
        turns["block"] += total
        turns["sum"] += total * pairs
        capacity = (_WORDS - _GROUP_WORDS * pairs) // _GROUP_WORDS
        end = 0
        for size in parts(groups, capacity):
            end += size
            visited = ceil_div(end, row_groups)
            turns["part"] += total
            turns["direct_run"] += direct * visited * runs
            turns["direct_word"] += direct * size
            turns["staged_word"] += (total - direct) * size
            turns["pair"] += total * pairs
            turns["pair_turn"] += total * pairs * ceil_div(size, 4)
            turns["pair_group"] += total * pairs * size
            turns["halved"] += total * size * is_plain
        turns["plain_output" if is_plain else "output"] += total * channels
        part_count = max(part_count, ceil_div(groups, capacity))
    return part_count == 1


# ---- depthwise convolution -------------------------------------------------------------------------------------


def _depthwise_conv_2d(subject: Subject) -> Work:
    v = subject.values
    rows, columns = axes_of(v)
    is_3x3 = (
        (v["kernel_h"], v["kernel_w"], v["dilation_h"], v["dilation_w"], v["group_out_c"]) == (3, 3, 1, 1, 1)
        and v["stride_w"] <= 2
        and v["out_c"] % 4 == 0
    )
    turns = Counter(row=v["out_h"], skipped=rows.skipped, clamped=_clamped(v, v["out_h"] * v["out_w"] * v["out_c"]))
    if not is_3x3 or _is_plain(subject):
        _any_shape(turns, subject, np.arange(v["out_w"]), rows, columns)
        turns["arranged_tap"] += is_3x3 * v["out_h"] * v["out_w"] * v["out_c"] * _TAPS
        return Work("depthwise_conv_2d", dict(turns))
    first = 0
    for count in parts(v["out_w"], (_MAX_COLUMNS - 3) // v["stride_w"] + 1):
        origin, last = (x * v["stride_w"] - v["pad_left"] for x in (first, first + count - 1))
        if not all(-3 < edge < v["in_w"] for edge in (origin, last)):
            _any_shape(turns, subject, np.arange(first, first + count), rows, columns)
            turns["arranged_tap"] += v["out_h"] * count * v["out_c"] * _TAPS
        else:
            width = (count - 1) * v["stride_w"] + 3
            inside = min(origin + width, v["in_w"]) - max(origin, 0)
            turns["chunk"] += v["out_h"]
            turns["padding_column"] += v["out_h"] * (width - inside)
            turns["four"] += v["out_h"] * v["out_c"] // 4
            turns["column"] += v["out_h"] * inside * v["out_c"] // 4
            turns["four_position"] += v["out_h"] * count * v["out_c"] // 4
        first += count
    return Work("depthwise_conv_2d", dict(turns))


def _any_shape(turns: Counter[str], subject: Subject, at: Ints, rows: Axis, columns: Axis) -> None:
    """convolve_any() of the positions `at` of every row."""
    v = subject.values
    inside = int(rows.taps.sum() * columns.taps[at].sum()) * v["out_c"]
    row_taps = len(at) * v["kernel_w"] * v["out_c"]
    turns["position"] += v["out_h"] * len(at)
    turns["skipped"] += v["out_h"] * int((columns.kernel - columns.taps[at]).sum())
    turns["output"] += v["out_h"] * len(at) * v["out_c"]
    turns["output_row"] += v["out_h"] * len(at) * v["out_c"] * v["kernel_h"]
    turns["tap"] += inside
    turns["padding_tap"] += int(rows.taps.sum()) * row_taps - inside
    turns["padding_row_tap"] += int((rows.kernel - rows.taps).sum()) * row_taps
    turns["plain_output"] += v["out_h"] * len(at) * v["out_c"] * _is_plain(subject)


# ---- others ----------------------------------------------------------------------------------------------------


def _fully_connected(subject: Subject) -> Work:
    v = subject.values
    groups, fours = ceil_div(v["in_n"], 4), ceil_div(v["out_n"], 4)
    widened = groups if groups <= _COLUMN_GROUPS else groups * fours
    return Work(
        "fully_connected",
        {
            "widened": widened,
            "four": fours,
            "part": fours * ceil_div(groups, _COLUMN_GROUPS),
            "four_group": fours * groups,
            "output": v["out_n"],
            "plain_output": v["out_n"] * _is_plain(subject),
            "halved": widened * _is_plain(subject),
            "clamped": _clamped(v, v["out_n"]),
        },
    )


def _is_usual_sum(v: Numbers) -> bool:
    """is_usual() of add_cortex_m_dsp.c."""
    is_half1 = (v["multiplier1"], v["shift1"]) == (_HALF, 0)
    is_half2 = (v["multiplier2"], v["shift2"]) == (_HALF, 0)
    return (
        v["count2"] == v["count"]
        and 1 <= v["left_shift"] <= 20
        and -22 <= v["output_shift"] <= -1
        and ((is_half1 and (v["shift2"] < 0 or is_half2)) or (is_half2 and v["shift1"] < 0))
    )


def _add(subject: Subject) -> Work:
    v = subject.values
    if not _is_usual_sum(v):
        return Work("add.any", sum_elements(v))
    return Work("add.usual", {"element": v["count"], "clamped": _clamped(v, v["count"])})


def _average_pool_2d(subject: Subject) -> Work:
    v = subject.values
    turns = walk(v)
    rows, columns = axes_of(v)
    is_small = rows.taps[:, None] * columns.taps[None, :] <= _MOST_ELEMENTS
    for name, at, blocks in (
        ("four", is_small, v["channels"] // 4),
        ("single", is_small, v["channels"] % 4),
        ("single", ~is_small, v["channels"]),
    ):
        turns[name] += int(at.sum()) * blocks
        turns[f"{name}_row"] += int((at * rows.taps[:, None]).sum()) * blocks
        turns[f"{name}_tap"] += int((at * rows.taps[:, None] * columns.taps[None, :]).sum()) * blocks
    turns["channel"] += turns["position"] * v["channels"]
    return Work("average_pool_2d", dict(turns))


CORTEX_M_DSP = {
    **PORTABLE,
    Opcode.CONV_2D: _conv_2d,
    Opcode.DEPTHWISE_CONV_2D: _depthwise_conv_2d,
    Opcode.FULLY_CONNECTED: _fully_connected,
    Opcode.ADD: _add,
    Opcode.AVERAGE_POOL_2D: _average_pool_2d,
}
