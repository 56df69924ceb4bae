# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from fedmote.errors import ConfigError, ConversionError, UnsupportedOpError
from fedmote.lab.models import digits_cnn, har_cnn, residual_cnn
from fedmote.package.graph import HeadLayer, OpKind
from fedmote_convert.capture import capture
from fedmote_convert.cut import cut_at
from fedmote_convert.passes import run_passes


@pytest.fixture(scope="module")
def digits():
    return capture(digits_cnn(), (1, 8, 8))


@pytest.fixture(scope="module")
def residual():
    return capture(residual_cnn(), (3, 8, 8))


def test_the_last_cut_is_before_the_last_linear_and_says_why(digits):
    cut = cut_at(digits)

    assert cut.head == (HeadLayer("head.weight", "head.bias", 48, 10),)
    assert cut.features == 48
    assert cut.encoder.ops[-1].kind is OpKind.RESHAPE
    assert cut.reason.startswith(
        "last edge whose rest is one Linear: 48 features behind flatten; the same features as behind average"
    )


def test_a_window_model_is_cut_behind_its_average():
    cut = cut_at(capture(har_cnn(), (9, 128)))

    assert cut.head == (HeadLayer("head.weight", "head.bias", 64, 6),)
    assert run_passes(cut.encoder).activations[cut.encoder.output].shape == (1, 64)


def test_a_head_behind_a_flatten_knows_the_flattened_shape(residual):
    assert cut_at(residual).head == (HeadLayer("head.weight", "head.bias", 128, 4, chw=(8, 4, 4)),)


def test_a_cut_before_the_flatten_keeps_the_same_encoder(digits):
    by_name = cut_at(digits, "average")

    assert by_name.encoder == cut_at(digits).encoder
    assert by_name.reason == "cut behind average, as asked for"


def test_a_module_that_is_called_twice_is_cut_behind_its_last_call():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.pool(self.conv(self.pool(x))).flatten(1))

    cut = cut_at(capture(Network().eval(), (1, 8, 8)), "pool")

    assert cut.features == 4


def test_a_cut_further_up_is_refused_with_what_the_head_would_be(digits):
    with pytest.raises(UnsupportedOpError) as caught:
        cut_at(digits, "bn3")

    assert caught.value.node == "bn3"
    assert "must be one Linear, or two" in caught.value.reason
    assert "pool, average, head" in caught.value.reason
    assert "average" in caught.value.hint


def test_a_cut_inside_a_residual_block_is_refused_with_what_else_is_alive(residual):
    with pytest.raises(UnsupportedOpError) as caught:
        cut_at(residual, "depthwise")

    assert caught.value.node == "depthwise"
    assert "inside a branch or residual block" in caught.value.reason
    assert "also needs hardtanh:" in caught.value.reason


def test_edges_inside_a_residual_block_are_no_candidates(residual):
    modules = [candidate.module for candidate in cut_at(residual).candidates]

    assert not {"depthwise", "depthwise_bn", "pointwise"} & set(modules)
    assert {"stem", "stem_bn", "flatten"} <= set(modules)


def test_an_unknown_name_is_refused_with_the_names_there_are(digits):
    with pytest.raises(ConfigError, match=r"--cut nothing: .*conv1, bn1, .*head"):
        cut_at(digits, "nothing")


@pytest.mark.parametrize(
    "model, place, kind",
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), "1", "RELU"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU()), "4", "RELU"),
    ],
)
def test_a_model_that_does_not_end_with_one_linear_is_refused(model, place, kind):
    with pytest.raises(UnsupportedOpError) as caught:
        cut_at(capture(model.eval(), (1, 4, 4)))

    assert caught.value.node == place
    assert f"ends with {kind}" in caught.value.reason


@pytest.mark.parametrize("where", ["last", "1", "0"])
def test_a_model_that_is_one_linear_leaves_no_encoder(where):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Identity())
    if where == "1":
        with pytest.raises(UnsupportedOpError, match="head would be empty"):
            cut_at(capture(model.eval(), (1, 4, 4)), where)
        return
    with pytest.raises(ConversionError, match="nothing before it would be left to freeze"):
        cut_at(capture(model.eval(), (1, 4, 4)), where)


def test_a_head_without_bias_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))

    with pytest.raises(UnsupportedOpError, match="2: the head's Linear has no bias"):
        cut_at(capture(model.eval(), (4,)))


def test_two_linears_with_nothing_between_are_cut_between_them():
    cut = cut_at(capture(nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2)).eval(), (4,)))

    assert (cut.head[0].weight, cut.features) == ("2.weight", 5)


def test_capturing_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    capture(digits_cnn(), (1, 8, 8))

    assert torch.equal(torch.rand(3), expected)


def test_captured_tensors_do_not_change_when_the_module_is_trained_on():
    module = digits_cnn()
    tensors = capture(module, (1, 8, 8)).tensors
    before = tensors["head.bias"].copy()
    with torch.no_grad():
        module.head.bias += 1

    assert (tensors["head.bias"] == before).all()
