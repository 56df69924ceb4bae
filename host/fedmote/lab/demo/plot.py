# SPDX-License-Identifier: Apache-2.0
"""The picture of the demonstration: accuracy over rounds, the strategy and its baselines."""

from __future__ import annotations

from pathlib import Path

from fedmote.errors import ConfigError
from fedmote.lab.demo.report import BASELINES, Report, committed

# Colours that stay apart for colour-blind eyes (Okabe and Ito), and line styles that stay apart on paper.
_STYLES = {"devices_only": ("#E69F00", "--"), "partners_only": ("#009E73", "-."), "pooled": ("#999999", ":")}
_STRATEGY_COLOUR = "#0072B2"


def draw(report: Report, path: Path) -> None:
    """Write a PNG; with several seeds the band is from the lowest to the highest.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: pip install 'fedmote[demo]'") from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    runs = [[one.run["first_accuracy"], *(merge["accuracy"] for merge in committed(one.run))] for one in report.seeds]
    _line(axes, runs, report.strategy, _STRATEGY_COLOUR, "-")
    for name in BASELINES:
        curves = [[one.run["first_accuracy"], *one.curves[name]] for one in report.seeds]
        _line(axes, curves, name.replace("_", " "), *_STYLES[name])
    seeds = f"seed {report.seeds[0].seed}" if len(report.seeds) == 1 else f"mean of {len(report.seeds)} seeds, lowest to highest"
    axes.set(xlabel="round", ylabel="accuracy on the test set", ylim=(0, 1), title=f"{report.data['name']}, {seeds}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"the plot cannot be written to {path} ({error.strerror}); name a directory with --out") from error


def _line(axes: object, curves: list[list[float]], label: str, colour: str, style: str) -> None:
    rounds = range(min(len(curve) for curve in curves))
    columns = [[curve[position] for curve in curves] for position in rounds]
    means = [sum(column) / len(column) for column in columns]
    axes.plot(rounds, means, style, color=colour, label=label)  # type: ignore[attr-defined]
    if len(curves) > 1:
        lows, highs = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(rounds, lows, highs, color=colour, alpha=0.15, linewidth=0)  # type: ignore[attr-defined]
