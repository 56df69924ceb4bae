# SPDX-License-Identifier: Apache-2.0
"""Families of networks for phones and sensors, small: captured as torch computes them, without a value moved that need not be."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedmote.package import fixed_point, tflite_writer
from fedmote.package.boards import Board
from fedmote.package.compile import compile_graph
from fedmote.package.execute import observe, run_int8
from fedmote.package.fold import bind
from fedmote.package.graph import OpKind
from fedmote.package.inputs import arrange, graph_shape, restore
from fedmote.package.partition import push, run_features
from fedmote.package.quantize import quantize, quantize_input
from fedmote_convert.calibration import Recipe
from fedmote_convert.capture import capture
from fedmote_convert.convert import convert
from fedmote_convert.passes import run_passes

from .conftest import seeded
from .random_modules import settled
from .test_convert import tflite_micro


def conv_bn(inputs, outputs, kernel=3, stride=1, groups=1, activation=nn.ReLU):
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([] if activation is None else [activation()]))


class Residual(nn.Module):
    """The sum of a body and a shortcut."""

    def __init__(self, body, shortcut=None, activation=None):
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut or nn.Identity(), activation or nn.Identity()

    def forward(self, x):
        return self.activation(self.body(x) + self.shortcut(x))


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018 as MobileNetV3 writes it: two 1x1 convolutions and a hard sigmoid."""

    def __init__(self, channels):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, channels // 2, 1), nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.up(F.relu(self.down(self.pool(x)))))


def inverted_residual(channels, expansion, activation, gate=None):
    inner = channels * expansion
    layers = [conv_bn(channels, inner, 1, activation=activation), conv_bn(inner, inner, groups=inner, activation=activation)]
    return Residual(nn.Sequential(*layers, gate or nn.Identity(), conv_bn(inner, channels, 1, activation=None)))


def ended(body, channels, classes=4):
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes))


def mobilenet_v1():
    blocks = [conv_bn(8, 8, groups=8), conv_bn(8, 16, 1), conv_bn(16, 16, stride=2, groups=16), conv_bn(16, 16, 1)]
    return ended(nn.Sequential(conv_bn(3, 8, stride=2), *blocks), 16)


def mobilenet_v2():
    return ended(nn.Sequential(conv_bn(3, 8, stride=2, activation=nn.ReLU6), inverted_residual(8, 2, nn.ReLU6)), 8)


def mobilenet_v3():
    gate = SqueezeExcitation(16)
    body = nn.Sequential(conv_bn(3, 8, stride=2, activation=nn.Hardswish), inverted_residual(8, 2, nn.Hardswish, gate))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12), nn.Hardswish(), nn.Dropout(), nn.Linear(12, 4)]
    return nn.Sequential(body, *head)


def resnet():
    stem = nn.Sequential(conv_bn(3, 8, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
    first = Residual(nn.Sequential(conv_bn(8, 8), conv_bn(8, 8, activation=None)), activation=nn.ReLU(inplace=True))
    body = nn.Sequential(conv_bn(8, 16, stride=2), conv_bn(16, 16, activation=None))
    second = Residual(body, conv_bn(8, 16, 1, stride=2, activation=None), nn.ReLU(inplace=True))
    return ended(nn.Sequential(stem, first, second), 16)


class Fire(nn.Module):
    def __init__(self, inputs, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def squeezenet():
    pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return ended(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), pool, Fire(8, 4, 6), Fire(12, 4, 6), pool), 12)


def shuffled(x, groups):
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)


class ShuffleUnit(nn.Module):
    """ShuffleNet V2 (Ma et al. 2018): one half passes, the other is convolved, then channels are shuffled."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), conv_bn(half, half, groups=half, activation=None), conv_bn(half, half, 1)
        )

    def forward(self, x):
        first, second = x.chunk(2, dim=1)
        return shuffled(torch.cat((first, self.branch(second)), dim=1), 2)


def shufflenet():
    return ended(nn.Sequential(conv_bn(3, 8, stride=2), ShuffleUnit(8), ShuffleUnit(8), nn.Conv2d(8, 12, 1)), 12)


class DenseLayer(nn.Module):
    """DenseNet (Huang et al. 2017): normalisation and ReLU stand in front of each convolution."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, padding=1, bias=False))

    def forward(self, x):
        return torch.cat([x, self.layers(x)], 1)


def densenet():
    transition = nn.Sequential(nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 1), nn.AvgPool2d(2))
    end = nn.Sequential(nn.BatchNorm2d(10), nn.ReLU())
    return ended(nn.Sequential(conv_bn(3, 4), DenseLayer(4, 4), DenseLayer(8, 4), transition, DenseLayer(6, 4), end), 10)


class Inception(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.one = conv_bn(inputs, 3, 1)
        self.three = nn.Sequential(conv_bn(inputs, 2, 1), conv_bn(2, 4))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv_bn(inputs, 3, 1))

    def forward(self, x):
        return torch.cat([branch(x) for branch in (self.one, self.three, self.pooled)], 1)


def inception():
    return ended(nn.Sequential(conv_bn(3, 6, stride=2), Inception(6), Inception(10)), 10)


class CausalBlock(nn.Module):
    """A block of a temporal convolutional network (Bai et al. 2018)."""

    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        self.first, self.second = (nn.Conv1d(size, outputs, 3, dilation=dilation) for size in (inputs, outputs))
        self.shortcut = nn.Conv1d(inputs, outputs, 1)
        self.reach = 2 * dilation

    def forward(self, x):
        inner = F.relu(self.first(F.pad(x, (self.reach, 0))))
        return F.relu(F.relu(self.second(F.pad(inner, (self.reach, 0)))) + self.shortcut(x))


