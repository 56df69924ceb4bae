# SPDX-License-Identifier: Apache-2.0
"""Devices in masked sums: their bytes against a reference in Python, the sum under every loss, and what they refuse."""

from __future__ import annotations

import functools
import itertools
import random
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from fedmote.wire.schema import Kind, Status
from firmware_tests.device_bench import Device
from firmware_tests.mask_reference import Member, Participation, Sum, Words, derive, masked_words, members_of, quantized
from firmware_tests.masked_peers import (
    CLIP_NORM,
    PEERS_HANDLE,
    ROUND,
    Group,
    MaskedPeers,
    masking_field,
    member_device,
    sum_of,
)
from firmware_tests.one_round import (
    MODEL_HANDLE,
    PACKAGE,
    PARAMETERS,
    bench,
    build,
    data,
    finish,
    head_update,
    plan_for,
    refusals,
    until_refusal,
)
from firmware_tests.scripted_peers import COORDINATOR, RUN, Packet, Peers

STEPS = (1, 2, 3)
SAMPLED = 60


@functools.cache
def words_of(number: int, name: str) -> Words:
    """The words of member `number`, from the update of a device that is in no group and has the same samples and name."""
    x, y = data(seed=number)
    device, peers = Device(x, y, identifier=name), Peers(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE})
    finish(device, peers)
    return quantized(head_update(peers.updates[1][0]), CLIP_NORM, 8)


@functools.cache
def after_keys() -> tuple[Group, object]:
    """A group of eight whose members have trained and handed in their keys, and its memory of that."""
    group = Group()
    group.run(1, group.members)
    return group, group.remember()


def test_keys_masked_words_and_shares_of_every_member_are_those_of_the_reference():
    group, memory = after_keys()
    group.come_back(memory)
    for number, blob in group.sum.keys.items():
        assert blob == group.participation(number).keys()
    group.run(2, group.members)
    for number, blob in group.sum.masked.items():
        mask = group.participation(number).mask(group.sum.publics(number), PARAMETERS)
        assert np.array_equal(masked_words(blob), words_of(number, f"board-{number}") + mask)
    group.run(3, group.members)
    for number, blob in group.sum.shares.items():
        assert blob == group.participation(number).shares(group.sum.peers(number), group.sum.survivors(number))


def losses() -> list[dict[int, int]]:
    """Member -> step that it does not hand in any more: none, every one, every two, and some of three."""

    def of(count: int) -> list[dict[int, int]]:
        return [dict(zip(who, steps, strict=True)) for who in itertools.combinations(range(1, 9), count)
                for steps in itertools.product(STEPS, repeat=count)]  # fmt: skip

    return [{}, *of(1), *of(2), *random.Random(3).sample(of(3), SAMPLED)]


def test_the_sum_is_that_of_the_survivors_whoever_is_lost_at_whichever_step():
    group = Group()
    group.run(1, group.members)
    beginning = group.remember()
    for lost in losses():
        group.come_back(beginning)
        for number, step in lost.items():
            if step == 1:
                del group.sum.keys[number]
        for step in (2, 3):
            group.run(step, [number for number in group.members if lost.get(number, 4) > step])
        survivors = [number for number in group.members if lost.get(number, 4) > 2]
        assert np.array_equal(group.sum.total(), sum_of(words_of(number, f"board-{number}") for number in survivors)), lost


@pytest.mark.parametrize(("members", "neighbours", "threshold"), [(9, 8, 5), (12, 4, 3), (11, 6, 6)])
def test_rings_of_other_sizes(members, neighbours, threshold):
    group = Group(members, neighbours, threshold)
    for step in STEPS:
        group.run(step, group.members)
    for number, blob in group.sum.keys.items():
        assert blob == group.participation(number).keys()
    parts = []
    for number, blob in group.sum.masked.items():
        parts.append(masked_words(blob) - group.participation(number).mask(group.sum.publics(number), PARAMETERS))
    assert np.array_equal(group.sum.total(), sum_of(parts))
    assert np.abs(np.stack(parts).view(np.int32)).max() <= (2**31 - 1) // members


# ---- one member among neighbours of the reference --------------------------------------------------------------------

OWN = 3


