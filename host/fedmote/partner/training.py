# SPDX-License-Identifier: Apache-2.0
"""Training the whole model on samples that devices selected, and on the partner's own.

A sample from a device says by its epoch mask in which epochs it takes part (bit *e* for epoch *e*); the partner's own samples
take part in all. Batch normalisation trains as in torch: the batch's statistics normalise, the running ones follow. They
belong to the update, because the device's encoder is folded from them.

Source: Centaur (arXiv 2211.04175), the access point's training; plain SGD with momentum, cross-entropy, whose velocity
starts at zero in each round, as on the device.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from fedmote.errors import ConfigError
from fedmote.tensors import Tensors, shape_complaint
from fedmote.wire.schema import Loss

log = logging.getLogger(__name__)

# A batch of one has no variance over samples: batch normalisation cannot use it.
_MIN_BATCH = 2
# Samples per forward pass where nothing is trained; bounds memory only.
_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Samples:
    """Labelled samples and the epochs in which each takes part.

    Attributes:
        x: float32 (n, ...), torch layout of the model, batch first.
        y: int64 (n,), class indices.
        epoch_mask: uint32 (n,), bit e set where the sample takes part in epoch e.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    epoch_mask: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def num_examples(self) -> int:
        """Weight of the update in the mean: samples of the first epoch."""
        return int((self.epoch_mask & 1).sum())

    @classmethod
    def of_all_epochs(cls, x: NDArray[np.float32], y: NDArray[np.int64]) -> Samples:
        """Samples that take part in every epoch."""
        return cls(x, y, np.full(len(y), 0xFFFFFFFF, np.uint32))

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """All samples of the parts, in their order; at least one part."""
        return cls(
            np.concatenate([part.x for part in parts]),
            np.concatenate([part.y for part in parts]),
            np.concatenate([part.epoch_mask for part in parts]),
        )


@dataclass(frozen=True)
class Recipe:
    """How to train: the numbers of a plan.

    Attributes:
        epochs, batch, learning_rate, momentum, weight_decay: of SGD.
        clip_norm: largest norm of a mini-batch's gradient; None: no clipping.
        loss: what is made small.
        seed: words of the seed of the order of samples.
    """

    epochs: int
    batch: int
    learning_rate: float
    momentum: float
    seed: tuple[int, ...] = field(default=(0,))
    weight_decay: float = 0.0
    clip_norm: float | None = None
    loss: Loss = Loss.CROSS_ENTROPY


@dataclass(frozen=True)
class Outcome:
    """What a training led to.

    Attributes:
        tensors: all float tensors of the model afterwards, statistics included.
        num_trained: sample-trainings over all epochs.
        loss: mean loss over all samples before, in evaluation mode; 0 without samples.
        loss_after: the same afterwards.
    """

    tensors: Tensors
    num_trained: int
    loss: float
    loss_after: float


def use_threads(count: int) -> None:
    """Let torch use so many threads in this process. Sums depend on it in their last places."""
    torch.set_num_threads(count)


def load_factory(name: str) -> Callable[[], nn.Module]:
    """The function `package.module:function` that returns the torch module; ConfigError where there is none."""
    module_name, _, function_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model {name}: {error}; expected package.module:function on the Python path") from error
    return factory  # type: ignore[no-any-return]


def read_tensors(model: nn.Module) -> Tensors:
    """Parameters and float buffers by their state_dict names, float32 copies; counters of batches are not among them."""
    state = model.state_dict()
    return {
        name: value.detach().numpy().astype(np.float32, copy=True) for name, value in state.items() if value.is_floating_point()
    }


def write_tensors(model: nn.Module, tensors: Tensors) -> None:
    """Put a checkpoint into a module; ConfigError where names or shapes are not the module's."""
    own = read_tensors(model)
    complaint = shape_complaint(tensors, own)
    if complaint is None and (missing := sorted(own.keys() - tensors.keys())):
        complaint = f"tensor {missing[0]} is missing"
    if complaint is not None:
        raise ConfigError(f"the checkpoint does not fit the partner's model: {complaint}")
    state = model.state_dict()
    with torch.no_grad():
        for name, values in tensors.items():
            state[name].copy_(torch.from_numpy(np.array(values, np.float32)))


def train(model: nn.Module, samples: Samples, recipe: Recipe) -> Outcome:
    """Train `model` in place and leave it in evaluation mode.

    The result is a pure function of the model's tensors, the samples in their order, and the recipe.
    """
    x, y = torch.from_numpy(samples.x), torch.from_numpy(samples.y)
    loss_before = mean_loss(model, x, y, recipe.loss)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    generator = np.random.default_rng(recipe.seed)
    num_trained = 0
    model.train()
    for epoch in range(recipe.epochs):
        chosen = generator.permutation(np.flatnonzero(samples.epoch_mask >> np.uint32(epoch) & np.uint32(1)))
        for part in even_batches(chosen, recipe.batch):
            batch = torch.from_numpy(part)
            optimizer.zero_grad()
            loss_of(model(x[batch]), y[batch], recipe.loss).backward()  # type: ignore[no-untyped-call]
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()
            num_trained += len(batch)
    model.eval()
    return Outcome(read_tensors(model), num_trained, loss_before, mean_loss(model, x, y, recipe.loss))


def even_batches(chosen: NDArray[np.int64], batch: int) -> list[NDArray[np.int64]]:
    """Cut (n,) indices into as few batches of at most `batch` as possible, of even sizes; none where one sample is all there is.

    A remainder of two or three samples would be normalised by its own statistics: a step of full length in a direction that is
    mostly noise, and a tenth of the running statistics. With the few samples that a device sends, that happens every other round.
    """
    if len(chosen) < _MIN_BATCH:
        return []
    num_batches = min(-(-len(chosen) // batch), len(chosen) // _MIN_BATCH)
    return np.array_split(chosen, num_batches)


def loss_of(logits: torch.Tensor, y: torch.Tensor, loss: Loss) -> torch.Tensor:
    """Mean loss of logits (n, classes), as on a device."""
    if loss is Loss.SQUARED_ERROR:
        return F.mse_loss(logits, F.one_hot(y, logits.shape[1]).to(logits.dtype))
    return F.cross_entropy(logits, y)


def mean_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, loss: Loss = Loss.CROSS_ENTROPY) -> float:
    """Mean loss in evaluation mode; 0 where there are no samples."""
    if not len(y):
        return 0.0
    logits = logits_of(model, x)
    return float(loss_of(logits, y, loss))


def logits_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits (n, classes) in evaluation mode, which the module keeps."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(block) for block in torch.split(x, _EVALUATION_BATCH)])
