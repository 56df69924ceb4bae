# SPDX-License-Identifier: Apache-2.0
"""Recipes of the quantization, compared on samples that neither calibrate nor judge: the default is chosen here.

What is compared is the noise of the features. Decisions that int8 takes otherwise than float are a few in a thousand, by chance
to the better or to the worse: their balance tells recipes apart only on test sets that are far larger than these.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedmote.cli.table import write_table
from fedmote.lab.zoo.networks import without_head
from fedmote.lab.zoo.zoo import Model, outputs_of
from fedmote.package.partition import run_features
from fedmote_convert.bench.subjects import convert_here
from fedmote_convert.calibration import RangeRule, Recipe
from fedmote_convert.convert import sqnr_db

# The default comes last.
RECIPES = {
    "min-max": Recipe(is_equalised=False, correction_samples=0),
    "p99.99": Recipe(RangeRule.PERCENTILE, is_equalised=False, correction_samples=0),
    "mse": Recipe(RangeRule.MSE, is_equalised=False, correction_samples=0),
    "equalised": Recipe(correction_samples=0),
    "corrected": Recipe(is_equalised=False),
    "both, mse": Recipe(RangeRule.MSE),
    "both, no headroom": Recipe(headroom=1.0),
    "both, last bits": Recipe(is_steady=False),
    "both": Recipe(),
}

RecipeRow = dict[str, Any]


def recipe_row(model: Model) -> RecipeRow:
    """Of a model the SQNR in dB of its features by each recipe, on the samples that are kept for choosing."""
    x = model.data.x_choice
    exact = outputs_of(without_head(model.module), x).reshape(len(x), -1)
    decibels = {name: _decibels(model, recipe, exact) for name, recipe in RECIPES.items()}
    return {"model": model.entry.name, "samples": len(x), "sqnr_db": decibels}


def _decibels(model: Model, recipe: Recipe, exact: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    features = run_features(convert_here(model, recipe).package, model.data.x_choice)
    return round(sqnr_db(exact, features.reshape(exact.shape)), 2)


def recipe_text(rows: Sequence[RecipeRow], skipped: Sequence[str]) -> str:
    """The rows as a table."""
    out = io.StringIO()
    out.write("SQNR of the features in dB, on samples that neither calibrate nor judge; the last recipe is the default\n\n")
    cells = [[row["model"], row["samples"], *(f"{row['sqnr_db'][name]:.1f}" for name in RECIPES)] for row in rows]
    write_table(("model", "samples", *RECIPES), cells, out)
    return out.getvalue() + "".join(f"\nskipped: {reason}" for reason in skipped) + ("\n" if skipped else "")