class Neighbourhood:
    """A device as member `OWN` of eight; the others are the reference's, and their keys came.

    Attributes:
        step: that is wanted; None: the one after the last that the device handed in.
        survivors: of the question; None: all whose keys came.
        peers_blob: what the device gets of its neighbours.
        field: the whole `masking` of the next plans, instead of one that is made.
    """

    def __init__(self, threshold: int = 4, lost: tuple[int, ...] = (), **options: Any) -> None:
        self.members = members_of(8, 7, threshold)
        self.me = self.members[OWN]
        others = {number: Participation(one, RUN, ROUND, struct.pack("<II", 70 + number, 0))
                  for number, one in self.members.items() if number not in (OWN, *lost)}  # fmt: skip
        self.sum = Sum(self.members, RUN, ROUND, {number: one.keys() for number, one in others.items()}, {}, {})
        self.sum.masked = dict.fromkeys(self.sum.keys, b"")
        self.step: int | None = None
        self.survivors: int | None = None
        self.field: bytes | None = None
        self.peers_blob, self.handle = self.sum.peers(OWN), PEERS_HANDLE
        self.device = options.pop("device", None) or member_device(self.me, **options)
        self.peers = MaskedPeers(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE}, masking=self.masking)

    def masking(self) -> bytes | None:
        self.peers.blobs[self.handle] = self.peers_blob
        if self.field is not None:
            return self.field or None
        step = self.step or min(3, 1 + max(self.peers.blobs_of_step, default=0))
        survivors = self.sum.survivors(OWN) if self.survivors is None else self.survivors
        told = self.peers_blob if step > 1 else None
        return masking_field(self.me.group, step, survivors if step == 3 else 0, told, handle=self.handle)

    def until(self, step: int) -> bytes:
        """Until the device has handed in the blob of a step, and knows that it has."""
        self.peers.run(self.device, lambda: step in self.peers.blobs_of_step and not self.device.info.is_update_held)
        return self.peers.blobs_of_step[step]

    def push(self) -> None:
        """The coordinator says its plan without being asked."""
        self.peers.tell(self.device, self.peers.plan_packet())

    def refusal(self) -> Status:
        """What the device says no with; it names the round, and is idle then."""
        fields = until_refusal(self.device, self.peers)
        assert (fields["run"], fields["round"], self.device.state) == (RUN, ROUND, "idle")
        return Status(int(fields["status"]))

    @property
    def participation(self) -> Participation:
        return Participation(self.me, RUN, ROUND, self.peers.blobs_of_step[1][4:12])

    def words(self) -> Words:
        """What the device must hand in."""
        return words_of(OWN, "board-1") + self.participation.mask(self.sum.publics(OWN), PARAMETERS)


def test_a_member_asks_with_hellos_and_needs_no_word_that_nobody_asked_for():
    one = Neighbourhood()
    one.until(3)
    assert np.array_equal(masked_words(one.peers.blobs_of_step[2]), one.words())
    assert one.peers.blobs_of_step[3] == one.participation.shares(one.peers_blob, one.sum.survivors(OWN))
    assert (one.device.state, one.device.info.rounds_done) == ("idle", 1)


def test_while_it_waits_it_says_hello_ever_more_seldom_and_a_word_begins_anew():
    one = Neighbourhood()
    one.until(1)
    one.step = 1
    begin, heard = one.device.now, len(one.peers.heard)
    one.peers.run(one.device, lambda: one.device.now > begin + 60_000)
    hellos = [packet for packet in one.peers.heard[heard:] if packet.kind == Kind.HELLO]
    assert 4 <= len(hellos) <= 30
    assert {packet.kind for packet in one.peers.heard[heard:]} == {Kind.HELLO}
    one.step = None
    one.push()
    one.until(3)


def test_every_lost_or_doubled_frame_changes_nothing():
    calm = Neighbourhood()
    calm.until(3)
    for at, copies in itertools.product(range(calm.peers.frames), (0, 2)):
        one = Neighbourhood()
        one.peers.alter = lambda number, packet, _is_down, at=at, copies=copies: [packet] * (copies if number == at else 1)
        one.until(3)
        assert one.peers.blobs_of_step == calm.peers.blobs_of_step


def test_samples_go_to_the_partner_meanwhile_and_nothing_is_journaled():
    one = Neighbourhood()
    one.until(3)
    x, y = data(seed=OWN)
    readable, peers = Device(x, y), Peers(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE})
    finish(readable, peers)
    one.peers.run(one.device, lambda: bool(one.peers.samples))
    assert one.peers.samples == peers.samples
    journal = b"".join(region.tobytes() for region in one.device.flash.slots[3:])
    assert b"FMJR" in journal
    assert b"FMJU" not in journal


