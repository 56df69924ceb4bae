# SPDX-License-Identifier: Apache-2.0
"""What cannot be converted is refused with the node, the reason and the nearest supported form."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedmote.errors import ConversionError, UnsupportedOpError
from fedmote_convert.capture import capture


class Block(nn.Module):
    """A function inside a named module, behind a layer."""

    def __init__(self, function):
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.stem(x))


def refuse(module, shape=(4, 8, 8)):
    with pytest.raises(UnsupportedOpError) as caught:
        capture(nn.Sequential(nn.Identity(), module).eval(), shape)
    return caught.value


@pytest.mark.parametrize(
    "module, reason, hint",
    [
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding of mode 'reflect'", "pad with zeros"),
        (nn.MaxPool2d(2, dilation=2), "max pool with dilation", "dilation=1"),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), "is not counted", "count_include_pad=True"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor 3", "divisor_override"),
        (nn.AdaptiveAvgPool2d(3), "8 x 8 to 3 x 3", "divides the input"),
        (nn.GELU(), "aten.gelu", "ReLU"),
        (nn.LogSoftmax(1), "aten.log_softmax", "Linear that makes the logits"),
        (nn.ConvTranspose2d(4, 4, 2), "aten.conv_transpose2d", "Conv2d"),
        (nn.GroupNorm(2, 4), "aten.group_norm", "BatchNorm"),
        (nn.PReLU(), "aten.prelu", "ReLU"),
    ],
)
def test_an_unsupported_layer_is_refused_by_path_reason_and_hint(module, reason, hint):
    error = refuse(module)

    assert error.node == "1"
    assert reason in error.reason
    assert hint in error.hint
    assert str(error) == f"{error.node}: {error.reason}; {error.hint}"


@pytest.mark.parametrize(
    "function, reason, hint",
    [
        (lambda x: x.mean(), "along the batch", "one by one"),
        (lambda x: x.mean((2, 3), keepdim=True) * x[:1, :1, :, :1], "multiplication of", "one shape"),
        (lambda x: torch.cat([x, x], 0), "along the batch", "one by one"),
        (lambda x: x.max(dim=2)[1], "aten.max.dim does not return one float32 tensor", "supported are"),
        (lambda x: x.view(4, 64), "a result of shape (4, 64)", "the batch of 1 in front"),
        (lambda x: x.view(-1, 64), "a result of shape (4, 64)", "the batch of 1 in front"),
        (lambda x: F.pad(x, (1, 1), value=2.0), "value 2.0", "zeros"),
        (lambda x: F.pad(x, (-1, 0)), "padding by [-1, 0]", "zero or more"),
        (lambda x: x.half().float(), "does not return one float32 tensor", "supported are"),
        (lambda x: F.max_pool2d(x.flatten(1), 2) if x.ndim == 2 else F.relu(x.flatten(2)).sum(2), "aten.sum", "use mean"),
    ],
)
def test_an_unsupported_call_is_refused_by_path_of_its_module_and_name(function, reason, hint):
    error = refuse(Block(function))

    assert error.node.startswith("1:")
    assert reason in error.reason
    assert hint in error.hint


def relu_through_a_view(x):
    flat = x.view(x.shape)
    flat.relu_()
    return x


def relu_through_a_view_and_read_both(x):
    flat = x.view(x.shape)
    return flat.relu_() + x


def zero_a_channel(x):
    x[:, 0] = 0
    return x


@pytest.mark.parametrize("function", [relu_through_a_view, relu_through_a_view_and_read_both, zero_a_channel])
def test_an_in_place_operator_that_changes_what_is_read_elsewhere_is_refused(function):
    error = refuse(Block(function))

    assert "read later" in error.reason or "part of a tensor" in error.reason
    assert "not in-place" in error.hint


def test_an_in_place_operator_may_change_what_nobody_reads_again(assert_equals_torch):
    assert_equals_torch(Block(lambda x: F.hardtanh_(torch.relu_(x).view(x.shape), 0, 6)), (4, 6, 6), seed=24)


def test_a_module_in_training_mode_is_refused():
    with pytest.raises(ConversionError, match=r"training mode.*\.eval\(\)"):
        capture(nn.Conv2d(1, 1, 1), (1, 4, 4))


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm2d(4)])
def test_a_layer_left_in_training_mode_is_refused_by_its_path(layer):
    module = nn.Sequential(nn.Conv2d(4, 4, 1), layer).eval()
    layer.train()

    with pytest.raises(UnsupportedOpError, match=r"1: a .* in training mode; .*\.eval\(\)"):
        capture(module, (4, 8, 8))


def test_a_module_of_another_float_type_is_refused_by_tensor():
    with pytest.raises(ConversionError, match=r"weight is torch\.float16.*\.float\(\)"):
        capture(nn.Linear(3, 2).half().eval(), (3,))


def test_a_sample_of_another_shape_is_refused_with_torchs_own_reason():
    with pytest.raises(ConversionError, match=r"shape \(3, 8, 8\).*channels"):
        capture(nn.Conv2d(4, 4, 1).eval(), (3, 8, 8))


def test_a_module_that_branches_on_values_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ConversionError, match="branch on values"):
        capture(Branching().eval(), (4,))


def test_a_module_with_two_results_is_refused():
    class Two(nn.Module):
        def forward(self, x):
            return torch.relu(x), x

    with pytest.raises(ConversionError, match="returns 2 values"):
        capture(Two().eval(), (4,))


def test_a_module_that_ignores_its_input_is_refused():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 3))

        def forward(self, x):
            return torch.relu(self.weight)

    with pytest.raises(ConversionError, match="depends on 0 inputs"):
        capture(Constant().eval(), (4,))


def test_samples_with_too_many_axes_are_refused():
    with pytest.raises(ConversionError, match=r"samples of shape \(2, 2, 2, 2\): expected \(C, H, W\)"):
        capture(nn.ReLU().eval(), (2, 2, 2, 2))
