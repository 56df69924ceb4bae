# SPDX-License-Identifier: Apache-2.0
"""Rounds as a state machine without I/O: `RoundMachine` takes events and returns actions."""

from fedmote.rounds.machine import RoundMachine
from fedmote.rounds.standing import MaskedRules, MaskedStanding, OpenRoundStanding, Rules, Standing
from fedmote.rounds.status import RunStatus, Stage

__all__ = ["MaskedRules", "MaskedStanding", "OpenRoundStanding", "RoundMachine", "Rules", "RunStatus", "Stage", "Standing"]
