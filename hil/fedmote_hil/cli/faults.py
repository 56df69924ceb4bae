# SPDX-License-Identifier: Apache-2.0
"""`fedmote bench faults`: the fault matrix."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from fedmote.cli.bench import Subject
from fedmote.cli.table import say, write_json, write_table
from fedmote_hil.faults.matrix import Result, chosen, run_rows

_EXAMPLES = """examples:
  fedmote bench faults                              the whole matrix, about half an hour
  fedmote bench faults --rows 1-7,15,18 --json      some rows, for programs
  fedmote bench faults --quick                      small fleets, some minutes: whether the rows run, not their figures
"""
_COLUMNS = ("row", "fault", "state", "s", "figure", "target")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", metavar="1,2,15-18", help="these alone")
    parser.add_argument("--quick", action="store_true", help="small fleets and few points")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _run(options: Namespace) -> int:
    """Run the rows; 1 where one of them has not passed, also where it could not be run."""
    results = run_rows(chosen(options.rows), options.quick, say)
    if options.json:
        write_json({"is_quick": options.quick, "rows": [result.to_json() for result in results]})
    else:
        write_table(_COLUMNS, [_line(result) for result in results])
    return int(not all(result.has_passed for result in results))


def _line(result: Result) -> tuple[object, ...]:
    row = result.row
    return row.id, row.fault, result.state, round(result.seconds), result.figure, row.target


SUBJECT = Subject("pull every plug of a real fleet; exit status 1 if a promise broke", _EXAMPLES, _add_arguments, _run)