def test_where_samples_wait_masking_leaves_the_encoder_alone():
    one = Neighbourhood()
    one.peers.has_partner = False
    for step in STEPS:
        one.until(step)
    one.peers.has_partner = True
    assert np.array_equal(masked_words(one.peers.blobs_of_step[2]), one.words())


WIDE = build(filler=100, width=80)  # a head of 243 parameters: its 16-bit integers and what they began with are a room


@pytest.mark.parametrize("arithmetic", ["fedmote_float32", "fedmote_int16"])
@pytest.mark.parametrize("has_room", [True, False])
@pytest.mark.parametrize("is_sending", [1, 0])
def test_masking_finds_its_room_in_encoder_head_or_cache_and_the_words_are_the_same(is_sending, has_room, arithmetic):
    changes = {"is_sending_samples": is_sending}
    readable, peers = bench(WIDE, changes=changes, arithmetic=arithmetic)
    finish(readable, peers)
    one = Neighbourhood(arithmetic=arithmetic, arena_bytes=16384 if has_room else readable.info.arena_required, seed=5)
    one.peers.plan, one.peers.blobs[MODEL_HANDLE] = plan_for(WIDE, **changes), WIDE
    for step in STEPS:
        one.until(step)
    if is_sending:
        one.peers.run(one.device, lambda: bool(one.peers.samples))
    assert one.peers.samples == peers.samples
    update = head_update(peers.updates[1][0])
    mask = one.participation.mask(one.sum.publics(OWN), len(update))
    assert np.array_equal(masked_words(one.peers.blobs_of_step[2]), quantized(update, CLIP_NORM, 8) + mask)
    assert one.peers.blobs_of_step[3] == one.participation.shares(one.peers_blob, one.sum.survivors(OWN))
    assert_no_secret_of(one, one.participation)


# ---- refusals --------------------------------------------------------------------------------------------------------


def group_fields(group: bytes) -> dict[str, bytes]:
    """Fields of plans that are refused as mask-group."""
    other = bytes([group[0] ^ 1]) + group[1:]
    fields = {f"clip norm {norm}": masking_field(group, 1, clip_norm=norm) for norm in (0.0, -1.0, float("inf"), float("nan"))}
    steps = {f"step {step}": masking_field(group, step) for step in (0, 4, 255)}
    return {"another group": masking_field(other, 1), "without masking": b""} | fields | steps


FIELDS_OF_OTHERS = group_fields(members_of(8, 7, 4)[OWN].group)


@pytest.mark.parametrize("what", FIELDS_OF_OTHERS)
def test_a_plan_that_is_not_for_its_group_is_refused_before_anything_is_fetched(what):
    one = Neighbourhood()
    one.field = FIELDS_OF_OTHERS[what]
    assert one.refusal() is Status.MASK_GROUP
    assert one.device.visited <= {"idle", "fetch"}
    assert not one.device.info.has_package


@pytest.mark.parametrize("what", FIELDS_OF_OTHERS)
def test_such_a_plan_in_the_middle_of_a_round_ends_it(what):
    one = Neighbourhood()
    one.until(1)
    one.field = FIELDS_OF_OTHERS[what]
    one.push()
    assert one.refusal() is Status.MASK_GROUP
    one.field = None
    one.push()
    begin = one.device.now
    one.peers.run(one.device, lambda: one.device.now > begin + 60_000)
    assert set(one.peers.blobs_of_step) == {1}, "this participation is over"


@pytest.mark.parametrize("is_masking", [True, False])
def test_a_device_in_no_group_refuses_masked_plans(is_masking):
    device, peers = bench(changes={"masking": masking_field(bytes(8), 1)})
    if is_masking:
        masked = member_device(members_of(8, 7, 4)[OWN])
        device._port.masking, device._port.agree = masked._port.masking, masked._port.agree
        device.boot()
    assert until_refusal(device, peers)["status"] == Status.MASK_GROUP


