# SPDX-License-Identifier: Apache-2.0
"""The forms that one model can take on a device: how far its encoder goes, how wide it is, and what the head is.

Every edge at which a single activation is alive can end an encoder. Where the rest of the model is a head (see `cut`), it may
stay the head. At any other edge the model is left early: a new dense layer reads the activation as it is, or its mean over
height and width where that makes fewer features, and is trained on labelled samples before it is shipped (`early_exit`). Edges
are those of the whole network after all passes: what an operator does on the way, a clamp or a normalisation, is no edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedmote.errors import UnsupportedOpError
from fedmote.package.graph import Activations, Graph, HeadLayer, Op, OpKind
from fedmote.package.importer import cut_graph
from fedmote_convert.cut import LAST, Cut, candidates_of, cut_at, edge_at, linear_index, live, module_of
from fedmote_convert.passes import run_passes
from fedmote_convert.sketch import Capture

_MEAN = "/mean"


@dataclass(frozen=True)
class Form:
    """One form of a model.

    Attributes:
        cut: where it is split; its encoder is the graph before the passes, or the template where the model is left early.
        template: of the encoder, after all passes, before calibration.
        edge: activation of the whole network that the features are, or are the mean of.
        module: path of the module that made it, or its name.
        width: share of the channels that are kept.
        is_early: whether the head is a new one.
        is_averaged: whether the features are means over height and width.
    """

    cut: Cut
    template: Graph
    edge: str
    module: str
    width: float = 1.0
    is_early: bool = False
    is_averaged: bool = False

    @property
    def head(self) -> tuple[HeadLayer, ...]:
        """Layers that devices train."""
        return self.cut.head

    @property
    def name(self) -> str:
        """Name among the forms of one model; part of directory names."""
        return self.edge.replace("/", "-") + ("-mean" if self.is_averaged else "") + width_suffix(self.width)


def width_suffix(width: float) -> str:
    """What a narrower form's names end with; nothing at full width."""
    return "" if width == 1.0 else f"-x{width:g}"


def of_cut(captured: Capture, cut: Cut) -> Form:
    """The form of a model that is split in front of its own head."""
    template = run_passes(cut.encoder)
    return Form(cut, template, template.output, module_of(captured, cut.name))


def own_forms(captured: Capture) -> tuple[Form, ...]:
    """Forms with the model's own head, one Linear or two; the one with one Linear is the last."""
    feasible = [candidate.name for candidate in candidates_of(captured) if not candidate.refusal]
    last_names = {linear_index(captured.graph, name): name for name in feasible}
    return tuple(of_cut(captured, cut_at(captured, name)) for name in last_names.values())


def early_forms(captured: Capture, trunk: Graph, classes: int, width: float = 1.0) -> tuple[Form, ...]:
    """Forms that leave the model early, at every edge of the whole network.

    Args:
        captured: the whole network.
        trunk: its template after all passes, perhaps narrower.
        classes: outputs of the new heads.
        width: of the trunk.
    """
    forms: list[Form] = []
    for position, op in enumerate(trunk.ops[:-1]):
        # A reshape holds the features of the edge before it; explicit padding has no module.
        if op.kind is OpKind.RESHAPE or op.output not in captured.modules or live(trunk, position) != [op.output]:
            continue
        found = early_forms_at(captured, trunk, op.output, classes, width)
        behind = trunk.ops[position + 1 :]
        if width == 1.0 and _is_one_dense(behind):
            found = tuple(form for form in found if form.is_averaged)
        if behind[0].kind is OpKind.MEAN:  # the mean that the network itself takes is an edge of its own
            found = tuple(form for form in found if not form.is_averaged)
        forms += found
    return tuple(forms)


def early_forms_at(captured: Capture, trunk: Graph, edge: str, classes: int, width: float = 1.0) -> tuple[Form, ...]:
    """The forms that leave a template at one of its activations: with the features as they are, and averaged."""
    encoder = cut_graph(trunk, edge)
    encoders = [(encoder, False)]
    shape = trunk.activations[edge].shape
    if len(shape) == 4 and shape[1] * shape[2] > 1:
        encoders.append((averaged(encoder), True))
    module = module_of(captured, edge)
    return tuple(_early(captured, template, edge, module, classes, width, is_mean) for template, is_mean in encoders)


def _early(captured: Capture, template: Graph, edge: str, module: str, classes: int, width: float, is_averaged: bool) -> Form:
    features = math.prod(template.activations[template.output].shape)
    tensor = f"early_exit.{edge}{'.mean' if is_averaged else ''}{f'.x{width:g}' if width != 1.0 else ''}"
    head = (HeadLayer(f"{tensor}.weight", f"{tensor}.bias", features, classes),)
    averaging = ", averaged over height and width" if is_averaged else ""
    reason = f"left early: a new dense layer on the {features} features behind {module}{averaging}"
    reason += f", {width:g} of the width" if width != 1.0 else ""
    cut = Cut(template, head, features, edge, reason, candidates_of(captured))
    return Form(cut, template, edge, module, width, is_early=True, is_averaged=is_averaged)


def averaged(encoder: Graph) -> Graph:
    """The encoder with the mean over height and width of its output, (1, H, W, C) -> (1, C)."""
    name = encoder.output + _MEAN
    activation = Activations(name, (1, encoder.activations[encoder.output].shape[3]))
    mean = Op(OpKind.MEAN, name, (encoder.output,), name)
    return replace(encoder, output=name, activations=encoder.activations | {name: activation}, ops=(*encoder.ops, mean))


def forms_at(captured: Capture, where: str, classes: int | None) -> tuple[Form, ...]:
    """The forms of an edge that was named: the model's own head if the rest is one, else early ones.

    Args:
        captured: the whole network.
        where: "last", the path of a module, or the name of an activation.
        classes: outputs of a new head, or None where there are no labels to train it on.

    Raises:
        ConfigError: no module or activation has that name.
        UnsupportedOpError: the edge lies inside a branch, or the rest is no head and there are no labels.
    """
    try:
        return (of_cut(captured, cut_at(captured, where)),)
    except UnsupportedOpError as error:
        edge = "" if where == LAST else edge_at(captured, where)
        position = next((index for index, op in enumerate(captured.graph.ops) if op.output == edge), -1)
        if position < 0 or live(captured.graph, position) != [edge]:
            raise
        if classes is None:
            hint = f"{error.hint}, or give labels (y) with the calibration samples, on which a new head is trained"
            raise UnsupportedOpError(error.node, error.reason, hint) from error
    return early_forms_at(captured, run_passes(cut_graph(captured.graph, edge)), edge, classes)


def _is_one_dense(ops: tuple[Op, ...]) -> bool:
    """Whether operators are one dense layer that a device can train, whose features an early exit would only copy."""
    parts = [op for op in ops if op.kind is not OpKind.RESHAPE]
    return len(parts) == 1 and parts[0].kind is OpKind.FULLY_CONNECTED and not (parts[0].source and parts[0].source.batch_norm)
