# SPDX-License-Identifier: Apache-2.0
"""The shared vectors of sealed messages against the device's code with Monocypher, under AddressSanitizer and UBSan."""

import functools
import json
import subprocess
from pathlib import Path

import pytest

from fedmote.wire.schema import Status
from fedmote_hil.build import crypto_sources
from firmware_tests.native import SDK, compile_c, operator_sources

ROWS = json.loads((SDK / "protocol" / "vectors" / "seal.json").read_text(encoding="utf-8"))
UP = 0
MOST = 150  # bytes of a payload: they fit the smallest buffers


@functools.cache
def harness() -> Path:
    folder = crypto_sources()
    if folder is None:
        pytest.skip("Monocypher is not here: python -m fedmote_hil.crypto")
    own = [Path(__file__).with_name("seal_main.c"), SDK / "ports" / "monocypher" / "monocypher_port.c", folder / "monocypher.c"]
    sources = [*own, *sorted((SDK / "src").glob("*.c")), *operator_sources()]
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    flags += [f"-I{folder}", f"-I{SDK / 'ports' / 'monocypher'}", "-Wno-error"]
    return compile_c("seal_main", sources, flags)


def run(lines: list[str]) -> list[str]:
    result = subprocess.run([harness()], input="".join(f"{line}\n" for line in lines), text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def line(verb: str, row: dict, epoch: int, sequence: int, content: str) -> str:
    numbers = f"{row['channel']} {row['kind']} {row['id']} {epoch} {row['boot']} {sequence}"
    return f"{verb} {numbers} {row['key']} {content or '-'}"


@pytest.mark.parametrize("row", [row for row in ROWS if row["way"] == UP], ids=lambda row: row["name"])
def test_the_device_seals_a_vector(row):
    assert run([line("close", row, row["epoch"], row["sequence"], row["payload"])]) == [row["body"]]


@pytest.mark.parametrize("row", [row for row in ROWS if row["way"] != UP], ids=lambda row: row["name"])
def test_the_device_opens_a_vector_or_refuses_it(row):
    seen = row.get("seen", {"epoch": 0, "sequence": 0})
    [answer] = run([line("open", row, seen["epoch"], seen["sequence"], row["body"])])
    status, _, payload = answer.partition(" ")
    assert Status(-int(status)).name.lower() == row["status"]
    assert row["status"] != "ok" or payload == row["payload"]


def test_every_changed_bit_of_a_sealed_body_is_refused():
    row = next(row for row in ROWS if row["name"] == "wait")
    body = bytes.fromhex(row["body"])
    changed = [body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :] for at in range(len(body)) for bit in range(8)]
    answers = run([line("open", row, 0, 0, other.hex()) for other in changed])
    assert answers == [str(-Status.AUTH)] * len(changed)
