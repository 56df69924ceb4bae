# SPDX-License-Identifier: Apache-2.0
"""Participants that do not answer, vanish, or come back again and again."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from fedmote.config.write import write_toml
from fedmote.store import Checkpoint, Ledger
from fedmote.tensors import load_safetensors
from fedmote.wire.blobs import decode_head_update
from fedmote.wire.schema import Role
from fedmote_hil.faults.crowd import Background, member
from fedmote_hil.faults.matrix import Bench, NotRunError, row
from fedmote_hil.faults.member import Conduct
from fedmote_hil.faults.model import HEAD
from fedmote_hil.faults.serving import command, environment
from fedmote_hil.faults.site import SITE, Site

_PATIENCE_S = 120.0


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
    injected="2 partner processes (torch) and 3 native devices in a simultaneous round; SIGKILL to one partner once it has its plan; "
    "deadline 15 s",
    required="merge without it, weights renormalised, noted",
    target="round not delayed beyond the deadline; head is the weighted mean of those who reported",
)
def partner_lost(bench: Bench) -> None:
    """Row 37."""
    deadline_s = 15.0
    site = bench.hold(Site(bench.directory, 3, partners={0: "partner-0", 1: "partner-1"}))
    start_partner(site, "partner-0", [site.names[0]])
    victim = start_partner(site, "partner-1", [site.names[1]])
    site.fleet().start()
    windows = {"report_s": deadline_s, "min_fraction": 0.5, "selection_s": 60.0}
    serving = site.serve(site.configure("lost", 1, windows=windows, strategy={"form": "simultaneous"}))
    planned = "SELECT 1 FROM plan WHERE participant = 'partner-1'"
    bench.wait_for("a plan for the partner", lambda: bool(site.ledger("lost", planned)), _PATIENCE_S, 0.001)
    victim.kill()
    result = serving.finish(_PATIENCE_S)["rounds"][0]
    bench.facts.must("partner-1" in result["missing"], f"{result['reported']} of {result['expected']} merged, partner-1 noted as missing")
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
