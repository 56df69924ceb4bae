# SPDX-License-Identifier: Apache-2.0
"""Real data of the zoo, in torch's order of axes, cut so that no person, speaker or recording is on both sides.

Scikit-learn's digits come with its wheel; the others are `.npz` files of `places.shared_directory()`, each with a README of its
own there. Test sets are whole, or at most `MAX_TEST` samples in an order that is seeded.

There are three uses. Networks are trained on training samples, and converters calibrate with the first 200 of them. Recipes of
quantization are chosen on further ones, at most `MAX_CHOICE`: no quantizer has seen them, though the network has. Test samples
judge what was chosen, and choose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedmote.arrays import load_npz
from fedmote.errors import ConfigError
from fedmote.lab.demo.data import load_digits
from fedmote.places import shared_directory

MAX_TEST = 2000
MAX_CHOICE = 1000
NUM_CALIBRATION = 200
_SEED = 0
# Frames of the autoencoder: five of 256 samples in a window of 1024, 128 frequencies each.
_FRAME, _HOP = 256, 192

Samples = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Data:
    """What a model of the zoo is trained, calibrated and measured on.

    Attributes:
        x_train, y_train: to train on.
        x_calibration: what a converter may look at: training samples, unless the loader says otherwise.
        x_test, y_test: held out.
        x_choice: what recipes are chosen on: neither calibration nor test.
    """

    x_train: Samples
    y_train: Labels
    x_calibration: Samples
    x_test: Samples
    y_test: Labels
    x_choice: Samples


class AbsentError(ConfigError):
    """A data set is not on this machine."""


def digits() -> Data:
    """Images (1, 8, 8) of handwritten digits in [0, 1]: 1200 to train on, 597 held out; 10 classes."""
    everything = load_digits()
    order = np.random.default_rng(_SEED).permutation(len(everything.y))
    return _cut(everything.x, everything.y, order[:1200], order[1200:])


def activities() -> Data:
    """Windows (9, 128) of a phone's accelerometer and gyroscope, standardised per channel; 6 classes, nine people held out."""
    content = _load("har_phone_30subjects/windows.npz", ("x", "y", "is_test_subject"))
    x = content["x"].astype(np.float32).transpose(0, 2, 1)
    is_test = content["is_test_subject"] == 1
    known = np.flatnonzero(~is_test)
    x = _standardised(x, known, axes=(0, 2))
    return _cut(x, content["y"], known, np.flatnonzero(is_test))


def keywords() -> Data:
    """MFCC (1, 49, 10) of spoken words, standardised per coefficient; 20 classes, six speakers held out."""
    content = _load("kws_arabic_30speakers/mfcc.npz", ("x", "y", "split"))
    x = content["x"].astype(np.float32)[:, None]
    is_test = content["split"] == 2
    known = np.flatnonzero(~is_test)
    return _cut(_standardised(x, known, axes=(0, 2)), content["y"], known, np.flatnonzero(is_test))


def images(size: int = 32) -> Data:
    """CIFAR-10 images (3, size, size) in [-1, 1), enlarged bilinearly where size is not 32: 8000 and 2000; 10 classes."""
    train = _load("images_cifar10_10k/train.npz", ("x", "y"))
    test = _load("images_cifar10_10k/test.npz", ("x", "y"))
    count = len(train["y"])
    order = np.random.default_rng(_SEED).permutation(count)
    x = _enlarged(np.concatenate([train["x"][order], test["x"][:MAX_TEST]]), size)
    y = np.concatenate([train["y"][order], test["y"][:MAX_TEST]])
    return _cut(x, y, np.arange(count), np.arange(count, len(y)))


