# SPDX-License-Identifier: Apache-2.0
"""The step machine of the device (SPEC.md, section 5) against a scripted coordinator and partner, in virtual time."""

import struct
import zlib
from itertools import pairwise

import cbor2
import numpy as np
import pytest
from scipy.stats import rankdata

from fedmote.wire.schema import Kind, Phase, Status
from firmware_tests.device_bench import Device, FlashModel, library
from firmware_tests.generate_vectors import frame
from firmware_tests.native import OpenPackage
from firmware_tests.package_builder import Builder, assemble, head_section
from firmware_tests.scripted_peers import CELL, COORDINATOR, RUN, Packet, Peers
from firmware_tests.test_select import draw

INPUTS, FEATURES, CLASSES, SAMPLES = 16, 8, 3, 40
PARAMETERS = CLASSES * FEATURES + CLASSES
FEATURE_SCALE, FEATURE_ZERO_POINT = 0.02, -7
MODEL_HANDLE, HEAD_HANDLE = 7, 0xFFFFFFF0


def build(version: int = 0, filler: int = 6000) -> bytes:
    """A package of one dense layer; the filler makes it take more than one window of chunks."""
    rng = np.random.default_rng(version)
    builder = Builder(INPUTS)
    weights = rng.integers(-127, 128, (FEATURES, INPUTS)).astype(np.int8)
    constants = (
        weights,
        rng.integers(-500, 500, FEATURES).astype(np.int32),
        *(np.full(FEATURES, value, np.int32) for value in (1 << 30, -6)),
    )
    features = builder.dense(builder.input_offset, INPUTS, FEATURES, constants, (0, FEATURE_ZERO_POINT, -128, 127))
    builder.constant(np.full(filler, version, np.int8))
    head = head_section(rng.normal(size=(CLASSES, FEATURES)) * 0.1, np.zeros(CLASSES))
    return assemble(builder.sections(features, FEATURES, head, FEATURE_SCALE, FEATURE_ZERO_POINT))


def package_head(package: bytes) -> np.ndarray:
    """Its float32 parameters: they are the end of the head section, the last one."""
    _, offset, size, _ = struct.unpack_from("<4I", package, 48 + 3 * 16)
    return np.frombuffer(package[offset : offset + size][-4 * PARAMETERS :], "<f4")


