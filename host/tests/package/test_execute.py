# SPDX-License-Identifier: Apache-2.0
import json
import zlib
from collections import Counter

import numpy as np
import pytest

from fedmote.errors import ConversionError
from fedmote.package.execute import observe, run_float, run_int8
from fedmote.package.fold import bind
from fedmote.package.graph import BINARY, WEIGHTED, Activation, OpKind
from fedmote.package.quantize import dequantize_values, quantize, quantize_input
from fedmote.package.specimen import random_graph, random_int8_graph, random_samples
from fedmote.package.tflite_reader import read
from fedmote.package.tflite_writer import write

MODELS = ["kws_ref_model", "pretrainedResnet_quant", "ad01_int8"]


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_integer_executor_equals_tflite_micro_in_every_byte(first, run_tflm):
    for seed in range(first, first + 50):
        graph = random_int8_graph(seed)
        x = random_samples(graph, 6, seed)
        expected = run_tflm(write(graph), x)
        differing = int((run_int8(graph, x).reshape(expected.shape) != expected).sum())
        assert differing == 0, f"seed {seed}: {differing} of {expected.size} bytes differ: {[op.name for op in graph.ops]}"


def test_random_graphs_meet_every_operator_with_every_clamp_and_padding():
    met = Counter()
    for seed in range(400):
        graph = random_int8_graph(seed)
        for op in graph.ops:
            met[op.kind] += 1
            met[op.kind, op.activation] += 1
            met[op.kind, op.padding] += 1
            met["4 bits", op.kind] += op.weight_bits == 4
            met["one scale"] += op.weight_quantization is not None and op.weight_quantization.scale.size == 1
            met["grouped"] += op.kind is OpKind.CONV_2D and op.weights.shape[3] < graph.activations[op.inputs[0]].shape[3]
            met["rows"] += op.kind is OpKind.FULLY_CONNECTED and len(graph.activations[op.output].shape) > 2
            met["constant", op.kind] += op.constant is not None
            met["padded with a value"] += op.pad_value is not None
            if op.kind in BINARY and op.constant is None:
                first, second = (graph.activations[name].shape for name in op.inputs)
                met["repeated", op.kind] += np.prod(first) != np.prod(second)
            met["reversed"] += any(step < 0 for step in op.steps)
            met["dilated"] += op.dilation != (1, 1)
            met["multiplied"] += op.depth_multiplier > 1
            met["strided"] += max(op.stride) > 1
    convolutions = (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D)
    wanted = [*OpKind, "dilated", "multiplied", "strided", "one scale", "grouped", "rows", "padded with a value", "reversed"]
    wanted += [("4 bits", kind) for kind in WEIGHTED]
    wanted += [(what, kind) for kind in BINARY for what in ("constant", "repeated")]
    wanted += [(kind, clamp) for kind in (*convolutions, *BINARY, OpKind.FULLY_CONNECTED) for clamp in Activation]
    wanted += [(kind, padding) for kind in convolutions for padding in ("SAME", "VALID")]
    wanted += [(OpKind.RELU, Activation.RELU), (OpKind.RELU, Activation.RELU6)]
    assert [what for what in wanted if met[what] < 5] == []


def test_integer_executor_is_within_two_steps_of_litert_and_equal_without_dense_layers(run_litert):
    for seed in range(60):
        graph = random_int8_graph(seed)
        x = random_samples(graph, 4, seed)
        expected = run_litert(write(graph), x)
        difference = np.abs(run_int8(graph, x).reshape(expected.shape).astype(int) - expected)
        limit = 2 if any(op.kind is OpKind.FULLY_CONNECTED for op in graph.ops) else 0
        assert difference.max() <= limit, f"seed {seed}: {difference.max()} steps"


