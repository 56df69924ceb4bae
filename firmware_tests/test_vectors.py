# SPDX-License-Identifier: Apache-2.0
"""The shared wire vectors against the SDK's decoders, and noise against its parsers, under AddressSanitizer and UBSan."""

import ctypes
import functools
import json
import subprocess
import sys
import zlib
from pathlib import Path

import cbor2
import pytest

from fedmote.wire.schema import FIELDS, MESSAGES, Kind, Status
from firmware_tests.device_bench import Identity, library
from firmware_tests.mask_reference import members_of
from firmware_tests.native import ROOT, SDK, compile_c

VECTORS = SDK / "protocol" / "vectors"
MESSAGES_FILE = json.loads((VECTORS / "messages.json").read_text(encoding="utf-8"))
FRAMES_FILE = json.loads((VECTORS / "frames.json").read_text(encoding="utf-8"))
STATUS_NAMES = {-int(status): status.name.lower().replace("_", "-") for status in Status}


@functools.cache
def harness() -> Path:
    sources = [Path(__file__).with_name("vectors_main.c"), *(
        SDK / "src" / f"{name}.c" for name in ("wire", "link", "serial", "mqtt", "schema", "crc32"))]  # fmt: skip
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    return compile_c("vectors_main", sources, flags)


def run(*arguments: str, lines: list[str] | None = None) -> list[str]:
    result = subprocess.run(
        [harness(), *arguments], input="".join(f"{line}\n" for line in lines or []), text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def decode_all(rows: list[dict]) -> list[str]:
    return run("messages", lines=[f"{row['kind']} {row['hex']}" for row in rows])


def expected_fields(row: dict) -> str:
    """The harness's notation of a good vector's fields."""
    texts = {name: value["hex"] if isinstance(value, dict) else value if isinstance(value, int) else value.encode().hex()
             for name, value in row["fields"].items()}  # fmt: skip
    return "".join(f" {FIELDS[name].key}={text}" for name, text in texts.items())


@functools.cache
def message_answers() -> list[str]:
    return decode_all(MESSAGES_FILE)


@pytest.mark.parametrize("number", range(len(MESSAGES_FILE)), ids=[row["name"] for row in MESSAGES_FILE])
def test_message_vector(number):
    row = MESSAGES_FILE[number]
    status, _, fields = message_answers()[number].partition(" ")
    assert STATUS_NAMES[int(status)] == row["status"]
    if row["status"] != "ok":
        return
    decoded, _, again = f" {fields}".partition(" | ")
    assert decoded.rstrip() == expected_fields(row)
    known = {
        FIELDS[name].key: bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
        for name, value in row["fields"].items()
    }
    assert again == cbor2.dumps(known, canonical=True).hex()  # also: no byte beyond any smaller capacity


@pytest.mark.parametrize("row", FRAMES_FILE, ids=lambda row: row["name"])
def test_frame_vector_in_pieces_of_any_size(row):
    [line] = run("frames", lines=[row["hex"]])
    answers = [answer.rstrip() for answer in line.split(";")]
    assert len(set(answers)) == 1
    status, *rest = answers[0].split(" ")
    assert STATUS_NAMES[int(status)] == row["status"]
    if row["status"] == "ok":
        assert rest == [str(row[name]) for name in ("channel", "kind", "sequence")] + ([row["body"]] if row["body"] else [])


def test_every_prefix_of_a_good_body_is_truncated_or_lacks_a_field():
    good = [row for row in MESSAGES_FILE if row["status"] == "ok"]
    rows = [{"kind": row["kind"], "hex": row["hex"][: 2 * size]} for row in good for size in range(len(row["hex"]) // 2)]
    assert {line.split()[0] for line in decode_all(rows)} == {str(-Status.TRUNCATED)}


def test_no_single_changed_byte_crashes_the_decoder():
    rows = []
    for row in MESSAGES_FILE:
        body = bytes.fromhex(row["hex"])
        for at in range(len(body)):
            changed = [body[:at] + bytes([body[at] ^ flip]) + body[at + 1 :] for flip in (1, 0x20, 0xFF)]
            rows += [{"kind": row["kind"], "hex": other.hex()} for other in changed]
    assert len(decode_all(rows)) == len(rows)


def test_good_vectors_follow_the_schema_as_zcbor_reads_it():
    """zcbor takes the fields of a map in the order of the schema, so they are put into it."""
    zcbor = pytest.importorskip("zcbor")
    schema = zcbor.DataTranslator.from_cddl((SDK / "protocol" / "fedmote.cddl").read_text(encoding="utf-8"), 16)
    count = 0
    for row in MESSAGES_FILE:
        content = cbor2.loads(bytes.fromhex(row["hex"])) if row["status"] == "ok" and "UTF-8" not in row["name"] else {}
        if len(content) != len(row.get("fields", [None] * 99)):
            continue  # a bad one, or one with extensions
        kind = Kind(row["kind"])
        ordered = {FIELDS[name].key: content[FIELDS[name].key] for name in MESSAGES[kind] if FIELDS[name].key in content}
        schema.my_types[f"{kind.name.lower()}-message"].validate_str(cbor2.dumps(ordered))
        count += 1
    assert count >= 18


def test_the_committed_vectors_are_what_the_generator_writes():
    subprocess.run([sys.executable, ROOT / "firmware_tests" / "generate_vectors.py", "--check"], check=True)


@pytest.mark.parametrize("link", ["serial", "mqtt"])
def test_noise_cannot_hurt_the_parser_of(link):
    for seed in range(4):
        [line] = run("noise", link, str(seed), "400000" if link == "mqtt" else "100000")
        counts = {name: int(value) for name, value in (part.split("=") for part in line.split())}
        assert min(counts["frames"], counts["errors"]) > 100, f"seed {seed}: {line}"  # good and bad ones were among them
        assert link == "serial" or counts["losses"] > 100, f"seed {seed}: {line}"


def region(body: bytes, magic: bytes = b"FMID", crc_xor: int = 0, size: int | None = None) -> bytes:
    length = len(body) if size is None else size
    return magic + length.to_bytes(4, "little") + (zlib.crc32(body) ^ crc_xor).to_bytes(4, "little") + body


IDENTITY = {1: "board-1", 2: "lab", 3: 1, 4: "user", 5: "p" * 64, 6: 1, 7: 20}


def read_identity(data: bytes) -> tuple[int, Identity, object]:
    identity, text = Identity(), ctypes.create_string_buffer(b"\x5a" * 200, 200)
    status = library().fedmote_identity_read(ctypes.byref(identity), text, data, ctypes.c_uint32(len(data)))
    assert text.raw[196:] == b"\x5a" * 4
    return status, identity, text


def test_an_identity_region_is_read():
    data = region(cbor2.dumps(IDENTITY)) + b"\xff" * 100
    status, identity, _text = read_identity(data)
    assert status == 0
    assert (identity.id, identity.site, identity.username, identity.password) == (b"board-1", b"lab", b"user", b"p" * 64)
    assert (identity.is_sending_samples, identity.keep_alive_s, identity.board) == (1, 20, None)


def test_the_keys_of_an_identity_are_read_where_they_are():
    key, cell_key = bytes(range(1, 33)), bytes(range(33, 65))
    for more in ({}, {8: key}, {8: key, 9: cell_key}):
        data = region(cbor2.dumps(IDENTITY | more))
        buffer = ctypes.create_string_buffer(data, len(data))
        identity, text = Identity(), ctypes.create_string_buffer(200)
        status = library().fedmote_identity_read(ctypes.byref(identity), text, buffer, ctypes.c_uint32(len(data)))
        assert status == 0
        for name, number in (("key", 8), ("cell_key", 9)):
            address = ctypes.c_void_p.from_buffer(identity, getattr(Identity, name).offset).value
            found = None if address is None else ctypes.string_at(address, 32)
            assert found == more.get(number)
            assert address is None or ctypes.addressof(buffer) <= address < ctypes.addressof(buffer) + len(data)


def test_the_longest_identity_fits_its_buffer():
    status, *_ = read_identity(region(cbor2.dumps({1: "i" * 32, 2: "s" * 32, 3: 0, 4: "u" * 64, 5: "p" * 64, 6: 0, 7: 65535})))
    assert status == 0


GROUP = members_of(9, 8, 5)[4].identity()
MASKED = {**dict.fromkeys((8, 9, 10), bytes(32)), 11: GROUP}


def test_the_group_of_an_identity_is_read_where_it_is():
    data = region(cbor2.dumps(IDENTITY | MASKED))
    buffer = ctypes.create_string_buffer(data, len(data))
    identity, text = Identity(), ctypes.create_string_buffer(200)
    assert library().fedmote_identity_read(ctypes.byref(identity), text, buffer, ctypes.c_uint32(len(data))) == 0
    address = ctypes.c_void_p.from_buffer(identity, Identity.masking.offset).value
    assert address == ctypes.addressof(buffer) + data.index(GROUP)


BAD_IDENTITIES = {
    "never flashed": (b"\xff" * 256, Status.MALFORMED),
    "short": (b"FMID", Status.TRUNCATED),
    "size beyond the region": (region(cbor2.dumps(IDENTITY), size=10_000), Status.TRUNCATED),
    "checksum": (region(cbor2.dumps(IDENTITY), crc_xor=1), Status.CRC),
    "no map": (region(b"\x80"), Status.MISSING_FIELD),
    "a key is missing": (region(cbor2.dumps({k: v for k, v in IDENTITY.items() if k != 4} | {9: 1})), Status.MISSING_FIELD),
    "type": (region(cbor2.dumps(IDENTITY | {1: 5})), Status.FIELD_TYPE),
    "link": (region(cbor2.dumps(IDENTITY | {3: 2})), Status.FIELD_RANGE),
    "id too long": (region(cbor2.dumps(IDENTITY | {1: "i" * 33})), Status.FIELD_RANGE),
    "key of 31 bytes": (region(cbor2.dumps(IDENTITY | {8: bytes(31)})), Status.FIELD_RANGE),
    "key that is a text": (region(cbor2.dumps(IDENTITY | {8: "k" * 32})), Status.FIELD_TYPE),
    "cell key without a key": (region(cbor2.dumps(IDENTITY | {9: bytes(32)})), Status.MISSING_FIELD),
    "cell key cut": (region(cbor2.dumps(IDENTITY | {8: bytes(32), 9: bytes(32)})[:-1]), Status.TRUNCATED),
    "more than it can have": (region(cbor2.dumps(IDENTITY | MASKED | {12: bytes(32)})), Status.MISSING_FIELD),
    "a group of one neighbour": (region(cbor2.dumps(IDENTITY | MASKED | {11: bytes(77)})), Status.FIELD_RANGE),
    "a group cut": (region(cbor2.dumps(IDENTITY | MASKED | {11: GROUP[:-1]})), Status.FIELD_RANGE),
    "a group of more neighbours than it says": (
        region(cbor2.dumps(IDENTITY | MASKED | {11: GROUP + bytes(33)})),
        Status.FIELD_RANGE,
    ),
    "text cut": (region(b"\xa7\x01\x67boa"), Status.TRUNCATED),
    "trailing": (region(cbor2.dumps(IDENTITY) + b"\0"), Status.TRAILING),
}


@pytest.mark.parametrize("name", BAD_IDENTITIES)
def test_an_identity_region_is_refused_for(name):
    data, status = BAD_IDENTITIES[name]
    assert read_identity(data)[0] == -status
