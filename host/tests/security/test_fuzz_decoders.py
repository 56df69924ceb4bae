# SPDX-License-Identifier: Apache-2.0
"""Every decoder of the host is given sound input that was damaged, with its checksums made good again.

Only the error that it documents comes out, in bounded time, and what it allocates is bounded by what it was given. `make test`
does a hundred of each, `make test-all` ten thousand. The damage is drawn here and not by hypothesis, which takes a hundred times
as long for each.
"""

from __future__ import annotations

import itertools
import json
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedmote.config import CoordinatorConfig, Credentials, PartnerConfig, PartnerCredentials, load
from fedmote.errors import ConfigError, ConversionError, PackageError, RemoteWireError
from fedmote.fleet import Registry
from fedmote.fleet.backup import export_fleet, import_fleet
from fedmote.fleet.enrolment import Enrolment
from fedmote.fleet.registry import Group, GroupMember
from fedmote.package import tflite_reader, tflite_writer
from fedmote.package.boards import Board
from fedmote.package.container import HEADER_BYTES, seal
from fedmote.package.difference import HEADER, apply_difference, make_difference
from fedmote.package.file import Package, build_package
from fedmote.package.graph import HeadLayer
from fedmote.package.specimen import random_int8_graph
from fedmote.private_files import write_private
from fedmote.strategies.f32 import Float32
from fedmote.strategies.seams import ModelShape
from fedmote.tensors import dump_safetensors, load_metadata, load_safetensors
from fedmote.wire.blobs import (
    decode_head_update,
    decode_masked_update,
    decode_selected_samples,
    encode_head_update,
    encode_masked_update,
    encode_selected_samples,
)
from fedmote.wire.cbor import Reader
from fedmote.wire.codec import Message, decode, encode
from fedmote.wire.frame import Frame, FrameDecoder, decode_frame, encode_frame
from fedmote.wire.masking import Keys, Membership, Peer, Ring, Word, peers_blob, read_peers, read_shares, shares_blob
from fedmote.wire.regions import identity_region, read_identity_region, read_samples_region, samples_region
from fedmote.wire.schema import Channel, Kind, Role
from fedmote.wire.seal import EpochEnd, FixedKeys
from fedmote.wire.topics import parse, topic

SEED = 20261124
FEW, MANY = 100, 10_000
LIMIT_S = 2.0  # of one input, in CPU time: a hang, not a slow machine
OVERHEAD_BYTES, FACTOR = 4 << 20, 64  # what a decoder may hold: so much, and so many bytes for each that it was given
GRAPH_SEED = 1647
FULL_VALUE_BYTES = 4 * (6 + 3 + 2)
KEY = bytes(range(32))
TFLITE_ERRORS = (PackageError, ConversionError)
LAYER = HeadLayer("h", "b", 6, 1)
RING = Ring.of(8)
MEMBERSHIP = Membership(bytes(8), 3, RING, KEY, dict.fromkeys(RING.neighbours(3), KEY))
MODEL = ModelShape(
    {"h": np.zeros((1, 6), np.float32), "b": np.zeros(1, np.float32), "c": np.zeros(3, np.float32)}, (LAYER,), {"x": (0, 1)}
)


@dataclass(frozen=True)
class Subject:
    """A decoder.

    Attributes:
        samples: sound inputs.
        call: decodes.
        error: what it may raise.
        mend: makes the checksums of a damaged input good, so that it gets past them.
    """

    samples: list[bytes]
    call: Callable[[bytes], object]
    error: type[Exception] | tuple[type[Exception], ...]
    mend: Callable[[bytes], bytes] = field(default=lambda data: data)


def mended_package(data: bytes) -> bytes:
    if len(data) < HEADER_BYTES:
        return data
    (count,) = struct.unpack_from("<H", data, 6)
    return seal(data[HEADER_BYTES:], count)


def mended_difference(data: bytes) -> bytes:
    if len(data) < HEADER.size:
        return data
    head = data[:8] + struct.pack("<I", len(data))
    return head + struct.pack("<I", zlib.crc32(data[16:], zlib.crc32(head))) + data[16:]


