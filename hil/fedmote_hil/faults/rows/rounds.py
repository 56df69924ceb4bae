# SPDX-License-Identifier: Apache-2.0
"""Participants that do not answer, vanish, or come back again and again."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from fedmote.config.write import write_toml
from fedmote.store import Checkpoint, Ledger
from fedmote.tensors import load_safetensors
from fedmote.wire.blobs import decode_head_update
from fedmote.wire.schema import Role
from fedmote_hil.faults.crowd import Background, member
from fedmote_hil.faults.fleet import ACK, ENCODE, FETCH, IDLE, LINK_UP, PLAN, REPORT, SELECT, STATE, TRAIN, Device, Fleet
from fedmote_hil.faults.matrix import Bench, NotRunError, row
from fedmote_hil.faults.member import Conduct
from fedmote_hil.faults.model import HEAD
from fedmote_hil.faults.rows.broker import reference
from fedmote_hil.faults.serving import Serving, command, environment
from fedmote_hil.faults.site import KEEP_ALIVE_S, SITE, Site

_PATIENCE_S = 120.0
# A round of the small model has about a hundred steps that do something.
_STEPS = 141
_PAUSE = re.compile(r"pause.{0,10}?([\d.]+) s")


@row(
    29,
    fault="stragglers",
    injected="40 native devices that report and 10 participants that take their plan and never answer; deadline 8 s",
    required="round closes at deadline",
    target="deadline + 1 s at most",
)
def stragglers(bench: Bench) -> None:
    """Row 29."""
    deadline_s, silent, count = 8.0, bench.sized(10, 2), bench.sized(50, 10)
    site = bench.hold(Site(bench.directory, count))
    background = bench.hold(Background())
    for number in range(silent):
        background.begin(member(site, number, Conduct(is_silent=True)).run())
    site.fleet(range(silent, count)).start()
    windows = {"report_s": deadline_s, "min_fraction": 0.5}
    result = site.serve(site.configure("slow", 2, windows=windows)).finish(_PATIENCE_S)
    for one in result["rounds"]:
        late_s = one["seconds"] - deadline_s
        words = f"round {one['round']}: {one['reported']} of {one['expected']}, {one['seconds']:.2f} s"
        bench.facts.must(0 <= late_s <= 1.0 and one["reported"] == count - silent, words)
        bench.facts.must(set(one["missing"]) == set(site.names[:silent]), f"{len(one['missing'])} named as missing")


@row(
    37,
    fault="phone or PC trainer lost in the middle of a round",
    injected="2 partner processes (torch) and 3 native devices in a simultaneous round; SIGKILL to one partner once it has its "
    "plan; deadline 15 s",
    required="merge without it, weights renormalised, noted",
    target="round not delayed beyond the deadline; head is the weighted mean of those who reported",
)
def partner_lost(bench: Bench) -> None:
    """Row 37."""
    deadline_s = 15.0
    site = bench.hold(Site(bench.directory, 3, partners={0: "partner-0", 1: "partner-1"}))
    start_partner(site, "partner-0", [site.names[0]])
    victim = start_partner(site, "partner-1", [site.names[1]])
    site.fleet(is_sending_samples=True).start()
    windows = {"report_s": deadline_s, "min_fraction": 0.5, "selection_s": 60.0}
    strategy = {"form": "simultaneous", "aggregation": "mean", "is_sending_samples": True, "beta": 3.0, "min_examples": 1}
    serving = site.serve(site.configure("lost", 1, windows=windows, strategy=strategy))
    planned = "SELECT 1 FROM plan WHERE participant = 'partner-1'"
    bench.wait_for("a plan for the partner", lambda: bool(site.ledger("lost", planned)), _PATIENCE_S, 0.001)
    victim.kill()
    result = serving.finish(_PATIENCE_S)["rounds"][0]
    bench.facts.must("partner-1" in result["missing"], "partner-1 noted as missing")
    bench.facts.must(result["reported"] == result["expected"] - 1, f"{result['reported']} of {result['expected']} merged")
    bench.facts.must(result["seconds"] <= deadline_s + 1.0, f"after {result['seconds']:.1f} s")
    error = _error_of_mean(site, "lost")
    bench.facts.must(error < 1e-6, f"head differs from the weighted mean of the reported ones by {error:.1e} at most")


def start_partner(site: Site, name: str, devices: list[str], **ports: Path) -> subprocess.Popen[bytes]:
    """Start `fedmote partner`, and wait until it has loaded torch.

    Args:
        site: of it.
        name: of the partner.
        devices: of its cell that speak MQTT themselves, and those in `ports`.
        ports: serial ports of devices, by id with underscores for dashes.
    """
    if importlib.util.find_spec("torch") is None:
        raise NotRunError("torch is not installed: a partner trains with it")
    assert site.broker is not None
    config = site.directory / f"{name}.toml"
    listed: list[dict[str, str]] = [{"id": one, "link": "mqtt"} for one in devices]
    for id, port in ports.items():
        device = id.replace("_", "-")
        credentials = str(site.credentials(device))
        listed.append({"id": device, "link": "serial", "port": str(port), "credentials_file": credentials})
    password = str(site.broker.files.password_file(name))
    tables = {
        "id": name,
        "site": SITE,
        "model": "small_model:build",
        "state_directory": str(site.directory / name),
        "data": str(site.model.test),
        "broker": {"url": site.broker.url, "username": name, "password_file": password},
        "devices": listed,
    }
    write_toml(config, tables)
    paths = os.pathsep.join([str(site.model.directory), *(path for path in sys.path if path)])
    with (site.directory / f"{name}.log").open("wb") as log:
        return site.group.start(command("partner", config), log, log, {**environment(), "PYTHONPATH": paths})


def _error_of_mean(site: Site, name: str) -> float:
    """Largest difference between the merged head and the mean of the reported ones, weighted by their examples."""
    before = Checkpoint.from_bytes(site.checkpoint(name, 0)).tensors
    after = Checkpoint.from_bytes(site.checkpoint(name, 1)).tensors
    parts = [layer_name for layer in HEAD for layer_name in (layer.weight, layer.bias)]
    base = np.concatenate([before[part].ravel() for part in parts]).astype(np.float64)
    merged = np.concatenate([after[part].ravel() for part in parts]).astype(np.float64)
    total, weight = np.zeros_like(base), 0
    with Ledger.open(site.state(name) / "ledger.sqlite", is_read_only=True) as ledger:
        for entry in ledger.updates(1):
            blob = (site.state(name) / "blobs" / entry.content).read_bytes()
            if entry.role is Role.DEVICE:
                delta = decode_head_update(blob)
            else:
                tensors = load_safetensors(blob)
                delta = np.concatenate([tensors[part].ravel() for part in parts])
            total += entry.num_examples * delta.astype(np.float64)
            weight += entry.num_examples
    return float(np.abs(merged - (base + total / weight)).max())


@row(
    30,
    fault="below quorum",
    injected="12 of 20 native devices lose power once they have their plan and stay away; deadline 6 s, quorum 14; they come "
    "back after the second pause (2 s and 4 s for 30 s and 60 s)",
    required="abandon, model unchanged, backoff, pause after k",
    target="no partial merge; merges with all 20 in the end",
)
def below_quorum(bench: Bench) -> None:
    """Row 30."""
    count, lost = 20, 12
    site = bench.hold(Site(bench.directory, count))
    fleet = site.fleet()
    windows = {
        "report_s": 6.0,
        "selection_s": 8.0,
        "min_fraction": 0.7,
        "max_failed_rounds": 1,
        "pause_s": 2.0,
        "max_pause_s": 60.0,
    }
    with Background() as background:
        vanishing = [member(site, number, Conduct(is_silent=True, hello_s=0.5)) for number in range(lost)]
        for one in vanishing:
            background.begin(one.run())
        serving = site.serve(site.configure("few", 1, windows=windows))
        for device in fleet.devices[lost:]:
            device.start()
        bench.wait_for("plans for all", lambda: site.num_planned("few", 1) == count, _PATIENCE_S)
    began = time.monotonic()
    bench.wait_for("the end of round 1", lambda: site.round_states("few")[:1] not in (["open"], []), 30.0)
    ended_s = time.monotonic() - began
    state = site.round_states("few")[0]
    bench.facts.must(state == "abandoned" and ended_s <= 7.0, f"round 1 {state} {ended_s:.1f} s after the last plan")
    bench.wait_for("a second pause", lambda: len(_pauses(serving)) > 1, 60.0)
    versions = site.ledger("few", "SELECT count(*) FROM checkpoint")[0][0]
    bench.facts.must(versions == 1, "no partial merge: checkpoint 0 is the newest")
    pauses = _pauses(serving)
    bench.facts.must(pauses[0] < pauses[1], f"pauses of {', '.join(f'{one:g}' for one in pauses)} s")
    for device in fleet.devices[:lost]:
        device.start()
    result = serving.finish(_PATIENCE_S)["rounds"][-1]
    bench.facts.must(result["reported"] == count, f"then {result['reported']} of {result['expected']} merged")


def _pauses(serving: Serving) -> list[float]:
    """Lengths of the pauses that a coordinator announced, seconds."""
    return [float(found) for found in _PAUSE.findall(serving.words())]


# ---- resets ---------------------------------------------------------------------------------------------------------------


@row(
    11,
    fault="reboot before, during and after training, during upload",
    injected="power cut of native devices after every n-th step that does something, n from 1 to the end of a round, each "
    "restarted at once; 20 devices, each cut somewhere else, run after run",
    required="rejoins, no double count",
    target="back with a plan or an answer within one keep-alive (10 s); exact",
)
def reboots(bench: Bench) -> None:
    """Row 11."""
    count, rounds = bench.sized(20, 6), 1
    site = bench.hold(Site(bench.directory, count))
    fleet = site.fleet()
    expected = reference(bench, site, fleet, rounds)
    cuts = list(range(1, _STEPS, bench.sized(1, 20)))
    exact = num_cut = runs = doubled = 0
    slowest_s = 0.0
    states: Counter[int] = Counter()
    for start in range(0, len(cuts), count):
        name = f"cut-{start}"
        for device in fleet:
            device.cut_power()
            device.forget()
        points = cuts[start : start + count]
        points += [0] * (count - len(points))
        for device, point in zip(fleet, points, strict=True):
            device.start(*(("--power-cut", str(point)) if point else ()))
        serving = site.serve(site.configure(name, rounds))
        cut, took_s, found = _restart_those_that_lost_power(bench, serving, fleet)
        result = serving.finish(_PATIENCE_S)
        runs, num_cut, slowest_s = runs + 1, num_cut + cut, max(slowest_s, took_s)
        states.update(found)
        exact += site.checkpoint(name, rounds) == expected
        doubled += result["rounds"][0]["reported"] != count
    names = ("idle", "fetch", "encode", "select", "train", "report")
    bench.facts.note(f"{num_cut} power cuts: " + ", ".join(f"{states[number]} in {word}" for number, word in enumerate(names)))
    bench.facts.must(bench.is_quick or all(states[number] for number in (IDLE, FETCH, ENCODE, TRAIN, REPORT)), "all states met")
    bench.facts.must(slowest_s <= KEEP_ALIVE_S, f"back after {slowest_s:.1f} s at most")
    bench.facts.must(exact == runs and not doubled, f"{exact} of {runs} runs exact, each device counted once")


def _restart_those_that_lost_power(bench: Bench, serving: Serving, fleet: Fleet) -> tuple[int, float, list[int]]:
    """Until the coordinator ends: power on again at once.

    Returns:
        How many lost power, the longest time from power to an answer of the coordinator, and the states that they were in.
    """
    waiting: dict[Device, tuple[float, int, tuple[int, ...]]] = {}
    slowest_s, cut = 0.0, 0
    states: list[int] = []
    deadline = time.monotonic() + _PATIENCE_S
    while serving.is_running and time.monotonic() < deadline:
        now = time.monotonic()
        for device in fleet:
            if not device.is_running:
                told = [value for event, value in device.told() if event == STATE]
                states.append(told[-1] if told else IDLE)
                device.start()
                cut += 1
                # Whoever was counted already is told to wait, which is no event: its link must do.
                wanted: tuple[int, ...] = (PLAN,) if states[-1] in (FETCH, ENCODE, SELECT, TRAIN) else (PLAN, ACK, LINK_UP)
                waiting[device] = (now, len(device.told()), wanted)
            elif device in waiting:
                began, known, events = waiting[device]
                if any(event in events for event, _ in device.told()[known:]):
                    slowest_s = max(slowest_s, now - began)
                    del waiting[device]
        time.sleep(0.01)
    if waiting:
        bench.facts.must(False, f"{len(waiting)} never came back")
    return cut, slowest_s, states


@row(
    12,
    fault="brown-out loop",
    injected="one of 10 native devices loses power every 200 to 2000 ms for 40 s; deadline 15 s, all needed but it",
    required="no flash death, coordinator quarantines after n",
    target="3 rejoin attempts a minute at most accepted; the device takes part again afterwards",
)
def brown_out(bench: Bench) -> None:
    """Row 12."""
    count, loop_s = 10, float(bench.sized(40, 12))
    site = bench.hold(Site(bench.directory, count))
    fleet = site.fleet()
    draw = random.Random(12)
    windows = {"report_s": 15.0, "selection_s": 5.0, "min_fraction": 0.5}
    # A thousand rounds cannot end: the run is one that the loop cannot outlast.
    serving = site.serve(site.configure("loop", 1000, windows=windows))
    fleet.start()
    bench.wait_for("a first round", lambda: site.round_states("loop")[:1] == ["committed"], _PATIENCE_S)
    sick, resets = fleet[0], 0
    bench.wait_for("a plan for the sick one", lambda: _boots(site, sick.id) > 0, _PATIENCE_S)
    boots_before, began = _boots(site, sick.id), time.monotonic()
    while time.monotonic() - began < loop_s:
        time.sleep(draw.uniform(0.2, 2.0))
        sick.cut_power()
        sick.start()
        resets += 1
    accepted = _boots(site, sick.id) - boots_before
    seconds = time.monotonic() - began
    bench.facts.note(f"{resets} resets in {seconds:.0f} s")
    bench.facts.must(accepted <= 3, f"{accepted} new boots accepted")
    bench.facts.must(serving.is_running, "coordinator alive")
    rounds = len([state for state in site.round_states("loop") if state == "committed"])
    bench.facts.must(rounds > 1, f"{rounds} rounds merged meanwhile")
    serving.kill9()
    # "No flash death": what its slots hold is sound, and it trains and is counted as before.
    result = site.serve(site.configure("after", 1)).finish(_PATIENCE_S)
    bench.facts.must(result["rounds"][0]["reported"] == count, f"then {result['rounds'][0]['reported']} of {count} took part")


def _boots(site: Site, who: str) -> int:
    """Different boots of a participant that were given a plan."""
    return int(site.ledger("loop", "SELECT count(DISTINCT boot) FROM plan WHERE participant = ?", who)[0][0])
