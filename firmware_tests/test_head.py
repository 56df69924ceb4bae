# SPDX-License-Identifier: Apache-2.0
"""The float head against torch, and its gradient against differences of its own loss."""

import ctypes
import itertools

import numpy as np
import pytest

from fedmote.wire.schema import Loss
from firmware_tests.heads import SCALE, ZERO_POINT, DeviceHead, Layers, Options, TorchHead
from firmware_tests.native import HeadShape, library

torch = pytest.importorskip("torch")

ONE, TWO, LINEAR = Layers(61, 0, 10), Layers(61, 13, 10), Layers(24, 9, 5, is_relu=False)
# Every combination that takes another way through the code: batch, momentum, decay, clipping that bites.
WAYS = [
    (batch, Options(0.02, momentum, decay, clip))
    for batch, momentum, decay, clip in itertools.product((1, 16), (0.0, 0.9), (0.0, 0.01), (0.0, 0.7))
]


def problem(layers: Layers, seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, int8 features (count, inputs), labels (count,)."""
    rng = np.random.default_rng(seed)
    base = layers.random_parameters(rng)
    return base, rng.integers(-128, 128, (count, layers.inputs)).astype(np.int8), rng.integers(0, layers.outputs, count)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Relative to the largest element: single elements may cancel to almost nothing."""
    error = np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"relative error {error:.2e}"


def assert_ten_steps_equal_torch(layers: Layers, batch: int, options: Options) -> None:
    base, features, labels = problem(layers, seed=1, count=10 * batch)
    device, reference = DeviceHead(layers, base, options), TorchHead(layers, base, options)
    for step in range(10):
        x, y = features[step * batch :][:batch], labels[step * batch :][:batch]
        losses = device.sgd_step(x, y)
        assert len(losses) == batch
        assert np.mean(losses) == pytest.approx(reference.sgd_step(x, y), rel=1e-5)
    assert_close(device.own, reference.parameters)
    np.testing.assert_array_equal(device.deltas(), device.own - base)


@pytest.mark.parametrize("layers", [ONE, TWO, LINEAR])
@pytest.mark.parametrize(("batch", "options"), WAYS)
def test_ten_sgd_steps_equal_torch(layers: Layers, batch: int, options: Options) -> None:
    assert_ten_steps_equal_torch(layers, batch, options)


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("is_bias_only", [False, True])
@pytest.mark.parametrize("trained_layers", [1, 2])
@pytest.mark.parametrize("batch", [1, 8])
def test_parts_of_a_head_train_as_in_torch_and_the_rest_stays(
    batch: int, trained_layers: int, is_bias_only: bool, loss: Loss
) -> None:
    options = Options(0.02, 0.9, 0.01, 0.5, loss, trained_layers, is_bias_only)
    for momentum in (0.0, 0.9):
        assert_ten_steps_equal_torch(TWO, batch, Options(0.02, momentum, 0.01, 0.5, loss, trained_layers, is_bias_only))
    base, features, labels = problem(TWO, 2, batch)
    head = DeviceHead(TWO, base, options)
    head.sgd_step(features, labels)
    (weights, bias), (last_weights, last_bias) = TWO.split(head.deltas())
    assert last_bias.any()
    assert bias.any() == (trained_layers == 2)
    assert last_weights.any() == (not is_bias_only)
    assert weights.any() == (trained_layers == 2 and not is_bias_only)


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("layers", [ONE, TWO, LINEAR])
def test_gradient_equals_torch_and_differences_of_the_loss(layers: Layers, loss: Loss) -> None:
    base, features, labels = problem(layers, seed=2, count=4)
    head = DeviceHead(layers, base, Options(0.0, 0.5, loss=loss))
    head.sgd_step(features, labels)
    gradient = head.velocity.astype(np.float64) / 0.5  # what is left of it for the next step

    assert_close(gradient, TorchHead(layers, base, Options(loss=loss)).gradient(features, labels))
    step = 1e-2
    for i in np.random.default_rng(3).choice(layers.parameters, 40, replace=False):
        losses = []
        for sign in (1, -1):
            moved = base.copy()
            moved[i] += np.float32(sign * step)
            other = DeviceHead(layers, moved, Options(loss=loss))
            losses.append(np.mean([other.loss_alone(x, y) for x, y in zip(features, labels, strict=True)]))
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(gradient[i], abs=0.03 * np.abs(gradient).max())


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("layers", [ONE, TWO])
def test_loss_norm_and_logits_equal_torch(layers: Layers, loss: Loss) -> None:
    base, features, labels = problem(layers, seed=3, count=50)
    head, reference = DeviceHead(layers, base, Options(loss=loss)), TorchHead(layers, base, Options(loss=loss))
    shape = HeadShape(layers.inputs, layers.hidden, layers.outputs, layers.is_relu, SCALE, ZERO_POINT)
    hidden, logits = np.zeros(layers.hidden, np.float32), np.zeros(layers.outputs, np.float32)
    for x, y in zip(features, labels, strict=True):
        value, norm = head.loss(x, y)
        library().fedmote_head_logits(
            ctypes.byref(shape), ctypes.c_void_p(base.ctypes.data), x.tobytes(), ctypes.c_void_p(hidden.ctypes.data),
            ctypes.c_void_p(logits.ctypes.data))  # fmt: skip

        assert_close(logits, reference.logits(x[None])[0].detach().numpy())
        assert value == pytest.approx(float(reference.loss(x[None], [y])), rel=1e-5)
        last, _ = layers.split(reference.gradient(x[None], [y]))[-1]
        assert norm == pytest.approx(np.linalg.norm(last), rel=1e-5)
        assert head.loss_alone(x, y) == value


@pytest.mark.parametrize("inputs", [61, 64])
def test_single_samples_without_momentum_leave_the_velocity_alone(inputs: int) -> None:
    layers = Layers(inputs, 0, 10)
    base, features, labels = problem(layers, seed=6, count=20)
    head = DeviceHead(layers, base, Options())
    for x, y in zip(features, labels, strict=True):
        head.sgd_step(x[None], y[None])
    assert not head.velocity.any()


def test_input_gradient_of_a_layer_equals_torch() -> None:
    rng = np.random.default_rng(8)
    weights, error = rng.normal(size=(7, 11)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    out = np.zeros(11, np.float32)
    library().fedmote_head_input_gradient(
        ctypes.c_void_p(weights.ctypes.data), 11, 7, ctypes.c_void_p(error.ctypes.data), ctypes.c_void_p(out.ctypes.data)
    )
    assert_close(out, weights.astype(np.float64).T @ error)


def test_exponentials_are_exact_over_their_whole_range() -> None:
    """Through the loss of two classes: log(1 + exp(-d)) and its gradient, for differences d up to where it vanishes."""
    layers = Layers(1, 0, 2)
    for difference in np.linspace(0, 100, 400):
        head = DeviceHead(layers, np.array([0, 0, difference, 0], np.float32), Options(1.0))
        head.sgd_step(np.zeros((1, 1), np.int8), np.array([0]))
        expected = np.exp(-np.float64(np.float32(difference))) / (1 + np.exp(-np.float64(np.float32(difference))))
        assert -head.deltas()[3] == pytest.approx(expected, rel=1e-6, abs=1e-37)


def test_losses_and_training_leave_the_same_parameters_for_all_orders_of_calls() -> None:
    base, features, labels = problem(TWO, seed=4, count=4)
    plain, interleaved = DeviceHead(TWO, base, Options(0.1)), DeviceHead(TWO, base, Options(0.1))
    plain.sgd_step(features, labels)
    interleaved.loss(features[2], labels[2])
    interleaved.sgd_step(features, labels)

    np.testing.assert_array_equal(plain.own, interleaved.own)


def test_huge_logits_give_finite_losses_and_gradients() -> None:
    layers = Layers(8, 0, 3)
    base, features, _ = problem(layers, seed=5, count=1)
    head = DeviceHead(layers, base * 1e4, Options(0.1))

    losses = [head.loss_alone(features[0], label) for label in range(3)]
    head.sgd_step(features, np.array([(int(np.argmin(losses)) + 1) % 3]))

    assert np.all(np.isfinite(losses))
    assert min(losses) == 0.0
    assert np.all(np.isfinite(head.own))
