# SPDX-License-Identifier: Apache-2.0
"""The integer head: bit for bit as a host predicts it, without bias in its rounding, and as accurate as torch in float32."""

import numpy as np
import pytest

from fedmote.wire.schema import Loss
from firmware_tests.heads import DeviceHead, Layers, Options, TorchHead
from firmware_tests.integer_head import IntegerHead

torch = pytest.importorskip("torch")

HEADS = [Layers(64, 0, 10), Layers(61, 0, 7), Layers(48, 13, 6), Layers(33, 8, 5, is_relu=False), Layers(1, 0, 1), Layers(700, 0, 3)]
WAYS = [
    Options(0.02, seed=5),
    Options(0.5, seed=77),
    Options(1e-5, seed=1),
    Options(0.02, loss=Loss.SQUARED_ERROR),
    Options(0.05, trained_layers=1),
    Options(0.05, is_bias_only=True),
]


def problem(layers: Layers, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre per class, int8 (count, inputs), and labels."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(-128, 60, (layers.outputs, layers.inputs))
    y = rng.integers(0, layers.outputs, count)
    return np.clip(centres[y] + rng.normal(0, 60, (count, layers.inputs)), -128, 127).astype(np.int8), y


@pytest.mark.parametrize("layers", HEADS)
@pytest.mark.parametrize("options", WAYS)
def test_every_bit_is_as_predicted(layers: Layers, options: Options) -> None:
    x, y = problem(layers, 40, seed=2)
    base = layers.random_parameters(np.random.default_rng(4), 0.2)
    device = DeviceHead(layers, base, options, "fedmote_int16", 0.02, -128)
    host = IntegerHead(layers, base, options, 0.02, -128)
    for step, (features, label) in enumerate(zip(x, y, strict=True)):
        device.sgd_step(features[None], label[None])
        host.step(features, int(label))
        np.testing.assert_array_equal(device.deltas(), host.deltas(), err_msg=f"after step {step}")


def test_small_updates_are_not_lost() -> None:
    """A thousand steps, each a twentieth of a unit of the weights: rounded to the nearest unit they would all be lost."""
    layers = Layers(32, 0, 2)
    x = np.random.default_rng(1).integers(-128, 128, (1, 32)).astype(np.int8)
    base = np.zeros(layers.parameters, np.float32)
    base[0] = 1.0
    options = Options(2e-6)
    device, reference = DeviceHead(layers, base, options, "fedmote_int16"), TorchHead(layers, base, options)
    unit = 2.0 ** -int(np.floor(np.log2(32767 / 8)))
    reference.sgd_step(x, np.array([0]))
    assert np.abs(reference.parameters - base).max() < unit / 10
    for _ in range(3000):
        device.sgd_step(x, np.array([0]))
    for _ in range(2999):
        reference.sgd_step(x, np.array([0]))
    expected = reference.parameters - base
    # A number that gets k units further has taken k of them in about k steps drawn by lot: its deviation is near sqrt(k).
    deviation = (device.deltas() - expected)[:64] / unit / np.sqrt(np.abs(expected[:64]) / unit + 1)
    assert np.sqrt(np.mean(deviation**2)) < 1.3
    assert abs(np.mean(deviation)) < 0.4


@pytest.mark.parametrize("layers", [Layers(64, 0, 10), Layers(64, 12, 10)])
@pytest.mark.parametrize(
    ("batch", "options"),
    [
        (1, Options(0.01, 0.9)),
        (8, Options(0.02, 0.9)),
        (8, Options(0.02, 0.9, 0.01, 0.5)),
        (8, Options(0.02, 0.0, 0.0, 0.5)),
        (1, Options(0.02, 0.0, 0.01, 0.5)),
        (8, Options(0.02, 0.9, loss=Loss.SQUARED_ERROR)),
    ],
)
def test_every_option_leads_near_to_where_torch_gets(layers: Layers, batch: int, options: Options) -> None:
    x, y = problem(layers, 160, seed=3)
    base = layers.random_parameters(np.random.default_rng(4), 0.1)
    device = DeviceHead(layers, base, options, "fedmote_int16", 0.01, -128)
    reference = TorchHead(layers, base, options, 0.01, -128)
    for first in range(0, len(x), batch):
        losses = device.sgd_step(x[first : first + batch], y[first : first + batch])
        assert len(losses) == batch
        reference.sgd_step(x[first : first + batch], y[first : first + batch])
    expected = reference.parameters - base
    # A unit of the weights here, and a standard deviation of at most half of it for each change of each number.
    noise = 0.5 * 2.0**-12 * np.sqrt(layers.parameters * len(x) / batch)
    assert np.linalg.norm(device.deltas() - expected) < 0.04 * np.linalg.norm(expected) + noise


