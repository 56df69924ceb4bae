# SPDX-License-Identifier: Apache-2.0
"""What holds for every input of the host's decoders, drawn by hypothesis: round trips, refusals, and sealed conversations.

`test_fuzz_decoders.py` beside this asks whether damaged bytes do harm; this asks whether decoders say the right thing.
"""

from __future__ import annotations

import io

import cbor2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedmote.errors import RemoteWireError
from fedmote.wire.blobs import decode_head_update, decode_selected_samples, encode_head_update, encode_selected_samples
from fedmote.wire.cbor import Major, Reader
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.frame import Frame, FrameDecoder, cobs_decode, cobs_encode, encode_frame
from fedmote.wire.regions import identity_region, read_identity_region, read_samples_region, samples_region
from fedmote.wire.schema import FIELDS, LIMIT_MAP_DEPTH, MESSAGES, Channel, Kind, Status
from fedmote.wire.seal import BootEnd, EpochEnd, FixedKeys
from fedmote.wire.topics import parse, topic

EXAMPLES = settings(deadline=None, max_examples=80, derandomize=True)
LONGEST = 200  # bytes of a string that is drawn; the schema has bounds beyond any use of it here
KEY = bytes(range(32))
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=32)
KEYS = st.binary(min_size=32, max_size=32)


@st.composite
def value_of(draw, name: str):
    """A value that the schema allows a field."""
    rule = FIELDS[name]
    if rule.type is int:
        return draw(st.one_of(st.integers(rule.low, rule.high), st.sampled_from([rule.low, rule.high])))
    if rule.type is bytes:
        return draw(st.binary(min_size=rule.low, max_size=min(rule.high, max(rule.low, LONGEST))))
    text = draw(st.text(min_size=rule.low, max_size=rule.high))
    assume(rule.low <= len(text.encode(errors="replace")) <= rule.high)
    assume(text.isprintable())
    return text


@st.composite
def messages(draw):
    """Any message that the schema allows, with any choice of its optional fields."""
    kind = draw(st.sampled_from(list(Kind)))
    names = [name for name, is_required in MESSAGES[kind].items() if is_required or draw(st.booleans())]
    return Message(kind, {name: draw(value_of(name)) for name in names})


# ---- messages -------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(messages())
def test_a_message_comes_out_as_it_went_in_and_is_written_as_cbor_itself_writes_it(message):
    body = encode(message)
    assert decode(message.kind, body) == message
    assert body == cbor2.dumps({FIELDS[name].key: value for name, value in message.fields.items()}, canonical=True)


@EXAMPLES
@given(messages(), st.data())
def test_no_beginning_of_a_message_and_nothing_behind_it_is_a_message(message, data):
    body = encode(message)
    end = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(RemoteWireError) as told:
        decode(message.kind, body[:end])
    assert told.value.status is Status.TRUNCATED
    with pytest.raises(RemoteWireError) as told:
        decode(message.kind, body + data.draw(st.binary(min_size=1, max_size=8)))
    assert told.value.status is Status.TRAILING


def items(depth: int):
    """Any item that may stand in an extension, nested at most `depth` deep."""
    leaves = st.one_of(
        st.integers(-(2**64), 2**64 - 1), st.binary(max_size=30), st.text(max_size=10), st.booleans(), st.none(), st.floats()
    )
    inner = leaves
    for _ in range(depth):
        inner = st.one_of(leaves, st.lists(inner, max_size=3), st.dictionaries(st.integers(0, 99), inner, max_size=3))
    return inner


@EXAMPLES
@given(messages(), st.dictionaries(st.integers(1000, 2**64 - 1), items(LIMIT_MAP_DEPTH), max_size=3))
def test_whatever_a_newer_peer_adds_is_passed_over(message, extensions):
    pairs = {FIELDS[name].key: value for name, value in message.fields.items()} | extensions
    assert decode(message.kind, cbor2.dumps(pairs, canonical=True)) == message


@EXAMPLES
@given(st.sampled_from(list(Kind)), st.binary(max_size=80))
def test_bytes_that_are_taken_for_a_message_are_cbor_and_mean_what_cbor_says(kind, body):
    try:
        message = decode(kind, body)
    except RemoteWireError:
        return
    pairs = cbor2.loads(body)
    assert {FIELDS[name].key: value for name, value in message.fields.items()}.items() <= pairs.items()


@EXAMPLES
@given(st.binary(max_size=60))
def test_an_item_that_is_passed_over_ends_where_cbor_says(data):
    """The reader knows less than cbor2 (no indefinite lengths, a bound of the depth), and never something else."""
    reader, stream = Reader(data), io.BytesIO(data)
    try:
        reader.skip()
    except RemoteWireError:
        return
    try:
        cbor2.CBORDecoder(stream).decode()
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError):
        return  # a text that is not UTF-8, a tag with a meaning that does not fit: not looked into
    assert reader.position == stream.tell()


