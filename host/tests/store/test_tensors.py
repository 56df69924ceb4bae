# SPDX-License-Identifier: Apache-2.0
"""Tensor files: one content, one sequence of bytes, read by somebody else's library."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from fedmote.errors import ConfigError
from fedmote.tensors import checksum, dump_safetensors, finite_complaint, load_metadata, load_safetensors, shape_complaint

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(2.5, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
}


def test_the_library_reads_what_we_write():
    read = load(dump_safetensors(TENSORS, {"version": "3"}))
    assert set(read) == set(TENSORS)
    for name, values in TENSORS.items():
        assert read[name].shape == values.shape
        np.testing.assert_array_equal(read[name], values)


def test_bytes_do_not_depend_on_insertion_order():
    turned = dict(reversed(TENSORS.items()))
    assert dump_safetensors(TENSORS, {"x": "1", "y": "2"}) == dump_safetensors(turned, {"y": "2", "x": "1"})
    assert checksum(TENSORS) == checksum(turned)


def test_tensors_and_metadata_survive_a_round_trip_through_a_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(dump_safetensors(TENSORS, {"name": "größe"}))
    read = load_safetensors(path)
    assert dump_safetensors(read) == dump_safetensors(TENSORS)
    assert load_metadata(path) == {"name": "größe"}
    read["b"][0, 0] = 7.0  # the arrays own their memory


def test_every_cut_of_a_file_is_refused():
    blob = dump_safetensors(TENSORS)
    for length in range(len(blob)):
        with pytest.raises(ConfigError):
            load_safetensors(blob[:length])


def test_other_types_are_refused_by_name():
    with pytest.raises(ConfigError, match="tensor x is F64"):
        load_safetensors(save({"x": np.zeros(2)}))


def test_missing_files_are_refused_by_path(tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        load_safetensors(tmp_path / "absent")


def test_complaints_name_the_tensor():
    assert shape_complaint({"b": np.zeros((3, 2), np.float32)}, TENSORS) == "tensor b has shape (3, 2), expected (2, 3)"
    assert shape_complaint({"c": np.zeros(1, np.float32)}, TENSORS) == "tensor c is unknown"
    assert shape_complaint({"b": TENSORS["b"]}, TENSORS) is None
    assert finite_complaint({"b": np.array([1, np.nan], np.float32)}) == "tensor b is not finite"
    assert finite_complaint(TENSORS) is None
