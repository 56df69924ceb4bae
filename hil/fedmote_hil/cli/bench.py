# SPDX-License-Identifier: Apache-2.0
"""Subjects of `fedmote bench`: instructions of kernels and of the head, their prediction; whether boards compute right."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmote.cli.bench import Subject
from fedmote.errors import ConfigError, DoesNotFitError
from fedmote.package.boards import Board, boards_with
from fedmote.package.file import Package
from fedmote.package.instructions import is_stale
from fedmote_hil.bench import HeadCounts, KernelCounts, count_head, count_kernels, counting_boards
from fedmote_hil.exactness import compare
from fedmote_hil.instructions import LIMIT, Comparison, by_origin, compare_models, refresh, refresh_sizes
from fedmote_hil.models import measured_models, whole_encoder
from fedmote_hil.peers import HEAD, KERNELS, NO_FIGURE, Figure

_EXAMPLES = """examples:
  fedmote bench kernels                                 the MLPerf Tiny and example models
  fedmote bench kernels --model model.fmp --per-op      one model, operator by operator
  fedmote bench head --json                             training steps, for programs
  fedmote bench instructions --board all --check        predicted instructions beside counted ones
  fedmote bench exactness --graphs 200 --board all      every tensor of random graphs against TensorFlow Lite Micro
