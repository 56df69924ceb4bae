# SPDX-License-Identifier: Apache-2.0
"""`report.html`: the report for a browser. One file without scripts, without anything from elsewhere, in light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from fedmote_convert import arena_map, pareto
from fedmote_convert.pareto import accuracy_of

_UNKNOWN = "\u2013"
_STYLE = """
:root { color-scheme: light dark; --page: #f8fafc; --card: #fff; --text: #0f172a; --quiet: #5b6678; --line: #dfe5ec;
  --accent: #2563eb; --amber: #c26a05; --green: #047857; --red: #b91c1c; --shade: #eef2f7;
  --c1: #93b4f5; --c2: #f2c078; --c3: #86cfae; --c4: #d3a6ea; --c5: #f0a3a3; --c6: #8fd0dd; }
@media (prefers-color-scheme: dark) { :root { --page: #0b1120; --card: #131c2e; --text: #e5ebf4; --quiet: #97a5ba;
  --line: #263348; --accent: #7ba6ff; --amber: #f0ac4e; --green: #45c594; --red: #f28b82; --shade: #1b2740;
  --c1: #34518f; --c2: #7b5a1f; --c3: #22614a; --c4: #5d3a75; --c5: #7c3c3c; --c6: #225e6b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; margin: 0; } h2 { font-size: 20px; margin: 40px 0 12px; } h3 { font-size: 16px; margin: 2px 0 10px; }
p { margin: 6px 0; max-width: 80ch; } .quiet { color: var(--quiet); }
section.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px; margin: 12px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin: 16px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.tile b { display: block; font-size: 22px; font-weight: 600; } .tile span { color: var(--quiet); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; } td.text, th.text { text-align: left; } tr.chosen td { background: var(--shade); }
td.bar { position: relative; } td.bar i { position: absolute; right: 0; bottom: 0; height: 3px; background: var(--accent); }
td.hit { background: color-mix(in srgb, var(--accent) var(--share), transparent); }
td.miss { background: color-mix(in srgb, var(--red) var(--share), transparent); }
.badge { border-radius: 99px; padding: 1px 9px; font-size: 12px; border: 1px solid currentColor; }
.yes { color: var(--green); } .no { color: var(--amber); }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--quiet); font: 11px system-ui, sans-serif; }
svg text.label { fill: var(--text); } svg .grid { stroke: var(--line); }
svg .budget { stroke: var(--red); stroke-dasharray: 5 4; }
svg .point { fill: none; stroke-width: 1.6; } svg .ring { fill: none; stroke: var(--text); stroke-width: 1.6; }
svg .w1 { stroke: var(--accent); } svg .w2 { stroke: var(--amber); } svg .w3 { stroke: var(--green); }
svg .w1.best { fill: var(--accent); } svg .w2.best { fill: var(--amber); } svg .w3.best { fill: var(--green); }
svg .box { stroke: var(--card); stroke-width: 1; fill-opacity: .85; }
svg .c1 { fill: var(--c1); } svg .c2 { fill: var(--c2); } svg .c3 { fill: var(--c3); }
svg .c4 { fill: var(--c4); } svg .c5 { fill: var(--c5); } svg .c6 { fill: var(--c6); }
summary { cursor: pointer; color: var(--accent); margin: 8px 0; } code { font-size: 13px; }
"""


def page(report: Mapping[str, Any], tiers: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page: a pure function of the report.

    Args:
        report: as in `report.json`.
        tiers: its tiers by name.
    """
    body = [_head(report), _boards(report), _forms(report)]
    body += [_tier(name, tier, report) for name, tier in tiers.items()]
    body.append(_files(report))
    title = escape(f"{report['model']}: conversion")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><main>\n{chr(10).join(part for part in body if part)}\n</main></body></html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    held_out = report["held_out"]
    words = "No labels: accuracies are not known."
    if held_out:
        words = f"Accuracies are those of {held_out['samples']} labelled samples that trained no head: {held_out['rule']}. "
        words += "Whether the module itself has seen them, the conversion cannot know."
    return f"<h1>{escape(report['model'])}</h1><p class='quiet'>Checkpoint {report['version']}. {escape(words)}</p>"


# --- boards and forms ------------------------------------------------------------------------------------------------


def _boards(report: Mapping[str, Any]) -> str:
    head = ("board", "form", "", "slot", "arena", "arena to run", "cached samples", "flash", "instructions")
    rows = []
    for name, needs in report["boards"].items():
        badge = ("yes", "trains") if needs["is_training"] else ("no", "runs, does not train")
        cells = [
            _text(name),
            _text(needs["form"]),
            f"<td class='text'><span class='badge {badge[0]}'>{badge[1]}</span></td>",
            _room(needs["slot_bytes"], needs["slot_available"]),
            _room(needs["arena_bytes"], needs["arena_available"]),
            _room(needs["run_arena_bytes"], needs["run_arena_available"]),
            _number(needs["cached_samples"]),
            _number(needs["flash_bytes"]),
            _number(needs["instructions"]),
        ]
        rows += [_row(cells), f"<tr><td></td><td class='text quiet' colspan='8'>{escape(needs['reason'])}</td></tr>"]
    note = (
        "<p class='quiet'>Bytes everywhere. Flash: image and package in its slot, where the image has been measured. "
        "Instructions: of the encoder for one sample, predicted, where the board's kernels have been counted.</p>"
    )
    return f"<h2>Boards</h2><section class='card'>{_table(head, rows, texts=3)}{note}</section>"


def _room(needed: int, available: int) -> str:
    share = min(1.0, needed / available)
    return f"<td class='bar'>{needed:,} <span class='quiet'>of {available:,}</span><i style='width:{100 * share:.0f}%'></i></td>"


def _forms(report: Mapping[str, Any]) -> str:
    panels = pareto.panels_of(report)
    parts = ["<h2>Forms</h2>"]
    if panels:
        parts.append(
            "<p class='quiet'>Every cut of the network: with the model's own head, or left early with a new one. Filled: no "
            "other form is as accurate and needs as little. Ringed: what the board got. Dashed: its budget. Colour: width, "
            "blue whole, amber half or more, green less.</p>"
        )
    for board in report["boards"]:
        drawn = "".join(f"<div>{pareto.svg(panel)}</div>" for panel in panels if panel.board == board)
        rows = [_form(form, board, report) for form in report["forms"]]
        head = (
            "form",
            "cut behind",
            "width",
            "accuracy",
            "own head",
            "slot",
            "arena",
            "instructions",
            "MACs",
            "embedding",
            "update",
            "",
        )
        details = f"<details><summary>all {len(rows)} forms on {escape(board)}</summary>{_table(head, rows, texts=2)}</details>"
        parts.append(f"<section class='card'><h3>{escape(board)}</h3><div class='panels'>{drawn}</div>{details}</section>")
    return "".join(parts)


def _form(form: Mapping[str, Any], board: str, report: Mapping[str, Any]) -> str:
    needs = form["boards"][board]
    best = "<b>" if form["form"] in report["pareto"][board] else ""
    accuracy = accuracy_of(form) if form["accuracy"] is None else form["accuracy"]
    cells = [
        f"<td class='text'>{best}{escape(form['form'])}{'</b>' if best else ''}</td>",
        _text(form["module"] + (", mean" if form["is_averaged"] else "")),
        _number(form["width"]),
        _percent(accuracy if form["is_early_exit"] else form["accuracy"]),
        _percent(form["own_head_accuracy"]),
        _number(needs["slot_bytes"]),
        _number(needs["arena_bytes"]),
        _number(needs["instructions"]),
        _number(form["macs"]),
        _number(form["embedding_bytes"]),
        _number(form["update_bytes"]),
        f"<td class='text quiet'>{escape(needs['refusal'] or '')}</td>",
    ]
    return _row(cells, "chosen" if form["form"] == report["boards"][board]["form"] else "")


# --- one tier --------------------------------------------------------------------------------------------------------


def _tier(name: str, tier: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    quality, encoder, arena = tier["quality"], tier["encoder"], tier["arena"]
    tiles = [
        (f"{encoder['macs']:,}", "MACs per sample"),
        (f"{encoder['arena_bytes']:,}", f"bytes of arena; no plan below {arena['lower_bound_bytes']:,}"),
        (f"{quality['sqnr_db']:.1f} dB", "features, signal to quantization noise"),
        (f"{quality['agreement']:.1%}", f"same class as the float module, {quality['samples']} samples"),
    ]
    if "accuracy_int8" in quality:
        tiles.append((f"{quality['accuracy_float']:.1%}", "accuracy of the float module"))
        tiles.append((f"{quality['accuracy_int8']:.1%}", "accuracy of the int8 encoder with its head"))
    if "accuracy_head_float" in quality:
        tiles.append((f"{quality['accuracy_head_float']:.1%}", "accuracy of the float encoder with the new head"))
    shown = "".join(f"<div class='tile'><b>{escape(value)}</b><span>{escape(words)}</span></div>" for value, words in tiles)
    heading = f"Tier {name}" if name else "The form"
    parts = [
        f"<h2>{escape(heading)}</h2><p>{escape(tier['cut']['reason'])}</p><div class='tiles'>{shown}</div>",
        f"<section class='card'><h3>Arena</h3>{arena_map.svg(arena)}</section>",
        f"<section class='card'><h3>Operators</h3>{_operators(tier)}</section>",
        f"<section class='card'><h3>Package</h3>{_sections(tier)}</section>",
    ]
    if tier["sensitivities"]:
        parts.append(f"<section class='card'><h3>Bits of the weights</h3>{_bits(tier['sensitivities'])}</section>")
    if tier["confusion"] is not None:
        parts.append(f"<section class='card'><h3>Confusion</h3>{_confusion(tier['confusion'])}</section>")
    return "".join(parts)


def _operators(tier: Mapping[str, Any]) -> str:
    operators, ranges = tier["encoder"]["operators"], tier["ranges"]
    boards = list(operators[0]["instructions"]) if operators else []
    counted = [board for board in boards if any(one["instructions"][board] is not None for one in operators)]
    most = max([1, *(one["macs"] for one in operators)])
    head = ("#", "operator", "layer", "shape", "range", "MACs", "weights", "bits", "SQNR dB", "largest error", *counted)
    rows = []
    for number, one in enumerate(operators, 1):
        limits = ranges.get(one["output"])
        fused = "" if one["activation"] == "NONE" else f" + {one['activation']}"
        cells = [
            _number(number),
            _text(one["operator"] + fused),
            _text(one["name"]),
            _text("\u00d7".join(str(size) for size in one["shape"][1:])),
            _text("" if limits is None else f"{limits[0]:.3g} \u2026 {limits[1]:.3g}"),
            f"<td class='bar'>{one['macs']:,}<i style='width:{100 * one['macs'] / most:.0f}%'></i></td>",
            _number(one["weight_bytes"] + one["bias_bytes"]),
            _number(one["weight_bits"] or None),
            f"<td>{one['sqnr_db']:.1f}</td>",
            f"<td>{one['largest_error']:.3g}</td>",
            *(_number(one["instructions"][board]) for board in counted),
        ]
        rows.append(_row(cells))
    note = (
        "<p class='quiet'>Errors of int8 against float have accumulated up to each operator. Columns of boards: predicted "
        "instructions for one sample.</p>"
    )
    return _table(head, rows, texts=5) + note


def _sections(tier: Mapping[str, Any]) -> str:
    names = list(next(iter(tier["sections"].values())))
    rows = [
        _row([_text(board), *(_number(sizes[name]) for name in names), _number(sum(sizes.values()))])
        for board, sizes in tier["sections"].items()
    ]
    return _table(("board", *names, "device form, bytes"), rows, texts=1)


def _bits(layers: Sequence[Mapping[str, Any]]) -> str:
    """What four bits cost in each layer, and what it got."""
    rows = [
        _row(
            [
                _text(layer["operator"]),
                _number(layer["bits"]),
                _number(layer["bytes_8"]),
                _number(layer["bytes_4"]),
                f"<td>{layer['error']:.2g}</td>",
            ]
        )
        for layer in layers
    ]
    note = "<p class='quiet'>Error: of the features with four bits in this layer alone, relative to the features' energy.</p>"
    return _table(("layer", "bits", "bytes with 8", "bytes with 4", "error"), rows, texts=1) + note


def _confusion(counts: Sequence[Sequence[int]]) -> str:
    head = ("class \u2193 chosen \u2192", *(str(index) for index in range(len(counts))), "recall")
    rows = []
    for label, row in enumerate(counts):
        total = sum(row)
        cells = [_text(str(label))]
        for index, count in enumerate(row):
            share = f"{100 * count / total:.0f}%" if total else "0%"
            kind = "hit" if index == label else "miss"
            cells.append(f"<td class='{kind}' style='--share:{share}'>{count or ''}</td>")
        cells.append(_percent(row[label] / total if total else None))
        rows.append(_row(cells))
    return _table(head, rows, texts=1)


def _files(report: Mapping[str, Any]) -> str:
    rows = [_row([f"<td class='text'><code>{escape(name)}</code></td>", _number(size)]) for name, size in report["files"].items()]
    return f"<h2>Files</h2><section class='card'>{_table(('file', 'bytes'), rows, texts=1)}</section>"


# --- cells -----------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[str], texts: int) -> str:
    """A table whose first `texts` columns are words."""
    cells = "".join(f"<th{' class=text' if index < texts else ''}>{escape(name)}</th>" for index, name in enumerate(head))
    return f"<div class='scroll'><table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _row(cells: Iterable[str], kind: str = "") -> str:
    return f"<tr{f' class={kind}' if kind else ''}>{''.join(cells)}</tr>"


def _text(value: str) -> str:
    return f"<td class='text'>{escape(value)}</td>"


def _number(value: float | None) -> str:
    return f"<td>{_UNKNOWN if value is None else format(value, ',')}</td>"


def _percent(value: float | None) -> str:
    return f"<td>{_UNKNOWN if value is None else format(value, '.1%')}</td>"
