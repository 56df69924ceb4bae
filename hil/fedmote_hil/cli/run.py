# SPDX-License-Identifier: Apache-2.0
"""`fedmote run`: a package's inference on a board."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from fedmote.arrays import load_npy
from fedmote.errors import ConfigError
from fedmote.package.boards import Board, board_names
from fedmote.package.file import Package
from fedmote.package.importer import import_tflite
from fedmote_hil.models import read_model, whole_encoder
from fedmote_hil.run import run_on_board
from fedmote_hil.samples import board_samples

SUMMARY = "run a package or a .tflite file on a board: features or logits of every sample"
EXAMPLES = """examples:
  fedmote run model.fmp --board stm32f405 --input x.npy --output features.npy
  fedmote run kws.tflite --board posix --input x.npy --output logits.npy --logits
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    parser.add_argument("model", type=Path, metavar="X.fmp|MODEL.tflite")
    parser.add_argument("--input", type=Path, required=True, metavar="X.npy", help="samples: int8 as they are, or numbers")
    parser.add_argument("--output", type=Path, required=True, metavar="Y.npy", help="int8 features, or float32 logits")
    parser.add_argument("--logits", action="store_true", help="the head's logits instead of the features")
    parser.add_argument("--board", required=True, metavar="BOARD", help=", ".join(board_names()))
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(options: argparse.Namespace) -> int:
    """Runs the samples and writes the results."""
    board = Board.load(options.board)
    package = _package(options.model, board, options.logits)
    x = board_samples(load_npy(options.input), package, options.input)
    started = time.monotonic()
    y = run_on_board(board, package.device_form(), x, options.logits)
    seconds = time.monotonic() - started
    try:
        with options.output.open("wb") as file:
            np.save(file, y)
    except OSError as error:
        raise ConfigError(f"{options.output}: {error.strerror}") from error
    result = {
        "board": board.name,
        "samples": len(x),
        "output": str(options.output),
        "shape": list(y.shape),
        "dtype": str(y.dtype),
        "macs_per_sample": package.header.macs,
        "encoder_bytes": package.header.encoder_bytes,
        "package_bytes": len(package.device_form()),
        "wall_s": round(seconds, 3),
    }
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        for key, value in result.items():
            sys.stdout.write(f"{key:16} {value}\n")
    return 0


def _package(path: Path, board: Board, is_for_logits: bool) -> Package:
    """The package of a file; of a `.tflite` file all is encoder, or for logits all but its last dense layer, the head."""
    if path.suffix != ".tflite":
        return Package.read(path)
    return import_tflite(read_model(path), path.name, board, path.stem)[0] if is_for_logits else whole_encoder(path, board)
