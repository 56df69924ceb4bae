# SPDX-License-Identifier: Apache-2.0
"""Each ONNX operator: the captured graph, run in float32 after every pass, equals the standard's reference implementation."""

import numpy as np
import pytest

from fedmote.errors import UnsupportedOpError
from fedmote.package.graph import OpKind
from fedmote_convert.onnx_capture import capture_onnx

from .conftest import every_pass_computes, samples_channels_last
from .onnx_models import model_of, node, saved

IMAGE = (1, 3, 7, 8)
SEQUENCE = (1, 3, 11)
FEATURES = (1, 6)
REVERSED = np.array([[6], [0], [2], [-1]])  # starts, ends, axes, steps
PRODUCT_OF_ACTIVATIONS = [node("Transpose", "s", "t", perm=[0, 1, 3, 2]), node("MatMul", "s t")]
STEM = {IMAGE: (3, 3, 1, 1), SEQUENCE: (3, 3, 1)}


def random(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def equal_reference(tmp_path):
    """Captures a model and compares its graph after every pass that leaves it executable; returns the last graph."""

    def check(nodes, shape, constants=None, **more):
        captured = capture_onnx(saved(model_of(nodes, shape, constants, **more), tmp_path / "model.onnx"))
        x = random(4, *captured.sample_shape, seed=7)
        return every_pass_computes(captured, x, samples_channels_last(captured.reference(x)))

    return check


@pytest.fixture
def behind_stem(equal_reference):
    """As `equal_reference`, for nodes that read the activation s of a 1 x 1 convolution."""

    def check(nodes, shape=IMAGE, constants=None, **more):
        stem = {"stem.weight": random(*STEM[shape]), "stem.bias": random(3)}
        return equal_reference(
            [node("Conv", "x stem.weight stem.bias", "s"), *nodes], shape, {**stem, **(constants or {})}, **more
        )

    return check


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 0]},
        {"pads": [1, 0, 1, 2], "strides": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID", "strides": [1, 3]},
        {"dilations": [2, 1], "pads": [2, 0, 2, 0]},
        {"kernel_shape": [3, 3], "strides": [3, 2]},
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_is_that_of_the_standard(equal_reference, attributes, bias):
    constants = {"w": random(4, 3, 3, 3), "b": random(4)}

    equal_reference([node("Conv", "x w b" if bias else "x w", **attributes)], IMAGE, constants)


def test_grouped_and_depthwise_convolutions_are_told_apart(equal_reference):
    depthwise = equal_reference([node("Conv", "x w", group=3, pads=[1, 1, 1, 1])], IMAGE, {"w": random(6, 1, 3, 3)})
    grouped = equal_reference([node("Conv", "x w", group=2)], (1, 4, 5, 5), {"w": random(6, 2, 3, 3)})

    assert [op.kind for op in depthwise.ops] == [OpKind.DEPTHWISE_CONV_2D]
    assert [op.kind for op in grouped.ops] == [OpKind.CONV_2D]


@pytest.mark.parametrize("attributes", [{"pads": [2, 2]}, {"pads": [4, 0], "dilations": [2]}, {"auto_pad": "SAME_UPPER"}])
def test_a_convolution_over_time_is_that_of_the_standard(equal_reference, attributes):
    equal_reference([node("Conv", "x w b", **attributes)], SEQUENCE, {"w": random(5, 3, 3), "b": random(5)})


@pytest.mark.parametrize(
    "attributes, weight, bias",
    [
        ({"transB": 1}, (4, 6), (4,)),
        ({}, (6, 4), (4,)),
        ({"alpha": 0.5, "beta": 2.0}, (6, 4), (1, 4)),
        ({"transB": 1, "alpha": -1.5}, (4, 6), None),
    ],
)
def test_a_gemm_in_any_form_is_one_dense_layer(equal_reference, attributes, weight, bias):
    constants = {"w": random(*weight)} | ({} if bias is None else {"b": random(*bias)})

    graph = equal_reference([node("Gemm", "x w" if bias is None else "x w b", **attributes)], FEATURES, constants)

    assert [op.kind for op in graph.ops] == [OpKind.FULLY_CONNECTED]


@pytest.mark.parametrize("order", ["m b", "b m"])
def test_a_product_and_the_sum_behind_it_are_one_dense_layer(equal_reference, order):
    nodes = [node("MatMul", "x w", "m"), node("Add", order, "a"), node("Relu", "a")]

    graph = equal_reference(nodes, FEATURES, {"w": random(6, 4), "b": random(4)})

    assert [op.kind for op in graph.ops] == [OpKind.FULLY_CONNECTED]


def test_a_product_that_is_read_twice_keeps_its_own_result(equal_reference):
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Mul", "m a")]

    graph = equal_reference(nodes, FEATURES, {"w": random(6, 4), "b": random(4)})

    assert [op.kind for op in graph.ops] == [OpKind.FULLY_CONNECTED, OpKind.ADD, OpKind.MUL]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("shape", [IMAGE, SEQUENCE])
def test_a_batch_normalisation_folds_into_the_convolution(behind_stem, shape, opset):
    constants = {"g": random(3), "b": random(3), "m": random(3), "v": np.abs(random(3)) + np.float32(0.5)}

    graph = behind_stem([node("BatchNormalization", "s g b m v", epsilon=1e-3)], shape, constants, opset=opset)

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D]


