# SPDX-License-Identifier: Apache-2.0
"""The models of the zoo with their data, how each is trained, and what is measured on it.

Trained weights are kept in the cache, in a file whose name holds a hash of all that they depend on: the module, its training
settings, the very training samples, torch. So a model is trained once, and again as soon as one of these changes.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedmote.lab.demo.training import load_state, state_of
from fedmote.lab.models import digits_cnn, har_cnn
from fedmote.lab.zoo import data as datasets
from fedmote.lab.zoo import networks
from fedmote.lab.zoo.data import Data, Labels, Samples
from fedmote.places import cache_directory
from fedmote.tensors import dump_safetensors, load_safetensors

ACCURACY = "accuracy"
AUC = "AUC"
_BLOCK = 100  # samples that are computed at once

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """How a model is trained: Adam, one cycle of the learning rate (Smith, "Super-Convergence", arXiv:1708.07120).

    Attributes:
        epochs: passes over the training samples.
        learning_rate: the highest.
        batch: samples per step.
        weight_decay: decoupled, as in AdamW.
        shift: images are moved by at most so many pixels and mirrored at random; 0: neither.
        noise: Gaussian noise is added to each sample, its deviation drawn between 0 and this. First layers that saw smooth images
            only amplify every rounding of an int8 form.
        seed: of order, augmentation and dropout.
    """

    epochs: int
    learning_rate: float = 4e-3
    batch: int = 64
    weight_decay: float = 1e-2
    shift: int = 0
    noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        name: for tables and `--models`.
        build: the untrained module, in evaluation mode; its last layer is called `head`.
        load: its data; raises AbsentError where they are not on this machine.
        training: how it is trained.
        metric: ACCURACY of a classifier; AUC of an autoencoder: the area under the receiver operating characteristic
            of its squared reconstruction error, fault against normal.
    """

    name: str
    build: Callable[[], nn.Module]
    load: Callable[[], Data]
    training: Training
    metric: str = ACCURACY

    def score(self, outputs: NDArray[np.float32], x: Samples, y: Labels) -> float:
        """What the model is worth, in [0, 1]: the metric of outputs (N, K) for samples x with labels y."""
        if self.metric == AUC:
            return area_under_curve(_errors(outputs, x), y)
        return float((outputs.argmax(axis=1) == y).mean())

    def agreement(self, one: NDArray[np.float32], other: NDArray[np.float32], x: Samples) -> float:
        """Share of samples that two sets of outputs (N, K) decide alike.

        A classifier decides by the largest output. An autoencoder calls a fault what is further off than the median of the
        first set's errors, whichever of the two sets it looks at.
        """
        if self.metric == AUC:
            threshold = np.median(_errors(one, x))
            return float(((_errors(one, x) > threshold) == (_errors(other, x) > threshold)).mean())
        return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())


# Minutes on one core: 6 epochs without noise are quicker, and leave 14 points and 8 dB.
_MOBILENET_TRAINING = Training(epochs=24, learning_rate=6e-3, weight_decay=5e-2, shift=9, noise=0.2)

ZOO = (
    Entry("digits_cnn", digits_cnn, datasets.digits, Training(epochs=15)),
    Entry("har_cnn", har_cnn, datasets.activities, Training(epochs=4)),
    Entry("ds_cnn", lambda: networks.ds_cnn(num_classes=20), datasets.keywords, Training(epochs=12)),
    Entry("resnet8", networks.resnet8, datasets.images, Training(epochs=12, shift=3)),
    Entry("mobilenet_v1", networks.mobilenet_v1, lambda: datasets.images(96), _MOBILENET_TRAINING),
    Entry("mobilenet_v2", networks.mobilenet_v2, datasets.images, Training(epochs=12, shift=3)),
    Entry("autoencoder", networks.autoencoder, datasets.vibration, Training(epochs=150, batch=26), AUC),
)


@dataclass(frozen=True)
class Model:
    """A trained model with its data.

    Attributes:
        entry: what it is.
        module: trained, in evaluation mode.
        data: that it was trained on, and what was held out.
        weights: file that holds its float state.
    """

    entry: Entry
    module: nn.Module = field(repr=False)
    data: Data = field(repr=False)
    weights: Path


