# SPDX-License-Identifier: Apache-2.0
"""Single operators with quantizations far beyond what calibration gives, against TensorFlow Lite Micro."""

import numpy as np
import pytest

from fedmote.errors import PackageError
from fedmote.package import tables
from fedmote.package.compile import compile_graph
from fedmote.package.execute import run_int8
from fedmote.package.graph import ELEMENTWISE, Activation, Activations, Graph, Op, OpKind, Quantization
from fedmote.package.plan_check import check_plan
from fedmote.package.tflite_writer import write

ALL_VALUES = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16, 1)
DRAWS = 120


def quantization(scale, zero_point):
    return Quantization(np.array([scale], np.float32), np.array([zero_point], np.int64))


def any_quantization(rng, low=-9.0, high=3.0):
    zero_point = rng.choice([-128, 0, 127, int(rng.integers(-128, 128))])
    return quantization(float(np.exp(rng.uniform(low, high))), int(zero_point))


def single(op, shape, source, target_shape, target):
    activations = {"x": Activations("x", shape, source), "y": Activations("y", target_shape, target)}
    return Graph("x", "y", activations, (op,))


def differing(graph, x, run):
    plan = compile_graph(graph)
    check_plan(plan.records, plan.weights)
    expected = run(write(graph), x)
    return int((run_int8(graph, x).reshape(expected.shape) != expected).sum())


def elementwise_graph(rng, kind, activation=Activation.NONE):
    source = any_quantization(rng)
    target = tables.fixed_quantization(kind) or any_quantization(rng)
    if kind is OpKind.HARD_SWISH:  # the output may be 128 times finer than the input, no more
        target = quantization(float(source.scale[0]) * float(np.exp(rng.uniform(-4.7, 4))), int(target.zero_point[0]))
    if activation is Activation.RELU6:  # TensorFlow Lite Micro takes the output's quantization for that of the input
        target = source
    alpha = float(np.float32(rng.choice([0.0, 0.01, 0.3, 2.0, -0.5])))
    op = Op(kind, "op", ("x",), "y", activation=activation, alpha=alpha)
    return single(op, ALL_VALUES.shape, source, ALL_VALUES.shape, target)


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_table_equals_tflite_micro_for_every_value(kind, run_tflm):
    rng = np.random.default_rng(ELEMENTWISE.index(kind))
    clamps = [Activation.RELU, Activation.RELU6] if kind is OpKind.RELU else [Activation.NONE]
    for _ in range(DRAWS):
        for activation in clamps:
            graph = elementwise_graph(rng, kind, activation)
            assert differing(graph, ALL_VALUES, run_tflm) == 0, graph


@pytest.mark.parametrize("activation", [Activation.RELU6, Activation.RELU_N1_TO_1])
def test_clamps_with_scales_of_their_own_equal_the_reference_kernels(activation, run_litert):
    rng = np.random.default_rng(1)
    op = Op(OpKind.RELU, "op", ("x",), "y", activation=activation)
    for _ in range(40):
        graph = single(op, ALL_VALUES.shape, any_quantization(rng, -5, 0), ALL_VALUES.shape, any_quantization(rng, -5, 0))
        table = tables.table_of(op, *(graph.activations[name].quantization for name in ("x", "y")))
        if activation is Activation.RELU6:
            assert differing(graph, ALL_VALUES, run_litert) == 0, graph
        real = [
            (np.arange(-128, 128) - q.zero_point[0]) * q.scale[0] for q in (a.quantization for a in graph.activations.values())
        ]
        clamped = np.clip(real[0], *((0, 6) if activation is Activation.RELU6 else (-1, 1)))
        expected = np.clip(clamped, real[1][0], real[1][-1])
        assert np.abs(real[1][table.astype(int) + 128] - expected).max() <= graph.activations["y"].quantization.scale[0]


def test_softmax_equals_tflite_micro(run_tflm):
    rng = np.random.default_rng(2)
    for _ in range(200):
        rows, count = int(rng.integers(1, 4)), int(rng.integers(1, 300))
        beta = float(np.float32(rng.choice([0.1, 0.5, 1.0, 2.0])))
        op = Op(OpKind.SOFTMAX, "op", ("x",), "y", beta=beta)
        shape = (1, rows, count)
        graph = single(op, shape, any_quantization(rng), shape, tables.fixed_quantization(OpKind.SOFTMAX))
        x = rng.integers(-128, 128, (6, rows, count)).astype(np.int8)
        x[0], x[1], x[2], x[3] = -128, 127, x[2] // 16, np.maximum(x[3], 100)
        assert differing(graph, x, run_tflm) == 0, graph


def test_softmax_of_long_rows_gives_nothing_where_all_are_alike():
    op = Op(OpKind.SOFTMAX, "op", ("x",), "y")
    shape = (1, 4095)
    graph = single(op, shape, quantization(0.1, 0), shape, tables.fixed_quantization(OpKind.SOFTMAX))
    x = np.zeros((2, 4095), np.int8)
    x[1, 7] = 127
    out = run_int8(graph, x)
    assert (out[0] == -128).all()
    assert out[1, 7] > 60
    assert (np.delete(out[1], 7) == -128).all()
    longer = single(op, (1, 4096), quantization(0.1, 0), (1, 4096), tables.fixed_quantization(OpKind.SOFTMAX))
    with pytest.raises(PackageError, match="4096 elements"):
        compile_graph(longer)


