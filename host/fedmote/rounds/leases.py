# SPDX-License-Identifier: Apache-2.0
"""How long each member of a round may take, and so when the round ends at the latest.

Everybody has the run's deadline, slow boards a later one. Whoever is visibly at work when its deadline comes, pulling its model
or sending its update, has a lease: it is renewed by every chunk, and ends for good when the grace does.
"""

from __future__ import annotations

from collections.abc import Set

from fedmote.config import WindowsConfig


class Leases:
    """The deadlines of one round.

    Attributes:
        opened_at: when the round began, or went on after a restart.
    """

    def __init__(self, windows: WindowsConfig, opened_at: float) -> None:
        self.opened_at = opened_at
        self._windows = windows
        self._report_s = {board: deadline.report_s for deadline in windows.deadlines for board in deadline.boards}
        self._deadlines: dict[str, float] = {}
        self._leases: dict[str, float] = {}
        self._known_end: tuple[int, float] | None = None

    def joined(self, who: str, board: str) -> None:
        """A member said what board it is."""
        if board in self._report_s:
            self._deadlines[who] = self.opened_at + self._report_s[board]
            self._known_end = None

    def progressed(self, who: str, now: float) -> None:
        """A chunk came from a member, or was asked for."""
        end = min(now + self._windows.lease_s, self.deadline(who) + self._windows.grace_s)
        if end > self.deadline(who):
            self._leases[who] = end
            self._known_end = None

    def deadline(self, who: str) -> float:
        """Of a member that shows no sign of work."""
        return self._deadlines.get(who, self.opened_at + self._windows.report_s)

    def latest(self, who: str) -> float:
        """When a member is waited for no longer, however hard it works."""
        return self.deadline(who) + self._windows.grace_s

    def end(self, unsettled: Set[str]) -> float:
        """When the round is over if nothing more is heard of these members.

        Args:
            unsettled: only ever fewer of them from call to call, so that their number tells whether the last answer still holds:
                with a thousand members this is asked a hundred thousand times.
        """
        if self._known_end is None or self._known_end[0] != len(unsettled):
            later = [end for ends in (self._deadlines, self._leases) for who, end in ends.items() if who in unsettled]
            self._known_end = (len(unsettled), max([self.opened_at + self._windows.report_s, *later]))
        return self._known_end[1]
