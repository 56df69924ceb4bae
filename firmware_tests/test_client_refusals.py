# SPDX-License-Identifier: Apache-2.0
"""What a device refuses, ignores and keeps to itself, whatever coordinator and partner do."""

import zlib

import numpy as np
import pytest

from fedmote.wire.schema import Kind, Status
from firmware_tests import package_builder as fmp
from firmware_tests.device_bench import Device, library
from firmware_tests.generate_vectors import frame
from firmware_tests.one_round import (
    CLASSES,
    HEAD_HANDLE,
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
    undisturbed,
    until_refusal,
)
from firmware_tests.scripted_peers import CELL, COORDINATOR, RUN, Packet, Peers

# ---- peers that misbehave, and policies -------------------------------------------------------------------------------


def test_without_a_partner_the_round_is_done_and_the_samples_are_dropped_at_its_end():
    update, _, _ = undisturbed()
    device, peers = bench(changes={"remaining_ms": 20_000})
    peers.has_partner = False
    finish(device, peers)
    assert peers.updates[1][0] == update
    start = device.now
    peers.run(device, lambda: device.now - start > 60_000)
    offered = [packet for packet in peers.heard if packet.kind == Kind.SAMPLES]
    assert 8 <= len(offered) <= 11  # every 2 s for 20 s


def test_samples_stay_on_offer_after_the_ack_of_the_update():
    device, peers = bench()
    peers.has_partner = False
    peers.run(device, lambda: device.info.rounds_done == 1)
    peers.has_partner = True
    peers.run(device, lambda: bool(peers.samples))
    assert peers.samples[1][0] == undisturbed()[1]


@pytest.mark.parametrize(("is_sending", "plan_says"), [(False, 1), (True, 0), (True, None)])
def test_samples_leave_only_where_firmware_and_plan_allow_it(is_sending, plan_says):
    device, peers = bench(changes={"is_sending_samples": plan_says}, is_sending=is_sending)
    peers.has_partner = False
    finish(device, peers)
    assert not [packet for packet in peers.heard if packet.channel == CELL]
    assert peers.reports[0]["sent"] == 0
    np.testing.assert_array_equal(head_update(peers.updates[1][0]), head_update(undisturbed()[0]))


def test_the_coordinator_cannot_pull_samples():
    device, peers = bench()
    peers.run(device, lambda: any(packet.kind == Kind.SAMPLES for packet in peers.heard))
    offer = next(packet for packet in peers.heard if packet.kind == Kind.SAMPLES)
    handle = offer.fields["handle"]
    peers.tell(device, Packet(COORDINATOR, Kind.GET, {"handle": handle, "offset": 0, "chunk": 160, "mask": 1}))
    assert until_refusal(device, peers) == {"handle": handle, "status": Status.STALE_ROUND}
    assert not [p for p in peers.heard if p.kind == Kind.DATA and p.channel == COORDINATOR and p.fields["handle"] == handle]


def test_the_report_is_repeated_until_the_ack_and_the_update_is_kept():
    device, peers = bench()
    peers.is_acking = False
    peers.run(device, lambda: len(peers.reports) >= 5)
    assert device.info.is_update_held
    assert all(report == peers.reports[0] for report in peers.reports)
    peers.is_acking = True
    finish(device, peers)
    assert not device.info.is_update_held


def test_a_plan_of_the_finished_round_is_answered_with_the_same_report():
    device, peers = bench()
    peers.is_acking = False
    peers.run(device, lambda: bool(peers.updates))
    before, start = len(peers.reports), device.now
    peers.tell(device, peers.plan_packet())
    peers.run(device, lambda: len(peers.reports) > before)
    assert device.now - start < 100
    assert peers.reports[-1] == peers.reports[0]


def test_an_update_is_held_beyond_the_deadline_and_dropped_for_a_later_plan():
    device, peers = bench(changes={"remaining_ms": 10_000})
    peers.is_acking = False
    peers.run(device, lambda: bool(peers.updates))
    peers.boot = None
    hear_hello, peers.hear_hello = peers.hear_hello, lambda _device, _packet: None
    start = device.now
    peers.run(device, lambda: device.now - start > 60_000)
    assert device.state == "report"
    assert [p.kind for p in peers.heard].count(Kind.HELLO) > 1  # asks for the next plan meanwhile
    peers.pulls.clear()
    peers.hear_hello, peers.round, peers.rounds, peers.is_acking = hear_hello, 2, 2, True
    peers.run(device, lambda: device.info.rounds_done == 1, limit_ms=400_000)
    assert (device.info.round, peers.reports[-1]["round"]) == (2, 2)


