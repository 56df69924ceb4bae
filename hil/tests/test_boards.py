# SPDX-License-Identifier: Apache-2.0
import itertools
import json

import numpy as np
import pytest

from fedmote.errors import ConfigError
from fedmote.package.boards import Board, board_names, boards_with, sdk_root
from fedmote.wire.regions import samples_region
from fedmote_hil.build import Program, build

# Reference manual RM0090, table 5: sizes of the flash sectors of the STM32F405.
_SECTORS = [16 * 1024] * 4 + [64 * 1024] + [128 * 1024] * 7


def _text(name):
    return (sdk_root() / "boards" / name / "board.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", board_names())
def test_every_board_has_the_name_of_its_folder(name):
    assert Board.load(name).name == name


def test_every_board_has_a_preset_and_programs_that_exist():
    presets = json.loads((sdk_root() / "CMakePresets.json").read_text(encoding="utf-8"))
    for kind in ("configurePresets", "buildPresets"):
        assert sorted(preset["name"] for preset in presets[kind]) == board_names()
    for name in board_names():
        assert {*Board.load(name).programs} <= {*Program}


def spans_by_image(board):
    """(first address, end) of the regions that the device image has and of those that the inference image has, ascending.

    The end of the RAM that slots and journal take is a part of the RAM.
    """
    in_ram = ("ram_slots", "ram_journal")
    for others in (("package", *in_ram), ("slot0", "slot1", "journal0", "journal1", "identity", *in_ram)):
        regions = [region for key, region in board.regions.items() if key not in others]
        yield sorted((region.address, region.address + region.bytes) for region in regions)


@pytest.mark.parametrize("name", [name for name in board_names() if Board.load(name).emulator is not None])
def test_regions_of_an_image_do_not_overlap_and_the_arena_fits_beside_the_stack(name):
    board = Board.load(name)
    for spans in spans_by_image(board):
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    assert board.run_arena_bytes + board.stack_bytes < board.region("ram").bytes


def test_a_program_that_a_board_lacks_is_refused_with_those_that_it_has():
    with pytest.raises(ConfigError, match="mps2-m3 has no fedmote-device; it has: fedmote-run, fedmote-bench-kernels"):
        build("mps2-m3")


@pytest.mark.parametrize(("name", "sectors"), [("stm32f405", _SECTORS), ("lm3s6965", [1024] * 256), ("nrf51822", [1024] * 256)])
def test_flash_regions_begin_and_end_at_sectors(name, sectors):
    board = Board.load(name)
    first = board.region("image").address
    boundaries = {first + sum(sectors[:n]) for n in range(len(sectors) + 1)}
    spans = [span for image in spans_by_image(board) for span in image if span[0] < 0x20000000]
    assert {edge for span in spans for edge in span} <= boundaries
    assert sum(sectors) == board.flash_bytes


@pytest.mark.parametrize("name", [name for name in boards_with(Program.DEVICE) if name != "posix"])
def test_slots_fit_where_they_are_on_the_part_and_in_the_emulator(name):
    board = Board.load(name)
    assert board.slot_bytes <= min(board.region("slot0").bytes, board.region("slot1").bytes)
    if "ram_slots" in board.regions:
        assert 2 * board.slot_bytes == board.region("ram_slots").bytes
        ram = board.region("ram")
        assert board.region("ram_slots").address + board.region("ram_slots").bytes == ram.address + ram.bytes
    else:  # the files of the emulated ones
        assert board.slot_bytes == board.region("slot0").bytes == board.region("slot1").bytes


@pytest.mark.parametrize("name", [name for name in boards_with(Program.DEVICE) if name != "posix"])
def test_the_journal_fits_where_it_is_on_the_part_and_in_the_emulator(name):
    board = Board.load(name)
    assert 0 < board.journal_bytes <= min(board.region("journal0").bytes, board.region("journal1").bytes)
    assert board.journal_bytes % 8 == 0
    if "ram_journal" in board.regions:
        journal = board.region("ram_journal")
        assert journal.bytes == 2 * board.journal_bytes
        assert journal.address + journal.bytes == board.region("ram_slots").address
    elif "ram_slots" not in board.regions:  # the files of the emulated ones
        assert board.journal_bytes == board.region("journal0").bytes == board.region("journal1").bytes


def test_samples_of_human_activity_recognition_fit_the_flash():
    board = Board.load("stm32f405")
    assert 16 + board.max_samples + board.max_samples * 9 * 128 <= board.region("samples").bytes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("has_fpu = true", "has_fpu = true\ncolour = 1", "unknown key 'colour'"),
        ("has_fpu = true", "has_fpu = 1", "has_fpu = 1 should be of type bool"),
        ("arena_bytes = 262144", "", "'arena_bytes' is missing"),
        ('core = "host"', "core = ", "board.toml"),
    ],
)
def test_mistakes_in_a_board_file_are_named(old, new, message):
    text = _text("posix")
    assert old in text
    with pytest.raises(ConfigError, match=message):
        Board.parse(text.replace(old, new), "board.toml")


def test_an_unknown_board_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="posix"):
        Board.load("../posix")


def test_a_board_of_files_has_no_regions():
    with pytest.raises(ConfigError, match="no region 'samples'"):
        Board.load("posix").region("samples")


@pytest.mark.parametrize("input_bytes", [1, 63, 64, 490, 1152, 3072, 100_000])
@pytest.mark.parametrize("name", board_names())
def test_as_many_samples_as_a_board_is_said_to_hold_fill_its_region_and_one_more_does_not_fit(name, input_bytes):
    board = Board.load(name)
    count = board.samples_for(input_bytes)
    sizes = [len(samples_region(np.zeros((n, input_bytes), np.int8), np.zeros(n, np.int64))) for n in (count, count + 1)]
    if "samples" not in board.regions:
        assert count == board.max_samples
        return
    room = board.region("samples").bytes
    assert sizes[0] <= room or count == 0
    assert count == board.max_samples or sizes[1] > room
