# SPDX-License-Identifier: Apache-2.0
"""Updates that are none, that are too large, or that belong to another model."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Mapping
from functools import partial

import cbor2
import numpy as np
from numpy.typing import NDArray

from fedmote.store import Checkpoint
from fedmote.tensors import dump_safetensors, load_safetensors
from fedmote.wire.codec import Message, Value
from fedmote.wire.schema import Status
from fedmote_hil.faults.crowd import Background, member, partner
from fedmote_hil.faults.matrix import Bench, row
from fedmote_hil.faults.member import Conduct, Member
from fedmote_hil.faults.model import FEATURES, NUM_PARAMETERS
from fedmote_hil.faults.site import Site

_PATIENCE_S = 90.0
_MIB = 2**20
_WINDOWS = {"report_s": 20.0, "min_fraction": 0.1}
_SOUND = 3
_HELLO_S = 0.2


def _head_with(values: Mapping[int, float]) -> Callable[[Message], bytes]:
    """An update of a device that is sound but for some values."""

    def blob(plan: Message) -> bytes:
        delta = np.full(NUM_PARAMETERS, 0.001, np.float32)
        for index, value in values.items():
            delta[index] = value
        return _raw_head(delta)

    return blob


def _raw_head(delta: NDArray[np.float32], tag: int = 85, encoding: int = 1) -> bytes:
    """A head update as anybody could write it."""
    return cbor2.dumps({1: encoding, 2: cbor2.CBORTag(tag, delta.tobytes())}, canonical=True)


def _statuses(result: Mapping[str, object], who: str) -> set[str]:
    """What the coordinator refused a participant with."""
    refusals = result["refusals"]
    assert isinstance(refusals, list)
    return {str(one["status"]) for one in refusals if one["participant"] == who and one["side"] == "coordinator"}


def _is_finite(site: Site, name: str, version: int) -> bool:
    tensors = Checkpoint.from_bytes(site.checkpoint(name, version)).tensors
    return all(bool(np.isfinite(values).all()) for values in tensors.values())


@row(
    23,
    fault="NaN, Inf or denormal update",
    injected="participants whose update has one NaN, one infinity of either sign, NaN everywhere, one in the partner's encoder "
    "or range, or denormals alone; beside sound ones",
    required="rejected with reason, model finite",
    target="100 %",
)
def not_finite(bench: Bench) -> None:
    """Row 23."""
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    denormals = {index: (index + 1) * tiny for index in range(NUM_PARAMETERS)}
    hostile: dict[str, Conduct] = {
        "one NaN": Conduct(blob=_head_with({7: float("nan")})),
        "one +Inf": Conduct(blob=_head_with({0: float("inf")})),
        "one -Inf": Conduct(blob=_head_with({NUM_PARAMETERS - 1: float("-inf")})),
        "all NaN": Conduct(blob=_head_with(dict.fromkeys(range(NUM_PARAMETERS), float("nan")))),
        "denormals": Conduct(blob=_head_with(denormals)),
    }
    count = len(hostile) + _SOUND
    partners = {0: "partner-0", 1: "partner-1"}
    site = bench.hold(Site(bench.directory, count, partners=partners))
    background = bench.hold(Background())
    liars = [member(site, number, conduct) for number, conduct in enumerate(hostile.values())]
    others = [member(site, len(hostile) + number) for number in range(_SOUND)]
    trainers = [partner(site, name) for name in partners.values()]
    _spoil_partner(trainers[0], "encoder.weight", float("nan"))
    _spoil_partner(trainers[1], "range/x", float("inf"))
    for one in (*liars, *others, *trainers):
        background.begin(one.run())
    config = site.configure("lies", 1, windows=_WINDOWS, strategy={"form": "simultaneous"})
    result = site.serve(config).finish(_PATIENCE_S)
    refused = sum("update-not-finite" in _statuses(result, one.id) for one in (*liars, *trainers))
    bench.facts.must(refused == len(liars) + 2, f"{refused} of {len(liars) + 2} refused as update-not-finite")
    counted = {one["participant"] for one in result["rounds"][0]["updates"]}
    bench.facts.must(counted == {one.id for one in others}, f"{len(counted)} others counted")
    bench.facts.must(_is_finite(site, "lies", 1), "model finite")


def _spoil_partner(trainer: Member, name: str, value: float) -> None:
    """Let a partner send a sound update with one value that is none."""

    def blob(plan: Message) -> bytes:
        tensors = load_safetensors(trainer.learn(plan))
        tensors[name] = np.full((2,) if name.startswith("range/") else tensors[name].shape, value, np.float32)
        return dump_safetensors(tensors)

    trainer.conduct = Conduct(blob=blob)


# ---- oversize -------------------------------------------------------------------------------------------------------------


def _hostile_shapes() -> dict[str, Conduct]:
    """Device updates of a wrong size, shape, type or form."""

    def floats(count: int) -> Callable[[Message], bytes]:
        return lambda plan: _raw_head(np.zeros(count, np.float32))

    huge = {"size": 0xFFFF_FFFF}
    return {
        "4 GiB announced": Conduct(report=dict(huge)),
        "64 MiB announced": Conduct(report={"size": 64 * _MIB}),
        "0 bytes announced": Conduct(report={"size": 0}),
        "one parameter more": Conduct(blob=floats(NUM_PARAMETERS + 1)),
        "one parameter fewer": Conduct(blob=floats(NUM_PARAMETERS - 1)),
        "no parameters": Conduct(blob=floats(0)),
        "float64": Conduct(blob=lambda plan: _raw_head(np.zeros(NUM_PARAMETERS, np.float32), tag=86)),
        "unknown encoding": Conduct(blob=lambda plan: _raw_head(np.zeros(NUM_PARAMETERS, np.float32), encoding=99)),
        "no CBOR": Conduct(blob=lambda plan: b"\xff" * 300),
        "array of 2^32 announced": Conduct(blob=lambda plan: b"\x9a\xff\xff\xff\xff"),
        "string of 2^62 announced": Conduct(blob=lambda plan: b"\xa2\x01\x01\x02\xd8\x55\x5b\x40\0\0\0\0\0\0\0"),
        "2^32 - 1 examples": Conduct(report={"num_examples": 0xFFFF_FFFF}),
    }


def _hostile_files() -> dict[str, Callable[[Member, Message], bytes]]:
    """Partner updates that are other files than they should be."""

    def changed(change: Callable[[dict[str, NDArray[np.float32]]], Mapping[str, NDArray[np.float32]]]) -> Callable[..., bytes]:
        return lambda trainer, plan: dump_safetensors(dict(change(load_safetensors(trainer.learn(plan)))))

    def header(size: int) -> Callable[..., bytes]:
        return lambda trainer, plan: struct.pack("<Q", size) + b"{}"

    def entry(dtype: str, shape: list[int], size: int) -> Callable[..., bytes]:
        text = json.dumps({"encoder.bias": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
        return lambda trainer, plan: struct.pack("<Q", len(text)) + text + bytes(size)

    return {
        "header of 2^60 bytes": header(2**60),
        "header behind the end": header(1000),
        "tensor of 2^62 values": entry("F32", [2**31, 2**31], 4),
        "wrong shape": changed(lambda one: {**one, "encoder.bias": np.zeros(5, np.float32)}),
        "unknown tensor": changed(lambda one: {**one, "another": np.zeros(3, np.float32)}),
        "float64": entry("F64", [FEATURES], 8 * FEATURES),
        "no tensors": changed(lambda one: {}),
    }


@row(
    24,
    fault="oversize, wrong shape, dtype, tensor count",
    injected="12 kinds of device updates and 7 kinds of partner files, from 0 bytes to 4 GiB announced, one participant each, "
    "after a sound round",
    required="rejected before allocation",
    target="100 % refused; peak memory unchanged, 1 MB at most",
)
def oversize(bench: Bench) -> None:
    """Row 24."""
    shapes, files = _hostile_shapes(), _hostile_files()
    partners = {number: f"partner-{number}" for number in range(len(files))}
    site = bench.hold(Site(bench.directory, len(shapes) + _SOUND, partners=partners))
    background = bench.hold(Background())
    devices = [member(site, number, Conduct(hello_s=_HELLO_S)) for number in range(len(site.names))]
    trainers = [partner(site, name, Conduct(hello_s=_HELLO_S)) for name in partners.values()]
    for one in (*devices, *trainers):
        background.begin(one.run())
    windows = {"report_s": 20.0, "min_fraction": 0.1, "max_failed_rounds": 50}
    serving = site.serve(site.configure("sizes", 3, windows=windows, strategy={"form": "simultaneous"}))
    bench.wait_for("a sound round", lambda: site.round_states("sizes")[:1] == ["committed"], _PATIENCE_S, 0.005)
    before = serving.peak_rss_bytes
    for device, conduct in zip(devices, shapes.values(), strict=False):
        device.conduct = conduct
    for trainer, make in zip(trainers, files.values(), strict=True):
        trainer.conduct = Conduct(blob=partial(make, trainer))
    after = before
    while serving.is_running:
        after = max(after, serving.peak_rss_bytes)
        time.sleep(0.01)
    result = serving.finish(_PATIENCE_S)
    names = [*shapes, *(f"file: {name}" for name in files)]
    hostile = [*devices[: len(shapes)], *trainers]
    last = {one["participant"] for one in result["rounds"][-1]["updates"]}
    accepted = [name for name, one in zip(names, hostile, strict=True) if one.id in last]
    unsaid = [name for name, one in zip(names, hostile, strict=True) if not _statuses(result, one.id)]
    bench.facts.must(not accepted, f"{len(names) - len(accepted)} of {len(names)} refused{_list(accepted)}")
    bench.facts.must(not unsaid, f"each with a status{_list(unsaid)}")
    bench.facts.must(len(last) == _SOUND, f"{len(last)} sound ones counted in the last round")
    growth = (after - before) / _MIB
    bench.facts.must(growth <= 1.0, f"peak memory of the coordinator {before / _MIB:.1f} MiB, then {growth:+.2f} MiB")


def _list(names: list[str]) -> str:
    return f" (not: {', '.join(names)})" if names else ""


# ---- versions -------------------------------------------------------------------------------------------------------------


@row(
    26,
    fault="wrong model version, stale round",
    injected="in round 2 of 3 a participant reports an update of version 99, one of the round before, one of another run, one "
    "of an attempt that is over; then they behave",
    required="coded refusal, device refetches",
    target="one extra exchange at most",
)
def wrong_version(bench: Bench) -> None:
    """Row 26."""
    cases: dict[str, tuple[dict[str, Value | None], Status]] = {
        "version 99": ({"version": 99}, Status.WRONG_MODEL),
        "round before": ({"round": 1}, Status.STALE_ROUND),
        "another run": ({"run": b"anothers"}, Status.UNKNOWN_RUN),
        "attempt 7": ({"attempt": 7}, Status.STALE_ROUND),
    }
    site = bench.hold(Site(bench.directory, len(cases) + _SOUND))
    background = bench.hold(Background())
    devices = [_Once(member(site, number), 2) for number in range(len(cases))]
    for device, (changes, _) in zip(devices, cases.values(), strict=True):
        device.changes = changes
        background.begin(device.member.run())
    for number in range(_SOUND):
        background.begin(member(site, len(cases) + number).run())
    result = site.serve(site.configure("versions", 3)).finish(_PATIENCE_S)
    for (name, (_, status)), device in zip(cases.items(), devices, strict=True):
        told = [one for one, _ in device.member.refusals]
        bench.facts.must(told == [status], f"{name}: {', '.join(_word(one) for one in told) or 'not refused'}")
        bench.facts.must(device.plans <= 2, f"{device.plans - 1} extra exchanges")
    reported = [f"{one['reported']}/{one['expected']}" for one in result["rounds"]]
    bench.facts.must(all(one["reported"] == one["expected"] for one in result["rounds"]), f"rounds {', '.join(reported)}")


class _Once:
    """A participant that reports wrongly once, in one round.

    Attributes:
        member: the participant.
        changes: fields of the wrong report.
        plans: how often it was given the plan of that round.
    """

    def __init__(self, member: Member, round: int) -> None:
        self.member = member
        self.changes: dict[str, Value | None] = {}
        self.plans = 0
        self._round = round
        member.conduct = Conduct(blob=self._blob)

    def _blob(self, plan: Message) -> bytes:
        if plan["round"] == self._round:
            self.plans += 1
        is_lying = plan["round"] == self._round and self.plans == 1
        self.member.conduct.report = dict(self.changes) if is_lying else {}
        return self.member.learn(plan)


def _word(status: Status) -> str:
    return status.name.lower().replace("_", "-")


@row(
    38,
    fault="trainer and devices on different model versions",
    injected="in the second of two simultaneous rounds one partner and two devices report updates of the checkpoint before",
    required="no merge across versions",
    target="refused; the checkpoint has the bytes of a run in which they are silent",
)
def versions_apart(bench: Bench) -> None:
    """Row 38."""
    partners = {0: "partner-0", 1: "partner-1"}
    site = bench.hold(Site(bench.directory, 5, partners=partners))
    windows = {"report_s": 6.0, "min_fraction": 0.1}
    found: dict[str, bytes] = {}
    refused = 0
    for name in ("behind", "silent"):
        with Background() as background:
            members = [*(member(site, number) for number in range(5)), *(partner(site, one) for one in partners.values())]
            late = [members[1], members[2], members[5]]
            for one in late:
                one.conduct = Conduct(blob=_behind(one, name))
            for one in members:
                background.begin(one.run())
            config = site.configure(name, 2, windows=windows, strategy={"form": "simultaneous"})
            result = site.serve(config).finish(_PATIENCE_S)
            found[name] = site.checkpoint(name, 2)
            if name == "behind":
                refused = sum("wrong-model" in _statuses(result, one.id) for one in late)
    bench.facts.must(refused == 3, f"{refused} of 3 refused as wrong-model")
    is_same = found["behind"] == found["silent"]
    bench.facts.must(is_same, "same bytes as without them" if is_same else "other bytes than without them")


def _behind(one: Member, name: str) -> Callable[[Message], bytes]:
    """In the second round an update of version 0, again and again, or none."""

    def blob(plan: Message) -> bytes:
        if plan["round"] == 2:
            one.conduct.report = {"version": 0}
            one.conduct.is_silent = name == "silent"
        return one.learn(plan)

    return blob
