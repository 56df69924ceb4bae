# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: what is trained is what the int8 form computes."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from fedmote.errors import UnsupportedOpError
from fedmote.package.boards import Board
from fedmote.package.partition import run_features
from fedmote_convert.calibration import Recipe
from fedmote_convert.convert import convert
from fedmote_convert.qat import FakeQuantized, fake_quantize
from fedmote_convert.sources import load_ranges

BITS = 4


@pytest.fixture(scope="module")
def digits_data():
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(1).permutation(len(bunch.target))
    return (bunch.images[order, None] / 16).astype(np.float32), bunch.target[order].astype(np.int64)


class Separable(nn.Module):
    """Four depthwise separable blocks of eight channels: 4 bits hurt."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
            layers += [nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.layers(x))


def train(network, parameters, x, y, epochs, rate, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(parameters, rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()
            optimizer.step()


def chosen(package, x):
    return package.logits(run_features(package, x)).argmax(axis=1)


@pytest.fixture(scope="module")
def trained(digits_data):
    """(module before, fake-quantized module after a training with 4 bits)."""
    x, y = digits_data
    torch.manual_seed(3)
    module = Separable().train()
    train(module, module.parameters(), x[:1200], y[:1200], epochs=8, rate=6e-3, seed=3)
    fake = FakeQuantized(copy.deepcopy(module.eval()), x[:200], weight_bits=BITS)
    train(fake, fake.parameters(), x[:1200], y[:1200], epochs=4, rate=2e-3, seed=4)
    return module, fake


def test_training_with_four_bits_regains_what_rounding_after_it_loses(trained, digits_data):
    x, y = digits_data
    module, fake = trained
    boards = [Board.load("posix")]
    bits = fake.weight_bits
    plain = Recipe(weight_bits=bits, is_equalised=False, correction_samples=0)
    after = convert(module, x[:200], boards, model_id="m", recipe=plain).package
    aware = convert(fake.module, x[:200], boards, model_id="m", recipe=Recipe(ranges=fake.ranges(), weight_bits=bits)).package
    with torch.no_grad():
        exact = float((module(torch.from_numpy(x[1200:])).argmax(dim=1).numpy() == y[1200:]).mean())
    rounded, regained = (float((chosen(package, x[1200:]) == y[1200:]).mean()) for package in (after, aware))
    print(f"float {exact:.3f}, 4 bits after training {rounded:.3f}, trained with 4 bits {regained:.3f}")

    assert rounded < exact - 0.05
    assert regained > rounded + 0.05
    assert regained > exact - 0.02


def test_the_int8_form_chooses_what_the_fake_quantized_module_chooses(trained, digits_data):
    x, _ = digits_data
    _, fake = trained
    recipe = Recipe(ranges=fake.ranges(), weight_bits=fake.weight_bits)
    package = convert(fake.module, x[:200], [Board.load("posix")], model_id="m", recipe=recipe).package
    with torch.no_grad():
        expected = fake(torch.from_numpy(x[1200:])).argmax(dim=1).numpy()

    np.testing.assert_array_equal(chosen(package, x[1200:]), expected)


def test_the_modules_state_keeps_its_names_and_statistics(trained):
    module, fake = trained
    before, after = module.state_dict(), fake.module.state_dict()

    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not torch.equal(before["layers.0.weight"], after["layers.0.weight"])


def test_saved_ranges_are_read_as_they_were(trained, tmp_path):
    _, fake = trained
    fake.save(tmp_path / "ranges.json")
    read = load_ranges(tmp_path / "ranges.json")

    assert read.ranges == fake.ranges()
    assert read.weight_bits == fake.weight_bits == json.loads((tmp_path / "ranges.json").read_text())["weight_bits"]


def test_gradients_reach_values_inside_and_the_ends_for_those_outside():
    values = torch.tensor([-3.0, 0.4, 5.0], requires_grad=True)
    low, high = (torch.tensor(limit, requires_grad=True) for limit in (-1.0, 2.0))
    fake_quantize(values, low, high).sum().backward()

    assert values.grad.tolist() == [0.0, 1.0, 0.0]
    assert high.grad.item() == pytest.approx(1.0, abs=0.01)  # the value inside adds its rounding error, a share of 255 steps
    assert low.grad.item() == pytest.approx(1.0, abs=0.01)


def test_an_operator_that_cannot_be_trained_here_is_refused():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.cat([self.one(x), self.two(x)], 1).mean(dim=(2, 3)))

    with pytest.raises(UnsupportedOpError, match="CONCATENATION in a quantization-aware training"):
        FakeQuantized(Joined().eval(), np.random.default_rng(0).standard_normal((4, 1, 4, 4)).astype(np.float32))
