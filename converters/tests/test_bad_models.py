# SPDX-License-Identifier: Apache-2.0
"""What is no model, no data or no place to write to: one line, the exit code of its class, and nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedmote.cli import main
from fedmote_convert import output

from .onnx_models import classifier, model_of, node, saved

REFUSED, USAGE = 1, 2


@pytest.fixture
def convert(tmp_path, capfd):
    """Runs the command for a model; checks that it says one line, changes nothing, and returns exit code and line."""
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((8, 2, 4, 4), dtype=np.float32))

    def run(model="model.onnx", *more, calibration="x.npz", out="out"):
        before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
        capfd.readouterr()
        paths = ["--calibration", tmp_path / calibration, "-o", tmp_path / out]
        arguments = ["convert", *map(str, (tmp_path / model, *paths, "--boards", "posix", *more))]
        code = main(arguments)
        streams = capfd.readouterr()
        complaint = [line for line in streams.err.splitlines() if line.startswith("fedmote: ")]
        if code:
            assert streams.out == ""
            assert len(complaint) == 1 and streams.err.splitlines()[-1] == complaint[0]
            assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
        return code, complaint[0] if complaint else ""

    return run


def half(data):
    return data[: len(data) // 2]


def with_order(order):
    model = classifier()
    nodes = [model.graph.node[index] for index in order]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def cyclic():
    model = classifier()
    model.graph.node[0].input[0] = "r"  # the convolution reads what the ReLU behind it makes
    return model


def without_initialiser():
    model = classifier()
    del model.graph.initializer[0]
    return model


def with_external(location, offset=0, length=None, size=0):
    """The head's weight outside the file."""
    model = classifier()
    tensor = next(one for one in model.graph.initializer if one.name == "head.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return model


def with_input(shape=(1, 2, 4, 4), kind=TensorProto.FLOAT):
    model = classifier()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", kind, shape))
    return model


def with_two_inputs():
    model = classifier()
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 2)))
    return model


def with_two_outputs():
    model = classifier()
    model.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, (1, 3)))
    return model


def with_opset(version):
    model = classifier()
    model.opset_import[0].version = version
    return model


def with_domain():
    model = classifier()
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model


def with_if():
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)]
    return model_of(nodes, (1, 2, 4, 4), {"c": np.array(True)})


def quantized():
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")]
    return model_of(nodes, (1, 2, 4, 4), {"s": np.float32(0.1), "z": np.int8(0)})


def with_sequence():
    nodes = [node("SplitToSequence", "x", "s", axis=1), node("ConcatFromSequence", "s", axis=1)]
    return model_of(nodes, (1, 2, 4, 4))


def huge_constant():
    nodes = [node("ConstantOfShape", "n", "c"), node("ReduceSum", "c", "s", keepdims=0), node("Add", "x s")]
    return model_of(nodes, (1, 2, 4, 4), {"n": np.array([1 << 20, 1 << 20])})


