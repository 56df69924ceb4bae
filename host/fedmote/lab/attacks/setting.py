# SPDX-License-Identifier: Apache-2.0
"""The fleet under attack: heads trained on frozen random features of the bundled digits, skewed over 50 devices.

A convex problem on purpose: what is lost is the attack's doing and not the optimiser's. Everything between a device's update and
the next model is the product's own: codec, strategy, aggregation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.config import StrategyConfig

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Setting:
    """The numbers of the experiment.

    Attributes:
        num_devices, num_rounds, num_features: as named.
        concentration: of the Dirichlet distribution by which a class is dealt to devices; small is skewed.
        dropout: share of the devices that do not report in a round.
        test_share: share of the samples that accuracy is measured on.
        epochs, batch, learning_rate, momentum: of a device's SGD: what a configuration that says nothing trains with.
    """

    num_devices: int = 50
    num_rounds: int = 40
    num_features: int = 64
    concentration: float = 0.5
    dropout: float = 0.1
    test_share: float = 0.25
    epochs: int = StrategyConfig.epochs
    batch: int = StrategyConfig.batch
    learning_rate: float = StrategyConfig.learning_rate
    momentum: float = StrategyConfig.momentum


@dataclass(frozen=True)
class Samples:
    """Features float32 (n, num_features) and labels int64 (n,)."""

    x: Floats
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Fleet:
    """Samples of every device, and those that accuracy is measured on."""

    devices: tuple[Samples, ...]
    test: Samples
    num_classes: int


def make_fleet(setting: Setting, seed: int) -> Fleet:
    """Deal the digits.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits  # an optional package, of this bench alone

    generator = np.random.default_rng(seed)
    pixels, labels = load_digits(return_X_y=True)
    project = generator.normal(size=(pixels.shape[1], setting.num_features)) / np.sqrt(pixels.shape[1])
    offset = generator.normal(size=setting.num_features) / 4
    features = np.maximum(0.0, (pixels / 16.0) @ project * 2 + offset).astype(np.float32)
    order = generator.permutation(len(labels))
    num_test = round(setting.test_share * len(labels))
    test, train = order[:num_test], order[num_test:]
    num_classes = int(labels.max()) + 1
    parts: list[list[int]] = [[] for _ in range(setting.num_devices)]
    for label in range(num_classes):
        own = train[labels[train] == label]
        shares = generator.dirichlet(np.full(setting.num_devices, setting.concentration))
        for index, piece in enumerate(np.split(own, (np.cumsum(shares)[:-1] * len(own)).astype(int))):
            parts[index] += piece.tolist()
    devices = tuple(Samples(features[part], labels[part].astype(np.int64)) for part in parts)
    return Fleet(devices, Samples(features[test], labels[test].astype(np.int64)), num_classes)


def train_head(weight: Floats, bias: Floats, samples: Samples, setting: Setting, generator: np.random.Generator) -> Floats:
    """Softmax regression by SGD from a head; returns what it learned, float32 (P,): weights (C, F) row by row, then bias (C,)."""
    w, b = weight.astype(np.float64), bias.astype(np.float64)
    speed_w, speed_b = np.zeros_like(w), np.zeros_like(b)
    for _ in range(setting.epochs):
        order = generator.permutation(len(samples.y))
        for start in range(0, len(order), setting.batch):
            index = order[start : start + setting.batch]
            x, y = samples.x[index], samples.y[index]
            logits = x @ w.T + b
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(y)), y] -= 1.0
            speed_w = setting.momentum * speed_w + p.T @ x / len(y)
            speed_b = setting.momentum * speed_b + p.mean(axis=0)
            w -= setting.learning_rate * speed_w
            b -= setting.learning_rate * speed_b
    return np.concatenate([(w - weight).ravel(), b - bias]).astype(np.float32)


def accuracy(weight: Floats, bias: Floats, samples: Samples) -> float:
    """Share of the samples that the head gets right."""
    return float(((samples.x @ weight.T + bias).argmax(axis=1) == samples.y).mean())