def damaged_groups() -> dict[str, Member]:
    """Groups that are none."""
    me = members_of(9, 8, 5)[4]
    near = me.neighbours
    far = members_of(12, 4, 3)[4]
    return {
        "seven members": replace(me, members=7),
        "no number": replace(me, number=0),
        "a number beyond": replace(me, number=10),
        "odd": replace(me, neighbours=near[:7]),
        "too low a threshold": replace(me, threshold=4),
        "too high a threshold": replace(me, threshold=9),
        "not ascending": replace(me, neighbours=(near[1], near[0], *near[2:])),
        "twice": replace(me, neighbours=(near[0], near[0], *near[2:])),
        "itself": replace(me, neighbours=(*near[:3], 4, *near[4:]), publics=me.publics | {4: bytes(32)}),
        "too far away": replace(far, neighbours=(2, 3, 5, 7), publics=far.publics | {7: bytes(32)}),
    }


DAMAGED = damaged_groups()


@pytest.mark.parametrize("what", DAMAGED)
def test_a_device_does_not_start_with_a_group_that_is_none(what):
    with pytest.raises(AssertionError, match=str(-Status.ARGUMENT)):
        member_device(DAMAGED[what])


@pytest.mark.parametrize("what", ["masking", "agree", "hash", "key"])
def test_a_device_in_a_group_does_not_start_without(what):
    device = member_device(members_of(8, 7, 4)[OWN])
    if what == "key":
        device._identity.key = None
    elif what == "hash":
        device._port.hash = type(device._port.hash)()
    else:
        setattr(device._port, what, None)
    with pytest.raises(AssertionError, match=str(-Status.ARGUMENT)):
        device.boot()


