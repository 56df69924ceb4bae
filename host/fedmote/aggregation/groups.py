# SPDX-License-Identifier: Apache-2.0
"""Which tensors are judged together.

A norm compares updates, so it is taken over what they have in common. Devices send heads alone and partners whole models: in
one norm over everything a partner's encoder would hide what it does to the head, and no partner could be compared with a device.
So the head is judged by itself, over all who sent one, and the encoder by itself, over the partners. The statistics of batch
normalisation are a third group: they are observations in squares of activations and not steps, and in one norm with the
encoder's weights either of the two would hide the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmote.aggregation.merge import Update

Group = Literal["head", "encoder", "statistics"]

_STATISTICS = (".running_mean", ".running_var")


def is_statistic(name: str) -> bool:
    """Whether a tensor is an observation of batch normalisation, by its torch name."""
    return name.endswith(_STATISTICS)


def group_of(name: str, head: Collection[str]) -> Group:
    """The group of a tensor; `head` names those of the head."""
    if name in head:
        return "head"
    return "statistics" if is_statistic(name) else "encoder"


def grouped(names: Iterable[str], head: Collection[str]) -> dict[Group, tuple[str, ...]]:
    """Tensors by group, in order of their names; groups without one are left out."""
    found: dict[Group, list[str]] = {}
    for name in sorted(names):
        found.setdefault(group_of(name, head), []).append(name)
    return {group: tuple(members) for group, members in found.items()}


def covered(update: Update, name: str) -> NDArray[np.float32]:
    """The values of a tensor that count, float32 (n,): those outside its coverage may be anything."""
    mask = (update.coverage or {}).get(name)
    return update.tensors[name].ravel() if mask is None else update.tensors[name][mask]


def norms(update: Update, head: Collection[str]) -> Mapping[Group, float]:
    """L2 norm of an update by group, in float64, of the groups that it covers."""
    return {
        group: float(np.sqrt(sum(float(np.square(covered(update, name), dtype=np.float64).sum()) for name in names)))
        for group, names in grouped(update.tensors, head).items()
    }
