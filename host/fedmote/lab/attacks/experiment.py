# SPDX-License-Identifier: Apache-2.0
"""One fleet, one rule, one attack: what is left of the accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Literal, cast

import numpy as np

from fedmote.aggregation import Update
from fedmote.aggregation.ranges import Ranges
from fedmote.config import CellConfig, StrategyConfig
from fedmote.errors import ConfigError
from fedmote.lab.attacks.attack import ATTACKS, mislabelled
from fedmote.lab.attacks.setting import Fleet, Setting, accuracy, make_fleet, train_head
from fedmote.package.graph import HeadLayer
from fedmote.strategies import MergeContext, ModelShape, cells_of, load_strategy
from fedmote.tensors import Tensors
from fedmote.wire.blobs import encode_head_update
from fedmote.wire.schema import Role

Rule = Literal["clipped_mean", "trimmed_mean", "multi_krum", "mean"]
RULES: tuple[Rule, ...] = ("mean", "clipped_mean", "trimmed_mean", "multi_krum")
DEFAULT = Setting()
_LAYER = "head.weight", "head.bias"


def run_attack(
    rule: str, share: float, attack: str = "sign-flip", seed: int = 0, setting: Setting = DEFAULT, **keys: object
) -> float:
    """Accuracy points that a fleet loses: against the same fleet, all honest, under the plain mean.

    Args:
        rule: value of `[strategy] aggregation`.
        share: of the devices that are hostile, 0 to 1.
        attack: one of `ATTACKS`.
        seed: of data, features, hostile devices and dropouts.
        setting: numbers of the experiment.
        keys: further keys of `[strategy]`.

    Returns:
        Points, 0 to 100; negative where the rule is better than the plain mean of honest updates.
    """
    clean = _final_accuracy("mean", 0.0, "sign-flip", seed, setting, ())
    return 100 * (clean - final_accuracy(rule, share, attack, seed, setting, **keys))


def final_accuracy(
    rule: str, share: float, attack: str = "sign-flip", seed: int = 0, setting: Setting = DEFAULT, **keys: object
) -> float:
    """Accuracy after the last round, 0 to 1; arguments as those of `run_attack`."""
    if attack not in ATTACKS:
        raise ConfigError(f"no attack {attack!r}; known are {', '.join(ATTACKS)}")
    return _final_accuracy(rule, share, attack, seed, setting, tuple(sorted(keys.items())))


@cache
def _final_accuracy(
    rule: str, share: float, attack: str, seed: int, setting: Setting, keys: tuple[tuple[str, object], ...]
) -> float:
    fleet = _fleet(setting, seed)
    generator = np.random.default_rng((seed, 1))
    hostile = frozenset(generator.permutation(setting.num_devices)[: round(share * setting.num_devices)].tolist())
    config = StrategyConfig(aggregation=cast(Rule, rule), **dict(keys))  # type: ignore[arg-type]  # checked by the table itself
    strategy = load_strategy(config, cells_of([CellConfig(name, (name,)) for name in map(_name, range(setting.num_devices))]))
    tensors: Tensors = {
        "head.weight": np.zeros((fleet.num_classes, setting.num_features), np.float32),
        "head.bias": np.zeros(fleet.num_classes, np.float32),
    }
    model = ModelShape(tensors, (HeadLayer(*_LAYER, setting.num_features, fleet.num_classes),), {})
    for number in range(1, setting.num_rounds + 1):
        blobs = _round(fleet, tensors, hostile, attack, setting, np.random.default_rng((seed, 2, number)))

        def updates(blobs: dict[str, tuple[int, bytes]] = blobs) -> Iterator[tuple[Role, Update, Ranges]]:
            for who, (count, blob) in sorted(blobs.items()):
                decoded = strategy.codec.decode(Role.DEVICE, blob, model)
                yield Role.DEVICE, Update(who, count, decoded.tensors), decoded.ranges

        tensors = strategy.aggregation.merge(tensors, {}, updates, MergeContext(model, number)).tensors
    return accuracy(tensors["head.weight"], tensors["head.bias"], fleet.test)


@cache
def _fleet(setting: Setting, seed: int) -> Fleet:
    return make_fleet(setting, seed)


def _name(index: int) -> str:
    return f"device-{index:04}"


def _round(
    fleet: Fleet, tensors: Tensors, hostile: frozenset[int], attack: str, setting: Setting, generator: np.random.Generator
) -> dict[str, tuple[int, bytes]]:
    """Number of examples and update of every device that reports."""
    missing = set(generator.permutation(setting.num_devices)[: round(setting.dropout * setting.num_devices)].tolist())
    blobs = {}
    for index, samples in enumerate(fleet.devices):
        own = np.random.default_rng(generator.integers(2**63))  # drawn for the missing, too: the others' draws stay as they are
        if index in missing or not len(samples.y):
            continue
        used = mislabelled(samples, fleet.num_classes) if index in hostile and attack == "label-flip" else samples
        delta = train_head(tensors["head.weight"], tensors["head.bias"], used, setting, own)
        if index in hostile:
            delta = ATTACKS[attack](delta, own)
        blobs[_name(index)] = (len(samples.y), encode_head_update(delta))
    return blobs
