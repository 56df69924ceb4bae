# SPDX-License-Identifier: Apache-2.0
"""`fedmote convert` of an int8 `.tflite` file: packages for each board, with what the file computes."""

import json

import numpy as np
import pytest

from fedmote.cli import main
from fedmote.package import tflite_reader
from fedmote.package.execute import observe, run_int8
from fedmote.package.fold import bind
from fedmote.package.importer import cut_graph
from fedmote.package.partition import Partition, run_features
from fedmote.package.quantize import dequantize_values, quantize, quantize_input
from fedmote.package.tflite_writer import write
from fedmote_convert.capture import capture
from fedmote_convert.passes import run_passes

from .conftest import SHARED, samples_channels_last


@pytest.fixture
def whole_file(digits, tmp_path):
    """The digits network with its head as one int8 file, and held-out samples channels last, as that file reads them."""
    captured = capture(digits.module, digits.x.shape[1:])
    graph = bind(run_passes(captured.graph), captured.tensors)
    path = tmp_path / "Whole Digits.tflite"
    path.write_bytes(write(quantize(graph, observe(graph, samples_channels_last(digits.x)))))
    np.savez(tmp_path / "x.npz", x=samples_channels_last(digits.x_test), y=digits.y_test)
    return path


@pytest.fixture
def convert(tmp_path, capsys):
    def run(model, *more, boards="posix,stm32f405"):
        code = main(["convert", *map(str, (model, "--boards", boards, "-o", tmp_path / "out", *more))])
        return code, capsys.readouterr()

    return run


def test_a_file_becomes_a_package_for_each_board_that_computes_what_the_file_does(whole_file, convert, digits, tmp_path):
    code, _ = convert(whole_file)

    partition = Partition.load(tmp_path / "out")
    graph = tflite_reader.read(whole_file.read_bytes(), "whole")
    encoder = cut_graph(graph, json.loads((tmp_path / "out" / "report.json").read_text())["cut"]["name"])
    x = samples_channels_last(digits.x_test[:50])
    features = dequantize_values(encoder.activations[encoder.output], run_int8(encoder, quantize_input(encoder, x)))
    assert code == 0
    assert sorted(partition.packages) == ["posix", "stm32f405"]
    assert partition.model_id == "whole-digits"
    np.testing.assert_array_equal(run_features(partition.package, x), features.reshape(50, -1))


def test_the_report_of_a_file_without_samples_has_costs_and_the_ranges_of_its_quantization(whole_file, convert, tmp_path):
    _, streams = convert(whole_file, "--json")

    report = json.loads(streams.out)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == written
    assert report["quality"] == {}
    assert report["boards"]["stm32f405"]["slot_available"] == 24576
    assert [op["operator"] for op in report["encoder"]["operators"]][-1] == "MEAN"
    assert report["ranges"][report["cut"]["name"]][0] == 0.0  # what a ReLU leaves
    assert set(report["files"]) | {"report.json"} == {path.name for path in (tmp_path / "out").iterdir()}


def test_samples_add_observed_ranges_clipping_and_accuracy(whole_file, convert, digits, tmp_path):
    _, streams = convert(whole_file, "--calibration", tmp_path / "x.npz", "--json")
    with_samples = json.loads(streams.out)
    np.savez(tmp_path / "unscaled.npz", x=16 * samples_channels_last(digits.x_test))
    _, streams = convert(whole_file, "--calibration", tmp_path / "unscaled.npz", "--json")
    unscaled = json.loads(streams.out)
    _, streams = convert(whole_file, "--json")
    without = json.loads(streams.out)

    assert with_samples["quality"]["samples"] == len(digits.x_test)
    assert with_samples["quality"]["accuracy_int8"] > 0.9
    assert with_samples["quality"]["input_clipped"] == 0
    assert unscaled["quality"]["input_clipped"] > 0.3
    for name, (low, high) in with_samples["ranges"].items():
        assert without["ranges"][name][0] <= low <= high <= without["ranges"][name][1]
    assert with_samples["boards"] == without["boards"]


def test_the_table_of_a_file_names_cut_costs_and_files(whole_file, convert, tmp_path):
    _, streams = convert(whole_file, "--calibration", tmp_path / "x.npz", boards="stm32f405")

    for words in ("whole-digits, quantized by", "the encoder ends at", "24576", "checkpoint.safetensors", "% with the int8"):
        assert words in streams.out
    assert streams.err == f"written to {tmp_path / 'out'}\n"


def test_the_keyword_model_of_mlperf_tiny_is_converted_as_it_is(convert, tmp_path):
    path = SHARED / "models" / "mlperf_tiny" / "kws_ref_model.tflite"
    if not path.exists():
        pytest.skip(f"{path} is absent")

    code, _ = convert(path, boards="posix")

    assert code == 0
    assert Partition.load(tmp_path / "out").package.head_shape.outputs == 12


def test_what_a_file_cannot_be_asked_is_refused_and_changes_nothing(whole_file, convert, digits, tmp_path):
    np.savez(tmp_path / "nchw.npz", x=np.zeros((4, 2, 8, 8), np.float32))
    (tmp_path / "damaged.tflite").write_bytes(whole_file.read_bytes()[:100])
    (tmp_path / "directory.tflite").mkdir()
    with (tmp_path / "large.tflite").open("wb") as file:
        file.truncate(2**31)
    for arguments, expected, message in (
        ((whole_file, "--weights", "w.safetensors"), 2, "quantized already"),
        ((whole_file, "--calibration", tmp_path / "nchw.npz"), 1, "samples have shape (2, 8, 8)"),
        ((whole_file, "--cut", "nowhere"), 1, "no tensor or node 'nowhere' to cut at"),
        ((tmp_path / "missing.tflite",), 2, "missing.tflite: cannot be read (No such file"),
        ((tmp_path / "directory.tflite",), 2, "found a directory, expected a .tflite file"),
        ((tmp_path / "damaged.tflite",), 1, "damaged.tflite"),
        ((tmp_path / "large.tflite",), 1, "2147483648 bytes"),
    ):
        code, streams = convert(*arguments)

        assert code == expected
        assert message in streams.err and len(streams.err.splitlines()) == 1
        assert not (tmp_path / "out").exists()
