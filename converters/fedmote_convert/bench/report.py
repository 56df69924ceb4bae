# SPDX-License-Identifier: Apache-2.0
"""What a measurement tells: one dictionary for programs, the same as tables for people."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from fedmote.cli.table import write_table
from fedmote_convert.bench.fidelity import MEASURES, Finding, worst_of
from fedmote_convert.bench.rows import Row, verdicts_of

_ROW_COLUMNS = (
    *("model", "stack", "seconds", "installs MB", "file B", "metric", "float", "int8", "SQNR dB", "C - TFLM"),
    "extra operators",
)
_VERDICT_KEYS = ("model", "what", "measured", "error", "limit", "aim", "verdict")
_VERDICT_COLUMNS = {"error": "standard error", "limit": "at most"}
_HOLDS = {True: "holds", False: "misses", None: "not measured"}


def report_of(rows: Sequence[Row], findings: Sequence[Finding], skipped: Sequence[str]) -> dict[str, Any]:
    """The report.

    Args:
        rows: of every model and stack.
        findings: of every measure and model.
        skipped: what was left out, and why.
    """
    lines = []
    for measure in MEASURES:
        found = [finding for finding in findings if finding.number == measure.number]
        if not found:
            continue
        worst = worst_of(found)
        lines.append(
            {
                "number": measure.number,
                "what": measure.what,
                "limit": measure.limit,
                "measured": worst.measured,
                "model": worst.model,
                "models": sum(finding.holds is not None for finding in found),
                "holds": worst.holds,
                "findings": [{"model": one.model, "measured": one.measured, "holds": one.holds} for one in found],
            }
        )
    verdicts = [{**vars(verdict), "verdict": verdict.text} for verdict in verdicts_of(list(rows))]
    return {"rows": list(rows), "verdicts": verdicts, "fidelity": lines, "skipped": list(skipped)}


def text_of(report: dict[str, Any], is_detailed: bool) -> str:
    """The report as tables.

    Args:
        report: as `report_of` makes it.
        is_detailed: each model's findings as well.
    """
    out = io.StringIO()
    out.write("each row: one model by one stack, same weights and calibration samples; seconds of processor time, warm\n\n")
    write_table(_ROW_COLUMNS, [_cells(row) for row in report["rows"]], out)
    out.write("\nours against what is required\n\n")
    verdicts = [[_figure(verdict[key]) for key in _VERDICT_KEYS] for verdict in report["verdicts"]]
    write_table([_VERDICT_COLUMNS.get(key, key) for key in _VERDICT_KEYS], verdicts, out)
    out.write("\nfidelity: the worst of the models that were measured\n\n")
    write_table(("", "what", "limit", "measured", "model", "models", ""), [_line_cells(line) for line in report["fidelity"]], out)
    if is_detailed:
        out.write("\n")
        rows = [(line["number"], *_finding_cells(one)) for line in report["fidelity"] for one in line["findings"]]
        write_table(("", "model", "measured", ""), rows, out)
    notes = [f"{row['model']}, {row['stack']}: {row['note']}" for row in report["rows"] if row["note"]]
    notes += [f"skipped: {reason}" for reason in report["skipped"]]
    return out.getvalue() + "".join(f"\n{note}" for note in notes) + ("\n" if notes else "")


def is_missed(report: dict[str, Any]) -> bool:
    """Whether any bound is not kept."""
    return any(line["holds"] is False for line in report["fidelity"]) or any(
        verdict["verdict"] == "missed" for verdict in report["verdicts"]
    )


def _cells(row: Row) -> list[object]:
    extra = ", ".join(f"{count} {name}" for name, count in row["extra_ops"].items()) or "none"
    return [
        row["model"],
        row["stack"],
        f"{row['seconds']:.2f}",
        f"{row['install_bytes'] / 1e6:,.1f}",
        f"{row['file_bytes']:,}",
        row["metric"],
        f"{row['accuracy_float']:.2%}",
        f"{row['accuracy_int8']:.2%}",
        f"{row['sqnr_db']:.1f}",
        row["max_abs_diff_lsb"],
        extra,
    ]


def _figure(value: object) -> object:
    return f"{value:.4f}" if isinstance(value, float) else value


def _line_cells(line: dict[str, Any]) -> list[object]:
    return [*(line[key] for key in ("number", "what", "limit", "measured", "model", "models")), _HOLDS[line["holds"]]]


def _finding_cells(finding: dict[str, Any]) -> list[object]:
    return [finding["model"], finding["measured"], _HOLDS[finding["holds"]]]
