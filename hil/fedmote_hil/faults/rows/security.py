# SPDX-License-Identifier: Apache-2.0
"""Messages that are not what they say: heard before, forged, of somebody else; keys that were withdrawn or copied.

The attacker owns the broker: it lets through whatever he sends, under any topic. What the coordinator makes of it is read from
its ledger, and from the bytes that the run ends with.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fedmote.errors import TransportError
from fedmote.transport.base import peek_hello
from fedmote.wire.schema import LIMIT_SEAL, Channel, Kind, Status
from fedmote.wire.seal import GREETING_EPOCH, Envelope, Way
from fedmote.wire.topics import parse, topic
from fedmote_hil.faults.crowd import Background
from fedmote_hil.faults.fleet import LINK_UP, Device
from fedmote_hil.faults.matrix import Bench, row
from fedmote_hil.faults.mqtt import MqttClient
from fedmote_hil.faults.rows.broker import must_be_exact
from fedmote_hil.faults.serving import Serving, command
from fedmote_hil.faults.site import SITE, Site
from fedmote_hil.shim import Shim

_PATIENCE_S = 120.0
_REFUSED = (Status.AUTH, Status.REPLAY, Status.REVOKED)
# As fast as the coordinator's process takes them beside its work; the broker drops what it cannot hand on.
_RATE_PER_S = 2_000
_HOSTILE = 50_000
_REVOKED_S = 5.0


@dataclass
class _Wire:
    """What an attacker hears, and says."""

    site: Site
    background: Background
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    def listen(self) -> None:
        """Hear everything that participants say from now on."""
        self.background.begin(self._listen())

    async def _listen(self) -> None:
        assert self.site.broker is not None
        host, tcp_port = self.site.address().split(":")
        password = self.site.broker.password("coordinator")
        while True:
            try:
                async with MqttClient(host, int(tcp_port), "eavesdropper", "coordinator", password) as client:
                    await client.subscribe([topic(SITE, "+", "up", "#")])
                    while (published := await client.inbox.get()) is not None:
                        address = parse(published.topic)
                        if address is not None and address.known_kind is not Kind.STATE and len(published.payload) > LIMIT_SEAL:
                            self.heard.append((published.topic, published.payload))
            except (TransportError, OSError):
                await asyncio.sleep(0.5)

    def send(self, messages: Callable[[], Iterator[tuple[str, bytes]]], count: int, timeout_s: float) -> int:
        """Say so many messages at a steady pace; how many went out."""
        return self.background.run(self._send(messages, count, timeout_s), timeout_s + 30.0)

    async def _send(self, messages: Callable[[], Iterator[tuple[str, bytes]]], count: int, timeout_s: float) -> int:
        host, tcp_port = self.site.address().split(":")
        login = self.site.login(self.site.names[0])
        sent, began = 0, time.monotonic()
        async with MqttClient(host, int(tcp_port), "attacker", login.username, login.password) as client:
            for name, payload in messages():
                await client.publish(name, payload, 0)
                sent += 1
                if sent >= count or time.monotonic() - began > timeout_s:
                    break
                if (ahead := began + sent / _RATE_PER_S - time.monotonic()) > 0:
                    await asyncio.sleep(ahead)
        return sent


def _open_doors(site: Site) -> None:
    """A broker that lets everybody say everything: the attacker's own."""
    assert site.broker is not None
    file = site.broker.files.configuration
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("acl_file")]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    site.broker.restart()


def _num_refused(site: Site, name: str) -> dict[str, int]:
    """Messages that the coordinator did not believe, by reason."""
    marks = ", ".join(str(int(status)) for status in _REFUSED)
    rows = site.ledger(name, f"SELECT status, sum(count) FROM refusal WHERE status IN ({marks}) GROUP BY status")
    return {Status(status).name.lower(): int(count) for status, count in rows}


def _standing(site: Site, name: str) -> list[tuple[object, ...]]:
    """Everything of a run that counts."""
    return [
        *site.ledger(name, "SELECT * FROM round"),
        *site.ledger(name, "SELECT * FROM plan"),
        *site.ledger(name, 'SELECT * FROM "update"'),
        *site.ledger(name, "SELECT * FROM checkpoint"),
    ]


