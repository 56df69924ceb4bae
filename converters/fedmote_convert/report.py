# SPDX-License-Identifier: Apache-2.0
"""What a conversion tells: `report.json` for programs, a table for people. Both from one dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedmote.package.boards import Board
from fedmote.package.graph import Graph
from fedmote_convert.convert import Conversion


def report_of(conversion: Conversion, boards: Sequence[Board], files: Mapping[str, int]) -> dict[str, Any]:
    """The report: a pure function of the conversion, without times or paths, so that equal inputs give equal bytes.

    Args:
        conversion: the result.
        boards: that it was made for.
        files: sizes in bytes by name, the report itself left out.
    """
    header = conversion.package.header
    candidates = [
        {"cut": c.name, "module": c.module, "features": c.features, "refusal": c.refusal or None}
        for c in conversion.cut.candidates
    ]
    return {
        "model": conversion.model_id,
        "version": conversion.package.host.version,
        "cut": {
            "name": conversion.cut.name,
            "reason": conversion.cut.reason,
            "features": conversion.cut.features,
            "candidates": candidates,
        },
        "encoder": {"macs": header.macs, "arena_bytes": header.encoder_bytes, "operators": operators_of(conversion.template)},
        "head": [vars(layer) for layer in conversion.head],
        "boards": {board.name: _board(conversion, board) for board in boards},
        "quality": {name: value for name, value in vars(conversion.quality).items() if value is not None},
        "ranges": {name: list(limits) for name, limits in conversion.ranges.items()},
        "files": dict(files),
    }


def operators_of(graph: Graph) -> list[dict[str, Any]]:
    """What the report says of each operator."""
    return [
        {
            "operator": op.kind.value,
            "name": op.name,
            "activation": op.activation.value,
            "output": op.output,
            "shape": list(graph.activations[op.output].shape),
        }
        for op in graph.ops
    ]


def _board(conversion: Conversion, board: Board) -> dict[str, Any]:
    package = conversion.packages[board.name]
    needs = {name: value for name, value in vars(package.cost_on(board)).items() if name != "board"}
    return {"hash": package.hash.hex(), **needs}


def to_json(report: Mapping[str, Any]) -> str:
    """The report as text for `report.json`."""
    return json.dumps(report, indent=2, sort_keys=False, allow_nan=False) + "\n"


def table(report: Mapping[str, Any]) -> str:
    """The report as lines for people: what fits which board, what is kept, what was written."""
    quality, encoder, cut = report["quality"], report["encoder"], report["cut"]
    lines = [
        f"model     {report['model']}, version {report['version']}",
        f"cut       {cut['reason']}",
        f"encoder   {len(encoder['operators'])} operators, {encoder['macs']:,} MACs, {encoder['arena_bytes']:,} bytes of arena",
        f"fidelity  {quality['sqnr_db']:.1f} dB; same class as the float module for {quality['agreement']:.1%} "
        f"of {quality['samples']} samples",
    ]
    if "accuracy_int8" in quality:
        lines.append(f"accuracy  {quality['accuracy_float']:.1%} float, {quality['accuracy_int8']:.1%} with the int8 encoder")
    lines += ["", f"{'board':<14}{'slot':>18}{'arena':>20}{'cached samples':>16}"]
    for name, needs in report["boards"].items():
        slot = f"{needs['slot_bytes']:,} / {needs['slot_available']:,}"
        arena = f"{needs['arena_bytes']:,} / {needs['arena_available']:,}"
        lines.append(f"{name:<14}{slot:>18}{arena:>20}{needs['cached_samples']:>16,}")
    lines += ["", f"{'file':<36}{'bytes':>12}"]
    lines += [f"{name:<36}{size:>12,}" for name, size in report["files"].items()]
    return "\n".join(lines) + "\n"
