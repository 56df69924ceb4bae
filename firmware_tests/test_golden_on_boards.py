# SPDX-License-Identifier: Apache-2.0
"""`fedmote run` of the MLPerf Tiny models on every board gives the bytes that TensorFlow Lite Micro gave on a Cortex-M4F."""

import argparse
import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board, board_names
from fedmote_hil.cli import run as run_verb

_MODELS = Path(os.environ.get("FEDMOTE_SHARED", Path(__file__).parents[2] / "shared")) / "models" / "mlperf_tiny"
_missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
_emulator_marks = [pytest.mark.emulator, pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")]
_emulated = [name for name in board_names() if Board.load(name).emulator is not None]
_processes = [name for name in board_names() if name not in _emulated]
pytestmark = pytest.mark.skipif(not _MODELS.is_dir(), reason="the MLPerf Tiny models are not beside this repository")

# Of weights alone the autoencoder has 267,928 bytes, and ResNet-8 needs 33,792 of RAM.
_TOO_LARGE = {("ad01_int8", "lm3s6965"), ("ad01_int8", "nrf51822"), ("pretrainedResnet_quant", "nrf51822")}


def _lcg_input(seed, count):
    """The inputs of the golden file: top bytes of a linear congruential generator."""
    values, state = np.empty(count, np.uint8), seed
    for i in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        values[i] = state >> 24
    return values.view(np.int8)


@pytest.mark.parametrize("board", [*_processes, *(pytest.param(name, marks=_emulator_marks) for name in _emulated)])
@pytest.mark.parametrize(("model", "input_bytes"), [("kws_ref_model", 490), ("pretrainedResnet_quant", 3072), ("ad01_int8", 640)])
def test_outputs_are_those_of_tensorflow_lite_micro_in_every_byte(model, input_bytes, board, tmp_path):
    golden = json.loads((_MODELS / "golden_lcg.json").read_text(encoding="utf-8"))[model]["cases"]
    np.save(tmp_path / "x.npy", np.stack([_lcg_input(int(seed), input_bytes) for seed in golden]))
    parser = argparse.ArgumentParser()
    run_verb.add_arguments(parser)
    files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
    try:
        assert run_verb.run(parser.parse_args([str(_MODELS / f"{model}.tflite"), *files, "--board", board])) == 0
    except DoesNotFitError as error:
        assert (model, board) in _TOO_LARGE, str(error)
        pytest.skip(str(error))
    found = [zlib.crc32(row.tobytes()) for row in np.load(tmp_path / "y.npy")]
    assert found == [case["op_output_crc32"][-1] for case in golden.values()]
