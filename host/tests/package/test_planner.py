# SPDX-License-Identifier: Apache-2.0
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from fedmote.package import graph as graphs
from fedmote.package.compile import compile_graph
from fedmote.package.geometry import window_of
from fedmote.package.graph import Activations, Graph, Op, OpKind
from fedmote.package.packing import pack
from fedmote.package.planner import ALIGN, plan_memory, round_up
from fedmote.package.specimen import random_int8_graph
from fedmote.package.tflite_reader import read

SEEDS = range(300)
WINDOWED = (OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D)
ELEMENTWISE = (*graphs.ELEMENTWISE, *graphs.BINARY)


def rows_needed(graph, op, row):
    """Rows of the input that one row of the output reads."""
    shape = graph.activations[op.inputs[0]].shape
    if op.kind is OpKind.PAD:
        return [y for y in [row - op.pads[0]] if 0 <= y < shape[1]]
    top = row * op.stride[0] - window_of(op, shape).pad_top
    return [y for k in range(op.kernel[0]) if 0 <= (y := top + k * op.dilation[0]) < shape[1]]


def units(graph, op):
    """(bytes read of each input, bytes written) of each unit of an operator; whole operators that are not done in rows."""
    sizes = [math.prod(graph.activations[name].shape) for name in op.inputs]
    size = math.prod(graph.activations[op.output].shape)
    if op.kind in ELEMENTWISE:  # of an operand that repeats, any element may be read at any time
        return [
            ([np.arange(i, i + 1) if count == size else np.arange(count) for count in sizes], np.arange(i, i + 1))
            for i in range(size)
        ]
    if op.kind in (*WINDOWED, OpKind.PAD):
        in_row = math.prod(graph.activations[op.inputs[0]].shape[2:])
        out_row = math.prod(graph.activations[op.output].shape[2:])
        return [
            (
                [np.concatenate([np.arange(0), *(np.arange(i * in_row, (i + 1) * in_row) for i in rows_needed(graph, op, y))])],
                np.arange(y * out_row, (y + 1) * out_row),
            )
            for y in range(graph.activations[op.output].shape[1])
        ]
    # Outputs one after the other, each of which reads everything.
    return [([np.arange(count) for count in sizes], np.arange(i, i + 1)) for i in range(size)]


def assert_sound(graph, plan, label):
    """Runs the plan on memory whose cells say whose byte they hold."""
    numbers = {name: index + 1 for index, name in enumerate(graph.activations)}
    owner = np.zeros((plan.total_bytes, 2), np.int64)  # number of an activation, index of its byte

    def cells(name, indices):
        return plan.offsets[name] + indices

    def write(name, indices):
        owner[cells(name, indices)] = np.stack([np.full(len(indices), numbers[name]), indices], axis=1)

    def check(name, indices, reader):
        held = owner[cells(name, indices)]
        assert (held[:, 0] == numbers[name]).all() and (held[:, 1] == indices).all(), f"{label}: {reader} finds {name} damaged"

    write(graph.input, np.arange(math.prod(graph.activations[graph.input].shape)))
    for op in graph.ops:
        if op.kind is OpKind.RESHAPE:
            indices = np.arange(math.prod(graph.activations[op.output].shape))
            check(op.inputs[0], indices, op.name)
            assert plan.offsets[op.inputs[0]] == plan.offsets[op.output]
            # Both names are good for the same bytes from here on.
            numbers[op.output] = numbers[op.inputs[0]]
            continue
        for needed, made in units(graph, op):
            for name, indices in zip(op.inputs, needed, strict=True):
                check(name, indices, op.name)
            if op.kind not in ELEMENTWISE:  # anything of a unit may be written before its last byte is read
                write(op.output, made)
                for name, indices in zip(op.inputs, needed, strict=True):
                    check(name, indices, op.name)
            write(op.output, made)
    check(graph.output, np.arange(math.prod(graph.activations[graph.output].shape)), "the end")


def test_no_operator_finds_its_input_damaged():
    for seed in SEEDS:
        graph = random_int8_graph(seed)
        assert_sound(graph, plan_memory(graph), f"seed {seed}")


def test_the_judge_of_plans_finds_an_output_one_row_too_high():
    graph = chain(3, 16, 8)
    plan = plan_memory(graph)
    moved = plan.offsets | {"t1": plan.offsets["t1"] + ALIGN}
    with pytest.raises(AssertionError, match="damaged"):
        assert_sound(graph, replace(plan, offsets=moved, total_bytes=plan.total_bytes + ALIGN), "moved")


def chain(count, size, channels, kind=OpKind.DEPTHWISE_CONV_2D, skips=0):
    """Shapes alone: 3x3 windows over an image of size x size, every fourth one added to what was `skips` operators before."""
    shape = (1, size, size, channels)
    ops, names = [], ["t0"]
    for i in range(count):
        if skips and i % 4 == 3 and i >= skips:
            op = Op(OpKind.ADD, f"t{i + 1}", (names[-1], names[-skips]), f"t{i + 1}")
        else:
            op = Op(kind, f"t{i + 1}", (names[-1],), f"t{i + 1}", kernel=(3, 3), padding="SAME")
        ops.append(op)
        names.append(op.output)
    return Graph("t0", names[-1], {name: Activations(name, shape) for name in names}, tuple(ops))


