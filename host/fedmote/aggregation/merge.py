# SPDX-License-Identifier: Apache-2.0
"""The merge core: a weighted mean per tensor and per coordinate, over updates of different coverage.

An update says what a participant learned as differences d_k to the old value w, for the coordinates that it trained
(its coverage S_k), with the weight n_k. Three rules answer what a participant counts for that did not train a coordinate:

    ignore   w + sum_{k covers} n_k d_k / sum_{k covers} n_k      the mean over those who trained it
    old      w + sum_{k covers} n_k d_k / sum_{all k} n_k         the others vote for the old value
    zero         sum_{k covers} n_k (w + d_k) / sum_{all k} n_k   the others vote for a zero

A coordinate that nobody trained (or only participants of weight 0) keeps its old value under every rule. With `ignore`, a
head from a device and a full model from its partner meet in the head, and the encoder comes from the partner alone; where
all updates of a round cover the same tensors it is the FedAvg step of Centaur's two alternating phases (arXiv
2211.04175): sum n_k w_k / sum n_k, because w + sum n_k (w_k - w) / N equals it. `zero` is the sparse-weights rule of
ZeroFL (arXiv 2208.02507).

Sums are kept in float64, in ascending order of the participants' ids: arrival order cannot change a bit of the result, and
memory holds two arrays per tensor however many participants report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import RoundError
from fedmote.tensors import Tensors, finite_complaint, shape_complaint

Uncovered = Literal["ignore", "old", "zero"]
Weights = Literal["examples", "one"]


@dataclass(frozen=True)
class Update:
    """What one participant learned in one round.

    Attributes:
        participant: id; at most one update per participant is merged.
        num_examples: the weight under `weights="examples"`.
        tensors: by name, new minus base, float32, in the shape of the model's tensor.
        coverage: by name, True where a coordinate was trained; None, or no entry for a tensor, means all of it.
        num_members: participants that it is the mean of: the weight under `weights="one"`.
    """

    participant: str
    num_examples: int
    tensors: Mapping[str, NDArray[np.float32]]
    coverage: Mapping[str, NDArray[np.bool_]] | None = None
    num_members: int = 1


@dataclass
class _Sum:
    """Running sums of one tensor: n_k * d_k and n_k of those who trained each coordinate."""

    deltas: NDArray[np.float64]
    weight: NDArray[np.float64]
    is_covered: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.is_covered = np.zeros(self.deltas.shape, dtype=np.bool_)

    def add(self, delta: NDArray[np.float32], mask: NDArray[np.bool_] | None, weight: float, scale: float) -> None:
        if mask is None:
            self.deltas += (weight * scale) * delta.astype(np.float64)
            self.weight += weight
            self.is_covered[...] = True
        else:
            # Values outside the mask may be anything, even not finite: they were never meant to count.
            self.deltas[mask] += (weight * scale) * delta[mask].astype(np.float64)
            self.weight[mask] += weight
            self.is_covered |= mask


class MergeRun:
    """One merge, fed with updates one at a time so that only one is in memory.

    `add` takes updates in ascending order of their participants' ids; `result` ends the merge.
    """

    def __init__(self, old: Mapping[str, NDArray[np.float32]], uncovered: Uncovered, weights: Weights) -> None:
        if uncovered not in get_args(Uncovered) or weights not in get_args(Weights):
            raise RoundError(
                f"no merge rule {uncovered!r} with weights {weights!r}; known are {get_args(Uncovered)} and {get_args(Weights)}"
            )
        self._old = old
        self._uncovered: Uncovered = uncovered
        self._weights: Weights = weights
        self._sums: dict[str, _Sum] = {}
        self._total = 0.0
        self._last: str | None = None

    def add(self, update: Update, weight: float | None = None, scales: Mapping[str, float] | None = None) -> None:
        """Add one update.

        Args:
            update: what a participant learned.
            weight: what it counts for, instead of `weights`; None: by `weights`.
            scales: factor of its deltas by tensor, in [0, 1]; it counts for no less than an update that is not scaled. None, or
                no entry for a tensor: as it is.

        Raises:
            RoundError: the participant is not later in order than the one before, or the update does not fit the model.
        """
        if self._last is not None and update.participant <= self._last:
            raise RoundError(
                f"update of {update.participant} after {self._last}: merge in ascending order, each participant once"
            )
        check_update(update, self._old)
        self._last = update.participant
        if weight is None:
            weight = float(update.num_examples if self._weights == "examples" else update.num_members)
        self._total += weight
        if weight == 0.0:
            return
        for name, delta in update.tensors.items():
            if name not in self._sums:
                shape = self._old[name].shape
                self._sums[name] = _Sum(np.zeros(shape), np.zeros(shape))
            self._sums[name].add(delta, (update.coverage or {}).get(name), weight, (scales or {}).get(name, 1.0))

    def result(self) -> Tensors:
        """Return the merged model: the old model's names and shapes, float32, memory of its own.

        Raises:
            RoundError: a merged value is not finite in float32.
        """
        merged = {name: np.array(values, dtype=np.float32) for name, values in self._old.items()}
        for name, total in self._sums.items():
            merged[name] = self._merge_tensor(merged[name], total)
        complaint = finite_complaint(merged)
        if complaint:
            raise RoundError(f"the merged model is refused: {complaint}; the model stays as it was")
        return merged

    def _merge_tensor(self, old: NDArray[np.float32], total: _Sum) -> NDArray[np.float32]:
        wide = old.astype(np.float64)
        divisor = total.weight if self._uncovered == "ignore" else np.full(old.shape, self._total)
        # Uncovered coordinates divide by one instead of zero; np.where drops the value.
        safe = np.where(total.is_covered, divisor, 1.0)
        step = total.deltas / safe
        if self._uncovered == "zero":
            step += (total.weight / safe - 1.0) * wide
        with np.errstate(over="ignore"):  # an overflow becomes an infinity, which `result` refuses by name
            return np.where(total.is_covered, wide + step, wide).astype(np.float32)


def check_update(update: Update, old: Mapping[str, NDArray[np.float32]]) -> None:
    """Refuse what cannot be merged: RoundError names the participant and the reason."""
    complaint = _complaint(update, old)
    if complaint:
        raise RoundError(f"update of {update.participant}: {complaint}")


def _complaint(update: Update, old: Mapping[str, NDArray[np.float32]]) -> str | None:
    """Say why an update cannot be merged, or None."""
    if update.num_examples < 0:
        return f"{update.num_examples} examples"
    complaint = shape_complaint(update.tensors, old)
    if complaint:
        return complaint
    covered: Tensors = {}
    for name, delta in update.tensors.items():
        mask = (update.coverage or {}).get(name)
        if mask is not None and mask.shape != delta.shape:
            return f"coverage of {name} has shape {mask.shape}, expected {delta.shape}"
        covered[name] = delta if mask is None else delta[mask]
    return finite_complaint(covered)


def merge(
    old: Mapping[str, NDArray[np.float32]],
    updates: Iterable[Update],
    uncovered: Uncovered = "ignore",
    weights: Weights = "examples",
) -> Tensors:
    """Merge updates into a model; the order in which they are given does not matter.

    Args:
        old: the model that the updates are measured against.
        updates: at most one per participant. All are held at once: use `MergeRun` for cohorts that do not fit in memory.
        uncovered: what a participant counts for where it trained nothing; see the module.
        weights: by `num_examples`, or one each.

    Returns:
        The new model.

    Raises:
        RoundError: two updates of one participant, a wrong name, shape or value, or a result that is not finite.
    """
    run = MergeRun(old, uncovered, weights)
    for update in sorted(updates, key=lambda one: one.participant):
        run.add(update)
    return run.result()
