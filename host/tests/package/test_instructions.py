# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest

from fedmote.errors import ConfigError
from fedmote.package import instructions
from fedmote.package.boards import Board, boards_with, sdk_root
from fedmote.package.compile import compile_graph
from fedmote.package.instructions import OPERATOR, image_bytes, load_table, predict, subjects_of, work_of
from fedmote.package.specimen import random_int8_graph
from fedmote.wire.schema import Arrangement

COUNTING = boards_with("fedmote-bench-kernels")


@pytest.fixture
def other_root(tmp_path, monkeypatch):
    """A copy of the boards' files and of the kernels' sources that a test may change."""
    for part in ("boards", "src", "variants", "include"):
        shutil.copytree(sdk_root() / part, tmp_path / part)
    monkeypatch.setattr(instructions, "sdk_root", lambda: tmp_path)
    return tmp_path


def _plan(board, seed=3):
    return compile_graph(random_int8_graph(seed), board.arrangement)


@pytest.mark.parametrize("name", COUNTING)
def test_tables_and_sizes_are_there_and_no_kernel_has_changed_since(name):
    board = Board.load(name)
    assert not instructions.is_stale(board), f"run: fedmote bench instructions --board {name}"
    sizes = image_bytes(board)
    assert sizes is not None
    assert (sizes.device is not None) == ("fedmote-device" in board.programs)
    assert sizes.run < board.region("image").bytes


@pytest.mark.parametrize("name", COUNTING)
def test_coefficients_are_not_negative_and_held_out_operators_were_counted(name):
    table = load_table(Board.load(name))
    for path in table.paths.values():
        assert min(path.instructions.values()) >= 0
        assert OPERATOR in path.instructions
        assert path.held_out >= path.operators // 5


@pytest.mark.parametrize("name", COUNTING)
def test_a_prediction_is_the_sum_of_operators_and_of_what_an_inference_costs(name):
    board = Board.load(name)
    for seed in range(10):
        plan = _plan(board, seed)
        prediction = predict(plan, board)
        assert len(prediction.operators) == len(plan.units)
        assert min(prediction.operators) > 0
        assert prediction.total - sum(prediction.operators) == load_table(board).inference


def test_a_board_without_table_is_refused_with_those_that_have_one():
    board = Board.load("posix")
    assert not instructions.has_table(board)
    assert image_bytes(board) is None
    with pytest.raises(ConfigError, match=r"board posix has no instructions\.json; boards that have: .*stm32f405"):
        predict(_plan(board), board)


def test_a_plan_for_other_kernels_is_refused():
    board = Board.load("stm32f405")
    with pytest.raises(ConfigError, match="stm32f405 runs plans of CORTEX_M_DSP, not of PLAIN"):
        predict(compile_graph(random_int8_graph(3), Arrangement.PLAIN), board)


def test_a_loop_that_nobody_measured_is_refused_by_name(other_root):
    board = Board.load("mps2-m4")
    path = other_root / "boards" / "mps2-m4" / "instructions.json"
    content = json.loads(path.read_text())
    work = work_of(subjects_of(_plan(board), board)[0], board)
    turn = next(name for name, count in work.turns.items() if count)
    del content["paths"][work.path]["instructions"][turn]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"nothing was measured for .*: {work.path}: .*{turn}.*fedmote bench instructions"):
        predict(_plan(board), board)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"instructions\.json: Expecting"),
        ("[]", r"an object is expected, not list"),
        ("{}", r"not a table of instructions: 'paths'"),
        ('{"paths": {"add": {}}}', r"not a table of instructions: .*missing"),
        ('{"counts_as": "mps2-m3"}', r"counts_as = 'mps2-m3' has another core"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(other_root, text, said):
    (other_root / "boards" / "mps2-m4" / "instructions.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_table(Board.load("mps2-m4"))


def test_a_file_of_sizes_without_an_image_is_refused_by_name(other_root):
    (other_root / "boards" / "mps2-m4" / "sizes.json").write_text('{"device_image_bytes": null}')
    with pytest.raises(ConfigError, match=r"sizes\.json: 'run_image_bytes' is missing"):
        image_bytes(Board.load("mps2-m4"))


@pytest.mark.parametrize(
    ("source", "stale"),
    [
        ("src/kernels/pad.c", {"mps2-m3", "mps2-m4", "mps3-m55", "mps2-m0"}),
        ("src/encoder.c", {"mps2-m3", "mps2-m4", "mps3-m55", "mps2-m0"}),
        ("variants/cortex_m_dsp/conv_2d_cortex_m_dsp.c", {"mps2-m4"}),
        ("src/kernels/head_rows.c", set()),
    ],
)
def test_a_changed_kernel_makes_the_tables_of_its_boards_stale(other_root, source, stale):
    path = other_root / source
    path.write_text(path.read_text() + "\n")
    boards = ("mps2-m3", "mps2-m4", "mps3-m55", "mps2-m0")
    assert {name for name in boards if instructions.is_stale(Board.load(name))} == stale


def test_boards_that_count_alike_predict_alike():
    board, other = Board.load("stm32f405"), Board.load("mps2-m4")
    plan = _plan(board, 8)
    assert predict(plan, board) == predict(plan, other)


def test_scalings_of_channels_are_read_from_the_weights():
    board = Board.load("mps2-m3")
    plan = _plan(board, 8)
    for subject in subjects_of(plan, board):
        channels = subject.values.get("out_c", subject.values.get("out_n", 0)) if "scaling" in subject.values else 0
        assert subject.scaling.shape == (channels, 3)
        assert np.all(np.abs(subject.scaling[:, 2]) <= 31)
