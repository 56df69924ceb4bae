# SPDX-License-Identifier: Apache-2.0
"""Random torch modules through torch and through their ONNX export: the same operators and bytes, or both refused.

The exporter that traces TorchScript is held to it in every case. The one of torch.export writes AdaptiveAvgPool(1) and a mean
over the same axes alike, so that where channels do not lie last in memory the two ways may lay out that one operator
differently, and it makes one clamp of a ReLU and the clamp behind it. Its cases are compared in float, and in int8 where the
operators are the same, which they nearly always are where no clamp follows another.
"""

import contextlib
import io
import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import nn

from fedmote.errors import ConversionError
from fedmote.package.execute import observe, run_float, run_int8
from fedmote.package.fold import bind
from fedmote.package.inputs import arrange, graph_shape
from fedmote.package.quantize import quantize, quantize_input
from fedmote_convert.bench.onnx_exports import exported
from fedmote_convert.capture import capture
from fedmote_convert.onnx_capture import capture_onnx
from fedmote_convert.passes import run_passes

from .random_modules import random_modules

LARGEST_SHARE = 0.01  # of int8 outputs that may be off by one: exporters fold batch normalisation in float32


def check(case, path, is_dynamo, happened):
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter prints the whole module when it fails
            exported(case.module, case.sample_shape, path, is_dynamo)
    except Exception:  # whatever torch raises: this module has no ONNX form
        happened["not exported"] += 1
        return
    try:
        by_onnx = capture_onnx(path)
    except ConversionError as error:
        is_sound = "does not suit its inputs" not in str(error)  # torch's exporter writes some splits that do not add up
        assert not case.is_supported or not is_sound, f"{case!r}: {error}"
        happened["refused"] += 1
        return
    assert case.is_supported, f"{case!r} holds a layer without an int8 form and was converted"
    by_torch = capture(case.module, case.sample_shape)
    x = case.samples(16)
    np.testing.assert_allclose(by_onnx.reference(x[:2]), by_torch.reference(x[:2]), rtol=1e-4, atol=1e-4)
    one, two = (Run(captured, x) for captured in (by_torch, by_onnx))
    np.testing.assert_allclose(two.exact, one.exact, rtol=1e-4, atol=1e-4 * max(1, np.abs(one.exact).max()))
    if one.operators == two.operators:
        happened["same operators"] += 1
    else:
        happened["joined clamps" if is_dynamo and has_clamps_in_a_row(case) else "other operators"] += 1
    if one.operators != two.operators:
        assert is_dynamo, f"{case!r}: {one.operators} through torch, {two.operators} through ONNX"
    elif one.rounded is not None:
        difference = np.abs(one.rounded - two.rounded)
        assert difference.max() <= 1 and (difference > 0).mean() <= LARGEST_SHARE, repr(case)


def has_clamps_in_a_row(case):
    """Whether some clamp, in the wide sense of what limits each value by itself, reads what another one made."""
    layers, reads = list(case.module.layers), case.module.reads
    is_clamp = [isinstance(one, nn.ReLU | nn.ReLU6 | nn.Hardtanh) or repr(one).startswith("Function(clamp") for one in layers]
    return any(
        is_clamp[number] and any(read > 0 and is_clamp[read - 1] for read in reads[number]) for number in range(len(layers))
    )


class Run:
    """What a captured network makes of samples: in float32, and in int8 unless an activation is constant."""

    def __init__(self, captured, x):
        template = run_passes(captured.graph)
        graph = bind(template, captured.tensors)
        samples = arrange(x, captured.input_layout, graph_shape(captured.sample_shape, captured.input_layout))
        self.operators = [(op.kind, op.activation, op.padding, template.activations[op.output].shape) for op in template.ops]
        self.exact = run_float(graph, samples).reshape(len(x), -1)
        self.rounded = None
        with contextlib.suppress(ConversionError):  # a constant activation has no scale
            quantized = quantize(graph, observe(graph, samples))
            self.rounded = run_int8(quantized, quantize_input(quantized, samples)).reshape(len(x), -1).astype(int)


def run_many(count, path, is_dynamo):
    happened = Counter()

    @seed(20)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(random_modules())
    def run(case):
        check(case, path, is_dynamo, happened)

    logging.disable(logging.WARNING)
    try:
        run()
    finally:
        logging.disable(logging.NOTSET)
    print("seed 20:", dict(happened))
    return happened


def test_random_modules_are_the_same_through_torch_and_through_onnx(tmp_path):
    assert run_many(40, tmp_path / "model.onnx", is_dynamo=False)["same operators"] >= 20


@pytest.mark.slow
def test_two_hundred_random_modules_are_the_same_through_torch_and_through_onnx(tmp_path):
    assert run_many(200, tmp_path / "model.onnx", is_dynamo=False)["same operators"] >= 100


@pytest.mark.slow
def test_random_modules_of_the_other_exporter_compute_the_same(tmp_path):
    happened = run_many(40, tmp_path / "model.onnx", is_dynamo=True)

    assert happened["same operators"] >= 20
    assert happened["other operators"] <= 0.05 * happened["same operators"]
