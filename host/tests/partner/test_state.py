# SPDX-License-Identifier: Apache-2.0
"""What a partner keeps over restarts, and for whom it is readable."""

import stat

from fedmote.partner.session import Offer, Pending, blob_hash
from fedmote.partner.state import PartnerState
from fedmote.wire.codec import Message
from fedmote.wire.schema import Kind

RUN = b"run-0001"
REPORT = Message.of(Kind.REPORT, handle=7, run=RUN, round=3, size=4, crc=7, num_examples=2, version=2, attempt=1)


def test_everything_that_is_kept_is_there_after_a_restart(tmp_path):
    state = PartnerState(tmp_path / "state")
    offer, pending = Offer("device-a", RUN, 3, b"samples"), Pending(REPORT, b"blob")
    state.keep_checkpoint(b"checkpoint")
    state.keep_offer(offer)
    state.keep_pending(pending)
    standing = PartnerState(tmp_path / "state").load()
    assert standing.checkpoint == (blob_hash(b"checkpoint"), b"checkpoint")
    assert standing.offers == {"device-a": offer}
    assert standing.pending == pending


def test_what_is_dropped_is_gone(tmp_path):
    state = PartnerState(tmp_path)
    state.keep_offer(Offer("device-a", RUN, 3, b"samples"))
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
    state.keep_offer(Offer("device-a", RUN, 3, b"samples"))
    for path in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_files_that_make_no_sense_are_as_if_they_were_not_there(tmp_path):
    state = PartnerState(tmp_path)
    (tmp_path / "update.pending").write_bytes(b"\x05\x00\x00\x00nonsense")
    (tmp_path / "samples" / "device-a.offer").write_bytes(b"short")
    standing = state.load()
    assert standing.pending is None
    assert not standing.offers
