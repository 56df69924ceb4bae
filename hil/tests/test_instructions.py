# SPDX-License-Identifier: Apache-2.0
import argparse
import json
from dataclasses import replace

import numpy as np
import pytest

from fedmote.errors import ConfigError, DeviceError
from fedmote.package import instructions as tables
from fedmote.package.boards import Board, boards_with
from fedmote.package.compile import compile_graph
from fedmote.package.instructions import image_bytes, load_table, predict, subjects_of, work_of
from fedmote_hil import instructions
from fedmote_hil.bench import count_operators
from fedmote_hil.cli import bench as bench_verb
from fedmote_hil.instructions import Comparison, Sample
from fedmote_hil.models import REFERENCE_MODELS, encoder_package, example_encoders, reference_directory
from fedmote_hil.nnls import nonnegative_least_squares
from fedmote_hil.probes import probe_graphs
from fedmote_hil.sizes import compiler_version

from .rig import emulator_test

FAST = ("stm32f405", "mps2-m0")
COUNTING = boards_with("fedmote-bench-kernels")
DIGITS = "digits_cnn"


def _said(*arguments):
    parser = argparse.ArgumentParser()
    bench_verb.instructions.add_arguments(parser)
    return bench_verb.instructions.run(parser.parse_args(list(arguments)))


def _compiler_of(name):
    return json.loads((tables.sdk_root() / "boards" / name / "instructions.json").read_text())["compiler"]


@emulator_test
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in COUNTING if name not in FAST)])
def test_whole_models_are_predicted_within_five_percent_of_what_the_board_counts(name):
    board, skipped = Board.load(name), []
    if _compiler_of(name) != compiler_version():
        pytest.skip(f"the table of {name} is of another compiler than {compiler_version()}")
    found = instructions.compare_models(board, skipped)
    absent = {model for model in REFERENCE_MODELS if not (reference_directory() / f"{model}.tflite").is_file()}
    models = {*REFERENCE_MODELS, *example_encoders(), "20 random graphs"}
    assert {comparison.model for comparison in found} | {said.split(":")[0] for said in skipped} >= models - absent
    for comparison in found:
        assert abs(comparison.error) <= 0.05, comparison


@emulator_test
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in COUNTING if name not in FAST)])
def test_sizes_of_images_are_those_of_a_fresh_build(name):
    board = Board.load(name)
    written = image_bytes(board)
    if written.compiler != compiler_version():
        pytest.skip(f"the sizes of {name} are of another compiler than {compiler_version()}")
    assert written == instructions.measured_sizes(board), f"run: fedmote bench instructions --board {name}"


@emulator_test
def test_a_table_is_measured_again_as_it_was_and_one_operator_in_five_is_held_out():
    board = Board.load("mps2-m4")
    table = instructions.measure(board, probes=4)
    assert table == instructions.measure(board, probes=4)
    assert table.inference == load_table(board).inference
    for path in table.paths.values():
        assert path.held_out == (path.operators + path.held_out) // 5


@emulator_test
def test_a_small_board_counts_as_the_largest_of_its_kind_and_the_file_says_so():
    board, other = Board.load("nrf51822"), Board.load("mps2-m0")
    assert instructions.sibling_of(board) == other
    assert instructions.sibling_of(other) is None
    operators, differing = instructions.count_differences(board, other)
    assert operators > 100
    assert differing == 0


def test_boards_of_other_code_are_no_siblings():
    assert instructions.sibling_of(Board.load("mps2-m4-aligned")) is None
    assert instructions.sibling_of(Board.load("stm32f405")).name == "mps2-m4"


def test_probes_are_the_same_every_time():
    board = Board.load("mps2-m3")
    first, second = ([compile_graph(graph, board.arrangement) for graph in probe_graphs(board, 1)] for _ in range(2))
    assert [(plan.records, plan.weights) for plan in first] == [(plan.records, plan.weights) for plan in second]


