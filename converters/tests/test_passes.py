# SPDX-License-Identifier: Apache-2.0
"""Each pass on its own: what it changes and what it must leave alone. That results stay equal is proved per operator."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedmote.package.graph import Activation, OpKind
from fedmote_convert.capture import capture
from fedmote_convert.passes import (
    average_over_the_whole_image,
    average_to_features,
    drop_identities,
    fold_batch_norms,
    fold_batch_norms_forward,
    fuse_activations,
    join_activations,
    join_pads,
    join_reshapes,
    legalise_padding,
    write_lone_clamps_as_products,
)


class Through(nn.Module):
    """A module of layers and a function over them."""

    def __init__(self, function, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def captured(module, shape):
    return capture(module.eval(), shape).graph


def kinds(graph):
    return [op.kind for op in graph.ops]


def test_dropping_identities_joins_their_neighbours():
    graph = drop_identities(captured(nn.Sequential(nn.Dropout(), nn.ReLU(), nn.Identity(), nn.Dropout()), (5,)))

    assert kinds(graph) == [OpKind.RELU]
    assert graph.ops[0].inputs == (graph.input,)
    assert graph.output == graph.ops[0].output
    assert set(graph.activations) == {graph.input, graph.output}


def test_dropping_identities_keeps_a_flatten():
    assert kinds(drop_identities(captured(nn.Flatten(), (2, 3, 3)))) == [OpKind.RESHAPE]


def test_a_slice_of_the_whole_goes_and_one_of_a_part_stays():
    class Slices(nn.Module):
        def forward(self, x):
            return torch.relu(x[:, :, 0:5])[:, :, 1:5]

    assert kinds(drop_identities(captured(Slices(), (2, 5)))) == [OpKind.RELU, OpKind.STRIDED_SLICE]


def test_folded_norms_are_named_in_order_of_application():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=0.5), nn.BatchNorm2d(2))

    graph = fold_batch_norms(captured(module, (1, 3, 3)))

    assert [norm.running_var for norm in graph.ops[0].source.batch_norm] == ["1.running_var", "2.running_var"]
    assert graph.ops[0].source.batch_norm[0].eps == 0.5


@pytest.mark.parametrize(
    "module, expected",
    [
        (
            nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
            [OpKind.CONV_2D, OpKind.RELU, OpKind.DEPTHWISE_CONV_2D],
        ),
        (
            nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(2), nn.ReLU()),
            [OpKind.MAX_POOL_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.RELU],
        ),
        (
            nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1)),
            [OpKind.DEPTHWISE_CONV_2D, OpKind.PAD, OpKind.CONV_2D],
        ),
    ],
)
def test_a_norm_that_neither_side_can_take_stays_a_convolution_of_one_pixel(module, expected):
    graph = fold_batch_norms_forward(fold_batch_norms(captured(module, (2, 4, 4))))

    assert kinds(graph) == expected
    assert [op.source.layout for op in graph.ops if op.kind is OpKind.DEPTHWISE_CONV_2D] == ["batch_norm"]


def test_a_norm_in_front_of_a_convolution_that_pads_nothing_goes_into_its_weights():
    module = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, eps=0.5), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))

    graph = fold_batch_norms_forward(fold_batch_norms(captured(module, (2, 4, 4))))

    assert kinds(graph) == [OpKind.CONV_2D]
    source = graph.ops[0].source
    assert [norm.running_var for norm in source.input_norm] == ["0.running_var", "1.running_var"]
    assert [norm.running_var for norm in source.batch_norm] == ["3.running_var"]


def test_a_norm_whose_input_is_also_read_elsewhere_stays():
    def forward(module, x):
        inner = module.conv(x)
        return module.norm(inner) + inner

    module = Through(forward, conv=nn.Conv2d(2, 3, 1), norm=nn.BatchNorm2d(3))

    assert kinds(fold_batch_norms(captured(module, (2, 4, 4)))) == [OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.ADD]


@pytest.mark.parametrize(
    "layers, expected",
    [
        ([nn.Linear(6, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)], [OpKind.FULLY_CONNECTED]),
        ([nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Linear(6, 4)], [OpKind.FULLY_CONNECTED]),
        ([nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)], [OpKind.DEPTHWISE_CONV_2D, OpKind.RELU, OpKind.FULLY_CONNECTED]),
    ],
)
def test_a_norm_of_features_goes_into_a_linear_or_is_an_image_of_one_pixel(layers, expected):
    graph = join_reshapes(drop_identities(captured(nn.Sequential(*layers), (6,))))
    graph = fold_batch_norms_forward(fold_batch_norms(graph))

    assert [kind for kind in kinds(graph) if kind is not OpKind.RESHAPE] == expected
    assert (OpKind.RESHAPE in kinds(graph)) == (OpKind.DEPTHWISE_CONV_2D in expected)


def test_reshapes_in_a_row_become_one_and_those_that_lead_back_none():
    module = Through(
        lambda m, x: m.conv(x.flatten(1).view(-1, 6, 8).view(-1, 3, 2, 8).flatten(1).view(-1, 3, 4, 4)), conv=nn.Conv2d(3, 2, 1)
    )

    assert kinds(join_reshapes(drop_identities(captured(module, (3, 4, 4))))) == [OpKind.CONV_2D]


def test_joined_clamps_keep_the_narrower_interval():
    for layers in ([nn.ReLU(), nn.ReLU6()], [nn.ReLU6(), nn.ReLU()], [nn.ReLU(), nn.ReLU6(), nn.ReLU()]):
        graph = join_activations(captured(nn.Sequential(*layers), (5,)))

        assert [(op.kind, op.activation) for op in graph.ops] == [(OpKind.RELU, Activation.RELU6)]


def test_a_clamp_to_one_below_and_above_zero_is_joined_with_its_like_alone():
    for layers, count in (([nn.Hardtanh(), nn.Hardtanh()], 1), ([nn.Hardtanh(), nn.ReLU()], 2), ([nn.ReLU6(), nn.Hardtanh()], 2)):
        graph = join_activations(captured(nn.Sequential(*layers), (5,)))

        assert graph.ops[0].activation is captured(nn.Sequential(layers[0]), (5,)).ops[0].activation
        assert len(graph.ops) == count


def test_a_clamp_is_not_fused_into_an_operator_that_others_read():
    def forward(module, x):
        inner = module.conv(x)
        return torch.relu(inner) + inner

    graph = fuse_activations(captured(Through(forward, conv=nn.Conv2d(2, 3, 1)), (2, 4, 4)))

    assert kinds(graph) == [OpKind.CONV_2D, OpKind.RELU, OpKind.ADD]


def test_a_clamp_behind_the_input_or_a_mean_stays_an_operator():
    module = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.ReLU6())

    graph = fuse_activations(average_over_the_whole_image(captured(module, (2, 4, 4))))

    assert kinds(graph) == [OpKind.RELU, OpKind.MEAN, OpKind.RELU]


def test_a_clamp_between_minus_one_and_one_is_a_product_where_nothing_before_it_takes_it():
    lone = write_lone_clamps_as_products(fuse_activations(captured(nn.Hardtanh(), (5,))))
    fused = write_lone_clamps_as_products(fuse_activations(captured(nn.Sequential(nn.Linear(5, 3), nn.Hardtanh()), (5,))))

    assert [(op.kind, op.activation) for op in lone.ops] == [(OpKind.MUL, Activation.RELU_N1_TO_1)]
    assert [(op.kind, op.activation) for op in fused.ops] == [(OpKind.FULLY_CONNECTED, Activation.RELU_N1_TO_1)]


def test_joined_pads_add_up():
    graph = join_pads(captured(Through(lambda m, x: F.pad(F.pad(x, (1, 0, 0, 2)), (0, 3, 1, 0))), (2, 4, 4)))

    assert [op.pads for op in graph.ops] == [(1, 2, 1, 3)]
    assert graph.activations[graph.output].shape == (1, 7, 8, 2)


def test_an_average_over_the_whole_image_becomes_a_mean_and_a_part_does_not():
    whole = average_over_the_whole_image(captured(nn.AvgPool2d((4, 6)), (2, 4, 6)))
    part = average_over_the_whole_image(captured(nn.AvgPool2d((4, 3)), (2, 4, 6)))

    assert kinds(whole) == [OpKind.MEAN]
    assert kinds(part) == [OpKind.AVERAGE_POOL_2D]


def test_a_mean_makes_features_without_a_reshape():
    module = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())

    graph = average_to_features(average_over_the_whole_image(captured(module, (3, 8))))

    assert kinds(graph) == [OpKind.MEAN]
    assert graph.activations[graph.output].shape == (1, 3)


def legalised(module, shape):
    return legalise_padding(join_pads(captured(module, shape)))


def test_odd_kernels_of_stride_one_become_same():
    graph = legalised(nn.Conv2d(2, 3, 3, padding=1), (2, 7, 8))

    assert [(op.kind, op.padding) for op in graph.ops] == [(OpKind.CONV_2D, "SAME")]


def test_stride_two_on_an_even_size_keeps_a_pad_without_the_unread_far_row():
    graph = legalised(nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 8, 8))

    assert [(op.kind, op.pads) for op in graph.ops] == [(OpKind.PAD, (1, 0, 1, 0)), (OpKind.CONV_2D, (0, 0, 0, 0))]
    assert graph.activations[graph.ops[0].output].shape == (1, 9, 9, 2)


def test_stride_two_on_an_odd_size_becomes_same():
    graph = legalised(nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 7, 9))

    assert [(op.kind, op.padding) for op in graph.ops] == [(OpKind.CONV_2D, "SAME")]


def test_asymmetric_padding_in_front_of_a_convolution_becomes_same_where_tflite_pads_alike():
    module = Through(lambda m, x: m.conv(F.pad(x, (0, 1, 0, 1))), conv=nn.Conv2d(2, 3, 3, stride=2))

    assert [(op.kind, op.padding) for op in legalised(module, (2, 8, 8)).ops] == [(OpKind.CONV_2D, "SAME")]


def test_padding_that_no_window_reads_disappears():
    module = Through(lambda m, x: m.conv(F.pad(x, (0, 1, 0, 1))), conv=nn.Conv2d(2, 3, 2, stride=2))

    assert [(op.kind, op.padding) for op in legalised(module, (2, 8, 8)).ops] == [(OpKind.CONV_2D, "VALID")]


def test_padding_in_front_of_a_pool_stays_a_pad_because_same_would_not_count_it():
    graph = legalised(nn.AvgPool2d(3, stride=1, padding=1), (2, 6, 6))

    assert kinds(graph) == [OpKind.PAD, OpKind.AVERAGE_POOL_2D]


@pytest.mark.parametrize("size, kernel, stride, expected", [(8, 3, 1, "SAME"), (7, 3, 2, "SAME"), (8, 3, 2, "VALID")])
def test_a_maximum_over_padding_becomes_same_where_tflite_pads_alike(size, kernel, stride, expected):
    graph = legalised(nn.MaxPool2d(kernel, stride=stride, padding=1), (2, size, size))

    assert graph.ops[-1].padding == expected
    assert [op.pad_value for op in graph.ops[:-1]] == ([] if expected == "SAME" else [-128])


def test_a_maximum_over_padded_zeros_keeps_them():
    graph = legalised(Through(lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)), (2, 6, 6))

    assert [(op.kind, op.pad_value) for op in graph.ops] == [(OpKind.PAD, None), (OpKind.MAX_POOL_2D, None)]


def test_padding_of_two_values_is_not_joined():
    graph = join_pads(captured(Through(lambda m, x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1, padding=1)), (2, 6, 6)))

    assert [op.pad_value for op in graph.ops] == [None, -128, None]


def test_padding_that_two_operators_read_stays_whole():
    def forward(module, x):
        padded = F.pad(x, (1, 1, 1, 1))
        return module.one(padded) + module.two(padded)

    graph = legalised(Through(forward, one=nn.Conv2d(2, 3, 3), two=nn.Conv2d(2, 3, 3)), (2, 4, 4))

    assert kinds(graph) == [OpKind.PAD, OpKind.CONV_2D, OpKind.CONV_2D, OpKind.ADD]
