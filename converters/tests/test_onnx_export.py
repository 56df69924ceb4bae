# SPDX-License-Identifier: Apache-2.0
"""The same model through torch and through its ONNX export: same operators and shapes, int8 features equal up to rounding.

Both of torch's exporters are held to it. They fold batch normalisation into weights as `fedmote.package.fold` does. The one that
traces TorchScript computes some square roots to another last bit, which may move an int8 value by one; a feature may then differ
by one, in at most one of a hundred. The one of torch.export leaves no difference.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fedmote.lab.models import digits_cnn, har_cnn, residual_cnn
from fedmote.package.boards import Board
from fedmote.package.execute import run_int8
from fedmote.package.inputs import arrange
from fedmote.package.quantize import quantize_input
from fedmote_convert.bench.onnx_exports import exported
from fedmote_convert.convert import convert
from fedmote_convert.onnx_capture import capture_onnx

from .conftest import seeded
from .random_modules import settled

LARGEST_SHARE = 0.01  # of int8 features that may be off by one


def normalised(inputs, outputs, kernel=3, stride=1, groups=1, activation=nn.ReLU):
    padding = kernel // 2 if isinstance(kernel, int) else tuple(size // 2 for size in kernel)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), activation())


def ds_cnn():
    """Keywords: (1, 49, 10) spectra, four depthwise separable blocks, as in MLPerf Tiny."""
    blocks = [block for _ in range(4) for block in (normalised(64, 64, groups=64), normalised(64, 64, 1))]
    stem = nn.Conv2d(1, 64, (10, 4), (2, 2), (5, 1), bias=False)
    stages = (stem, nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout(0.2), *blocks)
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


class Residual(nn.Module):
    """Two convolutions beside a shortcut, that of a strided block with a convolution of its own."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = normalised(inputs, outputs, stride=stride)
        self.second = normalised(outputs, outputs, activation=nn.Identity)
        self.shortcut = nn.Identity() if stride == 1 else normalised(inputs, outputs, 1, stride, activation=nn.Identity)

    def forward(self, x):
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet8():
    blocks = (Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
    return nn.Sequential(normalised(3, 16), *blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 10))


class Inverted(nn.Module):
    """Widen, filter each channel, narrow; a shortcut around it where the shapes allow."""

    def __init__(self, inputs, outputs, stride, factor):
        super().__init__()
        hidden = inputs * factor
        self.widen = normalised(inputs, hidden, 1, activation=nn.ReLU6)
        self.filter = normalised(hidden, hidden, 3, stride, hidden, activation=nn.ReLU6)
        self.narrow = normalised(hidden, outputs, 1, activation=nn.Identity)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.narrow(self.filter(self.widen(x)))
        return x + y if self.is_residual else y


def mobilenet_v2():
    blocks = (Inverted(8, 8, 1, 2), Inverted(8, 16, 2, 4), Inverted(16, 16, 1, 4), Inverted(16, 24, 2, 4))
    stem, last = normalised(3, 8, 3, 2, activation=nn.ReLU6), normalised(24, 64, 1, activation=nn.ReLU6)
    return nn.Sequential(stem, *blocks, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))


def autoencoder():
    sizes = (128, 32, 32, 8, 32, 32)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], sizes[0]))


class Gated(nn.Module):
    """Branches, gates and functions that the others lack."""

    def __init__(self):
        super().__init__()
        self.stem = normalised(2, 8, activation=nn.Hardswish)
        self.left = nn.Conv2d(8, 4, 3, padding="same", dilation=2)
        self.right = normalised(8, 4, activation=nn.SiLU)
        self.gate = nn.Linear(8, 8)
        self.head = nn.Linear(8 * 5 * 6, 3)

    def forward(self, x):
        x = self.stem(x)
        branches = torch.cat([nn.functional.leaky_relu(self.left(x), 0.1), torch.tanh(self.right(x))], 1)
        means = torch.sigmoid(self.gate(x.mean((2, 3))))
        padded = nn.functional.pad(branches[:, :, 1:, :] * 0.5 + 1.0, (0, 0, 0, 1))
        return self.head((padded * means.view(-1, 8, 1, 1)).flatten(1))


MODELS = {
    "digits": (digits_cnn, (1, 8, 8)),
    "har": (har_cnn, (9, 128)),
    "residual": (residual_cnn, (3, 8, 8)),
    "ds-cnn": (ds_cnn, (1, 49, 10)),
    "resnet8": (resnet8, (3, 16, 16)),
    "mobilenet-v2": (mobilenet_v2, (3, 32, 32)),
    "autoencoder": (autoencoder, (128,)),
    "gated": (Gated, (2, 5, 6)),
}


