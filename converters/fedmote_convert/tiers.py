# SPDX-License-Identifier: Apache-2.0
"""One model, several boards: every form is measured, every board gets the best that fits it, boards with one form share a tier.

The order of work keeps it cheap: one capture, for each width one calibration and one int8 run of the whole network
(`measure`), and whole conversions of those forms alone that a board was given (`choice`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConversionError
from fedmote.package.boards import Board
from fedmote.package.graph import Graph
from fedmote.package.importer import cut_graph
from fedmote_convert.calibration import Recipe
from fedmote_convert.choice import Choice, choose
from fedmote_convert.convert import Conversion, Progress, Samples, captured_from, convert_form, samples_of
from fedmote_convert.cut import LAST, cut_at
from fedmote_convert.early_exit import Labels, Owners, split_labels
from fedmote_convert.forms import Form, early_forms, early_forms_at, forms_at, own_forms
from fedmote_convert.measure import Measured, measure_forms
from fedmote_convert.mixed_precision import allot_bits
from fedmote_convert.narrow import narrow
from fedmote_convert.passes import run_passes
from fedmote_convert.sketch import Capture

if TYPE_CHECKING:
    from torch import nn

AUTO = "auto"


@dataclass(frozen=True)
class Tier:
    """Boards that get the same form of the model.

    Attributes:
        name: of the form.
        boards: at least one.
        choices: why, by board.
        conversion: with a package for each of the boards.
    """

    name: str
    boards: tuple[Board, ...]
    choices: dict[str, Choice]
    conversion: Conversion


@dataclass(frozen=True)
class Tiers:
    """The result for all boards.

    Attributes:
        model_id: name of the model.
        tiers: in the order of their first boards.
        measured: all forms with their costs, in the order of the network, wide before narrow.
        samples: that they were calibrated with; its labels say which of them judged the forms.
    """

    model_id: str
    tiers: tuple[Tier, ...]
    measured: tuple[Measured, ...]
    samples: Samples

    @property
    def labels(self) -> Labels | None:
        """Which samples judged the forms, or None."""
        return self.samples.labels


def convert_tiers(
    source: nn.Module | Capture,
    x: NDArray[np.float32],
    boards: Sequence[Board],
    *,
    model_id: str,
    cut: str = AUTO,
    widths: Sequence[float] = (1.0,),
    recipe: Recipe | None = None,
    y: NDArray[np.int64] | None = None,
    owners: Owners | None = None,
    version: int = 0,
    progress: Progress = lambda text: None,
) -> Tiers:
    """Convert a model for some boards, each with the form that suits it.

    Args:
        source: a torch module in evaluation mode, float32; or what another front-end captured.
        x: calibration samples float32 (N, C, H, W), (N, C, W) or (N, F), as the model reads them.
        boards: at least one.
        model_id: name of the model, part of file names.
        cut: "auto": all edges, unless the recipe holds what is of one encoder; "last", or the name of a module or activation:
            that one, and every board must be able to train.
        widths: shares of the channels, each in (0, 1]; below 1 labels are needed.
        recipe: of the quantization; None is the default one.
        y: class indices (N,).
        owners: whose the samples are, so that whole people are held out.
        version: number of the checkpoint.
        progress: called with a line before each step.

    Raises:
        DoesNotFitError, ConversionError: a board can run no form, or not train the one that was named.
        UnsupportedOpError, ConfigError: as `convert`.
    """
    recipe = recipe or Recipe()
    if cut == AUTO and _is_of_one_network(recipe):
        progress("cut last instead of auto: given ranges, bits and budgets of weights are of one encoder")
        cut = LAST
    captured = captured_from(source, x, model_id, progress)
    classes = math.prod(captured.graph.activations[captured.graph.output].shape)
    labels = None if y is None else split_labels(y, classes, owners)
    if labels is None and any(width != 1.0 for width in widths):
        raise ConversionError("--widths below 1 need labels (y) with the calibration samples: a narrow encoder needs a new head")
    samples = samples_of(captured, x, y, labels)
    measured: list[Measured] = []
    for width in sorted(set(widths), reverse=True):
        trunk, forms = _forms(captured, samples, cut, width)
        if recipe.weight_budget_bytes is not None:
            trunk, _ = allot_bits(trunk, captured.tensors, samples.arranged, recipe.weight_budget_bytes)
        arguments = (trunk, captured.tensors, samples.arranged, labels, boards, recipe, model_id, progress)
        measured += measure_forms(forms, *arguments)
    if not measured:
        cut_at(captured)  # says why the model has no cut
        raise ConversionError(f"{model_id}: no edge of the model can be cut; give it a layer before its last one")
    choices = {board.name: choose(measured, board.name) for board in boards}
    tiers = _tiers(captured, samples, boards, choices, cut == AUTO, model_id, recipe, version, progress)
    return Tiers(model_id, tiers, tuple(measured), samples)


def _is_of_one_network(recipe: Recipe) -> bool:
    """Whether a recipe names activations or weights, or has a sum of bytes, that suit one encoder and no shorter one."""
    return recipe.weight_budget_bytes is not None or recipe.ranges is not None or bool(recipe.weight_bits or recipe.template)


def _forms(captured: Capture, samples: Samples, cut: str, width: float) -> tuple[Graph, tuple[Form, ...]]:
    """Template of the network up to the last form's edge at least, and the forms of this width."""
    labels = samples.labels
    if cut != AUTO:
        forms = forms_at(captured, cut, None if labels is None else labels.classes)
        trunk = cut_graph(forms[0].template, forms[0].edge)
        if width == 1.0:
            return trunk, forms
        assert labels is not None  # checked by the caller
        trunk = narrow(trunk, captured.tensors, samples.arranged, width, is_encoder=True)
        return trunk, early_forms_at(captured, trunk, forms[0].edge, labels.classes, width)
    trunk = run_passes(captured.graph)
    if width != 1.0:
        assert labels is not None  # checked by the caller
        trunk = narrow(trunk, captured.tensors, samples.arranged, width)
        return trunk, early_forms(captured, trunk, labels.classes, width)
    early = () if labels is None else early_forms(captured, trunk, labels.classes)
    return trunk, (*early, *own_forms(captured))


def _tiers(
    captured: Capture,
    samples: Samples,
    boards: Sequence[Board],
    choices: dict[str, Choice],
    may_only_run: bool,
    model_id: str,
    recipe: Recipe,
    version: int,
    progress: Progress,
) -> tuple[Tier, ...]:
    """A conversion for each form that was chosen."""
    tiers: dict[str, list[Board]] = {}
    for board in boards:
        tiers.setdefault(choices[board.name].measured.form.name, []).append(board)
    only_running = {name for name, choice in choices.items() if may_only_run and not choice.trains}
    made = []
    for name, members in tiers.items():
        form = choices[members[0].name].measured.form
        progress(f"tier {name} for {', '.join(board.name for board in members)}")
        conversion = convert_form(
            captured, form, samples, members, model_id, recipe, version, progress, only_running=only_running
        )
        made.append(Tier(name, tuple(members), {board.name: choices[board.name] for board in members}, conversion))
    return tuple(made)