def test_a_plan_of_the_reported_round_silences_hello_until_its_deadline():
    device, peers = bench(changes={"remaining_ms": 30_000})
    peers.is_acking = False
    peers.run(device, lambda: bool(peers.updates))
    peers.hear_hello = lambda _device, _packet: None
    peers.heard.clear()
    peers.run(device, lambda: any(packet.kind == Kind.HELLO for packet in peers.heard))
    peers.tell(device, peers.plan_packet())
    for _ in range(5):
        device.step()
    device.tx.clear()
    peers.heard.clear()
    start = device.now
    peers.run(device, lambda: device.now - start > 29_000)
    assert {packet.kind for packet in peers.heard} == {Kind.REPORT}
    peers.run(device, lambda: any(packet.kind == Kind.HELLO for packet in peers.heard), limit_ms=10_000)


def test_a_plan_of_an_earlier_round_is_ignored():
    device, peers = bench()
    peers.round = peers.rounds = 5
    peers.run(device, lambda: device.state == "train")
    peers.tell(device, Packet(COORDINATOR, Kind.PLAN, dict(peers.plan, run=RUN, round=4)))
    peers.run(device, lambda: device.info.rounds_done == 1)
    assert device.info.round == 5
    peers.tell(device, Packet(COORDINATOR, Kind.PLAN, dict(peers.plan, run=RUN, round=5)))  # late twin of the acknowledged one
    start = device.now
    peers.run(device, lambda: device.now - start > 20_000)
    assert len(peers.updates[5]) == 1
    assert not refusals(peers)


def test_an_acknowledged_round_begins_again_only_with_a_higher_attempt():
    device, peers = bench()
    peers.run(device, lambda: device.info.rounds_done == 1)
    peers.tell(device, Packet(COORDINATOR, Kind.PLAN, dict(peers.plan, run=RUN, round=1, attempt=1)))
    peers.run(device, lambda: peers.reports[-1]["attempt"] == 1)


def test_the_highest_attempt_of_the_plans_of_a_round_is_the_one_that_is_reported():
    for state in ("fetch", "encode", "train", "report"):
        device, peers = bench()
        peers.is_acking = False
        peers.run(device, lambda device=device, state=state: device.state == state)
        for attempt in (9, 4):  # the late plan of an earlier boot does not lower it
            peers.tell(device, Packet(COORDINATOR, Kind.PLAN, dict(peers.plan, run=RUN, round=1, attempt=attempt)))
        told = len(peers.reports)
        peers.run(device, lambda peers=peers, told=told: len(peers.reports) > told + 1)
        assert peers.reports[-1]["attempt"] == 9, state
        assert device.info.round == 1


def test_a_later_plan_ends_the_work_on_the_earlier_one():
    for state in ("fetch", "encode", "train", "report"):
        device, peers = bench()
        peers.is_acking = state != "report"
        peers.run(device, lambda device=device, state=state: device.state == state)
        peers.round = peers.rounds = 2
        peers.is_acking = True
        peers.tell(device, peers.plan_packet())
        peers.run(device, lambda device=device: device.info.rounds_done == 1)
        assert device.info.round == 2, state


def test_a_plan_of_another_run_begins_anew():
    device, peers = bench()
    peers.is_acking = False
    peers.run(device, lambda: device.state == "report")
    peers.tell(device, Packet(COORDINATOR, Kind.PLAN, dict(peers.plan, run=b"run-0002", round=0)))
    peers.run(device, lambda: bool(peers.reports) and peers.reports[-1]["run"] == b"run-0002")


def test_a_package_with_another_hash_than_planned_is_refused_and_not_installed():
    device, peers = bench()
    peers.plan["model_hash"] = bytes(32)
    assert until_refusal(device, peers) == {"run": RUN, "round": 1, "status": Status.PACKAGE_HASH}
    assert not device.info.has_package
    assert (device.state, device.info.error, device.info.where) == ("idle", -Status.PACKAGE_HASH, b"install")


