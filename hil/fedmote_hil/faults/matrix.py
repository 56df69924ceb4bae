# SPDX-License-Identifier: Apache-2.0
"""A row of the matrix, what it found, and how rows are run.

A row is a function of a `Bench` that returns nothing: it states facts. `facts.must(claim, words)` states one that decides,
`facts.note(words)` one that does not. A row whose every `must` held has passed; an exception is a row that failed. Rows
know nothing of each other: each has a new directory, and everything that it started is gone when the next one begins.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fedmote.errors import ConfigError, FedmoteError

Say = Callable[[str], None]
_Resource = TypeVar("_Resource")


class NotRunError(FedmoteError):
    """A row cannot run here; the message says what is missing. It does not count as passed."""

    exit_code = 1


class VainError(FedmoteError):
    """Something that a row waited for did not come in time."""

    exit_code = 1


class Facts:
    """What a row found, in the order in which it was found."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self.num_decided = 0
        self.has_failed = False

    def must(self, is_true: bool, words: str) -> None:
        """State a fact that decides: `words` say it with its figure, and are marked where it is not as required."""
        self.num_decided += 1
        self.has_failed |= not is_true
        self._words.append(words if is_true else f"NOT AS REQUIRED: {words}")

    def note(self, words: str) -> None:
        """State a fact that decides nothing."""
        self._words.append(words)

    def __str__(self) -> str:
        return "; ".join(self._words)


@dataclass
class Bench:
    """What a row works with.

    Attributes:
        directory: of the row alone.
        is_quick: fleets are small; figures that need large ones are then not those of the matrix.
        facts: what was found.
        say: a line of progress.
    """

    directory: Path
    is_quick: bool
    facts: Facts
    say: Say
    _stack: ExitStack = field(default_factory=ExitStack)

    def sized(self, full: int, quick: int) -> int:
        """A number of the matrix, or a small one for a quick run."""
        return quick if self.is_quick else full

    def hold(self, resource: contextlib.AbstractContextManager[_Resource]) -> _Resource:
        """Enter something that ends with the row, whatever happens."""
        return self._stack.enter_context(resource)

    def close(self) -> None:
        """End all that the row held."""
        self._stack.close()

    def wait_for(self, what: str, is_there: Callable[[], bool], timeout_s: float, poll_s: float = 0.02) -> float:
        """Wait until something is there; the seconds that it took.

        Raises:
            VainError: it did not come.
        """
        began = time.monotonic()
        while not is_there():
            if time.monotonic() - began > timeout_s:
                raise VainError(f"waited {timeout_s:g} s in vain for {what}")
            time.sleep(poll_s)
        return time.monotonic() - began


@dataclass(frozen=True)
class Row:
    """A row of the matrix.

    Attributes:
        id: its number.
        fault, injected, required, target: what goes wrong, how it is brought about here, what must happen, the figure to meet.
        run: does it.
    """

    id: int
    fault: str
    injected: str
    required: str
    target: str
    run: Callable[[Bench], None]


@dataclass(frozen=True)
class Result:
    """What a row came to.

    Attributes:
        row: which.
        figure: what was found, or why it was not run.
        state: "passed", "failed" or "not run".
        seconds: that it took.
    """

    row: Row
    figure: str
    state: str
    seconds: float

    @property
    def has_passed(self) -> bool:
        """Only a row that ran and found everything as required has passed."""
        return self.state == "passed"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        row = self.row
        return {
            "id": row.id,
            "fault": row.fault,
            "injected": row.injected,
            "required": row.required,
            "figure": self.figure,
            "target": row.target,
            "passed": self.has_passed,
            "state": self.state,
            "seconds": round(self.seconds, 1),
        }


_ROWS: dict[int, Row] = {}


def row(id: int, *, fault: str, injected: str, required: str, target: str) -> Callable[[Callable[[Bench], None]], Row]:
    """Register a function as a row of the matrix."""

    def register(run: Callable[[Bench], None]) -> Row:
        if id in _ROWS:
            raise ConfigError(f"row {id} of the matrix is there twice")
        _ROWS[id] = Row(id, fault, injected, required, target, run)
        return _ROWS[id]

    return register


def registered() -> dict[int, Row]:
    """All rows, by number."""
    from fedmote_hil.faults import rows  # the rows register themselves when they are imported

    rows.load()
    return dict(sorted(_ROWS.items()))


def chosen(text: str | None) -> list[Row]:
    """Rows by a list such as "1,2,15-18"; all where None.

    Raises:
        ConfigError: the list cannot be read, or names a row that there is not.
    """
    rows = registered()
    if text is None:
        return list(rows.values())
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            numbers += range(int(first), int(last or first) + 1)
        except ValueError as error:
            raise ConfigError(f"--rows {text}: {part!r} is neither a number nor a range such as 15-18") from error
    if unknown := [str(number) for number in numbers if number not in rows]:
        raise ConfigError(f"--rows {text}: there is no row {', '.join(unknown)}; there are {', '.join(map(str, rows))}")
    return [rows[number] for number in dict.fromkeys(numbers)]


def run_rows(rows: Iterable[Row], is_quick: bool, say: Say) -> list[Result]:
    """Run rows one after the other."""
    results = []
    for one in rows:
        say(f"row {one.id}: {one.fault}")
        result = run_row(one, is_quick, lambda line: say(f"  {line}"))
        say(f"row {one.id}: {result.state} in {result.seconds:.1f} s: {result.figure}")
        results.append(result)
    return results


def run_row(one: Row, is_quick: bool, say: Say) -> Result:
    """Run a row in a new directory, and end whatever it started."""
    directory = Path(tempfile.mkdtemp(prefix=f"fedmote-fault-{one.id}-"))
    facts = Facts()
    bench = Bench(directory, is_quick, facts, say)
    began = time.monotonic()
    try:
        try:
            one.run(bench)
        except NotRunError:
            raise
        except Exception as error:  # said now: ending what the row held may raise something else
            facts.must(False, _words(error))
            say("".join(traceback.format_exception(error)).rstrip())
        finally:
            bench.close()
        if facts.num_decided == 0:
            facts.must(False, "the row decided nothing")
        state = "failed" if facts.has_failed else "passed"
    except NotRunError as error:
        state = "not run"
        facts.note(f"not run: {error}")
    except Exception as error:  # a row that breaks has failed; the others are run all the same
        state = "failed"
        facts.must(False, _words(error))
        say("".join(traceback.format_exception(error)).rstrip())
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return Result(one, str(facts), state, time.monotonic() - began)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
