# SPDX-License-Identifier: Apache-2.0
"""One-time tokens and keys that are renewed: the C client and a registry, with power cuts and restarts at every moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmote.coordinator.security import MAX_OFFERS, Security
from fedmote.errors import ConfigError
from fedmote.fleet import Registry
from fedmote.wire.codec import encode
from fedmote.wire.schema import Channel, Kind, Role, Status
from firmware_tests.device_bench import JOURNAL, Device, FlashModel
from firmware_tests.one_round import MODEL_HANDLE, PACKAGE, data, finish, plan_for
from firmware_tests.scripted_peers import COORDINATOR, Packet
from firmware_tests.sealed_peers import CELL_KEY, SealedPeers

EVENT_REKEYED = 14
JOURNAL_BYTES = 2048
DAY_S = 86_400.0
WRITES = (16, 32, 8, 8)  # head, key, what it takes the place of, seal
ID = "board-1"


@dataclass
class Clock:
    """Unix time of a registry."""

    now: float = 1e9

    def __call__(self) -> float:
        return self.now


class RekeyingPeers(SealedPeers):
    """`SealedPeers` whose keys are in a registry, and which answer hellos as the coordinator does."""

    def __init__(self, registry: Registry, rounds: int = 1) -> None:
        self.registry = registry
        self.is_deaf = False  # a rekey is made, and lost
        super().__init__(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE}, rounds=rounds)

    def restart(self, channel: Channel) -> None:
        super().restart(channel)
        if channel is Channel.COORDINATOR:
            former = self._epochs[channel] - 10 if channel in self.ends else 0
            self.security = Security.begin(self.registry, self.epoch, lambda: self.now_s, max(former, 0))
            self.ends[channel] = self.security.end

    def hear_hello(self, device: Device, packet: Packet) -> None:
        offer = self.security.offer(ID, int(packet.fields["boot"]), self.now_s)
        if offer is None:
            super().hear_hello(device, packet)
        elif not self.is_deaf:
            body = self.ends[COORDINATOR].seal(ID, Kind.REKEY, encode(offer))
            if body is not None:
                self.write(device, COORDINATOR, int(Kind.REKEY), body)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Iterator[Registry]:
    with Registry.open(tmp_path / "fleet", is_made=True, clock=clock) as opened:
        yield opened


def board(key: bytes, seed: int = 1, journal_bytes: int = JOURNAL_BYTES) -> Device:
    return Device(*data(), flash=FlashModel(journal_bytes=journal_bytes), key=key, cell_key=CELL_KEY, seed=seed)


def power_cycle(device: Device) -> None:
    device.rx.clear()
    device.tx.clear()
    device.boot()


def is_lasting(registry: Registry) -> bool:
    entry = registry.entry(ID)
    return entry is not None and entry.key_state == "lasting"


def test_a_token_becomes_a_lasting_key_before_the_first_plan(registry: Registry) -> None:
    token = registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S)
    device, peers = board(token), RekeyingPeers(registry)
    finish(device, peers)
    assert len(peers.updates[1]) == 1
    assert is_lasting(registry)
    assert registry.key(ID) not in (None, token)
    assert [event for event, _ in device.events].count(EVENT_REKEYED) == 1
    kinds = [Kind(kind) for is_down, channel, kind, _ in peers.seen if is_down and channel == COORDINATOR]
    assert kinds[:2] == [Kind.WAIT, Kind.REKEY]
    assert Kind.REKEY not in kinds[2:]
    assert peers.refused == []
    power_cycle(device)  # the journal has it
    peers.rounds = 2
    finish(device, peers)
    assert peers.refused == []
    assert len(peers.updates[2]) == 1


def test_the_lasting_key_is_in_the_flash_and_nowhere_in_the_memory_of_the_device(registry: Registry) -> None:
    device, peers = board(registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S)), RekeyingPeers(registry)
    peers.run(device, lambda: is_lasting(registry))
    key = registry.key(ID)
    assert key is not None
    memory = device._memory.tobytes() + device._guarded.tobytes()
    assert not any(key[at : at + 8] in memory for at in range(0, 32, 8))
    assert any(key in region.tobytes() for region in device.flash.slots[JOURNAL:])


def test_power_may_fail_at_every_operation_of_the_flash_while_a_token_is_used(tmp_path: Path) -> None:
    for at in range(len(WRITES)):
        with Registry.open(tmp_path / str(at), is_made=True) as registry:
            device = board(registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S))
            peers = RekeyingPeers(registry)
            device.flash.cut_at = len(device.flash.log) + at
            peers.run(device, lambda registry=registry: is_lasting(registry))  # type: ignore[misc]
            power_cycle(device)
            finish(device, peers)
            assert len(peers.updates[1]) == 1, at


def test_a_key_costs_the_journal_four_writes_of_72_bytes_and_no_erase(registry: Registry) -> None:
    device, peers = board(registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S)), RekeyingPeers(registry)
    before = len(device.flash.log)
    peers.run(device, lambda: is_lasting(registry))
    assert [(kind, size) for kind, _, _, size in device.flash.log[before:]] == [("write", size) for size in WRITES]


def test_the_coordinator_may_end_between_any_two_messages_and_says_the_same_key_again(tmp_path: Path, clock: Clock) -> None:
    for moment in range(1, 8):
        directory = tmp_path / str(moment)
        with Registry.open(directory, is_made=True, clock=clock) as registry:
            device = board(registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S))
            peers = RekeyingPeers(registry)
            peers.run(device, lambda peers=peers, moment=moment: len(peers.seen) >= moment)  # type: ignore[misc]
            made = registry.renewal(ID)
        with Registry.open(directory, clock=clock) as registry:
            peers.registry = registry
            peers.restart(Channel.COORDINATOR)
            finish(device, peers)
            assert is_lasting(registry)
            if made is not None and made.other is not None and not made.is_used:
                assert registry.key(ID) == made.other, moment


def test_a_device_that_never_hears_its_key_gets_the_same_one_over_power_cuts_until_it_has_it(registry: Registry) -> None:
    device, peers = board(registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S)), RekeyingPeers(registry)
    peers.is_deaf = True
    made = set()
    for _ in range(MAX_OFFERS):
        start = len(peers.heard)
        peers.run(device, lambda start=start: len(peers.heard) > start)  # type: ignore[misc]
        renewal = registry.renewal(ID)
        assert renewal is not None
        made.add(renewal.other)
        power_cycle(device)
    assert len(made) == 1
    assert peers.security.is_not_taken(ID)
    peers.is_deaf = False
    finish(device, peers)
    assert {registry.key(ID)} == made


def test_a_second_board_with_the_same_token_is_refused_before_and_after_the_first_one_has_its_key(registry: Registry) -> None:
    token = registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S)
    first, second, peers = board(token, seed=1), board(token, seed=99), RekeyingPeers(registry)
    peers.is_deaf = True
    peers.run(first, lambda: (renewal := registry.renewal(ID)) is not None and renewal.other is not None)
    peers.run(second, lambda: Status.TOKEN_USED in peers.refused)
    peers.is_deaf = False
    finish(first, peers)
    peers.refused.clear()
    power_cycle(second)
    peers.run(second, lambda: len(peers.refused) > 2)
    assert set(peers.refused) == {Status.TOKEN_USED}
    assert second.state == "idle"
    assert second.info.messages_forged == 0  # nobody told it anything
    refusals = peers.ends[COORDINATOR].take_refusals()
    assert {status for _, status in refusals} == {Status.TOKEN_USED}
    assert peers.security.complaints(refusals) == [f"{ID}: shows a token that served another board, or was used: a second board?"]
    assert peers.security.complaints(refusals) == []  # once


def test_an_expired_token_and_one_of_a_revoked_device_are_refused(registry: Registry, clock: Clock) -> None:
    token = registry.add(ID, Role.DEVICE, "desk", token_s=60)
    clock.now += 60
    device, peers = board(token), RekeyingPeers(registry)
    peers.run(device, lambda: Status.TOKEN_EXPIRED in peers.refused)
    assert registry.renewal(ID).other is None  # type: ignore[union-attr]
    registry.revoke(ID)
    peers.refused.clear()
    peers.run(device, lambda: Status.REVOKED in peers.refused)
    assert set(peers.refused) == {Status.REVOKED}


def test_a_device_that_has_its_lasting_key_may_speak_when_the_token_has_expired(registry: Registry, clock: Clock) -> None:
    device, peers = board(registry.add(ID, Role.DEVICE, "desk", token_s=60)), RekeyingPeers(registry)
    peers.run(device, lambda: EVENT_REKEYED in [event for event, _ in device.events])
    device.tx.clear()
    assert not is_lasting(registry)
    clock.now += 3600
    power_cycle(device)
    finish(device, peers)
    assert is_lasting(registry)


def test_a_key_is_rotated_over_the_air_twice_and_the_old_one_is_valid_until_the_new_one_was_used(registry: Registry) -> None:
    keys = [registry.add(ID, Role.DEVICE, "desk")]
    device, peers = board(keys[0], journal_bytes=512), RekeyingPeers(registry)
    for number in (1, 2):
        peers.rounds = number
        registry.rotate_over_the_air(ID)
        if number == 1:
            peers.is_deaf = True
            peers.run(device, lambda: (renewal := registry.renewal(ID)) is not None and renewal.other is not None)
            assert registry.key(ID) == keys[0]
            peers.is_deaf = False
            peers.now_s += 61  # it is offered again after a minute
        finish(device, peers)
        key = registry.key(ID)
        assert key is not None
        keys.append(key)
        assert is_lasting(registry)
    assert len(set(keys)) == 3
    for _ in range(70):  # the regions of the journal change places
        power_cycle(device)
    assert {region for kind, region, *_ in device.flash.log if kind == "erase" and region >= JOURNAL} == {JOURNAL, JOURNAL + 1}
    peers.rounds = 3
    finish(device, peers)
    assert len(peers.updates[3]) == 1


def test_a_device_whose_firmware_takes_no_key_goes_on_under_the_old_one(registry: Registry) -> None:
    device, peers = board(registry.add(ID, Role.DEVICE, "desk")), RekeyingPeers(registry)
    registry.rotate_over_the_air(ID)
    peers.is_deaf = True
    finish(device, peers)
    assert len(peers.updates[1]) == 1
    assert registry.entry(ID).key_state == "rotating"  # type: ignore[union-attr]


def test_a_board_with_another_identity_has_left_the_key_in_its_journal_behind(registry: Registry, tmp_path: Path) -> None:
    device, peers = board(registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S)), RekeyingPeers(registry)
    finish(device, peers)
    registry.rotate(ID)
    key = registry.key(ID)
    again = Device(*data(), flash=device.flash, key=key, cell_key=CELL_KEY)
    peers.rounds = 2
    finish(again, peers)
    assert peers.refused == []
    assert len(peers.updates[2]) == 1


def test_a_journal_that_is_too_small_for_a_key_is_told_and_the_token_stays(registry: Registry) -> None:
    device = board(registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S), journal_bytes=336)
    peers = RekeyingPeers(registry)
    peers.run(device, lambda: (13, -Status.SLOT) in device.events)
    assert registry.entry(ID).key_state == "token"  # type: ignore[union-attr]


def test_partners_and_devices_with_an_unused_token_are_not_rotated_over_the_air(registry: Registry) -> None:
    registry.add("phone-1", Role.PARTNER, "desk")
    registry.add(ID, Role.DEVICE, "desk", token_s=DAY_S)
    with pytest.raises(ConfigError, match="a partner"):
        registry.rotate_over_the_air("phone-1")
    with pytest.raises(ConfigError, match="not used yet"):
        registry.rotate_over_the_air(ID)
