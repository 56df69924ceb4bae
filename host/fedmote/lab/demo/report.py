# SPDX-License-Identifier: Apache-2.0
"""The demonstration's result: one object for programs, tables for people. Every number comes from a run's own ledger.

Bytes up and down are those of the blobs: updates and selected samples up, packages down. Frames, questions and repetitions
come on top and depend on the link.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmote.coordinator.results import SERVED
from fedmote.lab.demo.data import CELLS
from fedmote.lab.demo.experiment import Scene
from fedmote.package.partition import Partition
from fedmote.wire.blobs import encode_head_update, encode_selected_samples

BASELINES = ("devices_only", "partners_only", "pooled")


@dataclass(frozen=True)
class SeedResult:
    """One seed: the run of the strategy and its baselines.

    Attributes:
        seed: of everything.
        run: what the coordinator said at the end.
        curves: accuracy after every merge, by baseline.
    """

    seed: int
    run: Mapping[str, Any]
    curves: Mapping[str, Sequence[float]]

    @property
    def final_accuracy(self) -> float:
        """After the last merge."""
        return float(self.run["accuracy"])

    def baselines(self) -> dict[str, float]:
        """Final accuracy by baseline."""
        return {name: float(curve[-1]) for name, curve in self.curves.items()}


@dataclass(frozen=True)
class Footprint:
    """What a device costs.

    Attributes:
        flash_bytes: of its image, by board; None for programs of this machine.
        partition: the packages as they were converted.
    """

    flash_bytes: Mapping[str, int | None]
    partition: Partition


@dataclass(frozen=True)
class Report:
    """Everything that is shown.

    Attributes:
        strategy: name.
        data: words about data and split, by key.
        scene: who ran where.
        seeds: results; the first one is that of the boards that were asked for.
        footprint: see there.
        left_out: what this machine could not do, in words.
        versions: of programs and libraries.
    """

    strategy: str
    data: Mapping[str, Any]
    scene: Scene
    seeds: Sequence[SeedResult]
    footprint: Footprint
    left_out: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        first = self.seeds[0]
        keys = ("round", "phase", "accuracy", "seconds", "reported", "expected")
        content: dict[str, Any] = {
            "strategy": self.strategy,
            "data": dict(self.data),
            "seed": first.seed,
            "first_accuracy": first.run["first_accuracy"],
            "rounds": [{key: one[key] for key in keys} for one in committed(first.run)],
            "baselines": first.baselines(),
            "final_accuracy": first.final_accuracy,
            "devices": self.devices(),
            "left_out": list(self.left_out),
            "versions": dict(self.versions),
        }
        if len(self.seeds) > 1:
            content["seeds"] = [
                {"seed": one.seed, "final_accuracy": one.final_accuracy, "baselines": one.baselines()} for one in self.seeds
            ]
            content["over_seeds"] = over_seeds(self.seeds)
        return content

    def devices(self) -> list[dict[str, Any]]:
        """What each device discarded, trained and sent over all rounds, and what it costs."""
        return [self._device(cell) for cell in CELLS]

    def _device(self, cell: str) -> dict[str, Any]:
        name, board = f"device-{cell}", self.scene.boards[cell]
        said = [one for merge in committed(self.seeds[0].run) for one in merge["updates"] if one["participant"] == name]
        package = self.footprint.partition.packages[board]
        up = len(encode_head_update(np.zeros(package.head_shape.parameters, np.float32)))
        return {
            "id": name,
            "board": board,
            "link": self.scene.link(cell),
            "arena_bytes": max((one.get("arena_used_bytes", 0) for one in said), default=0),
            "flash_bytes": self.footprint.flash_bytes[board],
            **{key: sum(one.get(key, 0) for one in said) for key in ("discarded", "trained", "sent")},
            "bytes_up": sum(up + samples_bytes(one.get("sent", 0), package.header.input_count) for one in said),
            "bytes_down": sum(one.get(key, 0) for one in said for key in SERVED),
        }


def committed(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rounds that were merged."""
    return [one for one in run["rounds"] if one["state"] == "committed"]


def curve_of(run: Mapping[str, Any]) -> list[float]:
    """Accuracy after every merge."""
    return [float(one["accuracy"]) for one in committed(run)]


def samples_bytes(count: int, input_bytes: int) -> int:
    """Bytes of a blob of selected samples; none where nothing was selected."""
    if not count:
        return 0
    numbers = np.zeros(count, np.uint32)
    return len(encode_selected_samples(numbers, numbers, numbers, np.zeros((count, input_bytes), np.int8)))


