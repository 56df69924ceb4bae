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
  fedmote convert mypackage.nets:build --calibration samples.npz --boards stm32f405,lm3s6965,nrf51822 --widths 1,0.5,0.25 -o out
  fedmote convert mypackage.nets:build --calibration calibration.npz --boards stm32f405 --cut features.3 -o out
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
        help="x (N, ...) as the model reads it; y (N,) for accuracies and new heads; subject, writer, speaker or record (N,) to "
        "hold out whole people; or a function that returns batches of x and y; may be left out for a .tflite file",
    )
    parser.add_argument(
        "--cut",
        default="auto",
        metavar="auto|last|NAME",
        help="module behind which the frozen encoder ends; auto: the best that fits each board; last: before the last Linear",
    )
    parser.add_argument("--widths", default="1", metavar="W[,W]", help="shares of the channels to try, in (0, 1]; default 1")
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
    widths = _widths(options.widths)
    from fedmote_convert import output, pareto, report, sources, tiers
    from fedmote_convert.calibration import RangeRule, Recipe

    if options.output.exists() and not options.output.is_dir():  # said before the work, not after it
        raise ConfigError(f"-o {options.output}: found a file, expected a directory")
    if options.model.lower().endswith(".tflite"):
        return _run_tflite(options, boards)
    if options.calibration is None:
        raise ConfigError("--calibration is missing: expected X.npz or pkg.module:loader, samples as the model reads them")
    calibration = sources.load_samples(options.calibration)
    model, model_id = sources.load_model(options.model, options.weights)
    trained = sources.load_ranges(options.ranges) if options.ranges is not None else None
    recipe = Recipe(
        range_rule=RangeRule(options.range_rule),
        percentile=options.percentile,
        is_dense_per_tensor=options.per_tensor_dense,
        ranges=None if trained is None else trained.ranges,
        weight_bits={} if trained is None else trained.weight_bits,
        weight_budget_bytes=options.weight_budget,
    )
    result = tiers.convert_tiers(
        model,
        calibration.x,
        boards,
        model_id=model_id,
        cut=options.cut,
        widths=widths,
        recipe=recipe,
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


def _run_tflite(options: argparse.Namespace, boards: list[Board]) -> int:
    from fedmote_convert import sources, tflite_source

    if options.weights is not None:
        raise ConfigError("--weights: a .tflite file is quantized already; convert the float model with these weights")
    calibration = None if options.calibration is None else sources.load_samples(options.calibration)
    if _widths(options.widths) != [1.0]:
        raise ConfigError("--widths: a .tflite file is as wide as it is; convert the float model")
    cut = None if options.cut in ("auto", "last") else options.cut
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
