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
  fedmote convert mypackage.nets:build --calibration calibration.npz --boards stm32f405,posix -o converted
  fedmote convert fedmote.lab.models:digits_cnn --weights trained.safetensors --calibration digits.npz --boards posix -o out
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("model", metavar="pkg.module:build", help="function that returns the module in evaluation mode")
    parser.add_argument("--weights", type=Path, metavar="F.safetensors", help="state of the module; else as it is built")
    parser.add_argument(
        "--calibration", type=Path, required=True, metavar="X.npz", help="x (N, ...) as the module reads it; y (N,) for accuracy"
    )
    parser.add_argument("--cut", default="auto", metavar="auto|NAME", help="module behind which the frozen encoder ends")
    quantization = parser.add_argument_group("quantization")
    quantization.add_argument(
        "--range-rule",
        choices=("min-max", "percentile", "mse"),
        default="min-max",
        help="what becomes the range of an activation",
    )
    quantization.add_argument("--percentile", type=float, default=99.99, metavar="P", help="of --range-rule percentile")
    quantization.add_argument("--ranges", type=Path, metavar="F.json", help="ranges and bits of a quantization-aware training")
    quantization.add_argument(
        "--weight-budget", type=int, metavar="BYTES", help="4 bits where they harm least, until weights fit"
    )
    quantization.add_argument("--per-tensor-dense", action="store_true", help="one weight scale a dense layer, for old runtimes")
    parser.add_argument("--boards", required=True, metavar="B[,B]", help=", ".join(board_names()))
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory that is written")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def run(options: argparse.Namespace) -> int:
    """Convert, write, tell."""
    boards = _boards(options.boards)
    if options.model.endswith(".onnx"):
        raise ConfigError(f"model {options.model}: ONNX files are not read by this version; expected pkg.module:build")
    try:
        from fedmote_convert import convert, output, report, sources
        from fedmote_convert.calibration import RangeRule, Recipe
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
    trained = sources.load_ranges(options.ranges) if options.ranges is not None else None
    recipe = Recipe(
        range_rule=RangeRule(options.range_rule),
        percentile=options.percentile,
        is_dense_per_tensor=options.per_tensor_dense,
        ranges=None if trained is None else trained.ranges,
        weight_bits={} if trained is None else trained.weight_bits,
        weight_budget_bytes=options.weight_budget,
    )
    conversion = convert.convert(
        module, calibration.x, boards, model_id=model_id, cut=options.cut, recipe=recipe, y=calibration.y, progress=_say
    )
    content = output.write(conversion, boards, options.output)
    _say(f"written to {options.output}")
    sys.stdout.write(json.dumps(content) + "\n" if options.json else report.table(content))
    return 0


def _boards(text: str) -> list[Board]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--boards {text!r}: expected names, separated by commas, of {', '.join(board_names())}")
    return [Board.load(name) for name in names]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
