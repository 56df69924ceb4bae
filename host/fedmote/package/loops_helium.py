# SPDX-License-Identifier: Apache-2.0
"""Turns of the loops of device_sdk/variants/cortex_m_helium: see `loops`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fedmote.package.loops import PORTABLE, Numbers, Subject, Work, axes_of, ceil_div, parts, pool_taps, sum_elements, walk
from fedmote.wire.schema import Opcode

_LANES = 16
_POSITIONS = 7
_CHANNELS = 64
_COLUMN_BYTES = 288  # of a patch, at once
_ROW_BYTES = _POSITIONS * _COLUMN_BYTES
_OFFSETS_MAX = 0xFFFF
_EDGE = 4  # rows and columns of a depthwise kernel that is done by windows


def _blocks(width: int, limit: int) -> list[int]:
    """Positions of the blocks of a row: fedmote_helium_block_positions()."""
    return parts(width, ceil_div(width, ceil_div(width, limit)))


def _finish(turns: Counter[str], subject: Subject, times: int, channels: int, positions: int) -> None:
    """fedmote_helium_finish() of a block of sums: each position of four channels, in one of three ways."""
    if (subject.scaling[:, 2] >= 0).any():
        kind = "scaled_any"
    else:
        kind = "scaled_nudged" if subject.values["activation_min"] < subject.values["output_zero_point"] else "scaled"
    turns[f"finish_{kind}"] += times
    turns[f"{kind}_four"] += times * ceil_div(channels, 4)
    turns[kind] += times * ceil_div(channels, 4) * positions


def _dot(turns: Counter[str], times: int, channels: int, positions: int, products: int, is_first: bool) -> None:
    """add_products(): chunks of 16 products, over whose inputs the weights of all channels run."""
    chunks, tail = divmod(products, _LANES)
    turns["dot"] += times
    turns["chunk"] += times * chunks
    turns["chunk_load"] += times * chunks * positions
    turns["chunk_channel"] += times * chunks * channels
    turns["again"] += times * (chunks - (is_first and chunks > 0)) * channels
    turns["product"] += times * (chunks + (tail > 0)) * channels * positions
    if tail:
        turns["tail"] += times
        turns["tail_load"] += times * positions
        turns["tail_channel"] += times * channels
        turns["again"] += times * channels * (not is_first or chunks > 0)


# ---- convolution -----------------------------------------------------------------------------------------------


def _is_inside(v: Numbers) -> bool:
    """Whether all taps of all positions lie in the image."""
    rows, columns = axes_of(v)
    return v["pad_top"] == v["pad_left"] == 0 and bool(rows.is_whole.all() and columns.is_whole.all())


def _row_positions(v: Numbers) -> int:
    """positions_of_rows(): of a block that is read row by row, or 0 where that does not go."""
    is_row_whole = v["kernel_h"] == 1 or v["kernel_w"] * v["in_c"] % _LANES == 0
    if v["groups"] > 1 or (v["kernel_w"] > 1 and v["dilation_w"] > 1) or not is_row_whole:
        return 0
    positions = _POSITIONS
    while not _is_inside(v) and positions and ((positions - 1) * v["stride_w"] + v["kernel_w"]) * v["in_c"] > _ROW_BYTES:
        positions -= 1
    return positions


def _conv_2d(subject: Subject) -> Work:
    v = subject.values
    turns: Counter[str] = Counter(scaling=ceil_div(v["out_c"], 4))
    row_positions = _row_positions(v)
    if row_positions:
        _by_rows(turns, subject, row_positions)
        return Work("conv_2d.rows", dict(turns))
    _by_columns(turns, subject)
    return Work("conv_2d.columns", dict(turns))


def _by_rows(turns: Counter[str], subject: Subject, limit: int) -> None:
    """convolve_rows() of all blocks; a 1 x 1 convolution may be one long row."""
    v = subject.values
    is_one_row = (
        (v["kernel_h"], v["kernel_w"], v["stride_h"], v["stride_w"]) == (1, 1, 1, 1)
        and v["in_w"] == v["out_w"]
        and v["out_c"] <= _CHANNELS
        and _is_inside(v)
    )
    height, width, in_w = (
        (1, v["out_h"] * v["out_w"], v["in_h"] * v["in_w"]) if is_one_row else (v["out_h"], v["out_w"], v["in_w"])
    )
    rows, _ = axes_of(v)
    kernel_rows = int(rows.taps.sum()) if not is_one_row else 1  # that meet the input, of all rows of the output
    products = v["kernel_w"] * v["in_c"]
    x = 0
    for positions in _blocks(width, limit):
        left = x * v["stride_w"] - v["pad_left"]
        right = left + (positions - 1) * v["stride_w"] + v["kernel_w"]
        padded = height * v["kernel_h"] - (kernel_rows if left >= 0 and right <= in_w else 0)
        copied = max(0, min(right, in_w) - max(left, 0)) * v["in_c"]
        for channels in parts(v["out_c"], _CHANNELS):
            turns["block"] += height
            turns["kernel_row"] += height * v["kernel_h"]
            turns["padded_row"] += padded
            turns["filled"] += padded * ceil_div((right - left) * v["in_c"], _LANES)
            if left < 0 or right > in_w:
                turns["copied"] += kernel_rows * ceil_div(copied, _LANES)
            _dot(turns, height, channels, positions, products, is_first=True)
            _dot(turns, height * (v["kernel_h"] - 1), channels, positions, products, is_first=False)
            _finish(turns, subject, height, channels, positions)
        x += positions


def _by_columns(turns: Counter[str], subject: Subject) -> None:
    """convolve_columns() of all blocks; with one group and short patches they go on from row to row."""
    v = subject.values
    products = v["kernel_h"] * v["kernel_w"] * v["group_in_c"]
    last = (v["kernel_h"] - 1) * v["dilation_h"] * v["in_w"] * v["in_c"] + (v["kernel_w"] - 1) * v["dilation_w"] * v["in_c"]
    has_offsets = products <= _COLUMN_BYTES and last + v["group_in_c"] - 1 <= _OFFSETS_MAX
    turns["offset"] += products * has_offsets
    channel_blocks, pieces = parts(v["group_out_c"], _CHANNELS), parts(products, _COLUMN_BYTES)
    is_by_rows = v["groups"] > 1 or products > _COLUMN_BYTES
    width = v["out_w"] if is_by_rows else v["out_h"] * v["out_w"]
    lines = v["out_h"] if is_by_rows else 1
    for positions in _blocks(width, _POSITIONS):
        turns["block"] += lines
        turns["gather"] += lines * v["groups"] * (1 if len(pieces) == 1 else len(channel_blocks) * len(pieces))
        for channels in channel_blocks:
            times = lines * v["groups"]
            for number, piece in enumerate(pieces):
                _dot(turns, times, channels, positions, piece, is_first=number == 0)
            _finish(turns, subject, times, channels, positions)
    gathers = v["groups"] * (1 if len(pieces) == 1 else len(channel_blocks))
    _gathers(turns, v, gathers, pieces, has_offsets)


def _gathers(turns: Counter[str], v: Numbers, times: int, pieces: list[int], has_offsets: bool) -> None:
    """gather() of all positions: whole patches by a table of offsets, others run by run."""
    rows, columns = axes_of(v)
    whole = int(rows.is_whole.sum() * columns.is_whole.sum())
    positions = v["out_h"] * v["out_w"]
    by_table = whole if has_offsets else 0
    products = sum(pieces)
    turns["part_patch"] += times * (positions - by_table) * len(pieces)
    turns["table_patch"] += times * by_table
    turns["table_byte"] += times * by_table * ceil_div(products, 8)
    turns["ground"] += times * (positions - whole) * sum(ceil_div(piece, _LANES) for piece in pieces)
    turns["skipped"] += times * len(pieces) * (v["out_w"] * rows.skipped + v["out_h"] * columns.skipped)
    is_run = v["dilation_w"] * v["in_c"] == v["group_in_c"]
    for taps, of_rows in _run_kinds(v, by_table):
        runs = of_rows * (1 if is_run else taps)
        length = (taps if is_run else 1) * v["group_in_c"]
        turns["patch_row"] += times * len(pieces) * of_rows
        turns["run"] += times * len(pieces) * runs
        turns["run_copy"] += times * runs * ceil_div(length, _LANES)


def _run_kinds(v: Numbers, by_table: int) -> Iterator[tuple[int, int]]:
    """Taps of a kernel row, and how many rows have so many, of all patches that no table is used for."""
    rows, columns = axes_of(v)
    for taps, count in Counter(columns.taps.tolist()).items():
        patches_rows = int(rows.taps.sum()) * count
        if taps == v["kernel_w"] and by_table:
            patches_rows -= by_table * v["kernel_h"]
        yield taps, patches_rows if taps else 0


# ---- depthwise convolution -------------------------------------------------------------------------------------


def _has_windows(v: Numbers) -> bool:
    return (
        max(v["kernel_h"], v["kernel_w"]) <= _EDGE
        and (v["dilation_h"] == 1 or v["kernel_h"] == 1)
        and (v["dilation_w"] == 1 or v["kernel_w"] == 1)
        and v["stride_w"] <= 2
    )


def _depthwise_conv_2d(subject: Subject) -> Work:
    v = subject.values
    if v["group_out_c"] > 1:
        return _conv_2d(subject)
    if _has_windows(v):
        return _by_windows(subject)
    turns = walk(v)
    rows, columns = axes_of(v)
    fours = ceil_div(v["out_c"], 4)
    inside, inside_rows = int(rows.taps.sum() * columns.taps.sum()), int(rows.taps.sum()) * v["out_w"]
    turns["four"] += turns["position"] * fours
    turns["four_row"] += turns["position"] * fours * v["kernel_h"]
    turns["tap"] += inside * fours
    turns["padding_tap"] += (inside_rows * v["kernel_w"] - inside) * fours
    turns["padding_row_tap"] += (turns["position"] * v["kernel_h"] - inside_rows) * v["kernel_w"] * fours
    return Work("depthwise_conv_2d.any", dict(turns))


def _by_windows(subject: Subject) -> Work:
    """convolve_windows(): columns of 16 channels, then all channels' windows, then outputs."""
    v = subject.values
    turns: Counter[str] = Counter(scaling=ceil_div(v["out_c"], 4), row=v["out_h"], tap=v["kernel_h"] * v["kernel_w"])
    x = 0
    for positions in _blocks(v["out_w"], _POSITIONS):
        left = x * v["stride_w"] - v["pad_left"]
        count = (positions - 1) * v["stride_w"] + v["kernel_w"]
        inside = max(0, min(left + count, v["in_w"]) - max(left, 0))
        turns["block"] += v["out_h"]
        for channels in parts(v["out_c"], _CHANNELS):
            for some in parts(channels, _LANES):
                kind = "column" if some == _LANES else "partial_column"
                turns["gather"] += v["out_h"]
                turns["padding_column"] += v["out_h"] * (count - inside)
                turns[kind] += v["out_h"] * inside
                turns["channel"] += v["out_h"] * some
                turns["window"] += v["out_h"] * some * positions
            _finish(turns, subject, v["out_h"], channels, positions)
        x += positions
    return Work("depthwise_conv_2d.windows", dict(turns))


