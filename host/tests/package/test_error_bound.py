# SPDX-License-Identifier: Apache-2.0
"""The bound holds for every kind of operator, wherever values saturate, and what breaks it is found."""

from dataclasses import replace

import numpy as np
import pytest

from fedmote.errors import ConversionError
from fedmote.package.error_bound import Bounded, error_bounds, int8_values, operator_bound
from fedmote.package.execute import observe
from fedmote.package.fixed_point import quantization_of
from fedmote.package.graph import WEIGHTED, OpKind
from fedmote.package.quantize import quantize
from fedmote.package.specimen import random_graph

SEEDS = range(60)


def specimen(seed):
    """A float graph, its int8 form with ranges that are partly too narrow, and samples; None where scales have no arithmetic."""
    rng = np.random.default_rng(seed)
    graph = random_graph(seed)
    x = rng.normal(0, 1, (12, *graph.activations[graph.input].shape[1:])).astype(np.float32)
    factor = rng.choice([1.0, 0.6])
    ranges = {name: (low * factor, (high if high > low else low + 1) * factor) for name, (low, high) in observe(graph, x).items()}
    try:
        return graph, quantize(graph, ranges), x
    except ConversionError:
        return None


SPECIMENS = {seed: made for seed in SEEDS if (made := specimen(seed)) is not None}


def excess_alone(graph, quantized, values):
    """By how much each operator leaves its own bound on the inputs that it really had, in steps of its output."""
    inputs = {name: Bounded(value, np.zeros_like(value)) for name, value in values.items()}
    originals = {op.output: op for op in graph.ops}
    for op in quantized.ops:
        bounded = operator_bound(originals.get(op.output, op), op, quantized, inputs)
        step = float(quantization_of(quantized.activations[op.output]).scale[0])
        yield op, float((np.abs(values[op.output] - bounded.exact) - bounded.error).max()) / step


def test_the_specimens_are_many_and_hold_every_kind():
    kinds = {op.kind for _, quantized, _ in SPECIMENS.values() for op in quantized.ops}

    assert len(SPECIMENS) >= 50
    assert kinds == set(OpKind)


@pytest.mark.parametrize("seed", SPECIMENS)
def test_no_activation_leaves_its_bound(seed):
    graph, quantized, x = SPECIMENS[seed]
    values, bounds = int8_values(quantized, x), error_bounds(graph, quantized, x)

    assert values.keys() == bounds.keys()
    for name, bounded in bounds.items():
        assert (np.abs(values[name] - bounded.exact) <= bounded.error).all(), name


@pytest.mark.parametrize("seed", SPECIMENS)
def test_no_operator_leaves_its_own_bound(seed):
    graph, quantized, x = SPECIMENS[seed]

    for op, excess in excess_alone(graph, quantized, int8_values(quantized, x)):
        assert excess <= 0, op


def test_where_nothing_saturates_an_operator_alone_is_bounded_by_little_more_than_half_a_step():
    bounds = []
    for graph, quantized, x in SPECIMENS.values():
        inputs = {name: Bounded(value, np.zeros_like(value)) for name, value in int8_values(quantized, x).items()}
        originals = {op.output: op for op in graph.ops}
        for op in quantized.ops:
            if op.kind in (OpKind.ADD, OpKind.MUL, OpKind.MEAN, OpKind.AVERAGE_POOL_2D):
                bounded = operator_bound(originals[op.output], op, quantized, inputs)
                bounds.append(float(bounded.error.min()) / float(quantization_of(quantized.activations[op.output]).scale[0]))

    assert len(bounds) > 50
    assert 0.5 <= np.median(bounds) < 0.75


def with_other_bias(quantized, op):
    """Moved by four steps of the output."""
    source, target = (float(quantization_of(quantized.activations[name]).scale[0]) for name in (op.inputs[0], op.output))
    steps = 4 * target / (source * op.weight_quantization.scale.astype(np.float64))
    return replace(op, bias=(op.bias + np.clip(np.ceil(steps), 1, 2**29)).astype(np.int32))


def with_other_weights(quantized, op):
    """Of one output the weights with the other sign."""
    weights = op.weights.copy()
    weights[(..., 0) if op.kind is OpKind.DEPTHWISE_CONV_2D else 0] *= -1
    return replace(op, weights=weights)


@pytest.mark.parametrize("change", [with_other_bias, with_other_weights])
def test_an_int8_graph_that_is_wrong_in_one_place_leaves_the_bound_of_that_operator(change):
    found = tried = 0
    for graph, quantized, x in SPECIMENS.values():
        weighted = [op for op in quantized.ops if op.kind in WEIGHTED and np.abs(op.weights).sum() > 0]
        if not weighted:
            continue
        wrong = change(quantized, weighted[0])
        values = int8_values(replace(quantized, ops=tuple(wrong if op is weighted[0] else op for op in quantized.ops)), x)
        tried += 1
        outside = [op.name for op, excess in excess_alone(graph, quantized, values) if excess > 0]
        assert outside in ([], [wrong.name])
        found += bool(outside)

    print(f"{found} of {tried} found")
    assert tried > 40
    assert found >= 0.75 * tried  # in the others the output saturates either way
