# SPDX-License-Identifier: Apache-2.0
"""The device with keys: whole rounds in sealed messages, restarts of both ends, and attacks that must change nothing."""

import io
import random
from collections import Counter
from functools import cache

import cbor2
import pytest

from fedmote.wire.schema import LIMIT_SEAL, Channel, Kind, Status
from fedmote.wire.seal import Envelope, Way
from firmware_tests.device_bench import PORT_ERROR, Device, FlashModel, library
from firmware_tests.one_round import MODEL_HANDLE, PACKAGE, bench, data, finish, plan_for
from firmware_tests.scripted_peers import COORDINATOR, RUN, Packet, Peers, bodies_of
from firmware_tests.sealed_peers import CELL_KEY, KEY, SealedPeers

JOURNAL_BYTES = 2048
ATTACKS = 100_000


def sealed_bench(rounds: int = 1, **options: object) -> tuple[Device, SealedPeers]:
    """A device with keys and a journal, and its peers."""
    flash = FlashModel(journal_bytes=JOURNAL_BYTES)
    device = Device(*data(), flash=flash, key=KEY, cell_key=CELL_KEY, **options)
    return device, SealedPeers(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE}, rounds=rounds)


@cache
def undisturbed() -> tuple[list[bytes], list[bytes]]:
    """The update and the samples of a round in readable messages."""
    device, peers = bench()
    finish(device, peers)
    return peers.updates[1], peers.samples[1]


def assert_same_round(peers: SealedPeers) -> None:
    assert (peers.updates[1][:1], peers.samples[1][:1]) == undisturbed()


def test_a_sealed_round_computes_what_a_readable_one_computes():
    device, peers = sealed_bench()
    finish(device, peers)
    assert_same_round(peers)
    info = device.info
    assert (info.is_sealed, info.frame_errors, info.messages_forged, info.messages_replayed) == (1, 0, 0, 0)
    assert peers.refused == []


def test_of_a_sealed_round_only_hellos_can_be_read_on_the_line():
    device, peers = sealed_bench()
    finish(device, peers)
    kinds = Counter(Kind(kind) for _, _, kind, _ in peers.seen)
    assert set(kinds) >= {Kind.HELLO, Kind.WAIT, Kind.PLAN, Kind.GET, Kind.DATA, Kind.REPORT, Kind.SAMPLES, Kind.ACK}
    line = b"".join(body for _, _, kind, body in peers.seen if kind != Kind.HELLO)
    x, _ = data()
    for secret in (RUN, PACKAGE[16:48], PACKAGE[200:216], *(row.tobytes()[:8] for row in x)):
        assert secret not in line
    assert all(b"board-1" in body for _, _, kind, body in peers.seen if kind == Kind.HELLO)


def test_a_device_with_keys_does_not_hear_and_does_not_say_anything_readable():
    device, _ = sealed_bench()
    readable = bench()[1]
    readable.tell(device, readable.plan_packet())
    for _ in range(200):
        device.step()
        device.now += 50
    assert device.state == "idle"
    assert device.info.messages_forged == 1
    said = bodies_of(device.tx)
    assert {kind for _, kind, _ in said} == {Kind.HELLO}
    for _, _, body in said:
        with pytest.raises(cbor2.CBORDecodeError):
            decode_whole(body)
        decode_whole(body[:-LIMIT_SEAL])


def decode_whole(body: bytes) -> object:
    """The CBOR of a body that holds nothing else."""
    stream = io.BytesIO(body)
    item = cbor2.load(stream)
    if stream.read(1):
        raise cbor2.CBORDecodeError("more follows")
    return item


def test_without_a_cell_key_no_sample_leaves():
    device = Device(*data(), flash=FlashModel(journal_bytes=JOURNAL_BYTES), key=KEY)
    peers = SealedPeers(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE})
    peers.run(device, lambda: bool(peers.updates))
    assert {channel for _, channel, _, _ in peers.seen} == {COORDINATOR}
    assert peers.reports[0]["sent"] == 0


class BrokenJournal(FlashModel):
    """Flash whose journal takes no write."""

    def write(self, slot: int, offset: int, data: bytes) -> int:
        return PORT_ERROR


def test_a_device_with_keys_that_cannot_count_its_boots_or_has_no_cryptography_does_not_start():
    with pytest.raises(AssertionError, match=str(-Status.SLOT_IO)):
        Device(*data(), key=KEY, cell_key=CELL_KEY)  # without a journal
    with pytest.raises(AssertionError, match=str(-Status.SLOT_IO)):
        Device(*data(), flash=BrokenJournal(journal_bytes=JOURNAL_BYTES), key=KEY)
    device = Device(*data(), flash=FlashModel(journal_bytes=JOURNAL_BYTES), key=KEY)
    for name in ("crypto", "sealing"):
        setattr(device._port, name, None)
        with pytest.raises(AssertionError, match=str(-Status.ARGUMENT)):
            device.boot()


