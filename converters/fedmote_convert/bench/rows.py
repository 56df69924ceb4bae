# SPDX-License-Identifier: Apache-2.0
"""A row for each model and stack, and what the rows of ours must be beside those of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmote.errors import FedmoteError
from fedmote_convert.bench.interpreters import run_device, run_tflite_micro
from fedmote_convert.bench.measures import int8_inputs, largest_difference
from fedmote_convert.bench.stacks import AEQ, FEDMOTE, Outcome
from fedmote_convert.bench.subjects import NUM_RANDOM, NUM_REAL, Subject
from fedmote_convert.convert import sqnr_db

# Of the processor time of litert-torch with ai-edge-quantizer: what is required, and what is aimed at.
SECONDS_RATIO, SECONDS_AIM = 1 / 5, 1 / 10
SIZE_RATIO = 1.0
ACCURACY_DROP = 0.005
ACCURACY_BELOW_PEER = 0.002
_FLOAT_DUST = 1e-9  # differences of counts divided by counts

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A figure and its bound.

    Attributes:
        model: name.
        what: is measured.
        measured: the figure.
        limit: that it may at most be.
        aim: that it had better be, or None.
        error: standard error of the figure, from the choice of test samples; None where it has none.
    """

    model: str
    what: str
    measured: float
    limit: float
    aim: float | None = None
    error: float | None = None

    @property
    def text(self) -> str:
        """met, met with the aim, or missed."""
        if self.measured > self.limit + _FLOAT_DUST:
            return "missed"
        return "aim met" if self.aim is not None and self.measured <= self.aim + _FLOAT_DUST else "met"


def row_of(subject: Subject, outcome: Outcome, install_bytes: int) -> Row:
    """What a stack needed for a model and what it made of it.

    `accuracy_float` and `accuracy_int8` are the model's metric, which the row names. `max_abs_diff_lsb` is the largest difference
    of an int8 output between the device's C, which compiles the stack's file, and TensorFlow Lite Micro; None with a note where
    the file cannot be compiled. `paired_error` is the standard error of the difference between this stack's metric and ours:
    both decide the same samples, so only those count that one alone decides rightly.
    """
    content, kept = subject.content(outcome), subject.kept(outcome)
    difference, note = _device_difference(subject, outcome)
    return {
        "model": subject.name,
        "stack": outcome.stack,
        "seconds": round(outcome.seconds, 3),
        "checked_seconds": None if outcome.checked_seconds is None else round(outcome.checked_seconds, 3),
        "install_bytes": install_bytes,
        "file_bytes": len(outcome.tflite),
        "metric": subject.model.entry.metric,
        "paired_error": _paired_error(subject, outcome),
        "accuracy_float": subject.float_score,
        "accuracy_int8": kept.score,
        "agreement": kept.agreement,
        "sqnr_db": round(sqnr_db(subject.exact_features, kept.features), 2),
        "max_abs_diff_lsb": difference,
        "extra_ops": content.extra_operators,
        "samples": len(subject.model.data.x_test),
        "note": note,
    }


def _paired_error(subject: Subject, outcome: Outcome) -> float | None:
    """Standard error of a stack's accuracy less ours; None for ours, and for metrics that no single sample has."""
    one, other = subject.kept(subject.outcomes[0]).is_right, subject.kept(outcome).is_right
    if outcome.stack == FEDMOTE or one is None or other is None:
        return None
    differing = one.astype(float) - other.astype(float)
    return float(differing.std() / np.sqrt(len(differing)))


def _device_difference(subject: Subject, outcome: Outcome) -> tuple[int | None, str | None]:
    inputs = subject.inputs(outcome)
    if inputs.dtype != np.int8 or subject.content(outcome).output.type != "INT8":
        return None, "its ends are not int8"
    x = int8_inputs(inputs.astype(np.int8), NUM_REAL, NUM_RANDOM)
    try:
        ours = run_device(outcome.tflite, x)
    except FedmoteError as error:
        return None, f"the device's C cannot run it: {error}"
    return largest_difference(ours, run_tflite_micro(outcome.tflite, x)), None


def verdicts_of(rows: list[Row]) -> list[Verdict]:
    """What is required of our rows, beside those of litert-torch with ai-edge-quantizer where there are any."""
    peers = {row["model"]: row for row in rows if row["stack"] == AEQ}
    verdicts = []
    for ours in (row for row in rows if row["stack"] == FEDMOTE):
        model, peer = ours["model"], peers.get(ours["model"])
        drop = ours["accuracy_float"] - ours["accuracy_int8"]
        verdicts.append(Verdict(model, "drop of int8 against float", drop, ACCURACY_DROP))
        if ours["max_abs_diff_lsb"] is not None:
            verdicts.append(Verdict(model, "C against TensorFlow Lite Micro, LSB", ours["max_abs_diff_lsb"], 0))
        if peer is None:
            continue
        below = peer["accuracy_int8"] - ours["accuracy_int8"]
        verdicts += [
            Verdict(model, "processor time, of the peer's", ours["seconds"] / peer["seconds"], SECONDS_RATIO, SECONDS_AIM),
            Verdict(model, "file, of the peer's", ours["file_bytes"] / peer["file_bytes"], SIZE_RATIO),
            Verdict(model, "int8 below the peer's", below, ACCURACY_BELOW_PEER, error=peer["paired_error"]),
        ]
    return verdicts
