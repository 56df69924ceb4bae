# SPDX-License-Identifier: Apache-2.0
"""`fedmote convert`: a torch model in, partition packages out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fedmote.errors import ConfigError
from fedmote.package.boards import Board, board_names

SUMMARY = "convert a torch model into an int8 encoder, a float head and a package for each board"
EXAMPLES = """examples:
  fedmote convert mypackage.nets:build --calibration samples.npz --boards stm32f405,lm3s6965,nrf51822 --widths 1,0.5,0.25 -o out
  fedmote convert mypackage.nets:build --calibration calibration.npz --boards stm32f405 --cut features.3 -o out
  fedmote convert mypackage.nets:build --calibration calibration.npz --boards stm32f405,posix -o converted
  fedmote convert fedmote.lab.models:digits_cnn --weights trained.safetensors --calibration digits.npz --boards posix -o out
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("model", metavar="pkg.module:build", help="function that returns the module in evaluation mode")
    parser.add_argument("--weights", type=Path, metavar="F.safetensors", help="state of the module; else as it is built")
    parser.add_argument(
        "--calibration",
        type=Path,
        required=True,
        metavar="X.npz",
        help="x (N, ...) as the module reads it; y (N,) for accuracies and new heads; subject, writer, speaker or record (N,)",
    )
    parser.add_argument(
        "--cut",
        default="auto",
        metavar="auto|last|NAME",
        help="module behind which the frozen encoder ends; auto: the best that fits each board; last: before the last Linear",
    )
    parser.add_argument("--widths", default="1", metavar="W[,W]", help="shares of the channels to try, in (0, 1]; default 1")
    parser.add_argument("--boards", required=True, metavar="B[,B]", help=", ".join(board_names()))
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory that is written")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(options: argparse.Namespace) -> int:
    """Convert, write, tell."""
    boards = _boards(options.boards)
    widths = _widths(options.widths)
    if options.model.endswith(".onnx"):
        raise ConfigError(f"model {options.model}: ONNX files are not read by this version; expected pkg.module:build")
    try:
        from fedmote_convert import output, pareto, report, sources, tiers
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigError("convert needs torch: install fedmote[torch]") from error
    if options.output.exists() and not options.output.is_dir():  # said before the work, not after it
        raise ConfigError(f"-o {options.output}: found a file, expected a directory")
    calibration = sources.load_calibration(options.calibration)
    module, model_id = sources.load_module(options.model)
    if options.weights is not None:
        sources.load_weights(module, options.weights)
    result = tiers.convert_tiers(
        module,
        calibration.x,
        boards,
        model_id=model_id,
        cut=options.cut,
        widths=widths,
        y=calibration.y,
        owners=calibration.owners,
        progress=_say,
    )
    content = output.write(result, options.output)
    if output.is_plotted(content) and not pareto.has_matplotlib():
        _say("pareto.png is left out: matplotlib is not installed; report.html has the same pictures")
    _say(f"written to {options.output}")
    sys.stdout.write(json.dumps(content) + "\n" if options.json else report.table(content))
    return 0


def _boards(text: str) -> list[Board]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--boards {text!r}: expected names, separated by commas, of {', '.join(board_names())}")
    return [Board.load(name) for name in names]


def _widths(text: str) -> list[float]:
    try:
        widths = [float(part) for part in text.split(",")]
    except ValueError:
        widths = []
    if not widths or not all(0 < width <= 1 for width in widths):
        raise ConfigError(
            f"--widths {text!r}: expected shares of the channels in (0, 1], separated by commas, such as 1,0.5,0.25"
        )
    return widths


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
