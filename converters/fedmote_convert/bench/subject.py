# SPDX-License-Identifier: Apache-2.0
"""`fedmote bench convert`: its arguments. What it does is imported when it runs: the help needs no torch."""

from __future__ import annotations

import argparse

from fedmote.cli.bench import Subject
from fedmote.errors import ConfigError
from fedmote_convert.bench.interpreters import oracles_missing

_EXAMPLES = """examples:
  fedmote bench convert --install-peers            once: environments of litert-torch and of tflite-runtime, below the cache
  fedmote bench convert                            all models of the zoo, F1 to F14; exit status 1 if a bound is missed
  fedmote bench convert --models ds_cnn --details  one model, every finding
  fedmote bench convert --no-peers --json          ours alone, for programs
  fedmote bench convert --recipes                  which recipe of quantization serves which model
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", metavar="A,B", help="of the zoo; default: all whose data are on this machine")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed conversions of each; their median counts")
    parser.add_argument("--train", action="store_true", help="train anew what the cache already holds")
    parser.add_argument("--install-peers", action="store_true", help="make the environments of others, and end")
    parser.add_argument("--no-peers", action="store_true", help="leave the other stacks out")
    parser.add_argument("--recipes", action="store_true", help="compare our own recipes, on samples kept for choosing, and end")
    parser.add_argument("--details", action="store_true", help="the findings of each model, not only the worst")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _run(options: argparse.Namespace) -> int:
    try:
        from fedmote_convert.bench import measurement
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigError("bench convert needs torch: install fedmote[torch]") from error
    if options.install_peers:
        measurement.install_peers()
        return 0
    if options.recipes:
        return measurement.measure_recipes(options)
    if missing := oracles_missing():
        raise ConfigError(f"bench convert {missing}")
    if options.repeats < 1:
        raise ConfigError(f"--repeats {options.repeats}: expected a number of at least 1")
    return measurement.measure(options)


SUBJECT = Subject(
    "the converter beside litert-torch, and F1 to F14: the fidelity of what it makes", _EXAMPLES, _add_arguments, _run
)
