# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest

from fedmote.package.compile import compile_graph
from fedmote.package.graph import BINARY, ELEMENTWISE, OpKind
from fedmote.package.planner import ALIGN, plan_memory
from fedmote.package.specimen import random_int8_graph
from fedmote.package.tflite_reader import read

SEEDS = range(300)


def overlaps(plan, one, two):
    starts = plan.offsets[one], plan.offsets[two]
    return starts[0] < starts[1] + plan.sizes[two] and starts[1] < starts[0] + plan.sizes[one]


def live_together(plan, one, two):
    (first1, last1), (first2, last2) = plan.lifetimes[one], plan.lifetimes[two]
    return first1 <= last2 and first2 <= last1


def test_live_activations_never_overlap_unless_one_is_written_over_the_other():
    for seed in SEEDS:
        graph = random_int8_graph(seed)
        plan = plan_memory(graph)
        shared = {name: buffer for buffer, names in enumerate(plan.buffers) for name in names}
        names = list(plan.offsets)
        for i, one in enumerate(names):
            for two in names[i + 1 :]:
                if live_together(plan, one, two) and shared[one] != shared[two]:
                    assert not overlaps(plan, one, two), f"seed {seed}: {one} and {two}"


def test_memory_is_shared_only_where_no_one_reads_it_later():
    for seed in SEEDS:
        graph = random_int8_graph(seed)
        plan = plan_memory(graph)
        made = {op.output: (step, op) for step, op in enumerate(graph.ops)}
        for names in plan.buffers:
            for earlier, later in pairwise(names):
                step, op = made[later]
                assert op.kind in (OpKind.RESHAPE, *ELEMENTWISE, *BINARY), f"seed {seed}"
                # What is written over an operand that repeats would be read again.
                assert len({np.prod(graph.activations[name].shape) for name in (earlier, later)}) == 1, f"seed {seed}"
                assert plan.offsets[earlier] == plan.offsets[later]
                if op.kind is not OpKind.RESHAPE:
                    assert all(plan.lifetimes[name][1] <= step for name in names[: names.index(later)]), f"seed {seed}: {later}"


def test_offsets_are_aligned_and_inside_the_arena():
    for seed in SEEDS:
        plan = plan_memory(random_int8_graph(seed))
        assert all(offset % ALIGN == 0 for offset in plan.offsets.values())
        assert max(plan.offsets[name] + plan.sizes[name] for name in plan.offsets) == plan.total_bytes
        assert plan.total_bytes >= plan.lower_bound_bytes


def test_plans_of_random_graphs_reach_the_lower_bound_almost_always():
    plans = [plan_memory(random_int8_graph(seed)) for seed in SEEDS]
    above = [plan for plan in plans if plan.total_bytes > plan.lower_bound_bytes]
    print(f"{len(above)} of {len(plans)} plans are above the lower bound")
    assert len(above) <= len(plans) // 100


@pytest.mark.parametrize(("name", "limit"), [("kws_ref_model", 16000), ("pretrainedResnet_quant", 49152), ("ad01_int8", 768)])
def test_reference_models_need_no_more_than_the_largest_sum_of_live_activations(name, limit, reference_models):
    graph = read((reference_models / f"{name}.tflite").read_bytes(), name, is_softmax_dropped=True)
    plan = plan_memory(graph)
    print(f"{name}: {plan.total_bytes} bytes, proven lower bound {plan.lower_bound_bytes}")
    assert plan.total_bytes == plan.lower_bound_bytes <= limit


@pytest.mark.parametrize(
    ("name", "macs"), [("kws_ref_model", 2656768), ("pretrainedResnet_quant", 12501632), ("ad01_int8", 264192)]
)
def test_macs_of_reference_models_are_the_published_ones(name, macs, reference_models):
    graph = read((reference_models / f"{name}.tflite").read_bytes(), name, is_softmax_dropped=True)
    assert compile_graph(graph).header.macs == macs


def test_same_graph_gives_the_same_plan():
    for seed in range(30):
        assert compile_graph(random_int8_graph(seed)).records == compile_graph(random_int8_graph(seed)).records
        assert np.array_equal(
            list(plan_memory(random_int8_graph(seed)).offsets.values()),
            list(plan_memory(random_int8_graph(seed)).offsets.values()),
        )