def vibration() -> Data:
    """Log spectra (640,) of a bearing's vibration, standardised together: 5 frames of 128 frequencies; label 1 is a fault.

    Trained on the first two thirds of the normal recording, which exists at load 0 only; held out are its rest, one window of
    overlap left out, and the faults at load 0. Calibration sees the training windows and faults at other loads: what lies
    beyond the ranges of normal operation is what the model is for. Recipes are chosen on more of these faults.
    """
    keys = ("x", "y", "scale_g", "load_hp", "class_names")
    content = _load("vibration_cwru_drive_end/windows.npz", keys)
    x = _log_spectra(content["x"].astype(np.float64) * content["scale_g"].astype(np.float64)[:, None])
    is_normal = content["class_names"][content["y"]] == "normal"
    normal = np.flatnonzero(is_normal)
    train = normal[: 2 * len(normal) // 3]
    x = _standardised(x, train, axes=(0, 1))
    generator = np.random.default_rng(_SEED)
    other_loads = generator.permutation(np.flatnonzero(~is_normal & (content["load_hp"] != 0)))
    known, others = np.split(other_loads, [NUM_CALIBRATION - len(train)])
    test = np.concatenate([normal[len(train) + 1 :], np.flatnonzero(~is_normal & (content["load_hp"] == 0))])
    y = (~is_normal).astype(np.int64)
    return Data(x[train], y[train], x[np.concatenate([train, known])], x[test], y[test], x[others[:MAX_CHOICE]])


def _load(name: str, keys: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    path = shared_directory() / "data" / Path(name)
    if not path.is_file():
        raise AbsentError(f"there is no {path} (FEDMOTE_SHARED)")
    return load_npz(path, keys)


def _cut(x: Samples, y: NDArray[np.generic], train: NDArray[np.int64], test: NDArray[np.int64]) -> Data:
    """Parts of samples by index, the training part shuffled; calibration takes its first ones, choices of recipes the next."""
    generator = np.random.default_rng(_SEED)
    train, test = generator.permutation(train), generator.permutation(test)[:MAX_TEST]
    labels = y.astype(np.int64)
    x_train = np.ascontiguousarray(x[train])
    calibration, choice = x_train[:NUM_CALIBRATION], x_train[NUM_CALIBRATION : NUM_CALIBRATION + MAX_CHOICE]
    return Data(x_train, labels[train], calibration, np.ascontiguousarray(x[test]), labels[test], choice)


def _standardised(x: Samples, known: NDArray[np.int64], axes: tuple[int, ...]) -> Samples:
    """Mean 0 and deviation 1 over the known samples and the axes given; the others are kept apart."""
    # In float64: sums of a million float32 values lose their third digit.
    mean = x[known].mean(axis=axes, keepdims=True, dtype=np.float64)
    deviation = x[known].std(axis=axes, keepdims=True, dtype=np.float64)
    return np.asarray((x - mean) / np.maximum(deviation, 1e-6), np.float32)


def _enlarged(x: NDArray[np.generic], size: int) -> Samples:
    """Images uint8 (N, H, W, 3) as float32 (N, 3, size, size) in [-1, 1): whole grey levels p as (p - 128) / 128.

    Cameras give whole levels, and int8 holds these numbers. It misses all p / 127.5 - 1 by half a step, because zero must be
    one of its numbers.
    """
    levels = torch.from_numpy(x.astype(np.float32).transpose(0, 3, 1, 2).copy())
    if size != levels.shape[2]:
        levels = torch.nn.functional.interpolate(levels, (size, size), mode="bilinear", align_corners=False).round()
    return ((levels - 128) / 128).numpy()


def _log_spectra(x: NDArray[np.float64]) -> Samples:
    """Windows (N, 1024) of acceleration in g as (N, 640): log power of overlapping frames under a Hann window, without DC."""
    frames = np.stack([x[:, start : start + _FRAME] for start in range(0, x.shape[1] - _FRAME + 1, _HOP)], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hanning(_FRAME), axis=2))[:, :, 1:] ** 2
    return np.log(power + 1e-6).reshape(len(x), -1).astype(np.float32)
