# SPDX-License-Identifier: Apache-2.0
"""The encoder's arena as a picture: operators from left to right, addresses from bottom to top, a box for each activation.

A box reaches from the operator that makes the activation to the last one that reads it. Boxes may overlap where an operator
writes its output over an input that it is done with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from fedmote_convert.pareto import short

_WIDTH, _HEIGHT = 900, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 12, 40
_COLOURS = 6
_LETTER = 6.2  # width of a letter in the picture


def svg(arena: Mapping[str, Any]) -> str:
    """The arena of a report's tier (`bytes`, `activations`) as inline SVG; colours come from the page's classes."""
    boxes, total = arena["activations"], max(1, arena["bytes"])
    steps = max(box["last"] for box in boxes) + 2  # from the input, step -1, to the end of the last one's
    across, up = (_WIDTH - _LEFT - _RIGHT) / steps, (_HEIGHT - _TOP - _BOTTOM) / total
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="arena of {total} bytes over {steps - 1} operators">']
    for share in range(5):
        y = _HEIGHT - _BOTTOM - share / 4 * total * up
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(share / 4 * total)}</text>')
    every = math.ceil(steps / 24)
    for step in range(0, steps, every):
        name = "in" if step == 0 else str(step)
        x = _LEFT + (step + 0.5) * across
        parts.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{name}</text>')
    for index, box in enumerate(boxes):
        x, width = _LEFT + (box["first"] + 1) * across, (box["last"] - box["first"] + 1) * across
        height = box["bytes"] * up
        y = _HEIGHT - _BOTTOM - box["offset"] * up - height
        parts.append(_box(box, index % _COLOURS + 1, x, y, width, height))
    parts.append(
        f'<text class="axis" x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">operator, as numbered below</text>'
    )
    return "".join(parts) + "</svg>"


def _box(box: Mapping[str, Any], colour: int, x: float, y: float, width: float, height: float) -> str:
    words = f"{box['name']}: {box['bytes']:,} bytes at {box['offset']:,}, from operator {box['first'] + 1} to {box['last'] + 1}"
    parts = [
        f'<g><rect class="box c{colour}" x="{x + 1:.1f}" y="{y:.1f}" width="{max(1.0, width - 2):.1f}" height="{height:.1f}"/>'
    ]
    letters = int((width - 8) / _LETTER)
    if height >= 13 and letters >= 4:
        name = box["name"] if len(box["name"]) <= letters else box["name"][: letters - 1] + "\u2026"
        parts.append(f'<text class="label" x="{x + 5:.1f}" y="{y + min(height / 2 + 4, 14):.1f}">{escape(name)}</text>')
    parts.append(f"<title>{escape(words)}</title></g>")
    return "".join(parts)
