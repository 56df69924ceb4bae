# SPDX-License-Identifier: Apache-2.0
"""The C encoder against TensorFlow Lite Micro itself: its wheel on random graphs, its recorded bytes on public models."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from fedmote.package.compile import compile_graph
from fedmote.package.graph import Graph
from fedmote.package.importer import cut_graph
from fedmote.package.specimen import random_int8_graph, random_samples
from fedmote.package.tflite_reader import has_softmax, read
from fedmote.package.tflite_writer import write
from firmware_tests import package_builder as fmp
from firmware_tests.native import OK, ROOT, OpenPackage

MODELS = Path(os.environ.get("FEDMOTE_SHARED", ROOT.parent / "shared")) / "models" / "mlperf_tiny"


def device_package(graph: Graph) -> OpenPackage:
    """The graph compiled by `fedmote.package`, in a file written by this folder's own builder."""
    plan = compile_graph(graph)
    head = fmp.head_section(np.zeros((2, plan.header.feature_count)), np.zeros(2))
    sections = [(fmp.MANIFEST, b"\xa0"), (fmp.PLAN, plan.records), (fmp.WEIGHTS, plan.weights), (fmp.HEAD, head)]
    opened = OpenPackage(fmp.assemble(sections))
    assert opened.status == OK
    return opened


@pytest.mark.parametrize("first_seed", range(0, 200, 20))
def test_random_graphs_equal_the_wheel_bit_for_bit(first_seed: int) -> None:
    runtime = pytest.importorskip("tflite_micro").runtime
    for seed in range(first_seed, first_seed + 20):
        graph = random_int8_graph(seed)
        x = random_samples(graph, 8, seed)
        judge = runtime.Interpreter.from_bytes(write(graph), arena_size=1 << 22)

        features = device_package(graph).encode(x.reshape(len(x), -1))

        for row, sample in zip(features, x, strict=True):
            judge.set_input(sample[None], 0)
            judge.invoke()
            np.testing.assert_array_equal(
                row, judge.get_output(0).ravel(), err_msg=f"seed {seed}: {[op.name for op in graph.ops]}"
            )


def lcg_input(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """The input of the recorded runs: the top bytes of a linear congruential generator."""
    state, values = seed, []
    for _ in range(int(np.prod(shape))):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append(state >> 24)
    return np.array(values, np.uint8).view(np.int8)


@pytest.mark.skipif(not MODELS.is_dir(), reason="the MLPerf Tiny models are not beside this repository")
@pytest.mark.parametrize("model", ["kws_ref_model", "pretrainedResnet_quant", "ad01_int8"])
def test_public_models_equal_their_recorded_bytes_operator_by_operator(model: str) -> None:
    data = (MODELS / f"{model}.tflite").read_bytes()
    golden = json.loads((MODELS / "golden_lcg.json").read_text())[model]
    graph = read(data, model, is_softmax_dropped=has_softmax(data, model))
    shape = graph.activations[graph.input].shape
    inputs = {seed: lcg_input(int(seed), shape) for seed in golden["cases"]}

    for index, op in enumerate(graph.ops):
        assert op.kind == golden["op_list"][index]
        seeds = list(inputs) if index == len(graph.ops) - 1 else ["12345"]
        outputs = device_package(cut_graph(graph, op.output)).encode(np.array([inputs[seed] for seed in seeds]))
        for seed, output in zip(seeds, outputs, strict=True):
            recorded = golden["cases"][seed]["op_output_crc32"][index]
            assert zlib.crc32(output.tobytes()) == recorded, f"{op.kind} number {index}, seed {seed}"