def data(count: int = SAMPLES, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(-128, 128, (count, INPUTS)).astype(np.int8), rng.integers(0, CLASSES, count)


def plan_for(package: bytes, **changes: int | bytes) -> dict[str, int | bytes]:
    plan = {
        "phase": int(Phase.SIMULTANEOUS),
        "version": 4,
        "remaining_ms": 120_000,
        "model_hash": package[16:48],
        "model_handle": MODEL_HANDLE,
        "model_size": len(package),
        "seed": 42,
        "epochs": 4,
        "batch": 8,
        "learning_rate_micro": 50_000,
        "momentum_micro": 900_000,
        "alpha_milli": 1000,
        "beta_milli": 3000,
        "is_sending_samples": 1,
    }
    return {name: value for name, value in (plan | changes).items() if value is not None}


PACKAGE = build()


def bench(
    package: bytes = PACKAGE, rounds: int = 1, changes: dict[str, int] | None = None, **options: object
) -> tuple[Device, Peers]:
    """A device with 40 samples, and its peers with a plan for each round."""
    return Device(*data(), **options), Peers(plan_for(package, **(changes or {})), {MODEL_HANDLE: package}, rounds=rounds)  # type: ignore[arg-type]


def finish(device: Device, peers: Peers, **options: int) -> None:
    """Until the last round is acknowledged and the partner has its samples."""
    has_samples = bool(peers.plan.get("is_sending_samples")) and peers.has_partner
    peers.run(
        device,
        lambda: peers.round > peers.rounds and device.state == "idle" and (not has_samples or len(peers.samples) == peers.rounds),
        **options,
    )


class Twin:
    """What a device does in a round, in NumPy: groups exactly, the head in float64."""

    def __init__(self, package: bytes, plan: dict[str, int | bytes], head: np.ndarray, identifier: str = "board-1") -> None:
        self.x, self.y = data()
        self.plan = plan
        features = OpenPackage(package).encode(self.x).astype(np.float64)
        self.features = (features - FEATURE_ZERO_POINT) * FEATURE_SCALE
        self.head = head.astype(np.float64)
        loss, norm = self.losses()
        self.mean_loss = loss.mean()
        self.rank, norm_rank = (rankdata(values, "min") for values in (loss, norm))
        u, v = self.rank / SAMPLES, norm_rank / SAMPLES
        alpha, beta, gamma = (int(plan.get(f"{name}_milli", 0)) / 1000 for name in ("alpha", "beta", "gamma"))
        limit = SAMPLES * int(plan.get("gain_milli", 1000)) // 1000
        device = zlib.crc32(identifier.encode())
        self.own, self.partner = np.zeros((2, int(plan["epochs"]), SAMPLES), bool)
        for epoch in range(int(plan["epochs"])):
            for i in range(limit):
                draws = [draw(int(plan["seed"]), device, epoch, i, k) / 2**32 for k in range(3)]
                dropped = alpha > 0 and draws[0] < (1 - u[i]) ** alpha
                high = beta > 0 and draws[1] < u[i] ** beta
                more = gamma > 0 and draws[2] < v[i] ** gamma
                order = plan.get("gamma_order", 0)
                self.partner[epoch, i] = (high and (more or gamma == 0)) if order else (high or (not dropped and more))
                self.own[epoch, i] = not dropped and not self.partner[epoch, i]

    def layers(self, head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return head[: CLASSES * FEATURES].reshape(CLASSES, FEATURES), head[CLASSES * FEATURES :]

    def probabilities(self, index: np.ndarray) -> np.ndarray:
        weight, bias = self.layers(self.head)
        z = self.features[index] @ weight.T + bias
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def losses(self) -> tuple[np.ndarray, np.ndarray]:
        index = np.arange(SAMPLES)
        p = self.probabilities(index)
        error = p - np.eye(CLASSES)[self.y]
        return -np.log(p[index, self.y]), np.linalg.norm(self.features, axis=1) * np.linalg.norm(error, axis=1)

    def train(self) -> np.ndarray:
        """The update (PARAMETERS,)."""
        start, velocity = self.head.copy(), np.zeros(PARAMETERS)
        rate, momentum = int(self.plan["learning_rate_micro"]) / 1e6, int(self.plan["momentum_micro"]) / 1e6
        for own in self.own:
            selected = np.flatnonzero(own)
            for first in range(0, len(selected), int(self.plan["batch"])):
                index = selected[first : first + int(self.plan["batch"])]
                error = (self.probabilities(index) - np.eye(CLASSES)[self.y[index]]) / len(index)
                gradient = np.concatenate([(error.T @ self.features[index]).ravel(), error.sum(0)])
                velocity = momentum * velocity + gradient
                self.head = self.head - rate * velocity
        return self.head - start


def head_update(blob: bytes) -> np.ndarray:
    """The floats of a head update, its form checked."""
    content = cbor2.loads(blob)
    assert cbor2.dumps(content, canonical=True) == blob
    assert content[1] == 1
    assert content[2].tag == 85
    return np.frombuffer(content[2].value, "<f4")


def sample_records(blob: bytes) -> list[tuple[int, int, int, bytes]]:
    """(index, label, epochs, x) of each record of a samples blob."""
    content = cbor2.loads(blob)
    assert cbor2.dumps(content, canonical=True) == blob
    assert content[2] == INPUTS
    records = content[3]
    assert len(records) == content[1] * (12 + INPUTS)
    return [
        (*struct.unpack_from("<3I", records, at), records[at + 12 : at + 12 + INPUTS])
        for at in range(0, len(records), 12 + INPUTS)
    ]


# ---- a round ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha_milli": 0, "beta_milli": 0},
        {"gamma_milli": 2500},
        {"gamma_milli": 2500, "gamma_order": 1, "beta_milli": 800},
        {"gain_milli": 501, "batch": 1024, "epochs": 32},
        {"epochs": 1, "batch": 1},
    ],
    ids=str,
)
def test_a_round_computes_what_numpy_computes(changes):
    device, peers = bench(changes=changes)
    peers.plan["is_sending_samples"] = int(peers.plan["beta_milli"] > 0)
    twin = Twin(PACKAGE, peers.plan, package_head(PACKAGE))
    finish(device, peers)
    [blob], [report, *_] = peers.updates[1], peers.reports
    np.testing.assert_allclose(head_update(blob), twin.train(), rtol=2e-4, atol=2e-6)
    assert report["num_examples"] == twin.own[0].sum()
    assert report["trained"] == twin.own.sum()
    assert report["discarded"] == (~(twin.own.any(0) | twin.partner.any(0))).sum()
    assert report["loss_micro"] == pytest.approx(twin.mean_loss * 1e6, rel=1e-4)
    assert (report["version"], report["attempt"], report["run"], report["round"]) == (4, 0, RUN, 1)
    if peers.plan["is_sending_samples"]:
        x, y = data()
        expected = [
            (i, y[i], int((twin.partner[:, i] << np.arange(len(twin.partner))).sum()), x[i].tobytes())
            for i in np.flatnonzero(twin.partner.any(0))
        ]
        assert sample_records(peers.samples[1][0]) == expected
        assert report["sent"] == len(expected)


