# SPDX-License-Identifier: Apache-2.0
"""`fedmote config`: the effective values of a configuration file, and whether it is sound."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from pathlib import Path

from fedmote.cli.table import say
from fedmote.config import (
    CoordinatorConfig,
    Credentials,
    Loaded,
    PartnerConfig,
    PartnerCredentials,
    Table,
    load_with_origins,
)
from fedmote.errors import ConfigError
from fedmote.strategies import leakage_warning

SUMMARY = "show the effective values of a configuration file and their origin, or check it"
EXAMPLES = """examples:
  fedmote config show coordinator.toml --set run.rounds=5   every value, and where it came from
  fedmote config check coordinator.toml partner.toml        exit 2 with the first thing that is wrong
"""

KINDS: dict[str, type[Table]] = {
    "coordinator": CoordinatorConfig,
    "partner": PartnerConfig,
    "credentials": Credentials,
    "partner-credentials": PartnerCredentials,
}
# A key that only this kind has, at the top level.
_MARKS = {"coordinator": "run", "partner": "model", "credentials": "password", "partner-credentials": "cell_keys"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="show|check")
    for name, words in (("show", "effective values and where each came from"), ("check", "say whether the files are sound")):
        verb = verbs.add_parser(name, help=words, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
        verb.add_argument("files", type=Path, nargs="+" if name == "check" else 1, metavar="FILE.toml")
        verb.add_argument("--kind", choices=sorted(KINDS), help="what the file is; found out by its keys where not given")
        verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file")
        verb.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """Loads each file; a ConfigError names file, key, value and what was expected."""
    loaded = [(file, _load(file, options)) for file in options.files]
    if options.action == "check":
        _print_checked(loaded, options.json)
    else:
        _print_values(*loaded[0], options.json)
    return 0


def kind_of(path: Path) -> str:
    """Which of `KINDS` a file is, by the keys that it has; ConfigError where it cannot be told."""
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    found = [kind for kind, mark in _MARKS.items() if mark in keys]
    if len(found) != 1:
        marks = ", ".join(f"{mark!r} ({kind})" for kind, mark in _MARKS.items())
        raise ConfigError(f"{path}: cannot tell what this file configures: one of the keys {marks} is expected; or give --kind")
    return found[0]


def _load(file: Path, options: argparse.Namespace) -> tuple[str, Loaded[Table]]:
    kind = options.kind or kind_of(file)
    return kind, load_with_origins(KINDS[kind], file, options.set, os.environ)


def _print_checked(loaded: list[tuple[Path, tuple[str, Loaded[Table]]]], is_json: bool) -> None:
    for file, (_, values) in loaded:
        for warning in _warnings(values.config):
            say(f"{file}: warning: {warning}")
    if is_json:
        files = [{"file": str(file), "kind": kind, "warnings": _warnings(values.config)} for file, (kind, values) in loaded]
        sys.stdout.write(json.dumps({"is_sound": True, "files": files}) + "\n")
        return
    for file, (kind, _) in loaded:
        sys.stdout.write(f"{file}: a sound {kind} file\n")


def _warnings(config: Table) -> list[str]:
    """What a sound configuration lets happen that its owner may not want."""
    warning = leakage_warning(config.strategy) if isinstance(config, CoordinatorConfig) else None
    return [] if warning is None else [warning]


def _print_values(file: Path, loaded: tuple[str, Loaded[Table]], is_json: bool) -> None:
    kind, values = loaded
    lines = values.effective()
    if is_json:
        content = [{"key": line.key, "value": line.value, "origin": line.origin} for line in lines]
        sys.stdout.write(json.dumps({"file": str(file), "kind": kind, "values": content}) + "\n")
        return
    width = max(len(line.key) + len(line.value) for line in lines) + 5
    for line in lines:
        sys.stdout.write(f"{f'{line.key} = {line.value}':<{width}}# {line.origin}\n")
