# SPDX-License-Identifier: Apache-2.0
"""Every form with its cost, and what several boards get of one model."""

import json

import numpy as np
import pytest
from torch import nn

from fedmote.errors import ConversionError, DoesNotFitError, UnsupportedOpError
from fedmote.lab.models import digits_cnn, residual_cnn
from fedmote.package.boards import Board
from fedmote.package.file import Package
from fedmote.package.partition import Partition, evaluate
from fedmote.tensors import load_safetensors
from fedmote_convert.calibration import Recipe
from fedmote_convert.capture import capture
from fedmote_convert.convert import convert_form, samples_of
from fedmote_convert.early_exit import Owners
from fedmote_convert.forms import early_forms, forms_at, own_forms
from fedmote_convert.output import write
from fedmote_convert.passes import run_passes
from fedmote_convert.tiers import convert_tiers

from .conftest import seeded


def boards(*names, **changes):
    return [Board(**(vars(Board.load(name)) | changes)) for name in names]


@pytest.fixture(scope="module")
def labelled(digits):
    """400 samples of digits, half of them unknown to the module."""
    return np.concatenate([digits.x, digits.x_test[:200]]), np.concatenate([digits.y, digits.y_test[:200]])


@pytest.fixture(scope="module")
def result(digits, labelled):
    return convert_tiers(
        digits.module, labelled[0], boards("posix", "stm32f405"), model_id="digits_cnn", y=labelled[1], widths=(1.0, 0.5)
    )


def test_forms_are_the_edges_of_the_network_as_they_are_and_averaged():
    captured = capture(digits_cnn(), (1, 8, 8))
    forms = [*early_forms(captured, run_passes(captured.graph), 10), *own_forms(captured)]

    assert [(form.name, form.cut.features, form.is_early) for form in forms] == [
        ("relu", 512, True),
        ("relu-mean", 8, True),
        ("relu_1", 1024, True),
        ("relu_1-mean", 16, True),
        ("max_pool2d", 256, True),
        ("max_pool2d-mean", 16, True),
        ("relu_2", 768, True),
        ("relu_2-mean", 48, True),
        ("max_pool2d_1", 192, True),
        ("flatten", 48, False),
    ]
    assert forms[2].head[0].weight == "early_exit.relu_1.weight"
    assert forms[3].head[0].weight == "early_exit.relu_1.mean.weight"


def test_edges_inside_a_residual_block_are_no_forms():
    captured = capture(residual_cnn(), (3, 8, 8))
    names = [form.name for form in (*early_forms(captured, run_passes(captured.graph), 4), *own_forms(captured))]

    assert names == ["hardtanh", "hardtanh-mean", "relu-mean", "flatten"]


def test_a_model_with_two_layers_behind_its_convolutions_keeps_either_or_both_as_head():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5), nn.ReLU(), nn.Linear(5, 3)).eval()

    assert [len(form.head) for form in own_forms(capture(module, (1, 8, 8)))] == [2, 1]


def test_an_edge_that_is_named_becomes_an_early_exit_only_with_labels():
    captured = capture(digits_cnn(), (1, 8, 8))

    assert [form.name for form in forms_at(captured, "bn2", 10)] == ["batch_norm_1", "batch_norm_1-mean"]
    assert [form.is_early for form in forms_at(captured, "average", 10)] == [False]
    with pytest.raises(UnsupportedOpError, match="or give labels"):
        forms_at(captured, "bn2", None)
    with pytest.raises(UnsupportedOpError, match="inside a branch or residual block"):
        forms_at(capture(residual_cnn(), (3, 8, 8)), "depthwise", 4)


def test_costs_of_all_forms_are_those_of_their_packages_and_so_are_accuracies_but_for_rounding(digits, labelled, result):
    captured = capture(digits.module, (1, 8, 8))
    samples = samples_of(captured, *labelled, result.labels)
    held_out = result.labels.held_out
    x, y = labelled[0][held_out], labelled[1][held_out]
    both = boards("posix", "stm32f405")

    differences = []
    assert len(result.measured) == 20
    for one in result.measured:
        made = convert_form(captured, one.form, samples, both, "digits_cnn", Recipe(), only_running=("posix", "stm32f405"))
        for board in both:
            assert one.boards[board.name].cost == made.packages[board.name].cost_on(board), one.form.name
        assert (one.macs, one.encoder_bytes) == (made.package.header.macs, made.package.header.encoder_bytes)
        assert one.embedding_bytes == made.package.features
        assert one.update_bytes == 4 * made.package.head_shape.parameters
        measured = one.accuracy if one.form.is_early else one.own_accuracy
        differences.append(evaluate(made.package, x, y) - measured)
    assert np.abs(differences).mean() <= 0.005
    # Half a sample of 97 on average: among twenty forms, one of three is rare, one of four is not chance.
    assert np.abs(differences).max() * len(y) < 4


