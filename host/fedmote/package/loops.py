# SPDX-License-Identifier: Apache-2.0
"""How often the loops of an operator's kernel turn: what `instructions` multiplies with measured coefficients.

A kernel's instructions are a sum over its loops: turns times instructions of a turn. The turns follow from the record of the
operator (and, where a kernel takes another path for other scalings, from its constants) in exact arithmetic; the instructions of
a turn depend on the compiler and are measured. So there is one function per kernel, which mirrors the loops of its C file and
names what it counts:

    device_sdk/src/kernels              here
    device_sdk/variants/cortex_m_dsp    loops_dsp.py
    device_sdk/variants/cortex_m_helium loops_helium.py
    device_sdk/variants/cortex_m0       here: the same loops around other dot products

A whole operator is done in one piece, from its first unit to its last. What depends on data (a division in software, the
saturation of a sum) is part of the coefficients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedmote.wire.schema import Opcode

Numbers = Mapping[str, int]
Ints = NDArray[np.int64]

SUMS = 64  # outputs that are scaled together (dot.h)
_PIECE_BYTES = 256  # of a patch that is brought together (conv_2d.c)
_TAPS = 32  # of a table (depthwise_conv_2d.c)
_MOVED_AT_ONCE = 16  # bytes, by newlib
_NINE = 9  # taps for which dot_cortex_m0.c has a function


@dataclass(frozen=True)
class Subject:
    """An operator of a plan.

    Attributes:
        opcode: of its record.
        values: words of the record by name.
        scaling: bias, multiplier and shift or factor of each output channel, int64 (outputs, 3); (0, 3) without channels.
        is_unaligned: whether the build may read words at any address.
    """

    opcode: Opcode
    values: Numbers
    scaling: Ints
    is_unaligned: bool


@dataclass(frozen=True)
class Work:
    """What a kernel does with an operator.

    Attributes:
        path: the kernel and the way that it takes through its file, e.g. "conv_2d.columns"; coefficients are of a path.
        turns: turns of its loops by name.
    """

    path: str
    turns: dict[str, int]


Loops = Callable[[Subject], Work]


@dataclass(frozen=True)
class Axis:
    """The windows of one axis: taps [first, end) of output coordinate i lie in the input; int64 (outputs,) each."""

    first: Ints
    end: Ints
    kernel: int

    @property
    def taps(self) -> Ints:
        """Taps in the input, of each window."""
        return self.end - self.first

    @property
    def is_whole(self) -> NDArray[np.bool_]:
        """Whether no tap of a window lies in the padding."""
        return np.asarray(self.taps == self.kernel)

    @property
    def skipped(self) -> int:
        """Turns of the two loops of fedmote_window_at(), over all windows."""
        return int((self.kernel - self.taps).sum())


def axis_of(outputs: int, stride: int, pad: int, kernel: int, dilation: int, size: int) -> Axis:
    """The windows of an axis, as window.h has them."""
    origin = np.arange(outputs) * stride - pad
    first = np.clip(-(origin // dilation), 0, kernel)
    end = np.maximum(first, np.clip(-((origin - size) // dilation), 0, kernel))
    return Axis(first, end, kernel)


def axes_of(v: Numbers) -> tuple[Axis, Axis]:
    """Rows and columns of a convolution or pool."""
    return (
        axis_of(v["out_h"], v["stride_h"], v["pad_top"], v["kernel_h"], v.get("dilation_h", 1), v["in_h"]),
        axis_of(v["out_w"], v["stride_w"], v["pad_left"], v["kernel_w"], v.get("dilation_w", 1), v["in_w"]),
    )


def walk(v: Numbers) -> Counter[str]:
    """Rows, positions and the search for their windows (conv_rows.h, and the loops of the pools)."""
    rows, columns = axes_of(v)
    skipped = rows.skipped + v["out_h"] * columns.skipped
    return Counter(row=v["out_h"], position=v["out_h"] * v["out_w"], skipped=skipped)


def parts(count: int, size: int) -> list[int]:
    """Sizes of the pieces in which `count` are done, `size` at a time."""
    return [min(size, count - start) for start in range(0, count, size)]


def ceil_div(a: int, b: int) -> int:
    """A / b, rounded up."""
    return -(-a // b)


def _shifted(subject: Subject) -> int:
    """Channels whose sums are moved to the right: the longer branch of fedmote_requantize()."""
    return int(np.count_nonzero(subject.scaling[:, 2] < 0))


# ---- convolutions ----------------------------------------------------------------------------------------------


def _dots(turns: Counter[str], times: int, counts: list[int], length: int, together: int) -> None:
    """fedmote_dot() of blocks of outputs: `together` of them share the inputs, the rest goes one by one."""
    groups, singles = sum(count // together for count in counts), sum(count % together for count in counts)
    turns["group"] += times * groups
    turns["group_product"] += times * groups * length
    turns["single"] += times * singles
    turns["single_product"] += times * singles * length


def _conv_2d(subject: Subject, together: int) -> Work:
    v = subject.values
    turns = walk(v)
    rows, columns = axes_of(v)
    taps, positions = v["kernel_h"] * v["kernel_w"] * v["group_in_c"], turns["position"]
    blocks = parts(v["group_out_c"], SUMS) * v["groups"]
    row_bytes = v["kernel_w"] * v["group_in_c"]
    is_run = v["dilation_w"] * v["in_c"] == v["group_in_c"]
    is_piece = is_run and (v["kernel_h"] == 1 or v["dilation_h"] * v["in_w"] * v["in_c"] == row_bytes)
    whole = int(rows.is_whole.sum() * columns.is_whole.sum())
    there = whole if is_piece or v["kernel_h"] == v["kernel_w"] == 1 else 0
    pieces = parts(taps, _PIECE_BYTES)
    turns["block"] += positions * len(blocks)
    turns["piece"] += len(blocks) * (there + (positions - there) * len(pieces))
    for length in pieces:
        _dots(turns, positions - there, blocks, length, together)
    _dots(turns, there, blocks, taps, together)
    _gathers(turns, v, (rows, columns), positions - there, v["groups"] if len(pieces) == 1 else len(blocks))
    turns["output"] += positions * v["out_c"]
    turns["shifted"] += positions * _shifted(subject)
    return Work("conv_2d", dict(turns))


def _gathers(turns: Counter[str], v: Numbers, axes: tuple[Axis, Axis], positions: int, times: int) -> None:
    """gather(): `positions` patches, among them all that touch the padding, `times` each."""
    rows, columns = axes
    channels, row_bytes = v["group_in_c"], v["kernel_w"] * v["group_in_c"]
    is_run = v["dilation_w"] * v["in_c"] == channels
    taps = v["kernel_h"] * row_bytes
    visited = sum(ceil_div(min(start + _PIECE_BYTES, taps), row_bytes) for start in range(0, taps, _PIECE_BYTES))
    pieces = ceil_div(taps, _PIECE_BYTES)
    all_positions = len(rows.first) * len(columns.first)
    # Of all positions; those that need no gathering are whole, and so are without padding.
    inside_taps = int(rows.taps.sum() * columns.taps.sum()) - (all_positions - positions) * v["kernel_h"] * v["kernel_w"]
    inside_rows = int(rows.taps.sum()) * len(columns.first) - (all_positions - positions) * v["kernel_h"]
    runs = inside_rows if is_run else inside_taps
    edges = int(rows.taps.sum() * ((columns.first > 0).sum() + (columns.end < columns.kernel).sum()))
    share = visited / v["kernel_h"]  # of a patch's rows, visited again for each piece
    turns["gather"] += times * positions * pieces
    turns["gather_row"] += times * positions * visited
    turns["copy"] += round(times * share * runs)
    turns["fill"] += round(times * share * (edges + positions * v["kernel_h"] - inside_rows))
    turns["add_nothing"] += round(times * share * (2 * inside_rows - edges))
    turns["copied"] += times * inside_taps * channels
    turns["filled"] += times * (positions * v["kernel_h"] * v["kernel_w"] - inside_taps) * channels


def _depthwise_conv_2d(subject: Subject, four: bool) -> Work:
    v = subject.values
    turns = walk(v)
    rows, columns = axes_of(v)
    positions, taps = turns["position"], v["kernel_h"] * v["kernel_w"]
    blocks = parts(v["out_c"], SUMS) if v["group_out_c"] == 1 else [1] * v["out_c"]
    tables = parts(taps, _TAPS)
    turns["block"] += positions * len(blocks)
    turns["table"] += positions * len(blocks) * len(tables)
    turns["find_row"] += positions * len(blocks) * v["kernel_h"]
    inside = int(rows.taps.sum() * columns.taps.sum())
    turns["find_tap"] += inside * len(blocks)
    turns["find_padding"] += (positions * taps - inside) * len(blocks)
    for length in tables:
        if four:
            _dots(turns, positions, blocks, length, 4)
        else:
            name = "nine" if length == _NINE else "single"
            turns[name] += positions * v["out_c"]
            turns[f"{name}_product"] += positions * v["out_c"] * (0 if length == _NINE else length)
    turns["output"] += positions * v["out_c"]
    turns["shifted"] += positions * _shifted(subject)
    return Work("depthwise_conv_2d", dict(turns))


def _fully_connected(subject: Subject, together: int) -> Work:
    v = subject.values
    blocks = parts(v["out_n"], SUMS)
    turns = Counter(block=len(blocks), output=v["out_n"], shifted=_shifted(subject))
    _dots(turns, 1, blocks, v["in_n"], together)
    return Work("fully_connected", dict(turns))


# ---- weights of four bits --------------------------------------------------------------------------------------


def _int4_dots(turns: Counter[str], name: str, times: int, first: Ints, n: int) -> None:
    """Dot products of `n` weights from the indices `first` on: pairs, and halves of bytes in front and behind."""
    odd = int(np.count_nonzero(first % 2))
    turns[f"{name}_dot"] += times * len(first)
    if n % 2:
        turns[f"{name}_pair"] += times * len(first) * (n // 2)
        turns[f"{name}_half"] += times * len(first)
    else:
        turns[f"{name}_pair"] += times * (len(first) * (n // 2) - odd)
        turns[f"{name}_half"] += times * 2 * odd


def _int4_blocks(v: Numbers, stride: int) -> dict[str, Ints]:
    """First channels of the blocks of four and of the single ones."""
    of_group = v["group_out_c"] // 4 * 4 if stride % 2 == 0 else 0
    begins = np.arange(v["groups"])[:, None] * v["group_out_c"]
    fours, singles = np.arange(0, of_group, 4), np.arange(of_group, v["group_out_c"])
    return {"four": (begins + fours).reshape(-1), "single": (begins + singles).reshape(-1)}


def _conv_2d_int4(subject: Subject) -> Work:
    v = subject.values
    turns = walk(v)
    rows, columns = axes_of(v)
    channels, row_step = v["group_in_c"], v["kernel_w"] * v["group_in_c"]
    stride = v["kernel_h"] * row_step
    is_run = v["dilation_w"] * v["in_c"] == channels
    row_windows, column_windows = (Counter(zip(axis.first.tolist(), axis.end.tolist(), strict=True)) for axis in (rows, columns))
    for name, first in _int4_blocks(v, stride).items():
        outputs = len(first) * (4 if name == "four" else 1)
        turns[name] += turns["position"] * len(first)
        turns[f"{name}_row"] += turns["position"] * len(first) * v["kernel_h"]
        for (top, bottom), row_count in row_windows.items():
            for (left, right), column_count in column_windows.items():
                times, taps = row_count * column_count, right - left
                outside = v["kernel_h"] - (bottom - top) if taps else v["kernel_h"]
                turns["padding_sum"] += times * outputs * outside
                turns["padding_weight"] += times * outputs * outside * row_step
                if (bottom - top, taps) != (v["kernel_h"], v["kernel_w"]):
                    turns["padding_sum"] += times * outputs * 2 * (v["kernel_h"] - outside)
                    turns["padding_weight"] += times * outputs * (v["kernel_h"] - outside) * (v["kernel_w"] - taps) * channels
                for row in range(top, bottom) if taps else ():
                    starts = first * stride + row * row_step + left * channels
                    if is_run:
                        _int4_dots(turns, name, times, starts, taps * channels)
                    else:
                        for tap in range(taps):
                            _int4_dots(turns, name, times, starts + tap * channels, channels)
    turns["shifted"] += turns["position"] * _shifted(subject)
    return Work("conv_2d_int4", dict(turns))


def _depthwise_conv_2d_int4(subject: Subject) -> Work:
    v = subject.values
    turns = walk(v)
    rows, columns = axes_of(v)
    inside, inside_rows = int(rows.taps.sum() * columns.taps.sum()), int(rows.taps.sum()) * v["out_w"]
    turns["output"] += turns["position"] * v["out_c"]
    turns["output_row"] += turns["position"] * v["out_c"] * v["kernel_h"]
    turns["tap"] += inside * v["out_c"]
    turns["padding_tap"] += (inside_rows * v["kernel_w"] - inside) * v["out_c"]
    turns["padding_row_tap"] += (turns["position"] * v["kernel_h"] - inside_rows) * v["kernel_w"] * v["out_c"]
    turns["shifted"] += turns["position"] * _shifted(subject)
    return Work("depthwise_conv_2d_int4", dict(turns))


def _fully_connected_int4(subject: Subject) -> Work:
    v = subject.values
    turns: Counter[str] = Counter(shifted=_shifted(subject))
    for name, first in _int4_blocks({"groups": 1, "group_out_c": v["out_n"]}, v["in_n"]).items():
        _int4_dots(turns, name, 1, first * v["in_n"], v["in_n"])
    return Work("fully_connected_int4", dict(turns))


# ---- elements --------------------------------------------------------------------------------------------------


def sum_elements(v: Numbers) -> dict[str, int]:
    """fedmote_sum_elements() of sum.h."""
    shifts = sum(v[name] < 0 for name in ("shift1", "shift2", "output_shift"))
    return {"element": v["count"], "shifted": shifts * v["count"], "repeat": v["count"] // v["count2"]}


def _add(subject: Subject) -> Work:
    return Work("add", sum_elements(subject.values))


def _mul(subject: Subject) -> Work:
    v = subject.values
    shifted = v["count"] if v["shift"] < 0 else 0
    return Work("mul", {"element": v["count"], "shifted": shifted, "repeat": v["count"] // v["count2"]})


def _table(subject: Subject) -> Work:
    return Work("table", {"element": subject.values["count"]})


def _softmax(subject: Subject) -> Work:
    v = subject.values
    return Work("softmax", {"row": v["rows"], "element": v["rows"] * v["n"]})


# ---- windows and copies ----------------------------------------------------------------------------------------


def pool_taps(v: Numbers, blocks: int, name: str) -> Counter[str]:
    """A pool whose loop over channels does `blocks` pieces: pieces, and rows and elements of their windows."""
    turns = walk(v)
    rows, columns = axes_of(v)
    turns[name] += turns["position"] * blocks
    turns[f"{name}_row"] += int(rows.taps.sum()) * v["out_w"] * blocks
    turns[f"{name}_tap"] += int(rows.taps.sum() * columns.taps.sum()) * blocks
    return turns


def _pool(subject: Subject) -> Work:
    name = subject.opcode.name.lower()
    return Work(name, dict(pool_taps(subject.values, subject.values["channels"], "channel")))


def _mean(subject: Subject) -> Work:
    v = subject.values
    shifted = v["channels"] if v["shift"] < 0 else 0
    return Work("mean", {"channel": v["channels"], "tap": v["channels"] * v["in_h"] * v["in_w"], "shifted": shifted})


def _move(turns: Counter[str], times: int, source: int, target: int, count: int) -> None:
    """Newlib's memmove(): 16 bytes and words at a time where both places are aligned and neither is in the other's way."""
    is_backward = source < target < source + count
    if is_backward:
        turns["moved_backward"] += times * count
    elif count < _MOVED_AT_ONCE or (source | target) % 4:
        turns["moved_byte"] += times * count
    else:
        blocks, rest = divmod(count, _MOVED_AT_ONCE)
        turns["moved_by_words"] += times
        turns["moved_block"] += times * blocks
        turns["moved_word"] += times * (rest // 4)
        turns["moved_byte"] += times * (rest % 4)


def _fill(turns: Counter[str], times: int, target: int, count: int) -> None:
    """Newlib's memset(): bytes up to a word's boundary, then 16 bytes, words, bytes."""
    lead = min(-target % 4, count)
    blocks, rest = divmod(count - lead, _MOVED_AT_ONCE)
    turns["fill" if count else "fill_nothing"] += times
    turns["filled_block"] += times * blocks
    turns["filled_word"] += times * (rest // 4)
    turns["filled_byte"] += times * (lead + rest % 4)


def _pad(subject: Subject) -> Work:
    v = subject.values
    in_row, out_row, left = (count * v["channels"] for count in (v["in_w"], v["out_w"], v["pad_left"]))
    turns: Counter[str] = Counter(row=v["in_h"], border=v["out_h"] - v["in_h"])
    for y in range(v["out_h"]):
        out = v["output_offset"] + y * out_row
        if not 0 <= y - v["pad_top"] < v["in_h"]:
            _fill(turns, 1, out, out_row)
            continue
        _move(turns, 1, v["input_offset"] + (y - v["pad_top"]) * in_row, out + left, in_row)
        _fill(turns, 1, out, left)
        _fill(turns, 1, out + left + in_row, out_row - left - in_row)
    return Work("pad", dict(turns))


def _places(extents: tuple[int, ...], strides: tuple[tuple[int, int], ...]) -> Counter[tuple[int, int]]:
    """Turns of nested loops by the places, modulo 4, that they reach in input and output from 0 on."""
    places = Counter({(0, 0): 1})
    for extent, (step, out_step) in zip(extents, strides, strict=True):
        reached: Counter[tuple[int, int]] = Counter()
        for phase in range(min(extent, 4)):
            times = ceil_div(extent - phase, 4)
            for (place, out_place), count in places.items():
                reached[(place + phase * step) % 4, (out_place + phase * out_step) % 4] += times * count
        places = reached
    return places


def _strided_copy(subject: Subject) -> Work:
    v = subject.values
    inner = v["n0"] * v["n1"] * v["n2"]
    turns = Counter(outer=v["n0"], middle=v["n0"] * v["n1"], inner=inner)
    if not v["input_stride3"] == v["output_stride3"] == 1:
        turns["byte"] += inner * v["n3"]
        return Work("strided_copy.bytes", dict(turns))
    strides = tuple((v[f"input_stride{loop}"], v[f"output_stride{loop}"]) for loop in range(3))
    for (place, out_place), times in _places((v["n0"], v["n1"], v["n2"]), strides).items():
        # Far apart: the planner lets no copy write over its input.
        _move(turns, times, v["input_start"] + place, (1 << 32) + v["output_start"] + out_place, v["n3"])
    return Work("strided_copy.runs", dict(turns))


def _portable(together: int, is_depthwise_by_fours: bool) -> dict[Opcode, Loops]:
    """src/kernels with the dot products of a variant, of which `together` share their inputs."""
    return {
        Opcode.CONV_2D: partial(_conv_2d, together=together),
        Opcode.DEPTHWISE_CONV_2D: partial(_depthwise_conv_2d, four=is_depthwise_by_fours),
        Opcode.FULLY_CONNECTED: partial(_fully_connected, together=together),
        Opcode.CONV_2D_INT4: _conv_2d_int4,
        Opcode.DEPTHWISE_CONV_2D_INT4: _depthwise_conv_2d_int4,
        Opcode.FULLY_CONNECTED_INT4: _fully_connected_int4,
        Opcode.ADD: _add,
        Opcode.MUL: _mul,
        Opcode.AVERAGE_POOL_2D: _pool,
        Opcode.MAX_POOL_2D: _pool,
        Opcode.MEAN: _mean,
        Opcode.PAD: _pad,
        Opcode.TABLE: _table,
        Opcode.SOFTMAX: _softmax,
        Opcode.STRIDED_COPY: _strided_copy,
    }


def _divided(loops: Loops) -> Loops:
    """The same on a core without a divider: the encoder finds out how many units it may do, in software, bit by bit."""

    def loops_and_division(subject: Subject) -> Work:
        work = loops(subject)
        bits = 33 - max(subject.values["unit_macs"], 1).bit_length()  # of the quotient of a budget of 32 bits
        return Work(work.path, work.turns | {"quotient_bit": bits})

    return loops_and_division


PORTABLE = _portable(4, True)
CORTEX_M0 = {opcode: _divided(loops) for opcode, loops in _portable(2, False).items()}
