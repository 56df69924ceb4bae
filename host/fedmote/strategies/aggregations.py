# SPDX-License-Identifier: Apache-2.0
"""Which aggregation a configuration asks for, and what it does not go together with."""

from __future__ import annotations

from collections.abc import Sequence

from fedmote.aggregation.krum import FEWEST
from fedmote.config import StrategyConfig
from fedmote.errors import ConfigError
from fedmote.strategies.clipped_mean import ClippedMean
from fedmote.strategies.covered_mean import CoveredMean, Ignored
from fedmote.strategies.multi_krum import MultiKrum
from fedmote.strategies.private_mean import PrivateMean
from fedmote.strategies.seams import Aggregation, Cell
from fedmote.strategies.trimmed_mean import TrimmedMean


def aggregation_of(config: StrategyConfig, cells: Sequence[Cell], ignored: Ignored = None) -> Aggregation:
    """The aggregation of a configuration.

    Raises:
        ConfigError: the combination makes no sense; the message says why.
    """
    if config.secure_sum is not None:
        _refuse_unmasked(config, ignored)
    if config.privacy is not None:
        return _private(config, cells, ignored)
    rate, weights = config.server_learning_rate, config.weights
    if config.aggregation == "mean":
        return CoveredMean(config.uncovered, weights, rate, ignored)
    if config.aggregation == "clipped_mean":
        return ClippedMean(config.clip_factor, config.weight_cap, config.uncovered, weights, rate, ignored)
    if config.uncovered != "ignore":
        raise ConfigError(
            f'strategy: aggregation = "{config.aggregation}" with uncovered = "{config.uncovered}": whoever is left out of a '
            'coordinate would still vote for its old value; use uncovered = "ignore"'
        )
    if config.aggregation == "trimmed_mean":
        return TrimmedMean(config.trim_share, config.weight_cap, weights, rate, ignored)
    num_members = sum(len(cell.members()) for cell in cells)
    if num_members < FEWEST:
        raise ConfigError(
            f'strategy: aggregation = "multi_krum" with {num_members} participants: among fewer than {FEWEST} distances show no '
            'majority; use "clipped_mean"'
        )
    return MultiKrum(config.hostile_share, config.clip_factor, config.weight_cap, weights, rate, ignored)


def _refuse_unmasked(config: StrategyConfig, ignored: Ignored) -> None:
    """What does not go together with updates that nobody can look at."""
    if config.preset != "centaur" or config.ignore == "devices":
        raise ConfigError("strategy: secure_sum sums head updates of devices, and in this run none counts; leave it out")
    if config.privacy is not None:
        raise ConfigError(
            "strategy: secure_sum with privacy: noise is scaled to updates that the coordinator cuts itself; choose one of both"
        )
    if config.aggregation != "mean":
        raise ConfigError(
            f'strategy: secure_sum with aggregation = "{config.aggregation}": members cut their own updates, and no single one '
            'can be judged under its mask; use aggregation = "mean"'
        )
    if config.cells_per_round is not None:
        raise ConfigError(
            "strategy: secure_sum with cells_per_round: a member whose neighbours were not drawn cannot take part; leave "
            "cells_per_round out"
        )


def _private(config: StrategyConfig, cells: Sequence[Cell], ignored: Ignored) -> PrivateMean:
    """The mean with noise, where nothing else tells about the devices' data."""
    privacy = config.privacy
    assert privacy is not None  # the caller looked
    if config.preset != "centaur" or (ignored is None and any(cell.partner for cell in cells)):
        raise ConfigError(
            "strategy: privacy covers the head updates of devices, and partners' whole-model updates would tell about the same "
            'samples without noise; use preset "centaur" in a fleet without partners, or ignore = "partners"'
        )
    if config.ignore == "devices":
        raise ConfigError('strategy: privacy with ignore = "devices", whose updates it is there for')
    if config.is_sending_samples:
        raise ConfigError("strategy: privacy with is_sending_samples = true: samples that are sent are not private any more")
    if config.aggregation != "clipped_mean":
        raise ConfigError(
            f'strategy: privacy with aggregation = "{config.aggregation}": noise hides one clipped update in a sum, and no other '
            "rule is known to let one update change so little; leave aggregation out"
        )
    if config.uncovered != "ignore":
        raise ConfigError(f'strategy: privacy with uncovered = "{config.uncovered}"; leave it out')
    if privacy.sampling == "cells" and config.cells_per_round is None:
        raise ConfigError('strategy: privacy.sampling = "cells" without cells_per_round: nothing is drawn; use "none"')
    # A number of updates that depends on a secret draw would tell about the draw: the divisor is that of a full round then.
    divisor = None if privacy.sampling == "none" else (config.cells_per_round or 0) * max(len(cell.devices) for cell in cells)
    return PrivateMean(privacy.clip_norm, privacy.noise_multiplier, config.server_learning_rate, ignored, divisor)