def test_no_copy_of_a_key_is_in_the_memory_of_the_device():
    device, peers = sealed_bench()
    finish(device, peers)
    memory = device._memory.tobytes() + device._guarded.tobytes()
    for key in (KEY, CELL_KEY):
        assert not any(key[at : at + 8] in memory for at in range(0, 32, 8))


@pytest.mark.parametrize("channel", list(Channel))
def test_a_restart_of_a_peer_at_any_frame_costs_nothing_but_time(channel):
    calm = sealed_bench()
    finish(*calm)
    for at in range(calm[1].frames):
        device, peers = sealed_bench()

        def alter(number: int, packet: Packet, is_down: bool, peers: SealedPeers = peers, at: int = at) -> list[Packet]:
            if number == at:
                peers.restart(channel)
            return [packet]

        peers.alter = alter
        finish(device, peers)
        assert_same_round(peers)


def test_a_device_that_missed_two_restarts_learns_the_epoch_all_the_same():
    device, peers = sealed_bench(rounds=2)
    peers.run(device, lambda: 1 in peers.updates)
    peers.restart(Channel.COORDINATOR)
    peers.restart(Channel.COORDINATOR)
    finish(device, peers)
    assert len(peers.updates) == 2
    assert set(peers.refused) <= {Status.AUTH}


def test_a_reset_in_any_state_ends_with_the_same_bytes_and_boots_only_rise():
    for state in ("idle", "fetch", "encode", "train", "report"):
        device, peers = sealed_bench()
        peers.run(device, lambda device=device, state=state: device.state == state)
        boots = {peers.boot}
        device.rx.clear()
        device.tx.clear()
        device.boot()
        finish(device, peers)
        assert_same_round(peers)
        assert state == "idle" or (None not in boots and peers.boot > max(boots))  # type: ignore[type-var, operator]


def test_an_answer_to_an_earlier_boot_is_worthless():
    device, peers = sealed_bench()
    peers.run(device, lambda: device.state == "fetch")
    old = [(channel, kind, body) for is_down, channel, kind, body in peers.seen if is_down]
    assert old
    device.rx.clear()
    device.tx.clear()
    device.boot()
    for one in old:
        peers.write(device, *one)
    for _ in range(500):
        device.step()
    assert (device.state, device.info.messages_forged) == ("idle", len(old))


# ---- attacks ---------------------------------------------------------------------------------------------------------


class Attacker:
    """Owns the line, knows everything that ever went over it, and messages of other devices, runs and rounds; no key of these."""

    def __init__(self, peers: SealedPeers, seed: int) -> None:
        self._random = random.Random(seed)
        self._down = [one[1:] for one in peers.seen if one[0]]
        self._up = [one[1:] for one in peers.seen if not one[0]]
        self.sent: Counter[str] = Counter()

    def next(self) -> tuple[int, int, bytes]:
        kind = self._random.choice(["flipped", "cut", "longer", "replayed", "reflected", "another device", "another kind",
                                    "another channel", "readable", "noise", "counters"])  # fmt: skip
        self.sent[kind] += 1
        channel, number, body = self._random.choice(self._up if kind == "reflected" else self._down)
        match kind:
            case "flipped":
                at = self._random.randrange(len(body))
                body = body[:at] + bytes([body[at] ^ 1 << self._random.randrange(8)]) + body[at + 1 :]
            case "cut":
                body = body[: self._random.randrange(len(body))]
            case "longer":
                body = body[: self._random.randrange(len(body))] + self._random.randbytes(9) + body[-LIMIT_SEAL:]
            case "another device":
                body = self._foreign(channel, number)
            case "another kind":
                number = (number + self._random.randrange(1, 9)) % 10 + 1 if number else 1
            case "another channel":
                channel = 1 - channel
            case "readable":
                body = Packet(COORDINATOR, Kind.WAIT, {"wait_ms": self._random.randrange(1000)}).to_body()
            case "noise":
                body = self._random.randbytes(self._random.randrange(150))
            case "counters":  # a fresh number in front of an old tag
                fresh = self._random.randrange(2**32).to_bytes(4, "little") + self._random.randrange(2**32).to_bytes(4, "little")
                body = body[:-LIMIT_SEAL] + fresh + body[-16:]
        return channel, number, body

    def _foreign(self, channel: int, kind: int) -> bytes:
        """What is right in everything but the key, or but the participant."""
        plan = dict(plan_for(PACKAGE), run=RUN, round=2, attempt=0)
        numbers = (2000, 1, self._random.randrange(2**31))
        if self._random.random() < 0.5:
            envelope = Envelope(Way.DOWN, Channel(channel), "board-1", kind, *numbers)
            return envelope.close(self._random.randbytes(32), Packet(channel, Kind.PLAN, plan).to_body())  # type: ignore[arg-type]
        key = KEY if channel == COORDINATOR else CELL_KEY
        envelope = Envelope(Way.DOWN, Channel(channel), "board-2", kind, *numbers)
        return envelope.close(key, Packet(channel, Kind.PLAN, plan).to_body())  # type: ignore[arg-type]