def _is_greeting(site: Site, name: str, payload: bytes) -> bool:
    """Whether a message is one for no epoch, which may be said again by anybody and is answered, but never acted on."""
    address = parse(name)
    if address is None or address.known_kind is None:
        return False
    key = site.login(address.id).key_bytes
    boot, sequence = (int.from_bytes(payload[-24 + at : -20 + at], "little") for at in (0, 4))
    envelope = Envelope(Way.UP, Channel.COORDINATOR, address.id, address.known_kind, GREETING_EPOCH, boot, sequence)
    return key is not None and envelope.open(key, payload) is not None


def _is_misnamed(message: tuple[str, bytes]) -> bool:
    """Whether it is a hello of one participant under the topic of another."""
    address = parse(message[0])
    if address is None or address.known_kind is None:
        return False
    hello = peek_hello(address.known_kind, message[1][:-LIMIT_SEAL])
    return hello is not None and hello["device"] != address.id


def _again(messages: list[tuple[str, bytes]]) -> Callable[[], Iterator[tuple[str, bytes]]]:
    """These messages, over and over."""

    def cycle() -> Iterator[tuple[str, bytes]]:
        while True:
            yield from messages

    return cycle


def _attack(bench: Bench, site: Site, wire: _Wire, name: str, messages: list[tuple[str, bytes]], what: str) -> None:
    """Say hostile messages to a run that waits for its last device, until enough were refused; then let it go on."""
    wanted = bench.sized(_HOSTILE, 2_000)
    standing = _standing(site, name)
    before = sum(_num_refused(site, name).values())
    sent = counted = misnamed = 0
    deadline = time.monotonic() + 180.0
    while counted < wanted and time.monotonic() < deadline:
        went_out = wire.send(_again(messages), wanted - counted, 120.0)
        sent += went_out
        misnamed += sum(map(_is_misnamed, itertools.islice(_again(messages)(), went_out)))
        time.sleep(2.5)  # the coordinator writes its counts once a second
        counted = sum(_num_refused(site, name).values()) - before
    reasons = ", ".join(f"{reason} {count}" for reason, count in _num_refused(site, name).items())
    bench.facts.must(counted >= wanted, f"{what}: {sent} sent, {counted} refused and counted ({reasons})")
    if misnamed:
        bench.facts.note(f"{misnamed} hellos under another's name dropped before any key was asked")
    bench.facts.note(f"{sent - counted - misnamed} not handed on by the broker")
    changed = sorted(str(one) for one in set(_standing(site, name)) ^ set(standing))
    bench.facts.must(
        not changed, f"the ledger changed: {changed[0]} and {len(changed) - 1} more" if changed else "nothing changed"
    )


def _waiting_run(bench: Bench, site: Site, name: str, rounds: int) -> Serving:
    """A run that waits for the last device of the site, with the others there."""
    windows = {"selection_s": 600.0, "report_s": 300.0}
    serving = site.serve(site.configure(name, rounds, windows=windows))
    bench.wait_for("the run", lambda: bool(site.ledger(name, "SELECT 1 FROM run")), 30.0)
    time.sleep(3.0)  # the others say hello, and are heard
    return serving


@row(
    27,
    fault="replay in the same and a later round, of another run",
    injected="4 native devices with keys, every message of theirs heard by an attacker who owns the broker: said again at "
    "once, in later rounds, in another run, 50,000 in all",
    required="rejected, counted",
    target="100 %; the runs end with the bytes of undisturbed ones",
)
def replay(bench: Bench) -> None:
    """Row 27."""
    rounds = bench.sized(8, 3)
    site = bench.hold(Site(bench.directory, 4, has_keys=True))
    _open_doors(site)
    wire = _Wire(site, bench.hold(Background()))
    fleet = site.fleet()
    fleet.start()
    site.serve(site.configure("quiet", rounds)).finish(_PATIENCE_S)
    expected = site.checkpoint("quiet", rounds)
    wire.listen()
    time.sleep(1.0)  # until it is connected
    serving = site.serve(site.configure("heard", rounds))
    bench.wait_for("the first words", lambda: len(wire.heard) > 20, 60.0)
    sent = wire.send(lambda: _live(wire), 1_000_000, float(rounds) / 2)
    serving.finish(_PATIENCE_S)
    refused = _num_refused(site, "heard")
    bench.facts.must(sum(refused.values()) > 0, f"{sent} said again while the rounds went on, refused: {refused}")
    must_be_exact(bench, site.checkpoint("heard", rounds), expected)
    old = [one for one in wire.heard if not _is_greeting(site, *one)]
    site.serve(site.configure("between", 1)).finish(_PATIENCE_S)  # its start makes an epoch that lies between
    fleet[3].cut_power()
    serving = _waiting_run(bench, site, "another", rounds)
    _attack(bench, site, wire, "another", old, f"{len(old)} messages of another run")
    fleet[3].start()
    serving.finish(_PATIENCE_S)
    must_be_exact(bench, site.checkpoint("another", rounds), expected)


