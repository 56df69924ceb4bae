# SPDX-License-Identifier: Apache-2.0
"""Write the committed vectors: device_sdk/protocol/vectors/{messages,frames,differences,seal}.json.

Good bodies come from cbor2's canonical encoder and good frames from a COBS written here after its definition, so that the
expected bytes are nobody's own: neither the SDK's encoder nor the host's takes part. Bad ones are made by hand; each names the
status that SPEC.md, sections 1 and 2, asks for. Both languages read the same files.

    python firmware_tests/generate_vectors.py            # write
    python firmware_tests/generate_vectors.py --check    # fail where a committed file differs

messages.json  list of {name, kind, hex, status, fields}; status "ok" or the schema's name; fields (good ones): integers, texts,
               and byte strings as {"hex": ...}. Only fields that the kind lists appear: extensions are dropped.
frames.json    list of {name, hex, status, channel, kind, sequence, body}; hex ends with the delimiter; body is hex. A bad one
               has only name, hex and status.
differences.json  list of {name, base, difference, target, status}, bytes in hex; base and target are device forms. A bad one has
               no target. `decoder` is there where the device's decoder says something else: it looks at neither the checksum
               of the difference nor at what was made, which is then verified as any package is.
seal.json      list of {name, way, channel, kind, id, key, epoch, boot, sequence, payload, body, status}; key, payload and body
               are hex. A bad one, for who knows all of these but the body, has no payload. Where `seen` is there, this epoch and
               sequence were taken before.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import zlib
from pathlib import Path

import cbor2
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "device_sdk" / "protocol" / "vectors"
sys.path[:0] = [str(ROOT / "host"), str(ROOT)]

from fedmote.wire.schema import FIELDS, Kind  # noqa: E402
from firmware_tests import difference_builder  # noqa: E402
from firmware_tests.package_builder import HEAD, MANIFEST, PLAN, WEIGHTS, assemble  # noqa: E402

RUN = bytes.fromhex("0102030405060708")
HASH = bytes(range(32))

GOOD: list[tuple[str, Kind, dict[str, int | str | bytes]]] = [
    (
        "hello, required fields",
        Kind.HELLO,
        {
            "device": "board-1",
            "role": 1,
            "boot": 0xDEADBEEF,
            "protocol": 1,
            "board": "stm32f405",
            "sdk": "0.1.0",
            "max_body": 529,
        },
    ),
    (
        "hello, all fields",
        Kind.HELLO,
        {
            "device": "a" * 32,
            "role": 2,
            "boot": 0,
            "protocol": 255,
            "board": "b" * 32,
            "sdk": "s" * 64,
            "max_body": 65535,
            "run": RUN,
            "round": 7,
            "arena_bytes": 49152,
            "slot_bytes": 24576,
            "num_samples": 256,
            "model_hash": HASH,
            "frame_errors": 3,
            "difference_format": 255,
        },
    ),
    ("wait", Kind.WAIT, {"wait_ms": 1500}),
    ("wait, empty reason", Kind.WAIT, {"wait_ms": 0, "reason": ""}),
    ("wait, reason of two-byte letters", Kind.WAIT, {"wait_ms": 4294967295, "reason": "später"}),
    (
        "plan, required fields",
        Kind.PLAN,
        {
            "run": RUN,
            "round": 1,
            "phase": 3,
            "version": 0,
            "remaining_ms": 60000,
            "model_hash": HASH,
            "model_handle": 0x01020304,
            "model_size": 20480,
            "seed": 42,
            "epochs": 5,
            "batch": 16,
            "learning_rate_micro": 50000,
            "momentum_micro": 900000,
        },
    ),
    (
        "plan, all fields",
        Kind.PLAN,
        {
            "run": RUN,
            "round": 4294967295,
            "phase": 1,
            "version": 9,
            "remaining_ms": 0,
            "model_hash": HASH,
            "model_handle": 1,
            "model_size": 2,
            "seed": 3,
            "epochs": 32,
            "batch": 1024,
            "learning_rate_micro": 10000000,
            "momentum_micro": 999999,
            "attempt": 65535,
            "head_handle": 7,
            "head_size": 2600,
            "head_crc": 0xFFFFFFFF,
            "alpha_milli": 1000000,
            "beta_milli": 3000,
            "gamma_milli": 0,
            "gamma_order": 1,
            "gain_milli": 1000,
            "is_sending_samples": 1,
            "max_send": 64,
            "difference_handle": 0xFFFFFFFF,
            "difference_size": 9000,
        },
    ),
    ("get", Kind.GET, {"handle": 5, "offset": 16384, "chunk": 512, "mask": 0xFFFFFFFF}),
    ("data", Kind.DATA, {"handle": 5, "offset": 65536, "data": bytes(range(40))}),
    ("data, empty", Kind.DATA, {"handle": 0, "offset": 0, "data": b""}),
    ("data, 300 bytes", Kind.DATA, {"handle": 23, "offset": 24, "data": bytes(300)}),
    (
        "report, required fields",
        Kind.REPORT,
        {"handle": 1, "run": RUN, "round": 2, "size": 2611, "crc": 0x89ABCDEF, "num_examples": 100, "version": 4},
    ),
    (
        "report, all fields",
        Kind.REPORT,
        {
            "handle": 1,
            "run": RUN,
            "round": 2,
            "size": 2611,
            "crc": 0x89ABCDEF,
            "num_examples": 100,
            "version": 4,
            "attempt": 1,
            "discarded": 12,
            "trained": 500,
            "sent": 40,
            "loss_micro": 2302585,
            "loss_after_micro": 1000,
            "arena_used_bytes": 49152,
        },
    ),
    (
        "samples",
        Kind.SAMPLES,
        {"handle": 255, "run": RUN, "round": 256, "size": 65535, "crc": 65536, "count": 24, "input_bytes": 64},
    ),
    ("ack", Kind.ACK, {"handle": 1, "run": RUN, "round": 2}),
    ("refuse, status only", Kind.REFUSE, {"status": 30}),
    ("refuse, all fields", Kind.REFUSE, {"status": 255, "handle": 9, "run": RUN, "round": 3, "reason": "r" * 64}),
    ("state", Kind.STATE, {"boot": 1, "is_online": 0}),
    ("rekey", Kind.REKEY, {"secret": bytes(range(32))}),
]

# Extensions of a newer peer: (name, kind, hex, fields that remain).
EXTENDED: list[tuple[str, Kind, str, dict[str, int | str | bytes]]] = [
    ("unknown key behind", Kind.WAIT, "a2181805186301", {"wait_ms": 5}),
    ("unknown key with a 64-bit number", Kind.WAIT, "a21818051b000000010000000000", {"wait_ms": 5}),
    ("known key that the kind does not list", Kind.WAIT, "a20101181805", {"wait_ms": 5}),
    ("unlisted known key of another type", Kind.WAIT, "a20160181805", {"wait_ms": 5}),
    ("unknown key zero", Kind.WAIT, "a20020181805", {"wait_ms": 5}),
    ("unknown array, four deep", Kind.WAIT, "a21818051863818181" + "8101", {"wait_ms": 5}),
    (
        "unknown map, tags, text, bytes, floats",
        Kind.WAIT,
        "a6" + "181805" + "1863a20102206161" + "1864c11a00010000" + "1865f93c00" + "1866fb3ff0000000000000" + "1867f6",
        {"wait_ms": 5},
    ),
    ("unknown simple value of two bytes", Kind.WAIT, "a21818051863f820", {"wait_ms": 5}),
    ("unknown text that is no UTF-8", Kind.WAIT, "a2181805186361ff", {"wait_ms": 5}),
    ("three unknown array items of a map inside an array", Kind.WAIT, "a2181805186383a1018001" + "80", {"wait_ms": 5}),
]

BAD: list[tuple[str, int, str, str]] = [
    ("nothing", Kind.WAIT, "", "truncated"),
    ("map without its pair", Kind.WAIT, "a1", "truncated"),
    ("key without its value", Kind.WAIT, "a11818", "truncated"),
    ("key cut", Kind.WAIT, "a118", "truncated"),
    ("number cut", Kind.WAIT, "a118181a000000", "truncated"),
    ("text cut", Kind.WAIT, "a21818001835" + "6361", "truncated"),
    ("bytes longer than the body, and than their bound", Kind.ACK, "a301010658ff01", "truncated"),
    ("map of 2^64 - 1 pairs", Kind.WAIT, "bbffffffffffffffff", "truncated"),
    ("unknown array of 2^64 - 1 items", Kind.WAIT, "a218180518639bffffffffffffffff", "truncated"),
    ("unknown map of 2^63 pairs", Kind.WAIT, "a21818051863bb800000000000000000", "truncated"),
    ("unknown bytes of 2^64 - 1", Kind.WAIT, "a218180518635bffffffffffffffff", "truncated"),
    ("array in place of the map", Kind.WAIT, "820102", "malformed"),
    ("number in place of the map", Kind.WAIT, "00", "malformed"),
    ("map with reserved length", Kind.WAIT, "bc", "malformed"),
    ("text key", Kind.WAIT, "a1617800", "malformed"),
    ("negative key", Kind.WAIT, "a12000", "malformed"),
    ("number with reserved length", Kind.WAIT, "a118181c", "malformed"),
    ("number with indefinite length", Kind.WAIT, "a118181f", "malformed"),
    ("break as a value", Kind.WAIT, "a11818ff", "malformed"),
    ("reason that is no UTF-8", Kind.WAIT, "a2181800183561ff", "malformed"),
    ("reason with an overlong letter", Kind.WAIT, "a2181800183562c0af", "malformed"),
    ("reason with half a surrogate pair", Kind.WAIT, "a2181800183563eda080", "malformed"),
    ("reason with a letter beyond U+10FFFF", Kind.WAIT, "a2181800183564f4908080", "malformed"),
    ("reason with a cut letter", Kind.WAIT, "a2181800183561c3", "malformed"),
    ("unknown array, five deep", Kind.WAIT, "a2181805186381818181" + "8101", "malformed"),
    ("unknown tags, five deep", Kind.WAIT, "a21818051863c1c1c1c1c101", "malformed"),
    ("unknown simple value in the longer form", Kind.WAIT, "a21818051863f813", "malformed"),
    ("unknown value with reserved length", Kind.WAIT, "a21818051863fc", "malformed"),
    ("indefinite map", Kind.WAIT, "bf181805ff", "not-deterministic"),
    ("map length in the longer form", Kind.WAIT, "b801181805", "not-deterministic"),
    ("key in the longer form", Kind.WAIT, "a119001805", "not-deterministic"),
    ("number in the longer form, one byte", Kind.WAIT, "a118181805", "not-deterministic"),
    ("number in the longer form, two bytes", Kind.WAIT, "a118181900ff", "not-deterministic"),
    ("number in the longer form, four bytes", Kind.WAIT, "a118181a0000ffff", "not-deterministic"),
    ("number in the longer form, eight bytes", Kind.WAIT, "a118181b00000000ffffffff", "not-deterministic"),
    ("indefinite reason", Kind.WAIT, "a218180018357f6161ff", "not-deterministic"),
    ("keys descend", Kind.REFUSE, "a20701" + "0101", "not-deterministic"),
    ("a key comes back later", Kind.ACK, "a40101064801020304050607080702" + "0101", "not-deterministic"),
    ("unknown array in the longer form", Kind.WAIT, "a2181805186398" + "0101", "not-deterministic"),
    ("unknown indefinite array", Kind.WAIT, "a218180518639f01ff", "not-deterministic"),
    ("a key twice", Kind.WAIT, "a2181805181805", "duplicate-field"),
    ("unknown key twice", Kind.WAIT, "a31818051863011863" + "02", "duplicate-field"),
    ("one byte more", Kind.WAIT, "a118180500", "trailing"),
    ("another map behind", Kind.STATE, "a20f01183601a0", "trailing"),
    ("trailing wins over missing", Kind.STATE, "a10f0100", "trailing"),
    ("kind 0", 0, "a0", "unknown-kind"),
    ("kind 100", 100, "a0", "unknown-kind"),
    ("kind 255 with nonsense", 255, "ff", "unknown-kind"),
    ("empty map", Kind.WAIT, "a0", "missing-field"),
    ("state without is_online", Kind.STATE, "a10f01", "missing-field"),
    ("ack without round", Kind.ACK, "a20101" + "06480102030405060708", "missing-field"),
    ("text in place of a number", Kind.WAIT, "a118186135", "field-type"),
    ("negative number", Kind.WAIT, "a1181820", "field-type"),
    ("float in place of a number", Kind.WAIT, "a11818f93c00", "field-type"),
    ("tagged number", Kind.WAIT, "a11818c105", "field-type"),
    ("number in place of bytes", Kind.ACK, "a301010605" + "0702", "field-type"),
    ("text in place of bytes", Kind.ACK, "a30101066831323334353637380702", "field-type"),
    ("bytes in place of text", Kind.WAIT, "a21818001835" + "4161", "field-type"),
    ("type wins over a missing field", Kind.ACK, "a10160", "field-type"),
    ("status 0", Kind.REFUSE, "a10800", "field-range"),
    ("status 256", Kind.REFUSE, "a108190100", "field-range"),
    ("mask 0", Kind.GET, "a40105020004080500", "field-range"),
    ("chunk of 7 bytes", Kind.GET, "a40105020004070501", "field-range"),
    ("number of 33 bits", Kind.WAIT, "a118181b0000000100000000", "field-range"),
    ("run of 7 bytes", Kind.ACK, "a30101064701020304050607" + "0702", "field-range"),
    ("run of 9 bytes", Kind.ACK, "a3010106490102030405060708090702", "field-range"),
    ("reason of 65 bytes", Kind.WAIT, "a21818001835" + "7841" + "61" * 65, "field-range"),
    ("range wins over a missing field", Kind.STATE, "a1183602", "field-range"),
]


def cobs(raw: bytes) -> bytes:
    """Consistent Overhead Byte Stuffing (Cheshire and Baker, 1999), without the delimiter."""
    out = bytearray()
    for index, group in enumerate(groups := raw.split(b"\0")):
        while len(group) > 254 or (len(group) == 254 and index < len(groups) - 1):
            out += b"\xff" + group[:254]
            group = group[254:]
        out += b"\xff" + group if len(group) == 254 else bytes([len(group) + 1]) + group
    return bytes(out)


def frame(channel: int, kind: int, sequence: int, body: bytes, *, length: int | None = None, crc_xor: int = 0) -> bytes:
    """A frame as on the wire, optionally with a wrong length field or a wrong CRC."""
    raw = struct.pack("<BBHH", channel, kind, sequence, len(body) if length is None else length) + body
    return cobs(raw + struct.pack("<I", zlib.crc32(raw) ^ crc_xor)) + b"\0"


def describe(fields: dict[str, int | str | bytes]) -> dict[str, object]:
    """Fields as JSON, in key order."""
    ordered = sorted(fields.items(), key=lambda item: FIELDS[item[0]].key)
    return {name: {"hex": value.hex()} if isinstance(value, bytes) else value for name, value in ordered}


def messages() -> list[dict[str, object]]:
    """All message vectors."""
    rows: list[dict[str, object]] = []
    for name, kind, fields in GOOD:
        body = cbor2.dumps({FIELDS[key].key: value for key, value in fields.items()}, canonical=True)
        rows.append({"name": name, "kind": int(kind), "hex": body.hex(), "status": "ok", "fields": describe(fields)})
    for name, kind, text, fields in EXTENDED:
        cbor2.loads(bytes.fromhex(text)) if "no UTF-8" not in name else None
        rows.append({"name": name, "kind": int(kind), "hex": text, "status": "ok", "fields": describe(fields)})
    rows.extend({"name": name, "kind": int(kind), "hex": text, "status": status} for name, kind, text, status in BAD)
    return rows


def frames() -> list[dict[str, object]]:
    """All frame vectors."""
    rows: list[dict[str, object]] = []
    bodies = {
        "empty body": b"",
        "wait": bytes.fromhex("a1181805"),
        "zeros": bytes(20),
        "244 bytes without a zero, one full group": bytes([0x55]) * 244,
        "254 bytes without a zero": bytes([0xAA]) * 254,
        "255 bytes": bytes(range(1, 256)),
        "512 bytes": bytes(index * 7 & 0xFF for index in range(512)),
    }
    for sequence, (name, body) in enumerate(bodies.items(), 65533):
        number = sequence & 0xFFFF
        channel, kind = sequence % 2, 1 + sequence % 10
        good = frame(channel, kind, number, body)
        rows.append(
            {
                "name": name,
                "hex": good.hex(),
                "status": "ok",
                "channel": channel,
                "kind": kind,
                "sequence": number,
                "body": body.hex(),
            }
        )
    plain = frame(0, 2, 9, bytes.fromhex("a1181805"))
    expected = {"channel": 0, "kind": 2, "sequence": 9, "body": "a1181805"}
    rows.append(dict(name="delimiters in front", hex="000000" + plain.hex(), status="ok", **expected))
    # A frame whose last group is exactly full may end with a needless 0x01: older encoders do so.
    full = next(body for body in (bytes([0x33]) * n for n in range(200, 300)) if cobs_ends_full(body))
    long = frame(1, 3, 0x0101, full)
    rows.append(
        {
            "name": "needless last group",
            "hex": (long[:-1] + b"\x01\x00").hex(),
            "status": "ok",
            "channel": 1,
            "kind": 3,
            "sequence": 0x0101,
            "body": full.hex(),
        }
    )
    rows.append(
        {
            "name": "unknown kind passes the frame",
            "hex": frame(0, 200, 1, b"").hex(),
            "status": "ok",
            "channel": 0,
            "kind": 200,
            "sequence": 1,
            "body": "",
        }
    )
    raw = plain[:-1]
    bad = [
        ("group beyond the delimiter", raw[:-1] + b"\0", "frame-cobs"),
        ("only a code", b"\x05\x00", "frame-cobs"),
        ("noise", b"\x04\x11\x22\x00", "frame-cobs"),
        ("boot text", b"Hello, world\r\n\x00", "frame-cobs"),
        ("too short for a header", cobs(b"\x00\x02") + b"\0", "frame-length"),
        ("nine bytes", cobs(bytes(9)) + b"\0", "frame-length"),
        ("length field too small", frame(0, 2, 9, bytes.fromhex("a1181805"), length=3), "frame-length"),
        ("length field too large", frame(0, 2, 9, bytes.fromhex("a1181805"), length=5), "frame-length"),
        ("length wins over channel", frame(7, 2, 9, b"", length=1), "frame-length"),
        ("one bit of the CRC", frame(0, 2, 9, bytes.fromhex("a1181805"), crc_xor=1), "frame-crc"),
        ("CRC wins over channel", frame(2, 2, 9, b"", crc_xor=0x80000000), "frame-crc"),
        ("channel 2", frame(2, 2, 9, b"\xa0"), "frame-channel"),
        ("channel 255", frame(255, 2, 9, b"\xa0"), "frame-channel"),
    ]
    rows.extend({"name": name, "hex": data.hex(), "status": status} for name, data, status in bad)
    return rows


def cobs_ends_full(body: bytes) -> bool:
    """Whether the last group of that frame holds exactly 254 bytes."""
    raw = struct.pack("<BBHH", 1, 3, 0x0101, len(body)) + body
    last = (raw + struct.pack("<I", zlib.crc32(raw))).split(b"\0")[-1]
    return len(last) == 254


def small_package(weights: bytes, head: bytes = bytes(range(40)), manifest: bytes = b"\xa1\x01\x02") -> bytes:
    """A container whose plan no device would run: differences know nothing of what is inside."""
    return assemble([(MANIFEST, manifest), (PLAN, bytes(48)), (WEIGHTS, weights), (HEAD, head)])


def stepped(weights: bytes, largest: int) -> bytes:
    """Bytes that moved by up to so many steps, most of them less: x^2 spreads like the steps of training."""
    steps = [(index * index * 40503 >> 7) % (2 * largest + 1) - largest for index in range(len(weights))]
    return bytes(old + step * (index % 3 > 0) & 0xFF for index, (old, step) in enumerate(zip(weights, steps, strict=True)))


def differences() -> list[dict[str, object]]:
    """All difference vectors; good ones from the builder that shares no code with the host."""
    weights = bytes(index * 97 + (index >> 3) * 31 & 0xFF for index in range(240))
    base = small_package(weights)
    targets = {
        "nothing changed": small_package(weights),
        "one weight": small_package(weights[:100] + b"\x55" + weights[101:]),
        "small steps": small_package(stepped(weights, 1)),
        "larger steps": small_package(stepped(weights, 9)),
        "every magnitude": small_package(bytes(old + index & 0xFF for index, old in enumerate(weights))),
        "everything new": small_package(bytes(old ^ 0xA5 for old in reversed(weights))),
        "head": small_package(weights, bytes(range(3, 43))),
    }
    rows = [good_difference(name, base, target, [(len(target), 0)]) for name, target in targets.items()]
    longer = small_package(weights + bytes(range(50)), manifest=bytes([0xA1]) + bytes(20))
    shorter = small_package(weights[:100])
    for name, target in (("longer manifest and weights", longer), ("shorter weights", shorter)):
        rows.append(good_difference(name, base, target, _sections_against(base, target)))
    return rows + bad_differences(base, targets["small steps"])


def good_difference(name: str, base: bytes, target: bytes, segments: list[tuple[int, int]]) -> dict[str, object]:
    """A vector that both languages accept, and the host writes."""
    difference = difference_builder.wrap(base, target[16:48], len(target), difference_builder.encode(base, target, segments))
    return {"name": name, "base": base.hex(), "difference": difference.hex(), "target": target.hex(), "status": "ok"}


def _sections_against(base: bytes, target: bytes) -> list[tuple[int, int]]:
    """Each of the four sections of `target` against that of `base`; what has no counterpart against the base's beginning."""
    tables = [[struct.unpack_from("<4I", one, 48 + 16 * index)[1] for index in range(4)] for one in (base, target)]
    starts, ends = [0, *tables[1]], [*tables[1], len(target)]
    segments: list[tuple[int, int]] = []
    for start, end, source in zip(starts, ends, [0, *tables[0]], strict=True):
        length = min(end - start, len(base) - source)
        if segments and sum(segments[-1]) == source:
            segments[-1] = (segments[-1][0] + length, segments[-1][1])
        else:
            segments.append((length, source))
        if start + length < end:
            segments.append((end - start - length, 0))
    return segments


