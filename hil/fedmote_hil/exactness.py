# SPDX-License-Identifier: Apache-2.0
"""Whether a board computes the bytes that TensorFlow Lite Micro computes: random graphs, every tensor of them.

Two packages of each graph run on the board: one in which no tensor is written over another, whose tensors are all compared, and
the one that a device gets, whose output is. The judge is TensorFlow Lite Micro's own interpreter where its wheel is installed,
else the host's integer executor (the tests hold it to the wheel in every byte).
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board
from fedmote.package.compile import Plan, compile_graph
from fedmote.package.execute import run_int8
from fedmote.package.graph import Graph
from fedmote.package.specimen import random_int8_graph, random_samples, wide_int8_graph
from fedmote.package.tflite_writer import write_numbered
from fedmote_hil.run import Job, check_fit, run_jobs
from fedmote_hil.tensors import Int8, check_arena, features_of, job_of, tensors_of

Judge = Callable[[Graph, Int8], dict[str, Int8]]

SAMPLES = 4  # of each graph: all bytes at their least, all at their greatest, the others random
_WIDE_EVERY = 8  # seeds; the graphs of the others are small, of all kinds of operators
_GRAPHS_AT_ONCE = 50  # packages that are in memory together
_INTERPRETER_BYTES = 1 << 24


@dataclass(frozen=True)
class Exactness:
    """What was compared on one board.

    Attributes:
        board: its name.
        judge: whose bytes are right.
        graphs: random graphs.
        too_large: further graphs, whose package or whose tensors all together do not fit the board's memory.
        tensors: activations of all graphs, each over all samples, and each graph's output once more from the optimised plan.
        bytes: that were compared.
        differing_bytes: of them.
        differences: (seed, tensor, differing bytes) of each tensor that differs; "output" is that of the optimised plan.
    """

    board: str
    judge: str
    graphs: int
    too_large: int
    tensors: int
    bytes: int
    differing_bytes: int
    differences: tuple[tuple[int, str, int], ...]


def compare(board: Board | str, seeds: Iterable[int], *, is_wheel_required: bool = False) -> Exactness:
    """Compares the random graphs of these seeds (`fedmote.package.specimen`).

    Raises:
        DeviceError, RigError: as `fedmote_hil.run.run_many_on_board`.
        ModuleNotFoundError: there is no wheel, but it is required.
    """
    board = Board.load(board) if isinstance(board, str) else board
    is_wheel = is_wheel_required or importlib.util.find_spec("tflite_micro") is not None
    seeds, differences = list(seeds), []
    graphs = tensors = count = 0
    for start in range(0, len(seeds), _GRAPHS_AT_ONCE):
        specimens = _specimens(board, seeds[start : start + _GRAPHS_AT_ONCE])
        graphs += len(specimens)
        for seed, name, expected, found in _pairs(board, tflite_micro_tensors if is_wheel else host_tensors, specimens):
            tensors += 1
            count += expected.size
            if differing := int(np.count_nonzero(expected != found)):
                differences.append((seed, name, differing))
    return Exactness(
        board=board.name,
        judge="tflite-micro" if is_wheel else "host",
        graphs=graphs,
        too_large=len(seeds) - graphs,
        tensors=tensors,
        bytes=count,
        differing_bytes=sum(differing for _, _, differing in differences),
        differences=tuple(differences),
    )


@dataclass(frozen=True)
class _Specimen:
    seed: int
    graph: Graph
    samples: Int8
    debug: Plan
    jobs: tuple[Job, Job]  # of the debug plan and of the optimised one


def _specimens(board: Board, seeds: Iterable[int]) -> list[_Specimen]:
    """The graphs of which packages and all tensors fit the board's memory."""
    specimens = []
    for seed in seeds:
        graph = random_int8_graph(seed) if seed % _WIDE_EVERY else wide_int8_graph(seed)
        debug = compile_graph(graph, board.arrangement, is_debug=True)
        with contextlib.suppress(DoesNotFitError):
            check_arena(board, debug)
            samples = random_samples(graph, SAMPLES, seed)
            jobs = job_of(debug, samples), job_of(compile_graph(graph, board.arrangement), samples)
            if board.emulator is not None:
                for job in jobs:
                    check_fit(board, job)
            specimens.append(_Specimen(seed, graph, samples, debug, jobs))
    return specimens


def _pairs(board: Board, judge: Judge, specimens: list[_Specimen]) -> Iterator[tuple[int, str, Int8, Int8]]:
    """(seed, tensor, what it should be, what the board has)."""
    results = run_jobs(board, [job for specimen in specimens for job in specimen.jobs])
    for index, specimen in enumerate(specimens):
        graph, right = specimen.graph, judge(specimen.graph, specimen.samples)
        for name, found in tensors_of(graph, specimen.debug, results[2 * index]).items():
            yield specimen.seed, name, right[name], found
        yield specimen.seed, "output", right[graph.output], features_of(graph, results[2 * index + 1])


def host_tensors(graph: Graph, x: Int8) -> dict[str, Int8]:
    """Every activation that a graph makes of samples (N, ...), by the host's integer executor."""
    blocks: dict[str, list[Int8]] = {op.output: [] for op in graph.ops}
    run_int8(graph, x, lambda name, values: blocks[name].append(values.copy()))
    return {name: np.concatenate(values) for name, values in blocks.items()}


def tflite_micro_tensors(graph: Graph, x: Int8) -> dict[str, Int8]:
    """The same, by TensorFlow Lite Micro's interpreter with all tensors preserved."""
    from tflite_micro import runtime  # an extra of its own

    content, numbers = write_numbered(graph)
    interpreter = runtime.Interpreter.from_bytes(
        content,
        arena_size=_INTERPRETER_BYTES,
        intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors,  # sic
    )
    rows: dict[str, list[Int8]] = {op.output: [] for op in graph.ops}
    for sample in x:
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        for name, row in rows.items():
            row.append(interpreter.GetTensor(numbers[name], 0)["tensor_data"].copy())
    return {name: np.concatenate(row).reshape(len(x), *graph.activations[name].shape[1:]) for name, row in rows.items()}