"""
_DEFAULT_BOARD = "stm32f405"

Row = dict[str, Any]


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="FILE.tflite|X.fmp", help="this model alone")
    parser.add_argument("--per-op", action="store_true", help="the operators of each model as well")
    _add_counting(parser)


def _add_counting(parser: argparse.ArgumentParser) -> None:
    """Arguments of all that counts instructions on one board."""
    parser.add_argument("--board", default=_DEFAULT_BOARD, metavar="BOARD", help=", ".join(counting_boards()))
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_instructions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--board", default=_DEFAULT_BOARD, metavar="BOARD|all", help=", ".join(counting_boards()))
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--sizes", action="store_true", help="measure the flash that images take, nothing else")
    scope.add_argument("--check", action="store_true", help="write nothing: compare the tables that are there")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_exactness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--graphs", type=int, default=200, metavar="N", help="how many (default: 200)")
    parser.add_argument("--board", default="all", metavar="BOARD|all", help=", ".join(boards_with("fedmote-run")))
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _measure_kernels(options: argparse.Namespace) -> int:
    board = Board.load(options.board)
    skipped: list[str] = []
    rows = [_kernel_row(board, name, counts) for name, counts in _count_models(options.model, board, skipped)]
    _print_rows(rows, "kernels", options, skipped)
    return 0


def _measure_head(options: argparse.Namespace) -> int:
    board = Board.load(options.board)
    skipped: list[str] = []
    _print_rows([_head_row(board, counts) for counts in count_head(board, skipped)], "head", options, skipped)
    return 0


def _print_rows(rows: list[Row], subject: str, options: argparse.Namespace, skipped: list[str]) -> None:
    if options.json:
        sys.stdout.write(json.dumps({"rows": rows, "skipped": skipped}) + "\n")
    else:
        sys.stdout.write("\n".join(_text(rows, subject, getattr(options, "per_op", False), skipped)) + "\n")


def _compare_boards(options: argparse.Namespace) -> int:
    """One line for each board, as soon as it is done."""
    boards = boards_with("fedmote-run") if options.board == "all" else [options.board]
    rows = []
    for name in boards:
        found = compare(name, range(options.graphs))
        rows.append(vars(found))
        if not options.json:
            sys.stdout.write(
                f"{found.board}: {found.differing_bytes:,} of {found.bytes:,} bytes differ from {found.judge}"
                f" ({found.graphs} graphs, {found.tensors:,} tensors; {found.too_large} graphs too large)\n"
            )
            for seed, tensor, count in found.differences:
                sys.stdout.write(f"  graph {seed}, {tensor}: {count:,} bytes\n")
            sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps({"rows": rows}) + "\n")
    return int(any(row["differing_bytes"] for row in rows))


def _predict_models(options: argparse.Namespace) -> int:
    """The tables of boards, measured unless they are only checked, and whole models as they are predicted and as counted."""
    boards = by_origin(counting_boards()) if options.board == "all" else [Board.load(options.board)]
    if options.sizes:
        return _measure_sizes(boards, options.json)
    rows: list[Row] = []
    skipped: list[str] = []
    for board in boards:
        if not options.check:
            refresh(board)
        elif is_stale(board):
            command = f"fedmote bench instructions --board {board.name}"
            raise ConfigError(f"board {board.name}: its kernels have changed since they were counted; run: {command}")
        found = [_prediction_row(board, comparison) for comparison in compare_models(board, skipped)]
        if not options.json:
            sys.stdout.write("\n".join(_table(_PREDICTION_COLUMNS, found)) + "\n\n")
            sys.stdout.flush()
        rows += found
    if options.json:
        sys.stdout.write(json.dumps({"limit_percent": 100 * LIMIT, "rows": rows, "skipped": skipped}) + "\n")
    else:
        sys.stdout.write("".join(f"skipped: {reason}\n" for reason in skipped))
    return int(any(abs(row["error_percent"]) > 100 * LIMIT for row in rows))


def _measure_sizes(boards: list[Board], is_json: bool) -> int:
    rows = []
    for board in boards:
        sizes = refresh_sizes(board)
        rows.append({"board": board.name, "device_image_bytes": sizes.device, "run_image_bytes": sizes.run})
    sys.stdout.write(json.dumps({"rows": rows}) if is_json else "\n".join(_table(tuple(rows[0]), rows)))
    sys.stdout.write("\n")
    return 0


def _prediction_row(board: Board, comparison: Comparison) -> Row:
    return {"board": board.name, **vars(comparison), "error_percent": round(100 * comparison.error, 3)}


def _count_models(model: Path | None, board: Board, skipped: list[str]) -> Iterator[tuple[str, KernelCounts]]:
    """Names and counts of one model or of all; those that are absent or too large are named in `skipped`."""
    if model is not None:
        package = Package.read(model) if model.suffix == ".fmp" else whole_encoder(model, board)
        yield model.stem, count_kernels(board, package)
        return
    for name, package in measured_models(board, skipped):
        try:
            yield name, count_kernels(board, package)
        except DoesNotFitError as error:
            skipped.append(f"{name}: {error}")


def _kernel_row(board: Board, model: str, counts: KernelCounts) -> Row:
    figures = KERNELS.get(board.core, {}).get(model, {})
    values = {
        "instructions": counts.instructions,
        "verification_instructions": counts.verification,
        "startup_instructions": counts.startup,
        "arena_bytes": counts.arena_bytes,
        "flash_bytes": counts.flash_bytes,
        "stack_bytes": counts.stack_bytes,
    }
    return {
        "model": model,
        "board": board.name,
        "kernels": counts.kernels,
        "macs": counts.macs,
        "instructions_per_mac": round(counts.instructions / counts.macs, 3) if counts.macs else None,
        **values,
        "operators": [
            {"name": name, "operator": opcode.name.lower(), "instructions": count} for name, opcode, count in counts.operators
        ],
        "peer_instructions": figures.get("instructions", NO_FIGURE).peer,
        "figures": _compare(values, figures),
    }


def _head_row(board: Board, counts: HeadCounts) -> Row:
    is_plain = not (counts.hidden or counts.momentum or counts.weight_decay or counts.clip_norm)
    figures = HEAD.get((counts.arithmetic, counts.inputs, counts.outputs, counts.batch), {}) if is_plain else {}
    values = {
        "instructions_per_sample": counts.instructions_per_sample,
        "extra_ram_bytes": counts.velocity_bytes,
    }
    return {
        "board": board.name,
        "inputs": counts.inputs,
        "hidden": counts.hidden,
        "outputs": counts.outputs,
        "batch": counts.batch,
        "momentum": counts.momentum,
        "weight_decay": counts.weight_decay,
        "clip_norm": counts.clip_norm,
        "arithmetic": counts.arithmetic,
        **values,
        "overlaid_bytes": counts.scratch_bytes,
        "stack_bytes": counts.stack_bytes,
        "peer_instructions": figures.get("instructions_per_sample", NO_FIGURE).peer,
        "figures": _compare(values, figures),
    }


def _compare(values: Mapping[str, int], figures: Mapping[str, Figure]) -> list[Row]:
    """Ours beside the peer's and the targets, for every value that has any."""
    return [
        {
            "what": what,
            "ours": values[what],
            "peer": figure.peer,
            "ratio": None if (ratio := figure.ratio(values[what])) is None else round(ratio, 3),
            "required": figure.required,
            "aim": figure.aim,
            "verdict": figure.verdict(values[what]),
        }
        for what, figure in figures.items()
    ]


