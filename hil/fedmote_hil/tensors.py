# SPDX-License-Identifier: Apache-2.0
"""Every intermediate tensor of an encoder, as a board computes it.

A plan without any sharing of memory (`compile_graph(..., is_debug=True)`) calls its whole arena the features: a program that runs
packages hands it back, and every tensor is found in it. So what is compared is the code of a board as it is, not a build of it
that stops after operators.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board
from fedmote.package.budget import run_arena_bytes
from fedmote.package.compile import Plan, compile_graph
from fedmote.package.container import join_sections
from fedmote.package.graph import Graph
from fedmote.package.head import HeadShape
from fedmote.package.plan_check import HEAD_HEADER, HEAD_LAYER
from fedmote.wire.schema import Activation, Section
from fedmote_hil.run import Job, run_jobs

Int8 = NDArray[np.int8]
_EMPTY_MAP = b"\xa0"  # a manifest that says nothing
_OUTPUTS = 1  # of the head


def tensors_on_board(board: Board | str, graph: Graph, x: Int8) -> dict[str, Int8]:
    """Every activation that a graph makes, by name, int8 (N, ...) as the graph has their shapes.

    Args:
        board: the board or its name.
        graph: an int8 graph.
        x: int8 (N, ...), channels last.

    Raises:
        DoesNotFitError: the plan in which every tensor has its own memory is too large for the board.
        DeviceError, RigError: as `fedmote_hil.run.run_many_on_board`.
    """
    board = Board.load(board) if isinstance(board, str) else board
    plan = compile_graph(graph, board.arrangement, is_debug=True)
    check_arena(board, plan)
    return tensors_of(graph, plan, run_jobs(board, [job_of(plan, x)])[0])


def check_arena(board: Board, plan: Plan) -> None:
    """Refuses a plan whose job does not fit a board's memory.

    Raises:
        DoesNotFitError: needed and available bytes are in it.
    """
    features = plan.header.feature_count
    needed = run_arena_bytes(plan.header.encoder_bytes, features, HeadShape(features, 0, _OUTPUTS))
    if needed > board.run_arena_bytes:
        raise DoesNotFitError(board.name, "arena", needed, board.run_arena_bytes)


def job_of(plan: Plan, x: Int8) -> Job:
    """What to run for the features of a plan: a package with a head of zeros that nobody asks for."""
    features = plan.header.feature_count
    sections = {
        int(Section.MANIFEST): _EMPTY_MAP,
        int(Section.PLAN): plan.records,
        int(Section.WEIGHTS): plan.weights,
        int(Section.HEAD): _head(features),
    }
    flat = np.ascontiguousarray(x, np.int8).reshape(len(x), -1)
    return Job(join_sections(sections), flat, features + 4 * _OUTPUTS)


def _head(features: int) -> bytes:
    """One layer of zeros."""
    return HEAD_HEADER.pack(1) + HEAD_LAYER.pack(features, _OUTPUTS, Activation.NONE, 0) + bytes(4 * (features + 1) * _OUTPUTS)


def tensors_of(graph: Graph, plan: Plan, results: NDArray[np.uint8]) -> dict[str, Int8]:
    """The activations in the results of a debug plan's job (N, result_bytes)."""
    tensors = {}
    for name in (op.output for op in graph.ops):
        shape, offset = graph.activations[name].shape, plan.memory.offsets[name]
        part = np.ascontiguousarray(results[:, offset : offset + math.prod(shape)])
        tensors[name] = part.view(np.int8).reshape(len(results), *shape[1:])
    return tensors


def features_of(graph: Graph, results: NDArray[np.uint8]) -> Int8:
    """The output of a graph in the results of its job (N, result_bytes)."""
    shape = graph.activations[graph.output].shape
    return np.ascontiguousarray(results[:, : math.prod(shape)]).view(np.int8).reshape(len(results), *shape[1:])
