# SPDX-License-Identifier: Apache-2.0
"""The whole conversion of one form of a model: capture, cut, passes, calibration, int8, packages.

Everything after the calibration is `fedmote.package`, the same functions that later push new weights into the packages: a
conversion is a capture followed by a first push. Nothing is written here; torch is needed for torch modules only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, DoesNotFitError, FedmoteError
from fedmote.package.boards import Board
from fedmote.package.execute import run_float, run_int8
from fedmote.package.file import Package, check_fit
from fedmote.package.fold import bind
from fedmote.package.graph import Graph, HeadLayer, Ranges, Tensors
from fedmote.package.head import dense_layers, logits_of
from fedmote.package.inputs import arrange, graph_shape, layout_of
from fedmote.package.partition import assemble, run_features
from fedmote.package.quantize import dequantize_values, quantize, quantize_input
from fedmote_convert.calibration import Recipe, calibrate
from fedmote_convert.cut import LAST, Cut, cut_at
from fedmote_convert.early_exit import Labels, train_head
from fedmote_convert.forms import Form, of_cut
from fedmote_convert.mixed_precision import Sensitivity, allot_bits
from fedmote_convert.passes import run_passes
from fedmote_convert.sketch import Capture

if TYPE_CHECKING:
    from torch import nn

# Largest difference between the module's logits and ours, relative to the largest logit. Both are float32 sums in different
# orders; measured differences are near 1e-6.
FLOAT_TOLERANCE = 1e-4

Progress = Callable[[str], None]
# The line of progress in front of the last step: what was made is complete, and is compared with the float module.
COMPARING = "comparing with the float module"


@dataclass(frozen=True)
class Quality:
    """What the conversion keeps, measured on the calibration samples; with a new head, on those that its training did not see.

    Attributes:
        samples: their number.
        float_difference: largest difference of logits between module and float graph, relative to the largest logit.
        sqnr_db: signal to quantization noise ratio of the features.
        agreement: share of samples for which the deployed form and the module choose the same class.
        accuracy_float: of the module; None without labels.
        accuracy_int8: of the deployed form; None without labels.
        accuracy_head_float: of a new head on float features; None for the model's own head, where it is the module's.
    """

    samples: int
    float_difference: float
    sqnr_db: float
    agreement: float
    accuracy_float: float | None = None
    accuracy_int8: float | None = None
    accuracy_head_float: float | None = None


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion, in memory.

    Attributes:
        model_id: name of the model.
        form: what the model became.
        template: of the encoder, after all passes and calibration.
        tensors: the whole float state by state_dict names, a new head's tensors among them.
        ranges: observed for every activation of the template.
        packages: by board name; the first is used where only the model is meant.
        quality: measured on the calibration samples.
        sensitivities: what 4 bits cost in each layer, and the bits it got; empty without a budget of weights.
    """

    model_id: str
    form: Form
    template: Graph
    tensors: Tensors
    ranges: Ranges
    packages: dict[str, Package]
    quality: Quality
    sensitivities: tuple[Sensitivity, ...] = ()

    @property
    def cut(self) -> Cut:
        """Where and why it was split."""
        return self.form.cut

    @property
    def head(self) -> tuple[HeadLayer, ...]:
        """The layers that devices train."""
        return self.form.head

    @property
    def package(self) -> Package:
        """Any of the packages: what they say of the model is the same in all."""
        return next(iter(self.packages.values()))


@dataclass(frozen=True)
class Samples:
    """Calibration samples.

    Attributes:
        x: float32 (N, C, H, W), (N, C, W) or (N, F), as the model reads them.
        arranged: the same, channels last, as the graph reads them.
        layout: of x, see `host_manifest.INPUT_LAYOUTS`.
        y: class indices (N,), or None.
        labels: which of them judge a new head; None where no new head is wanted.
    """

    x: NDArray[np.float32]
    arranged: NDArray[np.float32]
    layout: str
    y: NDArray[np.int64] | None = None
    labels: Labels | None = None


