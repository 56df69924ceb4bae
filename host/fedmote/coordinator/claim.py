# SPDX-License-Identifier: Apache-2.0
"""What a run with noise may claim, from its ledger: epsilon at delta after a round, or why nothing is claimed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from fedmote.errors import ConfigError
from fedmote.privacy.accountant import delta_of, epsilon, epsilon_of_draws
from fedmote.store import Ledger, PrivacyEntry
from fedmote.wire.schema import Role


@dataclass(frozen=True)
class Claim:
    """A claim of differential privacy for every device of a run.

    Attributes:
        epsilon: for the device that took part most often, over all rounds so far; None where nothing is claimed.
        delta: at which it holds.
        reason: why nothing is claimed; None where something is.
    """

    epsilon: float | None
    delta: float
    reason: str | None

    def words(self) -> str:
        """For the operator."""
        if self.epsilon is None:
            return f"no privacy claim: {self.reason}"
        return f"epsilon {self.epsilon:.2f} at delta {self.delta:.2g}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def claims(ledger: Ledger) -> dict[int, Claim]:
    """The claim after each merged round, by its number; empty in a run without noise."""
    run, entry = ledger.run(), ledger.privacy()
    privacy = json.loads(run.strategy).get("privacy") if run is not None else None
    if entry is None or privacy is None or run is None:
        return {}
    per_round = json.loads(run.strategy).get("cells_per_round")
    delta = delta_of(entry.num_devices)
    shares: Counter[str] = Counter()
    found: dict[int, Claim] = {}
    complaint = "a fleet of one device has no others to hide among" if entry.num_devices < 2 else None
    for one in ledger.rounds():
        if one.state != "committed":
            continue
        shares.update(update.participant for update in ledger.updates(one.plan.round) if update.role is Role.DEVICE)
        if complaint is None and privacy["sampling"] == "cells":
            complaint = _shortfall(one.plan.round, one.plan.num_candidates, len(one.plan.cells), per_round, entry)
        if complaint is not None:
            found[one.plan.round] = Claim(None, delta, complaint)
            continue
        try:
            found[one.plan.round] = Claim(_epsilon(privacy, entry, per_round, shares, len(found) + 1, delta), delta, None)
        except ConfigError as error:
            found[one.plan.round] = Claim(None, delta, str(error))
    return found


def _epsilon(
    privacy: dict[str, Any], entry: PrivacyEntry, per_round: int, shares: Counter[str], num_rounds: int, delta: float
) -> float:
    noise = float(privacy["noise_multiplier"])
    if privacy["sampling"] == "none":
        return epsilon(noise, max(shares.values(), default=0), delta)
    return epsilon_of_draws(noise, num_rounds, delta, per_round, entry.num_cells, entry.devices_per_cell)


def _shortfall(number: int, candidates: int, num_drawn: int, per_round: int, entry: PrivacyEntry) -> str | None:
    """Fewer to draw from means that each one is drawn more often than the accountant counts on."""
    if candidates >= entry.num_cells and num_drawn == per_round:
        return None
    return (
        f"round {number} drew {num_drawn} cells of the {candidates} that were there, and the accountant counts on {per_round} of "
        f"{entry.num_cells}: whoever was there was drawn more often than that, so the true epsilon is larger"
    )
