# SPDX-License-Identifier: Apache-2.0
"""`fedmote bench attacks`: rules of aggregation against hostile participants."""

from __future__ import annotations

import statistics
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

from fedmote.cli.bench import Subject
from fedmote.cli.table import say, write_json, write_table
from fedmote.errors import ConfigError
from fedmote.lab.attacks.experiment import RULES, final_accuracy, run_attack
from fedmote.lab.attacks.setting import Setting

# Attack and share of the devices that are hostile, in per cent.
_ROWS = (
    ("clean", "sign-flip", 0), ("sign-flip", "sign-flip", 10), ("sign-flip", "sign-flip", 20), ("sign-flip", "sign-flip", 30),
    ("noise", "noise", 10), ("noise", "noise", 20), ("label-flip", "label-flip", 20), ("label-flip", "label-flip", 30),
    ("x1000", "x1000", 10),
)  # fmt: skip
# Points that may be lost: what the default rule and the strong rule are promised to hold.
_TARGETS = {("clipped_mean", "sign-flip", 10): 2.0, ("multi_krum", "sign-flip", 20): 2.0}
_MAX_SEEDS = 20
EXAMPLES = """examples:
  fedmote bench attacks                    every rule against every attack, ten seeds
  fedmote bench attacks --seeds 3 --json   three seeds, for programs
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the subject's arguments."""
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds 0 to N-1 (default: 10)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(options: Namespace) -> int:
    """Measure and print; 1 where a target is missed."""
    if not 1 <= options.seeds <= _MAX_SEEDS:
        raise ConfigError(f"--seeds {options.seeds}: 1 to {_MAX_SEEDS} are expected")
    rows = [row for name, attack, percent in _ROWS for row in _rows(name, attack, percent, range(options.seeds))]
    if options.json:
        write_json({"setting": asdict(Setting()), "seeds": options.seeds, "rows": rows})
    else:
        columns = ("rule", "attack", "hostile_percent", "accuracy", "points_lost", "worst_seed", "target_points")
        write_table(columns, [[row[name] for name in columns] for row in rows])
    missed = [row for row in rows if row["target_points"] is not None and row["points_lost"] > row["target_points"]]
    for row in missed:
        say(f"target missed: {row['rule']} loses {row['points_lost']} points, {row['target_points']} at most")
    return 1 if missed else 0


def _rows(name: str, attack: str, percent: int, seeds: range) -> list[dict[str, Any]]:
    rows = []
    for rule in RULES:
        say(f"{rule}, {name} {percent} %")
        lost = [run_attack(rule, percent / 100, attack, seed) for seed in seeds]
        kept = [final_accuracy(rule, percent / 100, attack, seed) for seed in seeds]
        rows.append(
            {
                "rule": rule,
                "attack": name,
                "hostile_percent": percent,
                "accuracy": round(statistics.mean(kept), 4),
                "points_lost": round(statistics.mean(lost), 2),
                "worst_seed": round(max(lost), 2),
                "target_points": _TARGETS.get((rule, name, percent)),
            }
        )
    return rows


SUBJECT = Subject("what hostile participants cost under each rule of aggregation", EXAMPLES, add_arguments, run)
