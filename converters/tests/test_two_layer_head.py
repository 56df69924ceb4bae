# SPDX-License-Identifier: Apache-2.0
"""A torch model that ends in Linear, ReLU, Linear becomes a package whose head has two layers, and stays the same model."""

import numpy as np
import pytest
import torch
from torch import nn

from fedmote.package.boards import Board
from fedmote.package.file import Package
from fedmote.package.graph import Activation
from fedmote.package.head import HeadShape, head_tensors
from fedmote.package.partition import evaluate, push, run_features
from fedmote_convert.capture import capture
from fedmote_convert.convert import Conversion, convert
from fedmote_convert.cut import cut_at


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 12), nn.ReLU(), nn.Linear(12, 4)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).random((64, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def conversion(module: nn.Module, x: np.ndarray) -> Conversion:
    return convert(module, x, [Board.load("posix"), Board.load("stm32f405")], model_id="two", cut="3")


def test_the_head_has_both_layers_and_gives_the_logits_of_the_module(module, x, conversion):
    package = Package.read(conversion.package.to_bytes())
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()

    logits = package.logits(run_features(package, x))

    assert package.head_shape == HeadShape(54, 12, 4)
    assert [layer.activation for layer in conversion.head] == [Activation.RELU, Activation.NONE]
    assert conversion.head[0].chw == (6, 3, 3)
    assert package.manifest["head"] == [[54, 12], [12, 4]]
    assert np.median(np.abs(logits - expected)) < 0.02 * np.abs(expected).max()
    assert evaluate(package, x, expected.argmax(1).astype(np.int64)) > 0.9


def test_a_push_and_the_way_back_to_the_checkpoint_keep_every_number(conversion):
    tensors = {name: value * np.float32(1.5) for name, value in conversion.tensors.items()}

    package = push(conversion.package, tensors, None, 1)

    back = head_tensors(package.host.head, package.head_blob)
    assert sorted(back) == ["4.bias", "4.weight", "6.bias", "6.weight"]
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name])


def test_the_cut_by_itself_leaves_one_layer(module):
    assert [layer.weight for layer in cut_at(capture(module, (1, 8, 8))).head] == ["6.weight"]