def sealed(way: int, channel: int, kind: int, id: str, epoch: int, boot: int, sequence: int, key: bytes, payload: bytes) -> bytes:
    """A sealed body, after SPEC.md, section 11, alone."""
    nonce = bytes([way, channel, 0, 0]) + struct.pack("<3I", epoch, boot, sequence) + bytes(8)
    header = bytes([1, kind, way, channel, len(id)]) + id.encode()
    counters = struct.pack("<2I", epoch if way else boot, sequence)
    if kind == Kind.HELLO:
        return payload + counters + crypto_aead_xchacha20poly1305_ietf_encrypt(b"", header + payload, nonce, key)
    both = crypto_aead_xchacha20poly1305_ietf_encrypt(payload, header, nonce, key)
    return both[:-16] + counters + both[-16:]


def seals() -> list[dict[str, object]]:
    """All vectors of sealed messages."""
    key, other = bytes(range(32)), bytes(range(1, 33))
    up, down = (0, 0, int(Kind.REPORT), "board-1", 7, 3, 41), (1, 0, int(Kind.WAIT), "board-1", 7, 3, 41)
    names = ("way", "channel", "kind", "id", "epoch", "boot", "sequence")
    wait = bytes.fromhex("a1181805")
    good = [
        ("report", up, bytes(range(90))),
        ("greeting", (0, 0, int(Kind.HELLO), "board-1", 0, 3, 0), bytes.fromhex("a10d67626f6172642d31")),
        ("hello in an epoch", (0, 0, int(Kind.HELLO), "b" * 32, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD), bytes.fromhex("a0")),
        ("samples of a cell", (0, 1, int(Kind.SAMPLES), "a", 0x01020304, 0x05060708, 0x090A0B0C), bytes(64)),
        ("no payload", (0, 1, int(Kind.DATA), "board-1", 1, 1, 1), b""),
        ("150 bytes", (0, 0, int(Kind.DATA), "board-1", 1, 1, 2), bytes(index * 7 & 0xFF for index in range(150))),
        ("wait", down, wait),
        ("answer in a cell", (1, 1, int(Kind.ACK), "board-1", 9, 1, 0), wait),
        ("unknown kind", (1, 0, 200, "board-1", 9, 1, 0), b"\xa0"),
        ("data for the smallest name", (1, 0, int(Kind.DATA), "a", 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD), bytes(150)),
    ]
    rows: list[dict[str, object]] = []
    for name, numbers, payload in good:
        body = sealed(*numbers, key, payload)
        about = dict(zip(names, numbers, strict=True))
        rows.append(dict(name=name, **about, key=key.hex(), payload=payload.hex(), body=body.hex(), status="ok"))
    body = sealed(*down, key, wait)
    bad: list[tuple[str, bytes]] = [
        ("another key", sealed(*down, other, wait)),
        ("reflected", sealed(0, *down[1:], key, wait)),
        ("of the other channel", sealed(1, 1, *down[2:], key, wait)),
        ("another kind", sealed(1, 0, int(Kind.PLAN), *down[3:], key, wait)),
        ("for another device", sealed(1, 0, down[2], "board-2", *down[4:], key, wait)),
        ("for another boot", sealed(*down[:5], 4, 41, key, wait)),
        ("not sealed", wait),
        ("not sealed, long enough", bytes(40)),
        ("nothing", b""),
        ("shorter than a trailer", body[-23:]),
        ("the trailer alone", body[-24:]),
        ("cut at the end", body[:-1]),
        ("one byte more", body + b"\0"),
        ("payload cut", body[1:]),
    ]
    for at, what in ((0, "payload"), (len(body) - 24, "epoch"), (len(body) - 20, "sequence"), (len(body) - 1, "tag")):
        bad.append((f"one bit of the {what}", body[:at] + bytes([body[at] ^ 0x80]) + body[at + 1 :]))
    about = dict(zip(names, down, strict=True))
    rows += [dict(name=name, **about, key=key.hex(), body=text.hex(), status="auth") for name, text in bad]
    for name, epoch, sequence in (("heard before", 7, 41), ("too old by one", 7, 105), ("of an earlier epoch", 8, 0)):
        seen = {"epoch": epoch, "sequence": sequence}
        rows.append(dict(name=name, **about, key=key.hex(), body=body.hex(), status="replay", seen=seen))
    for name, epoch, sequence in (("oldest of the window", 7, 104), ("first of a later epoch", 6, 1000), ("newer", 7, 40)):
        seen = {"epoch": epoch, "sequence": sequence}
        rows.append(dict(name=name, **about, key=key.hex(), payload=wait.hex(), body=body.hex(), status="ok", seen=seen))
    return rows