def test_every_board_gets_a_package_that_fits_and_keeps_the_accuracy_that_was_measured(labelled, result):
    held_out = result.labels.held_out
    for tier in result.tiers:
        for board in tier.boards:
            package = tier.conversion.packages[board.name]
            assert package.cost_on(board).fits
            choice = tier.choices[board.name]
            assert choice.trains
            assert evaluate(package, labelled[0][held_out], labelled[1][held_out]) == tier.conversion.quality.accuracy_int8
            assert tier.conversion.quality.samples == len(held_out)


def test_boards_of_different_size_get_tiers_in_directories_of_their_own(digits, labelled, tmp_path):
    small = Board(**(vars(Board.load("stm32f405")) | {"slot_bytes": 2500}))
    made = convert_tiers(digits.module, labelled[0], [*boards("posix"), small], model_id="digits_cnn", y=labelled[1])
    report = write(made, tmp_path / "out")

    assert len(made.tiers) == 2
    for tier in made.tiers:
        directory = tmp_path / "out" / tier.name
        partition = Partition.load(directory)
        (board,) = tier.boards
        assert sorted(partition.packages) == [board.name]
        assert partition.package.cost_on(board).fits
        checkpoint = load_safetensors(directory / "checkpoint.safetensors")
        assert set(partition.head_tensor_names) <= set(checkpoint)
        assert set(digits.module.state_dict()) - set(checkpoint) == {f"bn{i}.num_batches_tracked" for i in (1, 2, 3)}
        assert report["boards"][board.name]["form"] == tier.name
    assert set(report["tiers"]) == {tier.name for tier in made.tiers}
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files - {"pareto.png"} == {*report["files"], "report.json", "report.html"}


def test_one_tier_after_several_leaves_no_directory_behind(digits, labelled, tmp_path):
    small = Board(**(vars(Board.load("stm32f405")) | {"slot_bytes": 2500}))
    write(convert_tiers(digits.module, labelled[0], [*boards("posix"), small], model_id="d", y=labelled[1]), tmp_path / "out")
    write(convert_tiers(digits.module, labelled[0], boards("posix"), model_id="d", cut="last"), tmp_path / "out")

    assert [path for path in (tmp_path / "out").iterdir() if path.is_dir()] == []
    assert Package.read(tmp_path / "out" / "d-posix.fmp").features == 48


def test_a_board_that_cannot_train_gets_what_it_can_run_and_it_is_said(digits, labelled, tmp_path):
    tiny = Board(**(vars(Board.load("stm32f405")) | {"arena_bytes": 1000}))
    report = write(convert_tiers(digits.module, *labelled[:1], [tiny], model_id="d", y=labelled[1]), tmp_path / "out")

    assert not report["boards"]["stm32f405"]["is_training"]
    assert report["boards"]["stm32f405"]["run_arena_bytes"] <= tiny.run_arena_bytes
    with pytest.raises(DoesNotFitError, match="arena"):
        convert_tiers(digits.module, labelled[0], [tiny], model_id="d", cut="last")


def test_an_edge_that_is_named_is_narrowed_with_all_before_it(digits, labelled):
    made = convert_tiers(digits.module, labelled[0], boards("posix"), model_id="d", cut="pool", y=labelled[1], widths=(0.5,))

    assert [(one.form.name, one.form.cut.features) for one in made.measured] == [
        ("max_pool2d_1-x0.5", 96),
        ("max_pool2d_1-mean-x0.5", 24),
    ]
    (tier,) = made.tiers
    assert tier.conversion.quality.accuracy_int8 > 0.7
    assert tier.conversion.head[0].weight.endswith(".x0.5.weight")


def test_narrow_widths_without_labels_are_refused(digits):
    with pytest.raises(ConversionError, match=r"--widths below 1 need labels"):
        convert_tiers(digits.module, digits.x, boards("posix"), model_id="d", widths=(1.0, 0.5))


def test_a_model_that_does_not_end_with_one_linear_is_left_early():
    module = seeded(nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 6), nn.Flatten(), nn.Softmax(1)), 2)
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((80, 1, 8, 8)).astype(np.float32), rng.integers(0, 4, 80)

    made = convert_tiers(module, x, boards("posix"), model_id="m", y=y)

    assert made.tiers[0].conversion.form.is_early
    with pytest.raises(UnsupportedOpError, match="no cut leaves one Linear"):
        convert_tiers(module, x, boards("posix"), model_id="m")


def test_the_report_says_which_samples_were_held_out(digits, labelled, tmp_path):
    x, y = labelled
    owners = Owners("writer", np.repeat(np.arange(10), 40))
    report = write(convert_tiers(digits.module, x, boards("posix"), model_id="d", y=y, owners=owners), tmp_path / "out")

    held_out = report["held_out"]
    assert held_out["samples"] == len(held_out["indices"]) == 120
    assert held_out["rule"].startswith("all of writer ")