def convert(
    source: nn.Module | Capture,
    x: NDArray[np.float32],
    boards: Sequence[Board],
    *,
    model_id: str,
    cut: str = LAST,
    recipe: Recipe | None = None,
    y: NDArray[np.int64] | None = None,
    version: int = 0,
    progress: Progress = lambda text: None,
) -> Conversion:
    """Convert a model for some boards: one form, with the model's own head. `tiers` chooses among all forms.

    Args:
        source: a torch module in evaluation mode, float32; or what another front-end captured.
        x: calibration samples float32 (N, C, H, W), (N, C, W) or (N, F), as the model reads them.
        boards: at least one.
        model_id: name of the model, part of file names.
        cut: "last", or the name of a module or activation.
        recipe: of the quantization; None is the default one.
        y: class indices (N,), for the accuracy in the report.
        version: number of the checkpoint.
        progress: called with a line before each step.

    Raises:
        UnsupportedOpError: a node of the model has no int8 form here, or the cut is not possible.
        DoesNotFitError: the only board that does not fit; ConversionError where there are several.
        ConversionError: the module or the calibration data cannot be converted.
        ConfigError: no such cut.
    """
    captured = captured_from(source, x, model_id, progress)
    form = of_cut(captured, cut_at(captured, cut))
    return convert_form(captured, form, samples_of(captured, x, y), boards, model_id, recipe or Recipe(), version, progress)


def captured_from(source: nn.Module | Capture, x: NDArray[np.float32], model_id: str, progress: Progress) -> Capture:
    """The capture of a source, with samples x (N, ...) that suit it.

    Raises:
        ConversionError, UnsupportedOpError: as `convert`.
    """
    if not len(x) or not np.isfinite(x).all():
        raise ConversionError(f"calibration needs samples that are finite; x has shape {x.shape}")
    progress(f"capturing {model_id} with samples of shape {x.shape[1:]}")
    captured = source if isinstance(source, Capture) else _captured(source, x.shape[1:])
    if captured.sample_shape != x.shape[1:]:
        raise ConversionError(f"calibration samples have shape {x.shape[1:]}, the model reads {captured.sample_shape}")
    return captured


def samples_of(captured: Capture, x: NDArray[np.float32], y: NDArray[np.int64] | None, labels: Labels | None = None) -> Samples:
    """Calibration samples x (N, ...) with the same channels last."""
    layout = captured.input_layout or layout_of(x.shape[1:])
    return Samples(x, arrange(x, layout, graph_shape(x.shape[1:], layout)), layout, y, labels)


def convert_form(
    captured: Capture,
    form: Form,
    samples: Samples,
    boards: Sequence[Board],
    model_id: str,
    recipe: Recipe,
    version: int = 0,
    progress: Progress = lambda text: None,
    only_running: Collection[str] = (),
) -> Conversion:
    """Convert one form of a captured model; arguments and errors as `convert`.

    Args:
        captured: the whole network.
        form: of it; if its head is a new one, `samples.labels` are there to train it on.
        samples: to calibrate with.
        boards: at least one.
        model_id: name of the model.
        recipe: of the quantization.
        version: number of the checkpoint.
        progress: called with a line before each step.
        only_running: names of boards that need not be able to train it.
    """
    progress(f"cut: {form.cut.reason}")
    progress(f"calibrating with {len(samples.x)} samples")
    tensors, template = captured.tensors, form.template
    table: tuple[Sensitivity, ...] = ()
    if recipe.weight_budget_bytes is not None:
        template, table = allot_bits(template, tensors, samples.arranged, recipe.weight_budget_bytes)
    template, ranges = calibrate(template, tensors, samples.arranged, recipe)
    if form.is_early:
        tensors = tensors | _new_head(form, quantize(bind(template, tensors), ranges), samples)
    packages = assemble(template, form.head, tensors, ranges, boards, model_id, version, samples.layout)
    check_boards(packages, [board for board in boards if board.name not in only_running])
    for package in packages.values():
        package.verify()  # a push repeats this chain unverified
    progress(COMPARING)
    features = run_float(bind(template, tensors), samples.arranged).reshape(len(samples.x), -1)
    quality = _measure(captured, form, tensors, samples, features, next(iter(packages.values())))
    return Conversion(model_id, form, template, tensors, ranges, packages, quality, table)


