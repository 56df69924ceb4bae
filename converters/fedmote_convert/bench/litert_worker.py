# SPDX-License-Identifier: Apache-2.0
"""Converts one module with litert-torch and ai-edge-quantizer; a program, run inside the environment that holds them.

    python litert_worker.py QUANTIZER ENCODER.pt CALIBRATION.npy REPEATS OUTPUT.tflite

QUANTIZER is "aeq" (ai-edge-quantizer, static int8) or "pt2e" (torchao's PT2E with litert-torch's quantizer). Standard output
ends with one JSON object: processor seconds of each conversion, imports and a first conversion of a small module left out.

Ranges of ai-edge-quantizer are true minima and maxima. Its own `Quantizer.calibrate` keeps moving averages instead, which for
single samples clip activations to about half of their range; the class behind it takes the rule as an argument.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable

import litert_torch
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmote_convert.bench.processor_time import processor_seconds

Samples = NDArray[np.float32]
Conversion = Callable[[nn.Module, Samples], bytes]


def convert_aeq(module: nn.Module, x: Samples) -> bytes:
    """Float `.tflite` with litert-torch, then static int8 with ai-edge-quantizer."""
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    floating = litert_torch.convert(module, (torch.from_numpy(x[:1]),)).model_content()
    rules = recipe.static_wi8_ai8()
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(rules)
    observer = calibrator.Calibrator(floating, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    observer.calibrate({"serving_default": [{"args_0": sample[None]} for sample in x]}, manager)
    made = quantizer.Quantizer(floating, rules).quantize(observer.get_model_qsvs(), enable_progress_report=False)
    return bytes(made.quantized_model)


def convert_pt2e(module: nn.Module, x: Samples) -> bytes:
    """PT2E: observers in the exported program, calibration in torch, then litert-torch on the quantized program."""
    from litert_torch.quantize import pt2e_quantizer, quant_config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e as finish
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

    rules = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    chooser = pt2e_quantizer.PT2EQuantizer().set_global(rules)
    sample = (torch.from_numpy(x[:1]),)
    prepared = prepare_pt2e(torch.export.export(module, sample).module(), chooser)
    with torch.no_grad():
        for one in torch.from_numpy(x):
            prepared(one[None])
    quantized = finish(prepared, fold_quantize=False)
    configuration = quant_config.QuantConfig(pt2e_quantizer=chooser)
    return bytes(litert_torch.convert(quantized, sample, quant_config=configuration).model_content())


def warm_up(convert: Conversion, shape: tuple[int, ...]) -> None:
    """A first conversion, of a small module for samples of the same shape: what it imports and compiles is not counted."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 4), nn.ReLU()).eval()
    convert(module, np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32))


def main(arguments: list[str]) -> None:
    """Convert as often as asked; keep the last file."""
    quantizer, encoder, calibration, repeats, output = arguments
    torch.set_num_threads(1)
    convert = {"aeq": convert_aeq, "pt2e": convert_pt2e}[quantizer]
    module: nn.Module = torch.load(encoder, weights_only=False).eval()
    x = np.load(calibration)
    seconds = []
    with contextlib.redirect_stdout(sys.stderr):  # these tools print progress
        warm_up(convert, x.shape[1:])
        for _ in range(int(repeats)):
            started = processor_seconds()
            content = convert(module, x)
            seconds.append(processor_seconds() - started)
    with open(output, "wb") as file:  # noqa: PTH123  # a path from the command line, no pathlib needed
        file.write(content)
    sys.stdout.write(json.dumps({"seconds": seconds}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
