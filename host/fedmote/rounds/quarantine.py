# SPDX-License-Identifier: Apache-2.0
"""Who is left out, for how long, and why.

Every update of a participant is sound or not. It is not sound where it was refused as invalid (a shape, a size, a value that no
honest participant sends), or where it is far: its norm, or its distance from its neighbours where MultiKrum left it out, is
`factor` times the median of the round. So many in a row, and the participant is left out of the next rounds; after that it
begins anew, and is left out again by its next unsound update.

Being left out by MultiKrum is not unsound by itself: it always leaves somebody out, in an honest fleet those whose data are rare.
Nor is an update that is refused because it is too late, of a wrong round or from too few samples.

Two boards that speak with one key are left out at once: which of them is the right one cannot be told from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedmote.aggregation import Finding
from fedmote.config import QuarantineConfig

DOUBLED = "two boards use this id"


@dataclass(frozen=True)
class Verdict:
    """What a round says about one update; to be journaled.

    Attributes:
        id: whose.
        finding: "sound", "far" or "invalid".
        ratio: to the median of the round; None of an update that was not merged.
        is_filtered: left out of the merge, at least in part.
        streak: updates in a row that were not sound, this one included.
        reason: in words; empty where it is sound.
        until: the participant is left out up to and with this round; None where it is not.
    """

    id: str
    finding: Literal["sound", "far", "invalid"]
    ratio: float | None
    is_filtered: bool
    streak: int
    reason: str
    until: int | None = None


class Quarantine:
    """The conduct of all participants of a run.

    Args:
        rules: when somebody is left out.
        streaks: unsound updates in a row, by participant.
        out: last round that a participant is left out of, and why.
    """

    def __init__(self, rules: QuarantineConfig, streaks: Mapping[str, int], out: Mapping[str, tuple[int, str]]) -> None:
        self._rules = rules
        self._streaks = dict(streaks)
        self._out = dict(out)

    def left_out(self, number: int) -> dict[str, str]:
        """Who is left out of a round, and the words for it."""
        return {
            who: f"in quarantine until round {until}: {reason}"
            for who, (until, reason) in sorted(self._out.items())
            if number <= until
        }

    def invalid(self, number: int, who: str, reason: str) -> Verdict:
        """An update was refused as invalid."""
        return self._unsound(number, who, "invalid", None, False, reason)

    def doubled(self, number: int, who: str) -> int | None:
        """Two boards speak with one key: the last round that both are left out of; None where they are, or nobody ever is."""
        until = number + self._rules.rounds
        if self._rules.rounds == 0 or number <= self._out.get(who, (0, ""))[0]:
            return None
        self._out[who] = (until, DOUBLED)
        return until

    def judge(self, number: int, finding: Finding) -> Verdict:
        """An update was merged, or left out by the rule."""
        if finding.ratio < self._rules.factor:
            self._streaks[finding.participant] = 0
            return Verdict(finding.participant, "sound", finding.ratio, finding.is_filtered, 0, "")
        reason = f"{finding.ratio:.1f} times the median {'distance or norm' if finding.is_filtered else 'norm'}"
        return self._unsound(number, finding.participant, "far", finding.ratio, finding.is_filtered, reason)

    def _unsound(
        self, number: int, who: str, finding: Literal["far", "invalid"], ratio: float | None, is_filtered: bool, reason: str
    ) -> Verdict:
        streak = self._streaks.get(who, 0) + 1
        self._streaks[who] = streak
        until = None
        if streak >= self._rules.unsound_updates and self._rules.rounds > 0:
            until = number + self._rules.rounds
            reason = f"{reason}; {streak} unsound updates in a row" if streak > 1 else reason
            self._out[who] = (until, reason)
        return Verdict(who, finding, ratio, is_filtered, streak, reason, until)
