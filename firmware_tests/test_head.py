# SPDX-License-Identifier: Apache-2.0
"""The float head against torch, and its gradient against differences of its own loss."""

import ctypes

import numpy as np
import pytest

from firmware_tests.native import Head, library

torch = pytest.importorskip("torch")
functional = torch.nn.functional

SCALE, ZERO_POINT = 0.0473, -11


class CHead:
    """A head of the SDK in buffers of NumPy.

    Attributes:
        parameters: f32 (outputs * inputs + outputs), weights then bias.
        velocity: the same shape.
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        self.outputs, self.inputs = weight.shape
        self.parameters = np.concatenate([weight.ravel(), bias]).astype(np.float32)
        self.velocity = np.zeros_like(self.parameters)
        self._scratch = np.zeros(self.inputs + self.outputs, np.float32)
        buffers = (self.parameters.ctypes.data, self.velocity.ctypes.data, self._scratch.ctypes.data)
        self._struct = Head(*buffers, self.inputs, self.outputs, SCALE, ZERO_POINT)

    def logits(self, features: np.ndarray) -> np.ndarray:
        out = np.zeros(self.outputs, np.float32)
        library().fedmote_head_forward(ctypes.byref(self._struct), features.tobytes(), ctypes.c_void_p(out.ctypes.data))
        return out

    def loss(self, features: np.ndarray, label: int) -> tuple[float, float]:
        norm = ctypes.c_float()
        loss = library().fedmote_head_loss(ctypes.byref(self._struct), features.tobytes(), int(label), ctypes.byref(norm))
        return loss, norm.value

    def sgd_step(self, features: np.ndarray, labels: np.ndarray, learning_rate: float, momentum: float) -> list[float]:
        head, lib = ctypes.byref(self._struct), library()
        lib.fedmote_head_batch_begin(head, ctypes.c_float(momentum))
        losses = [
            lib.fedmote_head_batch_add(head, x.tobytes(), int(y), len(labels)) for x, y in zip(features, labels, strict=True)
        ]
        lib.fedmote_head_batch_end(head, ctypes.c_float(learning_rate))
        return losses

    def single_step(self, features: np.ndarray, labels: np.ndarray, learning_rate: float) -> list[float]:
        step = library().fedmote_head_step
        return [
            step(ctypes.byref(self._struct), x.tobytes(), int(y), ctypes.c_float(learning_rate))
            for x, y in zip(features, labels, strict=True)
        ]


def problem(seed: int, count: int, inputs: int = 64, outputs: int = 10) -> tuple[np.ndarray, ...]:
    """Weight, bias, int8 features (count, inputs), labels (count,)."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 0.1, (outputs, inputs)).astype(np.float32)
    bias = rng.normal(0, 0.1, outputs).astype(np.float32)
    return weight, bias, rng.integers(-128, 128, (count, inputs)).astype(np.int8), rng.integers(0, outputs, count)


def dequantized(features: np.ndarray) -> np.ndarray:
    return (features.astype(np.float32) - ZERO_POINT) * np.float32(SCALE)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Relative to the largest element: single elements may cancel to almost nothing."""
    error = np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batch", [1, 16])
def test_ten_sgd_steps_equal_torch(batch: int, momentum: float) -> None:
    weight, bias, features, labels = problem(seed=1, count=10 * batch)
    head = CHead(weight, bias)
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=momentum)

    for step in range(10):
        x, y = features[step * batch :][:batch], labels[step * batch :][:batch]
        losses = head.sgd_step(x, y, 0.01, momentum)
        optimizer.zero_grad()
        loss = functional.cross_entropy(layer(torch.from_numpy(dequantized(x)).double()), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        assert np.mean(losses) == pytest.approx(loss.item(), rel=1e-5)

    expected = torch.cat([layer.weight.ravel(), layer.bias]).detach().numpy()
    assert not np.allclose(expected[: weight.size], weight.ravel(), rtol=1e-3)
    assert_close(head.parameters, expected)


@pytest.mark.parametrize("inputs", [61, 64])
def test_single_steps_equal_mini_batches_of_one_without_momentum_and_leave_the_velocity(inputs: int) -> None:
    weight, bias, features, labels = problem(seed=6, count=20, inputs=inputs)
    single, batched = CHead(weight, bias), CHead(weight, bias)
    losses = single.single_step(features, labels, 0.01)
    expected = [batched.sgd_step(x[None], y[None], 0.01, 0.0)[0] for x, y in zip(features, labels, strict=True)]

    assert losses == pytest.approx(expected, rel=1e-5)
    assert_close(single.parameters, batched.parameters)
    assert not single.velocity.any()


def test_gradient_equals_differences_of_the_loss() -> None:
    weight, bias, features, labels = problem(seed=2, count=1, inputs=12, outputs=4)
    head = CHead(weight, bias)
    head.sgd_step(features, labels, 0.0, 0.0)
    gradient = head.velocity.astype(np.float64)

    step = 1e-2
    numeric = np.zeros_like(gradient)
    for i in range(len(gradient)):
        losses = []
        for sign in (1, -1):
            moved = CHead(weight, bias)
            moved.parameters[i] += np.float32(sign * step)
            losses.append(moved.loss(features[0], labels[0])[0])
        numeric[i] = (losses[0] - losses[1]) / (2 * step)

    assert np.linalg.norm(numeric - gradient) <= 5e-3 * np.linalg.norm(gradient)


def test_loss_norm_and_logits_equal_torch() -> None:
    weight, bias, features, labels = problem(seed=3, count=50)
    head = CHead(weight, bias)
    for x, y in zip(features, labels, strict=True):
        a = torch.from_numpy(dequantized(x)).double()
        w = torch.from_numpy(weight).double().requires_grad_()
        logits = w @ a + torch.from_numpy(bias).double()
        expected = functional.cross_entropy(logits[None], torch.tensor([int(y)]))
        expected.backward()

        loss, norm = head.loss(x, y)

        assert_close(head.logits(x), logits.detach().numpy())
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert norm == pytest.approx(w.grad.norm().item(), rel=1e-5)


def test_loss_without_norm_and_training_leave_the_same_parameters_for_all_orders_of_calls() -> None:
    weight, bias, features, labels = problem(seed=4, count=4)
    plain, interleaved = CHead(weight, bias), CHead(weight, bias)
    plain.sgd_step(features, labels, 0.1, 0.0)
    interleaved.loss(features[2], labels[2])
    interleaved.sgd_step(features, labels, 0.1, 0.0)
    null_norm = library().fedmote_head_loss(ctypes.byref(plain._struct), features[0].tobytes(), int(labels[0]), None)

    np.testing.assert_array_equal(plain.parameters, interleaved.parameters)
    assert null_norm == interleaved.loss(features[0], labels[0])[0]


def test_huge_logits_give_finite_losses_and_gradients() -> None:
    weight, bias, features, _ = problem(seed=5, count=1, inputs=8, outputs=3)
    head = CHead(weight * 1e4, bias)
    best = int(head.logits(features[0]).argmax())

    losses = [head.loss(features[0], label)[0] for label in range(3)]
    head.sgd_step(features, np.array([(best + 1) % 3]), 0.1, 0.0)

    assert np.all(np.isfinite(losses))
    assert losses[best] == 0.0
    assert np.all(np.isfinite(head.parameters))
