# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import struct
import subprocess

import numpy as np
import pytest

from fedmote.errors import ConfigError, DeviceError, DoesNotFitError
from fedmote.package.boards import Board
from fedmote.package.specimen import random_int8_graph
from fedmote.wire.schema import Opcode
from fedmote_hil import bench
from fedmote_hil.build import Program, build, build_footprint
from fedmote_hil.cli import bench as bench_verb
from fedmote_hil.models import REFERENCE_MODELS, encoder_package, example_encoders
from fedmote_hil.peers import Figure
from fedmote_hil.results import collect_results

from .rig import emulator_test

BOARD = "stm32f405"


def _package(seed=3):
    return encoder_package(random_int8_graph(seed), Board.load(BOARD), "specimen")


def _said(subject, *arguments):
    parser = argparse.ArgumentParser()
    subject.add_arguments(parser)
    return subject.run(parser.parse_args(list(arguments)))


@emulator_test
def test_both_timers_count_a_loop_of_known_length_exactly_and_two_runs_agree(tmp_path):
    image = build(BOARD, Program.BENCH_HEAD, is_checked=True, has_crypto=False)
    blobs = [collect_results(image, {}, 4 * 36, tmp_path, is_counting=True) for _ in range(2)]
    assert struct.unpack("<6I", blobs[0][:24]) == (2, 2, 2002, 2002, 200002, 200002)
    assert blobs[0] == blobs[1]


@emulator_test
@pytest.mark.parametrize("board", bench.counting_boards())
def test_counts_of_one_package_do_not_change_and_operators_add_up(board):
    package = encoder_package(random_int8_graph(3), Board.load(board), "specimen")
    counts = bench.count_kernels(board, package)
    assert counts == bench.count_kernels(board, package)
    # Each operator alone is an inference of its own, whose call and return are counted again.
    alone, repeated = sum(count for _, _, count in counts.operators), len(counts.operators) - 1
    assert 0 < alone - counts.instructions <= 60 * repeated
    # A core without a divider shares out what is left of its budget in loops of different length.
    assert (alone - counts.instructions) % repeated == 0 or Board.load(board).core == "cortex-m0"


@emulator_test
# The core's timer of the lm3s6965 comes round every 2.6 million instructions, so within one of these counts or another.
@pytest.mark.parametrize("boards", [("mps2-m4", "stm32f405"), ("mps2-m3", "lm3s6965"), ("mps2-m0", "nrf51822")])
def test_two_machines_and_four_counters_agree_on_the_same_code(boards):
    graph = example_encoders()["har_cnn"]
    emulated, part = (bench.count_kernels(board, encoder_package(graph, Board.load(board), "har")) for board in boards)
    assert emulated.operators == part.operators
    assert (emulated.instructions, emulated.startup) == (part.instructions, part.startup)


def _words(*instructions, ticks):
    return struct.pack(f"<{len(instructions)}I", *(round(count * ticks) for count in instructions))


def test_counts_of_a_clock_with_broken_ticks_are_exact_within_its_resolution():
    board = Board.load("mps2-m3")
    said = _words(2, 2, 2002, 2002, 200002, 200002, 7_699_891, ticks=6.4)
    clock, other, words = bench._validated(board, said)
    assert clock == other
    assert clock.instructions(words[0]) == 7_699_891
    for off in (-1, 0, 1):  # what rounding of four readings may do
        assert clock.instructions(words[0] + off) == 7_699_891
    with pytest.raises(DeviceError, match="miscounts"):  # between two numbers of instructions
        clock.instructions(words[0] + 3)


@pytest.mark.parametrize("wrong", range(6))
def test_one_miscounted_loop_on_one_counter_is_enough_to_fail(wrong):
    loops = [2, 2, 2002, 2002, 200002, 200002]
    loops[wrong] += 1
    with pytest.raises(DeviceError, match="miscounts loops"):
        bench._validated(Board.load("mps2-m3"), _words(*loops, ticks=6.4))


def test_counters_that_differ_fail_and_so_does_a_clock_too_coarse_to_tell(monkeypatch):
    board, package = Board.load("mps3-m55"), encoder_package(random_int8_graph(3), Board.load("mps3-m55"), "specimen")
    loops = [round(count * ticks) for count in (2, 2002, 200002) for ticks in (5.12, 8.192)]
    words = [*loops, 5120, 512, 512_000, 819_208, 300, 4000, 100]  # 100,000 instructions, and 100,001
    image = type("Built", (), {"path": None})()
    monkeypatch.setattr(bench, "build", lambda *arguments, **options: image)
    units = len(package.graph.ops)
    monkeypatch.setattr(bench, "_measure", lambda *arguments: struct.pack(f"<{14 + units}I", *words, units, *[512] * units))
    with pytest.raises(DeviceError, match="one inference has 100000 and 100001 instructions"):
        bench.count_kernels(board, package)
    with pytest.raises(ConfigError, match=r"1\.6 ticks per instruction cannot tell"):
        bench.Clock.of("slow", 25_000_000, 6)


@emulator_test
def test_a_clock_that_is_not_driven_by_instructions_is_noticed(monkeypatch):
    def by_the_wall(*arguments, is_counting):
        assert is_counting
        return collect_results(*arguments)

    monkeypatch.setattr(bench, "collect_results", by_the_wall)
    with pytest.raises(DeviceError, match="miscounts loops"):
        bench.count_kernels(BOARD, _package())


