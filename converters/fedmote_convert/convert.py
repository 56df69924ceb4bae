# SPDX-License-Identifier: Apache-2.0
"""The whole conversion: capture, cut, passes, calibration, int8, packages.

Everything after the calibration is `fedmote.package`, the same functions that later push new weights into the packages: a
conversion is a capture followed by a first push. Nothing is written here; torch is needed for torch modules only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError, DoesNotFitError, FedmoteError
from fedmote.package.boards import Board
from fedmote.package.execute import run_float
from fedmote.package.file import Package, check_fit
from fedmote.package.fold import bind
from fedmote.package.graph import Graph, HeadLayer, Ranges, Tensors
from fedmote.package.head import dense_layers, logits_of
from fedmote.package.inputs import arrange, graph_shape, layout_of
from fedmote.package.partition import assemble, run_features
from fedmote_convert.calibration import Recipe, calibrate
from fedmote_convert.cut import Cut, cut_at
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
    """What the conversion keeps, measured on the calibration samples.

    Attributes:
        samples: their number.
        float_difference: largest difference of logits between module and float graph, relative to the largest logit.
        sqnr_db: signal to quantization noise ratio of the features.
        agreement: share of samples for which int8 encoder and module choose the same class.
        accuracy_float, accuracy_int8: of the module and of the deployed form; None without labels.
    """

    samples: int
    float_difference: float
    sqnr_db: float
    agreement: float
    accuracy_float: float | None = None
    accuracy_int8: float | None = None


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion, in memory.

    Attributes:
        model_id: name of the model.
        cut: where and why it was split.
        template: of the encoder, after all passes.
        head: the layers that devices train.
        tensors: the whole float state by state_dict names.
        ranges: observed for every activation of the template.
        packages: by board name; the first is used where only the model is meant.
        quality: measured on the calibration samples.
        sensitivities: what 4 bits cost in each layer, and the bits it got; empty without a budget of weights.
    """

    model_id: str
    cut: Cut
    template: Graph
    head: tuple[HeadLayer, ...]
    tensors: Tensors
    ranges: Ranges
    packages: dict[str, Package]
    quality: Quality
    sensitivities: tuple[Sensitivity, ...] = ()

    @property
    def package(self) -> Package:
        """Any of the packages: what they say of the model is the same in all."""
        return next(iter(self.packages.values()))


def convert(
    source: nn.Module | Capture,
    x: NDArray[np.float32],
    boards: Sequence[Board],
    *,
    model_id: str,
    cut: str = "auto",
    recipe: Recipe | None = None,
    y: NDArray[np.int64] | None = None,
    version: int = 0,
    progress: Progress = lambda text: None,
) -> Conversion:
    """Convert a model for some boards.

    Args:
        source: a torch module in evaluation mode, float32; or what another front-end captured.
        x: calibration samples float32 (N, C, H, W), (N, C, W) or (N, F), as the model reads them.
        boards: at least one.
        model_id: name of the model, part of file names.
        cut: "auto", or the name of a module or activation.
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
    if not len(x) or not np.isfinite(x).all():
        raise ConversionError(f"calibration needs samples that are finite; x has shape {x.shape}")
    progress(f"capturing {model_id} with samples of shape {x.shape[1:]}")
    captured = source if isinstance(source, Capture) else _captured(source, x.shape[1:])
    if captured.sample_shape != x.shape[1:]:
        raise ConversionError(f"calibration samples have shape {x.shape[1:]}, the model reads {captured.sample_shape}")
    split = cut_at(captured, cut)
    template = run_passes(split.encoder)
    progress(f"cut: {split.reason}")
    layout = captured.input_layout or layout_of(x.shape[1:])
    arranged = arrange(x, layout, graph_shape(x.shape[1:], layout))
    progress(f"calibrating with {len(x)} samples")
    recipe = recipe or Recipe()
    table: tuple[Sensitivity, ...] = ()
    if recipe.weight_budget_bytes is not None:
        template, table = allot_bits(template, captured.tensors, arranged, recipe.weight_budget_bytes)
    template, ranges = calibrate(template, captured.tensors, arranged, recipe)
    packages = assemble(template, split.head, captured.tensors, ranges, boards, model_id, version, layout)
    check_boards(packages, boards)
    for package in packages.values():
        package.verify()  # a push repeats this chain unverified
    progress(COMPARING)
    features = run_float(bind(template, captured.tensors), arranged)
    quality = _measure(captured, x, y, features, split.head, next(iter(packages.values())))
    return Conversion(model_id, split, template, split.head, captured.tensors, ranges, packages, quality, table)


def _captured(module: nn.Module, sample_shape: tuple[int, ...]) -> Capture:
    from fedmote_convert.capture import capture

    return capture(module, sample_shape)


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
    x: NDArray[np.float32],
    y: NDArray[np.int64] | None,
    features: NDArray[np.float32],
    head: Sequence[HeadLayer],
    package: Package,
) -> Quality:
    expected = captured.reference(x)
    features = features.reshape(len(x), -1)
    layers = dense_layers(head, captured.tensors)
    logits = logits_of(layers, features)
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(logits - expected).max()) / largest
    if difference > FLOAT_TOLERANCE:
        raise FedmoteError(
            f"the captured graph differs from the module by {difference:.1e} of its largest logit, {FLOAT_TOLERANCE:.0e} are "
            f"allowed: this is an error of the conversion, please report it with the model"
        )
    deployed_features = run_features(package, x)
    deployed = logits_of(layers, deployed_features).argmax(axis=1)
    chosen = expected.argmax(axis=1)
    quality = Quality(len(x), difference, sqnr_db(features, deployed_features), float((deployed == chosen).mean()))
    if y is None:
        return quality
    return replace(quality, accuracy_float=float((chosen == y).mean()), accuracy_int8=float((deployed == y).mean()))


def sqnr_db(exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    """Signal to noise ratio in dB; 200 where there is no noise, -200 where there is no signal."""
    signal = float(np.square(exact, dtype=np.float64).sum())
    noise = float(np.square(np.subtract(exact, rounded, dtype=np.float64)).sum())
    if signal == 0 or noise == 0:
        return 200.0 if noise == 0 else -200.0
    return 10 * float(np.log10(signal / noise))
