# SPDX-License-Identifier: Apache-2.0
"""What one converted form costs and loses, operator by operator: for the report.

Errors are those of the int8 encoder against the float one on calibration samples, behind every operator: what has accumulated up
to there, not what the operator adds by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.package.boards import Board
from fedmote.package.compile import Plan, compile_graph
from fedmote.package.execute import run_float, run_int8
from fedmote.package.fold import bind
from fedmote.package.graph import WEIGHTED, Graph, Op, OpKind
from fedmote.package.head import dense_layers, logits_of
from fedmote.package.partition import run_features
from fedmote.package.planner import MemoryPlan
from fedmote.package.quantize import dequantize_values, quantize, quantize_input
from fedmote.wire.schema import Section
from fedmote_convert.convert import Conversion, Samples, decibels
from fedmote_convert.measure import predicted

_SAMPLES = 256
_BLOCK = 32  # samples whose activations are held at once


@dataclass(frozen=True)
class OperatorProfile:
    """One operator of the int8 encoder.

    Attributes:
        operator: its kind.
        name, activation, output: as in the graph.
        shape: of its output.
        macs: multiply-accumulates; 0 for operators without weights.
        weight_bits: of its weights; 0 where it has none.
        weight_bytes, bias_bytes: of its parameters.
        sqnr_db: signal to quantization noise ratio behind it.
        largest_error: largest difference between int8 and float behind it, in real units.
        instructions: predicted, by board; None for boards without a table.
    """

    operator: str
    name: str
    activation: str
    output: str
    shape: tuple[int, ...]
    macs: int
    weight_bits: int
    weight_bytes: int
    bias_bytes: int
    sqnr_db: float
    largest_error: float
    instructions: dict[str, int | None]


@dataclass(frozen=True)
class Profile:
    """A converted form in detail.

    Attributes:
        operators: in order of execution.
        memory: where activations lie.
        sections: bytes of the sections of the device form, by board and name.
        confusion: int64 (classes, classes), counts of (class, chosen class) of the deployed form; None without labels.
    """

    operators: tuple[OperatorProfile, ...]
    memory: MemoryPlan
    sections: dict[str, dict[str, int]]
    confusion: NDArray[np.int64] | None


def profile_of(conversion: Conversion, samples: Samples, boards: Sequence[Board]) -> Profile:
    """Look into a conversion.

    Args:
        conversion: of one form.
        samples: that it was calibrated with.
        boards: that it has packages for.
    """
    exact = bind(conversion.template, conversion.tensors)
    graph = quantize(exact, conversion.ranges)
    plans = {board.name: compile_graph(graph, board.arrangement) for board in boards}
    x = samples.arranged[:: -(-len(samples.arranged) // _SAMPLES)]
    errors = _errors(exact, graph, x)
    counts = {board.name: _instructions(graph, plans[board.name], board) for board in boards}
    plan = next(iter(plans.values()))
    macs = [0] * len(graph.ops)
    for index, record in _records_of(graph, plan):
        _, _, units, unit_macs = plan.units[record]
        macs[index] += units * unit_macs if graph.ops[index].kind in WEIGHTED else 0
    operators = tuple(
        _operator(graph, op, macs[index], errors.get(op.output), {name: values[index] for name, values in counts.items()})
        for index, op in enumerate(graph.ops)
    )
    sections = {board.name: _sections(conversion, board) for board in boards}
    return Profile(operators, plan.memory, sections, _confusion(conversion, samples))


def _operator(
    graph: Graph, op: Op, macs: int, error: tuple[float, float] | None, instructions: dict[str, int | None]
) -> OperatorProfile:
    weights = 0 if op.weights is None else op.weights.size
    return OperatorProfile(
        operator=op.kind.value,
        name=op.name,
        activation=op.activation.value,
        output=op.output,
        shape=graph.activations[op.output].shape,
        macs=macs,
        weight_bits=op.weight_bits if weights else 0,
        weight_bytes=-(-weights * op.weight_bits // 8),
        bias_bytes=0 if op.bias is None else 4 * op.bias.size,
        sqnr_db=200.0 if error is None else error[0],
        largest_error=0.0 if error is None else error[1],
        instructions=instructions,
    )


def _records_of(graph: Graph, plan: Plan) -> list[tuple[int, int]]:
    """(operator, record) of every record of a plan: operators make their records one after the other, under their names."""
    pairs = []
    record = 0
    for index, op in enumerate(graph.ops):
        if op.kind is OpKind.RESHAPE:
            continue
        for _ in range(len(op.inputs) if op.kind is OpKind.CONCATENATION else 1):
            pairs.append((index, record))
            record += 1
    assert record == len(plan.units)
    return pairs


def _instructions(graph: Graph, plan: Plan, board: Board) -> list[int | None]:
    """Predicted instructions of each operator."""
    prediction = predicted(plan, board)
    if prediction is None:
        return [None] * len(graph.ops)
    totals: list[int | None] = [0] * len(graph.ops)
    for index, record in _records_of(graph, plan):
        totals[index] = (totals[index] or 0) + prediction.operators[record]
    return totals


def _errors(exact: Graph, graph: Graph, x: NDArray[np.float32]) -> dict[str, tuple[float, float]]:
    """SQNR in dB and largest error of every activation that both graphs have."""
    sums: dict[str, NDArray[np.float64]] = {}
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK]
        floats: dict[str, list[NDArray[Any]]] = {}
        integers: dict[str, list[NDArray[Any]]] = {}
        run_float(exact, block, _keeper(floats))
        run_int8(graph, quantize_input(graph, block), _keeper(integers))
        for name, parts in integers.items():
            if name not in floats:  # a QUANTIZE of the int8 graph alone
                continue
            truth = np.concatenate(floats[name]).astype(np.float64)
            error = truth - dequantize_values(graph.activations[name], np.concatenate(parts))
            total = sums.setdefault(name, np.zeros(3))
            total[:2] += np.square(truth).sum(), np.square(error).sum()
            total[2] = max(total[2], np.abs(error).max())
    return {name: (decibels(signal, noise), largest) for name, (signal, noise, largest) in sums.items()}


def _keeper(store: dict[str, list[NDArray[Any]]]) -> Callable[[str, NDArray[Any]], None]:
    """An observer that keeps everything."""
    return lambda name, values: store.setdefault(name, []).append(values)


def _sections(conversion: Conversion, board: Board) -> dict[str, int]:
    package = conversion.packages[board.name]
    device = (Section.MANIFEST, Section.PLAN, Section.WEIGHTS, Section.HEAD)
    sizes = {section.name.lower(): len(package.sections[section]) for section in device}
    return sizes | {"container": len(package.device_form()) - sum(sizes.values())}


def _confusion(conversion: Conversion, samples: Samples) -> NDArray[np.int64] | None:
    """On the samples that the accuracy is of."""
    if samples.y is None:
        return None
    labels = samples.labels if conversion.form.is_early else None
    judged = np.arange(len(samples.y)) if labels is None else labels.held_out
    logits = logits_of(dense_layers(conversion.head, conversion.tensors), run_features(conversion.package, samples.x[judged]))
    classes = max(logits.shape[1], int(samples.y.max()) + 1)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (samples.y[judged], logits.argmax(axis=1)), 1)
    return counts


def to_dict(profile: Profile) -> dict[str, Any]:
    """The profile for `report.json`."""
    memory = profile.memory
    arena = [
        {
            "name": name,
            "offset": offset,
            "bytes": memory.sizes[name],
            "first": memory.lifetimes[name][0],
            "last": memory.lifetimes[name][1],
        }
        for name, offset in memory.offsets.items()
    ]
    return {
        "operators": [vars(one) | {"shape": list(one.shape)} for one in profile.operators],
        "arena": {"bytes": memory.total_bytes, "lower_bound_bytes": memory.lower_bound_bytes, "activations": arena},
        "sections": profile.sections,
        "confusion": None if profile.confusion is None else profile.confusion.tolist(),
    }
