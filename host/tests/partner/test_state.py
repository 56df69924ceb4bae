# SPDX-License-Identifier: Apache-2.0
"""What a partner keeps over restarts, and for whom it is readable."""

import errno
import os
import stat

import numpy as np
import pytest

from fedmote.errors import ConfigError, StoreError
from fedmote.partner.session import Offer, Pending, blob_hash
from fedmote.partner.state import PartnerState
from fedmote.wire.blobs import encode_selected_samples
from fedmote.wire.codec import Message
from fedmote.wire.schema import Kind

RUN = b"run-0001"
NUMBERS = np.arange(2, dtype=np.uint32)
SAMPLES = encode_selected_samples(NUMBERS, NUMBERS, NUMBERS + 1, np.zeros((2, 4), np.int8))
REPORT = Message.of(Kind.REPORT, handle=7, run=RUN, round=3, size=4, crc=7, num_examples=2, version=2, attempt=1)


def test_everything_that_is_kept_is_there_after_a_restart(tmp_path):
    state = PartnerState(tmp_path / "state")
    offer, pending = Offer("device-a", RUN, 3, SAMPLES), Pending(REPORT, b"blob")
    state.keep_checkpoint(b"checkpoint")
    state.keep_offer(offer)
    state.keep_pending(pending)
    standing = PartnerState(tmp_path / "state").load()
    assert standing.checkpoint == (blob_hash(b"checkpoint"), b"checkpoint")
    assert standing.offers == {"device-a": offer}
    assert standing.pending == pending


def test_what_is_dropped_is_gone(tmp_path):
    state = PartnerState(tmp_path)
    state.keep_offer(Offer("device-a", RUN, 3, SAMPLES))
    state.keep_pending(Pending(REPORT, b"blob"))
    state.drop_offers(("device-a",))
    state.drop_pending()
    state.drop_pending()
    standing = state.load()
    assert not standing.offers
    assert standing.pending is None
    assert not list((tmp_path / "samples").iterdir())


def test_samples_are_readable_for_their_owner_alone(tmp_path):
    state = PartnerState(tmp_path / "state")
    state.keep_offer(Offer("device-a", RUN, 3, SAMPLES))
    for path in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_files_that_make_no_sense_are_as_if_they_were_not_there(tmp_path):
    state = PartnerState(tmp_path)
    (tmp_path / "update.pending").write_bytes(b"\x05\x00\x00\x00nonsense")
    (tmp_path / "samples" / "device-a.offer").write_bytes(b"short")
    standing = state.load()
    assert standing.pending is None
    assert not standing.offers


@pytest.mark.parametrize("length", range(0, 12 + len(SAMPLES), 5))
def test_half_a_file_of_samples_is_removed_and_not_trained_on(tmp_path, length):
    state = PartnerState(tmp_path)
    state.keep_offer(Offer("device-a", RUN, 3, SAMPLES))
    path = tmp_path / "samples" / "device-a.offer"
    path.write_bytes(path.read_bytes()[:length])
    assert not state.load().offers
    assert not path.exists()


def test_samples_that_a_killed_writer_left_behind_are_removed(tmp_path):
    PartnerState(tmp_path)
    litter = [tmp_path / "samples" / ".partial-x", tmp_path / ".partial-y"]
    for path in litter:
        path.write_bytes(b"half")
    PartnerState(tmp_path)
    assert not any(path.exists() for path in litter)


def test_full_disk_is_said_in_one_line_and_leaves_the_old_samples(tmp_path, monkeypatch):
    state = PartnerState(tmp_path)
    state.keep_offer(Offer("device-a", RUN, 3, SAMPLES))

    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="disk is full"):
        state.keep_offer(Offer("device-a", RUN, 4, SAMPLES))
    assert state.load().offers["device-a"].round == 3


def test_starts_rise_by_the_clock_and_without_it_and_outlive_a_lost_directory(tmp_path):
    state = PartnerState(tmp_path / "one")
    assert state.next_start(lambda: 1000.0) == (1000, 0)
    assert state.next_start(lambda: 1000.0) == (1001, 1000)
    assert PartnerState(tmp_path / "one").next_start(lambda: 5.0) == (1002, 1001)  # a clock that was set back
    assert PartnerState(tmp_path / "another").next_start(lambda: 2000.0) == (2000, 0)


def test_a_damaged_count_of_starts_is_named(tmp_path):
    state = PartnerState(tmp_path)
    for text in ("", "x", "-3", str(2**32)):
        (tmp_path / "starts").write_text(text)
        with pytest.raises(ConfigError, match=r"starts: .*number of the last start"):
            state.next_start()