def test_a_round_passes_through_every_state_and_ends_idle():
    device, peers = bench()
    finish(device, peers)
    assert device.visited == {"idle", "fetch", "encode", "select", "train", "report"}
    assert (device.info.rounds_done, device.info.round, device.info.error, device.info.is_update_held) == (1, 1, 0, 0)
    assert device.info.frame_errors == 0


def test_the_package_is_fetched_once_for_many_rounds():
    device, peers = bench(rounds=3)
    finish(device, peers)
    assert len(peers.updates) == 3
    assert [entry[0] for entry in device.flash.log].count("erase") == 1
    assert device.info.generation == 1


def test_a_new_package_goes_to_the_other_slot_and_the_old_one_stays():
    device, peers = bench()
    finish(device, peers)
    newer = build(1)
    peers.plan, peers.blobs, peers.rounds = plan_for(newer), {MODEL_HANDLE: newer}, 2
    finish(device, peers)
    assert {slot for kind, slot, *_ in device.flash.log if kind == "erase"} == {0, 1}
    assert device.info.generation == 2
    assert bytes(device.flash.slots[0][: len(PACKAGE)]) == PACKAGE
    assert bytes(device.flash.slots[1][: len(newer)]) == newer


def test_a_newer_head_of_the_plan_is_trained_in_place_of_the_packages():
    head = np.random.default_rng(9).normal(size=PARAMETERS).astype("<f4")
    changes = {"head_handle": HEAD_HANDLE, "head_size": 4 * PARAMETERS, "head_crc": zlib.crc32(head.tobytes())}
    device, peers = bench(changes=changes)
    peers.blobs[HEAD_HANDLE] = head.tobytes()
    twin = Twin(PACKAGE, peers.plan, head)
    finish(device, peers)
    np.testing.assert_allclose(head_update(peers.updates[1][0]), twin.train(), rtol=2e-4, atol=2e-6)


def test_embeddings_that_do_not_fit_are_encoded_again_with_the_same_result():
    updates, used = [], []
    for spare_bytes in (0, 3 * FEATURES + 1, 100_000):
        probe, peers = bench()
        finish(probe, peers)
        device, peers = bench(arena_bytes=probe.info.arena_required + spare_bytes)
        finish(device, peers)
        updates.append(peers.updates[1][0])
        used.append(peers.reports[0]["arena_used_bytes"] - probe.info.arena_required)
    assert updates[0] == updates[1] == updates[2]
    assert used == [0, 3 * FEATURES, SAMPLES * FEATURES]


@pytest.mark.parametrize("max_send", [0, 1, 5, 1000])
def test_of_too_many_samples_those_with_the_highest_ranks_go(max_send):
    device, peers = bench(changes={"max_send": max_send})
    peers.has_partner = max_send > 0
    twin = Twin(PACKAGE, peers.plan, package_head(PACKAGE))
    finish(device, peers)
    candidates = np.flatnonzero(twin.partner.any(0))
    best = sorted(sorted(candidates, key=lambda i: (-twin.rank[i], i))[:max_send])
    sent = [record[0] for record in sample_records(peers.samples[1][0])] if max_send else []
    assert sent == best
    assert peers.reports[0]["sent"] == len(best)


# ---- accidents of the link -------------------------------------------------------------------------------------------


def undisturbed() -> tuple[bytes, bytes, int]:
    """Update, samples and number of frames of a round without accidents."""
    device, peers = bench()
    finish(device, peers)
    return peers.updates[1][0], peers.samples[1][0], peers.frames


FRAMES = undisturbed()[2]