@pytest.mark.parametrize(
    ("position", "status"), [(0, Status.PACKAGE_MAGIC), (4, Status.PACKAGE_VERSION), (100, Status.PACKAGE_CRC)]
)
def test_a_damaged_package_is_refused_and_the_old_one_stays(position, status):
    device, peers = bench()
    finish(device, peers)
    newer = build(1)
    damaged = newer[:position] + bytes([newer[position] ^ 1]) + newer[position + 1 :]
    peers.plan, peers.blobs, peers.rounds = plan_for(newer), {MODEL_HANDLE: damaged}, 2
    assert until_refusal(device, peers)["status"] == status
    assert device.info.generation == 1
    device.boot()
    assert device.info.has_package


def test_an_arena_too_small_by_one_byte_is_refused_before_the_package_is_installed():
    probe, peers = bench()
    finish(probe, peers)
    device, peers = bench(arena_bytes=probe.info.arena_required - 1)
    assert until_refusal(device, peers)["status"] == Status.ARENA
    assert device.info.arena_required == probe.info.arena_required
    assert not device.info.has_package
    device, peers = bench(arena_bytes=probe.info.arena_required)
    finish(device, peers)


def test_a_package_that_did_not_fit_is_not_fetched_again():
    device, peers = bench(arena_bytes=1280)
    until_refusal(device, peers)
    operations = len(device.flash.log)
    peers.run(device, lambda: len(refusals(peers)) == 5, limit_ms=600_000)
    assert {refusal["status"] for refusal in refusals(peers)} == {Status.ARENA}
    assert len(device.flash.log) == operations


def with_word(package: bytes, offset: int, value: int) -> bytes:
    """The package with one 32-bit word changed and everything that is derived from it mended."""
    return fmp.seal(package[:offset] + fmp.words(value) + package[offset + 4 :])


@pytest.mark.parametrize(("word", "status"), [(12, Status.PACKAGE_OPERATOR), (0, Status.PACKAGE_BOUNDS)], ids=str)
def test_a_package_that_this_device_cannot_run_is_not_fetched_again(word, status):
    plan = int.from_bytes(PACKAGE[48 + 16 + 4 :][:4], "little")
    device, peers = bench(with_word(PACKAGE, plan + 4 * word, 99))
    until_refusal(device, peers)
    operations = len(device.flash.log)
    peers.run(device, lambda: len(refusals(peers)) == 5, limit_ms=600_000)
    assert {refusal["status"] for refusal in refusals(peers)} == {status}
    assert len(device.flash.log) == operations
    peers.plan, peers.blobs = plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE}
    finish(device, peers)


def test_an_arena_without_room_for_the_link_is_refused_at_once():
    least = library().fedmote_link_bytes()
    Device(*data(), arena_bytes=least)
    with pytest.raises(AssertionError, match=str(-Status.ARENA)):
        Device(*data(), arena_bytes=least - 16)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"model_size": 8192}, Status.SLOT),
        ({"model_size": 6600}, Status.PACKAGE_SIZE),
        ({"phase": 2}, Status.NOT_EXPECTED),
        ({"head_handle": 1}, Status.MISSING_FIELD),
        ({"head_handle": 1, "head_size": 4, "head_crc": 0}, Status.PACKAGE_HEAD),
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_followed_is_refused_with(changes, status):
    device, peers = bench(changes=changes)
    assert until_refusal(device, peers)["status"] == status
    assert device.state == "idle"


def test_a_head_that_arrives_damaged_or_not_finite_is_refused():
    for head, crc_xor, status in (
        (bytes(4 * PARAMETERS), 1, Status.CRC),
        (b"\0\0\xc0\x7f" * PARAMETERS, 0, Status.UPDATE_NOT_FINITE),
    ):
        device, peers = bench(
            changes={"head_handle": HEAD_HANDLE, "head_size": len(head), "head_crc": zlib.crc32(head) ^ crc_xor}
        )
        peers.blobs[HEAD_HANDLE] = head
        assert until_refusal(device, peers)["status"] == status


