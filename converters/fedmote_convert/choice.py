# SPDX-License-Identifier: Apache-2.0
"""Which form of a model a board gets.

Of the forms that a board can train, the one that classifies best on the samples held out; among those that cannot be told from
it the one with the fewest predicted instructions, or MACs where the board has no table of them, then the smallest package.
Two forms judged on the same samples cannot be told apart where the difference of their hits is within its standard error, the
samples taken as pairs (McNemar): the one-standard-error rule of L. Breiman et al., "Classification and Regression Trees", 1984,
section 3.4.3. Fewer than `LEAST_HELD_OUT` samples tell nothing: without them, or without labels, the model keeps its own head,
and the last edge that fits is taken. A board that can train no form gets the best that it can run, and it is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmote.errors import ConversionError, DoesNotFitError
from fedmote_convert.measure import Measured

LEAST_HELD_OUT = 50


@dataclass(frozen=True)
class Choice:
    """The form of one board.

    Attributes:
        measured: the form.
        trains: whether the board can train it; else it only runs it.
        reason: why this one, as words.
    """

    measured: Measured
    trains: bool
    reason: str


def choose(measured: Sequence[Measured], board: str) -> Choice:
    """Choose for a board.

    Raises:
        DoesNotFitError: no form can be run; of all, the one that lacks fewest bytes is named.
        ConversionError: no form can be run for another reason.
    """
    fitting = fitting_forms(measured, board)
    if not fitting:
        raise _refused(measured, board)
    best, reason = _best(fitting, board)
    trains = best.boards[board].trains
    what = "train" if trains else "run, not train"
    return Choice(best, trains, f"{reason} of {len(fitting)} forms that {board} can {what}")


def fitting_forms(measured: Sequence[Measured], board: str) -> list[Measured]:
    """The forms that a board can train; where there is none, those that it can run."""
    training = [one for one in measured if one.boards[board].trains]
    return training or [one for one in measured if one.boards[board].runs]


def _best(fitting: Sequence[Measured], board: str) -> tuple[Measured, str]:
    judged = [one for one in fitting if one.correct is not None and len(one.correct) >= LEAST_HELD_OUT]
    if not judged:
        own = [one for one in fitting if not one.form.is_early]
        return (own or list(fitting))[-1], "the last edge"
    first = max(judged, key=lambda one: (_hits(one), *_cheapness(one, board)))
    equals = [one for one in judged if _is_equal(one, first)]
    chosen = max(equals, key=lambda one: _cheapness(one, board))
    if chosen is first:
        return chosen, f"the most accurate, {first.best_accuracy:.1%},"
    words = f"the cheapest within a standard error of the best, {chosen.best_accuracy:.1%} and {first.best_accuracy:.1%},"
    return chosen, words


def _hits(one: Measured) -> int:
    return 0 if one.correct is None else int(one.correct.sum())


def _cheapness(one: Measured, board: str) -> tuple[int, int, bool]:
    """Larger is cheaper; at equal costs the model's own head is better than a new one."""
    needs = one.boards[board]
    work = one.macs if needs.instructions is None else needs.instructions
    return -work, -needs.cost.slot_bytes, not one.form.is_early


def _is_equal(one: Measured, best: Measured) -> bool:
    """Whether the best is better by no more than the standard error of the difference.

    Of the samples that one of them alone classifies rightly, each is a fair coin if the two are equally good: the difference
    of their hits has a variance of as many samples.
    """
    assert one.correct is not None and best.correct is not None  # judged
    return (_hits(best) - _hits(one)) ** 2 <= int((best.correct != one.correct).sum())


def _refused(measured: Sequence[Measured], board: str) -> ConversionError:
    """The error for a board that can run nothing: the budget that the nearest form exceeds by the fewest bytes."""
    lacking = []
    for one in measured:
        cost = one.boards[board].cost
        budgets = [("slot", cost.slot_bytes, cost.slot_available), ("arena", cost.arena_bytes, cost.arena_available)]
        exceeded = [budget for budget in budgets if budget[1] > budget[2]]
        if exceeded:
            lacking.append(max(exceeded, key=lambda budget: budget[1] - budget[2]))
    if not lacking:
        return ConversionError(f"board {board}: {measured[-1].boards[board].refusal}; choose another board")
    return DoesNotFitError(board, *min(lacking, key=lambda budget: budget[1] - budget[2]))


def pareto(measured: Sequence[Measured], board: str) -> tuple[Measured, ...]:
    """Of the forms that a board can train, or else run, those that no other one of them beats.

    One beats another if it is at least as accurate and needs no more slot, arena and instructions. Without labels all
    accuracies count as equal.
    """

    def scores(one: Measured) -> tuple[float, ...]:
        cost = one.boards[board].cost
        work = -_cheapness(one, board)[0]
        arena = cost.arena_bytes if one.boards[board].trains else cost.run_arena_bytes
        return (one.best_accuracy or 0.0, -cost.slot_bytes, -arena, -work)

    fitting = fitting_forms(measured, board)
    return tuple(one for one in fitting if not any(_beats(scores(other), scores(one)) for other in fitting))


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine >= yours for mine, yours in zip(one, other, strict=True))
