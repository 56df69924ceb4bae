# SPDX-License-Identifier: Apache-2.0
"""Where a run's state is: arguments that the verbs about it share."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from fedmote.config import CoordinatorConfig, load
from fedmote.errors import ConfigError
from fedmote.store import LEDGER, Ledger

DEFAULT_CONFIG = Path("coordinator.toml")


def add_state_arguments(parser: ArgumentParser) -> None:
    """The configuration, or the state directory itself."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="coordinator.toml", help="default: here")
    parser.add_argument("--state", type=Path, metavar="DIR", help="the state directory, instead of the configuration's")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def state_directory(options: Namespace) -> Path:
    """The state directory; ConfigError where no run is there."""
    directory: Path = options.state or load(CoordinatorConfig, options.config, (), os.environ).run.state_directory
    if not (directory / LEDGER).is_file():
        raise ConfigError(f"{directory}: no run is kept here; name the state directory with --state or the file with --config")
    return directory


def partition_directory(options: Namespace) -> Path:
    """What the run was converted from; needs the configuration."""
    return load(CoordinatorConfig, options.config, (), os.environ).run.partition_directory


def ledger_of(directory: Path) -> Ledger:
    """The ledger, for reading alone."""
    return Ledger.open(directory / LEDGER, is_read_only=True)