@pytest.mark.parametrize(
    "kind, attributes, constants",
    [
        ("Relu", {}, {}),
        ("Clip", {}, {"low": np.float32(0), "high": np.float32(6)}),
        ("Clip", {}, {"low": np.float32(0)}),
        ("Clip", {}, {"low": np.float32(0), "high": np.float32(np.inf)}),
        ("Clip", {}, {"low": np.float32(-1), "high": np.float32(1)}),
    ],
)
def test_a_clamp_is_fused_into_the_convolution(behind_stem, kind, attributes, constants):
    graph = behind_stem([node(kind, " ".join(("s", *constants)), **attributes)], constants=constants)

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D]


@pytest.mark.parametrize(
    "kind, attributes, kinds",
    [
        ("LeakyRelu", {"alpha": 0.2}, [OpKind.LEAKY_RELU]),
        ("LeakyRelu", {}, [OpKind.LEAKY_RELU]),
        ("HardSwish", {}, [OpKind.HARD_SWISH]),
        ("Sigmoid", {}, [OpKind.LOGISTIC]),
        ("Tanh", {}, [OpKind.TANH]),
        ("Softmax", {"axis": 1}, [OpKind.SOFTMAX]),
        ("HardSigmoid", {"alpha": float(np.float32(1 / 6))}, [OpKind.ADD, OpKind.MUL]),
        ("HardSigmoid", {}, [OpKind.MUL, OpKind.ADD, OpKind.MUL, OpKind.MUL]),
        ("Neg", {}, [OpKind.MUL]),
        ("Identity", {}, []),
        ("Dropout", {}, []),
        ("Cast", {"to": 1}, []),
    ],
)
def test_a_function_of_one_element_is_that_of_the_standard(behind_stem, kind, attributes, kinds):
    graph = behind_stem([node(kind, "s", **attributes)])

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D, *kinds]


def test_a_hard_sigmoid_gate_on_itself_is_a_hard_swish(behind_stem):
    alpha = float(np.float32(1 / 6))

    graph = behind_stem([node("HardSigmoid", "s", "h", alpha=alpha), node("Mul", "h s")])
    gate = behind_stem([node("HardSigmoid", "s", alpha=alpha)])

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D, OpKind.HARD_SWISH]
    assert OpKind.HARD_SWISH not in [op.kind for op in gate.ops]


def test_a_sigmoid_gate_on_itself_is_written_as_it_is_for_silu(behind_stem):
    graph = behind_stem([node("Sigmoid", "s", "g"), node("Mul", "s g")])

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D, OpKind.LOGISTIC, OpKind.MUL]


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("constant", [np.float32(1.5), random(3, 1, 1), random(1, 3, 1, 1), random(1, 3, 7, 8), random(8)])
def test_arithmetic_with_a_constant_is_that_of_the_standard(behind_stem, kind, constant):
    behind_stem([node(kind, "s c")], constants={"c": constant})


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul"])
def test_a_constant_may_stand_first(behind_stem, kind):
    behind_stem([node(kind, "c s")], constants={"c": random(3, 1, 1)})
    behind_stem([node(kind, "c s")], constants={"c": np.float32(-0.5)})


