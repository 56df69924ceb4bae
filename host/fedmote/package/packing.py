# SPDX-License-Identifier: Apache-2.0
"""Packs blocks of memory that must not cover each other, or may only in part, into as few bytes as can be found.

Two blocks that conflict have two distances: how far the second must lie above the first, and how far the first above the second.
For blocks that must be disjoint these are their sizes; where one may be written over the part of the other that is done with,
one of them is smaller. Choosing which of the two lies above the other, for every conflict, makes the packing a longest path. So
only these choices are searched: within a given height, a choice that would exceed it forces the other one, and what is forced is
followed up before anything is tried. The least height is found by bisection between a lower bound and the best of a few greedy
packings.

The search counts its steps instead of looking at a clock, and gives up on a height that takes too many: the same input gives
the same packing on every machine. A height that it did not give up on is possible or is not, so the lower bound may rise too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_HEIGHT_STEPS = 60_000  # of the search for one height: most are decided after a few hundred, the others hardly ever
_STEPS = 300_000  # of all heights
_GREEDY_ATTEMPTS = 32

Distances = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Packing:
    """Where blocks lie.

    Attributes:
        offsets: of each block.
        total: the end of the topmost one.
        lower_bound: no packing is smaller.
    """

    offsets: tuple[int, ...]
    total: int
    lower_bound: int


def pack(sizes: Sequence[int], above: Distances, bound: int, unit: int) -> Packing:
    """Packs blocks.

    Args:
        sizes: of the blocks.
        above: for each two that conflict, in both orders: how far the second block's offset must be above the first one's, if it
            is the one that lies above. At most the size of the first. Zeros must not form a cycle.
        bound: no packing is smaller than this.
        unit: all numbers are multiples of it.
    """
    neighbours = _neighbours(len(sizes), above)
    best, height = _greedy(sizes, above, neighbours, bound)
    proven, floor, steps = bound, bound, _STEPS
    target = floor  # most often, the bound can be reached
    while floor < height and steps > 0:
        search = _Search(sizes, above, neighbours, target, min(_HEIGHT_STEPS, steps))
        found = search.run()
        steps -= search.steps
        if found is not None:
            best, height = found, _height(found, sizes)
        else:
            floor = target + unit
            if not search.has_given_up:
                proven = floor
        target = floor + (height - unit - floor) // (2 * unit) * unit
    return Packing(tuple(best), height, min(proven, height))


def _neighbours(count: int, above: Distances) -> list[list[int]]:
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for lower, upper in sorted(above):
        neighbours[lower].append(upper)
    return neighbours


def _height(offsets: Sequence[int], sizes: Sequence[int]) -> int:
    return max(offset + size for offset, size in zip(offsets, sizes, strict=True))


def _greedy(sizes: Sequence[int], above: Distances, neighbours: list[list[int]], bound: int) -> tuple[list[int], int]:
    """The best of some packings in which each block takes the lowest place that is left, and its height.

    The orders are that of the blocks, the same backwards, and by size; the last is tried again and again with the block on top of
    the memory moved to the front.
    """
    count = len(sizes)
    best, height = [0] * count, sum(sizes) + 1
    orders = [list(range(count)), list(reversed(range(count))), sorted(range(count), key=lambda i: (-sizes[i], i))]
    for _ in range(_GREEDY_ATTEMPTS):
        order = orders.pop(0)
        offsets = _place(order, sizes, above, neighbours)
        if _height(offsets, sizes) < height:
            best, height = offsets, _height(offsets, sizes)
        if height == bound:
            break
        if not orders:
            top = max(order, key=lambda i: (offsets[i] + sizes[i], -i))
            if order[0] == top:
                break
            orders.append([top, *(i for i in order if i != top)])
    return best, height


def _place(order: Sequence[int], sizes: Sequence[int], above: Distances, neighbours: list[list[int]]) -> list[int]:
    offsets = [-1] * len(sizes)
    for block in order:
        placed = [(offsets[other], other) for other in neighbours[block] if offsets[other] >= 0]
        # Forbidden offsets of the block: too near to another one, from below or from above.
        walls = sorted((offset - above[block, other], offset + above[other, block]) for offset, other in placed)
        place = 0
        for begin, end in walls:
            if place <= begin:
                break
            place = max(place, end)
        offsets[block] = place
    return offsets


class _Search:
    """Looks for a packing within `height`.

    `heads` are the least offsets that the choices made so far allow, `tails` the least distances from an offset to the top.

    Attributes:
        steps: distances looked at.
        has_given_up: after `limit` steps; else the answer is certain.
    """

    def __init__(self, sizes: Sequence[int], above: Distances, neighbours: list[list[int]], height: int, limit: int) -> None:
        self._above = above
        self._neighbours = neighbours
        self._height = height
        self._limit = limit
        self._heads = [0] * len(sizes)
        self._tails = list(sizes)
        self._chosen: set[tuple[int, int]] = set()  # (lower, upper)
        self._open = sorted((a, b) for a, b in above if a < b)
        self.steps = 0
        self.has_given_up = False

    def run(self) -> list[int] | None:
        """Offsets, or None."""
        if not self._follow(range(len(self._heads))):
            return None
        pending: list[tuple[tuple[list[int], list[int], set[tuple[int, int]]], tuple[int, int]]] = []
        while True:
            pair = self._worst_pair()
            if pair is None:
                return self._heads
            pending.append(((list(self._heads), list(self._tails), set(self._chosen)), (pair[1], pair[0])))
            is_possible = self._choose(*pair)
            while not is_possible:
                if self.steps > self._limit:
                    self.has_given_up = True
                    return None
                if not pending:
                    return None
                (self._heads, self._tails, self._chosen), pair = pending.pop()
                is_possible = self._choose(*pair)

    def _worst_pair(self) -> tuple[int, int] | None:
        """Of conflicting blocks that are too near to each other, those with the least room: (lower, upper) as it fits best."""
        worst, least = None, 0
        for a, b in self._open:
            apart = self._heads[b] - self._heads[a]
            if apart >= self._above[a, b] or -apart >= self._above[b, a]:
                continue
            rooms = self._room(a, b), self._room(b, a)
            if worst is None or max(rooms) < least:
                worst, least = (a, b) if rooms[0] >= rooms[1] else (b, a), max(rooms)
        self.steps += len(self._open)
        return worst

    def _room(self, lower: int, upper: int) -> int:
        return self._height - self._heads[lower] - self._above[lower, upper] - self._tails[upper]

    def _choose(self, lower: int, upper: int) -> bool:
        """Puts one block above the other, with all that follows. False if that cannot be."""
        self._chosen.add((lower, upper))
        return self._follow(self._link(lower, upper))

    def _link(self, lower: int, upper: int) -> list[int]:
        """Moves heads and tails for one choice; the blocks that moved."""
        distance, moved = self._above[lower, upper], []
        if self._heads[lower] + distance > self._heads[upper]:
            self._heads[upper] = self._heads[lower] + distance
            moved.append(upper)
        if self._tails[upper] + distance > self._tails[lower]:
            self._tails[lower] = self._tails[upper] + distance
            moved.append(lower)
        return moved

    def _follow(self, moved: Iterable[int]) -> bool:
        queue = list(moved)
        while queue:
            block = queue.pop()
            if self._heads[block] + self._tails[block] > self._height:
                return False
            for other in self._neighbours[block]:
                self.steps += 1
                for lower, upper in ((block, other), (other, block)):
                    if (lower, upper) in self._chosen:
                        queue += self._link(lower, upper)
                    elif (upper, lower) not in self._chosen and self._room(upper, lower) < 0:
                        self._chosen.add((lower, upper))
                        queue += self._link(lower, upper)
        return True
