# SPDX-License-Identifier: Apache-2.0
"""What outlives a reset: the number of the boot, and an update that was finished and is not yet acknowledged."""

from __future__ import annotations

import pytest

from fedmote.wire.schema import Kind, Status
from firmware_tests.device_bench import JOURNAL, Device, FlashModel
from firmware_tests.one_round import MODEL_HANDLE, PACKAGE, PARAMETERS, bench, data, finish, plan_for
from firmware_tests.scripted_peers import CELL, COORDINATOR, RUN, Fields, Packet, Peers

EVENT_JOURNAL_LOST = 13
REGION = 2048
BOOTS_KEPT = 16  # for which a region keeps room beside the longest update
CONTENT = 168
RECORD = 16 + CONTENT + -(-(11 + 4 * PARAMETERS) // 8) * 8 + 16  # of the update of the package here: its CBOR has 8 to 11 bytes


def with_journal(region_bytes: int = REGION, **changes: int) -> tuple[Device, Peers]:
    device, peers = bench(flash=FlashModel(journal_bytes=region_bytes), changes=changes)
    return device, peers


def power_cycle(device: Device, peers: Peers | None = None) -> None:
    device.rx.clear()
    device.tx.clear()
    device.events.clear()
    device.boot()
    if peers is not None:
        peers.pulls.clear()


def boot_of(device: Device) -> int:
    peers = Peers(plan_for(PACKAGE), {}, rounds=0)
    device.tx.clear()
    peers.run(device, lambda: bool(peers.heard))
    return int(peers.heard[0].fields["boot"])


def journal(device: Device) -> list[tuple[str, int, int, int]]:
    return [entry for entry in device.flash.log if entry[1] >= JOURNAL]


def report_without(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if name != "attempt"}


# ---- boots -----------------------------------------------------------------------------------------------------------


def test_every_boot_has_the_number_behind_the_last_over_many_changes_of_the_region() -> None:
    device, _ = with_journal(256)
    first = boot_of(device)
    assert first <= 1 << 24
    for number in range(first + 1, first + 101):
        power_cycle(device)
        assert boot_of(device) == number
    erases = [region for kind, region, *_ in journal(device) if kind == "erase"]
    assert set(erases) == {JOURNAL, JOURNAL + 1}
    assert len(erases) == 1 + 100 // 16  # 16 records of 16 bytes, the head of the region among them


def test_two_new_journals_begin_at_different_numbers() -> None:
    assert boot_of(with_journal()[0]) != boot_of(Device(*data(), flash=FlashModel(journal_bytes=REGION), seed=2))


def test_a_region_whose_contents_are_noise_is_a_new_journal() -> None:
    device, _ = with_journal()
    for region in (JOURNAL, JOURNAL + 1):
        device.flash.slots[region][:] = 0x3C
        device.flash.is_written[region][:] = True
    power_cycle(device)
    first = boot_of(device)
    power_cycle(device)
    assert boot_of(device) == first + 1


def test_a_journal_that_cannot_be_written_is_told_and_the_device_works() -> None:
    device, peers = with_journal()
    device._port.journal_erase = type(device._port.journal_erase)(lambda *_: -200)
    device._port.journal_write = type(device._port.journal_write)(lambda *_: -200)
    power_cycle(device)
    assert device.events == [(EVENT_JOURNAL_LOST, -Status.SLOT_IO)]
    finish(device, peers)
    assert device.info.error == 0


# ---- updates ---------------------------------------------------------------------------------------------------------


def undisturbed(**changes: int) -> tuple[bytes, bytes, Fields]:
    device, peers = bench(changes=changes)
    finish(device, peers)
    return peers.updates[1][0], peers.samples.get(1, [b""])[0], peers.reports[0]


def run_until_sealed(device: Device, peers: Peers) -> None:
    """Until the record of the update is whole: its seal is the last write."""
    peers.run(device, lambda: device.state == "report" and journal(device)[-1][3] == 8)


def test_an_update_is_reported_at_once_after_a_reset_during_its_upload() -> None:
    update, samples, report = undisturbed()
    device, peers = with_journal()
    acknowledge = peers.acknowledge
    peers.acknowledge = lambda device, pull: acknowledge(device, pull) if pull.channel == CELL else None  # type: ignore[method-assign]
    run_until_sealed(device, peers)
    peers.acknowledge = acknowledge  # type: ignore[method-assign]
    operations = len(device.flash.log)
    power_cycle(device, peers)
    device.visited.clear()
    finish(device, peers)
    assert (peers.updates[1][-1], peers.samples[1][0]) == (update, samples)
    assert device.visited == {"idle", "fetch", "report"}
    assert report_without(peers.reports[-1]) == report_without(report)
    assert (peers.reports[0]["attempt"], peers.reports[-1]["attempt"]) == (0, 1)
    done = device.flash.log[operations:]
    assert [(kind, size) for kind, _, _, size in done] == [("write", 16), ("write", 8)]  # the boot, and that it is dropped


def test_an_update_is_kept_only_when_the_partner_has_its_samples() -> None:
    """Else a reset would lose them: with one, training begins anew and offers them again."""
    _, samples, _ = undisturbed()
    device, peers = with_journal()
    peers.has_partner = False
    peers.is_acking = False
    peers.run(device, lambda: device.state == "report" and bool(peers.updates))
    assert [entry for entry in journal(device) if entry[0] == "write" and entry[3] > 16] == []
    peers.has_partner = peers.is_acking = True
    power_cycle(device, peers)
    finish(device, peers)
    assert peers.samples[1][-1] == samples


def kept(**changes: int) -> tuple[Device, Peers]:
    """A device after a reset, with an update of round 1 in its journal."""
    device, peers = with_journal(is_sending_samples=0, **changes)
    peers.is_acking = False
    run_until_sealed(device, peers)
    peers.is_acking = True
    power_cycle(device, peers)
    device.visited.clear()
    return device, peers


def test_power_may_fail_again_and_again_during_the_upload() -> None:
    update, _, _ = undisturbed(is_sending_samples=0)
    device, peers = kept()
    peers.is_acking = False
    for _ in range(40):  # more than a region holds boots
        peers.run(device, lambda: device.state == "report")
        power_cycle(device, peers)
    peers.is_acking = True
    device.visited.clear()
    finish(device, peers)
    assert peers.updates[1][-1] == update
    assert "encode" not in device.visited


@pytest.mark.parametrize("answer", ["ack", "refuse"])
def test_an_update_that_was_answered_is_dropped(answer: str) -> None:
    device, peers = kept()
    peers.run(device, lambda: device.state == "report")
    report = peers.reports[-1]
    fields: Fields = {"handle": report["handle"], "run": RUN, "round": 1}
    if answer == "ack":
        peers.tell(device, Packet(COORDINATOR, Kind.ACK, fields))
    else:
        peers.tell(device, Packet(COORDINATOR, Kind.REFUSE, fields | {"status": int(Status.WRONG_MODEL)}))
    peers.alter = lambda _number, _packet, _is_down: []
    peers.run(device, lambda: device.state == "idle")
    assert journal(device)[-1][3] == 8
    peers.alter = lambda _number, packet, _is_down: [packet]
    power_cycle(device, peers)
    device.visited.clear()
    finish(device, peers)
    assert "train" in device.visited


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 43}, {"version": 5}, {"epochs": 3}, {"batch": 7}, {"learning_rate_micro": 1}, {"alpha_milli": 1},
        {"gain_milli": 900}, {"trained_layers": 1}, {"is_bias_only": 1}, {"clip_norm_micro": 10_000},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_that_asks_for_another_update_is_carried_out(changes: dict[str, int]) -> None:
    device, peers = kept()
    peers.plan |= changes
    finish(device, peers)
    assert "train" in device.visited


