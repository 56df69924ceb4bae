# SPDX-License-Identifier: Apache-2.0
"""Accuracy against cost: every form of a model as a point, for each board and each cost, as SVG and as PNG.

A point is a form: its height the accuracy on the samples held out, its distance from the left what it takes of the slot, of the
arena, or of the processor. Filled points are beaten by no other form; the ringed one is what the board got; the vertical line is
the board's budget.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 360, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 28, 44
_TICKS = 4


@dataclass(frozen=True)
class Point:
    """A form in one panel.

    Attributes:
        name: of the form.
        cost: bytes, instructions or MACs.
        accuracy: in [0, 1].
        width: share of the channels.
        is_best: whether no other form beats it on the board.
        is_chosen: whether it is what the board got.
    """

    name: str
    cost: int
    accuracy: float
    width: float
    is_best: bool
    is_chosen: bool


@dataclass(frozen=True)
class Panel:
    """One board, one cost.

    Attributes:
        board: name.
        cost: what the points cost, with its unit.
        points: all forms.
        budget: of the board, or None.
    """

    board: str
    cost: str
    points: tuple[Point, ...]
    budget: int | None


def accuracy_of(form: Mapping[str, Any]) -> float | None:
    """What the head of a form is known to reach, as it is or trained alone; None without labels."""
    known = [float(value) for value in (form["accuracy"], form["own_head_accuracy"]) if value is not None]
    return max(known, default=None)


def panels_of(report: Mapping[str, Any]) -> tuple[Panel, ...]:
    """Three panels for each board of a report; none where no accuracies are known."""
    judged = [form for form in report["forms"] if accuracy_of(form) is not None]
    if len(judged) < 2:
        return ()
    return tuple(panel for board in report["boards"] for panel in _panels(report, board, judged))


def _panels(report: Mapping[str, Any], board: str, judged: Sequence[Mapping[str, Any]]) -> list[Panel]:
    needs = report["boards"][board]
    is_counted = all(form["boards"][board]["instructions"] is not None for form in judged)
    arena = "arena" if needs["is_training"] else "run_arena"
    work = [form["boards"][board]["instructions"] if is_counted else form["macs"] for form in judged]
    slots, arenas = ([form["boards"][board][f"{key}_bytes"] for form in judged] for key in ("slot", arena))
    costs = (
        ("package in its slot, bytes", slots, needs["slot_available"]),
        ("arena, bytes", arenas, needs[f"{arena}_available"]),
        ("instructions per sample, predicted" if is_counted else "MACs per sample", work, None),
    )
    return [
        Panel(board, words, tuple(_point(report, board, form, cost) for form, cost in zip(judged, values, strict=True)), budget)
        for words, values, budget in costs
    ]


def _point(report: Mapping[str, Any], board: str, form: Mapping[str, Any], cost: int) -> Point:
    name = form["form"]
    is_best = name in report["pareto"][board]
    return Point(name, cost, accuracy_of(form) or 0.0, form["width"], is_best, name == report["boards"][board]["form"])


# --- axes ------------------------------------------------------------------------------------------------------------


def _limits(panel: Panel) -> tuple[float, float, float]:
    """Largest cost that is drawn, and the accuracies at bottom and top."""
    largest = max(point.cost for point in panel.points)
    if panel.budget is not None and panel.budget < 3 * largest:
        largest = max(largest, panel.budget)
    low = min(point.accuracy for point in panel.points)
    return 1.05 * largest, max(0.0, math.floor(low * 10 - 0.2) / 10), 1.0


def _rounded(limit: float) -> list[float]:
    """Round numbers from zero to a limit, at most _TICKS + 1 of them."""
    raw = limit / _TICKS
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    return [step * index for index in range(int(limit / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A count in three digits at most: 24.6k, 3.3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


# --- SVG -------------------------------------------------------------------------------------------------------------


def svg(panel: Panel) -> str:
    """A panel as inline SVG; colours come from the page's classes."""
    right, low, high = _limits(panel)
    across = (_WIDTH - _LEFT - _RIGHT) / right
    up = (_HEIGHT - _TOP - _BOTTOM) / (high - low)

    def place(cost: float, accuracy: float) -> tuple[float, float]:
        return _LEFT + cost * across, _TOP + (high - accuracy) * up

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{panel.board}: accuracy by {panel.cost}")}">'
    ]
    for drop in _rounded(high - low):
        accuracy = high - drop
        _, y = place(0, accuracy)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * accuracy:.3g}%</text>')
    for cost in _rounded(right):
        x, _ = place(cost, low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{short(cost)}</text>')
    if panel.budget is not None and panel.budget <= right:
        x, _ = place(panel.budget, low)
        parts.append(f'<line class="budget" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x - 4:.1f}" y="{_TOP + 10}" text-anchor="end">budget {short(panel.budget)}</text>')
    for point in sorted(panel.points, key=lambda one: (one.is_chosen, one.is_best)):
        parts.append(_mark(point, *place(point.cost, point.accuracy)))
    parts.append(f'<text class="axis" x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(panel.cost)}</text>')
    parts.append(f'<text class="axis" x="{_LEFT}" y="16">accuracy</text></svg>')
    return "".join(parts)


def _mark(point: Point, x: float, y: float) -> str:
    title = escape(f"{point.name}: {point.accuracy:.1%}, {point.cost:,}")
    kind = f"point w{width_class(point.width)}{' best' if point.is_best else ''}"
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="9"/>' if point.is_chosen else ""
    return f'<g>{ring}<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/><title>{title}</title></g>'


def width_class(width: float) -> int:
    """Number of a width's colour: whole, half or more, less."""
    return 1 if width == 1.0 else 2 if width >= 0.5 else 3


# --- PNG -------------------------------------------------------------------------------------------------------------


_LEGEND = (
    "blue: whole width, orange: half or more, green: less; filled: beaten by no other form; ringed: chosen; "
    "dashed: what the board has"
)


def has_matplotlib() -> bool:
    """Whether PNG files can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def png(panels: Sequence[Panel]) -> bytes:
    """All panels as one PNG file, a row for each board; the same panels give the same bytes with the same matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 3.4 * rows), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    figure.subplots_adjust(0.06, 0.85 / (3.4 * rows), 0.99, 1 - 0.35 / (3.4 * rows), wspace=0.22, hspace=0.5)
    for panel, axis in zip(panels, axes, strict=True):
        _draw(panel, axis)
    figure.text(0.06, 0.15 / (3.4 * rows), _LEGEND, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw(panel: Panel, axis: Any) -> None:  # noqa: ANN401  # matplotlib has no types
    right, low, high = _limits(panel)
    for colour, width in zip(("#2563eb", "#d97706", "#059669"), (1, 2, 3), strict=True):
        for face, is_best in (("none", False), (colour, True)):
            points = [one for one in panel.points if (width_class(one.width), one.is_best) == (width, is_best)]
            places = [one.cost for one in points], [100 * one.accuracy for one in points]
            axis.scatter(*places, s=28, facecolors=face, edgecolors=colour, linewidths=1.2)
    for point in panel.points:
        if point.is_chosen:
            place = (point.cost, 100 * point.accuracy)
            axis.scatter(*place, s=170, facecolors="none", edgecolors="#111827", linewidths=1.5)
            offset, side = ((-10, -12), "right") if point.cost > right / 2 else ((10, -12), "left")
            axis.annotate(point.name, place, offset, textcoords="offset points", fontsize=7, ha=side)
    if panel.budget is not None and panel.budget <= right:
        axis.axvline(panel.budget, color="#b91c1c", linestyle="--", linewidth=1)
    axis.set(xlim=(0, right), ylim=(100 * low, 100 * high + 1), xlabel=panel.cost, ylabel="accuracy, %", title=panel.board)
    axis.grid(alpha=0.3)