def mended_region(head_bytes: int) -> Callable[[bytes], bytes]:
    def mend(data: bytes) -> bytes:
        if len(data) < head_bytes:
            return data
        if data[:4] == b"FMID":
            data = data[:4] + struct.pack("<I", len(data) - head_bytes) + data[8:]
        return data[: head_bytes - 4] + struct.pack("<I", zlib.crc32(data[head_bytes:])) + data[head_bytes:]

    return mend


def mended_safetensors(data: bytes) -> bytes:
    """With the length of the header so that the values are as many as they were."""
    return struct.pack("<Q", max(0, len(data) - 8 - FULL_VALUE_BYTES)) + data[8:]


def package_bytes(version: int) -> bytes:
    graph = random_int8_graph(GRAPH_SEED)
    features = int(np.prod(graph.activations[graph.output].shape))
    head = {"weight": np.full((3, features), version, np.float32), "bias": np.zeros(3, np.float32)}
    layers = [HeadLayer("weight", "bias", features, 3)]
    return build_package(None, graph, layers, head, {}, Board.load("posix"), "specimen", version).to_bytes()


def open_sealed(data: bytes) -> object:
    end = EpochEnd(Channel.COORDINATOR, FixedKeys({"board-1": KEY}), 7, lambda: 0.0)
    return end.open("board-1", data[0] if data else 0, data[1:])


def read_frames(data: bytes) -> None:
    decoder = FrameDecoder()
    for start in range(0, len(data), 7):
        decoder.feed(data[start : start + 7])


def sound_messages() -> list[bytes]:
    hello = Message.of(Kind.HELLO, device="d", role=Role.DEVICE, boot=1, protocol=1, board="posix", sdk="0", max_body=529)
    messages = [hello, Message.of(Kind.WAIT, wait_ms=500), Message.of(Kind.GET, handle=1, offset=0, chunk=64, mask=1)]
    return [bytes([message.kind]) + encode(message) for message in messages]


def file_subject(directory: Path, name: str, text: str, kind: type) -> Subject:
    path = directory / name
    write_private(path, text)

    def call(data: bytes) -> object:
        path.write_bytes(data)  # its mode stays
        return load(kind, path)

    return Subject([text.encode()], call, ConfigError)


CREDENTIALS = f'id = "a"\nsite = "lab"\nusername = "a"\npassword = "p"\nkey = "{KEY.hex()}"\nkeep_alive_s = 30\n'
PARTNER_CREDENTIALS = f'id = "a"\nsite = "lab"\nkey = "{KEY.hex()}"\n[[cell_keys]]\nid = "b"\nkey = "{KEY.hex()}"\n'
PARTNER = """
id = "p"
site = "lab"
model = "m:f"
state_directory = "s"
coordinator = "tcp://127.0.0.1:1"
[[devices]]
id = "b"
link = "serial"
port = "x"
"""
COORDINATOR = """
listen = "tcp://127.0.0.1:0"
[run]
site = "lab"
name = "n"
state_directory = "s"
partition_directory = "."
[strategy]
alpha = 1.5
[[cells]]
name = "a"
devices = ["a"]
"""


def fleet_subject(directory: Path) -> Subject:
    with Registry.open(directory / "fleet", is_made=True) as registry:
        for id in "abcdefghi":
            registry.add(id, Role.DEVICE, "desk")
        registry.revoke("b")
        members = tuple(GroupMember(id, number, KEY) for number, id in enumerate("acdefghi", start=1))
        registry.make_group(Group("street", bytes(8), RING, members))
        export_fleet(directory / "sound.json", registry, "lab", None)
    text = json.dumps(json.loads((directory / "sound.json").read_text())).encode()
    path, number = directory / "damaged.json", itertools.count()
    write_private(path, text)
    empty = [Registry.open(directory / "0", is_made=True)]

    def call(data: bytes) -> None:
        path.write_bytes(data)
        import_fleet(path, Enrolment(empty[0], "lab", None), "lab")
        empty[0].close()
        empty[0] = Registry.open(directory / f"next-{next(number)}", is_made=True)

    return Subject([text], call, ConfigError)