class LastStep(nn.Module):
    def forward(self, x):
        return x[:, :, -1]


def temporal_network():
    return nn.Sequential(CausalBlock(6, 8, 1), CausalBlock(8, 8, 2), CausalBlock(8, 8, 4), LastStep(), nn.Linear(8, 4))


def separable_sequence():
    def block(inputs, outputs):
        depthwise = nn.Conv1d(inputs, inputs, 5, padding=2, groups=inputs, bias=False)
        return [depthwise, nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(2)]

    return nn.Sequential(*block(6, 8), *block(8, 12), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(12, 4))


class ByStep(nn.Module):
    """Samples are (T, F), as sensors write them; a Linear at every step, then convolutions over time."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(6, 8)
        self.conv, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.embedding(x)).permute(0, 2, 1)
        return self.head(F.relu(self.norm(self.conv(x))).mean(-1))


class ImageOfSteps(nn.Module):
    """Samples are (T, F), read as an image of one channel, as DeepConvLSTM (Ordonez and Roggen 2016) begins."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 6, (5, 1)), nn.ReLU(), nn.Conv2d(6, 8, (5, 1), stride=(2, 1)), nn.ReLU())
        self.head = nn.Linear(8 * 6, 4)

    def forward(self, x):
        x = self.layers(x.unsqueeze(1))
        return self.head(x.permute(0, 2, 1, 3).amax(1).flatten(1))


class ChannelsLastImages(nn.Module):
    """Samples are (H, W, C), as cameras write them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8, stride=2), conv_bn(8, 8, groups=8))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body((x - 0.5) / 0.25 if x.shape[1] == 3 else (x.movedim(-1, 1) - 0.5) / 0.25).mean((2, 3)))


IMAGES, WINDOWS = (3, 16, 16), (6, 24)
FREE_OF_COPIES = [
    (mobilenet_v1, IMAGES),
    (mobilenet_v2, IMAGES),
    (mobilenet_v3, IMAGES),
    (resnet, IMAGES),
    (squeezenet, IMAGES),
    (densenet, IMAGES),
    (inception, IMAGES),
    (temporal_network, WINDOWS),
    (separable_sequence, WINDOWS),
    (ByStep, (24, 6)),
    (ImageOfSteps, (24, 6)),
    (ChannelsLastImages, (16, 16, 3)),
]


def converted(module, shape):
    captured = capture(module, shape)
    return captured, run_passes(captured.graph)


@pytest.mark.parametrize("build, shape", FREE_OF_COPIES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_network_equals_torch_and_needs_no_transposition(assert_equals_torch, build, shape):
    graph = assert_equals_torch(build(), shape, seed=50)

    assert OpKind.TRANSPOSE not in [op.kind for op in graph.ops]


def test_a_channel_shuffle_is_one_transposition_of_channels(assert_equals_torch):
    graph = assert_equals_torch(shufflenet(), IMAGES, seed=51)

    transpositions = [op for op in graph.ops if op.kind is OpKind.TRANSPOSE]
    assert [(graph.activations[op.inputs[0]].shape, op.permutation) for op in transpositions] == [
        ((1, 64, 2, 4), (0, 1, 3, 2))
    ] * 2


@pytest.mark.parametrize(
    "build, shape", [*FREE_OF_COPIES, (shufflenet, IMAGES)], ids=lambda value: getattr(value, "__name__", "")
)
def test_the_int8_form_of_a_network_equals_tflite_micro_in_every_byte(build, shape):
    module = settled(build(), 52)
    x = np.random.default_rng(52).standard_normal((24, *shape)).astype(np.float32)
    captured, template = converted(module, shape)
    graph = bind(template, captured.tensors)
    samples = arrange(x, captured.input_layout, graph_shape(shape, captured.input_layout))
    quantized = quantize(graph, observe(graph, samples))
    q = quantize_input(quantized, samples)

    np.testing.assert_array_equal(run_int8(quantized, q), tflite_micro(tflite_writer.write(quantized), q))
    assert compile_graph(quantized).header.macs > 0
    assert fixed_point.quantization_of(quantized.activations[quantized.output]).scale[0] > 0


@pytest.mark.parametrize(
    "build, shape, layout",
    [(ByStep, (24, 6), "nwc"), (ChannelsLastImages, (16, 16, 3), "as_is"), (separable_sequence, WINDOWS, "ncw")],
)
def test_data_files_keep_the_order_of_the_module(build, shape, layout):
    module = seeded(build(), 53)
    x = np.random.default_rng(53).standard_normal((40, *shape)).astype(np.float32)

    package = convert(module, x, [Board.load("posix")], model_id="m").package
    features = run_features(package, x)
    with torch.no_grad():
        logits = module(torch.from_numpy(x)).numpy()

    assert package.host.input_layout == layout
    np.testing.assert_array_equal(restore(arrange(x, layout, package.graph.activations[package.graph.input].shape), layout), x)
    assert np.median(np.abs(package.logits(features) - logits)) < 0.05 * np.abs(logits).max()


def test_weights_that_passes_took_in_are_pushed_by_name():
    build, shape = densenet, IMAGES
    x = np.random.default_rng(54).standard_normal((30, *shape)).astype(np.float32)
    old, new = seeded(build(), 54), seeded(build(), 55)
    board = Board.load("posix")
    first = convert(old, x, [board], model_id="m").package
    again = convert(new, x, [board], model_id="m", version=1, recipe=Recipe.of(first))

    pushed = push(first, again.tensors, None, version=1)

    assert pushed.to_bytes() == again.package.to_bytes()
