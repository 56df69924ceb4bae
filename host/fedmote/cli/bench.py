# SPDX-License-Identifier: Apache-2.0
"""`fedmote bench`: measurements, each registered by the room that can make it in the entry-point group `fedmote.benches`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import cast

from fedmote.errors import ConfigError

SUMMARY = "measure: the converter beside others, instructions of kernels and head, bytes of boards"
EXAMPLES = """examples:
  fedmote bench convert --models ds_cnn    one model by this converter and by others, and its fidelity
  fedmote bench kernels --json             instructions of one inference, for programs
  fedmote bench kernels --help             what else there is to say
"""
GROUP = "fedmote.benches"


@dataclass(frozen=True)
class Subject:
    """Something that is measured.

    Attributes:
        summary: one line for the list of subjects.
        examples: the end of its help.
        add_arguments: declares its arguments.
        run: measures and prints; returns the exit code.
    """

    summary: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subjects that are registered, with their arguments."""
    subjects = registered()
    choice = parser.add_subparsers(dest="subject", required=True, metavar="|".join(subjects))
    for name, subject in subjects.items():
        one = choice.add_parser(
            name,
            help=subject.summary,
            description=subject.summary,
            epilog=subject.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subject.add_arguments(one)
        one.set_defaults(measure=subject.run)


def run(options: argparse.Namespace) -> int:
    """Measure what was asked for."""
    measure: Callable[[argparse.Namespace], int] = options.measure
    return measure(options)


def registered() -> dict[str, Subject]:
    """Subjects by name. One whose room lacks a package that it needs is there, and says so when it is asked for."""
    subjects = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            subjects[point.name] = cast(Subject, point.load())
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("fedmote"):
                raise
            subjects[point.name] = _absent(point.name, error.name or "a package")
    return subjects


def _absent(name: str, package: str) -> Subject:
    def refuse(options: argparse.Namespace) -> int:
        raise ConfigError(f"bench {name} needs {package}, which is not installed; see `fedmote doctor`")

    return Subject(f"(needs {package}, which is not installed)", "", lambda parser: None, refuse)
