# SPDX-License-Identifier: Apache-2.0
"""The promise of a conversion, from the command line: what a board computes and reserves is what the converter said.

Two example models are trained briefly, converted by `fedmote convert`, and run by `fedmote run` on both virtual boards.
TensorFlow Lite Micro, from Google's own wheel, says what every byte should be.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedmote.package.boards import Board
from fedmote.package.file import Package
from fedmote.package.quantize import quantize_input
from fedmote_hil.run import run_on_board
from firmware_tests.device_round import install
from firmware_tests.native import ROOT

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

RECORDINGS = Path(os.environ.get("FEDMOTE_SHARED", ROOT.parent / "shared")) / "data" / "har_phone_30subjects" / "windows.npz"
INPUTS = 200
ENTRY = "import sys; from fedmote.cli import main; sys.exit(main(sys.argv[1:]))"
missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
BOARDS = [
    "posix",
    pytest.param(
        "stm32f405",
        marks=[pytest.mark.emulator, pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")],
    ),
]
needs_recordings = pytest.mark.skipif(
    not RECORDINGS.exists(), reason="the recordings of 30 people are not beside this repository"
)


@dataclass(frozen=True)
class Converted:
    """What `fedmote convert` wrote, and data in torch's layout that no calibration has seen."""

    model: str
    directory: Path
    x: np.ndarray

    @functools.cached_property
    def report(self):
        return json.loads((self.directory / "report.json").read_text(encoding="utf-8"))

    @property
    def encoder(self) -> bytes:
        return (self.directory / "encoder.tflite").read_bytes()

    def package_path(self, board: str) -> Path:
        return self.directory / f"{self.model}-{board}.fmp"

    def quantized(self, x: np.ndarray) -> np.ndarray:
        """int8 (N, 1 or H, W, C), the encoder's input."""
        graph = Package.read(self.package_path("posix")).graph
        return quantize_input(graph, np.moveaxis(x, 1, -1).reshape(len(x), *graph.activations[graph.input].shape[1:]))


def fedmote(*arguments: object) -> str:
    """The real command; its standard output."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ENTRY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def brief_training(module, x: np.ndarray, y: np.ndarray, path: Path) -> None:
    """One pass of Adam, so that ranges and statistics are those of a network that does something."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(module.parameters(), 4e-3)
    module.train()
    for batch in torch.randperm(len(x), generator=generator).split(32):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x[batch])), torch.from_numpy(y[batch]))
        loss.backward()
        optimizer.step()
    safetensors_torch.save_file(module.state_dict(), path)


def convert(model: str, x: np.ndarray, y: np.ndarray, directory: Path) -> Converted:
    """Trains on the samples after the first `INPUTS`, calibrates on a hundred of them and keeps the first for the runs."""
    from fedmote.lab import models

    brief_training(getattr(models, model)(), x[INPUTS:], y[INPUTS:], directory / "weights.safetensors")
    np.savez(directory / "calibration.npz", x=x[INPUTS : INPUTS + 100], y=y[INPUTS : INPUTS + 100])
    files = ["--weights", directory / "weights.safetensors", "--calibration", directory / "calibration.npz"]
    said = fedmote(
        "convert", f"fedmote.lab.models:{model}", *files, "--boards", "posix,stm32f405", "-o", directory / "out", "--json"
    )
    converted = Converted(model, directory / "out", x[:INPUTS])
    assert json.loads(said) == converted.report
    return converted


@pytest.fixture(scope="module")
def digits_cnn(tmp_path_factory) -> Converted:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(1).permutation(len(bunch.target))[:1000]
    x, y = (bunch.images[order, None] / 16).astype(np.float32), bunch.target[order].astype(np.int64)
    return convert("digits_cnn", x, y, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def har_cnn(tmp_path_factory) -> Converted:
    """From windows of real movement where they are at hand, else from noise."""
    rng = np.random.default_rng(2)
    if RECORDINGS.exists():
        with np.load(RECORDINGS) as file:
            chosen = rng.permutation(len(file["y"]))[:1000]
            x, y = file["x"][chosen].astype(np.float32).transpose(0, 2, 1).copy(), file["y"][chosen].astype(np.int64)
    else:
        x, y = rng.normal(size=(1000, 9, 128)).astype(np.float32), rng.integers(0, 6, 1000)
    return convert("har_cnn", x, y, tmp_path_factory.mktemp("har"))


def tensorflow_lite_micro(model: bytes, x: np.ndarray) -> np.ndarray:
    runtime = pytest.importorskip("tflite_micro").runtime
    interpreter, outputs = runtime.Interpreter.from_bytes(model), []
    for sample in x:
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0).ravel().copy())
    return np.stack(outputs)


def litert_reference(model: bytes, x: np.ndarray) -> np.ndarray:
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(
        model_content=model, experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF, num_threads=1
    )
    interpreter.allocate_tensors()
    source, target = (details[0]["index"] for details in (interpreter.get_input_details(), interpreter.get_output_details()))
    outputs = []
    for sample in x:
        interpreter.set_tensor(source, sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target).ravel().copy())
    return np.stack(outputs)


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("digits_cnn", "images"),
        pytest.param("har_cnn", "recordings", marks=needs_recordings),
        ("har_cnn", "random bytes"),
    ],
)
def test_run_on_a_board_gives_the_bytes_of_tensorflow_lite_micro(model, inputs, board, request, tmp_path):
    converted = request.getfixturevalue(model)
    x = converted.quantized(converted.x)
    if inputs == "random bytes":
        x = np.random.default_rng(3).integers(-128, 128, x.shape).astype(np.int8)
        y = run_on_board(board, converted.package_path(board).read_bytes(), x)
    else:  # the real command, with floats, which it quantizes
        np.save(tmp_path / "x.npy", converted.x)
        files = ["--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy"]
        said = json.loads(fedmote("run", converted.package_path(board), "--board", board, *files, "--json"))
        assert said["samples"] == INPUTS
        y = np.load(tmp_path / "y.npy")

    judge, reference = tensorflow_lite_micro(converted.encoder, x), litert_reference(converted.encoder, x)
    assert len(y) == INPUTS
    assert len(np.unique(judge)) > 30  # saturated or dead features would agree about nothing
    differing = int((y != judge).sum())
    off = np.abs(y.astype(int) - reference)
    print(f"\n{model} on {board}, {INPUTS} {inputs}: {y.size} bytes, {differing} differ from TensorFlow Lite Micro; "
          f"{int((off > 0).sum())} from LiteRT's reference kernels, by {off.max()} at most")  # fmt: skip
    assert y.dtype == judge.dtype == np.int8
    assert y.shape == judge.shape
    assert differing == 0
    assert off.max() <= 1


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("model", ["digits_cnn", "har_cnn"])
def test_arena_that_a_device_reports_is_what_the_converter_said(model, board, request):
    converted = request.getfixturevalue(model)
    package, needs = Package.read(converted.package_path(board)), converted.report["boards"][board]
    x = np.random.default_rng(4).integers(-128, 128, (needs["samples"], package.header.input_count)).astype(np.int8)

    started = time.monotonic()
    used = install(Board.load(board), package, x).arena_used_bytes

    print(f"\n{model} on {board}: {used} bytes of arena reported with {len(x)} samples; the converter said "
          f"{needs['arena_bytes']} and {needs['cached_samples']} cached samples of {package.features} bytes; "
          f"the round took {time.monotonic() - started:.1f} s")  # fmt: skip
    assert used == needs["arena_bytes"] + needs["cached_samples"] * package.features
    assert used <= needs["arena_available"]
