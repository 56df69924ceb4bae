# SPDX-License-Identifier: Apache-2.0
"""Whole rounds of the C client with heads of two layers, with every option of the training, in both arithmetics."""

import struct

import cbor2
import numpy as np
import pytest

from fedmote.wire.schema import Activation, Loss, Section
from firmware_tests.heads import Layers, Options, TorchHead
from firmware_tests.native import OpenPackage
from firmware_tests.one_round import CLASSES, FEATURE_SCALE, FEATURE_ZERO_POINT, FEATURES, PACKAGE, bench, finish, head_update
from firmware_tests.package_builder import assemble
from fedmote.package.container import split_sections

torch = pytest.importorskip("torch")

HIDDEN = 6
LAYERS = Layers(FEATURES, HIDDEN, CLASSES)
OPTIONS = [
    {},
    {"batch": 1, "momentum_micro": 0},
    {"weight_decay_micro": 20_000, "clip_norm_micro": 400_000},
    {"loss": int(Loss.SQUARED_ERROR), "clip_norm_micro": 400_000, "momentum_micro": 0},
    {"trained_layers": 1},
    {"is_bias_only": 1, "weight_decay_micro": 1000},
]


def two_layer_package(base: np.ndarray) -> bytes:
    """The package of the other tests, with a head of two layers."""
    sections = dict(split_sections(PACKAGE))
    table = struct.pack("<9I", 2, FEATURES, HIDDEN, Activation.RELU, 0, HIDDEN, CLASSES, Activation.NONE, 0)
    sections[Section.HEAD] = table + base.astype("<f4").tobytes()
    return assemble(sorted(sections.items()))


def expected_update(package: bytes, base: np.ndarray, device: object, plan: dict[str, int]) -> np.ndarray:
    """All samples in every epoch, in torch."""
    features = OpenPackage(package).encode(device.x)
    options = Options(
        plan["learning_rate_micro"] / 1e6, plan["momentum_micro"] / 1e6, plan.get("weight_decay_micro", 0) / 1e6,
        plan.get("clip_norm_micro", 0) / 1e6, Loss(plan.get("loss", 0)), plan.get("trained_layers", 2),
        bool(plan.get("is_bias_only", 0)))  # fmt: skip
    reference = TorchHead(LAYERS, base, options, FEATURE_SCALE, FEATURE_ZERO_POINT)
    for _ in range(plan["epochs"]):
        for first in range(0, len(features), plan["batch"]):
            reference.sgd_step(features[first : first + plan["batch"]], device.y[first : first + plan["batch"]])
    return reference.parameters - base


def round_of(changes: dict[str, int], arithmetic: str) -> tuple[np.ndarray, np.ndarray]:
    """Update of the device, and what torch makes of it."""
    base = LAYERS.random_parameters(np.random.default_rng(3), 0.3)
    package = two_layer_package(base)
    everything = {"alpha_milli": 0, "beta_milli": 0, "is_sending_samples": 0} | changes
    device, peers = bench(package, changes=everything, arithmetic=arithmetic)
    finish(device, peers)
    return head_update(peers.updates[1][0]), expected_update(package, base, device, peers.plan)


@pytest.mark.parametrize("changes", OPTIONS)
def test_float_device_trains_two_layers_as_torch_does(changes: dict[str, int]) -> None:
    update, expected = round_of(changes, "fedmote_float32")

    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(update, expected, atol=1e-5 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize("changes", OPTIONS)
def test_integer_device_trains_two_layers_nearly_as_torch_does(changes: dict[str, int]) -> None:
    update, expected = round_of(changes, "fedmote_int16")

    assert np.linalg.norm(update - expected) <= 0.05 * np.linalg.norm(expected)
    np.testing.assert_array_equal(update[expected == 0], 0)  # what is frozen has not changed by a bit


def test_a_section_for_training_deeper_layers_is_skipped_whatever_it_holds() -> None:
    sections = dict(split_sections(PACKAGE))
    for content in (b"", b"\xff" * 64, cbor2.dumps({1: 2})):
        assert OpenPackage(assemble(sorted((sections | {Section.TRAINING: content}).items()))).status == 0
