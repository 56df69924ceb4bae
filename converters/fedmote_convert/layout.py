# SPDX-License-Identifier: Apache-2.0
"""Where the elements of a source's tensor lie in the memory of the graph's activation.

Sources keep channels first, devices last, and what a source calls flatten, reshape or permute moves nothing there. So an axis is
written as a product of digits, as numbers are: 12 channels may be one digit of 12, or a digit of 3 and one of 4 that runs
faster. Memory runs through all digits of all axes in an order of its own. Then

* a permutation reorders the axes and leaves every digit where it is;
* a reshape deals the same digits out to other axes, splitting one where a new axis ends inside it;
* elements have to be moved only where an operator needs its digits in another order than memory has them.

A channel shuffle (view to (1, g, C / g, H, W), transpose of both, view back) and a flatten in front of a Linear are the same
thing here: a digit of another place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]
# Size and place: digits of larger places run faster in memory. A digit that was split has places that begin with its own.
_Digit = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """The digits of a tensor, its batch axis left out.

    Attributes:
        axes: (size, place) of the digits of each axis, slowest first; sizes are above 1, places count from 0.
    """

    axes: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, sizes: Shape, order: Sequence[int]) -> Layout:
        """Axes of these sizes that lie in memory as wholes, in this order, slowest first."""
        place = {axis: place for place, axis in enumerate(order)}
        return _numbered([[(size, (place[axis],))] for axis, size in enumerate(sizes)])

    @classmethod
    def row_major(cls, sizes: Shape) -> Layout:
        """As the source has it."""
        return cls.of(sizes, range(len(sizes)))

    @classmethod
    def channels_last(cls, sizes: Shape) -> Layout:
        """The first axis is moved behind the others."""
        return cls.of(sizes, [*range(1, len(sizes)), 0])

    @property
    def sizes(self) -> Shape:
        """Lengths of the axes."""
        return tuple(_product(size for size, _ in axis) for axis in self.axes)

    @property
    def digits(self) -> Shape:
        """Sizes of all digits in the order of memory."""
        return tuple(size for size, _ in sorted((digit for axis in self.axes for digit in axis), key=lambda digit: digit[1]))

    @property
    def order(self) -> tuple[int, ...] | None:
        """The axes in the order of memory, slowest first; None where one of them does not lie there as a whole.

        Where an axis of one element stands is a matter of taste: channels are last if they can be, other axes first.
        """
        channels_last = (*range(1, len(self.axes)), 0)
        if self.is_in_order(channels_last):
            return channels_last
        axes = self.merged().axes
        if any(len(axis) > 1 for axis in axes):
            return None
        place = {number: axis[0][1] if axis else len(axes) if number == 0 else -1 for number, axis in enumerate(axes)}
        return tuple(sorted(place, key=lambda number: (place[number], number)))

    def is_in_order(self, order: Sequence[int]) -> bool:
        """Whether memory has the axes as wholes in this order, axes of one element left aside."""
        return self.merged() == Layout.of(self.sizes, order)

    def merged(self) -> Layout:
        """The same with as few digits as possible: those that follow each other in their axis and in memory are one."""
        axes = []
        for axis in self.axes:
            digits: list[tuple[int, int]] = []
            last = -2
            for size, place in axis:
                if digits and place == last + 1:
                    digits[-1] = (digits[-1][0] * size, digits[-1][1])
                else:
                    digits.append((size, place))
                last = place
            axes.append(digits)
        return _numbered([[(size, (place,)) for size, place in axis] for axis in axes])

    def permuted(self, order: Sequence[int]) -> Layout:
        """With the axes in another order."""
        return Layout(tuple(self.axes[axis] for axis in order))

    def reshaped(self, sizes: Shape) -> Layout | None:
        """The same elements as axes of these sizes; None where an axis would end inside a digit that does not divide so."""
        whole = tuple(digit for axis in self.axes for digit in axis)
        for layout in (Layout((whole,)), Layout((whole,)).merged()):
            dealt = _dealt([(size, (place,)) for size, place in layout.axes[0]], sizes)
            if dealt is not None:
                return _numbered(dealt)
        return None

    def transposition(self, order: Sequence[int]) -> tuple[Shape, tuple[int, ...]]:
        """What brings memory into this order of axes: its digits as they are, and for each digit to come the one that it is.

        Digits that stay neighbours are one.
        """
        merged = self.merged()
        lengths = merged.digits
        wanted = [place for axis in order for _, place in merged.axes[axis]]
        runs: list[list[int]] = []
        for place in wanted:
            if runs and place == runs[-1][-1] + 1:
                runs[-1].append(place)
            else:
                runs.append([place])
        starts = sorted(run[0] for run in runs)
        sizes = {run[0]: _product(lengths[place] for place in run) for run in runs}
        return tuple(sizes[start] for start in starts), tuple(starts.index(run[0]) for run in runs)


def _product(sizes: Iterable[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def _numbered(axes: Sequence[Sequence[_Digit]]) -> Layout:
    """The layout of these digits, with places counted anew; digits of one element are left out."""
    kept = [[digit for digit in axis if digit[0] > 1] for axis in axes]
    number = {place: index for index, place in enumerate(sorted(place for axis in kept for _, place in axis))}
    return Layout(tuple(tuple((size, number[place]) for size, place in axis) for axis in kept))


def _dealt(digits: Sequence[_Digit], sizes: Shape) -> list[list[_Digit]] | None:
    """The digits dealt out to axes of these sizes."""
    pending = list(reversed(digits))
    axes = []
    for size in sizes:
        axis: list[_Digit] = []
        while size > 1 and pending:
            length, place = pending.pop()
            if size % length == 0:
                axis.append((length, place))
                size //= length
            elif length % size == 0:
                axis.append((size, (*place, 0)))
                pending.append((length // size, (*place, 1)))
                size = 1
            else:
                return None
        if size > 1:
            return None
        axes.append(axis)
    return None if pending else axes