def test_sums_and_products_of_branches_may_repeat_along_axes(behind_stem):
    behind_stem([node("Relu", "s", "r"), node("Add", "s r")])
    behind_stem([node("GlobalAveragePool", "s", "g"), node("Sigmoid", "g", "h"), node("Mul", "s h")])


@pytest.mark.parametrize(
    "kind, attributes",
    [
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("MaxPool", {"kernel_shape": [2, 3]}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [5, 2], "ceil_mode": 1}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 1, 1, 0], "count_include_pad": 1, "strides": [2, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 1, 0, 0]}),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [2, 1], "strides": [2, 1], "ceil_mode": 1, "pads": [1, 0, 1, 0]}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        ("MaxPool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
    ],
)
def test_a_pool_is_that_of_the_standard(behind_stem, kind, attributes):
    behind_stem([node(kind, "s", **attributes)])


@pytest.mark.parametrize(
    "kind, attributes",
    [
        ("MaxPool", {"kernel_shape": [2], "strides": [2]}),
        ("MaxPool", {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}),
        ("AveragePool", {"kernel_shape": [3], "strides": [2]}),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
    ],
)
def test_a_pool_over_time_is_that_of_the_standard(behind_stem, kind, attributes):
    behind_stem([node(kind, "s", **attributes)], SEQUENCE)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("kind, axes, opset", [("ReduceMean", [2, 3], 18), ("ReduceMean", [1], 18), ("ReduceMax", [-1], 20)])
def test_a_reduction_takes_its_axes_as_attribute_or_as_input(behind_stem, keep, kind, axes, opset):
    by_attribute = behind_stem([node(kind, "s", axes=axes, keepdims=keep)], opset=13)
    by_input = behind_stem([node(kind, "s a", keepdims=keep)], constants={"a": np.array(axes)}, opset=opset)

    assert [op.kind for op in by_attribute.ops] == [op.kind for op in by_input.ops]


def test_a_mean_over_the_whole_image_is_one_operator(behind_stem):
    graph = behind_stem([node("ReduceMean", "s a", keepdims=0)], constants={"a": np.array([2, -1])})

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D, OpKind.MEAN]


def test_a_mean_over_no_axes_may_mean_none(behind_stem):
    graph = behind_stem([node("ReduceMean", "s", noop_with_empty_axes=1)])

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D]


def test_permutations_that_undo_each_other_leave_nothing(behind_stem):
    nodes = [node("Transpose", "s", "t", perm=[0, 2, 3, 1]), node("Relu", "t", "r"), node("Transpose", "r", perm=[0, 3, 1, 2])]

    graph = behind_stem(nodes)

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D]


def test_samples_with_channels_last_are_read_as_they_are(equal_reference):
    """As tools make them that come from TensorFlow: the first node turns (1, H, W, C) into what convolutions read."""
    nodes = [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t w", "c"), node("Relu", "c")]

    graph = equal_reference(nodes, (1, 7, 8, 3), {"w": random(4, 3, 3, 3)})

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D]


def test_a_dense_layer_at_every_step_is_a_convolution_of_one_step(equal_reference):
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("ReduceMean", "a", axes=[1], keepdims=0)]

    graph = equal_reference(nodes, (1, 5, 6), {"w": random(6, 4), "b": random(4)}, opset=13)

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D, OpKind.MEAN]


def test_channels_are_shuffled_by_reshapes_around_a_permutation(behind_stem):
    constants = {"k": random(6, 3, 1, 1), "u": np.array([0, 2, 3, 7, 8]), "v": np.array([0, 6, 7, 8])}
    nodes = [
        node("Conv", "s k", "c"),
        node("Reshape", "c u", "g"),
        node("Transpose", "g", "t", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "t v"),
    ]

    behind_stem(nodes, constants=constants)


