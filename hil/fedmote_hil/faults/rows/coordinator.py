# SPDX-License-Identifier: Apache-2.0
"""The coordinator is killed, stopped, and given a clock that is wrong."""

from __future__ import annotations

import signal
import time
from functools import partial

from fedmote.coordinator.crash import ALL_PLACES, PLACES, VARIABLE
from fedmote.wire.schema import Kind
from fedmote_hil.faults.crowd import Background, Crowd, member
from fedmote_hil.faults.matrix import Bench, row
from fedmote_hil.faults.member import Conduct
from fedmote_hil.faults.rows.broker import must_be_exact, reference
from fedmote_hil.faults.site import Site
from fedmote_hil.faults.wall_clock import HOUR_S, YEAR_S, WallClock

_PATIENCE_S = 120.0
_NUM_PLACES = 25
_READY_S = 5.0
_STOP_S = 2.0
_FORCE_TRIES = 30


@row(
    18,
    fault="coordinator kill -9",
    injected="20 native devices, SIGKILL at every named place of the coordinator process, when it passes there first and in "
    "the middle; and once with 1,000 known devices in the middle of a round",
    required="resume continues without questions",
    target="at least 25 places, exact each time; ready in 5 s with 1,000 devices",
)
def coordinator_killed(bench: Bench) -> None:
    """Row 18."""
    _kill_everywhere(bench)
    _come_back_to_a_thousand(bench)


def _kill_everywhere(bench: Bench) -> None:
    count, rounds, facts = bench.sized(20, 6), 2, bench.facts
    with Site(bench.directory / "everywhere", count) as site:
        fleet = site.fleet()
        expected = reference(bench, site, fleet, rounds)
        kills = [(place, n) for place in ALL_PLACES for n in _occurrences(place, count)]
        if bench.is_quick:
            kills = kills[::8]
        exact = died = 0
        for number, (place, occurrence) in enumerate(kills):
            is_killed, is_exact = _kill(site, f"killed-{number}", rounds, f"{place}#{occurrence}", expected)
            died, exact = died + is_killed, exact + is_exact
            if not (is_killed and is_exact) or number % 10 == 9:
                words = f"{'killed' if is_killed else 'NOT KILLED'}, {'exact' if is_exact else 'NOT EXACT'}"
                bench.say(f"{number + 1} of {len(kills)}: {place} {occurrence}: {words}")
        places = len({place for place, _ in kills})
        facts.must(bench.is_quick or places >= _NUM_PLACES, f"{places} named places, {len(kills)} points")
        facts.must(died == len(kills), f"killed at {died}")
        facts.must(exact == len(kills), f"exact after {exact}")


