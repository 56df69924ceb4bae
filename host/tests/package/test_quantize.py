# SPDX-License-Identifier: Apache-2.0
import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from fedmote.errors import ConversionError, PackageError
from fedmote.package.execute import run_float, run_int8
from fedmote.package.fixed_point import quantize_multiplier, requantize, weighted_requantization
from fedmote.package.fold import bind, parameter_names
from fedmote.package.graph import WEIGHTED, Activation, Activations, BatchNormRef, Graph, Op, OpKind, Quantization, WeightRef
from fedmote.package.host_manifest import HostManifest
from fedmote.package.quantize import (
    activation_quantization,
    mean_sums,
    observation_points,
    quantize,
    quantize_input,
    quantize_values,
    significant,
)
from fedmote.package.tflite_writer import write


def dense_graph(weights, bias, activation=Activation.NONE):
    weights, bias = np.asarray(weights, np.float32), np.asarray(bias, np.float32)
    op = Op(OpKind.FULLY_CONNECTED, "dense", ("x",), "y", activation=activation, weights=weights, bias=bias)
    activations = {"x": Activations("x", (1, weights.shape[1])), "y": Activations("y", (1, weights.shape[0]))}
    return Graph("x", "y", activations, (op,))


def test_zero_is_exact_in_every_range():
    for low, high in [(-1.0, 2.0), (0.0, 6.0), (3.0, 7.0), (-7.0, -3.0), (-1e-6, 1e6), (-128.0, 127.0)]:
        quantization = activation_quantization("a", low, high)
        zero_point = int(quantization.zero_point[0])
        assert -128 <= zero_point <= 127
        reach = (float(quantization.scale[0]) * (-128 - zero_point), float(quantization.scale[0]) * (127 - zero_point))
        step = float(quantization.scale[0])
        assert reach[0] <= min(low, 0.0) + 0.51 * step
        assert reach[1] >= max(high, 0.0) - 0.51 * step


@pytest.mark.parametrize(
    ("low", "high", "what"),
    [(0.0, 0.0, "constant"), (2.0, 2.0, "constant"), (1.0, -1.0, "empty"), (float("nan"), 1.0, "not finite"),
     (0.0, float("inf"), "not finite"), (0.0, 1e-44, "no float32 scale"), (-1e300, 1e300, "no float32 scale")],
)  # fmt: skip
def test_unusable_ranges_are_refused_with_the_name_of_the_activation(low, high, what):
    with pytest.raises(ConversionError, match=rf"activation conv1: .*{what}"):
        activation_quantization("conv1", low, high)


def test_missing_range_is_refused_by_name():
    with pytest.raises(ConversionError, match="activation y: no range"):
        quantize(dense_graph([[1.0]], [0.0]), {"x": (-1.0, 1.0)})


def test_quantization_equals_a_calculation_by_hand():
    graph = quantize(dense_graph([[1.27, -0.5], [0.02, 0.008]], [0.1, -0.02]), {"x": (-1.28, 1.27), "y": (0.0, 2.55)})
    op = graph.ops[0]
    np.testing.assert_array_equal(op.weights, [[127, -50], [127, 51]])  # -0.5 / 0.01 and 0.008 / 0.0001575
    np.testing.assert_allclose(op.weight_quantization.scale, [0.01, 0.02 / 127], rtol=1e-6)
    np.testing.assert_array_equal(op.bias, [round(0.1 / 1e-4), round(-0.02 / (0.01 * 0.02 / 127))])
    assert graph.activations["x"].quantization.zero_point[0] == 0
    assert graph.activations["y"].quantization.zero_point[0] == -128
    x = quantize_input(graph, np.array([[1.0, -1.0]], np.float32))
    np.testing.assert_array_equal(x, [[100, -100]])
    np.testing.assert_array_equal(run_int8(graph, x), [[59, -128]])  # 1.27 + 0.5 + 0.1 = 1.87; 0.012 - 0.02 < 0


