# SPDX-License-Identifier: Apache-2.0
"""The four seams of a strategy, and what passes through them.

    participants   which cells take part                              Participants
    plan           which phase comes next, who trains what, and how   Plan
    codec          how an update is written                           Codec
    aggregation    how updates become a checkpoint                    Aggregation

A policy fills one seam and lives in a file named after what it is. Policies are values: they keep no state between rounds,
so a coordinator that was killed goes on from its journal alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmote.aggregation import Finding, Update
from fedmote.aggregation.ranges import Ranges
from fedmote.package.graph import HeadLayer
from fedmote.package.head import parameter_count
from fedmote.privacy.group import MaskedGroup
from fedmote.tensors import Tensors
from fedmote.wire.schema import Loss, Phase, Role


@dataclass(frozen=True)
class Cell:
    """A partner with its devices; a device without a partner is a cell of one.

    Attributes:
        name: of the cell.
        devices: ids.
        partner: id, or None.
    """

    name: str
    devices: tuple[str, ...]
    partner: str | None

    def members(self) -> tuple[Member, ...]:
        """All participants of the cell."""
        devices = tuple(Member(device, Role.DEVICE, self.name) for device in self.devices)
        return devices if self.partner is None else (*devices, Member(self.partner, Role.PARTNER, self.name))


@dataclass(frozen=True, order=True)
class Member:
    """A participant as it stands in a round."""

    id: str
    role: Role
    cell: str


@dataclass(frozen=True)
class RoundPlan:
    """What a round is, fixed when it is opened: its result depends on this, the base model and the updates alone.

    Attributes:
        round: number, from 1; abandoned rounds have numbers too.
        phase: who trains.
        version: of the checkpoint that everybody starts from.
        seed: of all draws of the round.
        members: everybody who is expected to report, in ascending order of ids.
        num_candidates: cells that were there to be drawn from; 0 where the journal does not say.
        masked: the members whose updates are summed under masks; None: nobody's.
    """

    round: int
    phase: Phase
    version: int
    seed: int
    members: tuple[Member, ...]
    num_candidates: int = 0
    masked: MaskedGroup | None = None

    @property
    def cells(self) -> frozenset[str]:
        """Names of the cells that take part."""
        return frozenset(member.cell for member in self.members)


@dataclass(frozen=True)
class Previous:
    """What the plan has to know about the round before: its phase, its cells, whether it was merged."""

    phase: Phase
    cells: frozenset[str]
    is_committed: bool


@dataclass(frozen=True)
class Training:
    """How one participant trains.

    Attributes:
        epochs, batch, learning_rate, momentum, weight_decay: of SGD.
        alpha, beta, gamma, gamma_order, gain: of the sample selection; see the protocol's section 5.
        is_sending_samples: whether selected samples may go to the cell's own partner.
        max_send: at most this many samples; None: no limit.
        clip_norm: largest norm of a mini-batch's gradient; None: no clipping.
        loss: what is made small.
        trained_layers: so many of the last layers of the head; None: all. Of devices alone.
        is_bias_only: of these layers only the bias. Of devices alone.
    """

    epochs: int
    batch: int
    learning_rate: float
    momentum: float
    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0
    gamma_order: int = 0
    gain: float = 1.0
    is_sending_samples: bool = False
    max_send: int | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = None
    loss: Loss = Loss.CROSS_ENTROPY
    trained_layers: int | None = None
    is_bias_only: bool = False

    def fields(self) -> dict[str, int]:
        """The fields of a plan message, in thousandths and millionths.

        Optional fields are left out where their absence says the same, so that a plan fits the smallest body.
        """
        optional = {
            "alpha_milli": (round(self.alpha * 1e3), 0),
            "beta_milli": (round(self.beta * 1e3), 0),
            "gamma_milli": (round(self.gamma * 1e3), 0),
            "gamma_order": (self.gamma_order, 0),
            "gain_milli": (round(self.gain * 1e3), 1000),
            "is_sending_samples": (int(self.is_sending_samples), 0),
            "loss": (int(self.loss), int(Loss.CROSS_ENTROPY)),
            "weight_decay_micro": (round(self.weight_decay * 1e6), 0),
            "clip_norm_micro": (0 if self.clip_norm is None else max(1, round(self.clip_norm * 1e6)), 0),
            "trained_layers": (self.trained_layers or 0, 0),
            "is_bias_only": (int(self.is_bias_only), 0),
        }
        fields = {
            "epochs": self.epochs,
            "batch": self.batch,
            "learning_rate_micro": round(self.learning_rate * 1e6),
            "momentum_micro": round(self.momentum * 1e6),
        }
        fields |= {name: value for name, (value, default) in optional.items() if value != default}
        return fields if self.max_send is None else {**fields, "max_send": self.max_send}

    def trained_head(self, layers: Sequence[HeadLayer]) -> tuple[str, ...]:
        """Names of the head's tensors that are trained; the others come back as they went."""
        trained = layers if self.trained_layers is None else layers[-self.trained_layers :]
        return tuple(name for layer in trained for name in ((layer.bias,) if self.is_bias_only else (layer.weight, layer.bias)))


