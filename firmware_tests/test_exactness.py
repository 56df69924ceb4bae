# SPDX-License-Identifier: Apache-2.0
"""Every tensor of random graphs and of the reference models, on every board, against TensorFlow Lite Micro in every byte."""

import argparse
import json
import os
import shutil
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board, board_names, boards_with
from fedmote.package.compile import compile_graph
from fedmote.package.specimen import random_int8_graph, random_samples, wide_int8_graph
from fedmote.package.tflite_reader import has_softmax, read
from fedmote_hil import exactness
from fedmote_hil.cli import bench as bench_verb
from fedmote_hil.exactness import compare, host_tensors, tflite_micro_tensors
from fedmote_hil.tensors import tensors_on_board
from firmware_tests.native import ROOT
from firmware_tests.test_encoder_against_tflm import lcg_input

MODELS = Path(os.environ.get("FEDMOTE_SHARED", ROOT.parent / "shared")) / "models" / "mlperf_tiny"
_missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
_emulated = [pytest.mark.emulator, pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")]
EMULATED = [pytest.param(name, marks=_emulated) for name in boards_with("fedmote-run") if name != "posix"]
needs_models = pytest.mark.skipif(not MODELS.is_dir(), reason="the MLPerf Tiny models are not beside this repository")
# The reference models take seconds each: one board in the quick tests.
MODEL_BOARDS = [
    pytest.param(name, marks=_emulated if name == "mps2-m4" else [*_emulated, pytest.mark.slow])
    for name in boards_with("fedmote-run")
    if name != "posix"
]
GRAPHS = 200
# Of the graphs that fit a board, all tensors in memory at once. One in eight is wide: too large for parts with 256 KB of flash.
LEAST_SHARE = {"lm3s6965": 0.85, "nrf51822": 0.8}


@pytest.fixture(autouse=True)
def wheel() -> None:
    pytest.importorskip("tflite_micro")


def assert_exact(board: str, seeds: range) -> None:
    found = compare(board, seeds, is_wheel_required=True)
    print(f"{found.board}: {found.differing_bytes} of {found.bytes} bytes, {found.graphs} graphs, {found.tensors} tensors")
    assert found.differing_bytes == 0, f"(seed, tensor, bytes): {found.differences}"
    assert found.graphs >= LEAST_SHARE.get(board, 0.9) * len(seeds)


def test_two_hundred_graphs_on_this_machine_equal_tflite_micro_in_every_tensor() -> None:
    assert_exact("posix", range(GRAPHS))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(GRAPHS, 2**31))
def test_graphs_that_hypothesis_draws_equal_tflite_micro_in_every_tensor(first: int) -> None:
    assert compare("posix", range(first, first + 4), is_wheel_required=True).differing_bytes == 0


@pytest.mark.parametrize("board", EMULATED)
def test_graphs_on_an_emulated_board_equal_tflite_micro_in_every_tensor(board: str) -> None:
    assert_exact(board, range(25))


@pytest.mark.slow
@pytest.mark.parametrize("board", EMULATED)
def test_two_hundred_graphs_on_an_emulated_board_equal_tflite_micro_in_every_tensor(board: str) -> None:
    assert_exact(board, range(GRAPHS))


@needs_models
@pytest.mark.parametrize("board", ["posix", *MODEL_BOARDS])
@pytest.mark.parametrize("model", ["kws_ref_model", "pretrainedResnet_quant", "ad01_int8"])
def test_tensors_of_reference_models_are_the_recorded_ones(model: str, board: str) -> None:
    golden = json.loads((MODELS / "golden_lcg.json").read_text(encoding="utf-8"))[model]["cases"]
    content = (MODELS / f"{model}.tflite").read_bytes()
    graph = read(content, model, is_softmax_dropped=has_softmax(content, model))
    x = np.stack([lcg_input(int(seed), graph.activations[graph.input].shape[1:]) for seed in golden])
    try:
        tensors = tensors_on_board(board, graph, x)
    except DoesNotFitError as error:
        pytest.skip(str(error))
    compared = 0
    for index, op in enumerate(graph.ops):
        for row, case in zip(tensors[op.output], golden.values(), strict=True):
            compared += 1
            assert zlib.crc32(row.tobytes()) == case["op_output_crc32"][index], f"{op.kind} number {index}"
    print(f"{model} on {board}: {compared} tensors")


@pytest.mark.parametrize("seed", range(24, 48))
def test_the_integer_executor_equals_tflite_micro_in_every_tensor(seed: int) -> None:
    graph = wide_int8_graph(seed) if seed % 8 == 0 else random_int8_graph(seed)
    x = random_samples(graph, 3, seed)
    right, ours = tflite_micro_tensors(graph, x), host_tensors(graph, x)
    for op in graph.ops:
        np.testing.assert_array_equal(ours[op.output], right[op.output], err_msg=op.name)


def test_debug_plan_gives_every_activation_bytes_of_its_own() -> None:
    for seed in range(60):
        graph = random_int8_graph(seed)
        plan = compile_graph(graph, is_debug=True)
        ranges = {(offset, offset + plan.memory.sizes[name]) for name, offset in plan.memory.offsets.items()}
        ends = sorted(ranges)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(ends)), f"seed {seed}"
        assert plan.header.feature_offset == 0
        assert plan.header.feature_count == plan.header.encoder_bytes == ends[-1][1]


def test_a_wrong_byte_is_found_and_told(monkeypatch, capsys) -> None:
    run_jobs = exactness.run_jobs

    def with_a_wrong_byte(board, jobs):
        results = [result.copy() for result in run_jobs(board, jobs)]
        results[-1][0, 0] ^= 1
        return results

    monkeypatch.setattr(exactness, "run_jobs", with_a_wrong_byte)
    parser = argparse.ArgumentParser()
    bench_verb.exactness.add_arguments(parser)
    assert bench_verb.exactness.run(parser.parse_args(["--graphs", "3", "--board", "posix", "--json"])) == 1
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["graphs"], row["differing_bytes"], row["differences"]) == (3, 1, [[2, "output", 1]])


def test_every_board_that_runs_packages_is_compared() -> None:
    parts = {"stm32f405", "lm3s6965", "nrf51822"}
    assert parts | {"posix", "mps2-m0", "mps2-m3", "mps2-m4", "mps2-m7", "mps3-m55"} <= set(boards_with("fedmote-run"))
    assert set(boards_with("fedmote-run")) <= set(board_names())
    assert all(Board.load(name).run_arena_bytes for name in boards_with("fedmote-run"))
