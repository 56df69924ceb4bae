# SPDX-License-Identifier: Apache-2.0
"""Whole rounds on real parts: broker, coordinator, partners, and the C device as a process and on emulated boards."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import signal
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest

from fedmote.coordinator.deployed import DeployedPartition
from fedmote.errors import RemoteWireError
from fedmote.lab.demo.prepare import Materials, ModelChoice
from fedmote.package.boards import Board
from fedmote.package.difference import make_difference
from fedmote.package.partition import Partition
from fedmote.transport.broker import find_mosquitto
from fedmote.wire.codec import decode
from fedmote.wire.schema import LIMIT_SEAL, Channel, Kind
from fedmote.wire.seal import Envelope, Way
from firmware_tests import two_layer_model
from firmware_tests.gate import Gate
from firmware_tests.whole_round import PATIENCE_S, Part, Stage, make_materials

EVENT_STATE = 3  # in the log of a process, and the states behind it
STATE_ENCODE, STATE_REPORT = "2", "5"
has_emulator = shutil.which("qemu-system-arm") is not None and shutil.which("arm-none-eabi-gcc") is not None
needs_emulator = pytest.mark.skipif(not has_emulator, reason="qemu-system-arm or arm-none-eabi-gcc is not installed")
pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    return make_materials(tmp_path_factory.mktemp("stage"), boards=("posix", "stm32f405", "lm3s6965", "nrf51822"))


class Listener:
    """Somebody who subscribes to everything that the broker lets him have, and keeps it."""

    def __init__(self, stage: Stage, username: str | None, password: str | None) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.is_refused = False
        self._answered = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=f"listener-{username}")
        if username is not None:
            self._client.username_pw_set(username, password)
        self._client.on_connect = self._on_connect
        self._client.on_message = lambda client, data, message: self.seen.append((message.topic, message.payload))
        host, tcp_port = stage.broker.url.removeprefix("mqtt://").split(":")
        self._client.connect(host, int(tcp_port))
        self._client.loop_start()
        assert self._answered.wait(10), "the broker did not answer"

    def _on_connect(self, client: paho.Client, data: object, flags: object, reason: paho.ReasonCode, properties: object) -> None:
        self.is_refused = reason.is_failure
        if not self.is_refused:
            client.subscribe([("#", 0), ("fedmote/#", 0), ("fedmote/1/stage/device-a/cell/#", 0)])
        self._answered.set()

    def stop(self) -> list[tuple[str, bytes]]:
        self._client.disconnect()
        self._client.loop_stop()
        return self.seen


def telling_windows(samples: np.ndarray) -> list[bytes]:
    """Pieces of samples that cannot turn up by accident: 24 bytes with at least 10 different values."""
    pieces = [row[at : at + 24] for row in samples for at in (8, 20, 32)]
    return [piece.tobytes() for piece in pieces if len(np.unique(piece)) >= 10]


def holds_samples(seen: list[tuple[str, bytes]], samples: np.ndarray) -> bool:
    stream = b"\0".join(payload for _, payload in seen)
    return any(piece in stream for piece in telling_windows(samples))


def samples_held_out(materials: Materials) -> tuple[np.ndarray, np.ndarray]:
    with np.load(materials.test) as arrays:
        return arrays["x"], arrays["y"]


def opened_cell_messages(seen: list[tuple[str, bytes]], key: bytes, device: str, epoch: int) -> list[tuple[str, bytes]]:
    """What a device told its partner in one epoch, opened by their key."""
    opened = []
    for topic, body in seen:
        kind = topic.rsplit("/", 1)[1]
        if f"/{device}/cell/up/" in topic:
            boot, sequence = struct.unpack_from("<II", body, len(body) - LIMIT_SEAL)
            numbers = (Kind[kind.upper()], epoch, boot, sequence)
            payload = Envelope(Way.UP, Channel.CELL, device, *numbers).open(key, body)
            opened += [(topic, payload)] if payload is not None else []
    return opened


def is_readable(kind: str, payload: bytes) -> bool:
    """Whether a payload, or what stands in front of its seal, is a message of its kind."""
    for content in (payload, payload[:-LIMIT_SEAL]):
        with contextlib.suppress(RemoteWireError):
            decode(Kind[kind.upper()], content)
            return True
    return False


PARTS = [
    Part("a", "stm32f405", "mqtt", has_partner=True),
    Part("b", "stm32f405", "serial", has_partner=True),
    Part("c", "posix", "mqtt"),
]


@pytest.mark.emulator
@needs_emulator
def test_alternating_rounds_on_emulated_boards_keep_the_encoder_then_train_it_and_keep_samples_in_their_cells(
    tmp_path: Path, materials: Materials
) -> None:
    with Stage(tmp_path, materials, PARTS, {"form": "alternating"}) as stage:
        password = stage.broker.password
        listeners = {
            "coordinator": Listener(stage, "coordinator", password("coordinator")),
            "another cell": Listener(stage, "partner-b", password("partner-b")),
            "another device": Listener(stage, "device-c", password("device-c")),
            "own partner": Listener(stage, "partner-a", password("partner-a")),
        }
        assert Listener(stage, None, None).is_refused
        assert Listener(stage, "coordinator", "guessed").is_refused
        stage.start_devices()
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=2))
        seen = {who: listener.stop() for who, listener in listeners.items()}

        device_round, partner_round = result["rounds"]
        assert (device_round["phase"], device_round["reported"], device_round["expected"]) == ("device", 3, 3)
        assert (partner_round["phase"], partner_round["reported"], partner_round["expected"]) == ("partner", 2, 2)
        assert all(update["trained"] > 0 for update in device_round["updates"])
        assert all(update["num_examples"] > 0 for update in partner_round["updates"])  # they had the devices' samples

        before, after, full = (stage.checkpoint(version).tensors for version in (0, 1, 2))
        head = set(Partition.load(materials.partition).head_tensor_names)
        assert head
        for name, tensor in before.items():
            if name in head:
                assert not np.array_equal(tensor, after[name]), name
            else:
                assert tensor.tobytes() == after[name].tobytes(), name
        assert any(not np.array_equal(after[name], full[name]) for name in set(full) - head)

        samples = stage.samples("a")
        epoch = int((tmp_path / "partner-a" / "starts").read_text())
        opened = opened_cell_messages(seen["own partner"], stage.cell_keys["device-a"], "device-a", epoch)
        assert holds_samples(opened, samples)  # so that the looking below could find some
        for who in ("coordinator", "another cell", "another device"):
            assert seen[who], f"{who} heard nothing at all, so it proves nothing"
            assert not [topic for topic, _ in seen[who] if "/device-a/cell/" in topic], who
        for who, heard in seen.items():  # the broker, too, and whoever reads its lines, has nothing but this
            assert not holds_samples(heard, samples), who
            kinds = [(topic.rsplit("/", 1)[1], payload) for topic, payload in heard]
            assert {kind for kind, payload in kinds if is_readable(kind, payload)} <= {"state", "hello"}, who
        assert not [topic for topic, _ in seen["coordinator"] if "/cell/" in topic]


@pytest.mark.slow
@pytest.mark.emulator
@needs_emulator
def test_small_boards_without_an_fpu_train_the_head_and_feed_their_partners(tmp_path: Path, materials: Materials) -> None:
    parts = [Part("a", "lm3s6965", "serial", has_partner=True), Part("b", "nrf51822", "mqtt", has_partner=True)]
    # The emulated lm3s6965 has no memory that outlives a reset, and so cannot count boots.
    with Stage(tmp_path, materials, parts, {"form": "alternating"}, is_sealed=False) as stage:
        stage.start_devices()
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=2))
        phases = [(one["phase"], one["reported"], one["expected"]) for one in result["rounds"]]
        assert phases == [("device", 2, 2), ("partner", 2, 2)]
        device_round, partner_round = result["rounds"]
        assert all(update["trained"] > 0 for update in device_round["updates"])
        assert all(update["num_examples"] > 0 for update in partner_round["updates"])  # they had the devices' samples

        before, after = (stage.checkpoint(version).tensors for version in (0, 1))
        head = set(Partition.load(materials.partition).head_tensor_names)
        assert {name for name in before if not np.array_equal(before[name], after[name])} == head


@pytest.mark.emulator
@needs_emulator
def test_the_smallest_board_takes_part_in_sealed_rounds_and_feeds_its_partner(tmp_path: Path, materials: Materials) -> None:
    with Stage(tmp_path, materials, [Part("b", "nrf51822", "mqtt", has_partner=True)], {"form": "alternating"}) as stage:
        stage.start_devices()
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=4))
        phases = [(one["phase"], one["reported"], one["expected"]) for one in result["rounds"]]
        assert phases == [("device", 1, 1), ("partner", 1, 1)] * 2
        # Alone it is done before its partner has pulled all: what comes too late for one round is used in the next.
        assert result["rounds"][3]["updates"][0]["num_examples"] > 0
        assert result["refusals"] == []


def test_simultaneous_round_merges_heads_of_devices_with_whole_models_of_partners(tmp_path: Path, materials: Materials) -> None:
    parts = [Part("a", "posix", "mqtt", has_partner=True), Part("c", "posix", "mqtt")]
    with Stage(tmp_path, materials, parts, {"form": "simultaneous"}) as stage:
        stage.start_devices()
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=2))
        assert [(one["phase"], one["reported"]) for one in result["rounds"]] == [("simultaneous", 3)] * 2
        before, after = stage.checkpoint(0).tensors, stage.checkpoint(1).tensors
        assert all(np.isfinite(tensor).all() for tensor in after.values())
        head = set(Partition.load(materials.partition).head_tensor_names)
        for is_head in (True, False):
            assert any(not np.array_equal(before[name], after[name]) for name in before if (name in head) == is_head)
        assert stage.checkpoint(1).ranges != stage.checkpoint(0).ranges  # what the partner saw


def test_a_head_that_leaves_the_model_early_is_trained_by_devices_beside_the_whole_models_of_partners(tmp_path: Path) -> None:
    materials = make_materials(tmp_path, cut="max_pool2d")
    partition = Partition.load(materials.partition)
    assert partition.head_tensor_names[0].startswith("early_exit.max_pool2d.")
    parts = [Part("a", "posix", "mqtt", has_partner=True), Part("c", "posix", "mqtt")]
    with Stage(tmp_path / "stage", materials, parts, {"form": "simultaneous"}) as stage:
        stage.start_devices()
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=1))
        before, after = (stage.checkpoint(version) for version in (0, 1))
    assert [(one["phase"], one["reported"]) for one in result["rounds"]] == [("simultaneous", 3)]
    head = set(partition.head_tensor_names)
    assert head < set(before.tensors)
    # Devices trained the new head; the partner all others, the layers that no device runs and the module's own head among them.
    for name, tensor in before.tensors.items():
        assert not np.array_equal(tensor, after.tensors[name]), name
    x, y = samples_held_out(materials)
    assert result["accuracy"] == partition.push(after.tensors, after.ranges, 1).evaluate(x, y)


@pytest.mark.emulator
@needs_emulator
def test_heads_of_two_layers_are_trained_on_every_board_and_merged(tmp_path: Path) -> None:
    model = ModelChoice("firmware_tests.two_layer_model:build", two_layer_model.build)
    materials = make_materials(tmp_path, model, two_layer_model.CUT)
    package = Partition.load(materials.partition).package
    assert (package.head_shape.inputs, package.head_shape.hidden, package.head_shape.outputs) == (64, 24, 10)
    with Stage(tmp_path / "stage", materials, PARTS, {"form": "alternating"}) as stage:
        stage.start_devices()
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=3))
        phases = [(one["phase"], one["reported"], one["expected"]) for one in result["rounds"]]
        assert phases == [("device", 3, 3), ("partner", 2, 2), ("device", 3, 3)]
        assert all(update["trained"] > 0 for one in result["rounds"][::2] for update in one["updates"])

        head = {f"{layer}.{part}" for layer in two_layer_model.HEAD_LAYERS for part in ("weight", "bias")}
        assert set(Partition.load(materials.partition).head_tensor_names) == head
        checkpoints = [stage.checkpoint(version).tensors for version in range(4)]
        for before, after in (checkpoints[:2], checkpoints[2:]):  # rounds of the devices
            assert {name for name in before if not np.array_equal(before[name], after[name])} == head
        assert {name for name in head if np.array_equal(checkpoints[1][name], checkpoints[2][name])} == set()


def test_fedavg_averages_whole_models_of_partners_on_their_own_samples(tmp_path: Path, materials: Materials) -> None:
    parts = [Part("a", None, has_partner=True), Part("b", None, has_partner=True)]
    with Stage(tmp_path, materials, parts, {"preset": "fedavg"}) as stage:
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=2))
        assert [(one["phase"], one["reported"], one["expected"]) for one in result["rounds"]] == [("partner", 2, 2)] * 2
        before, after = stage.checkpoint(0).tensors, stage.checkpoint(2).tensors
        assert all(not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.emulator
@needs_emulator
def test_board_that_loses_power_in_a_round_is_missed_at_the_deadline_and_takes_part_in_the_next(
    tmp_path: Path, materials: Materials
) -> None:
    parts = [Part("a", "stm32f405"), Part("c", "posix")]
    windows = {"report_s": 25.0, "min_fraction": 0.5}
    with Stage(tmp_path, materials, parts, {"form": "alternating"}, **windows) as stage:
        stage.start_devices()
        coordinator = stage.serve(rounds=2)
        planned = "SELECT * FROM plan WHERE round = 1 AND participant = 'device-a'"
        stage.wait_for("a plan for device-a", lambda: bool(stage.ledger(planned)))
        stage.devices["a"].kill()
        assert not stage.ledger('SELECT * FROM "update" WHERE participant = ?', "device-a")
        stage.wait_for("the end of round 1", lambda: stage.ledger("SELECT state FROM round WHERE round = 1") == [("committed",)])
        stage.devices["a"].start()  # nothing else is touched
        result = stage.finish(coordinator)

        first, second = result["rounds"]
        assert (first["reported"], first["expected"], list(first["missing"])) == (1, 2, ["device-a"])
        assert (second["reported"], second["expected"], second["missing"]) == (2, 2, {})
        assert stage.ledger("SELECT participant FROM member WHERE round = 1 AND missing IS NOT NULL") == [("device-a",)]


def test_killed_coordinator_goes_on_from_its_ledger_and_ends_with_the_bytes_of_an_undisturbed_run(
    tmp_path: Path, materials: Materials
) -> None:
    parts = [Part("a", "posix"), Part("b", "posix"), Part("c", "posix")]
    with Stage(tmp_path / "calm", materials, parts, {"form": "alternating"}) as calm:
        calm.start_devices()
        calm.finish(calm.serve(rounds=3))
        undisturbed = calm.checkpoint_bytes(3)

    with Stage(tmp_path / "killed", materials, parts, {"form": "alternating"}) as stage:
        stage.start_devices()
        killed = 0
        counted = 'SELECT count(*) FROM "update" WHERE round = ?'
        for number in (1, 2, 3):
            coordinator = stage.serve_bare(rounds=3)

            def is_midway(number: int = number) -> bool:
                return stage.ledger(counted, number) not in ([], [(0,)])

            stage.wait_for(f"the first update of round {number}", is_midway)
            coordinator.send_signal(signal.SIGKILL)
            coordinator.wait()
            state = stage.ledger("SELECT state FROM round WHERE round = ?", number)
            killed += state in ([("open",)], [("closed",)])
        print(f"killed inside {killed} of 3 rounds")
        assert killed > 0, "every kill came after its round: the test has proved nothing"

        coordinator = stage.serve_bare(rounds=3)
        output, _ = coordinator.communicate(timeout=PATIENCE_S)
        assert coordinator.returncode == 0
        result = json.loads(output)
        assert [(one["state"], one["reported"]) for one in result["rounds"]] == [("committed", 3)] * 3
        doubled = 'SELECT round, participant FROM "update" GROUP BY round, participant HAVING count(*) > 1'
        assert not stage.ledger(doubled)
        assert stage.checkpoint_bytes(3) == undisturbed


def sealed_updates(flash: bytes, board: Board) -> list[int]:
    """Where in the flash file of a process whole records of updates begin (SPEC.md, section 10)."""
    found, at = [], 2 * board.slot_bytes
    while (at := flash.find(b"FMJU", at)) >= 0:
        _, _, size, crc = struct.unpack_from("<4sIII", flash, at)
        end = at + 16 + -(-size // 8) * 8
        if zlib.crc32(flash[at : at + 12]) == crc and end + 8 <= len(flash):
            seal, inverse = struct.unpack_from("<II", flash, end)
            if seal == inverse ^ 0xFFFFFFFF == zlib.crc32(flash[at + 16 : at + 16 + size]):
                found.append(at)
        at += 8
    return found


_TWO = [Part("a", "posix"), Part("b", "posix")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, materials: Materials) -> bytes:
    """The checkpoint of one round of two devices without accidents."""
    with Stage(tmp_path_factory.mktemp("calm"), materials, _TWO, {"form": "alternating"}) as stage:
        stage.start_devices()
        stage.finish(stage.serve(rounds=1))
        return stage.checkpoint_bytes(1)


@pytest.mark.parametrize("word", [b"/up/report", b"/up/data"])
def test_killed_device_reports_the_update_that_it_had_made_and_it_counts_once(
    tmp_path: Path, materials: Materials, undisturbed: bytes, word: bytes
) -> None:
    with Stage(tmp_path, materials, _TWO, {"form": "alternating"}) as stage, Gate(stage.broker.url, word) as gate:
        stage.start_devices({"a": gate.url})
        coordinator = stage.serve(rounds=1)
        device, flash = stage.devices["a"], stage.directory / "device-a" / "flash.bin"
        assert gate.is_closed.wait(PATIENCE_S), f"the device never said {word!r}"
        stage.wait_for("the update in the journal", lambda: bool(sealed_updates(flash.read_bytes(), device.board)))
        assert not stage.ledger('SELECT * FROM "update" WHERE participant = ?', "device-a")
        device.kill()
        gate.open()
        device.start()
        result = stage.finish(coordinator)

        [merged] = result["rounds"]
        assert (merged["state"], merged["reported"], merged["missing"]) == ("committed", 2, {})
        counted = 'SELECT count(*) FROM "update" WHERE participant = ?'
        assert stage.ledger(counted, "device-a") == [(1,)]
        assert stage.ledger("SELECT attempt FROM plan WHERE participant = 'device-a' ORDER BY attempt DESC LIMIT 1") == [(2,)]
        states = [line.split()[1] for line in device.log().splitlines() if line.startswith(f"{EVENT_STATE} ")]
        assert STATE_REPORT in states
        assert STATE_ENCODE not in states  # nothing was trained again
        assert stage.checkpoint_bytes(1) == undisturbed


def test_a_device_that_is_reset_in_a_round_ends_it_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, materials: Materials
) -> None:
    parts = [Part("a", "posix", "mqtt", has_partner=True), Part("c", "posix")]
    with Stage(tmp_path / "calm", materials, parts, {"form": "alternating"}) as calm:
        calm.start_devices()
        calm.start_partners()
        calm.finish(calm.serve(rounds=1))
        undisturbed = calm.checkpoint_bytes(1)
    with Stage(tmp_path / "reset", materials, parts, {"form": "alternating"}) as stage:
        stage.start_devices()
        coordinator = stage.serve(rounds=1)
        planned = "SELECT boot FROM plan WHERE participant = 'device-a'"
        stage.wait_for("a plan for device-a", lambda: bool(stage.ledger(planned)))
        stage.devices["a"].restart()
        stage.start_partners()  # only now: without a word of its partner the device still has its samples to offer
        result = stage.finish(coordinator)
        assert [(one["state"], one["reported"]) for one in result["rounds"]] == [("committed", 2)]
        assert stage.checkpoint_bytes(1) == undisturbed


# ---- packages as differences -----------------------------------------------------------------------------------------


def device_forms(stage: Stage, board: str, versions: int) -> list[bytes]:
    """The packages of checkpoints 0, 1, ... as the coordinator makes them."""
    partition = DeployedPartition(stage.materials.partition)
    checkpoints = [stage.checkpoint(version) for version in range(versions)]
    return [partition.device_form(board, one.tensors, one.ranges, one.version)[0] for one in checkpoints]


def sent(result: dict[str, Any], device: str) -> list[tuple[int, int]]:
    """Bytes of chunks (of packages, of differences) that a device was sent in each round."""
    updates = [next(one for one in merged["updates"] if one["participant"] == device) for merged in result["rounds"]]
    return [(update.get("package_bytes", 0), update.get("difference_bytes", 0)) for update in updates]


def assert_differences_after_the_first(stage: Stage, result: dict[str, Any], device: str, board: str) -> None:
    """A package in the first round, differences from then on, and not a chunk more than they have."""
    forms = device_forms(stage, board, len(result["rounds"]))
    differences = [len(make_difference(old, new)) for old, new in itertools.pairwise(forms)]
    assert sent(result, device) == [(len(forms[0]), 0), *((0, size) for size in differences)]
    assert all(size < len(form) for size, form in zip(differences, forms, strict=False))
    assert result["refusals"] == []


def test_rounds_after_the_first_take_differences_on_native_devices(tmp_path: Path, materials: Materials) -> None:
    parts = [Part("a", "posix", "mqtt", has_partner=True), Part("c", "posix", "mqtt")]
    with Stage(tmp_path, materials, parts, {"form": "simultaneous"}) as stage:
        stage.start_devices()
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=3))
        for device in ("device-a", "device-c"):
            assert_differences_after_the_first(stage, result, device, "posix")


def test_a_coordinator_that_was_killed_goes_on_with_the_same_differences(tmp_path: Path, materials: Materials) -> None:
    parts = [Part("a", "posix", "mqtt", has_partner=True), Part("c", "posix", "mqtt")]
    with Stage(tmp_path, materials, parts, {"form": "simultaneous"}) as stage:
        stage.start_devices()
        stage.start_partners()
        killed = stage.serve_bare(rounds=3)
        planned = "SELECT * FROM plan WHERE round = 2 AND participant = 'device-c'"
        stage.wait_for("a plan of the second round", lambda: bool(stage.ledger(planned)))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        result = stage.finish(stage.serve(rounds=3))
        assert [one["state"] for one in result["rounds"]] == ["committed"] * 3
        for device in ("device-a", "device-c"):
            assert [package for package, _ in sent(result, device)][1:] == [0, 0]
        assert result["refusals"] == []


@pytest.mark.emulator
@needs_emulator
def test_emulated_boards_take_differences_over_mqtt_and_over_the_serial_line_of_their_partner(
    tmp_path: Path, materials: Materials
) -> None:
    parts = [Part("a", "stm32f405", "mqtt"), Part("b", "stm32f405", "serial", has_partner=True)]
    with Stage(tmp_path, materials, parts, {"form": "simultaneous"}) as stage:
        stage.start_devices()
        stage.start_partners()
        result = stage.finish(stage.serve(rounds=2))
        for device in ("device-a", "device-b"):
            assert_differences_after_the_first(stage, result, device, "stm32f405")
