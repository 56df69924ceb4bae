# SPDX-License-Identifier: Apache-2.0
"""A thousand at once: those that take part, those that only hold a connection, and one that reads too slowly."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import time

from fedmote_hil.faults.crowd import Crowd, raise_descriptor_limit
from fedmote_hil.faults.matrix import Bench, row
from fedmote_hil.faults.site import Site

_PATIENCE_S = 180.0
_ALL_IN_S = 60.0
_LONGEST_S = 120.0
_MAX_RSS_BYTES = 300 * 2**20


@row(
    31,
    fault="connection storm",
    injected="1,000 participants (one process) connect and say hello at once; and once more after the broker was killed in the "
    "round",
    required="jitter, limits",
    target="all in within 60 s, coordinator's memory 300 MB at most",
)
def storm(bench: Bench) -> None:
    """Row 31."""
    count, facts = bench.sized(1000, 100), bench.facts
    site = bench.hold(Site(bench.directory, count))
    windows = {"report_s": 300.0, "selection_s": 120.0}
    serving = site.serve(site.configure("storm", 2, windows=windows))
    bench.wait_for("the coordinator", lambda: bool(site.ledger("storm", "SELECT 1 FROM run")), 30.0)
    began = time.monotonic()
    crowd = Crowd(site, range(count))
    connected_s = crowd.wait("connected", count, _PATIENCE_S) - began
    planned_s = crowd.wait("planned", count, _PATIENCE_S) - began
    facts.must(planned_s <= _ALL_IN_S, f"{count} connected after {connected_s:.1f} s, all with a plan after {planned_s:.1f} s")
    bench.wait_for("half of the second round", lambda: site.num_counted("storm", 2) > 0, _PATIENCE_S, 0.05)
    assert site.broker is not None
    connections = crowd.told()["connections"]
    site.broker.restart()
    began = time.monotonic()
    back_s = crowd.wait("connections", int(connections) + count, _PATIENCE_S) - began
    facts.must(back_s <= _ALL_IN_S, f"all back {back_s:.1f} s after the broker was killed")
    peak = 0
    while serving.is_running:
        peak = max(peak, serving.peak_rss_bytes)
        time.sleep(0.02)
    result = serving.finish(_PATIENCE_S)
    facts.must(peak <= _MAX_RSS_BYTES, f"coordinator held {peak / 2**20:.0f} MiB at most")
    reported = ", ".join(f"{one['reported']}/{one['expected']} in {one['seconds']:.1f} s" for one in result["rounds"])
    facts.must(all(one["reported"] == one["expected"] == count for one in result["rounds"]), f"rounds {reported}")


@row(
    32,
    fault="half-open and idle sockets",
    injected="1,000 connections that say nothing: 500 at the coordinator's own address, 500 at the broker; 2 native devices "
    "work beside them",
    required="reaped",
    target="closed within 60 s, no descriptor more than before",
)
def idle_sockets(bench: Bench) -> None:
    """Row 32."""
    count, facts = bench.sized(500, 20), bench.facts
    raise_descriptor_limit(2 * count + 200)
    site = bench.hold(Site(bench.directory / "broker", 2))
    direct = bench.hold(Site(bench.directory / "direct", 2, has_broker=False))
    windows = {"report_s": 300.0, "selection_s": 300.0}
    servings = [one.serve(one.configure("idle", 1, windows=windows)) for one in (site, direct)]
    servings[1].wait_for_words("listening at", 30.0)
    bench.wait_for("the coordinator", lambda: bool(site.ledger("idle", "SELECT 1 FROM run")), 30.0)
    time.sleep(1.0)  # until the first connection to the broker is there
    before = servings[1].num_descriptors
    with contextlib.ExitStack() as stack:
        idle = [
            [stack.enter_context(socket.create_connection(_split(one.address()), timeout=10.0)) for _ in range(count)]
            for one in (site, direct)
        ]
        began = time.monotonic()
        during = servings[1].num_descriptors
        facts.note(f"{count} + {count} connections; descriptors of the coordinator {before}, then {during}")
        for where, closed_s in zip(("broker", "coordinator"), _seconds_until_closed(idle, began), strict=True):
            facts.must(closed_s <= 60.0, f"closed by the {where} after {closed_s:.0f} s")
    time.sleep(1.0)  # the coordinator hears of the closed ones
    after = servings[1].num_descriptors
    facts.must(after <= before, f"{after} descriptors afterwards")
    for one in (site, direct):
        one.fleet().start()
    reported = [serving.finish(_PATIENCE_S)["rounds"][0]["reported"] for serving in servings]
    facts.must(reported == [2, 2], "devices merged afterwards")


def _split(address: str) -> tuple[str, int]:
    host, tcp_port = address.split(":")
    return host, int(tcp_port)


def _seconds_until_closed(groups: list[list[socket.socket]], began: float) -> list[float]:
    """Until the other side has closed all of each group; infinity where it does not in time."""
    for one in itertools.chain(*groups):
        one.setblocking(False)
    open_ones = [list(group) for group in groups]
    seconds = [math.inf] * len(groups)
    while any(open_ones) and time.monotonic() - began < _LONGEST_S:
        for number, group in enumerate(open_ones):
            if group:
                open_ones[number] = [one for one in group if not _is_closed(one)]
                seconds[number] = math.inf if open_ones[number] else time.monotonic() - began
        time.sleep(0.2)
    return seconds


def _is_closed(one: socket.socket) -> bool:
    try:
        return one.recv(64) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