@EXAMPLES
@given(st.integers(0, 2**64 - 1), st.sampled_from([Major.UINT, Major.BYTES, Major.MAP]))
def test_every_number_has_one_form(value, major):
    sizes = [(24, 1), (25, 2), (26, 4), (27, 8)]
    taken = []
    if value < 24:
        taken.append(bytes([major << 5 | value]))
    taken += [bytes([major << 5 | short]) + value.to_bytes(size, "big") for short, size in sizes if value < 1 << 8 * size]
    reader = Reader(taken[0])
    assert reader.head() == (major, value)
    for longer in taken[1:]:
        with pytest.raises(RemoteWireError) as told:
            Reader(longer).head()
        assert told.value.status is Status.NOT_DETERMINISTIC


# ---- frames ---------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(st.binary(max_size=1200))
def test_cobs_has_no_zeros_adds_one_byte_in_254_and_comes_back(data):
    encoded = cobs_encode(data)
    assert 0 not in encoded
    assert len(encoded) <= len(data) + len(data) // 254 + 1
    assert cobs_decode(encoded) == data


@st.composite
def streams(draw):
    """Frames with noise between them, and where the stream is cut into reads."""
    frames = [
        Frame(draw(st.sampled_from(list(Channel))), draw(st.integers(0, 255)), number, draw(st.binary(max_size=300)))
        for number in range(draw(st.integers(1, 5)))
    ]
    noise = [draw(st.binary(max_size=20)).replace(b"\0", b"\1") for _ in frames]
    stream = b"".join((junk + b"\0" if junk else b"") + encode_frame(one) for junk, one in zip(noise, frames, strict=True))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reads = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    return frames, sum(bool(junk) for junk in noise), reads


@EXAMPLES
@given(streams())
def test_frames_come_out_of_a_stream_however_it_is_cut_and_noise_between_them_is_counted(drawn):
    frames, num_noise, reads = drawn
    decoder = FrameDecoder()
    assert [frame for read in reads for frame in decoder.feed(read)] == frames
    assert sum(decoder.errors.values()) == num_noise
    assert decoder.num_lost == 0


@EXAMPLES
@given(streams(), st.data())
def test_a_frame_that_one_bit_changed_does_not_come_out(drawn, data):
    frames, _, _ = drawn
    encoded = bytearray(encode_frame(frames[0]))
    at = data.draw(st.integers(0, len(encoded) - 2))
    encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    assert frames[0] not in FrameDecoder().feed(bytes(encoded))


# ---- regions and blobs ----------------------------------------------------------------------------------------------


@EXAMPLES
@given(st.data())
def test_an_identity_comes_out_of_its_region_whatever_lies_behind_and_no_changed_bit_is_missed(data):
    draw = data.draw
    fields = {
        "id": draw(NAMES), "site": draw(NAMES), "link": draw(st.sampled_from(["serial", "mqtt"])),
        "username": draw(NAMES), "password": draw(st.text("aZ09_-.", max_size=64)), "is_sending_samples": draw(st.booleans()),
        "keep_alive_s": draw(st.integers(0, 0xFFFF)), "verify_key": draw(st.none() | KEYS),
    }  # fmt: skip
    if draw(st.booleans()):
        fields |= {"key": draw(KEYS), "cell_key": draw(st.none() | KEYS)}
    region = identity_region(**fields)
    identity = read_identity_region(region + draw(st.binary(max_size=20)))
    assert {name: getattr(identity, name) for name in fields} == fields
    damaged = bytearray(region)
    damaged[draw(st.integers(0, len(region) - 1))] ^= 1 << draw(st.integers(0, 7))
    with pytest.raises(RemoteWireError):
        read_identity_region(bytes(damaged))


@EXAMPLES
@given(st.integers(0, 20), st.integers(1, 40), st.integers(0, 2**32 - 1), st.binary(max_size=9))
def test_samples_come_out_of_their_region_whatever_lies_behind(count, width, seed, behind):
    draw = np.random.default_rng(seed)
    x, y = draw.integers(-128, 128, (count, width), np.int8), draw.integers(0, 256, count)
    read_x, read_y = read_samples_region(samples_region(x, y) + behind)
    assert np.array_equal(read_x, x)
    assert np.array_equal(read_y, y)