@pytest.mark.parametrize("fault", ["lost", "doubled", "late"])
def test_any_one_frame_may_be(fault):
    update, samples, frames = undisturbed()
    for victim in range(frames):
        held = []

        def alter(number, packet, is_down, victim=victim, held=held):
            if number == victim:
                if fault == "late":
                    held.append((packet, is_down))
                return [packet, packet] if fault == "doubled" else []
            if held and held[0][1] == is_down:
                return [packet, held.pop()[0]]
            return [packet]

        device, peers = bench()
        peers.alter = alter
        finish(device, peers)
        assert peers.updates[1][0] == update, f"frame {victim}"
        assert peers.samples[1][0] == samples, f"frame {victim}"
        assert device.info.rounds_done == 1, f"frame {victim}"


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_rounds_complete_although_many_frames_are_lost(loss):
    update, samples, _ = undisturbed()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        device, peers = bench(changes={"remaining_ms": 3_000_000})
        peers.alter = lambda _number, packet, _is_down, rng=rng: [packet] if rng.random() > loss else []
        finish(device, peers, limit_ms=3_000_000)
        assert (peers.updates[1][0], peers.samples[1][0]) == (update, samples), f"seed {seed}"


def test_a_transfer_asks_again_only_for_what_did_not_come():
    lost = {10, 20}
    device, peers = bench()
    peers.alter = lambda number, packet, _is_down: [] if number in lost and packet.kind == Kind.DATA else [packet]
    finish(device, peers)
    served = [packet.fields["offset"] for packet in peers.told if packet.kind == Kind.DATA]
    assert len(served) == len(set(served)) == -(-len(PACKAGE) // 160)


def test_a_stream_that_moves_single_bytes_is_enough():
    update, samples, _ = undisturbed()
    device, peers = bench()
    device.write_limit = device.read_limit = lambda: 1
    finish(device, peers)
    assert (peers.updates[1][0], peers.samples[1][0]) == (update, samples)


def test_noise_between_frames_costs_at_most_the_frames_it_touches():
    rng = np.random.default_rng(3)
    update, _, _ = undisturbed()
    device, peers = bench()
    tell = peers.tell

    def tell_with_noise(device, packet):
        device.rx += rng.integers(1, 256, rng.integers(0, 30)).astype(np.uint8).tobytes() + b"\0"
        tell(device, packet)

    peers.tell = tell_with_noise
    finish(device, peers)
    assert peers.updates[1][0] == update
    assert device.info.frame_errors > 10


def test_a_lost_stream_is_noticed_and_the_round_goes_on():
    update, samples, _ = undisturbed()
    for state in ("fetch", "train", "report"):
        device, peers = bench()
        peers.run(device, lambda device=device, state=state: device.state == state)
        device.is_stream_broken = True
        for _ in range(50):
            device.step()
        assert not device.info.is_link_up
        device.rx.clear()
        device.tx.clear()
        device.is_stream_broken = False
        peers.pulls.clear()
        finish(device, peers)
        assert (peers.updates[1][0], peers.samples[1][0]) == (update, samples), state
        assert device.info.link_losses == 1


# ---- accidents of power and flash ------------------------------------------------------------------------------------


def test_power_may_fail_in_every_state():
    update, samples, _ = undisturbed()
    seen = set()
    for moment in range(0, 4000, 2):
        device, peers = bench()
        count = 0

        def is_moment(moment=moment):
            nonlocal count
            count += 1
            return count > moment

        peers.run(device, lambda device=device, peers=peers: is_moment() or (peers.round > 1 and device.state == "idle"))
        seen.add(device.state)
        is_over, was_heard = peers.round > 1, peers.boot is not None
        device.rx.clear()
        device.tx.clear()
        device.boot()
        finish(device, peers)
        assert peers.updates[1][0] == update, f"moment {moment}"
        assert peers.samples[1][-1] == samples, f"moment {moment}"
        if is_over:
            break
        assert peers.reports[-1]["attempt"] == was_heard
    assert seen == {"idle", "fetch", "encode", "select", "train", "report"}


def test_power_may_fail_during_every_flash_operation():
    update, _, _ = undisturbed()
    device, peers = bench()
    finish(device, peers)
    operations = len(device.flash.log)
    assert operations > 40
    for cut in range(operations):
        device, peers = bench()
        device.flash.cut_at = cut
        finish(device, peers)
        assert peers.updates[1][0] == update, f"operation {cut}"


def test_a_cut_while_the_next_package_is_installed_leaves_the_old_one():
    newer = build(1)
    device, peers = bench()
    finish(device, peers)
    first = len(device.flash.log)
    slots = [slot.copy() for slot in device.flash.slots]
    written = [mask.copy() for mask in device.flash.is_written]
    for cut in range(first + 45):
        flash = FlashModel(cut_at=cut)
        for i in range(2):
            flash.slots[i][:], flash.is_written[i][:] = slots[i], written[i]
        device = Device(*data(), flash=flash)
        flash.cut_at = cut
        peers = Peers(plan_for(newer), {MODEL_HANDLE: newer})
        peers.run(device, lambda flash=flash, device=device: flash.is_dead or device.state == "encode")
        if not flash.is_dead:
            break
        device.boot()
        assert device.info.has_package, f"operation {cut}"
        assert device.info.generation == 1, f"operation {cut}"
        finish(device, Peers(plan_for(PACKAGE), {}))  # the old one needs no fetching
    else:
        raise AssertionError("the installation did not end")


def test_a_flash_error_at_any_operation_is_reported_and_survived():
    update, _, _ = undisturbed()
    device, peers = bench()
    finish(device, peers)
    for index, (kind, *_) in enumerate(device.flash.log):
        device, peers = bench()
        device.flash.fail_at = index
        finish(device, peers)
        assert peers.updates[1][0] == update, f"operation {index}"
        refusals = [packet.fields["status"] for packet in peers.heard if packet.kind == Kind.REFUSE]
        assert refusals == [Status.SLOT_IO], f"{kind} {index}"


# ---- peers that misbehave, and policies -------------------------------------------------------------------------------


def refusals(peers: Peers) -> list[dict[str, object]]:
    return [packet.fields for packet in peers.heard if packet.kind == Kind.REFUSE]


def until_refusal(device: Device, peers: Peers) -> dict[str, object]:
    peers.run(device, lambda: bool(refusals(peers)))
    return refusals(peers)[0]


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


def test_a_device_without_samples_says_so():
    x, y = data(0)
    device, peers = Device(x, y), bench()[1]
    assert until_refusal(device, peers)["status"] == Status.NO_SAMPLES


def test_a_refused_report_is_dropped_and_not_repeated():
    device, peers = bench()
    peers.hear_offer = lambda device, packet: peers.tell(
        device, Packet(packet.channel, Kind.REFUSE, {"status": Status.STALE_ROUND, "handle": packet.fields["handle"]})
    )
    peers.run(device, lambda: any(packet.kind == Kind.REPORT for packet in peers.heard))
    peers.run(device, lambda: device.state == "idle")
    assert not device.info.is_update_held


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
    for kind in (11, 255):
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


# ---- time ------------------------------------------------------------------------------------------------------------


def hello_times(device: Device, peers: Peers, limit_ms: int) -> list[int]:
    times, start = [], device.now
    peers.hear_hello = lambda device, _packet: times.append(device.now - start)
    peers.run(device, lambda: device.now - start > limit_ms, limit_ms=2 * limit_ms)
    return times


def test_hello_backs_off_with_full_jitter_up_to_a_minute():
    gaps = np.zeros(10)
    for seed in range(20):
        device, peers = bench(seed=seed)
        times = hello_times(device, peers, 900_000)
        assert times[0] <= 1
        gap = np.array([b - a for a, b in pairwise(times)])[:10]
        assert (gap <= np.minimum(1000 * 2.0 ** np.arange(10), 60_000) + 1).all(), f"seed {seed}"
        gaps = np.maximum(gaps, gap)
    assert gaps[9] > 40_000


def test_wait_is_obeyed():
    device, peers = bench(rounds=0)
    peers.round = 1
    peers.run(device, lambda: bool(peers.told))
    start, before = device.now, len(peers.heard)
    peers.run(device, lambda: len(peers.heard) > before)
    assert 5000 <= device.now - start <= 5002


def test_a_step_sends_or_receives_one_frame_or_does_one_flash_operation():
    device, peers = bench()

    def is_over():
        nonlocal flash, received, sent
        info = device.info
        counts = len(device.flash.log) - flash, info.frames_received - received, info.frames_sent - sent
        assert max(counts) <= 1, counts
        flash, received, sent = len(device.flash.log), info.frames_received, info.frames_sent
        return peers.round > 1

    flash = received = sent = 0
    peers.run(device, is_over)


def test_a_port_without_a_hash_is_told_and_works():
    device, peers = bench(has_hash=False)
    finish(device, peers)
    assert device.info.is_unsigned
    assert not bench()[0].info.is_unsigned


def test_two_devices_with_one_seed_draw_different_groups():
    sent = []
    for identifier in ("board-1", "board-2"):
        device, peers = bench(identifier=identifier)
        finish(device, peers)
        sent.append(peers.samples[1][0])
    assert sent[0] != sent[1]