@pytest.mark.parametrize("name", MODELS)
def test_reference_models_equal_the_values_measured_on_a_cortex_m4(name, reference_models):
    golden = json.loads((reference_models / "golden_lcg.json").read_text())[name]
    graph = read((reference_models / f"{name}.tflite").read_bytes(), name)
    shape = graph.activations[graph.input].shape
    assert golden["cases"]
    for seed, case in golden["cases"].items():
        checksums = []
        run_int8(graph, _lcg(int(seed), shape), lambda _, values, into=checksums: into.append(zlib.crc32(values.tobytes())))
        assert checksums == case["op_output_crc32"], f"input {seed}"


@pytest.mark.parametrize("name", MODELS)
def test_reference_models_written_again_give_the_same_bytes_in_tflite_micro(name, reference_models, run_tflm):
    data = (reference_models / f"{name}.tflite").read_bytes()
    graph = read(data, name)
    x = random_samples(graph, 3, 11)
    expected = run_tflm(data, x)
    np.testing.assert_array_equal(run_int8(graph, x), expected)
    np.testing.assert_array_equal(run_tflm(write(graph), x), expected)


def _lcg(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    values = np.empty(int(np.prod(shape)), np.uint8)
    for i in range(values.size):
        seed = (seed * 1664525 + 1013904223) % 2**32
        values[i] = seed >> 24
    return values.view(np.int8).reshape(shape)


def test_result_does_not_depend_on_how_samples_are_batched():
    graph = random_int8_graph(3)
    x = random_samples(graph, 40, 3)
    np.testing.assert_array_equal(run_int8(graph, x), np.concatenate([run_int8(graph, one[None]) for one in x]))


def test_quantized_features_follow_the_float_features(template, checkpoint, samples):
    graph = bind(template, checkpoint(1))
    x = samples.transpose(0, 2, 3, 1)
    int8 = quantize(graph, observe(graph, x))
    exact = run_float(graph, x)
    noise = dequantize_values(int8.activations["f"], run_int8(int8, quantize_input(int8, x))) - exact
    assert 10 * np.log10((exact**2).sum() / (noise**2).sum()) > 30  # dB, limit of the design


def test_observed_ranges_are_the_true_minimum_and_maximum():
    graph = random_graph(5)
    x = np.random.default_rng(5).normal(size=(30, *graph.activations["x"].shape[1:])).astype(np.float32)
    seen = {}
    run_float(graph, x, lambda name, values: seen.setdefault(name, []).append(values))
    ranges = observe(graph, x)
    assert set(ranges) == set(graph.activations)
    for name, blocks in seen.items():
        values = np.concatenate(blocks)
        assert ranges[name] == (values.min(), values.max())


def test_float_executor_agrees_with_torch(template, checkpoint, samples):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    t = {name: torch.from_numpy(value) for name, value in checkpoint(4).items()}
    c = functional.conv2d(torch.from_numpy(samples), t["conv.weight"], padding=1)
    c = functional.batch_norm(c, t["norm.running_mean"], t["norm.running_var"], t["norm.weight"], t["norm.bias"], eps=1e-5)
    p = functional.max_pool2d(functional.relu(c), 2)
    d = functional.conv2d(p, t["depthwise.weight"], t["depthwise.bias"], padding=1, groups=8)
    m = functional.relu6(p + d).mean(dim=(2, 3))
    expected = functional.relu(functional.linear(m, t["dense.weight"], t["dense.bias"])).numpy()
    actual = run_float(bind(template, checkpoint(4)), samples.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_samples_of_another_shape_or_type_are_refused():
    graph = random_int8_graph(1)
    shape = graph.activations[graph.input].shape
    with pytest.raises(ConversionError, match="channels last"):
        run_int8(graph, np.zeros((2, *shape[1:-1], shape[-1] + 1), np.int8))
    with pytest.raises(ConversionError, match="int8 samples"):
        run_int8(graph, np.zeros((2, *shape[1:]), np.uint8))
    with pytest.raises(ConversionError, match="no calibration samples"):
        observe(random_graph(1), np.zeros((0, *shape[1:]), np.float32))
