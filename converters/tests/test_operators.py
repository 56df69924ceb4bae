# SPDX-License-Identifier: Apache-2.0
"""Each operator: the captured graph, run in float32, equals torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedmote.package.graph import OpKind


class Apply(nn.Module):
    """A module of one function, after a convolution with three outputs so that there is something to learn."""

    def __init__(self, function):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.stem(x))


class ApplyToSequence(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.stem = nn.Conv1d(2, 3, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.stem(x))


@pytest.mark.parametrize("kernel", [1, 2, 3, (2, 5)])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize("padding", [0, 1, (0, 1), 2])
def test_a_convolution_equals_torch_for_every_kernel_stride_and_padding(assert_equals_torch, kernel, stride, padding):
    for size in ((7, 8), (8, 7)):
        assert_equals_torch(nn.Conv2d(3, 4, kernel, stride=stride, padding=padding), (3, *size), seed=1)


@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
@pytest.mark.parametrize("dilation", [2, (1, 3)])
def test_a_dilated_convolution_equals_torch(assert_equals_torch, padding, dilation):
    assert_equals_torch(nn.Conv2d(2, 5, 3, padding=padding, dilation=dilation), (2, 9, 10), seed=2)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_equals_torch_for_every_multiplier(assert_equals_torch, multiplier, stride):
    module = nn.Conv2d(4, 4 * multiplier, 3, stride=stride, padding=1, groups=4, bias=False)

    graph = assert_equals_torch(module, (4, 6, 7), seed=3)

    assert [op.kind for op in graph.ops][-1] is OpKind.DEPTHWISE_CONV_2D


@pytest.mark.parametrize("kernel, stride, padding, dilation", [(3, 1, 1, 1), (5, 2, 2, 1), (3, 1, "same", 2), (4, 3, 0, 1)])
def test_a_convolution_over_time_equals_torch(assert_equals_torch, kernel, stride, padding, dilation):
    assert_equals_torch(nn.Conv1d(9, 4, kernel, stride=stride, padding=padding, dilation=dilation), (9, 20), seed=4)


def test_a_depthwise_convolution_over_time_equals_torch(assert_equals_torch):
    assert_equals_torch(nn.Conv1d(4, 8, 3, padding=1, groups=4), (4, 11), seed=5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_equals_torch(assert_equals_torch, bias):
    assert_equals_torch(nn.Linear(10, 4, bias=bias), (10,), seed=6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_normalisation_folds_into_what_is_before_it(assert_equals_torch, bias):
    images = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4, eps=1e-3))
    depthwise = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=bias), nn.BatchNorm2d(6))
    sequences = nn.Sequential(nn.Conv1d(3, 4, 3, bias=bias), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    features = nn.Sequential(nn.Linear(5, 4, bias=bias), nn.BatchNorm1d(4), nn.ReLU())

    assert len(assert_equals_torch(images, (3, 5, 5), seed=7).ops) == 1
    assert len(assert_equals_torch(depthwise, (3, 5, 5), seed=8).ops) == 1
    assert len(assert_equals_torch(sequences, (3, 8), seed=9).ops) == 1
    assert len(assert_equals_torch(features, (5,), seed=10).ops) == 1


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        F.relu6,
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Hardtanh(0, 6),
        lambda x: x.clamp(0, 6),
        lambda x: x.clamp(min=0),
        lambda x: x.clamp_min(0),
        lambda x: torch.relu(F.relu6(x)),
        lambda x: F.relu6(torch.relu(x)),
    ],
)
def test_a_clamp_is_fused_into_the_convolution(assert_equals_torch, function):
    graph = assert_equals_torch(Apply(function), (2, 4, 4), seed=11)

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D]


@pytest.mark.parametrize(
    "function",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, stride=2),
        nn.MaxPool2d((1, 2)),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, stride=1),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.AvgPool2d((2, 4), stride=(2, 3), padding=(1, 2)),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((4, 2)),
        nn.AdaptiveAvgPool2d((4, 5)),
        nn.AdaptiveMaxPool2d(1),
        nn.AdaptiveMaxPool2d((2, 3)),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.MaxPool2d(3, stride=1, padding=1),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        nn.MaxPool2d((5, 3), stride=(3, 2), padding=(2, 1), ceil_mode=True),
        nn.AvgPool2d(3, stride=3, ceil_mode=False),
        nn.AvgPool2d(2, stride=2, ceil_mode=True),
        nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
        nn.AvgPool2d((1, 4), stride=(1, 3), ceil_mode=True),
        lambda x: F.max_pool2d(torch.relu(x), 2),
        lambda x: torch.relu(F.max_pool2d(x, 2)),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((-1, -2), keepdim=True),
        lambda x: F.avg_pool2d(x, (8, 6)).flatten(1),
    ],
)
def test_a_pool_of_an_image_equals_torch(assert_equals_torch, function):
    assert_equals_torch(Apply(function), (2, 8, 6), seed=12)


@pytest.mark.parametrize(
    "function",
    [
        nn.MaxPool1d(2),
        nn.MaxPool1d(3, stride=2),
        nn.AvgPool1d(3),
        nn.AvgPool1d(4, stride=2, padding=1),
        nn.AdaptiveAvgPool1d(1),
        nn.AdaptiveAvgPool1d(5),
        lambda x: x.mean(2),
        lambda x: x.mean(-1, keepdim=True).squeeze(-1),
        lambda x: F.avg_pool1d(x, 10).squeeze(2),
        lambda x: F.max_pool2d(x.unsqueeze(2), (1, 2)).squeeze(2),
    ],
)
def test_a_pool_of_a_sequence_equals_torch(assert_equals_torch, function):
    assert_equals_torch(ApplyToSequence(function), (2, 10), seed=13)


def test_a_global_average_is_one_mean(assert_equals_torch):
    for function in (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Sequential(nn.AvgPool2d((5, 4)), nn.Flatten())):
        graph = assert_equals_torch(Apply(function), (2, 5, 4), seed=14)

        assert [op.kind for op in graph.ops] == [OpKind.CONV_2D, OpKind.MEAN]
        assert graph.activations[graph.output].shape == (1, 3)


@pytest.mark.parametrize(
    "flatten",
    [nn.Flatten(), lambda x: x.view(x.shape[0], -1), lambda x: x.reshape(-1, 3 * 4 * 5), lambda x: torch.relu(x.flatten(1))],
)
def test_a_linear_behind_a_flatten_reads_the_channels_first_order(assert_equals_torch, flatten):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.flatten, self.linear = nn.Conv2d(2, 3, 1), flatten, nn.Linear(60, 4)

        def forward(self, x):
            return self.linear(self.flatten(self.stem(x)))

    graph = assert_equals_torch(Network(), (2, 4, 5), seed=15)

    assert graph.ops[-1].source.layout == "linear_chw"
    assert graph.ops[-1].source.chw == (3, 4, 5)


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 1, 1)])
def test_a_flatten_of_one_channel_or_one_pixel_needs_no_regrouping(assert_equals_torch, shape):
    count = shape[0] * shape[1] * shape[2]
    graph = assert_equals_torch(nn.Sequential(nn.Flatten(), nn.Linear(count, 4)), shape, seed=16)

    assert graph.ops[-1].source.layout == "linear"


def test_a_flatten_of_a_sequence_reads_the_channels_first_order(assert_equals_torch):
    assert_equals_torch(nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(24, 3), nn.ReLU()), (3, 8), seed=17)


def test_flattened_branches_may_be_added_and_shaped_back(assert_equals_torch):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1)

        def forward(self, x):
            total = self.one(x).flatten(1) + self.two(x).flatten(1)
            return torch.relu(total).view(1 if x.shape[0] == 1 else -1, 3, 4, 4)

    assert_equals_torch(Network(), (2, 4, 4), seed=18)


def test_features_may_become_one_channel_image(assert_equals_torch):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return self.conv(x.view(-1, 1, 4, 5))

    assert_equals_torch(Network(), (20,), seed=19)


@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_residual_block_equals_torch(assert_equals_torch, is_in_place):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm1 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.second, self.norm2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.relu = nn.ReLU(inplace=is_in_place)

        def forward(self, x):
            x = self.relu(self.norm1(self.first(x)))
            y = self.norm2(self.second(x))
            if is_in_place:
                y += x
            else:
                y = y + x
            return self.relu(y)

    graph = assert_equals_torch(Block(), (3, 6, 6), seed=20)

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D, OpKind.CONV_2D, OpKind.ADD]


@pytest.mark.parametrize("pads", [(1, 1), (0, 2, 1, 0), (1, 1, 1, 1)])
def test_zero_padding_equals_torch(assert_equals_torch, pads):
    assert_equals_torch(Apply(lambda x: F.pad(x, pads)), (2, 4, 5), seed=21)


def test_layers_that_do_nothing_on_a_device_leave_nothing(assert_equals_torch):
    idle = nn.Sequential(nn.Identity(), nn.Dropout(0.5), nn.Dropout2d(0.5), nn.Identity())
    module = nn.Sequential(idle, nn.Conv2d(2, 3, 1), idle, nn.Flatten(), nn.Dropout(), nn.Linear(27, 2), nn.Identity())

    graph = assert_equals_torch(module, (2, 3, 3), seed=22)

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D, OpKind.RESHAPE, OpKind.FULLY_CONNECTED]


def test_a_module_that_is_called_twice_shares_its_weights(assert_equals_torch):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x)))

    graph = assert_equals_torch(Twice(), (2, 4, 4), seed=23)

    assert graph.ops[0].source.weight == graph.ops[1].source.weight


def gated(x):
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def gated_by_a_map(x):
    return torch.sigmoid(x[:, :1]) * x


FUNCTIONS = [
    (torch.sigmoid, [OpKind.LOGISTIC]),
    (torch.tanh, [OpKind.TANH]),
    (F.hardswish, [OpKind.HARD_SWISH]),
    (F.silu, [OpKind.LOGISTIC, OpKind.MUL]),
    (lambda x: F.leaky_relu(x, 0.2), [OpKind.LEAKY_RELU]),
    (lambda x: x.softmax(1), [OpKind.SOFTMAX]),
    (lambda x: F.relu(x * torch.tanh(x)), [OpKind.TANH, OpKind.MUL, OpKind.RELU]),
    (lambda x: 1.5 * x + 0.5, [OpKind.MUL, OpKind.ADD]),
    (lambda x: torch.cat([x, torch.sigmoid(x)], 1), [OpKind.LOGISTIC, OpKind.CONCATENATION]),
    (lambda x: torch.cat([x, x, x], 2), [OpKind.CONCATENATION]),
    (lambda x: torch.cat([x, x], -1), [OpKind.CONCATENATION]),
    (gated, [OpKind.MEAN, OpKind.LOGISTIC, OpKind.MUL]),
    (gated_by_a_map, [OpKind.STRIDED_SLICE, OpKind.LOGISTIC, OpKind.BROADCAST_TO, OpKind.MUL]),
    (lambda x: x[:, 1:, ::2], [OpKind.STRIDED_SLICE, OpKind.STRIDED_SLICE]),
    (F.hardsigmoid, [OpKind.ADD, OpKind.MUL]),
    (F.hardtanh, []),
    (lambda x: x.clamp(-0.2, 0.3), [OpKind.ADD, OpKind.MUL, OpKind.MUL, OpKind.ADD]),
    (lambda x: x.clamp(0, 0.3), [OpKind.MUL, OpKind.MUL]),
    (lambda x: x.clamp(max=0.1), [OpKind.MUL, OpKind.ADD, OpKind.MUL, OpKind.ADD]),
    (lambda x: x.clamp_min(-0.1), [OpKind.ADD, OpKind.ADD]),
    (lambda x: x.clamp(-float("inf"), float("inf")), []),
    (lambda x: (x - 0.5) / 2, [OpKind.ADD, OpKind.MUL]),
    (lambda x: 1 - x, [OpKind.MUL, OpKind.ADD]),
    (lambda x: -x, [OpKind.MUL]),
    (lambda x: x - torch.tanh(x), [OpKind.TANH, OpKind.MUL, OpKind.ADD]),
    (lambda x: torch.add(x, torch.tanh(x), alpha=3), [OpKind.TANH, OpKind.MUL, OpKind.ADD]),
    (lambda x: x * torch.tensor([[[0.5]], [[2.0]], [[-1.0]]]), [OpKind.MUL]),
    (
        lambda x: (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1),
        [OpKind.ADD, OpKind.MUL],
    ),
    (lambda x: torch.tensor(2.0) + x, [OpKind.ADD]),
    (lambda x: x.softmax(2), [OpKind.TRANSPOSE, OpKind.SOFTMAX, OpKind.TRANSPOSE]),
    (lambda x: x.permute(0, 3, 2, 1), [OpKind.TRANSPOSE]),
    (lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2), []),
    (lambda x: x.movedim(1, -1).sigmoid().movedim(-1, 1), [OpKind.LOGISTIC]),
    (lambda x: torch.stack([x, x.relu()], 2).flatten(1, 2), [OpKind.RELU, OpKind.CONCATENATION, OpKind.TRANSPOSE]),
    (lambda x: torch.stack(x.unbind(1), 1), [OpKind.STRIDED_SLICE] * 3 + [OpKind.CONCATENATION]),
    (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), [OpKind.STRIDED_SLICE] * 2 + [OpKind.CONCATENATION]),
    (lambda x: torch.cat(x.split([1, 2, 3], 2)[1:], 2), [OpKind.STRIDED_SLICE] * 2 + [OpKind.CONCATENATION]),
    (lambda x: x.split(4, 3)[1] + x.split(4, 3)[0][..., 1:], [OpKind.STRIDED_SLICE] * 3 + [OpKind.ADD]),
    (lambda x: x[:, 2], [OpKind.STRIDED_SLICE, OpKind.TRANSPOSE]),
    (lambda x: x[:, :, -1], [OpKind.STRIDED_SLICE]),
    (lambda x: x.mean(1), [OpKind.AVERAGE_POOL_2D, OpKind.TRANSPOSE]),
    (lambda x: x.mean(3), [OpKind.AVERAGE_POOL_2D]),
    (lambda x: x.mean(2, keepdim=True), [OpKind.AVERAGE_POOL_2D]),
    (lambda x: x.mean((1, 3)), [OpKind.AVERAGE_POOL_2D] * 2),
    (lambda x: x.amax((2, 3)), [OpKind.MAX_POOL_2D]),
    (lambda x: x.max(dim=1, keepdim=True)[0], [OpKind.MAX_POOL_2D]),
    (lambda x: x.max(2).values, [OpKind.MAX_POOL_2D]),
    (lambda x: F.pad(x, (1, 0, 0, 2, 1, 2)), [OpKind.PAD] * 3),
    (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 6, 7), [OpKind.MEAN, OpKind.BROADCAST_TO]),
    (lambda x: x.reshape(-1, 7, 6, 3), [OpKind.TRANSPOSE, OpKind.TRANSPOSE]),
    (lambda x: x.flatten(1) + x.permute(0, 2, 3, 1).flatten(1), [OpKind.TRANSPOSE, OpKind.ADD]),
    (lambda x: torch.cat([x.flatten(1), x.mean((2, 3))], 1), [OpKind.MEAN, OpKind.TRANSPOSE, OpKind.CONCATENATION]),
]


@pytest.mark.parametrize("function, kinds", FUNCTIONS)
def test_a_function_of_an_image_equals_torch(assert_equals_torch, function, kinds):
    graph = assert_equals_torch(Apply(function), (2, 6, 7), seed=31)

    made = [op.kind for op in graph.ops if op.kind not in (OpKind.CONV_2D, OpKind.RESHAPE)]
    assert made in (kinds, [kind for kind in kinds if kind is not OpKind.RELU])


@pytest.mark.parametrize("function", [lambda x: torch.cat([x, x.sigmoid()], 1), lambda x: x[:, :, 2:-1], lambda x: x.softmax(1)])
def test_a_function_of_a_sequence_equals_torch(assert_equals_torch, function):
    assert_equals_torch(ApplyToSequence(function), (2, 9), seed=32)


@pytest.mark.parametrize("groups, outputs", [(2, 6), (3, 3), (3, 9)])
def test_a_convolution_of_groups_equals_torch(assert_equals_torch, groups, outputs):
    module = nn.Sequential(nn.Conv2d(6, outputs, 3, stride=2, padding=1, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU())

    graph = assert_equals_torch(module, (6, 7, 8), seed=33)

    assert [op.kind for op in graph.ops if op.kind is not OpKind.PAD] == [OpKind.CONV_2D]
