# SPDX-License-Identifier: Apache-2.0
"""What a round machine starts from: the rules of the run, and what the journal says about the past."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedmote.config import QuarantineConfig, WindowsConfig
from fedmote.privacy.group import MaskedGroup
from fedmote.rounds.events import MaskStep
from fedmote.strategies import Cell, Previous, RoundPlan, Strategy
from fedmote.wire.schema import Role


@dataclass(frozen=True)
class MaskedRules:
    """How a group's updates are summed under masks.

    Attributes:
        group: with everybody who may take part.
        keys_fraction, shares_fraction: keys are awaited for so long after a round opened, and shares after its updates, as shares
            of the longest deadline that a member has.
        update_bytes: size of a masked update.
    """

    group: MaskedGroup
    keys_fraction: float
    shares_fraction: float
    update_bytes: int


@dataclass(frozen=True)
class Rules:
    """What does not change during a run.

    Attributes:
        run: random name of the run, 8 bytes.
        goal: merges to make.
        seed: of the run; a round's own seed is drawn from it.
        cells: the population.
        windows: the waits.
        strategy: the four policies.
        max_update_bytes: largest update blob of a role.
        quarantine: when a participant is left out.
        min_examples: fewest samples behind an update that is not empty.
        masked: whose updates are summed under masks; None: nobody's are.
    """

    run: bytes
    goal: int
    seed: int
    cells: tuple[Cell, ...]
    windows: WindowsConfig
    strategy: Strategy
    max_update_bytes: Callable[[Role], int]
    quarantine: QuarantineConfig = field(default_factory=QuarantineConfig)
    min_examples: int = 0
    masked: MaskedRules | None = None

    def round_seed(self, number: int) -> int:
        """Seed of a round, u32: a hash, so that neighbouring rounds have unrelated draws."""
        text = f"{self.seed}/{number}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


@dataclass(frozen=True)
class MaskedStanding:
    """What the masked members of an open round handed in beside their updates.

    Attributes:
        keys, shares: CRC of the blob by participant.
        ended: steps that are over.
    """

    keys: Mapping[str, int]
    shares: Mapping[str, int]
    ended: frozenset[MaskStep]


@dataclass(frozen=True)
class OpenRoundStanding:
    """A round that was open when the coordinator ended.

    Attributes:
        plan: the round.
        attempts: (attempt, boot nonce) by participant, of those that were sent a plan.
        counted: CRC of the counted update by participant.
        is_closed: the set of updates is fixed, only the merge is missing.
        boards: of the participants that were sent a plan.
        masked: what its masked members handed in; None in a round without.
    """

    plan: RoundPlan
    attempts: Mapping[str, tuple[int, int]]
    counted: Mapping[str, int]
    is_closed: bool
    boards: Mapping[str, str] = field(default_factory=dict)
    masked: MaskedStanding | None = None


@dataclass(frozen=True)
class Standing:
    """What the journal says.

    Attributes:
        version: number of the newest checkpoint.
        num_rounds: number of the last round that was opened.
        num_merged: merges made.
        num_failed: rounds abandoned in a row, up to now.
        previous: the last round that ended, or None.
        open: the round that had not ended, or None.
        last_counted: (round, CRC) of the last counted update by participant, so that a lost ack can be repeated.
        streaks: unsound updates in a row by participant.
        quarantined: last round that a participant is left out of, and why.
    """

    version: int = 0
    num_rounds: int = 0
    num_merged: int = 0
    num_failed: int = 0
    previous: Previous | None = None
    open: OpenRoundStanding | None = None
    last_counted: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    streaks: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, tuple[int, str]] = field(default_factory=dict)
