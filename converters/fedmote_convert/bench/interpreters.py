# SPDX-License-Identifier: Apache-2.0
"""Runs int8 `.tflite` files: with somebody else's interpreters, and with the device's own C.

TensorFlow Lite Micro is the judge of every byte. LiteRT is what phones run; its reference kernels requantize dense layers in
floating point (LiteRT#8567), its default ones round once where those round twice. tflite-runtime, the last of its line, runs in
an environment with NumPy 1. The C runs where the command `fedmote run` puts it: a process of the same sources as a device's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, RigError
from fedmote_convert.bench.boards import BOARD
from fedmote_convert.bench.environments import current_python, numpy_1, our_packages, run_python

Samples = NDArray[np.int8] | NDArray[np.float32]

_ARENA_BYTES = 64 << 20
_ARENA_STEP = 16  # TensorFlow Lite Micro aligns its buffers to it


def oracles_missing() -> str | None:
    """Why nothing can be judged: TensorFlow Lite Micro or LiteRT are not installed; None where they are."""
    absent = [name for name in ("tflite_micro", "ai_edge_litert") if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(absent)}: pip install 'fedmote[oracle]'" if absent else None


def run_tflite_micro(tflite: bytes, x: Samples) -> NDArray[Any]:
    """Outputs (N, ...) of TensorFlow Lite Micro for samples (N, ...) of the file's input type and shape.

    Raises:
        ConversionError: it cannot run the file.
    """
    from tflite_micro.python.tflite_micro import runtime

    try:
        interpreter = runtime.Interpreter.from_bytes(tflite, arena_size=_ARENA_BYTES)
    except RuntimeError as error:  # it has said on standard error why
        raise ConversionError(f"TensorFlow Lite Micro cannot run the file: {error}") from error
    outputs = []
    for sample in x:
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        outputs.append(np.array(interpreter.get_output(0)[0]))
    return np.stack(outputs)


def tflite_micro_arena_bytes(tflite: bytes) -> int:
    """The smallest arena in which TensorFlow Lite Micro can allocate a file's tensors: bytes, to 16.

    Raises:
        ConversionError: it cannot run the file.
    """
    program = Path(__file__).with_name("arena_worker.py")
    with _files(tflite, np.zeros(0, np.int8)) as (model, _, _):
        said = run_python(current_python(), program, [model, _ARENA_STEP, _ARENA_BYTES], ())
    return int(json.loads(said)["bytes"])


def run_litert(tflite: bytes, x: Samples, is_reference: bool) -> NDArray[Any]:
    """Outputs (N, ...) of LiteRT: with its reference kernels, or as it comes, with XNNPACK."""
    from ai_edge_litert import interpreter as litert

    resolver = litert.OpResolverType.BUILTIN_REF if is_reference else litert.OpResolverType.AUTO
    return invoke_all(litert.Interpreter(model_content=tflite, experimental_op_resolver_type=resolver, num_threads=1), x)


def invoke_all(interpreter: Any, x: Samples) -> NDArray[Any]:  # noqa: ANN401  # of two packages, neither of which has types
    """Outputs (N, ...) of an interpreter of LiteRT's or tflite-runtime's for samples (N, ...)."""
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    outputs = []
    for sample in x:
        interpreter.set_tensor(source, sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target)[0])
    return np.stack(outputs)


def run_tflite_runtime(tflite: bytes, x: Samples) -> NDArray[Any]:
    """Outputs (N, ...) of tflite-runtime's reference kernels, in the environment that has it.

    Raises:
        ConversionError: it failed.
    """
    program = Path(__file__).with_name("numpy_1_worker.py")
    with _files(tflite, x) as (model, samples, results):
        run_python(numpy_1().python, program, ["run", model, samples, results], our_packages())
        return np.asarray(np.load(results))


def run_device(tflite: bytes, x: NDArray[np.int8]) -> NDArray[np.int8]:
    """Features int8 (N, D) of the device's C for samples int8 (N, ...): the command `fedmote run`, on the host.

    Raises:
        RigError: the command is not installed.
        ConversionError: it refused the file, with its reason.
    """
    if not any(point.name == "run" for point in entry_points(group="fedmote.verbs")):
        raise RigError("the command `fedmote run` is not installed: the device's C cannot be reached")
    program = "import sys; from fedmote.cli import main; sys.exit(main(sys.argv[1:]))"
    with _files(tflite, x) as (model, samples, results):
        arguments = ["run", str(model), "--input", str(samples), "--output", str(results), "--board", BOARD, "--json"]
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=_environment())
        if done.returncode != 0:
            raise ConversionError(done.stderr.strip().removeprefix("fedmote: "))
        return np.asarray(np.load(results), np.int8)


def _environment() -> dict[str, str]:
    """The child imports what this process imports."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@contextlib.contextmanager
def _files(tflite: bytes, x: Samples) -> Iterator[tuple[Path, Path, Path]]:
    """Paths of a model, its samples, and the results to come, as long as they are needed."""
    with tempfile.TemporaryDirectory(prefix="fedmote-bench-") as directory:
        model, samples, results = (Path(directory) / name for name in ("model.tflite", "x.npy", "y.npy"))
        model.write_bytes(tflite)
        np.save(samples, x)
        yield model, samples, results
