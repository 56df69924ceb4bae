# SPDX-License-Identifier: Apache-2.0
"""`fedmote build`: the image of a board."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from fedmote.errors import ConfigError
from fedmote.package.boards import Board, board_names
from fedmote_hil.build import Program, build

SUMMARY = "build the federated device's image for a board"
EXAMPLES = """examples:
  fedmote build --board stm32f405 -o image.bin          raw bytes, and the command that flashes them
  fedmote build --board posix -o fedmote-device         a program of this machine: fedmote-device --help
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    parser.add_argument("--board", required=True, metavar="BOARD", help=", ".join(board_names()))
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="IMAGE", help=".bin: raw bytes; else ELF")
    parser.add_argument("--inference", action="store_true", help="the image that runs a package over samples instead")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(options: argparse.Namespace) -> int:
    """Builds, or finds the finished build, and copies the image."""
    board = Board.load(options.board)
    image = build(board, Program.RUN if options.inference else Program.DEVICE)
    source = image.path
    if options.output.suffix == ".bin":
        if image.binary is None:
            raise ConfigError(f"board {board.name} has no raw image; it is a program of this machine")
        source = image.binary
    try:
        shutil.copy(source, options.output)
    except OSError as error:
        raise ConfigError(f"{options.output}: {error.strerror}") from error
    result = {"board": board.name, "image": str(options.output), "bytes": options.output.stat().st_size}
    if board.flash_command is not None:
        address = hex(board.region("image").address) if source is image.binary else ""
        result["flash_command"] = board.flash_command.format(file=options.output, address=address)
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        for key, value in result.items():
            sys.stdout.write(f"{key:14} {value}\n")
    return 0