@EXAMPLES
@given(st.lists(st.floats(width=32), min_size=1, max_size=60), st.data())
def test_a_head_update_comes_out_bit_by_bit_where_it_is_finite_and_has_as_many_parameters_as_it_must(values, data):
    delta = np.array(values, np.float32)
    blob = encode_head_update(delta)
    if np.isfinite(delta).all():
        assert decode_head_update(blob, len(values)).tobytes() == delta.tobytes()
    else:
        with pytest.raises(RemoteWireError) as told:
            decode_head_update(blob, len(values))
        assert told.value.status is Status.UPDATE_NOT_FINITE
    with pytest.raises(RemoteWireError) as told:
        decode_head_update(blob, data.draw(st.integers(0, 100).filter(lambda number: number != len(values))))
    assert told.value.status is Status.UPDATE_SHAPE
    with pytest.raises(RemoteWireError):
        decode_head_update(blob[: data.draw(st.integers(0, len(blob) - 1))], len(values))


@EXAMPLES
@given(st.integers(0, 12), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_selected_samples_come_out_as_they_went_in(count, width, seed):
    draw = np.random.default_rng(seed)
    index, label, epochs = (draw.integers(0, 2**32, count, np.uint32) for _ in range(3))
    x = draw.integers(-128, 128, (count, width), np.int8)
    selected = decode_selected_samples(encode_selected_samples(index, label, epochs, x), width)
    for found, expected in zip(selected, (index, label, epochs, x), strict=True):
        assert np.array_equal(found, expected)


# ---- topics ---------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(NAMES, NAMES, st.sampled_from(["up", "dn"]), st.sampled_from(list(Kind)), st.sampled_from(list(Channel)))
def test_a_topic_says_who_which_way_on_which_channel_and_what(site, id, direction, kind, channel):
    address = parse(topic(site, id, direction, kind, channel))
    assert (address.site, address.id, address.direction, address.channel) == (site, id, direction, channel)
    assert address.known_kind is kind


@EXAMPLES
@given(st.text(max_size=40), st.text(alphabet="/cellupdn-a1#+", max_size=40))
def test_a_topic_that_is_taken_is_the_one_that_its_parts_make(text, other):
    for candidate in (text, other, f"fedmote/1/{text}", f"fedmote/1/{other}"):
        if (address := parse(candidate)) is not None and address.known_kind is not None:
            assert topic(address.site, address.id, address.direction, address.known_kind, address.channel) == candidate


# ---- sealed conversations -------------------------------------------------------------------------------------------


@EXAMPLES
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([Kind.HELLO, Kind.GET, Kind.REPORT]), st.binary(max_size=40)), max_size=25),
    st.lists(st.integers(0, 10**6), max_size=60),
)
def test_of_messages_that_are_lost_doubled_and_swapped_each_is_taken_once_at_most_and_is_what_was_said(said, order):
    """Both ways at once; the network delivers copies of what was said in any order, as often as it likes."""
    coordinator = EpochEnd(Channel.COORDINATOR, FixedKeys({"board-1": KEY}), 7, lambda: 0.0)
    board = BootEnd("board-1", Channel.COORDINATOR, KEY, 1)
    greeting = coordinator.open("board-1", Kind.HELLO, board.seal("board-1", Kind.HELLO, b"hello"))
    board.open("board-1", Kind.WAIT, greeting.challenge)
    coordinator.open("board-1", Kind.HELLO, board.seal("board-1", Kind.HELLO, b"hello"))
    network = []
    for is_up, kind, payload in said:
        end = board if is_up else coordinator
        network.append((is_up, kind, payload, end.seal("board-1", kind, payload)))
    taken = set()
    for pick in order if network else ():
        number = pick % len(network)
        is_up, kind, payload, body = network[number]
        end = coordinator if is_up else board
        try:
            opened = end.open("board-1", kind, body)
        except RemoteWireError as error:
            assert error.status is Status.REPLAY
            continue
        if opened.is_fresh:
            assert number not in taken
            taken.add(number)
        assert opened.payload == payload


@EXAMPLES
@given(st.binary(max_size=60), st.sampled_from([Kind.HELLO, Kind.GET]), st.data())
def test_no_changed_byte_of_a_sealed_body_is_believed_and_nobody_else_may_say_it(payload, kind, data):
    coordinator = EpochEnd(Channel.COORDINATOR, FixedKeys({"board-1": KEY, "board-2": KEY[::-1]}), 7, lambda: 0.0)
    body = BootEnd("board-1", Channel.COORDINATOR, KEY, 1).seal("board-1", kind, payload)
    damaged = bytearray(body)
    damaged[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    other = Kind.GET if kind is Kind.HELLO else Kind.HELLO
    for id, as_kind, sealed in (("board-1", kind, bytes(damaged)), ("board-2", kind, body), ("board-1", other, body)):
        with pytest.raises(RemoteWireError) as told:
            coordinator.open(id, as_kind, sealed)
        assert told.value.status is Status.AUTH
    assert coordinator.open("board-1", kind, body).payload == payload
