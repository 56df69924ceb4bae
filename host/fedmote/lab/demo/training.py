# SPDX-License-Identifier: Apache-2.0
"""What the demonstration trains in torch itself: the first checkpoint, and the pooled baseline.

*Pooled* is what one would get if all samples of all cells lay in one place, which is what federated learning avoids: the bound
above. It starts from the same checkpoint, and its epochs, batches and learning rate are those of the partners.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from fedmote.lab.demo.settings import FederationSettings, PretrainingSettings

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


def pretrain(model: nn.Module, data: Batch, settings: PretrainingSettings, seed: int) -> None:
    """Train the first model in place; evaluation mode afterwards."""
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    _train(model, optimizer, data, settings.epochs, settings.batch, np.random.default_rng([seed, 1]))


def pooled_accuracies(
    model: nn.Module, data: Batch, test: Batch, settings: FederationSettings, rounds: int, seed: int
) -> list[float]:
    """Accuracy on the test set after each round's worth of epochs on all data, float32. `model` is trained in place."""
    generator = np.random.default_rng([seed, 2])
    accuracies = []
    for _ in range(rounds):
        optimizer = torch.optim.SGD(model.parameters(), lr=settings.partner_learning_rate, momentum=settings.partner_momentum)
        _train(model, optimizer, data, settings.epochs, settings.batch, generator)
        accuracies.append(accuracy(model, test))
    return accuracies


def accuracy(model: nn.Module, data: Batch) -> float:
    """Share of samples that the float model classifies rightly, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        guesses = model(torch.from_numpy(data[0])).argmax(1).numpy()
    return float((guesses == data[1]).mean())


def state_of(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Float tensors of a module by name, for a weights file."""
    state = model.state_dict()
    return {name: value.detach().numpy().copy() for name, value in state.items() if value.is_floating_point()}


def load_state(model: nn.Module, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Put the tensors of a weights file into a module; counters of batches stay."""
    state = {name: torch.from_numpy(np.array(values)) for name, values in tensors.items()}
    model.load_state_dict({**model.state_dict(), **state})


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Batch, epochs: int, batch: int, generator: np.random.Generator
) -> None:
    x, y = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    model.train()
    for _ in range(epochs):
        order = torch.from_numpy(generator.permutation(len(y)))
        for chosen in torch.tensor_split(order, -(-len(order) // batch)):
            if len(chosen) > 1:  # batch normalisation needs more than one
                optimizer.zero_grad()
                F.cross_entropy(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    model.eval()
