# SPDX-License-Identifier: Apache-2.0
"""Compiled records say all that a device needs: a machine that knows only the specification runs them in one arena."""

from collections import Counter

import numpy as np
import pytest

from fedmote.package.compile import compile_graph
from fedmote.package.execute import run_int8
from fedmote.package.plan_check import check_plan
from fedmote.package.specimen import random_int8_graph, random_samples
from fedmote.wire.schema import Opcode

from .record_machine import OPERATORS, Machine


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_records_give_what_the_graph_gives(first):
    for seed in range(first, first + 50):
        graph = random_int8_graph(seed)
        machine = Machine(compile_graph(graph))
        x = random_samples(graph, 2, seed)
        expected = run_int8(graph, x).reshape(2, -1)
        for sample, features in zip(x, expected, strict=True):
            np.testing.assert_array_equal(machine.run(sample), features, f"seed {seed}: {[op.name for op in graph.ops]}")


def test_random_graphs_compile_to_every_opcode():
    met = Counter()
    for seed in range(200):
        plan = compile_graph(random_int8_graph(seed))
        met.update(record.opcode for record in check_plan(plan.records, plan.weights)[1])
    assert set(OPERATORS) == set(Opcode)
    assert [opcode for opcode in Opcode if met[opcode] < 5] == []
