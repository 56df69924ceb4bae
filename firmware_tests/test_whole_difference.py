# SPDX-License-Identifier: Apache-2.0
"""Whole rounds whose packages travel as differences: broker, coordinator, partner, and the C device that applies them."""

from __future__ import annotations

import itertools
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from fedmote.coordinator.deployed import DeployedPartition
from fedmote.lab.demo.prepare import Materials
from fedmote.package.difference import make_difference
from fedmote.transport.broker import find_mosquitto
from firmware_tests.whole_round import Part, Stage, make_materials

has_emulator = shutil.which("qemu-system-arm") is not None and shutil.which("arm-none-eabi-gcc") is not None
pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    return make_materials(tmp_path_factory.mktemp("stage"))


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
@pytest.mark.skipif(not has_emulator, reason="qemu-system-arm or arm-none-eabi-gcc is not installed")
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
