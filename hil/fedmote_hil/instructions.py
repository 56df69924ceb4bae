# SPDX-License-Identifier: Apache-2.0
"""Fills the tables of `fedmote.package.instructions` from counts of emulated boards, and compares predictions with counts.

The coefficients of a path are the non-negative ones that make the largest relative errors of its operators small in the mean:
least squares of counted shares. One operator in five takes no part in the fit; the table says how far off the worst of these is.
Whole models are never fitted: they are what predictions are judged by.

Boards whose images have the same code count the same, and a small one has no room for the shapes that a fit needs. Such a board
gets the table of the largest one of its kind, if every operator of the graphs that fit it counts there what it counts here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fedmote.errors import DeviceError, DoesNotFitError
from fedmote.package.boards import Board, sdk_root
from fedmote.package.compile import compile_graph
from fedmote.package.file import Package
from fedmote.package.graph import Graph
from fedmote.package.instructions import (
    OPERATOR,
    SIZES_FILE,
    TABLE_FILE,
    Coefficients,
    ImageBytes,
    Table,
    predict,
    sources_hash,
    subjects_of,
    work_of,
)
from fedmote.package.specimen import random_int8_graph
from fedmote_hil.bench import count_operators, counting_boards
from fedmote_hil.build import Program, build
from fedmote_hil.models import encoder_package, measured_models
from fedmote_hil.nnls import nonnegative_least_squares
from fedmote_hil.probes import probe_graphs
from fedmote_hil.sizes import compiler_version

LIMIT = 0.05  # of a whole model's error
PROBES = 80  # of each kind of operator
_SIBLING_PROBES = 6
_HELD_OUT_EVERY = 5
_DIGITS = 3
_WITHOUT_DIVIDER = ("cortex-m0",)
_DIVISION_INSTRUCTIONS = 5
_RANDOM_GRAPHS = 20
_RANDOM = "random graph "


@dataclass(frozen=True)
class Comparison:
    """A whole model on a board.

    Attributes:
        model: its name.
        predicted, counted: instructions of one inference.
        worst_operator: name of the operator whose prediction is off by most instructions.
        worst_difference: by how many, predicted less counted.
    """

    model: str
    predicted: int
    counted: int
    worst_operator: str
    worst_difference: int

    @property
    def error(self) -> float:
        """Share of what was counted."""
        return self.predicted / self.counted - 1


@dataclass(frozen=True)
class Sample:
    """An operator that was counted: turns of its loops, and its instructions without those of the inference around it."""

    turns: dict[str, int]
    instructions: int


def refresh(board: Board) -> None:
    """Counts what a board's kernels cost and what its images take, and writes both beside its `board.toml`.

    Raises:
        ConfigError, DeviceError, RigError: as `bench.count_operators`.
    """
    other = sibling_of(board)
    operators, differing = count_differences(board, other) if other else (0, 0)
    if other is not None and not differing:
        _write(board, TABLE_FILE, {"counts_as": other.name, "operators": operators, **_origin(board)})
    else:
        _write(board, TABLE_FILE, asdict(measure(board)))
    refresh_sizes(board)


def refresh_sizes(board: Board) -> ImageBytes:
    """Writes what a board's images take, and returns it.

    Raises:
        ConfigError, RigError: as `build.build`.
    """
    sizes = measured_sizes(board)
    content = {"device_image_bytes": sizes.device, "run_image_bytes": sizes.run, "compiler": sizes.compiler}
    _write(board, SIZES_FILE, content)
    return sizes


def _origin(board: Board) -> dict[str, str]:
    """What a table was measured with."""
    return {"compiler": compiler_version(), "sources": sources_hash(board)}


def measure(board: Board, probes: int = PROBES) -> Table:
    """Counts and fits the table of a board.

    Raises:
        ConfigError, DeviceError, RigError: as `bench.count_operators`.
    """
    inference, samples = _samples(board, probe_graphs(board, probes))
    paths = {path: _fitted(found) for path, found in sorted(samples.items())}
    return Table(inference=inference, paths=paths, **_origin(board))


def by_origin(names: Iterable[str]) -> list[Board]:
    """Boards, those first whose tables are taken over by others."""
    return sorted(map(Board.load, names), key=lambda board: sibling_of(board) is not None)


def sibling_of(board: Board) -> Board | None:
    """The largest board of the same core and kernels, if it is another one."""
    kinds = [Board.load(name) for name in counting_boards()]
    same = [other for other in kinds if _kind(other) == _kind(board)]
    largest = max(same, key=lambda other: (other.run_arena_bytes, other.name))
    return None if largest.run_arena_bytes == board.run_arena_bytes else largest


def _kind(board: Board) -> tuple[str, bool, str, bool]:
    return board.core, board.has_fpu, board.kernels, board.is_unaligned_trapped


def count_differences(board: Board, other: Board) -> tuple[int, int]:
    """Operators that were counted on both boards, and how many of them have another count on one than on the other."""
    operators = differing = 0
    for graph in probe_graphs(board, _SIBLING_PROBES):
        (here, each_here), (there, each_there) = (_counts(one, graph) for one in (board, other))
        operators += len(each_here)
        differing += sum(a != b for a, b in zip((here, *each_here), (there, *each_there), strict=True))
    return operators, differing


def _counts(board: Board, graph: Graph) -> tuple[int, tuple[int, ...]]:
    return count_operators(board, encoder_package(graph, board, "probes"))


def _samples(board: Board, graphs: Sequence[Graph]) -> tuple[int, dict[str, list[Sample]]]:
    """Instructions of an inference beside its operators, and the operators of all graphs by their paths."""
    counted = [(subjects_of(compile_graph(graph, board.arrangement), board), *_counts(board, graph)) for graph in graphs]
    inference = _inference(board, [(total, counts) for _, total, counts in counted])
    samples: dict[str, list[Sample]] = {}
    for subjects, _, counts in counted:
        for subject, count in zip(subjects, counts, strict=True):
            work = work_of(subject, board)
            samples.setdefault(work.path, []).append(Sample(work.turns, count - inference))
    return inference, samples


def _inference(board: Board, counted: Sequence[tuple[int, tuple[int, ...]]]) -> int:
    """What each operator counts too much when it is an inference of its own, from totals and operators of some graphs.

    On a core without a divider, how long the encoder takes to share out its budget depends on what is left of it: there operators
    differ by a few instructions, elsewhere by none.
    """
    surplus = [sum(counts) - total for total, counts in counted]
    repeated = [len(counts) - 1 for _, counts in counted]
    inference = round(sum(surplus) / sum(repeated))
    tolerance = _DIVISION_INSTRUCTIONS if board.core in _WITHOUT_DIVIDER else 0
    if any(abs(extra - inference * times) > tolerance * times for extra, times in zip(surplus, repeated, strict=True)):
        raise DeviceError(f"board {board.name}: operators alone do not add up to one inference of them: {surplus} of {repeated}")
    return inference


def _fitted(samples: list[Sample]) -> Coefficients:
    """The coefficients of a path."""
    names = [OPERATOR, *sorted({name for sample in samples for name, count in sample.turns.items() if count})]
    turns = np.array([[1, *(sample.turns.get(name, 0) for name in names[1:])] for sample in samples], np.float64)
    counts = np.array([sample.instructions for sample in samples], np.float64)
    shares = turns / counts[:, None]
    is_held_out = np.arange(len(samples)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    found = nonnegative_least_squares(shares[~is_held_out], np.ones(np.count_nonzero(~is_held_out)))
    coefficients = {name: round(float(value), _DIGITS) for name, value in zip(names, found, strict=True)}
    errors = np.abs(shares @ np.array(list(coefficients.values())) - 1)[is_held_out]
    held_out = int(np.count_nonzero(is_held_out))
    return Coefficients(len(samples) - held_out, held_out, round(float(errors.max(initial=0.0)), 4), coefficients)


def compare_models(board: Board, skipped: list[str]) -> list[Comparison]:
    """All models that predictions are judged by, random graphs together; see `compare`."""
    return summary(list(compare(board, held_out_models(board, skipped), skipped)))


def compare(board: Board, packages: Iterable[tuple[str, Package]], skipped: list[str]) -> Iterator[Comparison]:
    """Predicted and counted instructions of whole models; those that are too large for the board are named in `skipped`.

    Raises:
        ConfigError, DeviceError, RigError: as `bench.count_operators`, or the board has no table.
    """
    for name, package in packages:
        try:
            counted, each = count_operators(board, package)
        except DoesNotFitError as error:
            skipped.append(f"{name}: {error}")
            continue
        plan = compile_graph(package.graph, board.arrangement)
        prediction = predict(plan, board)
        inference = prediction.total - sum(prediction.operators)
        differences = [found - count + inference for found, count in zip(prediction.operators, each, strict=True)]
        worst = max(range(len(differences)), key=lambda index: abs(differences[index]))
        yield Comparison(name, prediction.total, counted, plan.units[worst][0], differences[worst])


def held_out_models(board: Board, skipped: list[str]) -> Iterator[tuple[str, Package]]:
    """What predictions are judged by: real models, examples, and small random graphs (`fedmote.package.specimen`)."""
    yield from measured_models(board, skipped)
    for seed in range(_RANDOM_GRAPHS):
        yield f"{_RANDOM}{seed}", encoder_package(random_int8_graph(seed), board, "specimen")


def summary(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with one entry for all random graphs: each has but a few thousand instructions, most of them no loop's."""
    small = [comparison for comparison in comparisons if comparison.model.startswith(_RANDOM)]
    whole = [comparison for comparison in comparisons if comparison not in small]
    if not small:
        return whole
    worst = max(small, key=lambda comparison: abs(comparison.worst_difference))
    predicted, counted = sum(each.predicted for each in small), sum(each.counted for each in small)
    name = f"{len(small)} random graphs"
    return [*whole, Comparison(name, predicted, counted, f"{worst.model}: {worst.worst_operator}", worst.worst_difference)]


def measured_sizes(board: Board) -> ImageBytes:
    """Flash of a board's images, as the linker makes them.

    Raises:
        ConfigError, RigError: as `build.build`.
    """
    bytes_of = {
        program: (
            build(board, program, has_crypto=False).path.with_suffix(".bin").stat().st_size if program in board.programs else None
        )
        for program in (Program.DEVICE, Program.RUN)
    }
    return ImageBytes(bytes_of[Program.DEVICE], bytes_of[Program.RUN], compiler_version())


def _write(board: Board, name: str, content: Mapping[str, object]) -> None:
    path = sdk_root() / "boards" / board.name / name
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