@pytest.mark.parametrize("kind", [OpKind.LOGISTIC, OpKind.TANH, OpKind.SOFTMAX])
def test_output_quantization_that_the_arithmetic_does_not_make_is_refused(kind):
    graph = single(Op(kind, "op", ("x",), "y"), (1, 8), quantization(0.1, 0), (1, 8), quantization(0.01, 3))
    with pytest.raises(PackageError, match=f"{kind} has the output scale"):
        run_int8(graph, np.zeros((1, 8), np.int8))


@pytest.mark.parametrize("kind", [OpKind.ADD, OpKind.MUL])
@pytest.mark.parametrize("ends", [0, 1, 2, 3, 4])
def test_constant_operand_that_repeats_along_any_axes_equals_tflite_micro(kind, ends, run_tflm):
    rng = np.random.default_rng([3, ends])
    for _ in range(40):
        shape = (1, *(int(size) for size in rng.integers(1, 6, 3)))
        own = tuple(size if rng.random() < 0.6 else 1 for size in shape)[4 - ends :]
        source = any_quantization(rng)
        second = quantization(float(source.scale[0]) * float(np.exp(rng.uniform(-4, 4))), int(rng.integers(-128, 128)))
        largest = max(float(source.scale[0]), float(second.scale[0]))
        product = float(source.scale[0]) * float(second.scale[0])
        scale = largest * np.exp(rng.uniform(-2, 2)) if kind is OpKind.ADD else product * np.exp(rng.uniform(0, 6))
        op = Op(
            kind,
            "op",
            ("x",),
            "y",
            activation=list(Activation)[int(rng.integers(4))],
            constant=rng.integers(-128, 128, own).astype(np.int8),
            constant_quantization=second,
        )
        graph = single(op, shape, source, shape, quantization(float(scale), int(rng.integers(-128, 128))))
        assert differing(graph, rng.integers(-128, 128, (3, *shape[1:])).astype(np.int8), run_tflm) == 0, graph


def dense_graph(rng, rows, bits, is_per_channel):
    inputs, outputs = int(rng.integers(1, 40)), int(rng.integers(2, 20))
    limit = 2 ** (bits - 1)
    source = any_quantization(rng)
    scales = np.exp(rng.uniform(-6, -2, outputs if is_per_channel else 1)).astype(np.float32)
    target_scale = float(source.scale[0]) * float(scales.max()) * limit * float(np.exp(rng.uniform(-1, 4)))
    op = Op(
        OpKind.FULLY_CONNECTED,
        "op",
        ("x",),
        "y",
        weights=rng.integers(-limit, limit, (outputs, inputs)).astype(np.int8),
        weight_bits=bits,
        bias=rng.integers(-2000, 2000, outputs).astype(np.int32),
        weight_quantization=Quantization(scales, np.zeros(len(scales), np.int64)),
    )
    shapes = ((1, inputs), (1, outputs)) if rows == 1 else ((1, rows, inputs), (1, rows, outputs))
    return single(op, shapes[0], source, shapes[1], quantization(target_scale, int(rng.integers(-128, 128))))


@pytest.mark.parametrize(("bits", "is_per_channel"), [(8, True), (8, False), (4, False)])
@pytest.mark.parametrize("rows", [1, 3])
def test_dense_layer_equals_tflite_micro(rows, bits, is_per_channel, run_tflm):
    rng = np.random.default_rng([4, rows, bits])
    for _ in range(40):
        graph = dense_graph(rng, rows, bits, is_per_channel)
        x = rng.integers(-128, 128, (3, *graph.activations["x"].shape[1:])).astype(np.int8)
        assert differing(graph, x, run_tflm) == 0, graph


def test_dense_layer_of_4_bits_with_a_scale_per_channel_equals_that_of_8_bits():
    """TensorFlow Lite Micro refuses this form, so the same weights in 8 bits judge it."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        graph = dense_graph(rng, 1, 4, True)
        wide = Graph("x", "y", graph.activations, (Op(**{**vars(graph.ops[0]), "weight_bits": 8}),))
        x = rng.integers(-128, 128, (5, *graph.activations["x"].shape[1:])).astype(np.int8)
        np.testing.assert_array_equal(run_int8(graph, x), run_int8(wide, x))
        assert len(compile_graph(graph).weights) <= len(compile_graph(wide).weights) - graph.ops[0].weights.size // 2 + 3


@pytest.mark.parametrize("kind", [*ELEMENTWISE, OpKind.SOFTMAX, OpKind.MUL, OpKind.ADD])
@pytest.mark.parametrize(("scale", "target_scale"), [(3e38, 1e-38), (1e-38, 3e38), (1e-38, 1e-38), (3e38, 3e38)])
def test_extreme_scales_are_run_or_refused(kind, scale, target_scale):
    target = tables.fixed_quantization(kind) or quantization(target_scale, 3)
    constant = np.array([-100, 100], np.int8) if kind in (OpKind.MUL, OpKind.ADD) else None
    op = Op(kind, "op", ("x",), "y", alpha=3e38, constant=constant, constant_quantization=quantization(scale, 0))
    graph = single(op, (1, 2), quantization(scale, -5), (1, 2), target)
    try:
        compile_graph(graph)
    except PackageError:
        return
    run_int8(graph, np.array([[-128, 127]], np.int8))


def test_equal_tables_are_stored_once():
    half = quantization(1 / 256, -128)
    names = ["x", "a", "b", "y"]
    activations = {name: Activations(name, (1, 8), half) for name in names}
    ops = tuple(Op(OpKind.LOGISTIC, f"op{i}", (names[i],), names[i + 1]) for i in range(3))
    assert len(compile_graph(Graph("x", "y", activations, ops)).weights) == 256
