# SPDX-License-Identifier: Apache-2.0
"""A coordinator process that tells the places that it passes, or dies at one of them as by `kill -9`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from fedmote.cli.serve import transports_of
from fedmote.cli.table import say, write_json
from fedmote.config import CoordinatorConfig, load
from fedmote.coordinator import Coordinator, DeployedPartition

_ENTRY = "import sys; from fedmote_hil.faults.crashing import main; main(*sys.argv[1:])"


def command(config: Path, places: Path, place: str = "", occurrence: int = 1) -> list[str]:
    """A coordinator that writes the names of the places that it passes to a file, one a line.

    Args:
        config: `coordinator.toml`.
        places: the file.
        place: it is killed there; "": nowhere.
        occurrence: when it passes there for the n-th time.
    """
    return [sys.executable, "-c", _ENTRY, str(config), str(places), place, str(occurrence)]


def passed(places: Path) -> Counter[str]:
    """How often a coordinator passed each place."""
    return Counter(places.read_text(encoding="utf-8").splitlines())


def main(config: str, places: str, place: str, occurrence: str) -> None:
    """The process."""
    count = 0
    configuration = load(CoordinatorConfig, Path(config), [], os.environ)
    partition = DeployedPartition(configuration.run.partition_directory, configuration.run.test_data)
    with Path(places).open("a", buffering=1, encoding="utf-8") as file:

        def pass_by(name: str) -> None:
            nonlocal count
            file.write(f"{name}\n")
            count += name == place
            if name == place and count == int(occurrence):
                os.kill(os.getpid(), signal.SIGKILL)

        coordinator = Coordinator(configuration, transports_of(configuration), partition, talk=say, passing=pass_by)
        result = asyncio.run(coordinator.run())
    write_json(result.to_json())
    sys.exit(0 if result.is_complete else 1)