def test_an_update_that_is_not_finite_is_never_offered():
    head = np.full(PARAMETERS, 3e38, "<f4").tobytes()
    device, peers = bench(
        changes={
            "head_handle": HEAD_HANDLE,
            "head_size": len(head),
            "head_crc": zlib.crc32(head),
            "learning_rate_micro": 10_000_000,
        }
    )
    peers.blobs[HEAD_HANDLE] = head
    assert until_refusal(device, peers)["status"] == Status.UPDATE_NOT_FINITE
    assert not peers.reports


def test_a_subnormal_value_of_an_update_is_sent_as_zero():
    """One step that only decays: every sample has its label already, so the weights change by learning rate, decay and 1e-32."""
    head = np.array([1e-32] * (PARAMETERS - CLASSES) + [2000] + [0] * (CLASSES - 1), "<f4")
    x, _ = data()
    for weight_decay_micro, smallest in ((1, 0.0), (2, 1.9e-38)):
        changes = {
            "head_handle": HEAD_HANDLE, "head_size": head.nbytes, "head_crc": zlib.crc32(head.tobytes()), "epochs": 1,
            "batch": len(x), "learning_rate_micro": 1_000_000, "momentum_micro": 0, "alpha_milli": 0, "beta_milli": 0,
            "weight_decay_micro": weight_decay_micro,
        }  # fmt: skip
        device = Device(x, np.zeros(len(x), np.int64))
        peers = Peers(plan_for(PACKAGE, **changes), {MODEL_HANDLE: PACKAGE, HEAD_HANDLE: head.tobytes()})
        peers.run(device, lambda peers=peers: 1 in peers.updates)
        weights = np.abs(head_update(peers.updates[1][0])[:-CLASSES])
        assert (weights == 0).all() if smallest == 0 else (weights > smallest).all()


def test_samples_that_cannot_be_read_end_the_round_and_not_the_device():
    device, peers = bench()
    device.is_sample_broken = True
    assert until_refusal(device, peers)["status"] == Status.SAMPLE_IO
    device.is_sample_broken = False
    finish(device, peers)


def test_a_label_outside_the_head_is_refused():
    device, peers = bench()
    device.y[3] = CLASSES
    assert until_refusal(device, peers)["status"] == Status.SAMPLE_IO


def test_a_device_without_samples_says_so_and_spares_its_flash():
    x, y = data(0)
    device, peers = Device(x, y), bench()[1]
    assert until_refusal(device, peers)["status"] == Status.NO_SAMPLES
    assert not device.flash.log


def test_a_refused_report_is_dropped_and_not_repeated():
    device, peers = bench()
    peers.hear_offer = lambda device, packet: peers.tell(
        device, Packet(packet.channel, Kind.REFUSE, {"status": Status.STALE_ROUND, "handle": packet.fields["handle"]})
    )
    peers.run(device, lambda: any(packet.kind == Kind.REPORT for packet in peers.heard))
    peers.run(device, lambda: device.state == "idle")
    assert not device.info.is_update_held


@pytest.mark.parametrize(
    ("fields", "is_kept"),
    [
        ({}, True),
        ({"run": RUN}, True),
        ({"handle": 1, "run": RUN, "round": 1}, True),
        ({"run": RUN, "round": 2}, True),
        ({"run": b"run-0002", "round": 1}, True),
        ({"round": 1}, False),
        ({"run": RUN, "round": 1}, False),
    ],
    ids=str,
)
def test_an_update_is_dropped_only_for_a_refusal_of_its_round(fields, is_kept):
    device, peers = bench()
    peers.is_acking = False
    peers.run(device, lambda: bool(peers.updates))
    peers.tell(device, Packet(COORDINATOR, Kind.REFUSE, {"status": Status.STALE_ROUND} | fields))
    before = len(peers.reports)
    start = device.now
    peers.run(device, lambda: device.now - start > 10_000)
    assert device.info.is_update_held == is_kept
    assert (len(peers.reports) > before) == is_kept


@pytest.mark.parametrize(("status", "is_offered"), [(Status.STALE_ROUND, False), (Status.UPDATE_SHAPE, True)], ids=str)
def test_samples_go_on_after_a_refused_update_unless_the_round_is_over(status, is_offered):
    device, peers = bench()
    peers.has_partner = peers.is_acking = False
    peers.run(device, lambda: bool(peers.updates))
    peers.hear_hello = lambda _device, _packet: None
    peers.tell(device, Packet(COORDINATOR, Kind.REFUSE, {"status": status, "run": RUN, "round": 1}))
    peers.run(device, lambda: device.state == "idle")
    device.tx.clear()
    peers.heard.clear()
    start = device.now
    peers.run(device, lambda: device.now - start > 10_000)
    assert any(packet.kind == Kind.SAMPLES for packet in peers.heard) == is_offered


