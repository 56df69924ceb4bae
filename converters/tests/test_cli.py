# SPDX-License-Identifier: Apache-2.0
"""`fedmote convert` from arguments to files, and what it says when something is wrong."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedmote.errors import ConfigError, ConversionError, DoesNotFitError, UnsupportedOpError
from fedmote.lab.models import digits_cnn
from fedmote.package.boards import Board
from fedmote.package.file import Package
from fedmote.package.head import head_tensors
from fedmote.package.partition import Partition
from fedmote.tensors import load_safetensors
from fedmote_convert import cli

MODEL = "fedmote.lab.models:digits_cnn"


@pytest.fixture
def calibration(tmp_path):
    rng = np.random.default_rng(5)
    path = tmp_path / "x.npz"
    np.savez(path, x=rng.random((20, 1, 8, 8), dtype=np.float32), y=rng.integers(0, 10, 20))
    return path


@pytest.fixture
def run(calibration, tmp_path, capsys):
    """Runs the verb; the arguments given replace or follow the usual ones. Returns stdout and stderr."""

    def call(model=MODEL, boards="posix,stm32f405", output=tmp_path / "out", **options):
        options = {"calibration": calibration, **options}
        arguments = [model, "--boards", boards, "-o", str(output)]
        for name, value in options.items():
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        parser = argparse.ArgumentParser()
        cli.add_arguments(parser)
        assert cli.run(parser.parse_args(arguments)) == 0
        return capsys.readouterr()

    return call


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_conversion_leaves_encoder_head_checkpoint_packages_and_report(run, tmp_path):
    run()

    assert sorted(contents(tmp_path / "out")) == [
        "checkpoint.safetensors",
        "digits_cnn-posix.fmp",
        "digits_cnn-stm32f405.fmp",
        "encoder.tflite",
        "head.safetensors",
        "pareto.png",
        "report.html",
        "report.json",
    ]


def test_the_files_of_a_conversion_agree_with_each_other_and_with_the_module(run, tmp_path):
    run()
    out = tmp_path / "out"
    partition = Partition.load(out)
    checkpoint = load_safetensors(out / "checkpoint.safetensors")
    head = load_safetensors(out / "head.safetensors")
    state = {name: value for name, value in digits_cnn().state_dict().items() if value.is_floating_point()}

    assert sorted(partition.packages) == ["posix", "stm32f405"]
    assert partition.package.encoder_tflite == (out / "encoder.tflite").read_bytes()
    assert set(checkpoint) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(checkpoint[name], value.numpy())
    in_package = head_tensors(partition.head, partition.package.head_blob)
    assert set(in_package) == set(head) == {"head.weight", "head.bias"}
    for name, value in in_package.items():
        np.testing.assert_array_equal(value, head[name])
        np.testing.assert_array_equal(value, checkpoint[name])


def test_json_is_one_object_on_stdout_and_equals_the_report(run, tmp_path):
    streams = run(json=True)

    report = json.loads(streams.out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["boards"]["stm32f405"]["slot_available"] == 24576
    assert report["boards"]["posix"]["hash"] == Package.read(tmp_path / "out" / "digits_cnn-posix.fmp").hash.hex()
    assert report["files"]["encoder.tflite"] == (tmp_path / "out" / "encoder.tflite").stat().st_size
    assert 0 <= report["quality"]["accuracy_int8"] <= 1
    assert report["cut"]["candidates"][-1]["refusal"] is None


def test_the_table_is_on_stdout_and_the_talk_on_stderr(run):
    streams = run()

    assert "stm32f405" in streams.out
    assert "24,576" in streams.out
    assert "capturing" not in streams.out
    assert streams.err.startswith("capturing digits_cnn with samples of shape (1, 8, 8)")


def test_equal_inputs_give_equal_directories(run, tmp_path):
    run(output=tmp_path / "one")
    run(output=tmp_path / "two")

    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_weights_of_a_file_replace_those_of_the_function(run, tmp_path):
    other = digits_cnn(seed=8)
    save_file(other.state_dict(), tmp_path / "w.safetensors")

    run(weights=tmp_path / "w.safetensors")

    checkpoint = load_safetensors(tmp_path / "out" / "checkpoint.safetensors")
    np.testing.assert_array_equal(checkpoint["conv1.weight"], other.state_dict()["conv1.weight"].numpy())


def test_a_checkpoint_of_a_conversion_can_be_given_as_weights(run, tmp_path):
    run()

    run(weights=tmp_path / "out" / "checkpoint.safetensors", output=tmp_path / "again")

    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_a_module_in_the_working_directory_can_be_converted(run, tmp_path, monkeypatch):
    (tmp_path / "my_model_file.py").write_text("from fedmote.lab.models import digits_cnn as build_it\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    run(model="my_model_file:build_it")

    assert (tmp_path / "out" / "build_it-posix.fmp").exists()


def test_converting_for_fewer_boards_removes_the_packages_that_would_contradict(run, tmp_path):
    run()
    (tmp_path / "out" / "notes.txt").write_text("mine")

    run(boards="posix")

    names = set(contents(tmp_path / "out"))
    assert "digits_cnn-stm32f405.fmp" not in names
    assert {"digits_cnn-posix.fmp", "notes.txt", "report.json"} <= names
    assert sorted(Partition.load(tmp_path / "out").packages) == ["posix"]


def test_a_report_that_lists_files_elsewhere_removes_nothing_there(run, tmp_path):
    (tmp_path / "precious.fmp").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text(json.dumps({"files": {"../precious.fmp": 1}}))

    run()

    assert (tmp_path / "precious.fmp").read_text() == "mine"


def test_a_failure_changes_nothing_that_was_there(run, tmp_path, monkeypatch):
    run()
    before = contents(tmp_path / "out")
    load = Board.load
    tiny = Board(**{**vars(load("stm32f405")), "slot_bytes": 1000})
    monkeypatch.setattr(Board, "load", classmethod(lambda cls, name: tiny if name == "stm32f405" else load(name)))

    with pytest.raises(DoesNotFitError):
        run(boards="stm32f405", cut="last")

    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_full_disk_changes_nothing_that_was_there(run, tmp_path, monkeypatch):
    run()
    before = contents(tmp_path / "out")
    calls = []

    def failing_fsync(handle):
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedmote_convert.output.os.fsync", failing_fsync)
    with pytest.raises(ConfigError, match="No space left on device"):
        run(boards="posix")

    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_output_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("mine")

    with pytest.raises(ConfigError, match=r"-o .*file: found a file, expected a directory"):
        run(output=tmp_path / "file")

    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "model, message",
    [
        ("fedmote.lab.models", r"expected pkg\.module:build"),
        (":digits_cnn", r"expected pkg\.module:build"),
        ("no_such_package.at_all:build", r"cannot be imported \(ModuleNotFoundError"),
        ("fedmote.lab.models:no_such_function", r"no_such_function.*expected a function of that name"),
        ("fedmote.lab.models:__name__", r"__name__ is str, expected a function"),
        ("os:getcwd", r"getcwd\(\) returned str, expected a torch\.nn\.Module"),
        ("fedmote.lab.models:seeded", r"seeded\(\) raised TypeError"),
        ("model.onnx", r"cannot be read \(No such file or directory\); expected an \.onnx file"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_usage_error_that_names_it(run, tmp_path, model, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run(model=model)

    assert model in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"samples": np.zeros((2, 1, 8, 8), np.float32)}, "key 'x' is missing, it holds samples"),
        ({"x": np.zeros((2, 1, 8, 8), np.uint8)}, r"x is uint8 \(2, 1, 8, 8\); expected floats"),
        ({"x": np.zeros((0, 1, 8, 8), np.float32)}, "expected floats"),
        ({"x": np.zeros(3, np.float32)}, "expected floats"),
        ({"x": np.full((2, 1, 8, 8), np.inf, np.float32)}, "not finite"),
        ({"x": np.full((2, 1, 8, 8), 1e300)}, "not finite in float32"),
        ({"x": np.ones((2, 1, 8, 8), np.float32), "y": np.zeros(3, int)}, r"y is int64 \(3,\); expected integers \(2,\)"),
        ({"x": np.ones((2, 1, 8, 8), np.float32), "y": np.zeros(2)}, "y is float64"),
        ({"x": np.array([object()])}, "cannot be read"),
    ],
)
def test_a_calibration_file_without_usable_samples_names_file_key_and_expectation(run, tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)

    with pytest.raises(ConfigError, match=message) as caught:
        run(calibration=path)

    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_calibration_file_that_is_missing_damaged_or_one_array_is_refused(run, tmp_path):
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no zip")
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros((2, 1, 8, 8), np.float32))
    for name in ("missing.npz", "damaged.npz", "text.npz", "one.npy"):
        with pytest.raises(ConfigError, match=name):
            run(calibration=tmp_path / name)


def test_weights_that_are_not_the_modules_are_refused_by_tensor(run, tmp_path):
    state = digits_cnn().state_dict()
    path = tmp_path / "w.safetensors"
    for change, message in (
        ({"conv1.weight": None}, r"conv1\.weight is missing"),
        ({"other.weight": torch.zeros(1)}, r"other\.weight is unknown"),
        ({"head.bias": torch.zeros(3)}, r"head\.bias has another shape"),
    ):
        save_file({name: value for name, value in {**state, **change}.items() if value is not None}, path)
        with pytest.raises(ConfigError, match=message):
            run(weights=path)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="no safetensors file that can be read"):
        run(weights=path)


def test_unknown_boards_and_cuts_are_usage_errors_with_the_names_there_are(run):
    with pytest.raises(ConfigError, match=r"toaster.*posix.*stm32f405"):
        run(boards="posix,toaster")
    with pytest.raises(ConfigError, match="expected names, separated by commas"):
        run(boards=" , ")
    with pytest.raises(ConfigError, match=r"--cut nowhere.*conv1"):
        run(cut="nowhere")


def test_a_cut_that_leaves_more_than_the_head_is_refused(run, tmp_path):
    path = tmp_path / "unlabelled.npz"
    np.savez(path, x=np.random.default_rng(5).random((20, 1, 8, 8), dtype=np.float32))

    with pytest.raises(UnsupportedOpError, match=r"bn3: .*one Linear, or two.*or give labels") as caught:
        run(cut="bn3", calibration=path)

    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_samples_of_another_shape_are_refused(run, tmp_path):
    path = tmp_path / "x3.npz"
    np.savez(path, x=np.ones((2, 3, 8, 8), np.float32))

    with pytest.raises(ConversionError, match=r"sample of shape \(3, 8, 8\)"):
        run(calibration=path)


def test_help_does_not_import_torch():
    code = (
        "import argparse, sys; from fedmote_convert import cli; cli.add_arguments(argparse.ArgumentParser()); "
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_budget_of_weights_gives_layers_four_bits_and_the_report_the_table(run, tmp_path):
    said = run(boards="posix", **{"weight-budget": 6000}).out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    layers = report["sensitivities"]

    assert {layer["bits"] for layer in layers} == {4, 8}
    assert sum(layer["bytes_4"] if layer["bits"] == 4 else layer["bytes_8"] for layer in layers) <= 6000
    assert "4 bits alone" in said


def test_a_budget_below_the_smallest_possible_is_refused_and_nothing_is_written(run, tmp_path):
    with pytest.raises(ConversionError, match=r"take \d+ bytes with 4 bits in every layer, the budget is 10 bytes"):
        run(boards="posix", **{"weight-budget": 10})
    assert not (tmp_path / "out").exists()


def test_ranges_of_a_training_are_used_as_they_are(run, tmp_path):
    run(boards="posix", cut="last")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    ranges = {name: [low * 1.5, high * 1.5] for name, (low, high) in report["ranges"].items()}
    (tmp_path / "ranges.json").write_text(json.dumps({"ranges": ranges, "weight_bits": {"conv2.weight": 4}}))
    run(boards="posix", ranges=tmp_path / "ranges.json", output=tmp_path / "again")
    package = Package.read(tmp_path / "again" / "digits_cnn-posix.fmp")

    for name, limits in package.host.ranges.items():
        assert list(limits) == ranges[name]
    assert {op.source.weight: op.weight_bits for op in package.host.template.ops if op.source is not None} == {
        "conv1.weight": 8, "conv2.weight": 4, "conv3.weight": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSONDecodeError"),
        ("[]", "expected {"),
        ('{"ranges": {"x": [1]}}', "ValueError"),
        ('{"ranges": {"x": [2.0, 1.0]}}', r"x is \[2.0, 1.0\]; expected finite numbers, the lower one first"),
        ('{"ranges": {"x": [NaN, 1.0]}}', "x is .*finite"),
        ('{"ranges": {"nothing": [0.0, 1.0]}}', "ranges: x has no range"),
    ],
)
def test_files_of_ranges_that_are_none_are_refused_with_what_was_expected(run, tmp_path, content, message):
    (tmp_path / "ranges.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        run(boards="posix", ranges=tmp_path / "ranges.json")
