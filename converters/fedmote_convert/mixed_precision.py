# SPDX-License-Identifier: Apache-2.0
"""Which layers get weights of 4 bits, so that all weights fit a budget and the features change least.

How much a layer suffers is measured, not guessed: its weights alone are rounded to 4 bits, and the error of the features is
compared with their power. Errors of different layers are nearly uncorrelated, so those of a choice add up, and the best choice is
a knapsack: the least error of all sets of layers that save enough bytes. It is solved exactly, by dynamic programming over the
bytes to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError
from fedmote.package.execute import run_float_op
from fedmote.package.fold import bind
from fedmote.package.graph import WEIGHTED, Graph, Op, Quantization, Tensors
from fedmote.package.quantize import quantize_weights

NUM_SAMPLES = 32  # that the errors are measured on


@dataclass(frozen=True)
class Sensitivity:
    """What 4 bits cost and save in one layer.

    Attributes:
        operator: its name.
        output: the activation that it makes.
        bytes_8, bytes_4: of its weights with 8 and with 4 bits.
        error: power of the features' error with this layer alone in 4 bits, divided by the power of the features.
        bits: chosen.
    """

    operator: str
    output: str
    bytes_8: int
    bytes_4: int
    error: float
    bits: int = 8


def allot_bits(
    template: Graph, tensors: Tensors, x: NDArray[np.float32], budget_bytes: int
) -> tuple[Graph, tuple[Sensitivity, ...]]:
    """Give layers 4 bits until all weights of the encoder fit a budget.

    Args:
        template: after all passes.
        tensors: the whole float state.
        x: samples float32 (N, ...), channels last; the first NUM_SAMPLES are used.
        budget_bytes: of all weights, one byte each or half of one; biases and scales are not counted.

    Returns:
        The template with its `weight_bits`, and the table of layers in order of execution.

    Raises:
        ConversionError: with 4 bits in every layer the weights are larger still.
    """
    table = sensitivities(template, tensors, x[:NUM_SAMPLES])
    smallest = sum(layer.bytes_4 for layer in table)
    if smallest > budget_bytes:
        raise ConversionError(
            f"the encoder's weights take {smallest} bytes with 4 bits in every layer, the budget is {budget_bytes} bytes: "
            f"expected at least {smallest}; or cut earlier, or narrow the model"
        )
    saving = sum(layer.bytes_8 for layer in table) - budget_bytes
    narrow = _knapsack([layer.bytes_8 - layer.bytes_4 for layer in table], [layer.error for layer in table], max(0, saving))
    table = tuple(replace(layer, bits=4 if number in narrow else 8) for number, layer in enumerate(table))
    bits = {layer.output: layer.bits for layer in table}
    ops = (replace(op, weight_bits=bits[op.output]) if op.output in bits else op for op in template.ops)
    return replace(template, ops=tuple(ops)), table


def sensitivities(template: Graph, tensors: Tensors, x: NDArray[np.float32]) -> tuple[Sensitivity, ...]:
    """The table of layers, all with 8 bits, from samples float32 (N, ...)."""
    graph = bind(template, tensors)
    values = {graph.input: x}
    for op in graph.ops:
        values[op.output] = run_float_op(graph, op, values)
    exact = values[graph.output]
    power = max(float(np.square(exact, dtype=np.float64).sum()), float(np.finfo(np.float64).tiny))
    table = []
    for number, op in enumerate(graph.ops):
        if op.kind in WEIGHTED:
            features = _run_from(graph, number, _rounded(op, graph), values)
            error = float(np.square(np.subtract(features, exact, dtype=np.float64)).sum()) / power
            count = int(np.asarray(op.weights).size)
            table.append(Sensitivity(op.name, op.output, count, -(-count // 2), error))
    return tuple(table)


def _rounded(op: Op, graph: Graph) -> Op:
    """The operator with weights as 4 bits hold them, in float32."""
    unit = Quantization(np.ones(1, np.float32), np.zeros(1, np.int64))
    plain = replace(op, weight_bits=4, float_means=None, int8_means=None, bias=np.zeros_like(np.asarray(op.bias)))
    narrow = quantize_weights(plain, graph.activations[op.inputs[0]].shape, unit, unit)
    assert narrow.weight_quantization is not None and narrow.weights is not None  # quantize_weights
    scales = narrow.weight_quantization.scale
    shape = [-1 if axis == narrow.weight_quantization.axis else 1 for axis in range(narrow.weights.ndim)]
    return replace(op, weights=narrow.weights.astype(np.float32) * scales.reshape(shape))


def _run_from(graph: Graph, number: int, op: Op, values: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The graph's output with another operator at a place; what does not depend on it is taken from `values`."""
    changed = {op.output: run_float_op(graph, op, values)}
    for follower in graph.ops[number + 1 :]:
        if any(name in changed for name in follower.inputs):
            changed[follower.output] = run_float_op(graph, follower, values | changed)
    return changed.get(graph.output, values[graph.output])


def _knapsack(savings: Sequence[int], errors: Sequence[float], needed: int) -> set[int]:
    """Numbers of the layers that together save at least `needed` bytes at the least sum of errors.

    `best[b]` is the least error that saves b bytes or more, b up to `needed`; a layer that saves s turns b - s into b.
    """
    best = np.full(needed + 1, np.inf)
    best[0] = 0.0
    is_taken = []
    for saving, error in zip(savings, errors, strict=True):
        before = best[np.maximum(np.arange(needed + 1) - saving, 0)] + error
        is_taken.append(before < best)
        best = np.where(is_taken[-1], before, best)
    chosen: set[int] = set()
    left = needed
    for number in reversed(range(len(savings))):
        if is_taken[number][left]:
            chosen.add(number)
            left = max(0, left - savings[number])
    return chosen
