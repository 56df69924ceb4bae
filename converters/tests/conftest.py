# SPDX-License-Identifier: Apache-2.0
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedmote.lab.models import digits_cnn, har_cnn, residual_cnn
from fedmote.package.execute import run_float
from fedmote.package.fold import bind
from fedmote.package.graph import Graph
from fedmote.package.inputs import arrange, graph_shape, layout_of
from fedmote_convert.capture import capture
from fedmote_convert.passes import PASSES
from fedmote_convert.sketch import Capture

from .random_modules import random_values

SHARED = Path(os.environ.get("FEDMOTE_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))

torch.set_num_threads(1)


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """The module in evaluation mode with random parameters and random, far from neutral, statistics."""
    for name, tensor, values in random_values(module, seed):
        tensor.copy_(0.5 + values if "running_var" in name else values - 0.5)
    return module.eval()


def samples_channels_last(x: np.ndarray) -> np.ndarray:
    return arrange(x, layout_of(x.shape[1:]), graph_shape(x.shape[1:]))


def outputs_of(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """What torch computes, channels last."""
    with torch.no_grad():
        y = module(torch.from_numpy(x)).numpy()
    return samples_channels_last(y)


def trained(module: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int, seed: int) -> nn.Module:
    """The module after a brief training, so that ranges and statistics are those of a network that does something."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(module.parameters(), 4e-3)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return module.eval()


@dataclass(frozen=True)
class Sample:
    """A trained model with calibration and test data."""

    name: str
    module: nn.Module
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@pytest.fixture(scope="session")
def digits() -> Sample:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(1).permutation(len(bunch.target))
    x, y = (bunch.images[order, None] / 16).astype(np.float32), bunch.target[order].astype(np.int64)
    module = trained(digits_cnn(), x[:1200], y[:1200], epochs=4, seed=1)
    return Sample("digits_cnn", module, x[:200], y[:200], x[1200:], y[1200:])


@pytest.fixture(scope="session")
def windows() -> Sample:
    """Six kinds of movement: sines of different frequency and axes with noise, 9 x 128."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 6, 700)
    time = np.arange(128, dtype=np.float32) / 128
    phase = rng.uniform(0, 2 * np.pi, (700, 9, 1))
    strength = np.random.default_rng(3).uniform(0.2, 1.0, (6, 9, 1))[y]
    waves = strength * np.sin(2 * np.pi * (2 + 3 * y[:, None, None]) * time + phase)
    x = (waves + rng.normal(0, 0.6, waves.shape)).astype(np.float32)
    module = trained(har_cnn(), x[:400], y[:400], epochs=5, seed=2)
    return Sample("har_cnn", module, x[:200], y[:200], x[400:], y[400:])


@pytest.fixture(scope="session")
def recordings() -> Sample:
    """Accelerometer and gyroscope windows of thirty people, where the data set is at hand; people are not mixed."""
    path = SHARED / "data" / "har_phone_30subjects" / "windows.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with np.load(path) as file:
        x, y = file["x"].astype(np.float32).transpose(0, 2, 1).copy(), file["y"].astype(np.int64)
        is_test = file["is_test_subject"] == 1
    rng = np.random.default_rng(6)
    known = rng.permutation(np.flatnonzero(~is_test))[:1500]
    unknown = rng.permutation(np.flatnonzero(is_test))[:1000]
    module = trained(har_cnn(), x[known], y[known], epochs=3, seed=6)
    return Sample("har_cnn", module, x[known[:300]], y[known[:300]], x[unknown], y[unknown])


@pytest.fixture(scope="session")
def residual() -> Sample:
    """Seeded, not trained: means of its four kinds differ, so that labels come from the module itself."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((500, 3, 8, 8)).astype(np.float32)
    module = seeded(residual_cnn(), 4)
    with torch.no_grad():
        y = module(torch.from_numpy(x)).argmax(dim=1).numpy()
    return Sample("residual_cnn", module, x[:200], y[:200], x[200:], y[200:])


@pytest.fixture(params=["digits", "windows", "residual"])
def sample(request) -> Sample:
    return request.getfixturevalue(request.param)


def every_pass_computes(captured: Capture, x: np.ndarray, expected: np.ndarray) -> Graph:
    """Checks the graph on samples after every pass; returns the last graph."""
    graph = captured.graph
    samples = arrange(x, captured.input_layout, graph_shape(captured.sample_shape, captured.input_layout))
    for function in (lambda same: same, *PASSES):
        graph = function(graph)
        actual = run_float(bind(graph, captured.tensors), samples)
        np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    return graph


@pytest.fixture
def assert_equals_torch():
    """Checks the graph of a module against torch after every pass; returns the last graph."""

    def check(module: nn.Module, shape: tuple[int, ...], seed: int = 0):
        print("seed", seed)
        module = seeded(module, seed)
        x = np.random.default_rng(seed).standard_normal((3, *shape)).astype(np.float32)
        return every_pass_computes(capture(module, shape), x, outputs_of(module, x))

    return check