def load_model(entry: Entry, progress: Progress, is_anew: bool = False) -> Model:
    """Load a model from the cache, or train it.

    Args:
        entry: which.
        progress: called with a line before training and after it.
        is_anew: train it in any case.

    Raises:
        AbsentError: its data are not on this machine.
    """
    samples = entry.load()
    module = entry.build()
    path = cache_directory("zoo") / f"{entry.name}-{_key(entry, module, samples)}.safetensors"
    if path.is_file() and not is_anew:
        load_state(module, load_safetensors(path))
        return Model(entry, module, samples, path)
    progress(f"training {entry.name} on {len(samples.x_train)} samples, {entry.training.epochs} epochs")
    train(entry, module, samples)
    score = entry.score(outputs_of(module, samples.x_test), samples.x_test, samples.y_test)
    progress(f"{entry.name}: {entry.metric} {score:.3f} on {len(samples.x_test)} samples held out")
    staging = path.with_suffix(f".{os.getpid()}")  # two commands may train at once; each leaves a whole file
    staging.write_bytes(dump_safetensors(state_of(module), {"model": entry.name}))
    staging.replace(path)
    return Model(entry, module, samples, path)


def train(entry: Entry, module: nn.Module, samples: Data) -> None:
    """Train a module in place, on one thread so that sums have one order; evaluation mode afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(entry.training.seed)
            _train(entry, module, torch.from_numpy(samples.x_train), torch.from_numpy(samples.y_train))
    finally:
        torch.set_num_threads(threads)
        module.eval()


def outputs_of(module: nn.Module, x: Samples) -> NDArray[np.float32]:
    """What a module in evaluation mode computes for samples x (N, ...): float32 (N, K)."""
    with torch.no_grad():
        blocks = [module(block).numpy() for block in torch.tensor_split(torch.from_numpy(x), -(-len(x) // _BLOCK))]
    return np.concatenate(blocks)


def area_under_curve(scores: NDArray[np.float32], y: Labels) -> float:
    """Area under the receiver operating characteristic: the chance that a sample labelled 1 scores above one labelled 0.

    Args:
        scores: (N,), higher means label 1.
        y: labels 0 and 1, (N,), both present.
    """
    positive, negative = scores[y == 1], np.sort(scores[y == 0])
    below = np.searchsorted(negative, positive, "left")
    equal = np.searchsorted(negative, positive, "right") - below
    return float((below + equal / 2).sum() / (len(positive) * len(negative)))


def _errors(outputs: NDArray[np.float32], x: Samples) -> NDArray[np.float32]:
    """Mean squared reconstruction error of each sample."""
    return np.asarray(np.square(outputs - x.reshape(len(x), -1)).mean(axis=1), np.float32)


def _train(entry: Entry, module: nn.Module, x: Tensor, y: Tensor) -> None:
    settings = entry.training
    steps = -(-len(x) // settings.batch)
    optimizer = torch.optim.AdamW(module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.epochs * steps)
    module.train()
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(x)).tensor_split(steps):
            batch = _moved(x[chosen], settings.shift) if settings.shift else x[chosen]
            if settings.noise:
                deviations = settings.noise * torch.rand(len(batch), *[1] * (batch.ndim - 1))
                batch = batch + deviations * torch.randn_like(batch)
            optimizer.zero_grad()
            outputs = module(batch)
            loss = F.mse_loss(outputs, batch) if entry.metric == AUC else F.cross_entropy(outputs, y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.step()


def _moved(images: Tensor, shift: int) -> Tensor:
    """Images (N, C, H, W), half of them mirrored, each moved by at most `shift` pixels; edges repeat."""
    count, _, height, width = images.shape
    mirrored = torch.where(torch.rand(count, 1, 1, 1) < 0.5, images, images.flip(3))
    padded = F.pad(mirrored, (shift,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * shift + 1, (count, 2)).tolist()
    return torch.stack(
        [one[:, top : top + height, left : left + width] for one, (top, left) in zip(padded, corners, strict=True)]
    )


def _key(entry: Entry, module: nn.Module, samples: Data) -> str:
    """Hash of all that trained weights depend on."""
    digest = hashlib.sha256()
    for text in (repr(entry.training), entry.metric, str(module), inspect.getsource(type(module)), torch.__version__):
        digest.update(text.encode())
    for values in (*state_of(module).values(), samples.x_train, samples.y_train):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
