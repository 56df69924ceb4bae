# SPDX-License-Identifier: Apache-2.0
"""The order of work: for each model train or load, convert by every stack, run what they made, measure, tell."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fedmote.cli.table import say, write_json
from fedmote.errors import ConfigError, ConversionError, FedmoteError
from fedmote.lab.zoo.data import AbsentError
from fedmote.lab.zoo.zoo import ZOO, Entry, Model, load_model
from fedmote_convert.bench.environments import litert_torch, numpy_1
from fedmote_convert.bench.fidelity import MEASURES, Finding
from fedmote_convert.bench.recipes import RECIPES, RecipeRow, recipe_row, recipe_text
from fedmote_convert.bench.report import is_missed, report_of, text_of
from fedmote_convert.bench.rows import Row, row_of
from fedmote_convert.bench.stacks import PEERS, Outcome, install_bytes, run_ours, run_peer
from fedmote_convert.bench.subjects import Subject, convert_here


def install_peers() -> None:
    """Make the environments of others, where they are not there yet.

    Raises:
        RigError: pip failed.
    """
    for environment in (litert_torch(), numpy_1()):
        environment.install(say)


def measure(options: argparse.Namespace) -> int:
    """Measure and print; 1 if a bound is missed.

    Args:
        options: as `subject.py` declares them.

    Raises:
        ConfigError: a model is unknown, or of none are the data here.
    """
    torch.set_num_threads(1)
    skipped: list[str] = []
    rows: list[Row] = []
    findings: list[Finding] = []
    installed: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="fedmote-bench-") as directory:
        for entry in entries(options.models):
            subject = _converted(entry, options, Path(directory), skipped)
            if subject is not None:
                rows += _rows(subject, installed)
                findings += _findings(subject)
    if not rows:
        raise ConfigError(f"bench convert: nothing is left to measure; {'; '.join(skipped)}")
    report = report_of(rows, findings, list(dict.fromkeys(skipped)))
    if options.json:
        write_json(report)
    else:
        sys.stdout.write(text_of(report, options.details))
    return int(is_missed(report))


def measure_recipes(options: argparse.Namespace) -> int:
    """Compare recipes and print; 0.

    Args:
        options: as `subject.py` declares them.

    Raises:
        ConfigError: a model is unknown, or of none are the data here.
    """
    torch.set_num_threads(1)
    rows: list[RecipeRow] = []
    skipped: list[str] = []
    for entry in entries(options.models):
        try:
            model = load_model(entry, say, options.train)
        except AbsentError as error:
            skipped.append(f"model {entry.name}: {error}")
            continue
        say(f"{entry.name}: {len(RECIPES)} recipes")
        rows.append(recipe_row(model))
    if not rows:
        raise ConfigError(f"bench convert: nothing is left to measure; {'; '.join(skipped)}")
    if options.json:
        write_json({"recipes": rows, "skipped": skipped})
    else:
        sys.stdout.write(recipe_text(rows, skipped))
    return 0


def entries(names: str | None) -> Sequence[Entry]:
    """The models that were asked for, in the zoo's order.

    Args:
        names: separated by commas; None: all.

    Raises:
        ConfigError: there is no such model.
    """
    if names is None:
        return ZOO
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in {entry.name for entry in ZOO}]
    if unknown or not wanted:
        known = ", ".join(entry.name for entry in ZOO)
        raise ConfigError(f"--models {names!r}: no model {', '.join(unknown) or 'is named'}; expected some of {known}")
    return [entry for entry in ZOO if entry.name in wanted]


def _converted(entry: Entry, options: argparse.Namespace, directory: Path, skipped: list[str]) -> Subject | None:
    """A model, trained, converted by all stacks; None, with the reason in `skipped`, where its data are absent."""
    try:
        model = load_model(entry, say, options.train)
    except AbsentError as error:
        skipped.append(f"model {entry.name}: {error}")
        return None
    say(f"{entry.name}: converting")
    outcomes = [run_ours(model, options.repeats, directory)]
    if not options.no_peers:
        outcomes += _peers(model, options.repeats, directory, skipped)
    return _runnable(Subject(model, convert_here(model), tuple(outcomes)), skipped)


def _peers(model: Model, repeats: int, directory: Path, skipped: list[str]) -> list[Outcome]:
    """What other stacks make of a model; those that are not installed or fail are named in `skipped`."""
    if not litert_torch().is_installed:
        skipped.append(f"stack litert-torch: {litert_torch().absence}")
        return []
    outcomes = []
    for stack in PEERS:
        try:
            outcomes.append(run_peer(stack, model, repeats, directory))
        except FedmoteError as error:
            skipped.append(f"model {model.entry.name} by {stack}: {error}")
    return outcomes


def _runnable(subject: Subject, skipped: list[str]) -> Subject:
    """The subject without what others made that TensorFlow Lite Micro cannot run; that is named in `skipped`."""
    ours, *others = subject.outcomes
    kept = [ours]
    for outcome in others:
        try:
            subject.micro(outcome)
            kept.append(outcome)
        except ConversionError as error:
            skipped.append(f"model {subject.name} by {outcome.stack}: {error}")
    return subject if len(kept) == len(subject.outcomes) else replace(subject, outcomes=tuple(kept))


def _rows(subject: Subject, installed: dict[str, int]) -> list[Row]:
    """A row for each stack; `installed` keeps what was counted before."""
    rows = []
    for outcome in subject.outcomes:
        if outcome.stack not in installed:
            installed[outcome.stack] = install_bytes(outcome.stack)
        say(f"{subject.name}: running what {outcome.stack} made")
        rows.append(row_of(subject, outcome, installed[outcome.stack]))
    return rows


def _findings(subject: Subject) -> list[Finding]:
    findings = []
    for one in MEASURES:
        say(f"{subject.name}: {one.number}, {one.what}")
        findings.append(one.find(subject))
    return findings