@pytest.mark.parametrize("is_dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_gives_the_same_encoder_through_torch_and_through_onnx(name, is_dynamo, tmp_path):
    build, shape = MODELS[name]
    module = settled(build(), 3)
    x = np.random.default_rng(3).standard_normal((24, *shape)).astype(np.float32)
    boards = [Board.load("posix")]

    captured = capture_onnx(exported(module, shape, tmp_path / "model.onnx", is_dynamo))
    by_torch = convert(module, x, boards, model_id="model")
    by_onnx = convert(captured, x, boards, model_id="model")

    assert operators(by_onnx) == operators(by_torch)
    assert by_onnx.quality.float_difference < 1e-5
    difference = np.abs(features(by_onnx, x) - features(by_torch, x))
    print(f"{name}: {(difference > 0).mean():.3%} of {difference.size} features differ, by {difference.max()} at most")
    assert difference.max() <= (0 if is_dynamo else 1)
    assert (difference > 0).mean() <= LARGEST_SHARE


def operators(conversion):
    template = conversion.template
    return [(op.kind, op.activation, op.padding, template.activations[op.output].shape) for op in template.ops]


def features(conversion, x):
    graph = conversion.package.graph
    arranged = arrange(x, conversion.package.host.input_layout, graph.activations[graph.input].shape)
    return run_int8(graph, quantize_input(graph, arranged)).astype(int)


@pytest.mark.parametrize("is_dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_tensors_that_the_exporter_left_alone_have_the_names_and_values_of_the_module(is_dynamo, tmp_path):
    module = seeded(nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)), 5)

    captured = capture_onnx(exported(module, (3, 8), tmp_path / "model.onnx", is_dynamo))

    state = module.state_dict()
    assert set(captured.tensors) == set(state)
    for name, values in captured.tensors.items():
        np.testing.assert_array_equal(values, state[name].numpy())


@pytest.mark.parametrize("is_dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_a_head_bias_of_zeros_that_the_exporter_drops_is_there_again(is_dynamo, tmp_path):
    module = seeded(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), 6)
    nn.init.zeros_(module[2].bias)

    captured = capture_onnx(exported(module, (6,), tmp_path / "model.onnx", is_dynamo))

    np.testing.assert_array_equal(captured.tensors["2.bias"], np.zeros(2))
    assert convert(captured, np.eye(6, dtype=np.float32), [Board.load("posix")], model_id="m").head[0].bias == "2.bias"


@pytest.mark.parametrize("is_dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_a_cut_may_be_named_by_the_module_of_the_exporters_scopes(is_dynamo, tmp_path):
    x = np.random.default_rng(8).standard_normal((8, 1, 8, 8)).astype(np.float32)
    captured = capture_onnx(exported(seeded(digits_cnn(), 8), (1, 8, 8), tmp_path / "model.onnx", is_dynamo))

    conversion = convert(captured, x, [Board.load("posix")], model_id="m", cut="average")

    assert conversion.cut.features == 48


@pytest.mark.parametrize("is_dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_modules_inside_modules_have_the_paths_that_torch_gives_them(is_dynamo, tmp_path):
    block = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Sigmoid(), nn.Linear(4, 4)))
    module = seeded(nn.Sequential(block, nn.Linear(4, 2)), 8)

    captured = capture_onnx(exported(module, (4,), tmp_path / "model.onnx", is_dynamo))

    assert list(captured.modules.values()) == [("0", "0.0"), ("0", "0.1", "0.1.0"), ("0", "0.1", "0.1.1"), ("1",)]


def test_weights_replace_initialisers_by_name_in_graph_and_reference(tmp_path):
    path = exported(seeded(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), 9), (6,), tmp_path / "model.onnx", True)
    weights = {"0.weight": np.random.default_rng(9).standard_normal((6, 6)).astype(np.float32)}
    x = np.eye(6, dtype=np.float32)

    captured = capture_onnx(path, weights)

    np.testing.assert_array_equal(captured.tensors["0.weight"], weights["0.weight"])
    assert np.abs(captured.reference(x) - capture_onnx(path).reference(x)).max() > 0.01
    assert convert(captured, x, [Board.load("posix")], model_id="m").quality.float_difference < 1e-5
