# SPDX-License-Identifier: Apache-2.0
"""Peers and files of another version."""

from __future__ import annotations

import json
import sqlite3
import time
from typing import Any

import cbor2

from fedmote.errors import RemoteWireError
from fedmote.package.boards import sdk_root
from fedmote.wire.codec import Message, decode
from fedmote.wire.frame import FrameDecoder
from fedmote.wire.schema import LIMIT_PROTOCOL, Kind, Status
from fedmote_hil.faults.crowd import Background, member
from fedmote_hil.faults.matrix import Bench, row
from fedmote_hil.faults.member import Conduct, Member
from fedmote_hil.faults.mqtt import MqttClient
from fedmote_hil.faults.site import SITE, Site

_PATIENCE_S = 90.0
# Of a newer peer, in keys that no version of the schema has yet.
_UNKNOWN_FIELDS = {60_000: 7, 60_001: b"new", 60_002: [1, {2: "nested"}]}


@row(
    39,
    fault="protocol skew n-1 and n+1",
    injected="golden vectors of protocol 1, the only released one; at a coordinator process: a hello of protocol 2, one with "
    "fields that nobody knows, a message of an unknown kind; a ledger of a newer version",
    required="works or explicit refusal",
    target="every vector read or refused with its status; each newer peer answered",
)
def skew(bench: Bench) -> None:
    """Row 39."""
    _read_vectors(bench)
    site = bench.hold(Site(bench.directory, 4))
    background = bench.hold(Background())
    newer = member(site, 0, Conduct(hello={"protocol": LIMIT_PROTOCOL + 1}, hello_s=0.5))
    talkative = _Talkative(member(site, 1))
    for one in (newer, talkative.member, member(site, 2), member(site, 3)):
        background.begin(one.run())
    windows = {"report_s": 15.0, "selection_s": 5.0, "min_fraction": 0.5}
    serving = site.serve(site.configure("skew", 2, windows=windows))
    bench.wait_for("an answer to protocol 2", lambda: bool(newer.refusals), 30.0)
    told = background.run(_say_unknown_kind(site, newer))
    result = serving.finish(_PATIENCE_S)
    facts = bench.facts
    refused = {one for one, _ in newer.refusals} - {Status.UNKNOWN_KIND}  # which is the answer to the other one, under its name
    facts.must(refused == {Status.PROTOCOL}, f"protocol {LIMIT_PROTOCOL + 1}: refused, {newer.refusals[0][1]!r}")
    counted = {one["participant"] for one in result["rounds"][0]["updates"]}
    facts.must(talkative.member.id in counted, "unknown fields: skipped, its update counted")
    facts.must(told == "unknown-kind", f"unknown kind: {told}")
    facts.must(newer.id not in counted and len(counted) == 3, f"{len(counted)} of 3 others counted")
    with sqlite3.connect(site.state("skew") / "ledger.sqlite") as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version = {version + 1}")
    again = site.serve(site.directory / "skew.toml")
    code = again.wait(30.0)
    facts.must(code == 3 and "upgrade" in again.words(), f"ledger of version {version + 1}: exit {code}, says to upgrade")


class _Talkative:
    """A participant whose hello has fields of a newer schema."""

    def __init__(self, one: Member) -> None:
        self.member = one
        true = one.hello
        one.hello = lambda: cbor2.dumps({**cbor2.loads(true()), **_UNKNOWN_FIELDS}, canonical=True)  # type: ignore[method-assign]


async def _say_unknown_kind(site: Site, one: Member) -> str:
    """Say something of a kind that there is not; what the coordinator answers."""
    host, tcp_port = site.address().split(":")
    login = site.login(one.id)
    stem = f"fedmote/{LIMIT_PROTOCOL}/{SITE}/{one.id}"
    async with MqttClient(host, int(tcp_port), "newer", login.username, login.password) as client:
        await client.subscribe([f"{stem}/dn/refuse"])
        await client.publish(f"{stem}/up/tomorrow", b"\xa0", 1)
        until = time.monotonic() + 10.0
        while time.monotonic() < until:
            published = await client.inbox.get()
            if published is None:
                break
            status = Status(decode(Kind.REFUSE, published.payload)["status"])
            if status is Status.UNKNOWN_KIND:
                return "unknown-kind"
    return "no answer"


def _read_vectors(bench: Bench) -> None:
    """Every golden vector does what it says."""
    directory = sdk_root() / "protocol" / "vectors"
    wrong: list[str] = []
    vectors: list[dict[str, Any]] = json.loads((directory / "messages.json").read_text(encoding="utf-8"))
    for one in vectors:
        if _found(one["kind"], bytes.fromhex(one["hex"])) != one["status"]:
            wrong.append(str(one["name"]))
    frames: list[dict[str, Any]] = json.loads((directory / "frames.json").read_text(encoding="utf-8"))
    for one in frames:
        decoder = FrameDecoder()
        is_read = bool(decoder.feed(bytes.fromhex(one["hex"])))
        if is_read != (one["status"] == "ok"):
            wrong.append(str(one["name"]))
    count = len(vectors) + len(frames)
    bench.facts.must(not wrong, f"{count - len(wrong)} of {count} golden vectors{': not ' + wrong[0] if wrong else ''}")


def _found(kind: int, body: bytes) -> str:
    """Status of a body, in words."""
    try:
        message: Message = decode(kind, body)
    except RemoteWireError as error:
        return error.status.name.lower().replace("_", "-")
    return "ok" if message.kind == kind else "another kind"