def _captured(module: nn.Module, sample_shape: tuple[int, ...]) -> Capture:
    from fedmote_convert.capture import capture

    return capture(module, sample_shape)


def _new_head(form: Form, graph: Graph, samples: Samples) -> Tensors:
    """Tensors of the new head of a form, trained on the features of its int8 encoder."""
    labels = samples.labels
    if labels is None:
        raise ConversionError(f"{form.name}: a new head needs labels (y) to be trained on")
    x = samples.arranged[labels.training]
    features = dequantize_values(graph.activations[graph.output], run_int8(graph, quantize_input(graph, x)))
    weights, bias = train_head(features.reshape(len(x), -1), labels.y[labels.training], labels.classes)
    (layer,) = form.head
    return {layer.weight: weights, layer.bias: bias}


def check_boards(packages: dict[str, Package], boards: Sequence[Board]) -> None:
    """Refuse if any board is too small, with the numbers of all that are."""
    errors = []
    for board in boards:
        try:
            check_fit(packages[board.name], board)
        except DoesNotFitError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        needs = "; ".join(
            f"board {error.board}: {error.what} needs {error.needed} bytes, {error.available} are available" for error in errors
        )
        raise ConversionError(f"{len(errors)} boards do not fit: {needs}; cut earlier, narrow the model or choose larger boards")


def _measure(
    captured: Capture,
    form: Form,
    tensors: Tensors,
    samples: Samples,
    features: NDArray[np.float32],
    package: Package,
) -> Quality:
    expected = captured.reference(samples.x)
    layers = dense_layers(form.head, tensors)
    logits = logits_of(layers, features)
    difference = check_capture(expected, _whole(captured, samples.arranged) if form.is_early else logits)
    deployed_features = run_features(package, samples.x)
    ratio = sqnr_db(features, deployed_features)
    chosen, rounded = expected.argmax(axis=1), logits_of(layers, deployed_features).argmax(axis=1)
    labels = samples.labels if form.is_early else None
    judged = np.arange(len(samples.x)) if labels is None else labels.held_out
    quality = Quality(len(judged), difference, ratio, float((rounded == chosen)[judged].mean()))
    if samples.y is None:
        return quality
    is_right = [float((classes == samples.y)[judged].mean()) for classes in (chosen, rounded, logits.argmax(axis=1))]
    exact = is_right[2] if form.is_early else None
    return replace(quality, accuracy_float=is_right[0], accuracy_int8=is_right[1], accuracy_head_float=exact)


def _whole(captured: Capture, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (N, C) of the whole captured network, from samples channels last."""
    return run_float(bind(run_passes(captured.graph), captured.tensors), x).reshape(len(x), -1)


def check_capture(expected: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Largest difference between logits of the source and ours, relative to the largest one.

    Raises:
        FedmoteError: it is beyond rounding.
    """
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(logits - expected.reshape(len(expected), -1)).max()) / largest
    if difference > FLOAT_TOLERANCE:
        raise FedmoteError(
            f"the captured graph differs from the module by {difference:.1e} of its largest logit, {FLOAT_TOLERANCE:.0e} are "
            f"allowed: this is an error of the conversion, please report it with the model"
        )
    return difference


def sqnr_db(exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    """Signal to noise ratio in dB of rounded values; see `decibels`."""
    noise = np.square(np.subtract(exact, rounded, dtype=np.float64)).sum()
    return decibels(float(np.square(exact, dtype=np.float64).sum()), float(noise))


def decibels(signal: float, noise: float) -> float:
    """Signal to noise ratio in dB of two energies; 200 where there is no noise, -200 where there is no signal."""
    if signal == 0 or noise == 0:
        return 200.0 if noise == 0 else -200.0
    return 10 * float(np.log10(signal / noise))
