# SPDX-License-Identifier: Apache-2.0
"""`fedmote checkpoint`: the models of a run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from fedmote.cli.state import add_state_arguments, ledger_of, partition_directory, state_directory
from fedmote.cli.table import say, write_json, write_table
from fedmote.coordinator import DeployedPartition
from fedmote.coordinator.deployed import CHECKPOINT
from fedmote.errors import ConfigError
from fedmote.store import Checkpoint, CheckpointEntry, Checkpoints
from fedmote.store.durable import store_errors, write_durably

SUMMARY = "list the checkpoints of a run, or export one"
EXAMPLES = """examples:
  fedmote checkpoint list
  fedmote checkpoint export 7 -o model.safetensors      tensors alone
  fedmote checkpoint export 7 -o model-7                a directory with the packages of every board
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the verb's arguments."""
    help_style: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": RawDescriptionHelpFormatter}
    verbs = parser.add_subparsers(dest="what", required=True, metavar="list|export")
    listing = verbs.add_parser("list", help="all checkpoints, one line each", **help_style)
    exporting = verbs.add_parser(
        "export", help="write a checkpoint as .safetensors, or a directory with its packages", **help_style
    )
    exporting.add_argument("number", type=int, metavar="N")
    exporting.add_argument("-o", "--output", type=Path, required=True, metavar="F.safetensors|DIR")
    for verb in (listing, exporting):
        add_state_arguments(verb)


def run(options: Namespace) -> int:
    """Read ledger and checkpoints; the coordinator may be at work meanwhile."""
    directory = state_directory(options)
    with ledger_of(directory) as ledger:
        entries = {entry.version: entry for entry in ledger.checkpoints()}
    if options.what == "list":
        _list(entries, options.json)
        return 0
    if options.number not in entries:
        raise ConfigError(f"{directory}: there is no checkpoint {options.number}; the newest is {max(entries)}")
    checkpoints = Checkpoints(directory / "checkpoints", is_read_only=True)
    checkpoint = checkpoints.load(options.number, entries[options.number].hash)
    files = _export(checkpoint, options.output, options)
    if options.json:
        write_json({"checkpoint": options.number, "files": [str(path) for path in files]})
    else:
        for path in files:
            say(f"wrote {path}")
    return 0


def _list(entries: dict[int, CheckpointEntry], is_json: bool) -> None:
    if is_json:
        write_json({"checkpoints": [vars(entry) for entry in entries.values()]})
        return
    rows = [(entry.version, entry.round, entry.accuracy, entry.encoder_version, entry.hash[:16]) for entry in entries.values()]
    write_table(("checkpoint", "round", "accuracy", "encoder", "hash"), rows)


def _export(checkpoint: Checkpoint, output: Path, options: Namespace) -> list[Path]:
    if output.suffix == ".safetensors":
        write_durably(output, checkpoint.to_bytes())
        return [output]
    partition = DeployedPartition(partition_directory(options))
    packages = partition.packages(checkpoint.tensors, checkpoint.ranges, checkpoint.version)
    with store_errors(output):
        paths = packages.save(output)
    write_durably(output / CHECKPOINT, checkpoint.to_bytes())
    return [*paths, output / CHECKPOINT]
