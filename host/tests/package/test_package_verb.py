# SPDX-License-Identifier: Apache-2.0
import json
from argparse import ArgumentParser

import numpy as np
import pytest

from fedmote.cli import package as verb
from fedmote.errors import ConfigError, ConversionError, PackageError, UnsupportedOpError
from fedmote.package.boards import Board
from fedmote.package.execute import run_int8
from fedmote.package.file import Package
from fedmote.package.graph import OpKind
from fedmote.package.head import HeadShape
from fedmote.package.importer import cut_graph, split
from fedmote.package.quantize import dequantize_values
from fedmote.package.signature import SigningKey
from fedmote.package.specimen import random_int8_graph, random_samples
from fedmote.package.tflite_reader import read
from fedmote.package.tflite_writer import write


def fedmote_package(*arguments):
    parser = ArgumentParser("fedmote package")
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(argument) for argument in arguments]))


def dense_tail(is_plain):
    """A random graph that ends with a dense layer, without or with a fused clamp."""
    for seed in range(1000):
        graph = random_int8_graph(seed)
        last = graph.ops[-1]
        if last.kind is OpKind.FULLY_CONNECTED and (last.activation.value == "NONE") is is_plain and len(graph.ops) > 2:
            return graph
    raise AssertionError("no seed has such a graph")


def test_last_dense_layer_becomes_the_float_head():
    graph = dense_tail(is_plain=True)
    parts = split(write(graph), "m.tflite")
    x = random_samples(graph, 20, 1)
    features = dequantize_values(parts.encoder.activations[parts.encoder.output], run_int8(parts.encoder, x)).reshape(20, -1)
    logits = features @ parts.tensors["head.weight"].T + parts.tensors["head.bias"]
    target = graph.activations[graph.output]
    expected = dequantize_values(target, run_int8(graph, x)).reshape(20, -1)
    step = float(target.quantization.scale[0])
    is_inside = np.abs(run_int8(graph, x).reshape(20, -1).astype(int)) < 127  # int8 logits saturate, float ones do not
    assert is_inside.any()
    np.testing.assert_allclose(logits[is_inside], expected[is_inside], atol=0.51 * step)


def test_import_says_what_it_did(reference_models, tmp_path, capsys):
    target = tmp_path / "kws.fmp"
    assert fedmote_package("import", reference_models / "kws_ref_model.tflite", "-o", target, "--json") == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert "SOFTMAX at the end was dropped" in output.err
    assert "64 -> 12, was dequantized" in output.err
    assert result["head"] == {"inputs": 64, "hidden": 0, "outputs": 12}
    assert result["is_pushable"] is False
    assert [op["operator"] for op in result["operators"]].count("CONV_2D") == 5
    golden = json.loads((reference_models / "golden_lcg.json").read_text())["kws_ref_model"]["cases"]["1"]
    assert len(golden["embedding"]) == Package.read(target).features


def test_new_head_of_other_classes(reference_models, tmp_path, capsys):
    target = tmp_path / "ad.fmp"
    arguments = (
        "import",
        reference_models / "ad01_int8.tflite",
        "-o",
        target,
        "--cut",
        4,
        "--classes",
        2,
        "--board",
        "stm32f405",
    )
    assert fedmote_package(*arguments) == 0
    package = Package.read(target)
    assert (package.features, package.outputs, package.manifest["board"]) == (8, 2, "stm32f405")
    assert not package.head[0].weights.any()
    assert "new head of zeros" in capsys.readouterr().err


def test_cut_that_leaves_more_than_a_dense_layer_is_refused(reference_models, tmp_path):
    model = reference_models / "ad01_int8.tflite"
    with pytest.raises(ConversionError, match="a head is one FULLY_CONNECTED"):
        fedmote_package("import", model, "-o", tmp_path / "x.fmp", "--cut", 4)
    with pytest.raises(ConversionError, match="no tensor or node 'nowhere'"):
        fedmote_package("import", model, "-o", tmp_path / "x.fmp", "--cut", "nowhere")
    assert not (tmp_path / "x.fmp").exists()


def test_last_layer_with_a_fused_clamp_is_no_head():
    graph = dense_tail(is_plain=False)
    with pytest.raises(UnsupportedOpError, match="fused"):
        split(write(graph), "m.tflite")
    assert split(write(graph), "m.tflite", classes=3).head[0].outputs == 3


def test_last_two_dense_layers_become_a_head_with_a_hidden_relu(reference_models, tmp_path, capsys):
    model, target = reference_models / "ad01_int8.tflite", tmp_path / "ad.fmp"
    assert fedmote_package("import", model, "-o", target, "--head-layers", 2) == 0
    assert "128 -> 128, was dequantized" in capsys.readouterr().err
    package, graph = Package.read(target), read(model.read_bytes(), "ad01", is_softmax_dropped=False)
    assert package.head_shape == HeadShape(128, 128, 640)
    x = random_samples(graph, 20, 1)
    encoder = cut_graph(graph, graph.ops[-2].inputs[0])
    features = run_int8(encoder, x).reshape(20, -1)
    expected = dequantize_values(graph.activations[graph.output], run_int8(graph, x)).reshape(20, -1)
    difference = np.abs(package.logits(dequantize_values(encoder.activations[encoder.output], features)) - expected)
    assert np.median(difference) < float(graph.activations[graph.output].quantization.scale[0])


