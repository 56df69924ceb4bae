# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from fedmote.errors import ConfigError
from fedmote.package.quantize import quantize_input
from fedmote_hil.samples import board_samples, load_data

from .rig import small_package


def test_int8_samples_are_taken_as_they_are():
    x = np.arange(-128, 128, dtype=np.int8).reshape(8, 4, 8)
    assert np.array_equal(board_samples(x, None), x.reshape(8, 32))


def test_floats_without_a_package_are_refused():
    with pytest.raises(ConfigError, match="a package is needed"):
        board_samples(np.zeros((2, 3), np.float32), None)


def test_floats_become_the_quantized_input_of_the_package():
    package = small_package(3, "posix")
    graph = package.graph
    x = np.random.default_rng(3).normal(size=(5, *graph.activations[graph.input].shape[1:])).astype(np.float32)
    assert np.array_equal(board_samples(x, package), quantize_input(graph, x).reshape(5, -1))


def test_samples_of_another_size_are_refused():
    package = small_package(3, "posix")
    with pytest.raises(ConfigError, match="the package's input"):
        board_samples(np.zeros((2, 3), np.int8), package)


def test_data_whose_labels_do_not_match_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((3, 2)), y=np.zeros(2, np.int64))
    with pytest.raises(ConfigError, match="do not match"):
        load_data(path)
