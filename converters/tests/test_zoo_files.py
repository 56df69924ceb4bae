# SPDX-License-Identifier: Apache-2.0
"""Every model of the zoo becomes a file that interpreters of others run and viewers open; the device's C computes its bytes."""

import numpy as np
import pytest

from fedmote.lab.zoo.zoo import ZOO
from fedmote.package.execute import run_int8
from fedmote.package.quantize import quantize_values
from fedmote_convert.bench.boards import roomy_board
from fedmote_convert.bench.files import read_content
from fedmote_convert.bench.interpreters import oracles_missing, run_device, run_litert, run_tflite_micro
from fedmote_convert.bench.measures import arranged, int8_inputs, largest_difference
from fedmote_convert.convert import convert

SHAPES = {
    "digits_cnn": (1, 8, 8),
    "har_cnn": (9, 128),
    "ds_cnn": (1, 49, 10),
    "resnet8": (3, 32, 32),
    "mobilenet_v1": (3, 96, 96),
    "mobilenet_v2": (3, 32, 32),
    "autoencoder": (640,),
}


@pytest.fixture(scope="module", params=ZOO, ids=lambda entry: entry.name)
def converted(request):
    """Of a model with the parameters that it begins with: its package, and int8 inputs, real and random."""
    if missing := oracles_missing():
        pytest.skip(missing)
    entry, seed = request.param, 11
    print("seed", seed)
    x = np.random.default_rng(seed).standard_normal((12, *SHAPES[entry.name])).astype(np.float32)
    package = convert(entry.build(), x, [roomy_board()], model_id=entry.name).package
    real = arranged(x, package.host.input_layout)
    graph = package.graph
    quantized = quantize_values(graph.activations[graph.input], real.reshape(len(x), *graph.activations[graph.input].shape[1:]))
    return package, int8_inputs(quantized, 6, 6)


def test_the_c_equals_tflite_micro_and_so_do_the_reference_kernels_of_litert(converted):
    package, x = converted
    expected = run_tflite_micro(package.encoder_tflite, x)

    assert largest_difference(run_device(package.encoder_tflite, x), expected) == 0
    assert largest_difference(run_int8(package.graph, x), expected) == 0
    assert largest_difference(run_litert(package.encoder_tflite, x, is_reference=True), expected) == 0
    assert run_litert(package.encoder_tflite, x, is_reference=False).shape == expected.shape


def test_a_viewer_finds_names_shapes_and_the_schemas_version(converted):
    content = read_content(converted[0].encoder_tflite)

    names = [tensor.name for tensor in content.tensors]
    assert (content.identifier, content.version) == (b"TFL3", 3)
    assert all(names)
    assert len(set(names)) == len(names)
    assert all(tensor.shape is not None for tensor in content.tensors)
    assert all(tensor.shape and min(tensor.shape) > 0 for tensor in content.tensors if not tensor.is_constant)
    assert content.input.type == content.output.type == "INT8"


def test_operators_move_and_rescale_nothing(converted):
    content = read_content(converted[0].encoder_tflite)

    assert content.extra_operators == {}
