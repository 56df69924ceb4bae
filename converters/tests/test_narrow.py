# SPDX-License-Identifier: Apache-2.0
"""Narrower networks: the same function as the whole one whose dropped channels nobody reads, with statistics of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedmote.lab.models import digits_cnn, har_cnn, residual_cnn
from fedmote.package.boards import Board
from fedmote.package.execute import run_float
from fedmote.package.fold import bind
from fedmote.package.graph import Activation, HeadLayer
from fedmote.package.host_manifest import HostManifest
from fedmote.package.importer import cut_graph
from fedmote.package.partition import assemble, push
from fedmote.wire.schema import Section
from fedmote_convert.calibration import Recipe, calibrate
from fedmote_convert.capture import capture
from fedmote_convert.narrow import narrow
from fedmote_convert.passes import run_passes

from .conftest import samples_channels_last, seeded

SEED = 5


class Gated(nn.Module):
    """A squeeze-and-excitation gate, a depthwise convolution with two filters a channel, a concatenation and a grouped layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.depthwise, self.side = nn.Conv2d(6, 12, 3, groups=6, padding=1), nn.Conv2d(6, 5, 1)
        self.mix, self.mix_norm = nn.Conv2d(17, 8, 1), nn.BatchNorm2d(8)
        self.grouped, self.last = nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8 * 9, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = torch.cat([torch.relu(self.depthwise(x)), self.side(x)], dim=1)
        x = torch.relu(self.mix_norm(self.mix(x)))
        return self.last(self.grouped(nn.functional.max_pool2d(x, 2)).flatten(1))


CASES = {
    "digits": (digits_cnn, (1, 8, 8)),
    "windows": (har_cnn, (9, 32)),
    "residual": (residual_cnn, (3, 8, 8)),
    "gated": (Gated, (2, 6, 6)),
}


@pytest.fixture(params=CASES)
def case(request):
    """Template, tensors and samples channels last of a seeded network."""
    build, shape = CASES[request.param]
    print("seed", SEED)
    captured = capture(seeded(build(), SEED), shape)
    x = np.random.default_rng(SEED).standard_normal((40, *shape)).astype(np.float32)
    return run_passes(captured.graph), captured.tensors, samples_channels_last(x)


def without_statistics(graph):
    ops = (op if op.source is None else replace(op, source=replace(op.source, norm_scale=(), norm_shift=())) for op in graph.ops)
    return replace(graph, ops=tuple(ops))


def deaf_to_dropped(template, narrowed, tensors):
    """The whole float graph, whose weights are zero wherever the narrow one does not look."""
    ops = []
    for op, narrow_op in zip(bind(template, tensors).ops, narrowed.ops, strict=True):
        if narrow_op.source is not None and narrow_op.source.columns is not None:
            weights = np.zeros_like(op.weights)
            weights[..., list(narrow_op.source.columns)] = op.weights[..., list(narrow_op.source.columns)]
            op = replace(op, weights=weights)
        ops.append(op)
    return replace(template, ops=tuple(ops))


@pytest.mark.parametrize("width", [0.5, 0.25, 0.01])
def test_a_narrow_network_is_the_whole_one_without_what_it_drops(case, width):
    template, tensors, x = case
    narrowed = narrow(template, tensors, x, width)

    expected = run_float(deaf_to_dropped(template, narrowed, tensors), x)
    actual = run_float(bind(without_statistics(narrowed), tensors), x)

    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    sizes = [np.prod(graph.activations[op.output].shape) for graph in (narrowed, template) for op in template.ops]
    assert sum(sizes[: len(template.ops)]) < 0.9 * sum(sizes[len(template.ops) :])


def test_the_whole_width_changes_nothing(case):
    template, tensors, x = case

    assert narrow(template, tensors, x, 1.0) == template


def test_a_narrower_width_keeps_a_part_of_what_a_wider_one_keeps(case):
    template, tensors, x = case
    wide, slim = (narrow(template, tensors, x, width) for width in (0.75, 0.25))

    for one, other in zip(wide.ops, slim.ops, strict=True):
        if other.source is not None and other.source.rows is not None:
            assert one.source.rows is None or set(other.source.rows) <= set(one.source.rows)


def test_the_heaviest_channels_stay():
    captured = capture(seeded(digits_cnn(), SEED), (1, 8, 8))
    x = samples_channels_last(np.random.default_rng(SEED).standard_normal((20, 1, 8, 8)).astype(np.float32))
    template = run_passes(captured.graph)
    folded = bind(template, captured.tensors).ops[0].weights
    heaviest = np.argsort(-np.square(folded).sum(axis=(1, 2, 3)))[:4]

    assert narrow(template, captured.tensors, x, 0.5).ops[0].source.rows == tuple(sorted(heaviest.tolist()))


def test_normalisations_get_the_statistics_of_what_is_left():
    captured = capture(seeded(digits_cnn(), SEED), (1, 8, 8))
    x = samples_channels_last(np.random.default_rng(SEED).standard_normal((60, 1, 8, 8)).astype(np.float32))
    narrowed = narrow(run_passes(captured.graph), captured.tensors, x, 0.5)
    plain = replace(
        narrowed, ops=tuple(replace(op, activation=Activation.NONE) if op.output == "relu_2" else op for op in narrowed.ops)
    )
    seen = {}
    run_float(bind(plain, captured.tensors), x, lambda name, values: seen.setdefault(name, []).append(values))
    values = np.concatenate(seen["relu_2"]).reshape(-1, 24)
    rows = list(next(op for op in narrowed.ops if op.output == "relu_2").source.rows)

    np.testing.assert_allclose(values.mean(axis=0), captured.tensors["bn3.bias"][rows], atol=1e-4)
    np.testing.assert_allclose(values.std(axis=0), np.abs(captured.tensors["bn3.weight"][rows]), rtol=1e-3)
    assert narrowed.ops[0].source.norm_scale == ()  # it reads the whole input, as before


def test_new_weights_of_the_whole_model_are_pushed_into_a_narrow_package():
    module = seeded(digits_cnn(), SEED)
    captured = capture(module, (1, 8, 8))
    x = samples_channels_last(np.random.default_rng(SEED).standard_normal((60, 1, 8, 8)).astype(np.float32))
    encoder = cut_graph(run_passes(captured.graph), "flatten")
    template, ranges = calibrate(narrow(encoder, captured.tensors, x, 0.5, is_encoder=True), captured.tensors, x, Recipe())
    head = (HeadLayer("new.weight", "new.bias", 24, 10),)
    tensors = captured.tensors | {"new.weight": np.ones((10, 24), np.float32), "new.bias": np.zeros(10, np.float32)}
    package = assemble(template, head, tensors, ranges, [Board.load("posix")], "narrow", 0, "nchw")["posix"]
    newer = {name: value * np.float32(1.25) for name, value in tensors.items()}

    pushed = push(package, newer, None, 1)

    manifest = package.sections[Section.HOST_MANIFEST]
    assert HostManifest.from_bytes(manifest).to_bytes() == manifest
    kept = [(op.source.rows, op.source.norm_scale) for op in template.ops if op.source is not None]
    assert kept == [(op.source.rows, op.source.norm_scale) for op in package.host.template.ops if op.source is not None]
    assert len(kept[1][0]) == len(kept[1][1]) == 8
    expected = assemble(template, head, newer, ranges, [Board.load("posix")], "narrow", 1, "nchw")["posix"]
    assert pushed.to_bytes() == expected.to_bytes()
    assert pushed.sections[Section.WEIGHTS] != package.sections[Section.WEIGHTS]
