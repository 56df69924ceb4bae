# SPDX-License-Identifier: Apache-2.0
"""What a conversion tells: `report.json` for programs, a table for people, `page` for a browser. All from one dictionary."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedmote.package.boards import Board
from fedmote.package.graph import Graph
from fedmote_convert.choice import pareto
from fedmote_convert.convert import Samples
from fedmote_convert.measure import Measured, Needs
from fedmote_convert.pareto import accuracy_of
from fedmote_convert.profile import profile_of, to_dict
from fedmote_convert.tiers import Tier, Tiers


def report_of(result: Tiers, files: Mapping[str, int]) -> dict[str, Any]:
    """The report: a pure function of the conversion, without times or paths, so that equal inputs give equal bytes.

    A report of one tier has the tier's keys beside its own; one of several has them in `tiers`, by name.

    Args:
        result: the conversion for all boards.
        files: sizes in bytes by name, the report itself left out.
    """
    tiers = {tier.name: tier_report(tier, result.samples) for tier in result.tiers}
    only = next(iter(tiers.values())) if len(tiers) == 1 else {"tiers": tiers}
    boards = [(tier, board) for tier in result.tiers for board in tier.boards]
    return {
        "model": result.model_id,
        "version": result.tiers[0].conversion.package.host.version,
        **only,
        "boards": {board.name: _board(tier, board) for tier, board in boards},
        "held_out": _held_out(result),
        "forms": [_form(one) for one in result.measured],
        "pareto": {board.name: [one.form.name for one in pareto(result.measured, board.name)] for _, board in boards},
        "files": dict(files),
    }


def tier_report(tier: Tier, samples: Samples) -> dict[str, Any]:
    """What the report says of one tier."""
    conversion = tier.conversion
    header = conversion.package.header
    profile = to_dict(profile_of(conversion, samples, tier.boards))
    candidates = [
        {"cut": c.name, "module": c.module, "features": c.features, "refusal": c.refusal or None}
        for c in conversion.cut.candidates
    ]
    return {
        "cut": {
            "name": conversion.cut.name,
            "reason": conversion.cut.reason,
            "features": conversion.cut.features,
            "width": conversion.form.width,
            "is_early_exit": conversion.form.is_early,
            "candidates": candidates,
        },
        "encoder": {"macs": header.macs, "arena_bytes": header.encoder_bytes, "operators": profile.pop("operators")},
        "head": [vars(layer) for layer in conversion.head],
        "quality": {name: value for name, value in vars(conversion.quality).items() if value is not None},
        "sensitivities": [vars(layer) for layer in conversion.sensitivities],
        "ranges": {name: list(limits) for name, limits in conversion.ranges.items()},
        **profile,
    }


def tier_reports(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The tiers of a report by name; the name of the only one is empty."""
    return dict(report["tiers"]) if "tiers" in report else {"": report}


def operators_of(graph: Graph) -> list[dict[str, Any]]:
    """What the report says of each operator."""
    return [
        {
            "operator": op.kind.value,
            "name": op.name,
            "activation": op.activation.value,
            **({} if op.source is None else {"weight_bits": op.weight_bits}),
            "output": op.output,
            "shape": list(graph.activations[op.output].shape),
        }
        for op in graph.ops
    ]


def _board(tier: Tier, board: Board) -> dict[str, Any]:
    package, choice = tier.conversion.packages[board.name], tier.choices[board.name]
    needs = {name: value for name, value in vars(package.cost_on(board)).items() if name != "board"}
    return {
        "hash": package.hash.hex(),
        "form": tier.name,
        "is_training": choice.trains,
        "reason": choice.reason,
        **needs,
        "flash_bytes": choice.measured.boards[board.name].flash_bytes,
        "instructions": choice.measured.boards[board.name].instructions,
    }


def _held_out(result: Tiers) -> dict[str, Any] | None:
    labels = result.labels
    if labels is None:
        return None
    return {"samples": len(labels.held_out), "rule": labels.rule, "indices": labels.held_out.tolist()}


def _form(one: Measured) -> dict[str, Any]:
    form = one.form
    return {
        "form": form.name,
        "cut": form.edge,
        "module": form.module,
        "width": form.width,
        "is_early_exit": form.is_early,
        "is_averaged": form.is_averaged,
        "macs": one.macs,
        "encoder_bytes": one.encoder_bytes,
        "embedding_bytes": one.embedding_bytes,
        "update_bytes": one.update_bytes,
        "accuracy": one.accuracy,
        "own_head_accuracy": one.own_accuracy,
        "boards": {name: _needs(needs) for name, needs in one.boards.items()},
    }


def _needs(needs: Needs) -> dict[str, Any]:
    cost = needs.cost
    return {
        "slot_bytes": cost.slot_bytes,
        "arena_bytes": cost.arena_bytes,
        "run_arena_bytes": cost.run_arena_bytes,
        "flash_bytes": needs.flash_bytes,
        "instructions": needs.instructions,
        "is_training": needs.trains,
        "is_running": needs.runs,
        "refusal": needs.refusal or None,
    }


