# SPDX-License-Identifier: Apache-2.0
"""`fedmote demo`: arguments are refused before anything is started."""

import argparse

import numpy as np
import pytest

from fedmote.cli import demo, main


def options(*arguments):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--boards", "z80"], "z80"),
        (["--boards", "mps2-m3"], "mps2-m3 has no fedmote-device"),
        (["--boards", "posix,posix,posix"], "one or two"),
        (["--strategy", "magic"], "magic"),
        (["--rounds", "0"], "rounds"),
        (["--seeds", "4-0"], "seeds"),
        (["--seeds", "0-999"], "seeds"),
        (["--seed", "1", "--seeds", "0-1"], "exclude"),
        (["--data", "absent.npz", "--boards", "posix"], "absent.npz"),
    ],
)
def test_bad_arguments_end_with_two_and_name_what_was_wrong(arguments, word, capsys):
    assert main(["demo", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_data_without_labels_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", x=np.zeros((9, 4)), subject=np.zeros(9, int))
    assert main(["demo", "--boards", "posix", "--data", str(tmp_path / "data.npz")]) == 2
    assert "'y' is missing" in capsys.readouterr().err


def test_one_board_is_taken_for_all_cells_and_two_for_cells_with_and_without_partner():
    assert demo.check(options("--boards", "posix")).boards == ("posix", "posix", "posix")
    assert demo.check(options()).boards == ("stm32f405", "stm32f405", "posix")


def test_seeds_are_a_range():
    assert demo.check(options("--seeds", "0-4")).seeds == (0, 1, 2, 3, 4)
    assert demo.check(options("--seed", "7")).seeds == (7,)


def test_without_tools_native_devices_on_direct_links_are_left_and_it_is_said(monkeypatch):
    monkeypatch.setattr(demo.shutil, "which", lambda name: None)
    monkeypatch.setattr(demo, "find_mosquitto", lambda: None)
    boards, has_broker, left_out = demo.feasible(("stm32f405", "stm32f405", "posix"))
    assert boards == ("posix", "posix", "posix")
    assert not has_broker
    assert len(left_out) == 2
    assert "qemu-system-arm and arm-none-eabi-gcc" in left_out[0]
