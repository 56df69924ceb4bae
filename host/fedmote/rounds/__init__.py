# SPDX-License-Identifier: Apache-2.0
"""Rounds as a state machine without I/O: `RoundMachine` takes events and returns actions."""

from fedmote.rounds.machine import RoundMachine, Stage
from fedmote.rounds.standing import OpenRoundStanding, Rules, Standing

__all__ = ["OpenRoundStanding", "RoundMachine", "Rules", "Stage", "Standing"]
