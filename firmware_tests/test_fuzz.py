# SPDX-License-Identifier: Apache-2.0
"""Every decoder of the device against hostile bytes (fuzz/), under AddressSanitizer and UBSan.

Mutants of a small corpus run everywhere, drawn from a seed; libFuzzer, which looks for new paths, runs for a minute per target
with the slow tests where clang has it. Corpora are made from vectors and builders here: none is kept in the repository.
"""

import functools
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import cbor2
import numpy as np
import pytest

from fedmote.wire.regions import identity_region
from fedmote.wire.schema import FIELDS, Kind, Status
from firmware_tests.generate_vectors import frame
from firmware_tests.mask_reference import members_of
from firmware_tests.masked_peers import identity_in_group
from firmware_tests.native import SDK, compile_c, operator_sources
from firmware_tests.one_round import HEAD_HANDLE, MODEL_HANDLE, PACKAGE, plan_for
from firmware_tests.scripted_peers import CELL, COORDINATOR, RUN
from firmware_tests.test_package_reader import package_of_everything

FUZZ = Path(__file__).with_name("fuzz")
VECTORS = SDK / "protocol" / "vectors"
MUTANTS = 4000
FUZZ_S = int(os.environ.get("FEDMOTE_FUZZ_S", "60"))
CLANGS = ("clang", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14")


def vectors(name: str) -> list[dict]:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def message_corpus() -> list[bytes]:
    return [bytes([case["kind"] & 0xFF]) + bytes.fromhex(case["hex"]) for case in vectors("messages")]


def frame_corpus() -> list[bytes]:
    streams = [bytes.fromhex(case["hex"]) for case in vectors("frames")]
    return [bytes([piece]) + stream for piece in (0, 6, 255) for stream in [*streams, b"".join(streams)]]


def publish(topic: str, body: bytes, qos: int) -> bytes:
    """A PUBLISH packet of MQTT 3.1.1 with a remaining length below 16384."""
    rest = struct.pack(">H", len(topic)) + topic.encode() + (b"\0\7" if qos else b"") + body
    return bytes([0x30 | qos << 1, 0x80 | len(rest) & 0x7F, len(rest) >> 7]) + rest


def mqtt_corpus() -> list[bytes]:
    packets = [b"\x20\x02\0\0", b"\x90\x04\0\1\1\1", b"\xd0\0", b"\x40\x02\0\7", b"\x20\x02\0\5", b"\x90\x04\0\1\x80\1"]
    topics = ("fedmote/1/lab/b-1/dn/plan", "fedmote/1/lab/b-1/cell/dn/get", "fedmote/1/lab/b-2/dn/plan", "x")
    packets += [publish(topic, bytes.fromhex(case["hex"]), qos)
                for topic in topics for case in vectors("messages")[:4] for qos in (0, 1)]  # fmt: skip
    packets += [publish(topics[0], bytes(size), 1) for size in (529, 530, 640, 900)]
    return [bytes([piece]) + packet for piece in (0, 3, 254) for packet in [*packets, b"".join(packets)]]


def identity_corpus() -> list[bytes]:
    regions = [
        identity_region("b-1", "lab", "serial"),
        identity_region("b-1", "lab", "mqtt", "user", "password", is_sending_samples=True),
        identity_region("x" * 32, "y" * 32, "mqtt", "u" * 64, "p" * 64, keep_alive_s=65535),
        *(identity_in_group("b-1", members_of(*shape)[1].identity()) for shape in ((8, 7, 4), (12, 2, 2))),
    ]
    return [region[12:] for region in regions]


def package_corpus() -> list[bytes]:
    return [PACKAGE, package_of_everything()]


def difference_corpus() -> list[bytes]:
    return [bytes([piece]) + bytes.fromhex(case["difference"]) for piece in (0, 255) for case in vectors("differences")]


def chunk_corpus() -> list[bytes]:
    """Sizes and windows, then what comes: see fuzz/chunk.c."""
    begin = struct.Struct("<IB")
    rng = np.random.default_rng(0)
    scripts = [bytes(range(64)), bytes(64), rng.bytes(200)]
    return [begin.pack(size, window) + script for size in (1, 512, 513, 20_000) for window in (1, 32) for script in scripts]


def line(channel: int, kind: Kind, **fields: int | str | bytes) -> bytes:
    """A frame in a script of fuzz/client.c."""
    body = cbor2.dumps({FIELDS[name].key: value for name, value in fields.items()}, canonical=True)
    return struct.pack("<BBH", channel, int(kind), len(body)) + body


def client_corpus() -> list[bytes]:
    plan = {**plan_for(PACKAGE), "run": RUN, "round": 1, "attempt": 0, "is_sending_samples": 1}
    other = {**plan, "model_hash": bytes(32), "round": 2}
    with_difference = {**other, "difference_handle": 9, "difference_size": 400}
    wait = line(COORDINATOR, Kind.WAIT, wait_ms=100)
    get = line(COORDINATOR, Kind.GET, handle=MODEL_HANDLE, offset=0, chunk=160, mask=3)
    cell_get = line(CELL, Kind.GET, handle=1, offset=0, chunk=160, mask=3)
    data = [line(COORDINATOR, Kind.DATA, handle=handle, offset=0, data=bytes(160)) for handle in (MODEL_HANDLE, HEAD_HANDLE, 9)]
    ack = line(COORDINATOR, Kind.ACK, handle=1, run=RUN, round=1)
    refuse = line(COORDINATOR, Kind.REFUSE, status=int(Status.STALE_ROUND), round=1, run=RUN)
    noise = b"\2\x10" + bytes(range(16))
    raw = frame(0, int(Kind.WAIT), 0, cbor2.dumps({24: 7}, canonical=True))
    later, lost, reset = b"\3\xff", b"\4", b"\5"
    scripts = [
        [wait, later],
        [line(COORDINATOR, Kind.PLAN, **plan), later, *data, later, get, cell_get, ack],
        [line(COORDINATOR, Kind.PLAN, **other), *data, later, refuse, later],
        [line(COORDINATOR, Kind.PLAN, **with_difference), *data, later, lost, later, reset, later],
        [noise, bytes([2, len(raw)]) + raw, lost, wait],
        [
            line(COORDINATOR, Kind.PLAN, **plan),
            reset,
            line(COORDINATOR, Kind.PLAN, **{**plan, "attempt": 1}),
            later,
            later,
            refuse,
        ],
    ]
    return [b"".join(script) for script in scripts]


def masks_corpus() -> list[bytes]:
    """Scripts of fuzz/masks.c: whole participations, with all peers, with some, and with a box that does not open."""
    entry = bytes(range(1, 9)) + bytes(range(32)) + bytes(64) + bytes(16)
    peers = bytes([1, 7, 0, 0]) + 7 * entry
    fewer, shut = bytes([1, 7, 0, 0]) + bytes(120) + 6 * entry, peers[:-16] + b"\1" + peers[-15:]

    def plan(step: int, survivors: int = 0, blob: bytes = b"") -> bytes:
        return struct.pack("<BBBH", 6, step, survivors, len(blob)) + blob

    wait, endless = line(COORDINATOR, Kind.WAIT, wait_ms=100), line(COORDINATOR, Kind.WAIT, wait_ms=0)
    lost = line(COORDINATOR, Kind.REFUSE, status=int(Status.STALE_ROUND), handle=0x700)
    later, reset = b"\3\xff", b"\5"
    scripts = [
        [plan(1), later, plan(2, blob=peers), later, plan(3, 0x7F, peers), later, plan(3, 0x7F, peers), later, wait],
        [plan(1), later, endless, plan(2, blob=fewer), lost, plan(3, 0x3E, fewer), later, plan(3, 0x7E, fewer), later],
        [plan(1), later, plan(2, blob=shut), later, plan(1), later, reset, plan(1), later, plan(3, 0x7F, peers), later],
        [plan(1), reset, plan(1), later, plan(2, blob=peers), wait, later, plan(4), later, plan(0), later],
    ]
    return [b"".join(script) for script in scripts]


CORPORA: dict[str, Callable[[], list[bytes]]] = {
    "message": message_corpus,
    "frame": frame_corpus,
    "mqtt": mqtt_corpus,
    "identity": identity_corpus,
    "package": package_corpus,
    "difference": difference_corpus,
    "chunk": chunk_corpus,
    "client": client_corpus,
    "masks": masks_corpus,
}
# Inputs per second differ: a script of the client is a whole device.
MUTANTS_OF = {"client": MUTANTS // 8, "masks": MUTANTS // 8, "package": MUTANTS // 4}


def sdk_sources() -> list[Path]:
    return [*sorted((SDK / "src").glob("*.c")), *operator_sources()]


@functools.cache
def mutation_driver(target: str) -> Path:
    """The target with driver.c, linked to a library of the SDK that all targets share."""
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    sdk = compile_c("libfuzz.so", sdk_sources(), [*flags, "-shared", "-fPIC"])
    return compile_c(f"fuzz-{target}", [FUZZ / "driver.c", FUZZ / f"{target}.c", sdk], flags)


def write_corpus(target: str, directory: Path) -> dict[str, str]:
    """Writes the corpus, and returns the environment that the target needs."""
    directory.mkdir()
    for number, content in enumerate(CORPORA[target]()):
        (directory / f"{number:03}").write_bytes(content)
    package = directory.parent / "installed.fmp"
    package.write_bytes(PACKAGE)
    return {**os.environ, "FEDMOTE_FUZZ_PACKAGE": str(package)}


@pytest.mark.parametrize("target", CORPORA)
def test_mutants_of_the_corpus_are_harmless(target: str, tmp_path: Path) -> None:
    environment = write_corpus(target, tmp_path / "corpus")
    count, seed, crash = MUTANTS_OF.get(target, MUTANTS), 1, tmp_path / "crash"
    command = [mutation_driver(target), str(count), str(seed), crash, *sorted((tmp_path / "corpus").iterdir())]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:].decode(errors='replace')}"
    assert f"{count} mutants" in done.stdout.decode(), "the driver ended without saying that it ran"


