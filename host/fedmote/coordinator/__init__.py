# SPDX-License-Identifier: Apache-2.0
"""The coordinator: performs what the round machine asks for, over any transports, from any interruption."""

from fedmote.coordinator.coordinator import Coordinator
from fedmote.coordinator.deployed import DeployedPartition
from fedmote.coordinator.forms import Partition
from fedmote.coordinator.results import RoundResult, RunResult

__all__ = ["Coordinator", "DeployedPartition", "Partition", "RoundResult", "RunResult"]
