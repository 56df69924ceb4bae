# SPDX-License-Identifier: Apache-2.0
"""`fedmote bench link`: what a serial line carries of a package and of an update, clean and with losses."""

from __future__ import annotations

import argparse
import asyncio
import statistics

from fedmote.cli.bench import Subject
from fedmote.cli.table import write_json, write_table
from fedmote.errors import ConfigError
from fedmote.package.boards import Board
from fedmote_hil.goodput import LINE_RATE_BYTES_S, PAYLOAD_BYTES, REQUIRED, Transfer, measure
from fedmote_hil.shim import Impairment

_EXAMPLES = """examples:
  fedmote bench link                                    64 KiB down and an update up at 115,200 baud; 0, 1 and 10 % lost
  fedmote bench link --loss 0.3 --seeds 3 --json        a worse line, for programs
"""
_BOARD = "posix"  # the only one that tells what happens in it when it happens
_COLUMNS = ("direction", "loss", "payload_bytes", "chunk_bytes", "seconds", "share", "least", "required", "is_met")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--loss", type=float, nargs="+", default=sorted(REQUIRED), metavar="P", help="shares of lost frames")
    parser.add_argument("--rate", type=int, default=LINE_RATE_BYTES_S, metavar="BYTES_S", help="of the line, in each direction")
    parser.add_argument("--bytes", type=int, default=PAYLOAD_BYTES, metavar="N", help="of the package")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="lines of each kind (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _run(options: argparse.Namespace) -> int:
    """Lines run side by side: they wait nearly all the time."""
    if options.seeds < 1 or not all(0 <= loss < 1 for loss in options.loss):
        raise ConfigError("--seeds from 1, and --loss from 0 to less than 1 are expected")
    board = Board.load(_BOARD)
    found = asyncio.run(_measure_all(board, options))
    rows = [_row(found, direction, loss) for loss in options.loss for direction in ("download", "upload")]
    if options.json:
        write_json(
            {"board": board.name, "line_rate_bytes_s": options.rate, "rows": rows, "transfers": [vars(one) for one in found]}
        )
    else:
        write_table(_COLUMNS, [[row[column] for column in _COLUMNS] for row in rows])
    return int(any(row["is_met"] is False for row in rows))


async def _measure_all(board: Board, options: argparse.Namespace) -> list[Transfer]:
    found: list[Transfer] = []
    for loss in options.loss:
        lines = [measure(board, Impairment(loss=loss), seed, options.rate, options.bytes) for seed in range(options.seeds)]
        found += [transfer for pair in await asyncio.gather(*lines) for transfer in pair]
    return found


def _row(found: list[Transfer], direction: str, loss: float) -> dict[str, object]:
    """The line's rate over all seeds together, and that of the worst seed."""
    these = [one for one in found if (one.direction, one.loss) == (direction, loss)]
    share = statistics.harmonic_mean([one.share for one in these])
    required = REQUIRED.get(loss)
    return {
        "direction": direction,
        "loss": loss,
        "payload_bytes": these[0].payload_bytes,
        "chunk_bytes": these[0].chunk_bytes,
        "seconds": statistics.mean(one.seconds for one in these),
        "share": share,
        "least": min(one.share for one in these),
        "required": required,
        "is_met": None if required is None else share >= required,
    }


SUBJECT = Subject("goodput of a serial line, clean and with lost frames", _EXAMPLES, _add_arguments, _run)
