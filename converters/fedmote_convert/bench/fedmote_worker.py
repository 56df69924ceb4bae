# SPDX-License-Identifier: Apache-2.0
"""Converts one module with fedmote_convert; a program, run in a process of its own as those of other stacks are.

    python fedmote_worker.py NAME MODULE.pt CALIBRATION.npy REPEATS OUTPUT.tflite OUTPUT.fmp

Standard output ends with one JSON object: processor seconds of each conversion, imports and a first conversion of a small
module left out: up to the complete packages (`seconds`), and with the comparison of the result with the float module that
follows in every conversion of ours and in none of others' (`checked_seconds`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedmote_convert.bench.boards import roomy_board
from fedmote_convert.bench.processor_time import processor_seconds
from fedmote_convert.convert import COMPARING, Conversion, convert


def warm_up(shape: tuple[int, ...]) -> None:
    """A first conversion, of a small module for samples of the same shape."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    samples = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    convert(module, samples, [roomy_board()], model_id="small")


def timed(name: str, module: nn.Module, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> tuple[Conversion, float, float]:
    """A conversion, its seconds without and with its comparison."""
    compared_at: list[float] = []

    def clock(step: str) -> None:
        if step == COMPARING:
            compared_at.append(processor_seconds())

    started = processor_seconds()
    made = convert(module, x, [roomy_board()], model_id=name, progress=clock)
    return made, compared_at[0] - started, processor_seconds() - started


def main(arguments: list[str]) -> None:
    """Convert as often as asked; keep the last files."""
    name, module_path, calibration, repeats, tflite, package = arguments
    torch.set_num_threads(1)
    module: nn.Module = torch.load(module_path, weights_only=False).eval()
    x = np.load(calibration)
    warm_up(x.shape[1:])
    seconds, checked = [], []
    for _ in range(int(repeats)):
        made, alone, with_check = timed(name, module, x)
        seconds.append(alone)
        checked.append(with_check)
    Path(tflite).write_bytes(made.package.encoder_tflite)
    Path(package).write_bytes(made.package.to_bytes())
    sys.stdout.write(json.dumps({"seconds": seconds, "checked_seconds": checked}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