def test_a_round_that_ends_late_is_reported_and_hello_asks_for_the_next():
    device, peers = bench(changes={"remaining_ms": 5_000})
    peers.run(device, lambda: device.state == "train")
    peers.hear_offer = peers.hear_hello = lambda _device, _packet: None
    peers.heard.clear()
    device.now += 6_000
    start = device.now
    peers.run(device, lambda: device.now - start > 100_000)
    kinds = [packet.kind for packet in peers.heard]
    assert device.state == "report"
    assert kinds.count(Kind.REPORT) > 40
    assert kinds.count(Kind.HELLO) > 1


@pytest.mark.parametrize("steps", [0, 1])  # a device hears first in every second step, and says something in the others
def test_a_refusal_that_could_not_leave_is_not_said_of_the_next_round(steps):
    device, peers = bench()
    peers.run(device, lambda: device.state == "encode")
    for _ in range(steps):
        device.step()
    device.write_limit = lambda: 0
    device.is_sample_broken = True
    peers.run(device, lambda: device.state == "idle")
    device.is_sample_broken = False
    peers.round = peers.rounds = 2
    peers.tell(device, peers.plan_packet())
    for _ in range(10):
        device.step()
    device.write_limit = lambda: 1 << 30
    peers.run(device, lambda: device.info.rounds_done == 1)
    assert [refusal["round"] for refusal in refusals(peers)] in ([], [1])  # it was composed before the plan came


def test_a_coordinator_that_lost_the_blob_makes_the_device_ask_again_for_a_plan():
    device, peers = bench()
    blobs, peers.blobs = peers.blobs, {}
    peers.run(device, lambda: device.info.error == -Status.STALE_ROUND)
    peers.blobs = blobs
    finish(device, peers)


def test_a_fetch_that_nobody_answers_ends_with_the_round():
    device, peers = bench(changes={"remaining_ms": 30_000})
    peers.hear_get = lambda _device, _packet: None
    peers.run(device, lambda: device.info.error == -Status.TIMEOUT)
    assert device.state == "idle"
    assert 29 <= [p.kind for p in peers.heard].count(Kind.GET) <= 31


def test_an_unknown_kind_is_answered_with_a_refusal_and_a_bad_body_with_silence():
    device, peers = bench()
    device.rx += Packet(CELL, Kind.WAIT, {}).to_frame(0)
    for kind in (100, 255):
        device.rx += frame(CELL, kind, 0, b"")
        refused = until_refusal(device, peers)
        assert refused == {"status": Status.UNKNOWN_KIND}
        peers.heard.clear()
    assert device.info.frame_errors == 1


def test_a_get_with_chunks_larger_than_the_device_can_send_is_refused():
    device, peers = bench()
    peers.is_acking = False
    peers.run(device, lambda: bool(peers.reports))
    handle = peers.reports[0]["handle"]
    peers.tell(device, Packet(COORDINATOR, Kind.GET, {"handle": handle, "offset": 0, "chunk": 168, "mask": 1}))
    assert until_refusal(device, peers) == {"status": Status.BODY_TOO_LARGE, "handle": handle}


def test_a_get_beyond_the_end_of_the_blob_is_answered_only_below_it():
    device, peers = bench()
    peers.is_acking = False
    peers.run(device, lambda: bool(peers.updates))
    handle, size = peers.reports[0]["handle"], peers.reports[0]["size"]
    peers.heard.clear()
    for offset in (size - 1, size, 0xFFFFFFFF):
        peers.tell(device, Packet(COORDINATOR, Kind.GET, {"handle": handle, "offset": offset, "chunk": 8, "mask": 0xFFFFFFFF}))
        start = device.now
        peers.run(device, lambda start=start: device.now - start > 1_000)
    answers = [packet.fields for packet in peers.heard if packet.kind == Kind.DATA and packet.channel == COORDINATOR]
    assert [(answer["offset"], len(answer["data"])) for answer in answers] == [(size - 1, 1)]