def bad_differences(base: bytes, target: bytes) -> list[dict[str, object]]:
    """Vectors that are refused: each with its checksum mended, where that is not what is wrong."""
    size = len(target)
    body = difference_builder.encode(base, target, [(size, 0)])
    good = difference_builder.wrap(base, target[16:48], size, body)

    def changed(at: int, value: bytes) -> bytes:
        return difference_builder.mend(good[:at] + value + good[at + len(value) :])

    def segment(length: int, source: int) -> bytes:
        whole = struct.pack(">II", length, source) + bytes(8)
        return difference_builder.wrap(base, target[16:48], size, whole)

    other = difference_builder.wrap(base, bytes(32), size, body)
    cases = [
        ("magic", changed(0, b"FMD2"), "difference", None),
        ("format 2", changed(4, b"\2\0"), "difference", None),
        ("reserved", changed(6, b"\1\0"), "difference", None),
        ("size in the header", changed(8, struct.pack("<I", len(good) + 1)), "difference", None),
        ("checksum", good[:12] + bytes(4) + good[16:], "crc", "ok"),
        ("another base", changed(16, bytes(32)), "difference-base", None),
        ("a base of another size", changed(84, struct.pack("<I", len(base) + 16)), "difference-base", None),
        ("a target of another hash", other, "package-hash", "ok"),
        ("shorter than its header", difference_builder.resize(good[:91]), "difference", None),
        ("nothing behind the header", difference_builder.resize(good[:92]), "difference", None),
        ("cut in the middle", difference_builder.resize(good[: len(good) // 2]), "difference", None),
        ("the last byte is missing", difference_builder.resize(good[:-1]), "difference", None),
        ("a byte too many", difference_builder.resize(good + b"\0"), "difference", None),
        ("a last byte that no encoder writes", difference_builder.mend(good[:-1] + bytes([good[-1] ^ 1])), "difference", None),
        ("a segment without length", segment(0, 0), "difference", None),
        ("a segment longer than the target", segment(size + 1, 0), "difference", None),
        ("a segment beyond the base", segment(size, 1), "difference", None),
        ("a segment whose end wraps around", segment(size, 0xFFFFFFFF), "difference", None),
        ("a segment of 2^31 bytes", segment(1 << 31, 0), "difference", None),
    ]
    rows: list[dict[str, object]] = []
    for name, difference, status, decoder in cases:
        row: dict[str, object] = {"name": name, "base": base.hex(), "difference": difference.hex(), "status": status}
        rows.append(row | ({"decoder": decoder} if decoder else {}))
    return rows


def main() -> int:
    """Write or check the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    files = {"messages.json": messages(), "frames.json": frames(), "differences.json": differences(), "seal.json": seals()}
    for name, rows in files.items():
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
        path = VECTORS / name
        if options.check:
            stale += [name] if path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run firmware_tests/generate_vectors.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
