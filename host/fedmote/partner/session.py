# SPDX-License-Identifier: Apache-2.0
"""The partner's state machine: messages and time in, actions out; no I/O, no clock, no torch.

          plan                     checkpoint here            samples here, or wait over            trained
 IDLE -----------> FETCH ---------------------------> COLLECT ---------------------------> TRAIN ------------+
  ^  ^               | refuse, deadline                  | deadline                          | deadline       v
  |  +---------------+-----------------------------------+-----------------------------------+             REPORT
  |                                                   ack, refuse                                            |
  +----------------------------------------------------------------------------------------------------------+

Beside it, at any time and in any state, the *inbox*: a device of the own cell offers selected samples on the cell channel,
the session pulls them, keeps them durably, then acknowledges. In the simultaneous form a round waits for the samples of
its own devices, for at most `COLLECT_SHARE` of what is left of the round; in the alternating form the samples came in the
device round before, and the wait is only for transfers that are under way.

**Retention.** Of each device the newest offer of the running run is kept, and no longer than until the update that
used it is acknowledged or refused, or a plan of another run arrives. No sample ever stands in a message to the coordinator.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from fedmote.errors import RemoteWireError
from fedmote.transport import Received
from fedmote.wire.blobs import decode_selected_samples
from fedmote.wire.codec import Message
from fedmote.wire.schema import LIMIT_BODY_FLOOR, LIMIT_PROTOCOL, Channel, Kind, Phase, Role, Status
from fedmote.wire.transfer import BlobSink, BlobSource, handle_of, unknown_handle

# Share of the rest of a round that is spent on waiting for samples: the other half is for training and reporting.
COLLECT_SHARE = 0.5
# Times of the protocol (SPEC section 5): hello doubles from 1 s to 60 s, a report is repeated after 2 s.
HELLO_FIRST_S = 1.0
HELLO_LAST_S = 60.0
REPORT_REPEAT_S = 2.0
# A device that sends no chunk for so long has forgotten its offer, or is gone: it offers again when it is back.
PULL_PATIENCE_S = 60.0
# Bodies that a partner accepts: whole windows of 32 KB keep a checkpoint at a handful of messages.
MAX_BODY = 32 * 1024


class Stage(StrEnum):
    """Where the session is."""

    IDLE = "idle"
    FETCH = "fetch"
    COLLECT = "collect"
    TRAIN = "train"
    REPORT = "report"


@dataclass(frozen=True)
class Offer:
    """Selected samples of one device, complete and checked.

    Attributes:
        device: who selected them.
        run, round: in which they were selected.
        blob: the selected samples as they travelled (protocol, section 6).
    """

    device: str
    run: bytes
    round: int
    blob: bytes


@dataclass(frozen=True)
class Trained:
    """A finished update.

    Attributes:
        blob: the update file.
        numbers: fields of the report: num_examples, trained, loss_micro, loss_after_micro.
    """

    blob: bytes
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class Pending:
    """An update that the coordinator has not yet acknowledged: what a restart must not lose.

    Attributes:
        report: the message that offers it.
        blob: the update file.
    """

    report: Message
    blob: bytes


# ---- actions; each is finished, and what it writes is durable, before the next one begins ---------------------------


@dataclass(frozen=True)
class Send:
    """Send a message: to the coordinator under the own id, or to a device on the cell channel."""

    id: str
    channel: Channel
    message: Message


@dataclass(frozen=True)
class KeepCheckpoint:
    """Keep the newest checkpoint, so that a restart need not pull it again."""

    model_hash: bytes
    blob: bytes


@dataclass(frozen=True)
class KeepOffer:
    """Keep samples durably; the ack to the device stands behind this."""

    offer: Offer


@dataclass(frozen=True)
class DropOffers:
    """Delete the samples of these devices."""

    devices: tuple[str, ...]


@dataclass(frozen=True)
class Train:
    """Train; answer with `Session.trained` or `Session.failed`."""

    plan: Message
    checkpoint: bytes
    offers: tuple[Offer, ...]


@dataclass(frozen=True)
class KeepPending:
    """Keep an update durably; its report stands behind this."""

    pending: Pending


@dataclass(frozen=True)
class DropPending:
    """Delete the kept update."""


Action = Send | KeepCheckpoint | KeepOffer | DropOffers | Train | KeepPending | DropPending


@dataclass(frozen=True)
class Standing:
    """What is kept over restarts.

    Attributes:
        offers: samples by device.
        checkpoint: hash and bytes of the newest one.
        pending: an update without an ack.
    """

    offers: Mapping[str, Offer] = field(default_factory=dict)
    checkpoint: tuple[bytes, bytes] | None = None
    pending: Pending | None = None


class Session:
    """One partner; `now` is any monotonic time in seconds."""

    def __init__(self, id: str, devices: Sequence[str], boot: int, sdk: str, standing: Standing) -> None:
        self.id = id
        self.stage = Stage.IDLE
        self.offers = dict(standing.offers)
        self._devices = frozenset(devices)
        self._boot = boot
        self._sdk = sdk
        self._checkpoint = standing.checkpoint
        self._pending = standing.pending
        self._jitter = random.Random(boot)  # full jitter; the boot nonce makes partners differ
        self._plan: Message | None = None
        self._sink: BlobSink | None = None
        self._pulls: dict[str, tuple[Message, BlobSink]] = {}
        self._pulled_at: dict[str, float] = {}
        self._hello_at = 0.0
        self._hello_s = HELLO_FIRST_S
        self._report_at = math.inf
        self._deadline = math.inf
        self._collect_until = math.inf

    # ---- what the agent calls ----------------------------------------------------------------------------------------

    def wake_at(self) -> float:
        """When `tick` has something to do if no message comes before."""
        times = [sink.wake_at for _, sink in self._pulls.values()]
        match self.stage:
            case Stage.IDLE:
                times.append(self._hello_at)
            case Stage.FETCH:
                times += [self._deadline, self._sink.wake_at if self._sink else None]
            case Stage.COLLECT:
                times.append(min(self._collect_until, self._deadline))
            case Stage.TRAIN:
                times.append(self._deadline)
            case Stage.REPORT:
                times.append(self._report_at)
        return min((time for time in times if time is not None), default=math.inf)

    def tick(self, now: float) -> list[Action]:
        """React to the passing of time."""
        actions: list[Action] = []
        for device, (_, sink) in list(self._pulls.items()):
            if now >= self._pulled_at[device] + PULL_PATIENCE_S:
                del self._pulls[device]
                continue
            actions += [Send(device, Channel.CELL, message) for message in sink.poll(now)]
        if self.stage in (Stage.FETCH, Stage.COLLECT, Stage.TRAIN) and now >= self._deadline:
            self._leave_plan(now)
        if self.stage is Stage.IDLE and now >= self._hello_at:
            actions += self._hello(now)
        elif self.stage is Stage.FETCH and self._sink is not None:
            actions += self._to_coordinator(self._sink.poll(now))
        elif self.stage is Stage.COLLECT:
            actions += self._train_if_ready(now)
        elif self.stage is Stage.REPORT and now >= self._report_at:
            actions += self._report(now)
        return actions

    def connected(self, now: float) -> list[Action]:
        """The link is new: what was asked or told before may be lost, and a direct link knows us by our hello alone."""
        self._hello_s, self._report_at = HELLO_FIRST_S, now
        return [*self._hello(now), *self.tick(now)]

    def handle(self, received: Received, now: float) -> list[Action]:
        """React to a message: from the coordinator under the own id, from a device on the cell channel."""
        message = received.message
        if received.channel is Channel.CELL:
            return self._from_device(received.id, message, now) if received.id in self._devices else []
        match message.kind:
            case Kind.WAIT:
                return self._wait(message, now)
            case Kind.PLAN:
                return self._planned(message, now)
            case Kind.DATA:
                return self._fetched(message, now)
            case Kind.GET:
                return self._answer_get(message, now)
            case Kind.ACK:
                return self._settled(now) if self._is_pending(message) else []
            case Kind.REFUSE:
                return self._refused(message, now)
            case _:
                return []

    def trained(self, plan: Message, trained: Trained, now: float) -> list[Action]:
        """The training that `Train` asked for is done. One that came too late changes nothing."""
        if self.stage is not Stage.TRAIN or plan is not self._plan:
            return []
        handle = handle_of(trained.blob)
        fields = {name: plan[name] for name in ("run", "round", "version")}
        if "attempt" in plan:
            fields["attempt"] = plan["attempt"]
        report = Message.of(Kind.REPORT, handle=handle, size=len(trained.blob), crc=handle, **fields, **trained.numbers)
        self._pending = Pending(report, trained.blob)
        self.stage, self._report_at = Stage.REPORT, now
        return [KeepPending(self._pending), *self._report(now)]

    def failed(self, plan: Message, status: Status, reason: str, now: float) -> list[Action]:
        """The training that `Train` asked for cannot be done: the plan is refused, the samples are dropped."""
        if self.stage is not Stage.TRAIN or plan is not self._plan:
            return []
        return [*self._refuse_plan(plan, status, reason, now), *self._drop(list(self.offers))]

    # ---- coordinator channel -----------------------------------------------------------------------------------------

    def _hello(self, now: float) -> list[Action]:
        fields: dict[str, int | bytes | str] = {}
        if self._checkpoint is not None:
            fields["model_hash"] = self._checkpoint[0]
        hello = Message.of(
            Kind.HELLO,
            device=self.id,
            role=Role.PARTNER,
            boot=self._boot,
            protocol=LIMIT_PROTOCOL,
            board="partner",
            sdk=self._sdk,
            max_body=MAX_BODY,
            **fields,
        )
        self._hello_at = now + self._jitter.uniform(0.5, 1.0) * self._hello_s
        self._hello_s = min(2 * self._hello_s, HELLO_LAST_S)
        return self._to_coordinator([hello])

    def _wait(self, message: Message, now: float) -> list[Action]:
        if self.stage is Stage.IDLE:
            self._hello_at, self._hello_s = now + message["wait_ms"] / 1000, HELLO_FIRST_S
        return []

    def _planned(self, plan: Message, now: float) -> list[Action]:
        actions: list[Action] = []
        if self._pending is not None:
            if all(self._pending.report[name] == plan[name] for name in ("run", "round", "version")):
                return self._report_again(plan, now)
            actions += self._forget_pending()  # another round has begun: whatever we hold is late
        if self._plan is not None and self.stage in (Stage.FETCH, Stage.COLLECT, Stage.TRAIN):
            if _turn(self._plan) == _turn(plan):
                return actions  # repeated
            self._leave_plan(now)
        actions += self._drop([device for device, offer in self.offers.items() if offer.run != plan["run"]])
        remaining = plan["remaining_ms"] / 1000
        self._plan, self._deadline = plan, now + remaining
        self._collect_until = now + COLLECT_SHARE * remaining
        if self._checkpoint is not None and self._checkpoint[0] == plan["model_hash"]:
            self.stage = Stage.COLLECT
            # The coordinator learns from the first `get` that a plan arrived; a model that is here needs none, and no word.
            return actions + self._train_if_ready(now)
        try:
            self._sink = BlobSink(plan["model_handle"], plan["model_size"], None, MAX_BODY)
        except RemoteWireError as error:
            return actions + self._refuse_plan(plan, error.status, "the checkpoint is too large", now)
        self.stage = Stage.FETCH
        return actions + self._to_coordinator(self._sink.start(now))

    def _fetched(self, data: Message, now: float) -> list[Action]:
        if self.stage is not Stage.FETCH or self._sink is None or self._plan is None:
            return []
        gets = self._sink.accept(data, now)
        if not self._sink.is_complete:
            return self._to_coordinator(gets)
        blob, plan = self._sink.blob(), self._plan
        if blob_hash(blob) != plan["model_hash"]:
            return self._refuse_plan(plan, Status.PACKAGE_HASH, "the checkpoint is not the announced one", now)
        self._sink, self._checkpoint, self.stage = None, (plan["model_hash"], blob), Stage.COLLECT
        return [KeepCheckpoint(plan["model_hash"], blob), *self._train_if_ready(now)]

    def _train_if_ready(self, now: float) -> list[Action]:
        plan = self._plan
        if plan is None or self._checkpoint is None or (self._is_collecting(plan) and now < self._collect_until):
            return []
        self.stage = Stage.TRAIN
        return [Train(plan, self._checkpoint[1], self._offers_for(plan))]

    def _is_collecting(self, plan: Message) -> bool:
        if plan["phase"] == Phase.SIMULTANEOUS:
            return {offer.device for offer in self._offers_for(plan)} != self._devices
        return bool(self._pulls)

    def _offers_for(self, plan: Message) -> tuple[Offer, ...]:
        """In order of the devices' ids. A late offer of an older round is used once, as it is: its labels have not aged."""
        is_now = plan["phase"] == Phase.SIMULTANEOUS
        return tuple(
            offer
            for _, offer in sorted(self.offers.items())
            if offer.run == plan["run"] and (offer.round == plan["round"] if is_now else offer.round <= plan["round"])
        )

    def _answer_get(self, get: Message, now: float) -> list[Action]:
        if self._pending is None or get["handle"] != self._pending.report["handle"]:
            return self._to_coordinator([unknown_handle(get)])
        self._report_at = now + REPORT_REPEAT_S
        return self._to_coordinator(BlobSource(get["handle"], self._pending.blob).answer(get, MAX_BODY))

    def _refused(self, refuse: Message, now: float) -> list[Action]:
        if "handle" in refuse and self._is_pending(refuse):
            return self._settled(now)
        if self.stage is Stage.FETCH and self._sink is not None and refuse.get("handle") == self._sink.handle:
            self._leave_plan(now)
        elif "handle" not in refuse and self.stage is not Stage.REPORT:
            self._leave_plan(now)
            self._hello_at = now + HELLO_LAST_S  # a coordinator that does not expect us is asked now and then
        return []

    def _settled(self, now: float) -> list[Action]:
        """The update is durable at the coordinator, or it will never be wanted."""
        actions = self._forget_pending()
        self._leave_plan(now)
        return actions

    def _report_again(self, plan: Message, now: float) -> list[Action]:
        """The round still wants the update that we hold. After a restart its attempt is another one, the update is the same."""
        assert self._pending is not None  # the caller looked
        fields = {**self._pending.report.fields, **({"attempt": plan["attempt"]} if "attempt" in plan else {})}
        self._pending = Pending(Message(Kind.REPORT, fields), self._pending.blob)
        self.stage = Stage.REPORT
        return self._report(now)

    def _forget_pending(self) -> list[Action]:
        """The update is settled, and with it every sample that it can have used."""
        if self._pending is None:
            return []
        run, last = self._pending.report["run"], self._pending.report["round"]
        self._pending = None
        used = [device for device, offer in self.offers.items() if offer.run == run and offer.round <= last]
        return [DropPending(), *self._drop(used)]

    def _is_pending(self, message: Message) -> bool:
        return self._pending is not None and message["handle"] == self._pending.report["handle"]

    def _report(self, now: float) -> list[Action]:
        if self._pending is None:
            return []
        self._report_at = now + REPORT_REPEAT_S
        return self._to_coordinator([self._pending.report])

    def _refuse_plan(self, plan: Message, status: Status, reason: str, now: float) -> list[Action]:
        self._leave_plan(now)
        self._hello_at = now + HELLO_FIRST_S
        refuse = Message.of(Kind.REFUSE, status=status, run=plan["run"], round=plan["round"], reason=reason[:64])
        return self._to_coordinator([refuse])

    def _leave_plan(self, now: float) -> None:
        self.stage, self._sink, self._plan = Stage.IDLE, None, None
        self._deadline = self._collect_until = math.inf
        self._hello_at, self._hello_s = now, HELLO_FIRST_S

    def _to_coordinator(self, messages: Sequence[Message]) -> list[Action]:
        return [Send(self.id, Channel.COORDINATOR, message) for message in messages]

    # ---- cell channel ------------------------------------------------------------------------------------------------

    def _from_device(self, device: str, message: Message, now: float) -> list[Action]:
        match message.kind:
            case Kind.SAMPLES:
                return self._offered(device, message, now)
            case Kind.DATA if device in self._pulls:
                return self._pulled(device, message, now)
            case Kind.REFUSE if device in self._pulls:
                del self._pulls[device]  # the device forgot the blob; it will offer another one
                return self._train_if_ready(now) if self.stage is Stage.COLLECT else []
            case _:
                return []

    def _offered(self, device: str, samples: Message, now: float) -> list[Action]:
        kept = self.offers.get(device)
        if kept is not None and (kept.run, kept.round, handle_of(kept.blob)) == (
            samples["run"],
            samples["round"],
            samples["crc"],
        ):
            return [Send(device, Channel.CELL, _ack(samples))]  # the ack was lost
        running = self._pulls.get(device)
        if running is not None and _same_offer(running[0], samples):
            return []
        # A device of 256 bytes of buffer is the rule, and its limit is not told on this channel.
        try:
            sink = BlobSink(samples["handle"], samples["size"], samples["crc"], LIMIT_BODY_FLOOR)
        except RemoteWireError as error:
            refuse = Message.of(Kind.REFUSE, status=error.status, handle=samples["handle"])
            return [Send(device, Channel.CELL, refuse)]
        self._pulls[device], self._pulled_at[device] = (samples, sink), now
        return [Send(device, Channel.CELL, message) for message in sink.start(now)]

    def _pulled(self, device: str, data: Message, now: float) -> list[Action]:
        samples, sink = self._pulls[device]
        before = sink.progress
        gets = sink.accept(data, now)
        if sink.progress > before:
            self._pulled_at[device] = now
        if not sink.is_complete:
            return [Send(device, Channel.CELL, message) for message in gets]
        del self._pulls[device]
        try:
            blob = sink.blob()
            decode_selected_samples(blob, samples["input_bytes"])
        except RemoteWireError as error:
            refuse = Message.of(Kind.REFUSE, status=error.status, handle=samples["handle"])
            return [Send(device, Channel.CELL, refuse)]
        offer = Offer(device, samples["run"], samples["round"], blob)
        self.offers[device] = offer
        actions: list[Action] = [KeepOffer(offer), Send(device, Channel.CELL, _ack(samples))]
        return actions + (self._train_if_ready(now) if self.stage is Stage.COLLECT else [])

    def _drop(self, devices: Sequence[str]) -> list[Action]:
        for device in devices:
            del self.offers[device]
        return [DropOffers(tuple(devices))] if devices else []


def blob_hash(blob: bytes) -> bytes:
    """The name of a checkpoint in a plan: BLAKE2b-256 of its bytes."""
    return hashlib.blake2b(blob, digest_size=32).digest()


def _turn(plan: Message) -> tuple[bytes, int, int | None]:
    return plan["run"], plan["round"], plan.get("attempt")


def _same_offer(one: Message, other: Message) -> bool:
    return all(one[name] == other[name] for name in ("handle", "run", "round", "size", "crc"))


def _ack(samples: Message) -> Message:
    return Message.of(Kind.ACK, handle=samples["handle"], run=samples["run"], round=samples["round"])
