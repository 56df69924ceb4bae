# SPDX-License-Identifier: Apache-2.0
"""The broker goes away: in order, with everything it knew, or without a word."""

from __future__ import annotations

import asyncio
import signal
import time

from fedmote.errors import RigError
from fedmote.wire.schema import Kind
from fedmote.wire.topics import topic
from fedmote_hil.faults.crowd import Background
from fedmote_hil.faults.fleet import LINK_UP, Fleet
from fedmote_hil.faults.matrix import Bench, row
from fedmote_hil.faults.mqtt import MqttClient
from fedmote_hil.faults.site import SITE, Site

_BACK_S = 30.0
_ROUNDS = 3
_PATIENCE_S = 120.0


def reference(bench: Bench, site: Site, fleet: Fleet, rounds: int) -> bytes:
    """The final checkpoint of a run that nothing happens to; the fleet is on afterwards."""
    serving = site.serve(site.configure("quiet", rounds))
    fleet.start()
    result = serving.finish(_PATIENCE_S)
    bench.say(f"undisturbed: {rounds} rounds of {len(fleet)} devices, {sum(one['seconds'] for one in result['rounds']):.1f} s")
    return site.checkpoint("quiet", rounds)


def must_be_exact(bench: Bench, found: bytes, expected: bytes) -> None:
    """State whether the final checkpoint has the bytes of the undisturbed run."""
    bench.facts.must(
        found == expected, "final checkpoint byte-identical" if found == expected else "the final checkpoint differs"
    )


def _keep_database(site: Site) -> None:
    """Let the broker write all it knows to a file within a second, as brokers of the field do."""
    assert site.broker is not None  # rows of this file have one
    lines = ["persistence true", f"persistence_location {site.broker.files.directory}/", "autosave_interval 1"]
    with site.broker.files.configuration.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    site.broker.restart()


def _erase(site: Site) -> None:
    """SIGKILL, and the database goes too."""
    assert site.broker is not None
    site.broker.kill9()
    database = site.broker.files.directory / "mosquitto.db"
    if not database.exists():
        raise RigError("the broker kept no database: there was nothing to erase")
    database.unlink()


def _num_retained(site: Site) -> int:
    """How many retained states the broker has."""
    assert site.broker is not None
    host, tcp_port = site.address().split(":")
    password = site.broker.password("coordinator")

    async def count() -> int:
        async with MqttClient(host, int(tcp_port), "onlooker", "coordinator", password) as client:
            await client.subscribe([topic(SITE, "+", "up", Kind.STATE)])
            until, found = time.monotonic() + 1.0, set()
            while time.monotonic() < until:
                while not client.inbox.empty():
                    published = client.inbox.get_nowait()
                    if published is not None and published.is_retained and published.payload:
                        found.add(published.topic)
                await asyncio.sleep(0.05)
            return len(found)

    with Background() as background:
        return background.run(count())


def _disturb(bench: Bench, is_erased: bool) -> None:
    """Take the broker away in the middle of the second round, bring it back, and compare."""
    count, facts = bench.sized(200, 20), bench.facts
    site = bench.hold(Site(bench.directory, count))
    assert site.broker is not None
    if is_erased:
        _keep_database(site)
    fleet = site.fleet()
    expected = reference(bench, site, fleet, _ROUNDS)
    facts.note(f"{count} native devices of {fleet.bytes_each() / 1024:.0f} KiB each")
    before = fleet.counts(LINK_UP)
    serving = site.serve(site.configure("disturbed", _ROUNDS))
    bench.wait_for("a first update of round 2", lambda: site.num_counted("disturbed", 2) > 0, _PATIENCE_S, 0.002)
    if is_erased:
        _erase(site)
    else:
        site.broker.stop()
    counted = site.num_counted("disturbed", 2)
    began = time.monotonic()
    site.broker.start()

    def are_back() -> bool:
        return all(now > then for now, then in zip(fleet.counts(LINK_UP), before, strict=True)) and fleet.num_linked() == count

    bench.wait_for("all devices to be back", are_back, 4 * _BACK_S, 0.1)
    back_s = time.monotonic() - began
    retained = _num_retained(site) if is_erased else count
    result = serving.finish(_PATIENCE_S)
    facts.must(0 < counted < count, f"taken away when {counted} of {count} updates of round 2 were counted")
    facts.must(back_s <= _BACK_S, f"all {count} back in {back_s:.1f} s")
    if is_erased:
        facts.must(retained == count, f"{retained} retained states published again")
    lost = sum(one["expected"] - one["reported"] for one in result["rounds"])
    facts.must(lost == 0, f"{lost} updates lost")
    must_be_exact(bench, site.checkpoint("disturbed", _ROUNDS), expected)