def standing_of(device: Device) -> bytes:
    """All that an attack must not change: arena behind the link's buffers, flash, and the picture of the device."""
    link = int(library().fedmote_link_bytes())
    flash = b"".join(slot.tobytes() for slot in device.flash.slots)
    info = device.info
    picture = [getattr(info, name) for name, *_ in info._fields_ if name not in COUNTERS]
    return device._guarded[link:].tobytes() + flash + repr(picture).encode()


COUNTERS = ("frames_received", "frames_sent", "frame_errors", "messages_forged", "messages_replayed")


def attack(device: Device, attacker: Attacker, peers: SealedPeers, count: int) -> Counter[str]:
    """Deliver so many attacks; the device must be at rest, so that it changes only by what it hears."""
    before, events = standing_of(device), len(device.events)
    first = device.info
    for number in range(count):
        Peers.write(peers, device, *attacker.next())  # past the books of what was said rightly
        while device.rx:
            device.step()
        if number % 1000 == 999:
            assert standing_of(device) == before, f"changed by attack {number}"
    device.step()
    assert standing_of(device) == before
    assert len(device.events) == events
    last = device.info
    return Counter(
        forged=last.messages_forged - first.messages_forged,
        replayed=last.messages_replayed - first.messages_replayed,
        dropped=last.frame_errors - first.frame_errors,
    )


def test_a_hundred_thousand_forged_and_replayed_messages_change_nothing():
    """In the state in which most can be won: an update is held, a plan is known, and both offers are open."""
    device, peers = sealed_bench()
    peers.is_acking = False
    peers.run(device, lambda: 1 in peers.updates and 1 in peers.samples)
    peers.run(device, lambda: device.wake_ms() > 100 and not device.rx)
    assert device.state == "report"
    seed = 20261124
    attacker = Attacker(peers, seed)
    counts = attack(device, attacker, peers, ATTACKS)
    print(f"seed {seed}: {dict(attacker.sent)}: {dict(counts)}")
    assert min(attacker.sent.values()) > ATTACKS // 20
    assert counts["forged"] + counts["replayed"] == counts["dropped"] == ATTACKS
    assert counts["replayed"] >= attacker.sent["replayed"]
    peers.is_acking = True  # and it is as well as before
    finish(device, peers)
    assert_same_round(peers)


@pytest.mark.parametrize("state", ["idle", "fetch"])
def test_forged_and_replayed_messages_change_nothing_before_an_update(state):
    device, peers = sealed_bench()
    if state == "fetch":
        peers.run(device, lambda: sum(kind == Kind.DATA for is_down, _, kind, _ in peers.seen if is_down) > 3)
        device.tx.clear()
    else:
        peers.run(device, lambda: len(peers.seen) > 4)
        finish(device, peers)
    while device.rx or device.step() == 2:
        device.step()
    device.tx.clear()
    counts = attack(device, Attacker(peers, 7), peers, 2000)
    assert counts["forged"] + counts["replayed"] == counts["dropped"] == 2000


def test_another_round_and_another_run_cannot_be_made_of_recorded_messages():
    """Everything that was said in one device's life, said again to its next one and to a second device with other keys."""
    device, peers = sealed_bench(rounds=2)
    finish(device, peers)
    recorded = [one[1:] for one in peers.seen if one[0]]
    other = Device(
        *data(), flash=FlashModel(journal_bytes=JOURNAL_BYTES), key=bytes(32), cell_key=bytes(32), identifier="board-1"
    )
    for victim in (device, other):
        victim.rx.clear()
        victim.boot()
        for one in recorded:
            peers.write(victim, *one)
        for _ in range(4 * len(recorded)):
            victim.step()
        assert (victim.state, victim.info.round, victim.info.messages_forged) == ("idle", 0, len(recorded))


def test_no_boot_and_no_restart_uses_a_nonce_twice():
    device, peers = sealed_bench(rounds=2)
    peers.run(device, lambda: 1 in peers.updates)
    peers.restart(Channel.COORDINATOR)
    peers.run(device, lambda: peers.round == 2 and device.state == "fetch")
    device.rx.clear()
    device.tx.clear()
    device.boot()
    finish(device, peers)
    used = [(is_down, channel, body[-LIMIT_SEAL:-16]) for is_down, channel, _, body in peers.seen]
    assert len(used) == len(set(used)) > 60
    assert {(is_down, channel) for is_down, channel, _ in used} == {(way, channel) for way in (0, 1) for channel in (0, 1)}
