# SPDX-License-Identifier: Apache-2.0
"""`fedmote convert`: a torch module, an ONNX model or an int8 `.tflite` file in, partition packages out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fedmote.errors import ConfigError
from fedmote.package.boards import Board, board_names

SUMMARY = "convert a torch or ONNX model into an int8 encoder, a float head and a package for each board"
EXAMPLES = """examples:
  fedmote convert mypackage.nets:build --calibration calibration.npz --boards stm32f405,posix -o converted
  fedmote convert fedmote.lab.models:digits_cnn --weights trained.safetensors --calibration digits.npz --boards posix -o out
  fedmote convert model.onnx --calibration mypackage.data:loader --boards posix -o out
  fedmote convert model.tflite --boards stm32f405,posix -o out         int8 already: packages for each board, as it is
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "model",
        metavar="pkg.module:build|M.onnx|M.tflite",
        help="function that returns the module in evaluation mode, or a file",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="F.safetensors", help="state of the module, or tensors of the file to replace"
    )
    parser.add_argument(
        "--calibration",
        metavar="X.npz|pkg.module:loader",
        help="x (N, ...) as the model reads it, y (N,) for accuracy; or a function that returns batches of them; "
        "may be left out for a .tflite file",
    )
    parser.add_argument("--cut", default="auto", metavar="auto|NAME", help="module behind which the frozen encoder ends")
    parser.add_argument("--boards", required=True, metavar="B[,B]", help=", ".join(board_names()))
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory that is written")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(options: argparse.Namespace) -> int:
    """Convert, write, tell."""
    boards = _boards(options.boards)
    from fedmote_convert import convert, output, report, sources

    if options.output.exists() and not options.output.is_dir():  # said before the work, not after it
        raise ConfigError(f"-o {options.output}: found a file, expected a directory")
    if options.model.lower().endswith(".tflite"):
        return _run_tflite(options, boards)
    if options.calibration is None:
        raise ConfigError("--calibration is missing: expected X.npz or pkg.module:loader, samples as the model reads them")
    calibration = sources.load_samples(options.calibration)
    model, model_id = sources.load_model(options.model, options.weights)
    conversion = convert.convert(model, calibration.x, boards, model_id=model_id, cut=options.cut, y=calibration.y, progress=_say)
    content = output.write(conversion, boards, options.output)
    _say(f"written to {options.output}")
    sys.stdout.write(json.dumps(content) + "\n" if options.json else report.table(content))
    return 0


def _run_tflite(options: argparse.Namespace, boards: list[Board]) -> int:
    from fedmote_convert import sources, tflite_source

    if options.weights is not None:
        raise ConfigError("--weights: a .tflite file is quantized already; convert the float model with these weights")
    calibration = None if options.calibration is None else sources.load_samples(options.calibration)
    cut = None if options.cut == "auto" else options.cut
    imported = tflite_source.import_model(Path(options.model), boards, calibration, cut)
    content = tflite_source.write(imported, boards, options.output)
    _say(f"written to {options.output}")
    if options.json:
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        tflite_source.table(content, sys.stdout)
    return 0


def _boards(text: str) -> list[Board]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--boards {text!r}: expected names, separated by commas, of {', '.join(board_names())}")
    return [Board.load(name) for name in names]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