def _live(wire: _Wire) -> Iterator[tuple[str, bytes]]:
    """What was heard so far, in random order, new words among it as they come."""
    draw = random.Random(27)
    while True:
        yield wire.heard[draw.randrange(len(wire.heard))]


@row(
    28,
    fault="forged key, unknown, revoked device, another's topic",
    injected="at the broker: wrong password, unknown user, another's topic; at the coordinator behind a broker that lets all "
    "through: 50,000 messages sealed with wrong keys, changed in any bit, of one device under another's topic, of "
    "unknown ids; `fedmote enroll revoke` of a device that takes part",
    required="rejected at broker and coordinator",
    target="100 %, revocation within 5 s",
)
def forged(bench: Bench) -> None:
    """Row 28."""
    rounds = bench.sized(6, 2)
    site = bench.hold(Site(bench.directory, 5, has_keys=True))
    wire = _Wire(site, bench.hold(Background()))
    fleet = site.fleet()
    fleet.start()
    wire.listen()
    wire.background.run(_knock(bench, site, wire))
    _revoke(bench, site, fleet[4])
    others = range(4)
    wire.heard.clear()
    site.serve(site.configure("quiet", rounds, numbers=others)).finish(_PATIENCE_S)
    expected = site.checkpoint("quiet", rounds)
    _open_doors(site)
    time.sleep(2.0)  # the ears are there again
    known = len(wire.heard)
    config = site.configure("forged", rounds, numbers=others, windows={"selection_s": 600.0, "report_s": 300.0})
    fleet[3].cut_power()
    serving = site.serve(config)
    bench.wait_for("words of the devices", lambda: len(wire.heard) > known + 10, 60.0)
    bench.wait_for("the run", lambda: bool(site.ledger("forged", "SELECT 1 FROM run")), 30.0)
    messages = list(_forgeries(site, list(wire.heard), bench.sized(20_000, 2_000)))
    _attack(bench, site, wire, "forged", messages, "forged, changed, of others, of strangers")
    fleet[3].start()
    serving.finish(_PATIENCE_S)
    must_be_exact(bench, site.checkpoint("forged", rounds), expected)


async def _knock(bench: Bench, site: Site, wire: _Wire) -> None:
    """What the broker itself refuses."""
    host, tcp_port = site.address().split(":")
    for user, password in ((site.names[0], "guessed"), ("stranger", "guessed"), ("", "")):
        try:
            async with MqttClient(host, int(tcp_port), f"knock-{user}", user, password):
                bench.facts.must(False, f"the broker let {user or 'anonymous'} in")
        except TransportError:
            pass
    bench.facts.must(True, "broker: wrong password, stranger and anonymous refused")
    await asyncio.sleep(1.0)
    login = site.login(site.names[0])
    name, mark = topic(SITE, site.names[1], "up", Kind.REPORT), secrets.token_bytes(64)
    async with MqttClient(host, int(tcp_port), "trespasser", login.username, login.password) as client:
        await client.publish(name, mark, 1)
        await asyncio.sleep(1.0)
    is_heard = any(payload == mark for _, payload in wire.heard)
    bench.facts.must(not is_heard, "another's topic refused by the broker")


def _revoke(bench: Bench, site: Site, device: Device) -> None:
    """Put a device out while it takes part."""
    config = site.configure("revoking", 1000, windows={"report_s": 5.0, "min_fraction": 0.5, "selection_s": 5.0})
    serving = site.serve(config)
    bench.wait_for("an update of it", lambda: bool(_updates_of(site, device)), 60.0)
    ups = device.count(LINK_UP)
    began = time.monotonic()
    done = site.run(command("enroll", "revoke", device.id, "--config", config, "--json"))
    code = done.wait(30.0)
    bench.wait_for("the coordinator's word", lambda: "key was revoked" in serving.words(), 30.0)
    coordinator_s = time.monotonic() - began
    bench.wait_for("the end of its session", lambda: not device.is_linked, 30.0)
    broker_s = time.monotonic() - began
    time.sleep(2.0)
    counted = len(_updates_of(site, device))
    time.sleep(3.0)
    facts = bench.facts
    facts.must(code == 0 and coordinator_s <= _REVOKED_S, f"revoked at the coordinator {coordinator_s:.1f} s after the command")
    facts.must(broker_s <= _REVOKED_S, f"at the broker after {broker_s:.1f} s")
    facts.must(len(_updates_of(site, device)) == counted, "no update of it counted since")
    facts.must(device.count(LINK_UP) == ups and not device.is_linked, "it does not get in again")
    serving.kill9()
    device.cut_power()