def test_heads_of_two_layers_that_a_file_does_not_have_are_refused(reference_models, tmp_path):
    target = tmp_path / "x.fmp"
    with pytest.raises(ConversionError, match="leave `--head-layers 2` away"):
        fedmote_package("import", reference_models / "kws_ref_model.tflite", "-o", target, "--head-layers", 2)
    with pytest.raises(ConversionError, match="a head is two FULLY_CONNECTED"):
        fedmote_package("import", reference_models / "ad01_int8.tflite", "-o", target, "--head-layers", 2, "--cut", 4)
    for arguments in (("--head-layers", 3), ("--head-layers", 2, "--classes", 4)):
        with pytest.raises(ConversionError, match="1 or 2 layers"):
            fedmote_package("import", reference_models / "ad01_int8.tflite", "-o", target, *arguments)
    assert not target.exists()


def test_model_without_a_dense_layer_needs_classes():
    graph = next(g for g in map(random_int8_graph, range(100)) if g.ops[-1].kind is OpKind.MEAN)
    with pytest.raises(ConversionError, match="--classes N"):
        split(write(graph), "m.tflite")
    parts = split(write(graph), "m.tflite", classes=4)
    assert len(parts.encoder.ops) == len(graph.ops)


def test_cut_keeps_exactly_what_the_edge_needs():
    for seed in range(60):
        graph = random_int8_graph(seed)
        x = random_samples(graph, 2, seed)
        values = {}
        run_int8(graph, x, values.__setitem__)
        for op in graph.ops:
            np.testing.assert_array_equal(run_int8(cut_graph(graph, op.output), x), values[op.output])


def test_show_prints_sections_operators_and_costs_on_each_board(packages, tmp_path, capsys):
    path = tmp_path / "p.fmp"
    path.write_bytes(packages["posix"].to_bytes())
    assert fedmote_package("show", path) == 0
    text = capsys.readouterr().out
    for word in (
        "manifest",
        "host-manifest (host)",
        "DEPTHWISE_CONV_2D",
        "8x8x1",
        "stm32f405",
        "posix",
        packages["posix"].hash.hex(),
    ):
        assert word in text
    assert fedmote_package("show", path, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["device_bytes"] == len(packages["posix"].device_form())
    assert shown["macs"] == sum(op["units"] * op["unit_macs"] for op in shown["operators"] if op["constant_bytes"])
    needs = packages["posix"].cost_on(Board.load("stm32f405"))
    assert {"fits": True, **vars(needs)} in shown["boards"]
    assert shown["is_pushable"] is True


def test_verify_accepts_a_package_and_its_device_form_and_refuses_a_damaged_one(packages, tmp_path, capsys):
    path = tmp_path / "p.fmp"
    path.write_bytes(packages["posix"].to_bytes())
    assert fedmote_package("verify", path) == 0
    assert "compiles to this very plan" in capsys.readouterr().out
    path.write_bytes(packages["posix"].device_form())
    assert fedmote_package("verify", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["hash"] == packages["posix"].hash.hex()
    path.write_bytes(packages["posix"].to_bytes()[:-1])
    with pytest.raises(PackageError):
        fedmote_package("verify", path)


def test_paths_that_cannot_be_read_or_written_are_named(reference_models, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.tflite"):
        fedmote_package("import", tmp_path / "nothing.tflite", "-o", tmp_path / "x.fmp")
    with pytest.raises(ConfigError, match="nowhere"):
        fedmote_package("import", reference_models / "kws_ref_model.tflite", "-o", tmp_path / "nowhere" / "x.fmp")
    with pytest.raises(PackageError, match=r"nothing\.fmp"):
        fedmote_package("show", tmp_path / "nothing.fmp")


def test_help_of_every_part_has_an_example(capsys):
    for arguments in (["import", "--help"], ["show", "--help"], ["verify", "--help"]):
        with pytest.raises(SystemExit):
            fedmote_package(*arguments)
        assert "example" in capsys.readouterr().out


def test_imported_encoder_equals_the_file(reference_models, tmp_path):
    model = reference_models / "pretrainedResnet_quant.tflite"
    fedmote_package("import", model, "-o", tmp_path / "r.fmp")
    package = Package.read(tmp_path / "r.fmp")
    graph = read(model.read_bytes(), "r", is_softmax_dropped=True)
    x = random_samples(graph, 2, 5)
    blocks = []

    def keep(name, values):
        if name == package.manifest["cut"]:
            blocks.append(values)

    run_int8(graph, x, keep)
    np.testing.assert_array_equal(run_int8(package.graph, x), np.concatenate(blocks))


def test_a_signing_key_is_private_and_made_once(tmp_path, capsys):
    path = tmp_path / "signing.key"
    assert fedmote_package("key", path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"file": str(path), "verify_key": SigningKey.read(path).verify_key.hex()}
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="there is a key already"):
        fedmote_package("key", path)
    path.write_text("not a key\n")
    with pytest.raises(ConfigError, match="hexadecimal digits expected") as refused:
        SigningKey.read(path)
    assert "not a key" not in str(refused.value)