def to_json(report: Mapping[str, Any]) -> str:
    """The report as text for `report.json`."""
    return json.dumps(report, indent=2, sort_keys=False, allow_nan=False) + "\n"


def table(report: Mapping[str, Any]) -> str:
    """The report as lines for people: what was chosen and why, what it keeps, what else there was, what was written."""
    lines = [f"model     {report['model']}, version {report['version']}"]
    for name, tier in tier_reports(report).items():
        lines += ["", f"tier      {name}"] if name else []
        lines += _tier_lines(tier)
    lines += _board_lines(report["boards"])
    lines += _form_lines(report)
    lines += ["", f"{'file':<36}{'bytes':>12}"]
    lines += [f"{name:<36}{size:>12,}" for name, size in report["files"].items()]
    return "\n".join(lines) + "\n"


def _tier_lines(tier: Mapping[str, Any]) -> list[str]:
    quality, encoder, cut = tier["quality"], tier["encoder"], tier["cut"]
    lines = [
        f"cut       {cut['reason']}",
        f"encoder   {len(encoder['operators'])} operators, {encoder['macs']:,} MACs, {encoder['arena_bytes']:,} bytes of arena",
        f"fidelity  {quality['sqnr_db']:.1f} dB; same class as the float module for {quality['agreement']:.1%} "
        f"of {quality['samples']} samples",
    ]
    if "accuracy_int8" in quality:
        lines.append(f"accuracy  {quality['accuracy_float']:.1%} float, {quality['accuracy_int8']:.1%} with the int8 encoder")
        if "accuracy_head_float" in quality:
            lines[-1] += f" and a new head, {quality['accuracy_head_float']:.1%} with that head in float; on samples held out"
    if tier["sensitivities"]:
        lines += _bits_lines(tier["sensitivities"])
    return lines


def _board_lines(boards: Mapping[str, Any]) -> list[str]:
    lines = ["", f"{'board':<14}{'slot':>18}{'arena':>20}{'cached samples':>16}{'instructions':>14}"]
    for name, needs in boards.items():
        slot, arena = (_of(needs[f"{what}_bytes"], needs[f"{what}_available"]) for what in ("slot", "arena"))
        lines.append(f"{name:<14}{slot:>18}{arena:>20}{needs['cached_samples']:>16,}{_number(needs['instructions']):>14}")
        if not needs["is_training"]:
            arena = _of(needs["run_arena_bytes"], needs["run_arena_available"])
            lines.append(f"{'':<14}runs, does not train: {arena} bytes of arena for inference")
        lines.append(f"{'':<14}{needs['form']}: {needs['reason']}")
    return lines


def _form_lines(report: Mapping[str, Any]) -> list[str]:
    """For each board the forms that no other one beats, the one that it got, and the model's own."""
    lines: list[str] = []
    for board, best in report["pareto"].items():
        got = report["boards"][board]["form"]
        shown = [form for form in report["forms"] if form["form"] in (got, *best) or not form["is_early_exit"]]
        lines += ["", f"{board}: {len(shown)} of {len(report['forms'])} forms; * beaten by none, > chosen; report.html has all"]
        lines.append(
            f"  {'form':<30}{'accuracy':>9}{'slot':>11}{'arena':>11}{'instructions':>14}{'MACs':>13}{'features':>9}{'update':>9}"
        )
        lines += [_form_line(form, board, got, best) for form in shown]
    return lines


def _form_line(form: Mapping[str, Any], board: str, got: str, best: Sequence[str]) -> str:
    needs = form["boards"][board]
    marks = (">" if form["form"] == got else " ") + ("*" if form["form"] in best else " ")
    accuracy = accuracy_of(form)
    words = "-" if accuracy is None else f"{accuracy:.1%}"
    line = f"{marks}{form['form']:<30}{words:>9}{needs['slot_bytes']:>11,}{needs['arena_bytes']:>11,}"
    line += f"{_number(needs['instructions']):>14}{form['macs']:>13,}{form['embedding_bytes']:>9,}{form['update_bytes']:>9,}"
    return line if needs["is_training"] else f"{line}  {needs['refusal']}"


def _of(needed: int, available: int) -> str:
    return f"{needed:,} / {available:,}"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _bits_lines(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """A layer a line: its bits, bytes, and how far 4 bits in it alone leave the features' error below the features."""
    lines = ["", f"{'layer':<36}{'bits':>6}{'bytes':>12}{'4 bits alone':>16}"]
    for layer in layers:
        count = layer["bytes_4"] if layer["bits"] == 4 else layer["bytes_8"]
        alone = -10 * math.log10(layer["error"]) if layer["error"] > 0 else math.inf
        lines.append(f"{layer['operator']:<36}{layer['bits']:>6}{count:>12,}{alone:>13.1f} dB")
    return lines