@pytest.mark.parametrize("name", ["mps2-m3", "mps2-m4", "mps3-m55"])
def test_probes_take_every_path_of_the_kernels_in_graphs_that_the_board_has_words_for(name):
    board = Board.load(name)
    plans = [compile_graph(graph, board.arrangement) for graph in probe_graphs(board, 6)]
    assert all(len(plan.units) <= 178 for plan in plans)
    assert {work_of(subject, board).path for plan in plans for subject in subjects_of(plan, board)} == set(
        load_table(board).paths
    )


def test_coefficients_of_an_exact_sum_are_found():
    rng = np.random.default_rng(0)
    loops = [{"group": int(a), "rest": int(b), "never": 0} for a, b in rng.integers(0, 50, (40, 2))]
    samples = [Sample(turns, 100 + 7 * turns["group"] + 3 * turns["rest"]) for turns in loops]
    found = instructions._fitted(samples)
    assert found.instructions == {"operator": 100.0, "group": 7.0, "rest": 3.0}
    assert (found.operators, found.held_out, found.largest_error) == (32, 8, 0.0)


def test_an_error_of_a_held_out_operator_is_told():
    samples = [Sample({"element": count}, 10 * count) for count in range(1, 11)]
    samples[9] = replace(samples[9], instructions=125)
    assert instructions._fitted(samples).largest_error == 0.2


@pytest.mark.parametrize("seed", range(20))
def test_least_squares_without_negative_coefficients_meet_the_conditions_of_an_optimum(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(30, 8)), rng.normal(size=30)
    a[:, 7] = a[:, 6]  # one column twice
    x = nonnegative_least_squares(a, b)
    slope = a.T @ (b - a @ x)
    assert (x >= 0).all()
    assert np.all(slope <= 1e-8)
    assert np.all(np.abs(slope[x > 0]) <= 1e-8)


def test_operators_that_do_not_add_up_to_an_inference_are_a_miscount():
    board = Board.load("mps2-m3")
    with pytest.raises(DeviceError, match="do not add up"):
        instructions._inference(board, [(1000, (500, 524)), (1000, (500, 300, 249))])
    assert instructions._inference(board, [(1000, (500, 524)), (1000, (500, 300, 248))]) == 24


def _comparison(model, predicted, counted):
    return Comparison(model, predicted, counted, "node 0", predicted - counted)


def test_random_graphs_are_judged_together():
    found = instructions.summary(
        [_comparison("kws", 99, 100), *(_comparison(f"random graph {n}", 8 + 4 * n, 10) for n in (0, 1))]
    )
    assert [(each.model, each.error) for each in found] == [("kws", pytest.approx(-0.01)), ("2 random graphs", 0.0)]


@pytest.mark.parametrize(("predicted", "code"), [(105, 0), (106, 1), (94, 1)])
def test_the_check_fails_beyond_five_percent_and_writes_nothing(predicted, code, monkeypatch, capsys):
    monkeypatch.setattr(bench_verb, "compare_models", lambda board, skipped: [_comparison("kws", predicted, 100)])
    monkeypatch.setattr(bench_verb, "refresh", lambda board: pytest.fail("--check measures nothing"))
    assert _said("--board", "mps2-m4", "--check", "--json") == code
    said = json.loads(capsys.readouterr().out)
    assert said["rows"][0]["error_percent"] == predicted - 100
    assert _said("--board", "mps2-m4", "--check") == code
    assert "kws" in capsys.readouterr().out


def test_the_check_of_a_stale_table_names_the_command(monkeypatch):
    monkeypatch.setattr(bench_verb, "is_stale", lambda board: True)
    with pytest.raises(ConfigError, match=r"board mps2-m4: .*run: fedmote bench instructions --board mps2-m4"):
        _said("--board", "mps2-m4", "--check")


@emulator_test
def test_predictions_of_one_model_tell_operator_by_operator_what_is_counted():
    board = Board.load("stm32f405")
    graph = example_encoders()[DIGITS]
    _, counted = count_operators(board, encoder_package(graph, board, DIGITS))
    prediction = predict(compile_graph(graph, board.arrangement), board)
    inference = prediction.total - sum(prediction.operators)
    for found, count in zip(prediction.operators, counted, strict=True):
        assert abs(found - (count - inference)) <= 0.05 * count