def with_wrong_shape():
    model = classifier()
    tensor = next(one for one in model.graph.initializer if one.name == "head.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((3, 5), np.float32), "head.weight"))
    return model


def damaged_tensor():
    model = classifier()
    model.graph.initializer[0].raw_data = b"123"
    return model


NAN = np.full((3, 3), np.nan, np.float32)
INFINITE = np.array([1, np.inf, 0], np.float32)

BAD_FILES = {
    "empty": (b"", "no ONNX model"),
    "text": (b"hello, I am no model\n", "no ONNX model"),
    "truncated": (half(classifier().SerializeToString()), "no ONNX model, or a truncated one"),
    "cut by one byte": (classifier().SerializeToString()[:-1], "no ONNX model, or a truncated one"),
    "cyclic": (cyclic(), "conv_c reads 'r' before it is made: the graph is cyclic"),
    "not sorted": (with_order([1, 0, 2, 3, 4]), "relu_r reads 'c' before it is made: the operators are not sorted"),
    "initialiser missing": (without_initialiser(), "conv_c reads 'conv.weight', which is no input, no initialiser"),
    "opset too old": (with_opset(12), "opset 12; export it with opset_version=13"),
    "opset too new": (with_opset(999), "opset 999"),
    "other domain": (with_domain(), "relu_r: operator Relu of domain com.example; use operators of the standard domain"),
    "control flow": (with_if(), "choice: If: control flow; export one path"),
    "quantized": (quantized(), "quantizelinear_q: QuantizeLinear: the model is quantized; give the float model"),
    "sequence": (with_sequence(), "splittosequence_s: operator SplitToSequence is not supported"),
    "two inputs": (with_two_inputs(), "the model has 2 inputs"),
    "two outputs": (with_two_outputs(), "the model has 2 outputs"),
    "dynamic height": (with_input((1, 2, "height", 4)), "input x has shape (1, 2, height, 4); only the batch"),
    "unknown rank": (with_input(None), "Field 'shape' of 'type' is required"),
    "half input": (with_input(kind=TensorProto.FLOAT16), "input x is float16, expected float32"),
    "double input": (with_input(kind=TensorProto.DOUBLE), "input x is double, expected float32"),
    "integer input": (with_input(kind=TensorProto.UINT8), "input x is uint8, expected float32; export the float model and scale"),
    "half weights": (
        classifier(**{"head.weight": NAN.astype(np.float16)}),
        "head.weight is float16, expected float32",
    ),
    "double weights": (classifier(**{"head.weight": NAN.astype(float)}), "head.weight is double, expected float32"),
    "integer weights": (classifier(**{"head.weight": np.zeros((3, 3), np.int8)}), "Gemm"),
    "NaN weights": (classifier(**{"head.weight": NAN}), "gemm_y: initialiser head.weight holds values that are not finite"),
    "infinite weights": (classifier(**{"conv.bias": INFINITE}), "conv_c: initialiser conv.bias holds values that are not finite"),
    "huge constant": (huge_constant(), "ConstantOfShape makes (1048576, 1048576); sizes are positive"),
    "shapes that do not match": (with_wrong_shape(), "gemm_y: Gemm does not suit its inputs"),
    "damaged tensor": (damaged_tensor(), "raw_data size (3 bytes) is too small"),
    "external data outside": (
        with_external("../secret.bin"),
        "the data of head.weight is said to be at '../secret.bin', outside",
    ),
    "external data absolute": (with_external("/etc/hostname"), "outside the model's folder"),
    "external data too short": (with_external("x.npz", 0, 1 << 20), "the data of head.weight is said to be 1048576 bytes"),
    "external data before": (with_external("x.npz", -4, 36), "the data of head.weight is said to be 36 bytes from -4"),
    "no operators": (helper.make_model(helper.make_graph([], "g", [], [])), "without operators"),
    "no head": (model_of([node("Relu", "x")], (1, 2, 4, 4)), "no cut leaves one Linear as the head"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_sound_model_is_refused_in_one_line_that_names_it(convert, tmp_path, name):
    content, message = BAD_FILES[name]
    data = content if isinstance(content, bytes) else content.SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data)

    code, line = convert()

    assert code == REFUSED
    assert message in line
    assert "model.onnx" in line or name == "no head"


def test_external_data_that_is_missing_is_a_usage_error_that_says_where_it_was_expected(convert, tmp_path):
    saved(with_external("weights.bin"), tmp_path / "model.onnx")

    code, line = convert()

    assert code == USAGE
    assert f"expected a file {tmp_path / 'weights.bin'}" in line


def test_external_data_behind_a_link_that_leads_outside_is_refused(convert, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 36)
    (tmp_path / "folder" / "weights.bin").symlink_to(tmp_path / "secret.bin")
    saved(with_external("weights.bin"), tmp_path / "folder" / "model.onnx")

    code, line = convert("folder/model.onnx")

    assert code == REFUSED
    assert "outside the model's folder" in line


def test_external_data_beside_the_model_is_read(convert, tmp_path):
    weight = next(numpy_helper.to_array(one) for one in classifier().graph.initializer if one.name == "head.weight")
    (tmp_path / "weights.bin").write_bytes(b"\xff" * 8 + weight.tobytes())
    saved(with_external("weights.bin", 8, 36), tmp_path / "model.onnx")

    code, _ = convert()

    assert code == 0
    assert (tmp_path / "out" / "model-posix.fmp").exists()


@pytest.mark.parametrize("is_external", [False, True], ids=["the model itself", "its external data"])
def test_two_gigabytes_are_refused_by_their_size_without_being_read(convert, tmp_path, monkeypatch, is_external):
    large = tmp_path / ("weights.bin" if is_external else "model.onnx")
    with large.open("wb") as file:
        file.truncate(2**31)  # sparse: it takes no room on the disk
    if is_external:
        saved(with_external("weights.bin"), tmp_path / "model.onnx")
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read") if path == large else read(path))

    code, line = convert()

    assert code == REFUSED
    assert f"{large}: 2147483648 bytes" in line


def test_what_is_no_readable_file_is_a_usage_error(convert, tmp_path, monkeypatch):
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    saved(classifier(), tmp_path / "locked.onnx")
    read = Path.read_bytes

    def locked(path):
        if path.name == "locked.onnx":  # tests may run as root, for whom no file is locked
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", locked)
    for name, message in (
        ("missing.onnx", "No such file"),
        ("folder.onnx", "found a directory, expected an .onnx file"),
        ("pipe.onnx", "found no regular file"),
        ("locked.onnx", "Permission denied"),
    ):
        code, line = convert(name)

        assert code == USAGE
        assert name in line and message in line


BAD_SAMPLES = {
    "NaN": (np.full((4, 2, 4, 4), np.nan, np.float32), USAGE, "not finite in float32 (NaN or infinite), in 4 of 4 samples"),
    "wrong shape": (np.zeros((4, 4, 4, 2), np.float32), REFUSED, "samples have shape (4, 4, 2), the model reads (2, 4, 4)"),
    "integer images": (np.zeros((4, 2, 4, 4), np.uint8), USAGE, "x is uint8 (4, 2, 4, 4); expected floats"),
    "complex": (np.zeros((4, 2, 4, 4), complex), USAGE, "x is complex128"),
    "booleans": (np.zeros((4, 2, 4, 4), bool), USAGE, "x is bool"),
    "beyond float32": (np.full((4, 2, 4, 4), 1e300), USAGE, "not finite in float32"),
    "no samples": (np.zeros((0, 2, 4, 4), np.float32), USAGE, "x is float32 (0, 2, 4, 4)"),
    "constant": (np.zeros((4, 2, 4, 4), np.float32), REFUSED, "is constant; calibrate with more varied data"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_calibration_samples_that_do_not_suit_are_refused_by_what_was_found_and_expected(convert, tmp_path, name):
    x, expected_code, message = BAD_SAMPLES[name]
    saved(classifier(), tmp_path / "model.onnx")
    np.savez(tmp_path / "bad.npz", x=x)

    code, line = convert(calibration="bad.npz")

    assert code == expected_code
    assert message in line


def test_missing_calibration_is_a_usage_error(convert, tmp_path, capfd):
    saved(classifier(), tmp_path / "model.onnx")

    code, line = convert(calibration="missing.npz")
    other = main(["convert", str(tmp_path / "model.onnx"), "--boards", "posix", "-o", str(tmp_path / "out")])

    assert code == other == USAGE
    assert "missing.npz: No such file" in line
    assert capfd.readouterr().err.startswith("fedmote: --calibration is missing: expected X.npz or pkg.module:loader")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_the_models_are_refused_by_tensor(convert, tmp_path):
    from fedmote.tensors import dump_safetensors

    saved(classifier(), tmp_path / "model.onnx")
    for tensors, message in (
        ({"other.weight": np.zeros(3, np.float32)}, "tensor other.weight is unknown; the model"),
        ({"head.weight": np.zeros((5, 3), np.float32)}, "tensor head.weight has shape (5, 3), expected (3, 3)"),
        ({"head.weight": NAN}, "tensor head.weight is not finite"),
    ):
        (tmp_path / "w.safetensors").write_bytes(dump_safetensors(tensors))
        code, line = convert("model.onnx", "--weights", tmp_path / "w.safetensors")

        assert code == USAGE
        assert "w.safetensors" in line and message in line


@pytest.mark.parametrize("number, reason", [(28, "No space left on device"), (30, "Read-only file system")])
@pytest.mark.parametrize("step", range(5))
def test_a_disk_that_fails_at_any_file_leaves_no_partial_output(convert, tmp_path, monkeypatch, number, reason, step):
    saved(classifier(), tmp_path / "model.onnx")
    calls = []

    def failing(handle):
        calls.append(handle)
        if len(calls) == step + 1:
            raise OSError(number, reason)

    monkeypatch.setattr(output.os, "fsync", failing)

    code, line = convert()

    assert code == USAGE
    assert f"{tmp_path / 'out'}: cannot be written ({reason})" in line


def test_an_output_that_cannot_be_a_directory_is_refused_before_the_work(convert, tmp_path):
    saved(classifier(), tmp_path / "model.onnx")
    (tmp_path / "file").write_text("mine")

    assert convert(out="file") == (USAGE, f"fedmote: -o {tmp_path / 'file'}: found a file, expected a directory")
    code, line = convert(out="file/below")
    assert code == USAGE
    assert "cannot be written (File exists)" in line


KILLED = """
import os, signal, sys
from fedmote.cli import main
from fedmote_convert import output
calls = 0
def killing(handle):
    global calls
    calls += 1
    if calls == {step}:
        os.kill(os.getpid(), signal.{signal})
output.os.fsync = killing
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name, code, step", [("SIGKILL", -9, 1), ("SIGKILL", -9, 3), ("SIGKILL", -9, 5), ("SIGTERM", 130, 3)])
def test_a_kill_while_files_are_written_leaves_no_half_written_directory(tmp_path, name, code, step):
    saved(classifier(), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((8, 2, 4, 4), dtype=np.float32))
    paths = [tmp_path / "model.onnx", "--calibration", tmp_path / "x.npz", "-o", tmp_path / "out"]
    command = [sys.executable, "-c", KILLED.format(step=step, signal=name), "convert", *map(str, paths), "--boards", "posix"]

    ended = subprocess.run(command, check=False, capture_output=True)

    assert ended.returncode == code
    assert not (tmp_path / "out").exists()
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".out-")]
    assert left == [] or name == "SIGKILL"  # nobody can tidy up after a SIGKILL, but what is left is not the directory


def test_bytes_flipped_anywhere_in_a_file_never_end_in_a_bug_of_ours(convert, tmp_path):
    """Damage may leave a model that converts; what it must not do is crash the conversion."""
    sound = classifier().SerializeToString()
    rng = np.random.default_rng(12)  # the seed is 12
    for position in rng.choice(len(sound), 60, replace=False):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "model.onnx").write_bytes(bytes(damaged))
        code, line = convert(out=f"out{position}")
        assert code in (0, REFUSED, USAGE), f"byte {position}: {line}"