def over_seeds(seeds: Sequence[SeedResult]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds, and the mean and the least of the paired differences to each baseline."""
    finals = [one.final_accuracy for one in seeds]
    table = {"strategy": _mean_and_spread(finals)}
    for name in BASELINES:
        values = [one.baselines()[name] for one in seeds]
        gaps = [final - value for final, value in zip(finals, values, strict=True)]
        table[name] = {**_mean_and_spread(values), "gain_mean": statistics.fmean(gaps), "gain_least": min(gaps)}
    return table


def _mean_and_spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values)}


def words(report: Report) -> str:
    """Tables for people."""
    first = report.seeds[0]
    sections = [_data(report), _rounds(report, first), _baselines(report, first), _devices(report)]
    if len(report.seeds) > 1:
        sections.append(_seeds(report))
    if report.left_out:
        sections.append("left out on this machine:\n" + "\n".join(f"  {one}" for one in report.left_out))
    return "\n\n".join(sections) + "\n"


def _data(report: Report) -> str:
    facts = report.data
    lines = [
        f"data: {facts['name']}, model {facts['model']}; pre-trained on classes {_listed(facts['pretrained_classes'])}; no sample"
    ]
    lines[0] += " is in two sets" + (f", and no {facts['owner_key']} either" if "owners" in facts else "")
    for name, counts in facts["class_counts"].items():
        line = f"  {name:<12} {sum(counts):>5} samples, by class {_listed(counts)}"
        lines.append(line + (f"; {facts['owner_key']} {_listed(facts['owners'][name])}" if "owners" in facts else ""))
    return "\n".join(lines)


def _listed(values: Sequence[int]) -> str:
    return " ".join(str(value) for value in values)


def _rounds(report: Report, first: SeedResult) -> str:
    head = ("round", "phase", report.strategy, *(name.replace("_", " ") for name in BASELINES), "reported", "seconds")
    rows = [("0", "", *[_percent(first.run["first_accuracy"])] * 4, "", "")]
    for position, one in enumerate(committed(first.run)):
        curves = [_percent(first.curves[name][position]) for name in BASELINES]
        reported, seconds = f"{one['reported']}/{one['expected']}", f"{one['seconds']:.1f}"
        rows.append((str(one["round"]), one["phase"], _percent(one["accuracy"]), *curves, reported, seconds))
    return f"accuracy on the test set after each round, seed {first.seed}\n" + table(head, rows)


def _baselines(report: Report, first: SeedResult) -> str:
    final = first.final_accuracy
    lines = [f"final accuracy of {report.strategy}: {_percent(final)}"]
    for name, value in first.baselines().items():
        lines.append(
            f"  {name.replace('_', ' '):<14} {_percent(value)}   {100 * (final - value):+.1f} points for {report.strategy}"
        )
    lines.append(
        "  devices only and partners only ran the same C sources as native processes, with the same first checkpoint, data,"
    )
    lines.append(
        "  selection, seeds and rounds; the merge left the other tier out. Pooled: all cells' data in one place, torch, float32."
    )
    return "\n".join(lines)


def _devices(report: Report) -> str:
    head = ("device", "board", "link", "arena B", "flash B", "discarded", "trained", "sent", "bytes up", "bytes down")
    rows = [tuple("-" if value is None else str(value) for value in one.values()) for one in report.devices()]
    return "devices, all rounds together (trained: samples times epochs; bytes: blobs without frames)\n" + table(head, rows)


def _seeds(report: Report) -> str:
    head = ("seed", report.strategy, *(name.replace("_", " ") for name in BASELINES))
    rows = [
        (str(one.seed), _percent(one.final_accuracy), *(_percent(one.baselines()[name]) for name in BASELINES))
        for one in report.seeds
    ]
    summary = over_seeds(report.seeds)
    rows.append(("mean", *(_percent(one["mean"]) for one in summary.values())))
    rows.append(("deviation", *(_percent(one["deviation"]) for one in summary.values())))
    rows.append(("mean gain", "", *(f"{100 * summary[name]['gain_mean']:+.1f}" for name in BASELINES)))
    rows.append(("least gain", "", *(f"{100 * summary[name]['gain_least']:+.1f}" for name in BASELINES)))
    return "final accuracy by seed (seeds after the first: native processes)\n" + table(head, rows)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first one to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    )
