# SPDX-License-Identifier: Apache-2.0
"""Configuration: TOML files as frozen dataclasses that refuse what they do not know.

    config = load(CoordinatorConfig, Path("coordinator.toml"))

Every key can be overridden by the environment (`FEDMOTE_CONFIG__RUN__ROUNDS=5`) and by `--set run.rounds=5`;
`load_with_origins` also says where each value came from.
"""

from fedmote.config.broker import BrokerConfig, CellKey, Credentials, PartnerCredentials
from fedmote.config.coordinator import (
    CellConfig,
    CoordinatorConfig,
    DeadlineConfig,
    PrivacyConfig,
    QuarantineConfig,
    RunConfig,
    SecureSumConfig,
    SecurityConfig,
    StrategyConfig,
    WindowsConfig,
)
from fedmote.config.load import Effective, Loaded, load, load_with_origins
from fedmote.config.partner import PartnerConfig, PartnerDevice
from fedmote.config.table import BadValueError, Table

__all__ = [
    "BadValueError",
    "BrokerConfig",
    "CellConfig",
    "CellKey",
    "CoordinatorConfig",
    "Credentials",
    "DeadlineConfig",
    "Effective",
    "Loaded",
    "PartnerConfig",
    "PartnerCredentials",
    "PartnerDevice",
    "PrivacyConfig",
    "QuarantineConfig",
    "RunConfig",
    "SecureSumConfig",
    "SecurityConfig",
    "StrategyConfig",
    "Table",
    "WindowsConfig",
    "load",
    "load_with_origins",
]
