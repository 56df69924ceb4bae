# SPDX-License-Identifier: Apache-2.0
"""What runs in the environment with NumPy 1; a program.

    python numpy_1_worker.py run MODEL.tflite X.npy Y.npy                  tflite-runtime, reference kernels
    python numpy_1_worker.py convert CAPTURED.fmp CHECKPOINT.safetensors X.npy OUTPUT.tflite

`convert` calibrates and quantizes: the template is that of a package, the samples are channels last. torch is not needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def run(model: str, samples: str, results: str) -> None:
    """Run every sample."""
    from tflite_runtime import interpreter as runtime

    from fedmote_convert.bench.interpreters import invoke_all

    resolver = runtime.OpResolverType.BUILTIN_REF
    interpreter = runtime.Interpreter(model, experimental_op_resolver_type=resolver, num_threads=1)
    np.save(results, invoke_all(interpreter, np.load(samples)))


def convert(package: str, checkpoint: str, samples: str, output: str) -> None:
    """Calibrate, quantize, write."""
    from fedmote.package.file import Package
    from fedmote.tensors import load_safetensors
    from fedmote_convert.bench.measures import encoder_file
    from fedmote_convert.calibration import Recipe, calibrate

    template = Package.read(Path(package)).host.template
    if template is None:
        raise ValueError(f"{package} has no template")
    tensors = load_safetensors(Path(checkpoint))
    calibrated, ranges = calibrate(template, tensors, np.load(samples), Recipe())
    Path(output).write_bytes(encoder_file(calibrated, tensors, ranges)[1])


if __name__ == "__main__":
    mode, *paths = sys.argv[1:]
    if mode == "run":
        run(*paths)
    else:
        convert(*paths)