# ---- others ----------------------------------------------------------------------------------------------------


def _fully_connected(subject: Subject) -> Work:
    v = subject.values
    fours = ceil_div(v["out_n"], 4)
    return Work("fully_connected", {"four": fours, "four_chunk": fours * ceil_div(v["in_n"], _LANES)})


def _add(subject: Subject) -> Work:
    v = subject.values
    if v["output_shift"] >= 0:
        return Work("add.any", sum_elements(v))
    runs = parts(v["count"], v["count2"])
    return Work("add.vectors", {"run": len(runs), "four": sum(ceil_div(run, 4) for run in runs)})


def _average_pool_2d(subject: Subject) -> Work:
    v = subject.values
    turns = pool_taps(v, ceil_div(v["channels"], 4), "four")
    turns["channel"] += turns["position"] * v["channels"]
    return Work("average_pool_2d", dict(turns))


def _max_pool_2d(subject: Subject) -> Work:
    v = subject.values
    return Work("max_pool_2d", dict(pool_taps(v, ceil_div(v["channels"], _LANES), "sixteen")))


def _mean(subject: Subject) -> Work:
    v = subject.values
    fours = ceil_div(v["channels"], 4)
    shifted = v["channels"] if v["shift"] < 0 else 0
    taps = fours * v["in_h"] * v["in_w"]
    return Work("mean", {"four": fours, "tap": taps, "channel": v["channels"], "shifted": shifted})


CORTEX_M_HELIUM = {
    **PORTABLE,
    Opcode.CONV_2D: _conv_2d,
    Opcode.DEPTHWISE_CONV_2D: _depthwise_conv_2d,
    Opcode.FULLY_CONNECTED: _fully_connected,
    Opcode.ADD: _add,
    Opcode.AVERAGE_POOL_2D: _average_pool_2d,
    Opcode.MAX_POOL_2D: _max_pool_2d,
    Opcode.MEAN: _mean,
}