def test_dead_channel_with_a_bias_keeps_its_value(run_tflm):
    graph = dense_graph([[0.0, 0.0], [1e-30, -1e-30], [1.0, 1.0], [0.0, 0.0]], [0.75, -0.5, 0.0, 0.0])
    int8 = quantize(graph, {"x": (-1.0, 1.0), "y": (-1.0, 2.0)})
    x = quantize_input(int8, np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32))
    y = run_int8(int8, x)
    quantization = int8.activations["y"].quantization
    real = (y.astype(float) - quantization.zero_point[0]) * quantization.scale[0]
    np.testing.assert_allclose(real[:, [0, 1, 3]], np.tile([0.75, -0.5, 0.0], (20, 1)), atol=float(quantization.scale[0]))
    np.testing.assert_array_equal(y, run_tflm(write(int8), x))


def test_bias_that_would_leave_int32_widens_the_scale_of_its_channel():
    graph = dense_graph([[1e-9], [1.0]], [100.0, 100.0])
    int8 = quantize(graph, {"x": (-1e-3, 1e-3), "y": (0.0, 110.0)})
    assert np.abs(int8.ops[0].bias.astype(np.int64)).max() <= 2**30
    y = run_int8(int8, np.zeros((1, 1), np.int8))
    quantization = int8.activations["y"].quantization
    np.testing.assert_allclose((y.astype(float) - quantization.zero_point[0]) * quantization.scale[0], 100.0, rtol=0.01)


def test_output_range_too_narrow_for_int32_arithmetic_is_refused():
    with pytest.raises(ConversionError, match="dense: the accumulator can exceed int32"):
        quantize(dense_graph([[1.0]], [0.0]), {"x": (-1e6, 1e6), "y": (0.0, 1e-6)})


def test_relu6_clamps_at_six_though_the_range_goes_further():
    graph = quantize(dense_graph([[1.0]], [0.0], Activation.RELU6), {"x": (-20.0, 20.0), "y": (0.0, 12.0)})
    y = run_int8(graph, np.array([[-128], [127]], np.int8))
    quantization = graph.activations["y"].quantization
    real = (y.astype(float) - quantization.zero_point[0]) * quantization.scale[0]
    np.testing.assert_allclose(real, [[0.0], [6.0]], atol=float(quantization.scale[0]) / 2)


def test_moving_operators_keep_the_quantization_of_their_input():
    shapes = {"x": (1, 4, 4, 2), "p": (1, 6, 6, 2), "m": (1, 3, 3, 2), "a": (1, 1, 1, 2), "r": (1, 2), "k": (1, 2)}
    ops = (
        Op(OpKind.PAD, "pad", ("x",), "p", pads=(1, 1, 1, 1)),
        Op(OpKind.MAX_POOL_2D, "max", ("p",), "m", kernel=(2, 2), stride=(2, 2)),
        Op(OpKind.AVERAGE_POOL_2D, "average", ("m",), "a", kernel=(3, 3)),
        Op(OpKind.RESHAPE, "flatten", ("a",), "r"),
        Op(OpKind.RELU, "clamp", ("r",), "k", activation=Activation.RELU6),
    )
    graph = Graph("x", "k", {name: Activations(name, shape) for name, shape in shapes.items()}, ops)
    assert observation_points(graph) == ("x",)
    # ranges that were observed at tied activations, however wild, change nothing
    int8 = quantize(graph, {"x": (-1.0, 3.0), "p": (-50.0, 50.0), "r": (0.0, 0.0)})
    assert {float(a.quantization.scale[0]) for a in int8.activations.values()} == {float(np.float32(4.0 / 255))}


def test_samples_saturate_and_must_be_finite():
    graph = quantize(dense_graph([[1.0]], [0.0]), {"x": (-1.0, 1.0), "y": (-1.0, 1.0)})
    np.testing.assert_array_equal(quantize_input(graph, np.array([[-9.0], [9.0]], np.float32)), [[-128], [127]])
    with pytest.raises(ConversionError, match="not finite"):
        quantize_input(graph, np.array([[np.nan]], np.float32))


