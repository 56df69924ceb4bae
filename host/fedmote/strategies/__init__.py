# SPDX-License-Identifier: Apache-2.0
"""Strategies: each is a choice of four policies, one per seam.

To add a policy, write a file named after what it is, with the paper in its docstring, and let a preset choose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedmote.config import CellConfig, StrategyConfig
from fedmote.strategies.centaur import centaur
from fedmote.strategies.fedavg import fedavg
from fedmote.strategies.leakage import leakage_warning
from fedmote.strategies.seams import Cell, Member, MergeContext, ModelShape, Previous, RoundPlan, Strategy, Training

PRESETS: Mapping[str, Callable[[StrategyConfig, Sequence[Cell]], Strategy]] = {"centaur": centaur, "fedavg": fedavg}


def cells_of(configs: Sequence[CellConfig]) -> tuple[Cell, ...]:
    """The population of a configuration, in order of the cells' names."""
    cells = [Cell(config.name, tuple(sorted(config.devices)), config.partner) for config in configs]
    return tuple(sorted(cells, key=lambda cell: cell.name))


def load_strategy(config: StrategyConfig, cells: Sequence[Cell]) -> Strategy:
    """Fill the four seams from a configuration.

    Raises:
        ConfigError: a combination that makes no sense, with the reason.
    """
    return PRESETS[config.preset](config, cells)


__all__ = [
    "PRESETS",
    "Cell",
    "Member",
    "MergeContext",
    "ModelShape",
    "Previous",
    "RoundPlan",
    "Strategy",
    "Training",
    "cells_of",
    "leakage_warning",
    "load_strategy",
]