def test_an_arena_without_room_for_masking_is_refused_before_training():
    required = Neighbourhood()
    required.until(1)
    needed = required.device.info.arena_required
    one = Neighbourhood(arena_bytes=(needed + 1024) // 16 * 16)
    assert one.refusal() is Status.ARENA
    assert "train" not in one.device.visited
    more = Neighbourhood(arena_bytes=(needed + 2048) // 16 * 16)
    assert len(more.until(3)) == 4 + 7 * 32


def test_a_neighbour_whose_lasting_key_is_none_is_refused():
    me = members_of(8, 7, 4)[OWN]
    one = Neighbourhood(device=member_device(replace(me, publics=me.publics | {5: bytes(32)})))
    assert one.refusal() is Status.MASK_NEIGHBOURS


def damaged_peers() -> dict[str, tuple[Status, bytes]]:
    """Blobs of peers that are refused."""
    one = Neighbourhood()
    blob, other = bytearray(one.peers_blob), one.sum.members[1]
    flipped, formats, counts, cut = (bytearray(blob) for _ in range(4))
    flipped[4 + 40 + 17] ^= 1
    formats[0], counts[1] = 2, 6
    for index in range(4):
        cut[4 + 120 * index :][:120] = b""
        cut[4 + 120 * index : 4 + 120 * index + 120] = bytes(120)
    salt = blob[4:12]
    key = derive(one_box_secret(one.sum.members), 4, 1, OWN, 0, RUN, ROUND, bytes(salt))
    no_key = bytearray(blob)
    no_key[4:124] = bytes(salt) + bytes(32) + crypto_aead_xchacha20poly1305_ietf_encrypt(bytes(64), b"", bytes(24), key)
    assert other.number == 1
    return {
        "a changed box": (Status.MASK_NEIGHBOURS, bytes(flipped)),
        "another format": (Status.MASK_NEIGHBOURS, bytes(formats)),
        "another number": (Status.MASK_NEIGHBOURS, bytes(counts)),
        "too few keys": (Status.MASK_NEIGHBOURS, bytes(cut)),
        "an X that is none": (Status.MASK_NEIGHBOURS, bytes(no_key)),
        "short": (Status.MASK_NEIGHBOURS, bytes(blob[:-1])),
        "empty": (Status.MASK_NEIGHBOURS, b""),
        "long": (Status.MASK_NEIGHBOURS, bytes(blob) + bytes(120)),
    }


def one_box_secret(members: dict[int, Member]) -> bytes:
    from nacl.bindings import crypto_scalarmult

    return crypto_scalarmult(members[1].secret, members[1].publics[OWN])


BAD_PEERS = damaged_peers()


@pytest.mark.parametrize("what", BAD_PEERS)
def test_peers_are_refused_and_no_masked_word_leaves(what):
    status, blob = BAD_PEERS[what]
    one = Neighbourhood()
    one.until(1)
    one.peers_blob = blob
    assert one.refusal() is status
    assert set(one.peers.blobs_of_step) == {1}


def test_peers_with_another_checksum_are_refused():
    one = Neighbourhood()
    one.until(1)
    one.field = masking_field(one.me.group, 2, 0, one.peers_blob)
    one.peers.blobs[PEERS_HANDLE] = one.peers_blob[:-1] + b"\0"
    one.peers_blob = one.peers.blobs[PEERS_HANDLE]
    assert one.refusal() is Status.CRC


@pytest.mark.parametrize("survivors", [0b1000_0000, 0b0000_0111, 0, 0b0001_1111, 0xFF])
def test_a_question_about_those_without_keys_or_about_too_few_is_refused(survivors):
    one = Neighbourhood(lost=(1,))  # neighbour 0
    one.until(2)
    one.survivors = survivors
    assert one.refusal() is Status.MASK_NEIGHBOURS
    assert set(one.peers.blobs_of_step) == {1, 2}


def test_shares_of_a_lost_neighbour_are_of_x_and_nothing_is_given_of_one_without_keys():
    one = Neighbourhood(lost=(1,))
    one.until(2)
    one.survivors = 0b0101_1110
    blob = one.until(3)
    assert blob == one.participation.shares(one.peers_blob, one.survivors)
    assert blob[4:36] == bytes(32)
    shares = [blob[4 + 32 * index :][:32] for index in range(7)]
    for index, other in enumerate(one.me.neighbours):
        if other != 1:
            theirs = Participation(one.members[other], RUN, ROUND, one.sum.keys[other][4:12])
            place = one.members[other].neighbours.index(OWN) + 1
            assert shares[index] == theirs.share(one.survivors >> index & 1, place)


def test_a_second_question_is_answered_as_the_first_or_not_at_all():
    one = Neighbourhood()
    one.peers.is_acking = False
    one.peers.run(one.device, lambda: 1 in one.peers.blobs_of_step)
    one.step = 2
    one.push()
    one.peers.run(one.device, lambda: 2 in one.peers.blobs_of_step)
    one.step, one.survivors = 3, 0b0111_1100
    one.push()
    one.peers.run(one.device, lambda: 3 in one.peers.blobs_of_step)
    first, reports = one.peers.blobs_of_step.pop(3), len(one.peers.reports)
    one.peers.pulls.clear()
    one.push()
    one.peers.run(one.device, lambda: 3 in one.peers.blobs_of_step)
    assert one.peers.blobs_of_step[3] == first
    assert len(one.peers.reports) > reports
    one.survivors = 0b0111_1110
    one.push()
    assert one.refusal() is Status.MASK_ANSWERED
    assert not one.device.info.is_update_held


def test_the_first_peers_count():
    one, others = Neighbourhood(), Neighbourhood(lost=(6,))
    one.peers.deaf_to = {2}
    one.until(1)
    one.peers.run(one.device, lambda: one.peers.reports[-1].get("mask_step") == 2)
    one.peers.deaf_to = set()
    one.peers_blob, one.handle, one.step = others.peers_blob, PEERS_HANDLE + 1, 2
    one.push()
    assert np.array_equal(masked_words(one.until(2)), one.words())


def test_asked_for_shares_before_its_words_are_in_it_gives_shares_and_no_words():
    one = Neighbourhood()
    one.until(1)
    one.step = 3
    one.push()
    assert one.until(3) == one.participation.shares(one.peers_blob, one.sum.survivors(OWN))
    assert {report["mask_step"] for report in one.peers.reports} == {1, 3}


def test_a_wait_ends_it_a_challenge_does_not():
    one = Neighbourhood()
    one.until(1)
    one.peers.tell(one.device, Packet(COORDINATOR, Kind.WAIT, {"wait_ms": 0}))
    one.until(2)
    one.step = 2
    one.peers.tell(one.device, Packet(COORDINATOR, Kind.WAIT, {"wait_ms": 100}))
    one.peers.run(one.device, lambda: one.device.state == "idle")
    one.step = 3
    begin = one.device.now
    one.peers.run(one.device, lambda: one.device.now > begin + 60_000)
    assert set(one.peers.blobs_of_step) == {1, 2}


def test_peers_that_are_elsewhere_now_are_fetched_from_there():
    one = Neighbourhood()
    one.until(1)
    one.field = masking_field(one.me.group, 2, 0, one.peers_blob, handle=99)  # nobody serves it
    one.push()
    one.peers.run(one.device, lambda: any(packet.kind == Kind.REFUSE for packet in one.peers.told))
    one.field = None
    one.until(3)
    assert np.array_equal(masked_words(one.peers.blobs_of_step[2]), one.words())
    assert not refusals(one.peers)


def test_a_later_round_begins_from_the_beginning_whatever_was_going_on():
    for step in STEPS:
        one = Neighbourhood()
        one.until(step)
        before = one.peers.blobs_of_step[1]
        one.peers.blobs_of_step.clear()
        one.peers.pulls.clear()
        plan = one.peers.plan_packet()
        one.peers.tell(one.device, replace(plan, fields=plan.fields | {"round": ROUND + 1, "is_sending_samples": 0}))
        one.step = 1
        one.peers.round = ROUND + 1
        one.peers.run(one.device, lambda one=one: 1 in one.peers.blobs_of_step)
        after = one.peers.blobs_of_step[1]
        assert after[4:8] == before[4:8]
        assert [struct.unpack_from("<I", blob, 8)[0] for blob in (before, after)] == [0, 1]
        assert after == Participation(one.me, RUN, ROUND + 1, after[4:12]).keys()
        assert_no_secret_of(one, Participation(one.me, RUN, ROUND, before[4:12]))


# ---- resets and memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_reset_begins_a_new_participation_under_a_new_salt(step):
    one = Neighbourhood()
    one.peers.deaf_to = {3}
    if step < 3:
        one.until(step)
    else:
        one.peers.run(one.device, lambda: bool(one.peers.reports) and one.peers.reports[-1].get("mask_step") == 3)
    before, reports = one.peers.blobs_of_step[1], len(one.peers.reports)
    one.peers.blobs_of_step.clear()
    one.device.rx.clear()
    one.device.tx.clear()
    one.device.boot()
    one.peers.run(one.device, lambda: 1 in one.peers.blobs_of_step)
    assert {report["mask_step"] for report in one.peers.reports[reports:]} == {1}, "nothing of the one before is answered again"
    after = one.peers.blobs_of_step[1]
    boots = [struct.unpack_from("<II", blob, 4) for blob in (before, after)]
    assert boots[1][0] > boots[0][0]
    assert after == one.participation.keys()
    fields = [{blob[at : at + 32] for at in range(12, 76, 32)} for blob in (before, after)]
    assert fields[0].isdisjoint(fields[1])


def secrets_of(one: Neighbourhood, mine: Participation) -> dict[str, bytes]:
    """Everything of a participation that nobody else may know."""
    me, found = one.me, {"x": mine.mask_secret, "b": mine.seed, "secret": one.me.secret}
    found["own mask key"] = derive(mine.seed, 6, me.number, 0, 0, RUN, mine.round, bytes(8))
    for other in me.neighbours:
        found[f"box key to {other}"] = mine.box_key(me.number, other, mine.salt)
        if other in one.sum.keys:
            theirs = Participation(one.members[other], RUN, ROUND, one.sum.keys[other][4:12])
            found[f"box key from {other}"] = theirs.box_key(other, me.number, theirs.salt)
            place = one.members[other].neighbours.index(me.number) + 1
            found |= {f"share {which} of {other}": theirs.share(which, place) for which in (0, 1)}
        found |= {f"share {which} for {other}": mine.share(which, me.neighbours.index(other) + 1) for which in (0, 1)}
    return found


def assert_no_secret_of(one: Neighbourhood, mine: Participation, but: str = "nothing") -> None:
    memory = one.device._memory.tobytes() + one.device._guarded.tobytes()
    for name, secret in secrets_of(one, mine).items():
        if not name.startswith(but):
            assert not any(secret[at : at + 8] in memory for at in range(0, 32, 8)), name


def test_no_copy_of_a_secret_is_left_in_the_memory_of_the_device():
    one = Neighbourhood(lost=(2,))
    one.until(1)
    assert_no_secret_of(one, one.participation)
    one.until(2)
    assert_no_secret_of(one, one.participation, but="share")  # those that it holds for its neighbours
    one.until(3)
    assert_no_secret_of(one, one.participation)


def test_a_refused_question_leaves_no_secret_either():
    one = Neighbourhood()
    one.until(2)
    one.survivors = 1
    assert one.refusal() is Status.MASK_NEIGHBOURS
    assert_no_secret_of(one, one.participation)