def subject(name: str, directory: Path) -> Subject:
    package = package_bytes(1)
    device, newer = Package.read(package).device_form(), Package.read(package_bytes(2)).device_form()
    full = dump_safetensors({"h": np.ones((1, 6)), "c": np.ones(3), "range/x": np.array([0, 1])}, {"a": "b"})
    update = encode_head_update(np.arange(7, dtype=np.float32))
    column = np.arange(3, dtype=np.uint32)
    samples = encode_selected_samples(column, column, column, np.ones((3, 5), np.int8))
    identities = [
        identity_region("a", "lab", "mqtt", "a", "p", True, 30, KEY, KEY, group_key=group)
        for group in (None, MEMBERSHIP.to_bytes())
    ]
    keys = Keys(3, bytes(8), KEY, KEY, 7 * (bytes(80),)).to_bytes()
    frames = [encode_frame(Frame(channel, 1, 2, b"body\0" * 9)) for channel in Channel]
    subjects: dict[str, Callable[[], Subject]] = {
        "frame": lambda: Subject([one[:-1] for one in frames], decode_frame, RemoteWireError),
        "stream of frames": lambda: Subject([b"".join(frames)], read_frames, ()),
        "message": lambda: Subject(sound_messages(), lambda data: decode(data[0] if data else 0, data[1:]), RemoteWireError),
        "sealed message": lambda: Subject([b"\1" + bytes(60)], open_sealed, RemoteWireError),
        "cbor": lambda: Subject([update, b"\xa1\x01\x82\x18\x64\x63abc"], lambda data: Reader(data).skip(), RemoteWireError),
        "head update": lambda: Subject([update], decode_head_update, RemoteWireError),
        "selected samples": lambda: Subject([samples], decode_selected_samples, RemoteWireError),
        "masked update": lambda: Subject(
            [encode_masked_update(column)], lambda data: decode_masked_update(data, 3), RemoteWireError
        ),
        "keys of a masked sum": lambda: Subject([keys], lambda data: Keys.read(data, RING, 3), RemoteWireError),
        "peers of a masked sum": lambda: Subject(
            [peers_blob((None, *6 * (Peer(KEY[:8], KEY, bytes(80)),)))], lambda data: read_peers(data, RING), RemoteWireError
        ),
        "shares of a masked sum": lambda: Subject(
            [shares_blob((None, *6 * (KEY,)))], lambda data: read_shares(data, RING), RemoteWireError
        ),
        "masking of a plan": lambda: Subject([Word(bytes(8), 0.5, 2, 3, (1, 2, 3)).to_bytes()], Word.read, RemoteWireError),
        "samples region": lambda: Subject(
            [samples_region(np.ones((3, 5), np.int8), np.arange(3))], read_samples_region, RemoteWireError, mended_region(16)
        ),
        "identity region": lambda: Subject(identities, read_identity_region, RemoteWireError, mended_region(12)),
        "package": lambda: Subject([package, device], Package.read, PackageError, mended_package),
        "what a package holds": lambda: Subject([package], read_all_of_package, PackageError, mended_package),
        "tflite": lambda: Subject(
            [tflite_writer.write(random_int8_graph(GRAPH_SEED))], lambda data: tflite_reader.read(data, "x"), TFLITE_ERRORS
        ),
        "difference": lambda: Subject(
            [make_difference(device, newer)], lambda data: apply_difference(device, data), PackageError, mended_difference
        ),
        "update of a device": lambda: Subject([update], lambda data: Float32().decode(Role.DEVICE, data, MODEL), RemoteWireError),
        "update of a partner": lambda: Subject(
            [full], lambda data: Float32().decode(Role.PARTNER, data, MODEL), RemoteWireError, mended_safetensors
        ),
        "safetensors": lambda: Subject([full], lambda data: load_safetensors(data), ConfigError),
        "metadata": lambda: Subject([full], load_metadata, ConfigError, mended_safetensors),
        "topic": lambda: Subject(
            [topic("lab", "a", "up", Kind.HELLO).encode(), b"fedmote/1/lab/a/cell/dn/get"],
            lambda data: parse(data.decode(errors="replace")),
            (),
        ),
        "credentials": lambda: file_subject(directory, "a.toml", CREDENTIALS, Credentials),
        "credentials of a partner": lambda: file_subject(directory, "p.toml", PARTNER_CREDENTIALS, PartnerCredentials),
        "coordinator.toml": lambda: file_subject(directory, "coordinator.toml", COORDINATOR, CoordinatorConfig),
        "partner.toml": lambda: file_subject(directory, "partner.toml", PARTNER, PartnerConfig),
        "fleet": lambda: fleet_subject(directory),
    }
    return subjects[name]()