def test_one_index_of_an_axis_is_taken(behind_stem):
    behind_stem([node("Gather", "s i", axis=2)], constants={"i": np.array(-1)})
    behind_stem([node("Gather", "s i", axis=1)], constants={"i": np.array([2])})


def test_activations_repeat_and_pixels_are_shuffled(behind_stem):
    behind_stem([node("GlobalAveragePool", "s", "g"), node("Expand", "g n")], constants={"n": np.array([1, 3, 7, 8])})
    nodes = [node("Conv", "s k", "c"), node("DepthToSpace", "c", blocksize=2, mode="CRD")]
    behind_stem(nodes, constants={"k": random(4, 3, 1, 1)})


def test_an_initialiser_of_many_values_is_a_tensor_of_the_checkpoint(tmp_path):
    nodes = [node("Conv", "x k", "c"), node("Mul", "c scale", "m"), node("Add", "m half")]
    constants = {"k": random(3, 3, 1, 1), "scale": random(3, 1, 1), "half": np.float32(0.5)}

    captured = capture_onnx(saved(model_of(nodes, IMAGE, constants), tmp_path / "model.onnx"))

    assert set(captured.tensors) == {"k", "scale"}


def test_branches_are_concatenated_and_taken_apart(behind_stem):
    behind_stem([node("Relu", "s", "r"), node("Concat", "s r", axis=1)])
    behind_stem([node("Relu", "s", "r"), node("Concat", "s r", axis=-1)])
    behind_stem([node("Split", "s n", "a b", axis=1), node("Concat", "b a", axis=1)], constants={"n": np.array([1, 2])})
    behind_stem([node("Split", "s", "a b", axis=3, num_outputs=2), node("Add", "a b")])


@pytest.mark.parametrize(
    "starts, ends, axes, steps",
    [([1], [3], [1], [1]), ([0, 2], [7, 2**31 - 1], [2, 3], [2, 1]), ([-4], [-1], [-1], [1]), ([0, 1], [1, 2], None, None)],
)
def test_a_slice_is_that_of_the_standard(behind_stem, starts, ends, axes, steps):
    given = {"a": starts, "b": ends, "c": axes, "d": steps}
    constants = {name: np.array(values) for name, values in given.items() if values is not None}

    behind_stem([node("Slice", " ".join(("s", *constants)))], constants=constants)


@pytest.mark.parametrize("pads, axes", [([0, 0, 1, 2, 0, 0, 0, 3], None), ([2, 1], [3]), ([1, 2, 3, 4], [-1, 2])])
def test_padding_with_zeros_is_that_of_the_standard(behind_stem, pads, axes):
    constants = {"p": np.array(pads), "v": np.float32(0)} | ({} if axes is None else {"a": np.array(axes)})

    behind_stem([node("Pad", "s p v" if axes is None else "s p v a")], constants=constants)


def test_flattening_reshapes_and_the_dense_layer_behind_them_keep_the_order_of_elements(equal_reference):
    constants = {"w": random(5, 168), "b": random(5), "k": random(3, 3, 1, 1), "t": np.array([0, -1]), "u": np.array([2, 3])}
    stem, head = node("Conv", "x k", "s"), node("Gemm", "f w b", transB=1)

    equal_reference([stem, node("Flatten", "s", "f"), head], IMAGE, constants)
    equal_reference([stem, node("Reshape", "s t", "f"), head], IMAGE, constants)
    pooled = {"w": random(5, 3), "b": random(5), "k": random(3, 3, 1, 1), "u": np.array([2, 3])}
    equal_reference([stem, node("GlobalAveragePool", "s", "g"), node("Squeeze", "g u", "f"), head], IMAGE, pooled)


