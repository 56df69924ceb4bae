# SPDX-License-Identifier: Apache-2.0
"""The vectors that the device's C passes too: both languages accept, refuse and write the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmote.errors import RemoteWireError
from fedmote.wire.cbor import Reader
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.frame import Frame, FrameDecoder, encode_frame
from fedmote.wire.schema import Channel, Kind, Status

VECTORS = Path(__file__).resolve().parents[3] / "device_sdk" / "protocol" / "vectors"
# A receiver accepts these, a sender writes the shorter form.
OTHER_FORMS = ("delimiters in front", "needless last group")


def rows(name: str) -> list:
    return [pytest.param(row, id=row["name"]) for row in json.loads((VECTORS / name).read_text(encoding="utf-8"))]


def status(name: str) -> Status:
    return Status[name.upper().replace("-", "_")]


@pytest.mark.parametrize("row", rows("messages.json"))
def test_a_message_vector_is_read_or_refused_as_the_device_does(row):
    body = bytes.fromhex(row["hex"])
    if row["status"] != "ok":
        with pytest.raises(RemoteWireError) as caught:
            decode(row["kind"], body)
        assert caught.value.status is status(row["status"])
        return
    fields = {name: bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for name, value in row["fields"].items()}
    expected = Message(Kind(row["kind"]), fields)
    assert decode(row["kind"], body) == expected
    if Reader(body).map_count() == len(fields):  # without extensions, which the expected message does not keep
        assert encode(expected) == body


@pytest.mark.parametrize("row", rows("frames.json"))
def test_a_frame_vector_is_read_or_refused_as_the_device_does(row):
    encoded = bytes.fromhex(row["hex"])
    decoder = FrameDecoder()
    frames = decoder.feed(encoded)
    if row["status"] != "ok":
        assert (frames, decoder.errors) == ([], {status(row["status"]): 1})
        return
    expected = Frame(Channel(row["channel"]), row["kind"], row["sequence"], bytes.fromhex(row["body"]))
    assert frames == [expected]
    if row["name"] not in OTHER_FORMS:
        assert encode_frame(expected) == encoded