def _occurrences(place: str, count: int) -> tuple[int, ...]:
    """When to die at a place: at the first passing, and in the middle of it all where it is passed again and again."""
    if place in (*PLACES["beginning"], "before Stop", "after Stop"):
        return (1,)
    is_of_participants = place in PLACES["configuration"] or (place in PLACES["reporting"])
    return (1, count + count // 2) if is_of_participants else (1, 2)


def _kill(site: Site, name: str, rounds: int, die_at: str, expected: bytes) -> tuple[bool, bool]:
    """Kill a run at a place, let it go on; whether it was killed there, and whether it ended with the expected bytes."""
    config = site.configure(name, rounds)
    code = site.serve(config, variables={VARIABLE: die_at}).wait(_PATIENCE_S)
    if code == -signal.SIGKILL:
        site.serve(config).finish(_PATIENCE_S)
    return code == -signal.SIGKILL, site.checkpoint(name, rounds) == expected


def _come_back_to_a_thousand(bench: Bench) -> None:
    count, facts = bench.sized(1000, 100), bench.facts
    with Site(bench.directory / "thousand", count + 1) as site, Background() as background:
        config = site.configure("many", 1, windows={"report_s": 600.0, "selection_s": 120.0})
        Crowd(site, range(count))
        probe = member(site, count, Conduct(is_silent=True, hello_s=0.05))
        background.begin(probe.run())
        serving = site.serve(config)
        bench.wait_for("a plan for everybody", lambda: site.num_planned("many", 1) == count + 1, _PATIENCE_S, 0.2)
        bench.wait_for("updates of half the devices", lambda: site.num_counted("many", 1) >= count // 2, _PATIENCE_S, 0.05)
        counted = site.num_counted("many", 1)
        serving.kill9()
        time.sleep(0.5)  # what was on its way to the probe arrives
        probe.times.clear()
        serving = site.serve(config)
        took_s = bench.wait_for("an answer to the probe", lambda: Kind.PLAN in probe.times, 30.0, 0.005)
        facts.must(
            took_s <= _READY_S, f"ready {took_s:.1f} s after the start, {count + 1} known devices, {counted} updates journaled"
        )
        bench.wait_for("the others' updates", lambda: site.num_counted("many", 1) == count, _PATIENCE_S, 0.2)
        facts.must(serving.is_running, f"then {count} of {count} updates counted")


@row(
    19,
    fault="coordinator SIGTERM, SIGINT",
    injected="each in the middle of a round of 20 native devices; a second SIGINT right behind the first",
    required="checkpoint and stop; second SIGINT forces",
    target="2 s at most, exit 0 after SIGTERM, 130 after SIGINT; goes on exactly",
)
def coordinator_told_to_stop(bench: Bench) -> None:
    """Row 19."""
    count, rounds, facts = bench.sized(20, 6), 3, bench.facts
    site = bench.hold(Site(bench.directory, count))
    fleet = site.fleet()
    expected = reference(bench, site, fleet, rounds)
    for number, expected_code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        name = number.name.lower()
        config = site.configure(name, rounds)
        serving = site.serve(config)
        bench.wait_for("a first update of round 2", partial(_has_update, site, name, 2), _PATIENCE_S, 0.002)
        began = time.monotonic()
        serving.send(number)
        code = serving.wait(30.0)
        took_s = time.monotonic() - began
        facts.must(took_s <= _STOP_S and code == expected_code, f"{number.name}: exit {code} after {took_s:.2f} s")
        site.serve(config).finish(_PATIENCE_S)
        must_be_exact(bench, site.checkpoint(name, rounds), expected)
    _force(bench, site)
    config = site.configure("forced", rounds)
    site.serve(config).finish(_PATIENCE_S)
    must_be_exact(bench, site.checkpoint("forced", rounds), expected)


def _has_update(site: Site, name: str, round: int) -> bool:
    return site.num_counted(name, round) > 0


def _force(bench: Bench, site: Site) -> None:
    """A second SIGINT, again until one comes while the first is still being worked on."""
    config = site.configure("forced", 3)
    for _ in range(_FORCE_TRIES):
        serving = site.serve(config)
        serving.wait_for_words("round 1", 30.0)
        began = time.monotonic()
        serving.send(signal.SIGINT)
        # The first one must be heard before the second one is sent: the kernel makes one of two that wait.
        while "stopping" not in serving.words() and serving.is_running:
            time.sleep(0.0005)
        serving.send(signal.SIGINT)
        code = serving.wait(30.0)
        if "forced" in serving.words():
            took_s = time.monotonic() - began
            bench.facts.must(code == 130 and took_s <= _STOP_S, f"second SIGINT: exit {code} after {took_s:.2f} s")
            return
    bench.facts.must(False, f"{_FORCE_TRIES} times the coordinator had stopped before a second SIGINT came")


# ---- clocks ---------------------------------------------------------------------------------------------------------------


@row(
    13,
    fault="clockless",
    injected="10 native devices whose clocks start at 0, and 1 s before they wrap (49.7 days); a coordinator whose time of day "
    "is 1970, 10 years early, 10 years late",
    required="nothing depends on wall time",
    target="3 rounds, exact with each",
)
def clockless(bench: Bench) -> None:
    """Row 13."""
    count, rounds = 10, 3
    site = bench.hold(Site(bench.directory, count))
    fleet = site.fleet()
    expected = reference(bench, site, fleet, rounds)
    for name, start_ms in (("device clock 0", 0), ("device clock wraps", 2**32 - 1000)):
        for device in fleet:
            device.cut_power()
            device.start("--clock-ms", str(start_ms))
        run = name.replace(" ", "-")
        site.serve(site.configure(run, rounds)).finish(_PATIENCE_S)
        _note_exact(bench, name, site.checkpoint(run, rounds) == expected)
    clock = WallClock(site.directory)
    for name, offset_s in (
        ("time of day 0", -int(time.time())),
        ("10 years early", -10 * YEAR_S),
        ("10 years late", 10 * YEAR_S),
    ):
        run = name.replace(" ", "-")
        clock.set(offset_s)
        site.serve(site.configure(run, rounds), variables=clock.variables).finish(_PATIENCE_S)
        began = str(site.ledger(run, "SELECT started_at FROM run")[0][0])
        _note_exact(bench, f"{name} (run dated {began[:4]})", site.checkpoint(run, rounds) == expected)


def _note_exact(bench: Bench, name: str, is_exact: bool) -> None:
    bench.facts.must(is_exact, f"{name}: {'exact' if is_exact else 'differs'}")


@row(
    14,
    fault="host clock step",
    injected="the coordinator's time of day steps by 1 h forward, and back, in the middle of a round that a silent device "
    "keeps open; deadline 6 s",
    required="timers unaffected",
    target="deadline error 1 s at most",
)
def clock_step(bench: Bench) -> None:
    """Row 14."""
    deadline_s = 6.0
    site = bench.hold(Site(bench.directory, 5))
    clock = WallClock(site.directory)
    fleet = site.fleet(range(4))
    with Background() as background:
        background.begin(member(site, 4, Conduct(is_silent=True)).run())
        fleet.start()
        for name, step_s in (("forward", HOUR_S), ("back", -HOUR_S)):
            clock.set(0)
            windows = {"report_s": deadline_s, "min_fraction": 0.5}
            serving = site.serve(site.configure(name, 1, windows=windows), variables=clock.variables)
            bench.wait_for("an update", partial(_has_update, site, name, 1), _PATIENCE_S)
            clock.set(step_s)
            seconds = float(serving.finish(_PATIENCE_S)["rounds"][0]["seconds"])
            error_s = abs(seconds - deadline_s)
            bench.facts.must(error_s <= 1.0, f"1 h {name}: the round took {seconds:.2f} s, deadline {deadline_s:.0f} s")
