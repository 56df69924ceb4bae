# SPDX-License-Identifier: Apache-2.0
"""Preset "fedavg": every partner trains the whole model on its own data; one mean.

Source: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data" (arXiv 1602.05629). It is the baseline without devices.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedmote.config import StrategyConfig
from fedmote.errors import ConfigError
from fedmote.strategies.aggregations import aggregation_of
from fedmote.strategies.centaur import participants, partner_training
from fedmote.strategies.f32 import Float32
from fedmote.strategies.seams import Cell, Strategy
from fedmote.strategies.whole_model import WholeModel


def fedavg(config: StrategyConfig, cells: Sequence[Cell]) -> Strategy:
    """Choose FedAvg's four policies.

    Raises:
        ConfigError: the combination makes no sense; the message says why.
    """
    if not any(cell.partner for cell in cells):
        raise ConfigError('strategy: preset "fedavg" where no cell has a partner; use preset "centaur"')
    if config.form == "simultaneous":
        raise ConfigError('strategy: form = "simultaneous" belongs to preset "centaur"; fedavg has partner rounds alone')
    if config.is_sending_samples:
        raise ConfigError('strategy: is_sending_samples = true with preset "fedavg": its devices never get a plan; use "centaur"')
    if config.ignore != "none":
        raise ConfigError(f'strategy: ignore = "{config.ignore}" with preset "fedavg", which has partners alone')
    plan = WholeModel(partner_training(config))
    aggregation = aggregation_of(config, cells)
    return Strategy("fedavg", participants(config, cells), plan, Float32(), aggregation)