@row(
    15,
    fault="broker restart, clean",
    injected="200 native devices, SIGTERM to Mosquitto in the middle of round 2 of 3, started again at once",
    required="reconnect with jitter",
    target="200 devices back in 30 s, 0 updates lost, exact",
)
def broker_restart(bench: Bench) -> None:
    """Row 15."""
    _disturb(bench, is_erased=False)


@row(
    16,
    fault="broker killed, all state erased",
    injected="200 native devices, Mosquitto keeps a database; SIGKILL in the middle of round 2 of 3, the database deleted",
    required="as 15; retained facts republished",
    target="200 devices back in 30 s, exact",
)
def broker_erased(bench: Bench) -> None:
    """Row 16."""
    _disturb(bench, is_erased=True)


@row(
    17,
    fault="broker unreachable 10 min",
    injected="20 native devices, Mosquitto stopped (SIGSTOP: connections stay, nothing is answered) in the middle of round 2 "
    "of 3; 40 s for 10 min, round deadline 8 s for 2 min",
    required="coordinator alive, round closed by quorum or abandoned",
    target="no unbounded wait: round ends at deadline + 1 s; memory flat (growth 5 % at most)",
)
def broker_unreachable(bench: Bench) -> None:
    """Row 17."""
    deadline_s, outage_s, count, facts = 8.0, float(bench.sized(40, 12)), 20, bench.facts
    site = bench.hold(Site(bench.directory, count))
    fleet = site.fleet()
    windows = {"report_s": deadline_s, "selection_s": 5.0, "min_fraction": 0.5, "max_failed_rounds": 20}
    serving = site.serve(site.configure("cut-off", 3, windows=windows))
    fleet.start()
    bench.wait_for("a first update of round 2", lambda: site.num_counted("cut-off", 2) > 0, _PATIENCE_S, 0.002)
    opened = time.monotonic()
    site.signal_broker(signal.SIGSTOP)
    try:
        before = serving.rss_bytes

        def has_ended() -> bool:
            states = site.round_states("cut-off")
            return len(states) > 1 and states[1] in ("committed", "abandoned")

        ended_s = bench.wait_for("the end of round 2", has_ended, deadline_s + 10.0)
        while time.monotonic() < opened + outage_s:
            time.sleep(0.2)
        after, state = serving.rss_bytes, site.round_states("cut-off")[1]
        is_alive = serving.is_running
    finally:
        site.signal_broker(signal.SIGCONT)
    facts.must(is_alive, f"coordinator alive after {outage_s:.0f} s")
    facts.must(ended_s <= deadline_s + 1.0, f"round 2 {state} {ended_s:.1f} s after the cut (deadline {deadline_s:.0f} s)")
    growth = 100.0 * (after - before) / before
    facts.must(growth <= 5.0, f"memory {before / 2**20:.1f} to {after / 2**20:.1f} MiB ({growth:+.1f} %)")
    result = serving.finish(_PATIENCE_S)
    merged = sum(one["state"] == "committed" for one in result["rounds"])
    facts.must(merged == 3, f"{merged} of 3 rounds merged in the end")