def test_another_round_or_run_is_carried_out() -> None:
    device, peers = kept()
    peers.round, peers.rounds = 2, 2
    peers.run(device, lambda: peers.round > 2)
    assert "train" in device.visited


def test_another_device_does_not_report_the_update_of_the_one_before() -> None:
    device, peers = kept()
    other = Device(*data(), flash=device.flash, identifier="board-2")
    finish(other, peers)
    assert "train" in other.visited


def test_damage_to_a_kept_update_costs_the_training_and_nothing_else() -> None:
    update, _, _ = undisturbed(is_sending_samples=0)
    for at in range(0, RECORD - 8, 8):
        device, peers = kept()
        start = next(offset for kind, _, offset, size in journal(device) if kind == "write" and size == CONTENT) - 16
        device.flash.slots[JOURNAL][start + at] ^= 4
        power_cycle(device, peers)
        finish(device, peers)
        assert peers.updates[1][-1] == update, f"byte {at}"


def test_an_update_larger_than_a_region_is_skipped_with_an_event() -> None:
    for spare, is_kept in ((0, True), (-8, False)):
        device, peers = with_journal(16 + RECORD + BOOTS_KEPT * 16 + spare, is_sending_samples=0)
        finish(device, peers)
        assert ((EVENT_JOURNAL_LOST, -Status.SLOT) in device.events) == (not is_kept)
        assert device.info.error == 0


def test_a_round_costs_the_journal_one_update_and_one_mark_and_seldom_an_erase() -> None:
    device, peers = with_journal(4096, is_sending_samples=0)
    peers.rounds = 20
    first = len(device.flash.log)
    finish(device, peers)
    records = [
        size for kind, region, _, size in device.flash.log[first:] if region >= JOURNAL and kind == "write" and size == CONTENT
    ]
    erases = [kind for kind, region, *_ in device.flash.log[first:] if region >= JOURNAL and kind == "erase"]
    assert len(records) <= 20
    assert len(erases) <= 20 * RECORD // 4096 + 1


def test_a_device_without_a_journal_draws_its_boot_and_trains_anew() -> None:
    device, peers = bench(changes={"is_sending_samples": 0})
    first = boot_of(device)
    power_cycle(device)
    assert boot_of(device) not in (first, first + 1)
    peers.is_acking = False
    peers.run(device, lambda: device.state == "report" and bool(peers.updates))
    peers.is_acking = True
    power_cycle(device, peers)
    device.visited.clear()
    finish(device, peers)
    assert "train" in device.visited


def test_handles_of_another_attempt_do_not_matter() -> None:
    device, peers = kept()
    peers.plan["model_handle"] = MODEL_HANDLE + 1
    finish(device, peers)
    assert "train" not in device.visited
