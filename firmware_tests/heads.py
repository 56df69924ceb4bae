# SPDX-License-Identifier: Apache-2.0
"""The head of the SDK in buffers of NumPy, in either arithmetic, and the same head in torch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from fedmote.wire.schema import Loss
from firmware_tests.native import Arithmetic, Head, HeadShape, Training, address_of, library

SCALE, ZERO_POINT = 0.0473, -11


@dataclass(frozen=True)
class Options:
    """How to train, as in a plan; the defaults are plain SGD on everything."""

    learning_rate: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    loss: Loss = Loss.CROSS_ENTROPY
    trained_layers: int = 2
    is_bias_only: bool = False
    seed: int = 0

    def training(self) -> Training:
        micro = [round(value * 1e6) for value in (self.learning_rate, self.momentum, self.weight_decay, self.clip_norm)]
        return Training(*micro, int(self.loss), self.trained_layers, self.is_bias_only, self.seed)


@dataclass(frozen=True)
class Layers:
    """Sizes of a head: `hidden` 0 is one layer."""

    inputs: int = 64
    hidden: int = 0
    outputs: int = 10
    is_relu: bool = True

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer."""
        if not self.hidden:
            return [(self.inputs, self.outputs)]
        return [(self.inputs, self.hidden), (self.hidden, self.outputs)]

    @property
    def parameters(self) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in self.sizes)

    def random_parameters(self, rng: np.random.Generator, scale: float = 0.1) -> np.ndarray:
        """float32 (parameters,)"""
        return rng.normal(0, scale, self.parameters).astype(np.float32)

    def split(self, values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weights (outputs, inputs) and bias of each layer, views into `values`."""
        parts, start = [], 0
        for inputs, outputs in self.sizes:
            end = start + inputs * outputs
            parts.append((values[start:end].reshape(outputs, inputs), values[end : end + outputs]))
            start = end + outputs
        return parts


class DeviceHead:
    """A head of the SDK.

    Attributes:
        base: float32 parameters that it began with.
        own: parameters in the arithmetic's own numbers.
        velocity: 32-bit words.
    """

    def __init__(self, layers: Layers, base: np.ndarray, options: Options, arithmetic: str = "fedmote_float32",
                 scale: float = SCALE, zero_point: int = ZERO_POINT) -> None:  # fmt: skip
        self.layers, self.base = layers, np.array(base, np.float32)
        self._functions = Arithmetic.from_address(address_of(library(), arithmetic))
        is_float = self._functions.parameter_bytes == 4
        self.own = np.zeros(layers.parameters, np.float32 if is_float else np.int16)
        self.velocity = np.full(layers.parameters, 77, np.float32 if is_float else np.int32)
        words = layers.outputs + 2 * layers.hidden + self._functions.words_per_input * max(layers.inputs, layers.hidden)
        self._scratch = np.zeros(words + 1, np.float32)
        self._scratch[-1] = 12345.0
        shape = HeadShape(layers.inputs, layers.hidden, layers.outputs, layers.is_relu, scale, zero_point)
        buffers = (self.own.ctypes.data, self.velocity.ctypes.data, self._scratch.ctypes.data)
        self.struct = Head(address_of(library(), arithmetic), shape, options.training(), *buffers)
        self._pointer = ctypes.pointer(self.struct)
        self._functions.begin(self._pointer, self.base.ctypes.data)

    def loss(self, features: np.ndarray, label: int) -> tuple[float, float]:
        norm = ctypes.c_float()
        loss = self._functions.loss(self._pointer, features.tobytes(), int(label), ctypes.addressof(norm))
        assert self._scratch[-1] == 12345.0
        return loss, norm.value

    def loss_alone(self, features: np.ndarray, label: int) -> float:
        return self._functions.loss(self._pointer, features.tobytes(), int(label), None)

    def sgd_step(self, features: np.ndarray, labels: np.ndarray) -> list[float]:
        """One mini-batch; the losses of its samples before it."""
        self._functions.batch_begin(self._pointer, len(labels))
        losses: list[float] = []
        while True:
            is_counting = self.struct.is_counting
            seen = [self._functions.batch_add(self._pointer, x.tobytes(), int(y)) for x, y in zip(features, labels, strict=True)]
            losses += seen if is_counting else []
            if not self._functions.batch_end(self._pointer):
                break
        assert self._scratch[-1] == 12345.0
        return losses

    def deltas(self) -> np.ndarray:
        """float32 (parameters,): what an update would hold."""
        count = self.layers.parameters
        return np.array([self._functions.delta(self._pointer, self.base.ctypes.data, i) for i in range(count)], np.float32)


class TorchHead:
    """The same head in torch, float64."""

    def __init__(self, layers: Layers, base: np.ndarray, options: Options, scale: float = SCALE, zero_point: int = ZERO_POINT):
        import torch

        self._torch, self.layers, self._options = torch, layers, options
        self._scale, self._zero_point = scale, zero_point
        linears = [torch.nn.Linear(inputs, outputs, dtype=torch.float64) for inputs, outputs in layers.sizes]
        for linear, (weight, bias) in zip(linears, layers.split(base), strict=True):
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(weight))
                linear.bias.copy_(torch.from_numpy(bias))
        self._linears = linears
        for linear in linears[: max(0, len(linears) - options.trained_layers)]:
            linear.requires_grad_(False)
        for linear in linears if options.is_bias_only else []:
            linear.weight.requires_grad_(False)
        self._trained = [value for linear in linears for value in linear.parameters() if value.requires_grad]
        self._optimizer = torch.optim.SGD(
            self._trained, lr=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay
        )

    def logits(self, features: np.ndarray):
        x = self._torch.from_numpy((features.astype(np.float64) - self._zero_point) * np.float64(np.float32(self._scale)))
        hidden = self._linears[0](x)
        if len(self._linears) == 1:
            return hidden
        return self._linears[1](self._torch.relu(hidden) if self.layers.is_relu else hidden)

    def loss(self, features: np.ndarray, labels: np.ndarray):
        functional, y = self._torch.nn.functional, self._torch.from_numpy(np.asarray(labels, np.int64))
        if self._options.loss is Loss.SQUARED_ERROR:
            return functional.mse_loss(self.logits(features), functional.one_hot(y, self.layers.outputs).double())
        return functional.cross_entropy(self.logits(features), y)

    def gradient(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Of the mean loss; zero where nothing is trained."""
        self._optimizer.zero_grad()
        self.loss(features, labels).backward()
        values = [value for linear in self._linears for value in (linear.weight, linear.bias)]
        return np.concatenate([np.zeros(v.numel()) if v.grad is None else v.grad.numpy().ravel() for v in values])

    def sgd_step(self, features: np.ndarray, labels: np.ndarray) -> float:
        """One mini-batch; its mean loss before it."""
        self._optimizer.zero_grad()
        loss = self.loss(features, labels)
        loss.backward()
        if self._options.clip_norm:
            self._torch.nn.utils.clip_grad_norm_(self._trained, self._options.clip_norm)
        self._optimizer.step()
        return loss.item()

    @property
    def parameters(self) -> np.ndarray:
        return np.concatenate([v.detach().numpy().ravel() for linear in self._linears for v in (linear.weight, linear.bias)])