def test_shape_arithmetic_and_constant_subgraphs_are_computed(equal_reference):
    """As exporters write a flatten with a batch of any size, and weights that are products."""
    nodes = [
        node("Mul", "k scale", "w0"),
        node("Conv", "x w0", "s"),
        node("Shape", "s", "n"),
        node("Gather", "n zero", "batch", axis=0),
        node("Unsqueeze", "batch zero1", "batch1"),
        node("Concat", "batch1 rest", "target", axis=0),
        node("Reshape", "s target", "f"),
        node("Gemm", "f w b", transB=1),
    ]
    constants = {
        "k": random(2, 3, 1, 1),
        "scale": np.float32(0.5),
        "zero": np.array(0),
        "zero1": np.array([0]),
        "rest": np.array([-1]),
        "w": random(4, 112),
        "b": random(4),
    }

    graph = equal_reference(nodes, ("batch", *IMAGE[1:]), constants)

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D, OpKind.RESHAPE, OpKind.FULLY_CONNECTED]


def test_an_unused_branch_is_not_looked_at(behind_stem):
    graph = behind_stem([node("Gelu", "s", "unused"), node("Relu", "s")], opset=20)

    assert len(graph.ops) == 1


@pytest.mark.parametrize(
    "nodes, constants, reason, hint",
    [
        ([node("Gelu", "s")], {}, "operator Gelu is not supported", "Hardswish"),
        ([node("Erf", "s")], {}, "operator Erf is not supported", "ReLU"),
        ([node("NonZero", "s", "n"), node("Cast", "n", to=1)], {}, "NonZero is not supported", "supported are Conv"),
        ([node("Cast", "s", "h", to=10), node("Cast", "h", to=1)], {}, "Cast makes float16", "float32"),
        ([node("Clip", "s h l")], {"h": np.float32(3), "l": np.float32(2)}, "a clamp to [3.0, 2.0]", "not empty"),
        ([node("MaxPool", "s", kernel_shape=[1 << 9, 1 << 9])], {}, "MaxPool with kernel_shape", "at most 65536"),
        ([node("MaxPool", "s", kernel_shape=[2, 2], strides=[1 << 17, 1])], {}, "MaxPool with strides", "from 1"),
        ([node("MaxPool", "s", "y i", kernel_shape=[2, 2])], {}, "MaxPool with more than one result", "first result"),
        ([node("MaxPool", "s", kernel_shape=[2, 2], dilations=[2, 2])], {}, "max pool with dilation", "dilation=1"),
        ([node("AveragePool", "s", kernel_shape=[3, 3], pads=[0, 2, 1, 0])], {}, "is not counted", "padding=0"),
        ([node("Gather", "s i", axis=3)], {"i": np.array([1, 3])}, "several indices", "Slice"),
        ([node("Concat", "s s", axis=0)], {}, "along the batch", "one by one"),
        ([node("Transpose", "s")], {}, "moves the batch", "in front"),
        ([node("ReduceSum", "s")], {}, "ReduceSum is not supported", "mean"),
        ([node("AveragePool", "s", kernel_shape=[2, 2], dilations=[2, 2])], {}, "dilation", "dilations of 1"),
        (
            [node("Transpose", "s", "t", perm=[0, 1, 3, 2]), node("MatMul", "s t")],
            {},
            "other than an activation and a constant matrix",
            "nn.Linear",
        ),
        ([node("Pad", "s p", mode="reflect")], {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, "'reflect'", "zeros"),
        ([node("Div", "c s")], {"c": np.float32(1)}, "a division by anything but a number", "inverse"),
        ([node("Sum", "s s s")], {}, "operator Sum is not supported", "supported are Conv"),
        ([node("Softmax", "s", axis=0)], {}, "along the batch", "one by one"),
        (
            [node("Slice", "s a b c d")],
            dict(zip("abcd", np.array([[6], [0], [2], [-1]]), strict=True)),
            "steps of -1",
            "1 or more",
        ),
        ([node("Dropout", "s r t")], {"r": np.float32(0.5), "t": np.array(True)}, "training mode", "evaluation mode"),
    ],
)
def test_what_has_no_int8_form_is_refused_by_file_node_reason_and_nearest_form(behind_stem, nodes, constants, reason, hint):
    with pytest.raises(UnsupportedOpError) as caught:
        behind_stem(nodes, constants=constants, opset=20)

    assert "model.onnx: " in caught.value.node
    assert reason in caught.value.reason or reason in caught.value.hint
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)