def _updates_of(site: Site, device: Device) -> list[tuple[object, ...]]:
    return site.ledger("revoking", 'SELECT round FROM "update" WHERE participant = ?', device.id)


def _forgeries(site: Site, heard: list[tuple[str, bytes]], count: int) -> Iterator[tuple[str, bytes]]:
    """Messages that nobody with the right key ever said."""
    draw = random.Random(28)
    kinds = (Kind.HELLO, Kind.REPORT, Kind.GET, Kind.DATA, Kind.REFUSE)
    for number in range(count):
        name, payload = heard[draw.randrange(len(heard))]
        address = parse(name)
        assert address is not None
        match number % 5:
            case 0:  # any bit changed
                changed = bytearray(payload)
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
                yield name, bytes(changed)
            case 1:  # a wrong key, numbers that nobody used yet
                kind = kinds[draw.randrange(len(kinds))]
                boot, sequence = draw.getrandbits(31), draw.getrandbits(31)
                envelope = Envelope(Way.UP, Channel.COORDINATOR, address.id, kind, draw.getrandbits(31), boot, sequence)
                yield topic(SITE, address.id, "up", kind), envelope.close(draw.randbytes(32), draw.randbytes(40))
            case 2:  # another's topic
                others = [one for one in site.names[:4] if one != address.id]
                assert address.known_kind is not None
                yield topic(SITE, others[draw.randrange(len(others))], "up", address.known_kind), payload
            case 3:  # somebody who was never enrolled, or was put out
                assert address.known_kind is not None
                stranger = f"stranger-{draw.randrange(1000)}" if number % 2 else site.names[4]
                yield topic(SITE, stranger, "up", address.known_kind), payload
            case _:  # another kind, or cut short
                kind = kinds[draw.randrange(len(kinds))]
                is_cut = kind is address.known_kind
                yield topic(SITE, address.id, "up", kind), payload[: draw.randrange(len(payload))] if is_cut else payload


@row(
    34,
    fault="duplicate device id",
    injected="a native device and its copy, identity, key and flash, both on; 3 other devices beside them, one over a line of "
    "300 B/s, so that rounds take some seconds",
    required="both quarantined, alert",
    target="next round",
)
def duplicate(bench: Bench) -> None:
    """Row 34."""
    site = bench.hold(Site(bench.directory, 4, has_keys=True))
    background = bench.hold(Background())
    slow = Shim(f"tcp://{site.address()}", rate_bytes_s=300, is_framed=False)
    background.run(slow.start())
    first, *others = site.fleet(range(3))
    (last,) = site.fleet([3], link=["--connect", slow.url.removeprefix("tcp://")])
    for device in (first, *others, last):
        device.start()
    windows = {"report_s": 150.0, "selection_s": 10.0, "min_fraction": 0.5}  # the slow line is behind by what it was told before
    site.serve(site.configure("alone", 1, windows=windows)).finish(_PATIENCE_S)
    first.cut_power()
    shutil.copytree(first.directory, bench.directory / "copy")
    twin = site.twin(first, bench.directory / "copy")
    serving = site.serve(site.configure("double", 3, windows=windows))
    first.start()
    twin.start()
    result = serving.finish(2 * _PATIENCE_S)
    found = [one["round"] for one in result["rounds"] if "two boards" in one["quarantined"].get(first.id, "")]
    bench.facts.must(bool(found) and found[0] <= 2, f"found in round {found[0] if found else '-'} of {len(result['rounds'])}")
    counted = [one["round"] for one in result["rounds"] for update in one["updates"] if update["participant"] == first.id]
    bench.facts.must(bool(found) and max(counted, default=0) <= found[0], f"its updates count in rounds {counted} alone")
    bench.facts.must("two boards" in serving.words(), "said to the operator")
    lost = sorted({who for one in result["rounds"] for who in one["missing"]} - {first.id})
    bench.facts.must(not lost, f"others missing: {', '.join(lost) or 'none'}")
    background.run(slow.close())