@emulator_test
def test_an_inference_with_other_features_is_not_measured(monkeypatch):
    monkeypatch.setattr(bench, "run_int8", lambda graph, x: np.zeros(1, np.int8))
    with pytest.raises(DeviceError, match="other features"):
        bench.count_kernels(BOARD, _package())


@emulator_test
def test_flash_is_an_image_of_the_operators_in_use_less_an_empty_one():
    board = Board.load(BOARD)
    dense = bench.runtime_flash(board, {Opcode.FULLY_CONNECTED})
    both = bench.runtime_flash(board, {Opcode.FULLY_CONNECTED, Opcode.CONV_2D})
    assert 2000 < dense < both < 12000
    image, empty = build_footprint(board, ["fully_connected"])
    defined = {path: _defined(path) for path in (image.path, empty.path)}
    operators = {name for name in defined[image.path] if name.startswith("fedmote_operator_")} - {"fedmote_operator_find"}
    assert operators == {"fedmote_operator_fully_connected"}
    assert defined[image.path].isdisjoint({"fedmote_conv_2d", "fedmote_add", "fedmote_softmax", "fedmote_init"})
    assert not any(name.startswith("fedmote") for name in defined[empty.path])


def _defined(path):
    command = ["arm-none-eabi-nm", "--defined-only", "--format=posix", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[0] for line in lines}


@emulator_test
def test_the_head_is_counted_for_all_sizes_and_batches():
    counts = bench.count_head(BOARD)
    plain = [c for c in counts if not (c.hidden or c.momentum or c.weight_decay or c.clip_norm)]
    assert [(c.inputs, c.outputs, c.batch) for c in plain] == [
        *((64, 10, 1), (128, 10, 1), (256, 10, 1)),
        *((256, 2, 1), (64, 10, 8)),
    ]
    assert all(c.instructions_per_sample > 2 * c.inputs * c.outputs for c in plain)
    assert plain[0].instructions_per_sample <= 5000
    assert {c.arithmetic for c in counts} == {"float32"}
    for c in counts:
        parameters = (c.inputs + 1) * c.hidden + ((c.hidden or c.inputs) + 1) * c.outputs
        assert c.velocity_bytes == (4 * parameters if c.batch > 1 or c.momentum else 0)


@emulator_test
def test_a_core_without_fpu_trains_in_integers():
    plain = bench.count_head("mps2-m0")[0]
    assert (plain.arithmetic, plain.inputs, plain.outputs, plain.batch) == ("int16", 64, 10, 1)
    assert plain.instructions_per_sample <= 17_300
    assert plain.velocity_bytes == 0


@emulator_test
def test_heads_that_a_small_board_does_not_hold_are_named_and_the_rest_is_counted_as_on_a_large_one():
    skipped = []
    counted = bench.count_head("nrf51822", skipped)
    assert len(counted) + len(skipped) == bench._HEAD_ROWS
    assert "256 -> 10, batch 1: too large for 12288 bytes of board nrf51822" in skipped
    assert counted
    assert set(counted) <= set(bench.count_head("mps2-m0"))


def test_a_board_that_cannot_count_is_refused_with_those_that_can():
    with pytest.raises(ConfigError, match=r"posix cannot count instructions; these can: .*stm32f405"):
        bench.count_head("posix")


def test_a_model_too_large_for_the_board_is_refused_before_anything_is_built():
    package = _package()
    package.header.__dict__["encoder_bytes"] = 1 << 20
    with pytest.raises(DoesNotFitError, match="arena needs 1048576 bytes"):
        bench.count_kernels(BOARD, package)


@emulator_test
def test_absent_and_too_large_models_are_named_and_the_rest_is_counted(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FEDMOTE_SHARED", str(tmp_path))

    def refuse_windows(board, package):
        if package.header.input_count > 64:
            raise DoesNotFitError(board.name, "arena", 2, 1)
        return bench.count_kernels(board, package)

    monkeypatch.setattr(bench_verb, "count_kernels", refuse_windows)
    assert _said(bench_verb.kernels, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in said["rows"]] == ["digits_cnn"]
    assert [reason.split(":")[0] for reason in said["skipped"]] == [*REFERENCE_MODELS, "har_cnn", "mobilenet_v1_025_96"]


@emulator_test
def test_one_model_is_counted_by_operator_and_printed(tmp_path, capsys):
    (tmp_path / "digits.fmp").write_bytes(encoder_package(example_encoders()["digits_cnn"], Board.load(BOARD), "d").to_bytes())
    assert _said(bench_verb.kernels, "--model", str(tmp_path / "digits.fmp"), "--per-op") == 0
    said = capsys.readouterr().out
    assert "max_pool_2d" in said
    assert said.startswith(f"board {BOARD}")


@pytest.mark.parametrize(
    ("figure", "value", "verdict"),
    [
        (Figure(100, 50, 10), 10, "aim met"),
        (Figure(100, 50, 10), 50, "required met"),
        (Figure(100, 50, 10), 51, "MISSED"),
        (Figure(100), 99, "below peer"),
        (Figure(100), 100, "ABOVE PEER"),
        (Figure(), 1, ""),
    ],
)
def test_a_value_is_judged_by_its_targets_or_else_by_the_peer(figure, value, verdict):
    assert figure.verdict(value) == verdict
    assert figure.ratio(value) == (None if figure.peer is None else value / 100)
