# SPDX-License-Identifier: Apache-2.0
"""What modules do that is easily read wrongly: shared, computed and constant tensors, memory written in place, fixed batches."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from fedmote.errors import ConversionError, UnsupportedOpError
from fedmote.package.boards import Board
from fedmote.package.graph import OpKind
from fedmote_convert.capture import capture
from fedmote_convert.convert import convert

from .test_passes import Through


def refused(module, shape=(4, 6, 6)):
    with pytest.raises(UnsupportedOpError) as caught:
        capture(module.eval(), shape)
    assert "\n" not in str(caught.value)
    return caught.value


def test_functional_weights_are_named_as_the_checkpoint_names_them(assert_equals_torch):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel, self.matrix = nn.Parameter(torch.zeros(3, 2, 3, 3)), nn.Parameter(torch.zeros(4, 3))

        def forward(self, x):
            return F.linear(F.conv2d(x, self.kernel, padding=1).mean((2, 3)), self.matrix)

    graph = assert_equals_torch(Functional(), (2, 5, 5), seed=60)

    assert [op.source.weight for op in graph.ops if op.source is not None] == ["kernel", "matrix"]


def test_tied_weights_are_one_tensor(assert_equals_torch):
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight

    graph = assert_equals_torch(nn.Sequential(first, nn.Tanh(), second), (4,), seed=61)

    assert graph.ops[0].source.weight == graph.ops[-1].source.weight
    assert graph.ops[0].source.bias != graph.ops[-1].source.bias


@pytest.mark.parametrize(
    "layer",
    [
        weight_norm(nn.Conv2d(4, 3, 3)),
        parametrizations.weight_norm(nn.Conv2d(4, 3, 3)),
        parametrizations.spectral_norm(nn.Conv2d(4, 3, 3)),
        Through(lambda m, x: F.conv2d(x, 2 * m.conv.weight), conv=nn.Conv2d(4, 3, 3)),
        Through(lambda m, x: F.conv2d(x, m.conv.weight.transpose(0, 1)), conv=nn.Conv2d(3, 4, 3)),
        Through(lambda m, x: F.conv2d(x, m.conv.weight.view(2, 4, 3, 3)), conv=nn.Conv2d(2, 4, 3)),
    ],
)
def test_weights_that_are_computed_are_refused_with_what_folds_them(layer):
    error = refused(nn.Sequential(nn.Identity(), layer))

    assert error.node.startswith("1")
    assert "parameter" in error.reason
    assert "remove_parametrizations" in error.hint


def test_a_parametrization_that_was_folded_is_converted(assert_equals_torch):
    layer = parametrizations.weight_norm(nn.Conv2d(4, 3, 3))
    nn.utils.parametrize.remove_parametrizations(layer, "weight")

    assert_equals_torch(layer, (4, 6, 6), seed=62)


def test_factors_and_offsets_of_channels_come_from_the_checkpoint(assert_equals_torch):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)
            self.factor, self.position = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1, 3, 4, 5))
            self.register_buffer("mean", torch.zeros(2, 1, 1))

        def forward(self, x):
            return self.conv(x + self.mean) * self.factor.view(1, -1, 1, 1) + self.position

    graph = assert_equals_torch(Scaled(), (2, 6, 7), seed=63)

    constants = [(op.kind, op.source.weight) for op in graph.ops if op.kind in (OpKind.ADD, OpKind.MUL)]
    assert constants == [(OpKind.ADD, "mean"), (OpKind.MUL, "factor"), (OpKind.ADD, "position")]


def test_constants_of_the_source_text_are_kept_with_the_graph(assert_equals_torch):
    offset = torch.tensor([[0.5], [-1.0]])

    graph = assert_equals_torch(Through(lambda m, x: m.conv((x - offset) * 2), conv=nn.Conv1d(2, 3, 1)), (2, 6), seed=64)

    np.testing.assert_array_equal(graph.ops[0].constant.reshape(-1), [-0.5, 1.0])


def test_branches_that_nobody_reads_are_left_out_even_if_they_could_not_be_converted(assert_equals_torch):
    def forward(module, x):
        y = module.conv(x)
        F.gelu(y).cumsum(1)
        return torch.relu(y)

    graph = assert_equals_torch(Through(forward, conv=nn.Conv2d(2, 3, 1)), (2, 4, 4), seed=65)

    assert [op.kind for op in graph.ops] == [OpKind.CONV_2D]


def test_a_result_that_is_not_the_last_thing_computed_is_the_result(assert_equals_torch):
    def forward(module, x):
        y = module.conv(x)
        z = torch.relu(y)
        _ = torch.sigmoid(z) + y
        return z

    assert len(assert_equals_torch(Through(forward, conv=nn.Conv2d(2, 3, 1)), (2, 4, 4), seed=66).ops) == 1


def test_a_sample_that_is_read_twice_is_one_input(assert_equals_torch):
    def forward(module, x):
        return torch.cat([module.conv(x), x], 1) + x.mean((2, 3), keepdim=True).amax(1, keepdim=True)

    assert_equals_torch(Through(forward, conv=nn.Conv2d(2, 3, 1)), (2, 4, 4), seed=67)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.transpose(1, 2).relu_() + x.transpose(1, 2),
        lambda x: x.chunk(2, 1)[0].mul_(2) + x.chunk(2, 1)[1],
        lambda x: x[:, 1].add_(1) * x[:, 0],
        lambda x: torch.stack(x.unbind(1)[0].relu_().unbind(1), 1) + x[:, 0],
        lambda x: x.permute(0, 2, 3, 1).unsqueeze(1).clamp_(0, 1).squeeze(1) - x.permute(0, 2, 3, 1),
    ],
)
def test_memory_that_is_written_through_a_view_and_read_again_is_refused(function):
    error = refused(Through(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(4, 4, 1)))

    assert "read later" in error.reason
    assert "not in-place" in error.hint


def test_memory_that_is_written_through_a_permutation_and_not_read_again_is_converted(assert_equals_torch):
    module = Through(lambda m, x: m.conv(x).permute(0, 2, 3, 1).relu_().permute(0, 3, 1, 2), conv=nn.Conv2d(2, 4, 1))

    assert [op.kind for op in assert_equals_torch(module, (2, 5, 5), seed=68).ops] == [OpKind.CONV_2D]


def test_a_batch_normalisation_without_parameters_is_one_of_factor_one(assert_equals_torch):
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False))

    assert [op.kind for op in assert_equals_torch(module, (2, 5, 5), seed=69).ops] == [OpKind.CONV_2D]


def test_a_batch_normalisation_without_statistics_is_refused():
    error = refused(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)))

    assert str(error) == "1: a batch normalisation without statistics; use track_running_stats=True, and train it"


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)])
def test_a_normalisation_by_statistics_of_the_sample_is_refused(norm):
    assert "use BatchNorm" in refused(nn.Sequential(nn.Conv2d(4, 4, 1), norm)).hint


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_module_of_another_precision_is_refused_by_tensor(dtype):
    with pytest.raises(ConversionError, match=rf"tensor weight is {dtype}.*\.float\(\)"):
        capture(nn.Conv2d(4, 4, 1).to(dtype).eval(), (4, 6, 6))


def test_a_sum_of_two_precisions_is_refused():
    wide = torch.ones(1, 4, 1, 1, dtype=torch.float64)

    assert "does not return one float32 tensor" in refused(Through(lambda m, x: x + wide)).reason


@pytest.mark.parametrize("shape", [(0,), (3, 0, 8), (2, 0)])
def test_samples_without_elements_are_refused(shape):
    with pytest.raises(ConversionError, match=r"hold no elements; expected \(C, H, W\)"):
        capture(nn.ReLU().eval(), shape)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.softmax(0),
        lambda x: torch.stack([x, x]),
        lambda x: x.unsqueeze(0)[0, 0],
        lambda x: x[0],
    ],
)
def test_what_would_mix_the_samples_of_a_batch_is_refused(function):
    assert "batch" in str(refused(Through(lambda m, x: function(x))))


def test_a_module_that_takes_one_sample_at_a_time_is_refused_in_one_line():
    module = Through(lambda m, x: m.linear(m.conv(x).reshape(1, -1)), conv=nn.Conv2d(1, 2, 3), linear=nn.Linear(32, 3)).eval()
    x = np.random.default_rng(70).standard_normal((8, 1, 6, 6)).astype(np.float32)

    with pytest.raises(ConversionError, match=r"a batch of 8 samples.*x\.shape\[0\]") as caught:
        convert(module, x, [Board.load("posix")], model_id="m")

    assert "\n" not in str(caught.value)


def test_a_softmax_at_the_end_is_refused_as_a_head_with_what_to_do():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3), nn.Softmax(1)).eval()
    x = np.random.default_rng(71).standard_normal((8, 1, 6, 6)).astype(np.float32)

    with pytest.raises(UnsupportedOpError, match=r"ends with SOFTMAX; end the model with one nn\.Linear.*without softmax"):
        convert(module, x, [Board.load("posix")], model_id="m")
