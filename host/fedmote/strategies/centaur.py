# SPDX-License-Identifier: Apache-2.0
"""Preset "centaur": selected samples, heads from devices, whole models from partners, one merge.

Source: Mo, Malekzadeh, Chatterjee, Kawsar, Mathur, "Enhancing Efficiency in Multidevice Federated Learning through Data
Selection" (arXiv 2211.04175). Published: plain FedAvg per phase, weights by the samples selected in the first epoch,
phases in turn, alpha 5, beta 3, gamma 0. The simultaneous form is fedmote's own: each tensor is averaged over those who
trained it, which gives the published rule where phases alternate.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedmote.config import StrategyConfig
from fedmote.errors import ConfigError
from fedmote.strategies.aggregations import aggregation_of
from fedmote.strategies.all_cells import AllCells
from fedmote.strategies.f32 import Float32
from fedmote.strategies.random_cells import RandomCells
from fedmote.strategies.seams import Cell, Participants, Strategy, Training
from fedmote.strategies.selected_samples import SelectedSamples
from fedmote.wire.schema import Loss, Role

_IGNORED = {"none": None, "devices": Role.DEVICE, "partners": Role.PARTNER}


def centaur(config: StrategyConfig, cells: Sequence[Cell]) -> Strategy:
    """Choose Centaur's four policies.

    Raises:
        ConfigError: the combination makes no sense; the message says why.
    """
    _refuse_nonsense(config, cells)
    plan = SelectedSamples(config.form, device_training(config), partner_training(config))
    aggregation = aggregation_of(config, cells, _IGNORED[config.ignore])
    return Strategy(f"centaur/{config.form}", participants(config, cells), plan, Float32(plan.device), aggregation)


def _refuse_nonsense(config: StrategyConfig, cells: Sequence[Cell]) -> None:
    if not any(cell.devices for cell in cells):
        raise ConfigError('strategy: preset "centaur" without a single device; use preset "fedavg"')
    has_partner = any(cell.partner for cell in cells)
    if config.uncovered == "zero":
        raise ConfigError(
            'strategy: uncovered = "zero" with preset "centaur": devices train the head alone, so that each of them would '
            'pull the encoder towards zero; use "ignore"'
        )
    if config.form == "simultaneous" and not has_partner:
        raise ConfigError('strategy: form = "simultaneous" where no cell has a partner; use form = "alternating"')
    if config.is_sending_samples and not has_partner:
        raise ConfigError("strategy: is_sending_samples = true where no cell has a partner to send them to")
    if config.is_sending_samples and config.beta == 0 and config.gamma == 0:
        raise ConfigError(
            "strategy: is_sending_samples = true with beta = 0 and gamma = 0: no sample is ever selected to be sent"
        )
    if config.max_send == 0 and config.is_sending_samples:
        raise ConfigError("strategy: is_sending_samples = true with max_send = 0; leave max_send out for no limit")
    if config.gain == 0:
        raise ConfigError("strategy: gain = 0 lets no device select a sample; choose a share above 0")
    if config.ignore == "partners" and not has_partner:
        raise ConfigError('strategy: ignore = "partners" where no cell has a partner; leave it out')
    if config.ignore == "devices" and not has_partner:
        raise ConfigError('strategy: ignore = "devices" where no cell has a partner: nothing would ever be merged')


def participants(config: StrategyConfig, cells: Sequence[Cell]) -> Participants:
    """All cells, or a draw of `cells_per_round`."""
    if config.cells_per_round is None:
        return AllCells()
    if config.cells_per_round > len(cells):
        raise ConfigError(f"strategy: cells_per_round = {config.cells_per_round}, but there are {len(cells)} cells")
    return RandomCells(config.cells_per_round)


def device_training(config: StrategyConfig) -> Training:
    """A device's numbers, with the selection."""
    return Training(
        config.epochs,
        config.batch,
        config.learning_rate,
        config.momentum,
        config.alpha,
        config.beta,
        config.gamma,
        config.gamma_order,
        config.gain,
        config.is_sending_samples,
        config.max_send,
        config.weight_decay,
        config.clip_norm,
        Loss[config.loss.upper()],
        config.trained_layers,
        config.is_bias_only,
    )


def partner_training(config: StrategyConfig) -> Training:
    """A partner's numbers; it takes what it is sent, and selects nothing itself."""
    return Training(
        config.partner_epochs,
        config.partner_batch,
        config.partner_learning_rate,
        config.partner_momentum,
        weight_decay=config.partner_weight_decay,
        clip_norm=config.partner_clip_norm,
        loss=Loss[config.loss.upper()],
    )
