# SPDX-License-Identifier: Apache-2.0
"""One-time tokens on real parts: broker, coordinator and registry as processes, the C device as a process and on a board."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedmote.fleet.registry import Entry, Registry
from fedmote.lab.demo.prepare import Materials
from fedmote.transport.broker import find_mosquitto
from firmware_tests.whole_round import Part, Stage, make_materials

has_emulator = shutil.which("qemu-system-arm") is not None and shutil.which("arm-none-eabi-gcc") is not None
pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    return make_materials(tmp_path_factory.mktemp("stage"), boards=("posix", "nrf51822"))


def entry_of(stage: Stage, id: str) -> Entry:
    with Registry.open(stage.directory / "registry") as registry:
        entry = registry.entry(id)
    assert entry is not None
    return entry


def test_a_device_with_a_token_gets_its_key_takes_part_and_a_second_board_is_refused_by_name(
    tmp_path: Path, materials: Materials
) -> None:
    with Stage(tmp_path, materials, [Part("c", "posix")], {}, token_s=600.0) as stage:
        stage.start_devices()
        assert entry_of(stage, "device-c").key_state == "token"
        first = stage.finish(stage.serve(rounds=1))
        assert first["rounds"][0]["reported"] == 1
        entry = entry_of(stage, "device-c")
        assert (entry.key_state, entry.key_version) == ("lasting", 2)

        device = stage.devices["c"]
        device.kill()
        kept = (device.directory / "flash.bin").read_bytes()
        (device.directory / "flash.bin").unlink()  # another board, which was given the same image
        device.start()
        serve = stage.serve(rounds=2)
        words = "device-c: shows a token that served another board, or was used"
        stage.wait_for("a word of the second board", lambda: words in serve.log.read_text())
        device.kill()
        (device.directory / "flash.bin").write_bytes(kept)
        device.start()
        assert stage.finish(serve)["rounds"][-1]["reported"] == 1


def test_a_coordinator_that_is_killed_while_a_token_is_used_gives_the_same_device_its_key_after_all(
    tmp_path: Path, materials: Materials
) -> None:
    with Stage(tmp_path, materials, [Part("c", "posix")], {}, token_s=600.0) as stage:
        for _ in range(3):
            child = stage.serve_bare(rounds=1)
            if not stage.devices:
                stage.start_devices()
            stage.wait_for("a key that was made", lambda: entry_of(stage, "device-c").key_state == "lasting" or made(stage))
            child.kill()
            child.wait()
        assert stage.finish(stage.serve(rounds=1))["rounds"][0]["reported"] == 1
        assert entry_of(stage, "device-c").key_version == 2


def made(stage: Stage) -> bool:
    """Whether the coordinator has made the lasting key."""
    with Registry.open(stage.directory / "registry") as registry:
        renewal = registry.renewal("device-c")
        return renewal is not None and renewal.other is not None


def test_a_token_whose_time_is_over_is_refused_by_name(tmp_path: Path, materials: Materials) -> None:
    with Stage(tmp_path, materials, [Part("c", "posix")], {}, token_s=0.0) as stage:
        serve = stage.serve(rounds=1)
        stage.start_devices()
        words = "device-c: shows a token whose time is over"
        stage.wait_for("a word of the expired token", lambda: words in serve.log.read_text())
        assert entry_of(stage, "device-c").key_state == "token expired"


@pytest.mark.emulator
@pytest.mark.skipif(not has_emulator, reason="qemu-system-arm or arm-none-eabi-gcc is not installed")
def test_an_emulated_board_keeps_its_lasting_key_in_flash_over_a_power_cut(tmp_path: Path, materials: Materials) -> None:
    with Stage(tmp_path, materials, [Part("b", "nrf51822")], {}, token_s=600.0) as stage:
        stage.start_devices()
        assert stage.finish(stage.serve(rounds=1))["rounds"][0]["reported"] == 1
        stage.devices["b"].restart()
        assert stage.finish(stage.serve(rounds=2))["rounds"][-1]["reported"] == 1
        assert entry_of(stage, "device-b").key_state == "lasting"
        with Registry.open(stage.directory / "registry") as registry:
            key = registry.key("device-b")
        assert key is not None
        stage.devices["b"].kill()
        journal = b"".join((stage.devices["b"].directory / f"journal{region}.bin").read_bytes() for region in (0, 1))
        assert key in journal