def read_all_of_package(data: bytes) -> None:
    package = Package.read(data)
    if not package.is_device_form:
        assert package.host is not None


NAMES = [
    "frame",
    "stream of frames",
    "message",
    "sealed message",
    "cbor",
    "head update",
    "selected samples",
    "masked update",
    "keys of a masked sum",
    "peers of a masked sum",
    "shares of a masked sum",
    "masking of a plan",
    "samples region",
    "identity region",
    "package",
    "what a package holds",
    "tflite",
    "difference",
    "update of a device",
    "update of a partner",
    "safetensors",
    "metadata",
    "topic",
    "credentials",
    "credentials of a partner",
    "coordinator.toml",
    "partner.toml",
    "fleet",
]

EXTREMES = [b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x80" * 3, b"[" * 5000, b"\x81" * 5000, b"\x9f" * 900]


def damaged(data: bytes, generator: random.Random) -> bytes:
    """One to four changes, each at a place of its own."""
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(data) + 1)
        some = generator.choice(EXTREMES) if generator.random() < 0.2 else generator.randbytes(generator.randint(1, 8))
        match generator.randrange(6):
            case 0 if at < len(data):  # a bit
                data = data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :]
            case 1:  # other bytes
                data = data[:at] + some + data[at + len(some) :]
            case 2:  # bytes more
                data = data[:at] + some + data[at:]
            case 3:  # bytes less
                data = data[:at] + data[at + generator.randint(1, 40) :]
            case 4 if generator.random() < 0.2:  # an early end
                data = data[:at]
            case 5:  # a part of itself, elsewhere
                other = generator.randrange(len(data) + 1)
                data = data[:at] + data[other : other + 16] + data[at + 16 :]
    return data


def fuzz(name: str, directory: Path, num_inputs: int) -> None:
    one, generator, num_refused = subject(name, directory), random.Random(SEED), 0
    print(f"seed {SEED}, {num_inputs} inputs")
    tracemalloc.start(1)
    try:
        for number in range(num_inputs):
            data = one.mend(damaged(generator.choice(one.samples), generator))
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.process_time()
            try:
                one.call(data)
            except one.error:
                num_refused += 1
            except Exception as error:
                raise AssertionError(f"input {number}, {data[:200].hex()}") from error
            seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1] - before
            assert seconds < LIMIT_S, f"input {number}: {seconds} s for {len(data)} bytes, {data[:200].hex()}"
            assert peak < OVERHEAD_BYTES + FACTOR * len(data), f"input {number}: {peak} bytes for {len(data)}, {data[:200].hex()}"
    finally:
        tracemalloc.stop()
    print(f"{num_refused} refused")
    assert num_refused > num_inputs // 10 or not one.error, num_refused


@pytest.mark.parametrize("name", NAMES)
def test_sound_input_is_read(name, tmp_path):
    """Otherwise nothing would be damaged."""
    one = subject(name, tmp_path)
    for sample in one.samples:
        if name != "sealed message":
            one.call(one.mend(sample))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_input_raises_what_is_documented_and_nothing_else(name, tmp_path):
    fuzz(name, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_damaged_inputs_raise_what_is_documented_and_nothing_else(name, tmp_path):
    fuzz(name, tmp_path, MANY)
