# SPDX-License-Identifier: Apache-2.0
"""What `fedmote convert --cut auto` promises of a board, measured on the board.

A network of movements and one of spoken words are trained briefly and converted for three boards. What each of them gets is
flashed in the emulator: the arena that the device reports, the slot and the image are the report's to the byte, and an inference
takes the instructions that were predicted, within five percent.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedmote.package.boards import Board
from fedmote.package.execute import run_int8
from fedmote.package.file import Package
from fedmote.package.instructions import has_table
from fedmote.package.specimen import random_samples
from fedmote_hil.bench import count_kernels
from fedmote_hil.build import build
from fedmote_hil.run import run_on_board
from firmware_tests import keyword_model
from firmware_tests.device_round import install
from firmware_tests.native import ROOT

torch = pytest.importorskip("torch")
missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
pytestmark = [pytest.mark.emulator, pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")]

DATA = Path(os.environ.get("FEDMOTE_SHARED", ROOT.parent / "shared")) / "data"
BOARDS = ("stm32f405", "lm3s6965", "nrf51822")
ENTRY = "import sys; from fedmote.cli import main; sys.exit(main(sys.argv[1:]))"
SEED = 6


@dataclass(frozen=True)
class Converted:
    """What `fedmote convert --cut auto` left."""

    directory: Path
    report: dict

    def package(self, board: str) -> Package:
        tier = self.report["boards"][board]["form"] if "tiers" in self.report else "."
        return Package.read(self.directory / tier / f"{self.report['model']}-{board}.fmp")


def trained(module, x: np.ndarray, y: np.ndarray, epochs: int):
    generator = torch.Generator().manual_seed(SEED)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(module.parameters(), 4e-3)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return module.eval()


def converted(target: str, module, arrays: dict[str, np.ndarray], directory: Path) -> Converted:
    """The real command on a trained module, with samples of people that it has not seen."""
    safetensors_torch = pytest.importorskip("safetensors.torch")
    safetensors_torch.save_file(module.state_dict(), directory / "weights.safetensors")
    np.savez(directory / "calibration.npz", **arrays)
    command = [sys.executable, "-c", ENTRY, "convert", target, "--weights", directory / "weights.safetensors"]
    command += ["--calibration", directory / "calibration.npz", "--cut", "auto", "--widths", "1,0.75,0.5,0.25"]
    command += ["--boards", ",".join(BOARDS), "-o", directory / "out", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return Converted(directory / "out", json.loads(done.stdout))


@pytest.fixture(scope="module")
def movements(tmp_path_factory) -> Converted:
    path = DATA / "har_phone_30subjects" / "windows.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with np.load(path) as file:
        x, y = file["x"].astype(np.float32).transpose(0, 2, 1).copy(), file["y"].astype(np.int64)
        subject, is_test = file["subject"].astype(np.int64), file["is_test_subject"] == 1
    rng = np.random.default_rng(SEED)
    known, unknown = (rng.permutation(np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    from fedmote.lab.models import har_cnn

    torch.set_num_threads(1)
    module = trained(har_cnn(), x[known[:1500]], y[known[:1500]], 3)
    kept = unknown[:600]
    arrays = {"x": x[kept], "y": y[kept], "subject": subject[kept]}
    return converted("fedmote.lab.models:har_cnn", module, arrays, tmp_path_factory.mktemp("movements"))


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Converted:
    path = DATA / "kws_arabic_30speakers" / "mfcc.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with np.load(path) as file:
        x, y = file["x"].astype(np.float32)[:, None], file["y"].astype(np.int64)
        speaker, part = file["speaker"].astype(np.int64), file["split"]
    x = (x - x[part == 0].mean(axis=0)) / x[part == 0].std(axis=0)
    rng = np.random.default_rng(SEED)
    known, unknown = rng.permutation(np.flatnonzero(part == 0)), rng.permutation(np.flatnonzero(part != 0))
    torch.set_num_threads(1)
    module = trained(keyword_model.build(), x[known], y[known], 4)
    kept = unknown[:1000]
    arrays = {"x": x[kept].astype(np.float32), "y": y[kept], "speaker": speaker[kept]}
    return converted("firmware_tests.keyword_model:build", module, arrays, tmp_path_factory.mktemp("words"))


MODELS = ["movements", pytest.param("words", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("model", MODELS)
def test_what_a_board_gets_takes_the_arena_and_the_flash_of_the_report_to_the_byte(model, name, request):
    subject = request.getfixturevalue(model)
    board, package, needs = Board.load(name), subject.package(name), subject.report["boards"][name]
    image = build(board, has_crypto=False).binary.stat().st_size
    if not needs["is_training"]:
        x = random_samples(package.graph, 4, SEED)
        assert np.array_equal(
            run_on_board(board, package.to_bytes(), x).reshape(4, -1), run_int8(package.graph, x).reshape(4, -1)
        )
        pytest.fail(f"{name} got nothing that it can train: {needs['reason']}")
    x = random_samples(package.graph, needs["samples"], SEED).reshape(needs["samples"], -1)

    installed = install(board, package, x)

    print(f"\n{model} on {name}: {needs['form']}, {needs['reason']}; arena {installed.arena_used_bytes}, "
          f"slot {installed.slot_bytes}, image {image} bytes")  # fmt: skip
    assert installed.arena_used_bytes == needs["arena_bytes"] + needs["cached_samples"] * package.features
    assert installed.arena_used_bytes <= needs["arena_available"]
    assert installed.slot[: len(package.device_form())] == package.device_form()
    assert installed.slot_bytes == needs["slot_bytes"] <= needs["slot_available"]
    assert needs["flash_bytes"] in (None, image + installed.slot_bytes)


@pytest.mark.parametrize("name", [name for name in BOARDS if has_table(Board.load(name))])
@pytest.mark.parametrize("model", MODELS)
def test_an_inference_takes_the_instructions_of_the_report_within_five_percent(model, name, request):
    subject = request.getfixturevalue(model)
    needs = subject.report["boards"][name]

    counted = count_kernels(name, subject.package(name)).instructions

    print(f"\n{model} on {name}: {needs['form']}, {counted} instructions, {needs['instructions']} predicted")
    assert abs(needs["instructions"] / counted - 1) <= 0.05