def test_a_chain_of_windows_runs_in_place_but_for_two_rows_each():
    plan = plan_memory(chain(3, 16, 8))
    assert plan.total_bytes == plan.lower_bound_bytes == 16 * 16 * 8 + 3 * 2 * 16 * 8


def test_a_sum_is_written_over_an_input():
    graph = chain(4, 16, 8, skips=3)
    plan = plan_memory(graph)
    assert plan.total_bytes == plan.lower_bound_bytes
    assert plan.offsets["t4"] in (plan.offsets["t3"], plan.offsets["t1"])


def test_offsets_are_aligned_and_inside_the_arena():
    for seed in SEEDS:
        plan = plan_memory(random_int8_graph(seed))
        assert all(offset % ALIGN == 0 for offset in plan.offsets.values())
        assert max(plan.offsets[name] + plan.sizes[name] for name in plan.offsets) == plan.total_bytes
        assert plan.total_bytes >= plan.lower_bound_bytes


def test_plans_of_random_graphs_are_proven_to_be_the_smallest():
    plans = [plan_memory(random_int8_graph(seed)) for seed in SEEDS]
    above = [seed for seed, plan in zip(SEEDS, plans, strict=True) if plan.total_bytes > plan.lower_bound_bytes]
    assert not above


@pytest.mark.parametrize(("name", "limit"), [("kws_ref_model", 11840), ("pretrainedResnet_quant", 33792), ("ad01_int8", 768)])
def test_reference_models_need_less_than_the_largest_sum_of_live_activations(name, limit, reference_models):
    graph = read((reference_models / f"{name}.tflite").read_bytes(), name, is_softmax_dropped=True)
    plan = plan_memory(graph)
    print(f"{name}: {plan.total_bytes} bytes, proven lower bound {plan.lower_bound_bytes}")
    assert plan.total_bytes == plan.lower_bound_bytes <= limit
    assert_sound(graph, plan, name)


@pytest.mark.parametrize("skips", [0, 3, 9])
def test_two_hundred_operators_are_planned_within_a_second(skips):
    graph = chain(200, 12, 16, OpKind.CONV_2D if skips == 0 else OpKind.DEPTHWISE_CONV_2D, skips)
    start = time.process_time()
    plan = plan_memory(graph)
    seconds = time.process_time() - start
    print(f"skips over {skips}: {plan.total_bytes} bytes, lower bound {plan.lower_bound_bytes}, {seconds:.2f} s")
    assert seconds < 1
    assert_sound(graph, plan, f"skips over {skips}")


def smallest_height(sizes, above):
    """By trying every combination of choices."""
    pairs = sorted((a, b) for a, b in above if a < b)
    best = math.inf
    for choices in range(2 ** len(pairs)):
        chosen = [pair if choices >> i & 1 else pair[::-1] for i, pair in enumerate(pairs)]
        offsets = [0] * len(sizes)
        for _ in sizes:
            for lower, upper in chosen:
                offsets[upper] = max(offsets[upper], offsets[lower] + above[lower, upper])
        if all(offsets[upper] >= offsets[lower] + above[lower, upper] for lower, upper in chosen):
            best = min(best, max(offset + size for offset, size in zip(offsets, sizes, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_packing_equals_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 6))
    sizes = [int(size) * 16 for size in rng.integers(1, 12, count)]
    above = {}
    for a in range(count):
        for b in range(a):
            if rng.random() < 0.8:
                above[a, b] = round_up(int(sizes[a] * rng.random())) if rng.random() < 0.5 else sizes[a]
                above[b, a] = sizes[b]
    best = smallest_height(sizes, above)
    packing = pack(sizes, above, max(sizes), 16)
    assert packing.total == packing.lower_bound == best
    for (lower, upper), distance in above.items():
        one, two = packing.offsets[lower], packing.offsets[upper]
        assert two - one >= distance or one - two >= above[upper, lower], f"blocks {lower} and {upper}"


@pytest.mark.parametrize(
    ("name", "macs"), [("kws_ref_model", 2656768), ("pretrainedResnet_quant", 12501632), ("ad01_int8", 264192)]
)
def test_macs_of_reference_models_are_the_published_ones(name, macs, reference_models):
    graph = read((reference_models / f"{name}.tflite").read_bytes(), name, is_softmax_dropped=True)
    assert compile_graph(graph).header.macs == macs


def test_same_graph_gives_the_same_plan():
    for seed in range(30):
        assert compile_graph(random_int8_graph(seed)).records == compile_graph(random_int8_graph(seed)).records
        assert plan_memory(random_int8_graph(seed)).offsets == plan_memory(random_int8_graph(seed)).offsets


def test_one_plan_serves_all_weights_and_no_other_structure():
    graph = random_int8_graph(3)
    moved = replace(graph, ops=tuple(op if op.weights is None else replace(op, weights=-op.weights // 2) for op in graph.ops))
    assert plan_memory(moved) is plan_memory(graph)
    for seed in range(100):
        one = random_int8_graph(seed)
        plan = plan_memory(one)
        shapes = {name: activation.shape for name, activation in one.activations.items()}
        assert {name: round_up(math.prod(shapes[name])) for name in plan.offsets} == plan.sizes
