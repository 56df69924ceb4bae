# SPDX-License-Identifier: Apache-2.0
"""Who is there for the next round: hellos are collected until the participants' policy is content, or time is up.

Counts are kept hello by hello, so that a thousand participants cost one look each.
"""

from __future__ import annotations

from collections.abc import Collection

from fedmote.rounds.standing import Rules
from fedmote.strategies import Cell, Member, Previous


class Selection:
    """The selection of one round.

    Attributes:
        phase: of the round to come.
        num_candidates: cells that the draw had to choose from, once it is made.
    """

    def __init__(self, rules: Rules, previous: Previous | None, now: float, left_out: Collection[str] = ()) -> None:
        """`left_out` are ids that are not asked for, whatever the policies say."""
        policy = rules.strategy.plan
        self.phase = policy.next_phase(rules.cells, previous)
        self.num_candidates = 0
        self._rules = rules
        members = {
            cell.name: tuple(member for member in policy.members(cell, self.phase) if member.id not in left_out)
            for cell in policy.population(rules.cells, previous)
        }
        self._population = tuple(cell for cell in policy.population(rules.cells, previous) if members[cell.name])
        self._members = {cell.name: members[cell.name] for cell in self._population}
        self._absent = {name: {member.id for member in members} for name, members in self._members.items()}
        self._present: set[str] = set()
        self._num_complete = 0
        self._began = now
        self._first_hello: float | None = None

    def came(self, member: Member, now: float) -> bool:
        """Note that a participant is there; false where that is known, or not asked for in this phase."""
        if member.id not in self._absent.get(member.cell, ()):
            return False
        self._absent[member.cell].remove(member.id)
        self._present.add(member.id)
        self._num_complete += not self._absent[member.cell]
        self._first_hello = now if self._first_hello is None else self._first_hello
        return True

    def bound(self) -> float:
        """An empty room is given up after the time that a whole round may take."""
        return self._began + self._rules.windows.selection_s + self._rules.windows.report_s

    def wake_at(self) -> float:
        """When `chosen` or `is_hopeless` will change if nobody comes."""
        return self.bound() if self._first_hello is None else min(self.bound(), self._window_end(self._first_hello))

    def is_hopeless(self, now: float) -> bool:
        """Nobody came in all this time."""
        return now >= self.bound()

    def chosen(self, seed: int, now: float) -> list[Member]:
        """The members of the round, if it can open now; empty otherwise."""
        is_window_over = self._first_hello is not None and now >= self._window_end(self._first_hello)
        policy = self._rules.strategy.participants
        if not is_window_over and not policy.is_enough(self._num_complete, len(self._population)):
            return []
        present = [cell for cell in self._population if self._present_of(cell)]
        self.num_candidates = len(present)
        cells = policy.choose(present, seed)
        return [member for cell in cells for member in self._present_of(cell)]

    def words(self, number: int, left_s: float) -> str:
        """For the operator: who is missing."""
        absent = sorted(who for cell in self._absent.values() for who in cell)
        text = f"round {number}: {len(self._present)} of {len(self._present) + len(absent)} participants ready"
        return f"{text}; waiting for {listed(absent)}, at most {left_s:.0f} s" if absent else text

    def _window_end(self, first_hello: float) -> float:
        return first_hello + self._rules.windows.selection_s

    def _present_of(self, cell: Cell) -> list[Member]:
        return [member for member in self._members[cell.name] if member.id in self._present]


def listed(names: list[str], most: int = 5) -> str:
    """A few names, and the number of the others."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
