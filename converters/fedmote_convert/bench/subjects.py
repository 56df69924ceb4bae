# SPDX-License-Identifier: Apache-2.0
"""What is measured: a model of the zoo, converted by us here, in both forms, and by every stack in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmote.lab.zoo.networks import head_of, without_head
from fedmote.lab.zoo.zoo import ACCURACY, Model, outputs_of
from fedmote.package.graph import Graph, OpKind
from fedmote.package.inputs import layout_of
from fedmote.package.quantize import dequantize_values, quantize_values
from fedmote_convert.bench.boards import roomy_board
from fedmote_convert.bench.files import Content, read_content
from fedmote_convert.bench.interpreters import run_tflite_micro
from fedmote_convert.bench.measures import arranged, encoder_file, int8_inputs
from fedmote_convert.bench.stacks import Outcome
from fedmote_convert.calibration import Recipe, calibrate
from fedmote_convert.capture import capture
from fedmote_convert.convert import Conversion, convert
from fedmote_convert.passes import run_passes

NUM_REAL, NUM_RANDOM = 200, 100
ENCODER, WHOLE = "encoder", "whole"


@dataclass(frozen=True)
class Form:
    """An int8 form of a model that we made.

    Attributes:
        model: name.
        name: ENCODER, or WHOLE with the head in int8 too.
        graph: int8.
        tflite: its file.
        inputs: int8 (NUM_REAL + NUM_RANDOM, ...): held-out samples, fewer where there are fewer, then random ones.
        num_real: how many of them are samples.
    """

    model: str
    name: str
    graph: Graph
    tflite: bytes
    inputs: NDArray[np.int8] = field(repr=False)
    num_real: int

    @property
    def has_dense(self) -> bool:
        """Whether a FULLY_CONNECTED is in it: the operator that LiteRT's reference kernels compute in floating point."""
        return any(op.kind is OpKind.FULLY_CONNECTED for op in self.graph.ops)

    @cached_property
    def judged(self) -> NDArray[np.int8]:
        """What TensorFlow Lite Micro computes."""
        return run_tflite_micro(self.tflite, self.inputs)


@dataclass(frozen=True)
class Kept:
    """What an int8 encoder with the float head keeps on held-out samples.

    Attributes:
        score: the model's metric, in [0, 1].
        agreement: share of samples decided as the float module does.
        features: real values float32 (N, D).
        is_right: which samples a classifier decides rightly (N,); None for other metrics.
    """

    score: float
    agreement: float
    features: NDArray[np.float32] = field(repr=False)
    is_right: NDArray[np.bool_] | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Subject:
    """A model and all that is known of it.

    Attributes:
        model: trained.
        conversion: made in this process.
        outcomes: of the stacks, ours first.
    """

    model: Model
    conversion: Conversion
    outcomes: tuple[Outcome, ...]
    _micro: dict[str, NDArray[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.entry.name

    @property
    def layout(self) -> str:
        """Of the samples that our graphs read."""
        return self.conversion.package.host.input_layout

    def outcome(self, stack: str) -> Outcome | None:
        """What a stack made, if it did."""
        return next((outcome for outcome in self.outcomes if outcome.stack == stack), None)

    @cached_property
    def exact_features(self) -> NDArray[np.float32]:
        """Of the float encoder, on held-out samples (N, D)."""
        return outputs_of(without_head(self.model.module), self.model.data.x_test).reshape(len(self.model.data.x_test), -1)

    @cached_property
    def exact_outputs(self) -> NDArray[np.float32]:
        """Of the float module, on held-out samples (N, K)."""
        return outputs_of(self.model.module, self.model.data.x_test)

    @cached_property
    def float_score(self) -> float:
        """The float module's metric."""
        return self.model.entry.score(self.exact_outputs, self.model.data.x_test, self.model.data.y_test)

    @cached_property
    def forms(self) -> tuple[Form, Form]:
        """Our encoder, and the whole model in int8."""
        package = self.conversion.package
        whole = whole_graph(self.model)
        return self._form(ENCODER, package.graph, package.encoder_tflite), self._form(WHOLE, *whole)

    def _form(self, name: str, graph: Graph, tflite: bytes) -> Form:
        real = arranged(self.model.data.x_test[:NUM_REAL], self.layout)
        quantized = quantize_values(
            graph.activations[graph.input], real.reshape(len(real), *graph.activations[graph.input].shape[1:])
        )
        return Form(self.name, name, graph, tflite, int8_inputs(quantized, NUM_REAL, NUM_RANDOM), len(real))

    def content(self, outcome: Outcome) -> Content:
        """What a stack's file holds."""
        return read_content(outcome.tflite)

    def inputs(self, outcome: Outcome) -> NDArray[np.int8] | NDArray[np.float32]:
        """Held-out samples as a stack's file reads them: order of axes, shape, type, quantization."""
        return self.inputs_of(self.content(outcome), outcome.is_arranged)

    def inputs_of(self, content: Content, is_arranged: bool) -> NDArray[np.int8] | NDArray[np.float32]:
        """Held-out samples as a file reads them, in the layout of our package or in torch's order of axes."""
        entry = content.input
        x = arranged(self.model.data.x_test, self.layout) if is_arranged else self.model.data.x_test
        x = x.reshape(len(x), *(entry.shape or ())[1:])
        return quantize_values(entry.activation, x) if entry.type == "INT8" else x

    def micro(self, outcome: Outcome) -> NDArray[Any]:
        """What TensorFlow Lite Micro makes of all held-out samples with a stack's encoder, in the file's type: (N, D)."""
        if outcome.stack not in self._micro:
            self._micro[outcome.stack] = run_tflite_micro(outcome.tflite, self.inputs(outcome))
        return self._micro[outcome.stack].reshape(len(self.model.data.x_test), -1)

    def kept(self, outcome: Outcome) -> Kept:
        """Run a stack's encoder in TensorFlow Lite Micro and the float head behind it."""
        data, entry = self.model.data, self.model.entry
        made = self.micro(outcome)
        result = self.content(outcome).output
        features = dequantize_values(result.activation, made) if result.type == "INT8" else made.astype(np.float32)
        head = head_of(self.model.module)
        outputs = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        agreement = entry.agreement(self.exact_outputs, outputs, data.x_test)
        is_right = outputs.argmax(axis=1) == data.y_test if entry.metric == ACCURACY else None
        return Kept(entry.score(outputs, data.x_test, data.y_test), agreement, features, is_right)


def whole_graph(model: Model) -> tuple[Graph, bytes]:
    """The whole model in int8, head and all, and its file."""
    captured = capture(model.module, model.data.x_test.shape[1:])
    layout = captured.input_layout or layout_of(captured.sample_shape)
    template = run_passes(captured.graph)
    template, ranges = calibrate(template, captured.tensors, arranged(model.data.x_calibration, layout), Recipe())
    return encoder_file(template, captured.tensors, ranges)


def convert_here(model: Model, recipe: Recipe | None = None) -> Conversion:
    """Convert in this process, as the timed one does in its own; with the default recipe, or another."""
    return convert(model.module, model.data.x_calibration, [roomy_board()], model_id=model.entry.name, recipe=recipe)