def test_the_driver_keeps_an_input_that_fails(tmp_path: Path) -> None:
    failing = tmp_path / "failing.c"
    failing.write_text(
        '#include "fuzz/fuzz.h"\n'
        "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {\n"
        '    must(size < 3 || memcmp(data, "bad", 3) != 0, "a bad input");\n    return 0;\n}\n'
    )
    driver = compile_c("fuzz-failing", [FUZZ / "driver.c", failing], ["-O1", "-fsanitize=address,undefined"])
    (tmp_path / "seed").write_bytes(b"bad")
    done = subprocess.run([driver, "0", "1", tmp_path / "crash", tmp_path / "seed"], capture_output=True, check=False)
    assert done.returncode != 0 and b"a bad input" in done.stderr
    assert (tmp_path / "crash").read_bytes() == b"bad"


@functools.cache
def libfuzzer() -> str | None:
    """A clang that can link libFuzzer, or None."""
    for name in filter(shutil.which, CLANGS):
        probe = "#include <stddef.h>\nint LLVMFuzzerTestOneInput(const char *d, size_t n) { return d && n ? 0 : 0; }"
        command = [name, "-x", "c", "-", "-fsanitize=fuzzer,address,undefined", "-o", "/dev/null"]
        if subprocess.run(command, input=probe.encode(), capture_output=True, check=False).returncode == 0:
            return name
    return None


@pytest.mark.slow
@pytest.mark.parametrize("target", CORPORA)
def test_libfuzzer_finds_nothing_in_a_minute(target: str, tmp_path: Path) -> None:
    clang = libfuzzer()
    if clang is None:
        pytest.skip("no clang with libFuzzer (Debian: clang libclang-rt-14-dev)")
    environment = write_corpus(target, tmp_path / "corpus")
    program = tmp_path / target
    flags = ["-std=c99", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    folders = [f"-I{folder}" for folder in (SDK / "include", SDK / "src", FUZZ.parent)]
    subprocess.run([clang, *flags, *folders, FUZZ / f"{target}.c", *sdk_sources(), "-lm", "-o", program], check=True)
    command = [program, f"-max_total_time={FUZZ_S}", "-seed=1", "-rss_limit_mb=1024", "-timeout=5", "-print_final_stats=1",
               f"-artifact_prefix={tmp_path}/", "-max_len=16384", str(tmp_path / "corpus")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    words = done.stderr.decode(errors="replace")
    print("\n".join(one for one in words.splitlines() if one.startswith("stat::") or "DONE" in one))
    assert done.returncode == 0, words[-4000:]
