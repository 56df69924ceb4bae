# SPDX-License-Identifier: Apache-2.0
"""Who is there for the next round: hellos are collected until the participants' policy is content, or time is up.

Where the run has a goal of updates per round, more are invited than are needed: some of them will not report. Who they are is
drawn from the round's seed. Counts are kept hello by hello, so that a thousand participants cost one look each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence

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

    def leave_out(self, member: Member) -> None:
        """Ask for a participant no longer, nor for its cell where nobody else is in it."""
        if member not in self._members.get(member.cell, ()):
            return
        self._members[member.cell] = tuple(one for one in self._members[member.cell] if one != member)
        self._absent[member.cell].discard(member.id)
        self._present.discard(member.id)
        if not self._members[member.cell]:
            del self._members[member.cell], self._absent[member.cell]
            self._population = tuple(cell for cell in self._population if cell.name != member.cell)
        self._num_complete = sum(not absent for absent in self._absent.values())

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
        return [member for cell in self._invited(cells, seed) for member in self._present_of(cell)]

    @property
    def num_present(self) -> int:
        """Participants that are there."""
        return len(self._present)

    @property
    def num_expected(self) -> int:
        """Participants that the phase is for."""
        return sum(len(members) for members in self._members.values())

    def absent(self) -> list[str]:
        """Ids of those that are not there."""
        return sorted(who for cell in self._absent.values() for who in cell)

    def _invited(self, cells: Sequence[Cell], seed: int) -> list[Cell]:
        """So many cells, whole, that their participants are enough for the goal although some will not report."""
        goal = self._rules.windows.goal_count
        if goal is None:
            return list(cells)
        wanted = math.ceil(goal * self._rules.windows.over_select - 1e-9)
        invited: list[Cell] = []
        count = 0
        for cell in sorted(cells, key=lambda cell: _place(seed, cell.name)):
            if count >= wanted:
                break
            invited.append(cell)
            count += len(self._present_of(cell))
        return invited

    def _window_end(self, first_hello: float) -> float:
        return first_hello + self._rules.windows.selection_s

    def _present_of(self, cell: Cell) -> list[Member]:
        return [member for member in self._members[cell.name] if member.id in self._present]


def _place(seed: int, name: str) -> bytes:
    """Of a cell in the order of invitations."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
