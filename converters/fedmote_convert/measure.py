# SPDX-License-Identifier: Apache-2.0
"""What every form of a model costs on every board, and how well it classifies: before any package is made.

One calibration and one int8 run of the whole network give the features of all its edges; bytes, arena, MACs and instructions
come from compiling the beginning of the network up to each edge, which takes milliseconds. The bytes are those of the package
that a conversion then makes. The accuracy is that of the package but for rounding: the activation at an edge is not equalised in
a package that ends there, so nothing is here, and the layers before it keep a little less. On three networks the two differed by
0.1 to 0.5 points in the mean, and by two of a hundred samples at most; the conversion itself then measures its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConfigError
from fedmote.package.boards import Board
from fedmote.package.budget import Cost, cost
from fedmote.package.compile import Plan, compile_graph
from fedmote.package.execute import run_float, run_int8
from fedmote.package.file import device_form_bytes
from fedmote.package.fold import bind
from fedmote.package.graph import Graph, HeadLayer, Ranges, Tensors
from fedmote.package.head import HeadShape, dense_layers, logits_of, parameter_count
from fedmote.package.importer import cut_graph
from fedmote.package.instructions import Prediction, has_table, image_bytes, predict
from fedmote.package.quantize import dequantize_values, quantize, quantize_input
from fedmote_convert.calibration import Recipe, calibrate
from fedmote_convert.early_exit import Labels, train_head
from fedmote_convert.forms import Form, averaged

Progress = Callable[[str], None]
_DEVICE = "fedmote-device"  # the program that trains
_FLOAT_BYTES = 4
_CHEAP_FEATURES = 512


@dataclass(frozen=True)
class Needs:
    """A form on one board.

    Attributes:
        cost: bytes needed and available.
        instructions: predicted for the encoder and one sample; None where the board has no table.
        image_bytes: flash of the board's device image, or of its inference image where it has no other; None where unknown.
        missing: operators that the board's device image lacks.
        has_device: whether there is a device program for the board, the one that trains.
    """

    cost: Cost
    instructions: int | None
    image_bytes: int | None
    missing: tuple[str, ...]
    has_device: bool

    @property
    def flash_bytes(self) -> int | None:
        """Image and package together; None where the image has not been measured."""
        return None if self.image_bytes is None else self.image_bytes + self.cost.slot_bytes

    @property
    def trains(self) -> bool:
        """Whether the board can take part in rounds with it."""
        return self.has_device and self.cost.fits and not self.missing

    @property
    def runs(self) -> bool:
        """Whether the board can at least run it."""
        return self.trains or self.cost.runs

    @property
    def refusal(self) -> str:
        """Why the board cannot train it; empty if it can."""
        if not self.has_device:
            return "no device program"
        if self.missing:
            return f"no operator {', '.join(self.missing)}"
        parts = (
            ("slot", self.cost.slot_bytes, self.cost.slot_available),
            ("arena", self.cost.arena_bytes, self.cost.arena_available),
        )
        lacking = [f"{name} {needed - room:,} bytes too large" for name, needed, room in parts if needed > room]
        return ", ".join(lacking) if self.cost.samples else "no room for a sample"


@dataclass(frozen=True)
class Measured:
    """A form with its costs.

    Attributes:
        form: what was measured.
        macs: multiply-accumulates of the encoder for one sample.
        encoder_bytes: arena of the encoder alone.
        embedding_bytes: int8 features of one sample.
        update_bytes: head update, float32.
        boards: by name.
        accuracy: on the samples held out, of int8 encoder and one dense layer trained alone on the others; None without labels,
            for heads of two layers, and for many features that no board has room for.
        own_accuracy: on the same samples with the model's own head as it is; None for forms that have none.
        correct: which of the samples held out are classified rightly by the better of the two; None without either.
    """

    form: Form
    macs: int
    encoder_bytes: int
    embedding_bytes: int
    update_bytes: int
    boards: dict[str, Needs]
    accuracy: float | None = None
    own_accuracy: float | None = None
    correct: NDArray[np.bool_] | None = None

    @property
    def best_accuracy(self) -> float | None:
        """What its head is known to reach: as it is, or trained alone."""
        return None if self.correct is None else float(self.correct.mean())


def measure_forms(
    forms: Sequence[Form],
    trunk: Graph,
    tensors: Tensors,
    x: NDArray[np.float32],
    labels: Labels | None,
    boards: Sequence[Board],
    recipe: Recipe,
    model_id: str,
    progress: Progress,
) -> tuple[Measured, ...]:
    """Measure forms whose encoders are beginnings of one template.

    Args:
        forms: of one model and width.
        trunk: template of the whole network, of that width.
        tensors: the whole float state.
        x: calibration samples float32 (N, ...), channels last.
        labels: of these samples, or None: accuracies are left out then.
        boards: to compile for.
        recipe: of the quantization.
        model_id: name of the model, which is part of a package.
        progress: called with a line before long steps.
    """
    last = max((op.output for op in trunk.ops), key=lambda name: _reach(forms, trunk, name))
    template, ranges = calibrate(cut_graph(trunk, last), tensors, x, replace(recipe, is_equalised=False))
    bound = bind(template, tensors)
    ranges = ranges | _mean_ranges(bound, x, {form.edge for form in forms if form.is_averaged})
    said = _once(progress)
    measured = [_costs(form, _quantized(bound, form, ranges), boards, model_id, said) for form in forms]
    if labels is None:
        return tuple(measured)
    wanted = [one for one in measured if _is_worth_judging(one, measured)]
    progress(f"measuring {len(wanted)} of {len(forms)} forms on {len(labels.held_out)} samples held out")
    features = _features(quantize(bound, ranges), x, {one.form.edge for one in wanted})
    by_name = {id(one): _judged(one, features[one.form.edge], bound, ranges, tensors, labels) for one in wanted}
    return tuple(by_name.get(id(one), one) for one in measured)


def _is_worth_judging(one: Measured, measured: Sequence[Measured]) -> bool:
    """Whether a head for a form is cheap to train, or a board can use it: train it, or run it where it can train none."""
    if one.embedding_bytes <= _CHEAP_FEATURES or any(needs.trains for needs in one.boards.values()):
        return True
    return any(needs.runs and not any(other.boards[name].trains for other in measured) for name, needs in one.boards.items())


def _once(progress: Progress) -> Progress:
    """Passes each line on once."""
    known: set[str] = set()

    def say(text: str) -> None:
        if text not in known:
            known.add(text)
            progress(text)

    return say


def _reach(forms: Sequence[Form], trunk: Graph, name: str) -> int:
    """Position of an activation if a form ends there, else -1."""
    is_end = any(form.edge == name for form in forms)
    return next(index for index, op in enumerate(trunk.ops) if op.output == name) if is_end else -1


def _mean_ranges(graph: Graph, x: NDArray[np.float32], edges: set[str]) -> Ranges:
    """Ranges of the means over height and width, by the names that `averaged` gives them."""
    seen: Ranges = {}

    def widen(name: str, values: NDArray[np.float32]) -> None:
        if name in edges:
            means = values.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
            low, high = seen.get(name, (np.inf, -np.inf))
            seen[name] = (min(low, float(means.min())), max(high, float(means.max())))

    if edges:
        run_float(graph, x, widen)
    return {averaged(cut_graph(graph, name)).output: limits for name, limits in seen.items()}


def _quantized(bound: Graph, form: Form, ranges: Ranges) -> Graph:
    """The int8 encoder of a form."""
    encoder = cut_graph(bound, form.edge)
    return quantize(averaged(encoder) if form.is_averaged else encoder, ranges)


def _costs(form: Form, graph: Graph, boards: Sequence[Board], model_id: str, progress: Progress) -> Measured:
    plans = {arrangement: compile_graph(graph, arrangement) for arrangement in {board.arrangement for board in boards}}
    header = next(iter(plans.values())).header
    needs = {board.name: _needs(form.head, graph, plans[board.arrangement], board, model_id, progress) for board in boards}
    update_bytes = _FLOAT_BYTES * parameter_count(form.head)
    return Measured(form, header.macs, header.encoder_bytes, header.feature_count, update_bytes, needs)


def _needs(head: Sequence[HeadLayer], graph: Graph, plan: Plan, board: Board, model_id: str, progress: Progress) -> Needs:
    size = device_form_bytes(graph, plan, head, board, model_id, 0)
    shape = HeadShape.of([(layer.inputs, layer.outputs) for layer in head])
    opcodes = dict.fromkeys(opcode for _, opcode, _, _ in plan.units)
    missing = tuple(opcode.name.lower() for opcode in opcodes if not board.has_operator(opcode))
    prediction = predicted(plan, board, progress)
    has_device = _DEVICE in board.programs
    images = image_bytes(board)
    return Needs(
        cost(size, plan.header, shape, board),
        None if prediction is None else prediction.total,
        None if images is None else images.device if has_device else images.run,
        missing,
        has_device,
    )


def predicted(plan: Plan, board: Board, progress: Progress = lambda text: None) -> Prediction | None:
    """Predicted instructions of an encoder for one sample.

    None where the board has no table, or where its table has nothing for a loop of the plan; the latter is said.
    """
    if not has_table(board):
        return None
    try:
        return predict(plan, board)
    except ConfigError as error:
        progress(f"no prediction of instructions: {error}")
        return None


def _features(graph: Graph, x: NDArray[np.float32], edges: set[str]) -> dict[str, NDArray[np.int8]]:
    """int8 values (N, ...) of some activations of the whole network."""
    blocks: dict[str, list[NDArray[np.int8]]] = {name: [] for name in edges}

    def keep(name: str, values: NDArray[np.int8]) -> None:
        if name in blocks:
            blocks[name].append(values)

    if edges:
        run_int8(graph, quantize_input(graph, x), keep)
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def _judged(one: Measured, values: NDArray[np.int8], bound: Graph, ranges: Ranges, tensors: Tensors, labels: Labels) -> Measured:
    """The form with its accuracies, from the int8 values of its edge."""
    form = one.form
    graph = _quantized(bound, form, ranges)
    if form.is_averaged:
        mean = replace(graph, input=form.edge, ops=graph.ops[-1:])
        values = run_int8(mean, values)
    features = dequantize_values(graph.activations[graph.output], values).reshape(len(values), -1)
    train, test = labels.training, labels.held_out
    judged, hits = one, []
    if not form.is_early:
        logits = logits_of(dense_layers(form.head, tensors), features[test])
        hits.append(logits.argmax(axis=1) == labels.y[test])
        judged = replace(judged, own_accuracy=float(hits[-1].mean()))
    if len(form.head) == 1:
        weights, bias = train_head(features[train], labels.y[train], labels.classes)
        hits.append((features[test] @ weights.T + bias).argmax(axis=1) == labels.y[test])
        judged = replace(judged, accuracy=float(hits[-1].mean()))
    return replace(judged, correct=max(hits, key=lambda hit: int(hit.sum())))
