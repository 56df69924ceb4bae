# SPDX-License-Identifier: Apache-2.0
"""The integer head learns real data as well as torch does in float: within half a point of accuracy on held-out samples."""

import os
from pathlib import Path

import numpy as np
import pytest

from fedmote.package.boards import Board
from fedmote.package.importer import import_tflite
from firmware_tests.heads import DeviceHead, Layers, Options, TorchHead
from firmware_tests.native import ROOT, OpenPackage

torch = pytest.importorskip("torch")

EPOCHS = 2
SHARED = Path(os.environ.get("FEDMOTE_SHARED", ROOT.parent / "shared"))
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, int]


def load(path: str) -> dict[str, np.ndarray]:
    file = SHARED / path
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    return dict(np.load(file))


def digits() -> Data:
    """14 x 14 pixels of handwritten digits; other writers in the test set."""
    parts = []
    for name, count in (("train", 2000), ("test", 10000)):
        data = load(f"data/digits_by_writer/{name}.npz")
        chosen = np.random.default_rng(0).permutation(len(data["x"]))[:count]
        pixels = data["x"][chosen].reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(count, -1)
        parts += [(pixels - 128).astype(np.int8), data["y"][chosen].astype(np.int64)]
    return *parts, 1 / 255, -128  # type: ignore[return-value]


def activity() -> Data:
    """Mean, deviation, extremes and roughness of nine sensors over two seconds; other subjects in the test set."""
    data = load("data/har_phone_30subjects/windows.npz")
    x = data["x"].astype(np.float32)
    rough = np.abs(np.diff(x, axis=1)).mean(1)
    features = np.concatenate([x.mean(1), x.std(1), x.min(1), x.max(1), rough], axis=1)
    is_test = data["is_test_subject"].astype(bool)
    features = (features - features[~is_test].mean(0)) / features[~is_test].std(0)
    q = np.clip(np.rint(features / 0.05), -128, 127).astype(np.int8)
    order = np.random.default_rng(1).permutation(np.flatnonzero(~is_test))[:2500]
    y = data["y"].astype(np.int64)
    return q[order], y[order], q[is_test], y[is_test], 0.05, 0


def keywords() -> Data:
    """Features of the MLPerf Tiny keyword encoder; a new head on 600 samples, judged on the other 400."""
    data = load("data/mlperf_tiny_kws01/samples.npz")
    model = SHARED / "models/mlperf_tiny/kws_ref_model.tflite"
    if not model.is_file():
        pytest.skip(f"{model} is not there")
    package, _ = import_tflite(model.read_bytes(), model.name, Board.load("posix"), "kws")
    features = OpenPackage(package.device_form()).encode(data["x"].reshape(len(data["x"]), -1))
    y = data["y"].astype(np.int64)
    order = np.random.default_rng(2).permutation(len(y))
    train, test = order[:600], order[600:]
    header = package.header
    return features[train], y[train], features[test], y[test], float(header.feature_scale), header.feature_zero_point


def accuracy(layers: Layers, parameters: np.ndarray, x: np.ndarray, y: np.ndarray, scale: float, zero_point: int) -> float:
    values = (x.astype(np.float64) - zero_point) * scale
    for index, (weights, bias) in enumerate(layers.split(parameters.astype(np.float64))):
        values = values @ weights.T + bias
        values = np.maximum(values, 0) if index < len(layers.sizes) - 1 else values
    return float((values.argmax(1) == y).mean())


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize(("batch", "momentum"), [(1, 0.0), pytest.param(8, 0.9, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("make", "rate", "floor"), [(digits, 0.02, 0.82), (activity, 0.01, 0.8), (keywords, 0.01, 0.85)])
def test_integers_are_as_accurate_as_torch(make, rate: float, floor: float, batch: int, momentum: float, hidden: int) -> None:
    x, y, x_test, y_test, scale, zero_point = make()
    layers = Layers(x.shape[1], hidden, int(y.max()) + 1)
    base = layers.random_parameters(np.random.default_rng(7), 0.1 if hidden else 0.0)
    options = Options(rate, momentum, seed=3)
    device = DeviceHead(layers, base, options, "fedmote_int16", scale, zero_point)
    reference = TorchHead(layers, base, options, scale, zero_point)
    for _ in range(EPOCHS):
        for first in range(0, len(x), batch):
            device.sgd_step(x[first : first + batch], y[first : first + batch])
            reference.sgd_step(x[first : first + batch], y[first : first + batch])

    test = (x_test, y_test, scale, zero_point)
    expected, actual = accuracy(layers, reference.parameters, *test), accuracy(layers, base + device.deltas(), *test)
    print(f"{make.__name__}, hidden {hidden}, batch {batch}: torch {expected:.4f}, integers {actual:.4f}")
    assert expected > floor
    assert actual > expected - 0.005