_PREDICTION_COLUMNS = ("board", "model", "predicted", "counted", "error_percent", "worst_operator", "worst_difference")
_KERNEL_COLUMNS = (
    *("model", "kernels", "macs", "instructions", "instructions_per_mac", "verification_instructions", "startup_instructions"),
    *("arena_bytes", "flash_bytes", "stack_bytes"),
)
_HEAD_COLUMNS = (
    *("inputs", "hidden", "outputs", "batch", "momentum", "weight_decay", "clip_norm", "arithmetic"),
    *("instructions_per_sample", "extra_ram_bytes", "overlaid_bytes", "stack_bytes"),
)
_FIGURE_COLUMNS = ("of", "what", "ours", "peer", "ratio", "required", "aim", "verdict")
_NOTES = {
    "kernels": (
        "Peer: TensorFlow Lite Micro with CMSIS-NN, whole model with its SOFTMAX, as here.",
        "Verification: CRC-32 and all bounds, once per package. Start-up: from there to the first operator.",
    ),
    "head": (
        "Peer: AIfES, dense softmax layer of the same size. Mean of 32 samples.",
        "Extra RAM: what a device's arena holds beyond the parameters. Overlaid: scratch that lies in the encoder's memory.",
    ),
}


def _text(rows: list[Row], subject: str, is_per_op: bool, skipped: list[str]) -> list[str]:
    """Tables for people."""
    columns = _HEAD_COLUMNS if subject == "head" else _KERNEL_COLUMNS
    lines = [f"board {rows[0]['board']}: executed instructions, counted in the emulator; not cycles"] if rows else []
    lines += [*_NOTES[subject], "", *_table(columns, rows)]
    compared = [{"of": _name(row), **figure} for row in rows for figure in row["figures"]]
    if compared:
        lines += ["", *_table(_FIGURE_COLUMNS, compared)]
    if is_per_op:
        for row in rows:
            lines += ["", row["model"], *_table(("name", "operator", "instructions"), row["operators"])]
    return [*lines, *(f"skipped: {reason}" for reason in skipped)]


def _name(row: Row) -> str:
    return row["model"] if "model" in row else f"{row['inputs']} -> {row['outputs']}, batch {row['batch']}"


def _table(columns: tuple[str, ...], rows: list[Row]) -> list[str]:
    """Columns as wide as their widest cell, numbers to the right."""
    heads = [column.replace("_", " ") for column in columns]
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in [heads, *cells]) for index in range(len(columns))]
    is_number = [any(isinstance(row[column], int | float) for row in rows) for column in columns]
    return [
        "  ".join(
            text.rjust(width) if right else text.ljust(width) for text, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in [heads, *cells]
    ]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


kernels = Subject("one inference of MLPerf Tiny and example models, or of one model", _EXAMPLES, _add_kernels, _measure_kernels)
head = Subject("training steps of the head", _EXAMPLES, _add_counting, _measure_head)
exactness = Subject("bytes of random graphs; exit status 1 if one differs", _EXAMPLES, _add_exactness, _compare_boards)
instructions = Subject(
    "measure the tables that predict instructions; exit status 1 if they are off", _EXAMPLES, _add_instructions, _predict_models
)
