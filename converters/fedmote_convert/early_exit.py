# SPDX-License-Identifier: Apache-2.0
"""The head of a form that leaves its model early: one dense layer, trained on the encoder's int8 features.

It is a softmax regression, whose loss has one minimum, so that the head is a pure function of the samples. Features are
centred and scaled, weights pay `PENALTY / 2` times their square, and the loss is minimised by gradient steps that a
fixed bound of the Hessian scales: half of the features' covariance is never below it (D. Boehning, "Multinomial logistic
regression algorithm", Annals of the Institute of Statistical Mathematics 44, 1992). In the eigenbasis of the covariance the bound
is diagonal, and where there are more features than samples, the basis of the samples' products spans all that a penalised
minimum can reach (the representer theorem), so a step never costs more than samples times samples. Steps are accelerated
and start anew when they turn uphill (B. O'Donoghue and E. Candes, "Adaptive restart for accelerated gradient schemes", 2015).

Samples that a head is judged by take no part in its training. Where the data say whose each sample is, whole people are held
out: neighbouring windows of one person are near copies of each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError

HELD_OUT = 0.25
PENALTY = 1e-2
_SEED = 20211108
_STEPS = 300
_TOLERANCE = 1e-5  # of the mean loss's gradient, per weight
_LEAST_SPREAD = 1e-2  # of a feature's standard deviation, relative to the mean one: what hardly moves must not be blown up

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Owners:
    """Whose each calibration sample is.

    Attributes:
        kind: the key of the data file: "subject", "speaker", ...
        ids: int64 (N,).
    """

    kind: str
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """Class indices of the calibration samples, and which of them judge instead of train.

    Attributes:
        y: int64 (N,).
        classes: number of classes, the model's outputs.
        training, held_out: indices of samples, ascending.
        rule: how they were chosen, as words.
    """

    y: NDArray[np.int64]
    classes: int
    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    rule: str


def split_labels(y: NDArray[np.int64], classes: int, owners: Owners | None = None) -> Labels:
    """Choose the samples that are held out: a quarter, drawn with a fixed seed.

    Args:
        y: class indices (N,).
        classes: outputs of the model.
        owners: whose each sample is, or None. With two owners or more, whole owners are held out; else the samples of
            every class are split alike.

    Raises:
        ConversionError: a label is beyond the model's outputs, or no sample can be held out.
    """
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        wrong = int(y.min()) if y.min() < 0 else int(y.max())
        raise ConversionError(f"calibration: y holds class {wrong}; the model's {classes} outputs are classes 0 to {classes - 1}")
    generator = np.random.default_rng(_SEED)
    if owners is not None and len(np.unique(owners.ids)) > 1:
        chosen = _whole_owners(owners.ids, generator)
        rule = f"all of {owners.kind} {', '.join(str(name) for name in np.unique(owners.ids[chosen]))}"
    else:
        chosen = _of_every_class(y, generator)
        rule = "a quarter of every class"
    is_held_out = np.zeros(len(y), bool)
    is_held_out[chosen] = True
    if is_held_out.all() or not is_held_out.any():
        raise ConversionError(f"calibration: of {len(y)} labelled samples none can be held out; give at least two of some class")
    return Labels(y, classes, np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out), rule)


def _whole_owners(owners: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Samples of as many owners as make a quarter of all samples, but not of all owners."""
    names = generator.permutation(np.unique(owners))
    chosen: list[int] = []
    for name in names[:-1]:
        chosen += np.flatnonzero(owners == name).tolist()
        if len(chosen) >= HELD_OUT * len(owners):
            break
    return np.array(chosen, np.int64)


def _of_every_class(y: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """A quarter of the samples of every class, at least one; none of a class with a single sample."""
    chosen: list[int] = []
    for label in np.unique(y):
        own = generator.permutation(np.flatnonzero(y == label))
        count = max(1, round(HELD_OUT * len(own))) if len(own) > 1 else 0
        chosen += own[:count].tolist()
    return np.array(chosen, np.int64)


def train_head(
    features: NDArray[np.float32], y: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Train a dense layer.

    Args:
        features: (N, D) of the encoder, as a device computes them.
        y: class indices (N,).
        classes: number of classes C.

    Returns:
        Weights float32 (C, D) and biases float32 (C,).
    """
    x = np.asarray(features, np.float64)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.maximum(spread, _LEAST_SPREAD * spread.mean() or 1.0)
    scaled = (x - centre) / spread
    coordinates, basis = _principal(scaled)
    inner, bias = _minimise(coordinates, np.eye(classes)[y])
    weights = (basis @ inner).T / spread
    return weights.astype(np.float32), (bias - weights @ centre).astype(np.float32)


def _principal(x: Floats) -> tuple[Floats, Floats]:
    """Coordinates (N, R) of samples (N, D) in an orthonormal basis (D, R) of all directions in which they differ."""
    is_wide = x.shape[1] > x.shape[0]
    squares, vectors = np.linalg.eigh(x @ x.T if is_wide else x.T @ x)
    kept = squares > max(float(squares[-1]), 1.0) * 1e-10
    vectors = vectors[:, kept]
    basis = x.T @ (vectors / np.sqrt(squares[kept])) if is_wide else vectors
    return x @ basis, basis


def _minimise(x: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Weights (R, C) and biases (C,) of the penalised softmax regression on coordinates (N, R) for one-hot targets (N, C)."""
    count = len(x)
    bound = 0.5 * np.square(x).sum(axis=0)[:, None] / count + PENALTY
    weights, bias = np.zeros((x.shape[1], target.shape[1])), np.zeros(target.shape[1])
    ahead, ahead_bias, momentum = weights, bias, 1.0
    for _ in range(_STEPS):
        error = (_softmax(x @ ahead + ahead_bias) - target) / count
        slope, slope_bias = x.T @ error + PENALTY * ahead, error.sum(axis=0)
        if max(np.abs(slope).max(initial=0.0), np.abs(slope_bias).max()) < _TOLERANCE:
            break
        new, new_bias = ahead - slope / bound, ahead_bias - 2 * slope_bias
        uphill = (slope * (new - weights)).sum() + (slope_bias * (new_bias - bias)).sum() > 0
        following = 1.0 if uphill else 0.5 + np.sqrt(0.25 + momentum**2)
        share = 0.0 if uphill else (momentum - 1) / following
        ahead, ahead_bias = new + share * (new - weights), new_bias + share * (new_bias - bias)
        weights, bias, momentum = new, new_bias, following
    return ahead, ahead_bias


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
