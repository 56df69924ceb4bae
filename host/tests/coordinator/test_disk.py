# SPDX-License-Identifier: Apache-2.0
"""The disk is full at every write in turn: one clear message, nothing damaged, and the run goes on when there is space."""

import errno
import os

import pytest

from fedmote.config import CellConfig
from fedmote.errors import StoreError

CELLS = (CellConfig("home-1", ("board-1",), "phone-1"),)


def full_at(monkeypatch, write):
    """From the n-th write of a file on, the disk is full; returns how many were asked for."""
    real, count = os.fsync, 0

    def fsync(descriptor):
        nonlocal count
        count += 1
        if write is not None and count >= write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda: count


def test_full_disk_at_every_write_stops_the_run_and_harms_nothing(site, monkeypatch):
    quiet = site("quiet", cells=CELLS)
    with monkeypatch.context() as patch:
        count = full_at(patch, None)
        quiet.serve()
        num_writes = count()
    expected = quiet.checkpoint_bytes()
    assert num_writes >= 8
    for write in range(1, num_writes + 1):
        one = site(f"full-{write}", cells=CELLS)
        with monkeypatch.context() as patch:
            full_at(patch, write)
            with pytest.raises(StoreError, match="disk is full"):
                one.serve()
        result = one.serve()
        assert result.is_complete
        assert one.checkpoint_bytes() == expected
        assert [entry.reported for entry in result.rounds] == [1, 1]


def test_damaged_blob_stops_a_merge_with_its_name_and_leaves_the_model(site):
    one = site(cells=CELLS, rounds=1)

    def damage(place):
        if place == "before CloseRound":
            for path in (one.config.run.state_directory / "blobs").iterdir():
                path.write_bytes(b"other")

    with pytest.raises(StoreError, match="damaged"):
        one.serve(passing=damage)
    assert list(one.checkpoint_bytes()) == ["checkpoint-000000.safetensors"]
