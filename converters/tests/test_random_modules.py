# SPDX-License-Identifier: Apache-2.0
"""Random torch modules are converted to what they compute, within the bound that quantization allows, or refused.

The bound is that of `fedmote.package.error_bound`, whose derivation stands there: from the samples, the float graph and the
scales alone it says how far each element of each activation can be off. It is tested end to end, where errors add up, and
operator by operator on the int8 path's own inputs, where a step too many would show.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings

from fedmote.errors import ConversionError, UnsupportedOpError
from fedmote.package import fixed_point, tflite_writer
from fedmote.package.compile import compile_graph
from fedmote.package.error_bound import Bounded, error_bounds, int8_values, operator_bound
from fedmote.package.execute import observe, run_float, run_int8
from fedmote.package.fold import bind
from fedmote.package.graph import OpKind
from fedmote.package.inputs import arrange, graph_shape, layout_of
from fedmote.package.quantize import quantize, quantize_input
from fedmote_convert.capture import capture
from fedmote_convert.passes import run_passes

from .random_modules import random_modules
from .test_convert import tflite_micro

# Both are sums in float32, in different orders; the largest difference is taken of the largest value.
FLOAT_TOLERANCE = 1e-4
COUNT = 200


@dataclass
class Record:
    """What happened to the modules.

    Attributes:
        refused: messages, of modules with a layer that has no int8 form.
        dead: messages, of modules with an activation that is one value for all calibration samples.
        shares: of each converted module, the median bound of its output relative to its range.
        used: of each converted module, the largest share of its bound that an error took.
        steps: of each operator, the median of its own bound in steps of its output.
        compared: modules that TensorFlow Lite Micro ran.
        kinds: of the operators that they became.
    """

    refused: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    compared: int = 0
    kinds: set[OpKind] = field(default_factory=set)


def check_module(case, record):
    """One module through the whole way."""
    try:
        captured = capture(case.module, case.sample_shape)
    except UnsupportedOpError as error:
        assert not case.is_supported, f"{case!r}: {error}"
        assert error.node and error.reason and error.hint and "\n" not in str(error)
        record.refused.append(str(error))
        return
    assert case.is_supported, f"{case!r} holds a layer without an int8 form and was converted"
    x = case.samples(16)
    shape = graph_shape(case.sample_shape, captured.input_layout)
    samples = arrange(x, captured.input_layout, shape)
    template = run_passes(captured.graph)
    graph = bind(template, captured.tensors)
    expected = channels_last(case.module, x)
    for stage in (bind(captured.graph, captured.tensors), graph):
        actual = run_float(stage, samples).reshape(expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT_TOLERANCE * max(1e-3, np.abs(expected).max()))
    try:
        quantized = quantize(graph, observe(graph, samples))
    except ConversionError as error:
        assert "is constant" in str(error), f"{case!r}: {error}"
        record.dead.append(str(error))
        return
    compile_graph(quantized)
    record.kinds.update(op.kind for op in quantized.ops)
    check_bounds(graph, quantized, arrange(case.samples(8, seed=1), captured.input_layout, shape), record)


def channels_last(module, x):
    with torch.no_grad():
        y = module(torch.from_numpy(x)).numpy()
    return arrange(y, layout_of(y.shape[1:]), graph_shape(y.shape[1:])) if y.ndim < 5 else np.moveaxis(y, 1, -1)


def check_bounds(graph, quantized, samples, record):
    """The int8 path of samples that it was not calibrated with stays inside the bounds."""
    bounds = error_bounds(graph, quantized, samples)
    real = int8_values(quantized, samples)
    never_taken = {op.output for op in quantized.ops if op.pad_value is not None}
    for name, bounded in bounds.items():
        if name in never_taken:
            continue
        excess = np.abs(real[name] - bounded.exact) - bounded.error
        assert excess.max() <= 0, f"{name}: {excess.max()} beyond the bound"
    originals = {op.output: op for op in graph.ops}
    alone = {name: Bounded(values, np.zeros_like(values)) for name, values in real.items()}
    for rounded in quantized.ops:
        if rounded.output in never_taken:
            continue
        bounded = operator_bound(originals.get(rounded.output, rounded), rounded, quantized, alone)
        excess = np.abs(real[rounded.output] - bounded.exact) - bounded.error
        assert excess.max() <= 0, f"{rounded.name}: {excess.max()} beyond the bound of {rounded.kind} alone"
        scale = float(fixed_point.quantization_of(quantized.activations[rounded.output]).scale[0])
        record.steps.append(float(np.median(bounded.error)) / scale)
    result = bounds[quantized.output]
    record.shares.append(float(np.median(result.error)) / max(float(np.ptp(result.exact)), 1e-9))
    record.used.append(float((np.abs(real[quantized.output] - result.exact) / result.error).max()))
    if len(record.shares) % 4 == 0:
        q = quantize_input(quantized, samples)
        expected = run_int8(quantized, q)
        np.testing.assert_array_equal(tflite_micro(tflite_writer.write(quantized), q).reshape(expected.shape), expected)
        record.compared += 1


def test_200_random_modules_are_converted_within_the_bound_or_refused():
    record = Record()

    @settings(
        max_examples=COUNT,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(random_modules())
    def check(case):
        print(case)
        check_module(case, record)

    check()
    print(
        f"{len(record.shares)} converted, {len(record.refused)} refused, {len(record.dead)} dead, "
        f"{record.compared} equal to TensorFlow Lite Micro; "
        f"median bound {np.median(record.shares):.1%} of the output's range, of which errors took at most {max(record.used):.0%} "
        f"(median {np.median(record.used):.0%}); an operator alone has a median bound of {np.median(record.steps):.2f} steps"
    )
    assert len(record.shares) + len(record.refused) + len(record.dead) == COUNT
    assert len(record.shares) >= COUNT // 2
    assert record.compared >= COUNT // 10
    assert record.kinds == set(OpKind)
    # The bound says something: it is a small part of what the output spans, and errors come near it.
    assert np.median(record.shares) < 0.1
    assert np.median(record.used) > 0.25
    assert np.median(record.steps) < 1
