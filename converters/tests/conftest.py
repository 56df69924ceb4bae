# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import nn

from fedmote.package.execute import run_float
from fedmote.package.fold import bind
from fedmote_convert.capture import capture
from fedmote_convert.layout import samples_channels_last
from fedmote_convert.passes import PASSES

torch.set_num_threads(1)


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """The module in evaluation mode with random parameters and random, far from neutral, statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + values if "running_var" in name else values - 0.5)
    return module.eval()


def outputs_of(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """What torch computes, channels last."""
    with torch.no_grad():
        y = module(torch.from_numpy(x)).numpy()
    return samples_channels_last(y)


@pytest.fixture
def assert_equals_torch():
    """Checks the graph of a module against torch after every pass that leaves it executable; returns the last graph."""

    def check(module: nn.Module, shape: tuple[int, ...], seed: int = 0):
        print("seed", seed)  # noqa: T201
        module = seeded(module, seed)
        x = np.random.default_rng(seed).standard_normal((3, *shape)).astype(np.float32)
        expected = outputs_of(module, x)
        captured = capture(module, shape)
        graph = captured.graph
        for function in (lambda same: same, *PASSES):
            graph = function(graph)
            if any(op.source is not None and op.source.layout == "batch_norm" for op in graph.ops):
                continue
            actual = run_float(bind(graph, captured.tensors), samples_channels_last(x))
            np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
        return graph

    return check