def test_multipliers_hold_31_bits_and_vanish_below_the_last():
    multiplier, shift = quantize_multiplier(np.array([1.0, 0.5, 0.75, 1 - 2.0**-40, 2.0**-33, 0.0, 3.0]))
    np.testing.assert_array_equal(multiplier, [2**30, 2**30, 3 * 2**29, 2**30, 0, 0, 3 * 2**29])
    np.testing.assert_array_equal(shift, [1, 0, 0, 1, 0, 0, 2])


def test_requantization_rounds_twice_first_half_up_then_half_away_from_zero():
    values = np.array([5, -5, 6, -6, 7, -7], np.int64)
    np.testing.assert_array_equal(requantize(values, 2**30, 1), values)  # 1.0
    np.testing.assert_array_equal(requantize(values, 2**30, -1), [2, -1, 2, -2, 2, -2])  # 0.25: 3 -2 3 -3 4 -3 first


def test_folding_gives_what_the_layers_give_one_after_the_other():
    rng = np.random.default_rng(2)
    norms = tuple(BatchNormRef(*(f"n{i}.{part}" for part in ("w", "b", "m", "v")), eps=1e-3) for i in range(2))
    tensors = {"w": rng.normal(size=(3, 5)), "b": rng.normal(size=3)}
    tensors |= {f"n{i}.{part}": rng.uniform(0.5, 2, 3) for i in range(2) for part in ("w", "b", "m", "v")}
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    graph = dense_graph(np.zeros((3, 5)), np.zeros(3))
    template = replace(graph, ops=(replace(graph.ops[0], weights=None, bias=None, source=WeightRef("w", "b", norms, "linear")),))
    assert set(parameter_names(template)) == set(tensors)
    x = rng.normal(size=(7, 5)).astype(np.float32)
    expected = x @ tensors["w"].T + tensors["b"]
    for i in range(2):
        t = {part: tensors[f"n{i}.{part}"] for part in ("w", "b", "m", "v")}
        expected = (expected - t["m"]) / np.sqrt(t["v"] + 1e-3) * t["w"] + t["b"]
    np.testing.assert_allclose(run_float(bind(template, tensors), x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_norm_in_front_of_a_convolution_is_folded_into_the_weights_of_its_groups(groups):
    rng = np.random.default_rng(12)
    norm = BatchNormRef(None, "b", "m", "v", eps=1e-3)
    tensors = {"w": rng.normal(size=(8, 4 // groups, 1, 1)), "c": rng.normal(size=8)}
    tensors |= {name: rng.uniform(0.5, 2, 4) for name in ("b", "m", "v")}
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    source = WeightRef("w", "c", layout="conv2d", input_norm=(norm,))
    activations = {"x": Activations("x", (1, 3, 3, 4)), "y": Activations("y", (1, 3, 3, 8))}
    template = Graph("x", "y", activations, (Op(OpKind.CONV_2D, "conv", ("x",), "y", source=source),))
    assert parameter_names(template) == ("w", "c", "b", "m", "v")
    x = rng.normal(size=(5, 3, 3, 4)).astype(np.float32)

    plain = replace(template, ops=(replace(template.ops[0], source=replace(source, input_norm=())),))
    normed = ((x - tensors["m"]) / np.sqrt(tensors["v"] + 1e-3) + tensors["b"]).astype(np.float32)

    expected = run_float(bind(plain, tensors), normed)
    np.testing.assert_allclose(run_float(bind(template, tensors), x), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_that_stands_alone_over_a_flattened_image_has_its_order():
    rng = np.random.default_rng(13)
    names = ("g", "b", "m", "v")
    tensors = {name: rng.uniform(0.5, 2, 24).astype(np.float32) for name in names}
    source = WeightRef("m", None, (BatchNormRef(*names, eps=0.0),), layout="batch_norm", chw=(2, 3, 4))
    activations = {name: Activations(name, (1, 1, 1, 24)) for name in ("x", "y")}
    template = Graph("x", "y", activations, (Op(OpKind.DEPTHWISE_CONV_2D, "norm", ("x",), "y", source=source),))
    image = rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    expected = (image.reshape(-1) - tensors["m"]) / np.sqrt(tensors["v"]) * tensors["g"] + tensors["b"]

    actual = run_float(bind(template, tensors), image.transpose(0, 2, 3, 1).reshape(1, 1, 1, 24))

    channels_last = expected.reshape(2, 3, 4).transpose(1, 2, 0).reshape(-1)
    np.testing.assert_allclose(actual.reshape(-1), channels_last, rtol=1e-4)


def test_a_constant_of_the_checkpoint_is_transposed_to_the_order_of_the_graph():
    source = WeightRef("offset", None, layout="constant", axes=(3, 2, 1), order=(1, 2, 0))
    activations = {name: Activations(name, (1, 2, 5, 3)) for name in ("x", "y")}
    template = Graph("x", "y", activations, (Op(OpKind.ADD, "add", ("x",), "y", source=source),))
    offset = np.arange(6, dtype=np.float32).reshape(1, 3, 2, 1)

    bound = bind(template, {"offset": offset})

    expected = np.broadcast_to(offset.transpose(0, 2, 3, 1), (1, 2, 5, 3))
    np.testing.assert_array_equal(run_float(bound, np.zeros((1, 2, 5, 3), np.float32)), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (WeightRef("t", None, layout="constant", axes=(3, 2), order=(1, 0)), r"t of shape \(24,\) does not match \(3, 2\)"),
        (WeightRef("t", None, layout="constant", axes=(4, 6), order=(0, 0)), "does not match"),
        (WeightRef("t", None, layout="batch_norm", chw=(2, 3, 5)), r"24 values does not match a flattened \(2, 3, 5\)"),
        (WeightRef("t", None, layout="linear", input_norm=(BatchNormRef(None, None, "t", "t", 1.0),)), "do not suit 't' of 24"),
    ],
)
def test_a_reference_that_does_not_suit_its_tensor_is_refused_by_name(source, message):
    activations = {name: Activations(name, (1, 1, 1, 24)) for name in ("x", "y")}
    template = Graph("x", "y", activations, (Op(OpKind.DEPTHWISE_CONV_2D, "op", ("x",), "y", source=source),))
    with pytest.raises(ConversionError, match=message):
        bind(template, {"t": np.ones(24, np.float32)})


def test_flattened_inputs_are_regrouped_to_channels_last():
    rng = np.random.default_rng(3)
    weight, image = rng.normal(size=(4, 24)).astype(np.float32), rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    graph = dense_graph(np.zeros((4, 24)), np.zeros(4))
    source = WeightRef("w", None, layout="linear_chw", chw=(2, 3, 4))
    template = replace(graph, ops=(replace(graph.ops[0], weights=None, bias=None, source=source),))
    channels_last = image.transpose(0, 2, 3, 1).reshape(1, 24)
    np.testing.assert_allclose(
        run_float(bind(template, {"w": weight}), channels_last), image.reshape(1, 24) @ weight.T, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": None}, "no tensor 'w'"),
        ({"w": np.full((4, 24), np.nan)}, "not finite"),
        ({"w": np.zeros((4, 5))}, "does not match"),
    ],
)
def test_wrong_checkpoint_tensors_are_refused_by_name(change, message):
    tensors = {name: value for name, value in change.items() if value is not None}
    op = Op(OpKind.FULLY_CONNECTED, "fc", ("x",), "y", source=WeightRef("w", None, layout="linear_chw", chw=(2, 3, 4)))
    template = Graph("x", "y", {"x": Activations("x", (1, 24)), "y": Activations("y", (1, 4))}, (op,))
    with pytest.raises(ConversionError, match=message):
        bind(template, tensors)


def test_halves_are_rounded_away_from_zero_as_the_converter_of_tensorflow_lite_does():
    activation = Activations("a", (1, 6), Quantization(np.array([1.0], np.float32), np.array([0], np.int64)))
    values = quantize_values(activation, np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32))
    np.testing.assert_array_equal(values, [1, 2, 3, -1, -2, -3])


def concatenation_graph():
    """The input, its LOGISTIC and a product of itself, side by side."""
    shapes = {"x": (1, 4), "l": (1, 4), "m": (1, 4), "r": (1, 2, 2), "f": (1, 4), "y": (1, 16)}
    ops = (
        Op(OpKind.LOGISTIC, "logistic", ("x",), "l"),
        Op(OpKind.MUL, "mul", ("x", "x"), "m"),
        Op(OpKind.RESHAPE, "reshape", ("m",), "r"),
        Op(OpKind.RESHAPE, "back", ("r",), "f"),
        Op(OpKind.CONCATENATION, "cat", ("x", "l", "f", "l"), "y", axis=1),
    )
    return Graph("x", "y", {name: Activations(name, shape) for name, shape in shapes.items()}, ops)


def test_what_a_concatenation_joins_has_one_range_and_the_input_keeps_its_own():
    graph = concatenation_graph()
    assert observation_points(graph) == ("x", "m")
    ranges = {"x": (-3.0, 2.0), "m": (0.0, 9.0)}
    int8 = quantize(graph, ranges)
    joined = {name: int8.activations[name].quantization for name in (*int8.ops[-1].inputs, "m", "r", "f", "y")}
    assert len({(float(q.scale[0]), int(q.zero_point[0])) for q in joined.values()}) == 1
    assert joined["y"].scale[0] == np.float32(12 / 255)  # from -3 of the input to 9 of the product
    assert [op.kind for op in int8.ops].count(OpKind.QUANTIZE) == 3
    assert int8.activations["l"].quantization.scale[0] == np.float32(1 / 256)
    wider = quantize(graph, {**ranges, "m": (-50.0, 90.0)})
    assert wider.activations["x"].quantization.scale[0] == int8.activations["x"].quantization.scale[0]
    assert int8.activations["x"].quantization.scale[0] == np.float32(5 / 255)


def equalised_graph(rng, kind):
    """One operator with factors and means, its template, and the tensors: conv (2 groups), depthwise or dense."""
    shapes = {OpKind.CONV_2D: (6, 2, 3, 3), OpKind.DEPTHWISE_CONV_2D: (8, 1, 3, 3), OpKind.FULLY_CONNECTED: (6, 4)}
    layouts = {OpKind.CONV_2D: "conv2d", OpKind.DEPTHWISE_CONV_2D: "depthwise2d", OpKind.FULLY_CONNECTED: "linear"}
    outputs = shapes[kind][0]
    factors = rng.uniform(0.3, 3, outputs).astype(np.float32), rng.uniform(0.3, 3, 4).astype(np.float32)
    source = WeightRef("w", "b", layout=layouts[kind], output_factors=factors[0], input_factors=factors[1])
    image = kind is not OpKind.FULLY_CONNECTED
    multiplier = outputs // 4 if kind is OpKind.DEPTHWISE_CONV_2D else 1
    means = {"float_means": rng.normal(size=4).astype(np.float32), "int8_means": rng.normal(size=4).astype(np.float32)}
    op = Op(kind, "op", ("x",), "y", padding="SAME", kernel=(3, 3), depth_multiplier=multiplier, source=source, **means)
    activations = {"x": Activations("x", (1, 5, 5, 4) if image else (1, 4))}
    activations["y"] = Activations("y", (1, 5, 5, outputs) if image else (1, outputs))
    tensors = {"w": rng.normal(size=shapes[kind]).astype(np.float32), "b": rng.normal(size=outputs).astype(np.float32)}
    return Graph("x", "y", activations, (op,)), tensors, factors


@pytest.mark.parametrize("kind", WEIGHTED)
def test_factors_multiply_what_is_read_and_what_is_made(kind):
    rng = np.random.default_rng(4)
    template, tensors, (outputs, inputs) = equalised_graph(rng, kind)
    plain = replace(template.ops[0], source=replace(template.ops[0].source, output_factors=None, input_factors=None))
    x = rng.normal(size=(3, *template.activations["x"].shape[1:])).astype(np.float32)
    expected = run_float(bind(replace(template, ops=(plain,)), tensors), x * inputs) * outputs
    np.testing.assert_allclose(run_float(bind(template, tensors), x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_means_of_sums_are_those_of_an_input_that_is_constant_in_each_channel(kind):
    rng = np.random.default_rng(5)
    template, tensors, _ = equalised_graph(rng, kind)
    graph = bind(template, tensors)
    op = graph.ops[0]
    x = np.broadcast_to(op.float_means, (1, *template.activations["x"].shape[1:]))
    made = run_float(graph, x) - np.asarray(op.bias)
    means = mean_sums(op, np.asarray(op.weights, np.float64), template.activations["x"].shape, op.float_means)
    np.testing.assert_allclose(made.reshape(-1, len(means)).mean(axis=0), means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_correction_takes_back_what_rounding_does_to_the_means(kind):
    template, tensors, _ = equalised_graph(np.random.default_rng(6), kind)
    template = replace(template, ops=(replace(template.ops[0], weight_bits=4, int8_means=template.ops[0].float_means),))
    graph = bind(template, tensors)
    shape, ranges = template.activations["x"].shape, {"x": (-3.0, 3.0), "y": (-50.0, 50.0)}
    op = quantize(graph, ranges).ops[0]
    axis = op.weight_quantization.axis
    scales = op.weight_quantization.scale.astype(np.float64).reshape([-1 if i == axis else 1 for i in range(op.weights.ndim)])
    step = float(np.float32(6 / 255)) * scales.reshape(-1)
    made = mean_sums(op, op.weights * scales, shape, op.float_means) + op.bias * step
    exact = mean_sums(op, np.asarray(graph.ops[0].weights, np.float64), shape, op.float_means) + graph.ops[0].bias
    assert np.abs(made - exact).max() <= step.max() / 2 * 1.001


@pytest.mark.parametrize("change", [{"output_factors": np.ones(3, np.float32)}, {"input_factors": np.zeros(4, np.float32)}])
def test_factors_of_another_length_or_sign_are_refused(change):
    template, tensors, _ = equalised_graph(np.random.default_rng(7), OpKind.CONV_2D)
    op = replace(template.ops[0], source=replace(template.ops[0].source, **change))
    with pytest.raises(ConversionError, match=r"op: .* positive equalisation factors"):
        bind(replace(template, ops=(op,)), tensors)


def test_means_of_another_length_are_refused():
    template, tensors, _ = equalised_graph(np.random.default_rng(8), OpKind.CONV_2D)
    op = replace(template.ops[0], float_means=np.ones(5, np.float32))
    with pytest.raises(ConversionError, match="op: 4 finite means"):
        quantize(bind(replace(template, ops=(op,)), tensors), {"x": (-1.0, 1.0), "y": (-9.0, 9.0)})


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_host_manifest_keeps_factors_and_means_exactly(kind):
    template, _, _ = equalised_graph(np.random.default_rng(9), kind)
    template = replace(template, ops=(replace(template.ops[0], has_one_scale=True, scale_bits=16, has_even_divisors=True),))
    manifest = HostManifest("m", 1, "posix", "nf", (), template, {"x": (-1.0, 1.0)})
    read = HostManifest.from_bytes(manifest.to_bytes())
    before, after = template.ops[0], read.template.ops[0]
    assert read.to_bytes() == manifest.to_bytes()
    assert after.has_one_scale
    assert after.scale_bits == 16
    assert after.has_even_divisors
    for owner, names in (("", ("float_means", "int8_means")), ("source", ("output_factors", "input_factors"))):
        for name in names:
            one, two = ((getattr(op, owner) if owner else op) for op in (before, after))
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), strict=True)


def test_significant_bits_are_kept_by_rounding_as_it_is_asked_for():
    values = np.array([0.0, 1.0, -3.0, 1 + 2**-12, 4095.5, 2**-140 * (1 + 2**-12), np.inf])

    np.testing.assert_array_equal(significant(values, 12), [0, 1, -3, 1, 4096, 2**-140, np.inf])
    np.testing.assert_array_equal(significant(values, 12, np.ceil), [0, 1, -3, 1 + 2**-11, 4096, 2**-140 * (1 + 2**-11), np.inf])


@pytest.mark.parametrize("has_one_scale", [False, True])
@pytest.mark.parametrize("kind", WEIGHTED)
def test_weight_scales_of_few_bits_are_the_next_larger_ones(kind, has_one_scale):
    template, tensors, _ = equalised_graph(np.random.default_rng(11), kind)
    ranges = {"x": (-3.0, 3.0), "y": (-50.0, 50.0)}
    scales = []
    for bits in (24, 10):
        op = replace(template.ops[0], scale_bits=bits, has_one_scale=has_one_scale)
        scales.append(quantize(bind(replace(template, ops=(op,)), tensors), ranges).ops[0].weight_quantization.scale)

    assert (scales[1] > scales[0]).all()
    assert (scales[1] <= scales[0] * (1 + 2.0**-9)).all()
    np.testing.assert_array_equal(significant(scales[1], 10), scales[1])


def sums_rounded_otherwise_by_floats(graph):
    """How many sums a dense layer's integer arithmetic and one rounding of the real product requantize differently, of all."""
    op = graph.ops[0]
    source, target = graph.activations["x"].quantization, graph.activations["y"].quantization
    reals = np.float64(source.scale[0]) * op.weight_quantization.scale.astype(np.float64) / np.float64(target.scale[0])
    numbers = weighted_requantization(op, source, target)
    count = 0
    for channel, real in enumerate(np.broadcast_to(reals, numbers.shift.shape)):
        reach = int(255 / real)  # beyond, both are saturated
        sums = np.arange(-reach, reach + 1)
        once = np.trunc(sums * real + np.copysign(0.5, sums)).astype(np.int64)
        count += int((once != requantize(sums, numbers.multiplier[channel], numbers.shift[channel])).sum())
    return count


@pytest.mark.parametrize("has_one_scale", [False, True])
@pytest.mark.parametrize("high", [2.0, 8.0, 20.0])
def test_with_even_divisors_no_sum_is_rounded_otherwise_by_who_rounds_once(has_one_scale, high):
    rng = np.random.default_rng(13)
    graph = dense_graph(rng.uniform(0.5, 1.0, (64, 1)) * rng.choice([-1, 1], (64, 8)), np.zeros(64))
    op = replace(graph.ops[0], has_one_scale=has_one_scale)
    plain, even = (
        quantize(replace(graph, ops=(replace(op, has_even_divisors=is_even),)), {"x": (-3.0, 3.0), "y": (-high, high)})
        for is_even in (False, True)
    )
    scales = [made.ops[0].weight_quantization.scale for made in (plain, even)]

    assert sums_rounded_otherwise_by_floats(plain) > 0
    assert sums_rounded_otherwise_by_floats(even) == 0
    assert (scales[1] >= scales[0]).all()
    assert (scales[1] <= scales[0] * (1 + 1 / 31)).all()


@pytest.mark.parametrize("high", [0.5, 1.0e6])
def test_scales_without_an_even_divisor_near_by_are_left(high):
    graph = dense_graph(np.full((3, 4), 1.0), np.zeros(3))
    made = [
        quantize(replace(graph, ops=(replace(graph.ops[0], has_even_divisors=is_even),)), {"x": (-3.0, 3.0), "y": (-high, high)})
        for is_even in (False, True)
    ]

    assert write(made[0]) == write(made[1])


@pytest.mark.parametrize("bits", [0, 1, 25])
def test_weight_scales_of_impossible_bits_are_refused(bits):
    template, tensors, _ = equalised_graph(np.random.default_rng(12), OpKind.CONV_2D)
    graph = bind(replace(template, ops=(replace(template.ops[0], scale_bits=bits),)), tensors)

    with pytest.raises(ConversionError, match=f"op: weight scales of {bits} bits; expected 2 to 24"):
        quantize(graph, {"x": (-3.0, 3.0), "y": (-50.0, 50.0)})


def test_a_damaged_vector_of_a_host_manifest_is_refused():
    template, _, _ = equalised_graph(np.random.default_rng(10), OpKind.CONV_2D)
    good = json.loads(HostManifest("m", 1, "posix", "nf", (), template, {}).to_bytes())
    for damage in ("", "AAA", "AACAfw==", 5):  # empty, no Base64, infinity, no text
        bad = copy.deepcopy(good)
        bad["template"]["ops"][0]["float_means"] = damage
        with pytest.raises(PackageError, match="host manifest is malformed"):
            HostManifest.from_bytes(json.dumps(bad).encode())
