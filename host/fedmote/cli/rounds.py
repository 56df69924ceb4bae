# SPDX-License-Identifier: Apache-2.0
"""`fedmote rounds`: what the ledger says about rounds."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from fedmote.cli.state import add_state_arguments, ledger_of, state_directory
from fedmote.cli.table import say, write_json, write_table
from fedmote.coordinator.claim import claims
from fedmote.coordinator.results import SERVED, RoundResult, refusals, round_result, round_results
from fedmote.errors import ConfigError
from fedmote.store import Ledger

SUMMARY = "list the rounds of a run, or show one"
EXAMPLES = """examples:
  fedmote rounds list                                   of the run that coordinator.toml here describes
  fedmote rounds show 3 --state state --json            one round, of the run in the directory state
"""

_COLUMNS = ("round", "phase", "state", "reported", "expected", "checkpoint", "accuracy", "seconds", "missing", "quarantined")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the verb's arguments."""
    help_style: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": RawDescriptionHelpFormatter}
    verbs = parser.add_subparsers(dest="what", required=True, metavar="list|show")
    listing = verbs.add_parser("list", help="all rounds, one line each", **help_style)
    showing = verbs.add_parser("show", help="one round: who reported what, who is missing, who was refused", **help_style)
    showing.add_argument("number", type=int, metavar="N")
    for verb in (listing, showing):
        add_state_arguments(verb)


def run(options: Namespace) -> int:
    """Read the ledger; the coordinator may be at work meanwhile."""
    directory = state_directory(options)
    with ledger_of(directory) as ledger:
        if options.what == "list":
            _list(ledger, options.json)
        else:
            _show(ledger, options.number, directory, options.json)
    return 0


def _list(ledger: Ledger, is_json: bool) -> None:
    results = round_results(ledger)
    if is_json:
        write_json({"rounds": [one.to_json() for one in results]})
        return
    has_noise = any(one.privacy is not None for one in results)
    write_table((*_COLUMNS, "epsilon") if has_noise else _COLUMNS, [_row(one, has_noise) for one in results])
    last = next((one.privacy for one in reversed(results) if one.privacy is not None), None)
    if last is not None:
        say(last.words())


def _row(one: RoundResult, has_noise: bool) -> tuple[object, ...]:
    row = (
        one.round, one.phase, one.state, one.reported, one.expected, one.version, one.accuracy, one.seconds,
        ", ".join(one.missing) or None, ", ".join(one.quarantined) or None,
    )  # fmt: skip
    return (*row, None if one.privacy is None else one.privacy.epsilon) if has_noise else row


def _show(ledger: Ledger, number: int, directory: Path, is_json: bool) -> None:
    entries = ledger.rounds(number)
    if not entries:
        raise ConfigError(f"{directory}: there is no round {number}; `fedmote rounds list` says which there are")
    result, noes = round_result(ledger, entries[0], claims(ledger).get(number)), refusals(ledger, number)
    if is_json:
        write_json({**result.to_json(), "refusals": list(noes)})
        return
    say(result.words())
    names = ("participant", "role", "attempt", "num_examples", "trained", "sent", "discarded", *SERVED, "finding", "times_median")
    write_table(names, [[update.get(name) for name in names] for update in result.updates])
    for who, why in result.missing.items():
        say(f"missing: {who} ({why})")
    for who, why in result.quarantined.items():
        say(f"quarantined: {who} {why}")
    for no in noes:
        say(f"refused by the {no['side']}: {no['participant']}, {no['status']}, {no['count']} times: {no['reason']}")
