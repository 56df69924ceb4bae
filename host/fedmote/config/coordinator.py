# SPDX-License-Identifier: Apache-2.0
"""`coordinator.toml`: one run of the coordinator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fedmote.config.broker import BrokerConfig, refuse_plain_text
from fedmote.config.table import U32, BadValueError, Bounds, Identifier, Table, TcpUrl
from fedmote.errors import ConfigError


@dataclass(frozen=True)
class RunConfig(Table):
    """What is learned and where it is kept.

    Attributes:
        site: first level of the topics after the version; separates fleets on one broker.
        name: of the run, for people.
        state_directory: ledger, checkpoints and blobs.
        partition_directory: what `fedmote convert` wrote.
        test_data: `.npz` with `x` (float, torch layout) and `y`, for the accuracy of every round; none: no accuracy.
        rounds: merges to make.
        seed: of everything that is drawn.
        full_disk_wait_s: where the disk of the state directory is full, the run pauses for so long at most; with space again it
            goes on by itself, without it ends. 0: it ends at once.
        max_pulls_at_once: so many updates are pulled at the same time, others wait for their turn: what memory updates take.
    """

    site: Identifier
    name: Identifier
    state_directory: Path
    partition_directory: Path
    test_data: Path | None = None
    rounds: Annotated[int, Bounds(1, 1_000_000)] = 10
    seed: Annotated[int, U32] = 0
    full_disk_wait_s: Annotated[float, Bounds(0, 604_800)] = 600.0
    max_pulls_at_once: Annotated[int, Bounds(1, 1_000_000)] = 64


@dataclass(frozen=True)
class PrivacyConfig(Table):
    """Central differential privacy of the devices' head updates (DP-FedAvg, arXiv 1710.06963).

    Attributes:
        clip_norm: each device's head update is cut to this norm: what one device can change.
        noise_multiplier: standard deviation of the noise in the sum of the updates, in units of clip_norm.
        sampling: "none": the accountant takes a device's participation for known, which anybody who sees the network's traffic
            knows. "cells": it counts on an even and secret draw of `cells_per_round` out of all cells; no claim is made for a run
            in which fewer than all of them were there to be drawn.
    """

    clip_norm: Annotated[float, Bounds(0, 4294, is_low_open=True)]
    noise_multiplier: Annotated[float, Bounds(0, 10_000, is_low_open=True)]
    sampling: Literal["none", "cells"] = "none"


@dataclass(frozen=True)
class SecureSumConfig(Table):
    """Masked sums: of the updates of a group's members the coordinator learns the sum and no single one (arXiv 1611.04482).

    Attributes:
        group: of `fedmote enroll group`. Devices of this run that are in none count each by itself, as without this table.
        clip_norm: each member cuts its head update to this norm. Nobody can look whether it did: a sum that is longer than so
            many members can make it is refused.
        keys_fraction: members hand in keys within this share of report_s, and train before that; who comes later is not in the
            round. What is left of report_s is for the masked updates. Where boards of members have a later deadline, that counts.
        shares_fraction: after the updates, shares that take the masks off are awaited for this share of it.
    """

    group: Identifier
    clip_norm: Annotated[float, Bounds(1e-6, 1e6)]
    keys_fraction: Annotated[float, Bounds(0, 1, is_low_open=True, is_high_open=True)] = 0.7
    shares_fraction: Annotated[float, Bounds(0, 10, is_low_open=True)] = 0.25


@dataclass(frozen=True)
class StrategyConfig(Table):
    """Who trains what, how, and how it is merged.

    The exponents are Centaur's published ones (arXiv 2211.04175); batch and learning rate are for local sets of tens to
    hundreds of samples. Bounds are those of the wire schema.

    Attributes:
        preset: "centaur" (devices train heads, partners whole models) or "fedavg" (partners alone).
        form: "alternating" (device round, then partner round of the same cells) or "simultaneous" (one merge).
        alpha: exponent of the discard probability (1-u)^alpha; 0 discards nothing.
        beta: exponent of the partner probability u^beta; 0 sends nothing.
        gamma: exponent of the gradient-norm test v^gamma; 0 switches it off.
        gamma_order: 0: the norm test adds to the partner's group (public code); 1: it reduces it (paper's figure).
        gain: share of the local samples that may be selected.
        epochs, batch, learning_rate, momentum, weight_decay: of a device's head training.
        clip_norm: largest norm of a mini-batch's gradient there; none: no clipping.
        trained_layers: devices train so many of the last layers of the head; none: all.
        is_bias_only: of these layers devices train the bias alone.
        loss: what devices and partners make small: "cross_entropy", or "squared_error" of logits against 0 and 1.
        partner_epochs, partner_batch, partner_learning_rate, partner_momentum, partner_weight_decay: of a partner's training. A
            partner sees few and hard samples: with momentum 0.9 its model runs away from the others', and the mean is worse than
            each.
        partner_clip_norm: as clip_norm.
        partner_max_examples: a partner whose update claims more examples is refused: it bounds what one liar weighs. A
            device is refused where it claims more than its board can hold.
        server_learning_rate: the merged delta is scaled by it.
        uncovered: who counts where a coordinate was not trained: "ignore" averages over those who trained it, "old" and
            "zero" count the others with a zero delta or a zero value.
        weights: "examples" weighs an update by its num_examples, "one" all alike.
        ignore: baselines: leave the "devices" or the "partners" out.
        is_sending_samples: devices may send selected samples to their own cell's partner. Off unless written.
        max_send: at most this many samples per device and round; none: as many as are selected.
        cells_per_round: so many cells are drawn for a round; none: all that are there.
        aggregation: how hostile updates are kept from the model. "clipped_mean" cuts every update to the median norm of the round
            (head, encoder and batch statistics each by their own); "multi_krum" first leaves out those that are farthest from the
            others; "trimmed_mean" drops the extremes of every coordinate; "mean" trusts everybody.
        clip_factor: of clipped_mean and multi_krum: an update may be this many times as long as the median one.
        weight_cap: an update weighs at most this many times the median num_examples of the round; not with "mean".
        trim_share: of trimmed_mean: share that is dropped at either end.
        hostile_share: of multi_krum: share of the participants that may be hostile.
        min_examples: an update learned from fewer samples is refused before it is sent, because single samples can be read out
            of it; one that was learned from none is empty, and is taken.
        privacy: differential privacy of the devices' head updates; none: no noise.
        secure_sum: masked sums of a group's head updates; none: the coordinator sees every update.
    """

    preset: Literal["centaur", "fedavg"] = "centaur"
    form: Literal["alternating", "simultaneous"] = "alternating"
    alpha: Annotated[float, Bounds(0, 1000)] = 5.0
    beta: Annotated[float, Bounds(0, 1000)] = 3.0
    gamma: Annotated[float, Bounds(0, 1000)] = 0.0
    gamma_order: Annotated[int, Bounds(0, 1)] = 0
    gain: Annotated[float, Bounds(0, 1)] = 1.0
    epochs: Annotated[int, Bounds(0, 32)] = 3
    batch: Annotated[int, Bounds(1, 1024)] = 16
    learning_rate: Annotated[float, Bounds(0, 10)] = 0.05
    momentum: Annotated[float, Bounds(0, 1, is_high_open=True)] = 0.9
    weight_decay: Annotated[float, Bounds(0, 1)] = 0.0
    clip_norm: Annotated[float, Bounds(0, 4294, is_low_open=True)] | None = None
    trained_layers: Annotated[int, Bounds(1, 255)] | None = None
    is_bias_only: bool = False
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    partner_epochs: Annotated[int, Bounds(0, 32)] = 3
    partner_batch: Annotated[int, Bounds(1, 1024)] = 16
    partner_learning_rate: Annotated[float, Bounds(0, 10)] = 0.03
    partner_momentum: Annotated[float, Bounds(0, 1, is_high_open=True)] = 0.0
    partner_weight_decay: Annotated[float, Bounds(0, 1)] = 0.0
    partner_clip_norm: Annotated[float, Bounds(0, 4294, is_low_open=True)] | None = None
    partner_max_examples: Annotated[int, Bounds(1, 2**32 - 1)] = 65_536
    server_learning_rate: Annotated[float, Bounds(0, 100, is_low_open=True)] = 1.0
    uncovered: Literal["ignore", "old", "zero"] = "ignore"
    weights: Literal["examples", "one"] = "examples"
    ignore: Literal["none", "devices", "partners"] = "none"
    is_sending_samples: bool = False
    max_send: Annotated[int, U32] | None = None
    cells_per_round: Annotated[int, Bounds(1, 1_000_000)] | None = None
    aggregation: Literal["clipped_mean", "trimmed_mean", "multi_krum", "mean"] = "clipped_mean"
    clip_factor: Annotated[float, Bounds(0, 1_000_000, is_low_open=True)] = 1.0
    weight_cap: Annotated[float, Bounds(1, 1_000_000)] = 3.0
    trim_share: Annotated[float, Bounds(0, 0.5, is_low_open=True, is_high_open=True)] = 0.2
    hostile_share: Annotated[float, Bounds(0, 0.5, is_low_open=True, is_high_open=True)] = 0.3
    min_examples: Annotated[int, U32] = 16
    privacy: PrivacyConfig | None = None
    secure_sum: SecureSumConfig | None = None


@dataclass(frozen=True)
class QuarantineConfig(Table):
    """When a participant is left out. Not part of the strategy: an operator may change it between two starts of a run.

    Attributes:
        factor: an update is far when its norm, or its distance from its neighbours where multi_krum left it out, is this many
            times the median of the round.
        unsound_updates: so many far or invalid updates in a row, and the participant is left out.
        rounds: for so many rounds; 0: nobody is ever left out.
    """

    factor: Annotated[float, Bounds(1, 1_000_000)] = 4.0
    unsound_updates: Annotated[int, Bounds(1, 1000)] = 3
    rounds: Annotated[int, Bounds(0, 1_000_000)] = 10


@dataclass(frozen=True)
class DeadlineConfig(Table):
    """A later deadline for slow participants.

    Attributes:
        boards: theirs, as they say in hello; "partner" for partners.
        report_s: instead of that of all others.
    """

    boards: tuple[Identifier, ...]
    report_s: Annotated[float, Bounds(0, 604_800, is_low_open=True)]


@dataclass(frozen=True)
class WindowsConfig(Table):
    """How long a round waits for what. Every wait has an end.

    Attributes:
        selection_s: participants are collected for this long after the first one is there.
        report_s: updates are collected for this long after the plans went out: the deadline.
        deadlines: later ones, by board.
        lease_s, grace_s: a participant that is pulling or sending at its deadline gets `lease_s` from its last chunk on, and at
            most `grace_s` beyond the deadline; 0: none.
        min_fraction: fewer updates than this share of the goal abandon the round; the model stays.
        goal_count: the round closes early with this many updates; none: all who got a plan.
        over_select: where there is a goal_count, so many times more participants are invited: some never report, and those who
            come after the goal is met are refused. 1.3 is for a tenth that drops out (Bonawitz et al., arXiv 1902.01046).
        max_failed_rounds: after so many abandoned rounds in a row the run pauses, or ends.
        after_failures: which of both.
        pause_s, max_pause_s: the first pause, and the longest one: each is twice the one before.
        wait_ms: a participant with nothing to do is told to come back after about this time.
        max_hellos_per_s: large fleets are told longer times, so that about so many come back in a second; up to a quarter of
            report_s.
        max_rejoins_per_minute: a participant that was reset more often is made to wait.
    """

    selection_s: Annotated[float, Bounds(0, 86_400)] = 10.0
    report_s: Annotated[float, Bounds(0, 604_800, is_low_open=True)] = 120.0
    deadlines: tuple[DeadlineConfig, ...] = ()
    lease_s: Annotated[float, Bounds(0, 3600)] = 5.0
    grace_s: Annotated[float, Bounds(0, 86_400)] = 30.0
    min_fraction: Annotated[float, Bounds(0, 1)] = 0.7
    goal_count: Annotated[int, Bounds(1, 1_000_000)] | None = None
    over_select: Annotated[float, Bounds(1, 100)] = 1.3
    max_failed_rounds: Annotated[int, Bounds(1, 1_000_000)] = 5
    after_failures: Literal["pause", "end"] = "pause"
    pause_s: Annotated[float, Bounds(0, 86_400, is_low_open=True)] = 30.0
    max_pause_s: Annotated[float, Bounds(0, 604_800, is_low_open=True)] = 3600.0
    wait_ms: Annotated[int, Bounds(1, 3_600_000)] = 1000
    max_hellos_per_s: Annotated[float, Bounds(0, 1_000_000, is_low_open=True)] = 100.0
    max_rejoins_per_minute: Annotated[int, Bounds(1, 1000)] = 3

    def check(self) -> None:
        """A board has one deadline, and a later one than all others; pauses grow."""
        boards = [board for deadline in self.deadlines for board in deadline.boards]
        if doubled := [board for board, count in Counter(boards).items() if count > 1]:
            raise ConfigError(f"deadlines: board {', '.join(doubled)} has more than one")
        for index, deadline in enumerate(self.deadlines):
            if deadline.report_s <= self.report_s:
                expected = f"more than the {self.report_s:g} of report_s, which holds for all others"
                raise BadValueError(f"deadlines.{index}.report_s", deadline.report_s, expected)
        if self.max_pause_s < self.pause_s:
            raise BadValueError("max_pause_s", self.max_pause_s, f"at least the {self.pause_s:g} of pause_s")


@dataclass(frozen=True)
class CellConfig(Table):
    """A partner with its devices. A device without a partner is a cell of one.

    Attributes:
        name: of the cell.
        devices: ids of its devices.
        partner: id of its partner, or none.
    """

    name: Identifier
    devices: tuple[Identifier, ...] = ()
    partner: Identifier | None = None

    def check(self) -> None:
        """A cell has somebody in it."""
        if not self.devices and self.partner is None:
            raise ConfigError(f"cell {self.name} has neither devices nor a partner")

    @property
    def participants(self) -> tuple[str, ...]:
        """Ids of the devices, then of the partner if there is one."""
        return self.devices if self.partner is None else (*self.devices, self.partner)


@dataclass(frozen=True)
class SecurityConfig(Table):
    """Where the keys of the participants are.

    Attributes:
        registry: directory of the fleet's registry, which `fedmote enroll` keeps; none: messages are not authenticated.
        broker_files: directory that `fedmote broker init` made; `fedmote enroll` keeps accounts and access lists there.
        signing_key: the operator's key file, of `fedmote package key`: packages are signed for devices that know its verify key.
        is_insecure: `listen` may take calls from beyond loopback, in plain text; said at every start.
    """

    registry: Path | None = None
    broker_files: Path | None = None
    signing_key: Path | None = None
    is_insecure: bool = False

    def check(self) -> None:
        """Signed packages are numbered by the registry."""
        if self.signing_key is not None and self.registry is None:
            raise ConfigError("signing_key: the key registry is needed beside it, which numbers the packages that are signed")


@dataclass(frozen=True)
class CoordinatorConfig(Table):
    """The whole file.

    Attributes:
        run: what is learned.
        cells: the population; nobody else is let in. May be left out where there is a registry: it is the registry's then.
        broker: the MQTT broker, or none where `listen` is given.
        listen: `tcp://host:port` for direct links, instead of a broker or beside it; port 0 takes a free one.
        strategy: the choice of policies.
        windows: the waits.
        quarantine: when a participant is left out.
        security: the keys.
    """

    run: RunConfig
    cells: tuple[CellConfig, ...] = ()
    broker: BrokerConfig | None = None
    listen: TcpUrl | None = None
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    windows: WindowsConfig = field(default_factory=WindowsConfig)
    quarantine: QuarantineConfig = field(default_factory=QuarantineConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)

    def check(self) -> None:
        """A way in; every participant and cell named once."""
        if self.broker is None and self.listen is None:
            raise ConfigError('the table [broker] or the key listen = "tcp://host:port" is needed, or both')
        if self.listen is not None and not self.security.is_insecure:
            refuse_plain_text("listen", self.listen, "security.is_insecure")
        if not self.cells and self.security.registry is None:
            raise ConfigError("cells: at least one [[cells]] is needed, or a registry in the table [security]")
        names = [cell.name for cell in self.cells]
        members = [member for cell in self.cells for member in cell.participants]
        if self.strategy.secure_sum is not None and self.windows.goal_count is not None:
            raise ConfigError(
                "windows.goal_count with strategy.secure_sum: a round that closes early loses members whose keys came already; "
                "leave goal_count out"
            )
        for what, listed in (("cell", names), ("participant", members)):
            if doubled := [name for name, count in Counter(listed).items() if count > 1]:
                raise ConfigError(f"cells: {what} {', '.join(doubled)} is named more than once")

    @property
    def devices(self) -> dict[str, CellConfig]:
        """Cell of every device, by the device's id."""
        return {device: cell for cell in self.cells for device in cell.devices}

    @property
    def partners(self) -> dict[str, CellConfig]:
        """Cell of every partner, by the partner's id."""
        return {cell.partner: cell for cell in self.cells if cell.partner is not None}
