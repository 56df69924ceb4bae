# SPDX-License-Identifier: Apache-2.0
"""Users' array files: whatever is done to them, they are read or refused in one sentence."""

import io
import zipfile

import numpy as np
import pytest

from fedmote.arrays import load_npy, load_npz
from fedmote.errors import ConfigError


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


GOOD = npz(x=np.arange(64, dtype=np.float32).reshape(8, 8), y=np.arange(8))


def test_required_and_optional_arrays_are_read_and_others_are_not(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz(x=np.ones((2, 3)), y=np.zeros(2), subject=np.arange(2), more=np.zeros(9)))
    assert sorted(load_npz(tmp_path / "a.npz", optional=("subject", "writer"))) == ["subject", "x", "y"]


def test_missing_key_is_named_with_what_is_there_and_what_was_expected(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz(x=np.ones((2, 3)), label=np.zeros(2)))
    with pytest.raises(
        ConfigError, match=r"--data .*a\.npz: key 'y' is missing, it holds label, x; expected a \.npz file with x"
    ):
        load_npz(tmp_path / "a.npz", origin="--data")


@pytest.mark.parametrize("at", range(len(GOOD)))
def test_file_that_ends_too_early_or_has_a_wrong_byte_is_read_or_refused(at, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(GOOD[:at])
    with pytest.raises(ConfigError, match=r"a\.npz: .*expected"):
        load_npz(path)
    path.write_bytes(GOOD[:at] + bytes([GOOD[at] ^ 0xFF]) + GOOD[at + 1 :])
    try:
        assert sorted(load_npz(path)) == ["x", "y"]
    except ConfigError as error:
        assert "expected" in str(error)


def test_array_that_claims_more_than_the_memory_holds_is_refused(tmp_path):
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,)}".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", header)
    for load, name in ((load_npy, "a.npy"), (lambda path: load_npz(path, ("x",)), "a.npz")):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(tmp_path / name)


def test_objects_are_refused_since_reading_them_would_run_them(tmp_path):
    np.save(tmp_path / "a.npy", np.array([object()]))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("load", [load_npy, load_npz])
def test_other_files_directories_and_nothing_at_all_are_refused(load, tmp_path):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    for name, words in (
        ("text", "begins with"),
        ("empty", "begins with b''"),
        ("absent", "No such file"),
        (".", "Is a directory"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(tmp_path / name)