@dataclass(frozen=True)
class ModelShape:
    """What a codec has to know about the model.

    Attributes:
        tensors: names and shapes of all tensors (the values do not matter).
        layers: the head, first layer first: what a head update holds, and in which order.
        ranges: activation ranges by name.
        input: name of the encoder's input, whose range is frozen: the samples on the devices are quantized with it.
    """

    tensors: Mapping[str, NDArray[np.float32]]
    layers: tuple[HeadLayer, ...]
    ranges: Ranges
    input: str = ""

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the head's tensors, layer by layer, weights and then bias."""
        return tuple(name for layer in self.layers for name in (layer.weight, layer.bias))

    @property
    def num_head_parameters(self) -> int:
        """Floats of a head update."""
        return parameter_count(self.layers)


@dataclass(frozen=True)
class Decoded:
    """A decoded update: deltas by tensor name, and the activation ranges that came with them."""

    tensors: Tensors
    ranges: Ranges


class Participants(Protocol):
    """Who takes part."""

    def is_enough(self, num_complete: int, num_cells: int) -> bool:
        """Whether the round can open before the selection window ends, with so many cells of all whole."""
        ...

    def choose(self, present: Sequence[Cell], seed: int) -> tuple[Cell, ...]:
        """The cells of this round, out of those that are there."""
        ...


class Plan(Protocol):
    """Which phase comes next, who is expected in it, and how each one trains."""

    def next_phase(self, cells: Sequence[Cell], previous: Previous | None) -> Phase:
        """Phase of the next round."""
        ...

    def population(self, cells: Sequence[Cell], previous: Previous | None) -> tuple[Cell, ...]:
        """The cells among which the participants of the next round are chosen."""
        ...

    def members(self, cell: Cell, phase: Phase) -> tuple[Member, ...]:
        """Who of a cell is expected to report in a phase."""
        ...

    def training(self, role: Role) -> Training:
        """How a participant of this role trains."""
        ...


class Codec(Protocol):
    """How an update is written."""

    def max_bytes(self, role: Role, model: ModelShape) -> int:
        """Size of the largest honest update: a longer one is refused before memory is taken for it."""
        ...

    def decode(self, role: Role, blob: bytes, model: ModelShape) -> Decoded:
        """Read an update; RemoteWireError with `update-shape` or `update-not-finite` where it does not fit."""
        ...

    def head_of(self, delta: NDArray[np.float32], model: ModelShape) -> Decoded:
        """The update that the values of a head make, float32 (P,) in the order of devices."""
        ...


# Gives the updates of a round in ascending order of ids, one in memory at a time, as often as it is called.
Updates = Callable[[], Iterator[tuple[Role, Update, Ranges]]]


@dataclass(frozen=True)
class MergeContext:
    """What a merge may depend on beside the base model and the updates; all of it is journaled.

    Attributes:
        model: which tensors are the head.
        round: number of the round.
        noise_key: secret of the run, from which noise is drawn; empty where there is none.
    """

    model: ModelShape
    round: int = 0
    noise_key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Aggregate:
    """What a round came to.

    Attributes:
        tensors, ranges: the new model and its activation ranges.
        findings: what the rule saw of each update; empty where it does not look.
    """

    tensors: Tensors
    ranges: Ranges
    findings: tuple[Finding, ...] = ()


class Aggregation(Protocol):
    """How updates become a checkpoint."""

    def merge(self, old: Tensors, ranges: Ranges, updates: Updates, context: MergeContext) -> Aggregate:
        """Merge the updates of a round: a pure function of its arguments.

        Args:
            old: the base model.
            ranges: the base model's activation ranges.
            updates: of the round.
            context: of the round.
        """
        ...


@dataclass(frozen=True)
class Strategy:
    """A choice of four policies."""

    name: str
    participants: Participants
    plan: Plan
    codec: Codec
    aggregation: Aggregation
