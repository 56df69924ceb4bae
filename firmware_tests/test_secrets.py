# SPDX-License-Identifier: Apache-2.0
"""No branch and no address of the device's code depends on a key: memcheck, to which keys are not initialised."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import cbor2
import pytest

from fedmote.wire.schema import FIELDS, Channel, Kind, Status
from fedmote.wire.seal import Envelope, Way
from fedmote_hil.build import crypto_sources
from firmware_tests.native import SDK, compile_c, operator_sources

HERE = Path(__file__).parent
ID, BOOT, EPOCH = "board-1", 1, 7
KEYS = {Channel.COORDINATOR: b"\x11" * 32, Channel.CELL: b"\x22" * 32}
LEAK = 9  # exit code
REPORTED = ("Conditional jump or move depends on uninitialised value", "Use of uninitialised value")
pytestmark = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")


@functools.cache
def program(optimization: str) -> Path:
    if not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("valgrind's headers are not installed")
    folder = crypto_sources()
    if folder is None:
        pytest.skip("Monocypher is not here: python -m fedmote_hil.crypto")
    own = [HERE / "secrets_main.c", SDK / "ports" / "monocypher" / "monocypher_port.c", folder / "monocypher.c"]
    flags = [optimization, f"-I{folder}", f"-I{SDK / 'ports' / 'monocypher'}", "-DFEDMOTE_BODY_MAX=201", "-Wno-error"]
    return compile_c("secrets", [*own, *sorted((SDK / "src").glob("*.c")), *operator_sources()], flags)


def run(optimization: str, lines: list[str]) -> tuple[int, list[str], str]:
    """Exit code, what was printed, and what memcheck reported."""
    valgrind = ["valgrind", "-q", f"--error-exitcode={LEAK}", f"--suppressions={HERE / 'secrets.supp'}", "--track-origins=no"]
    command = [*valgrind, str(program(optimization))]
    result = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=300, check=False)
    return result.returncode, result.stdout.splitlines(), result.stderr


def down(channel: Channel, kind: Kind, payload: bytes, sequence: int, key: bytes | None = None) -> str:
    """Line that opens a message of the other end."""
    envelope = Envelope(Way.DOWN, channel, ID, kind, EPOCH, BOOT, sequence)
    return f"open {channel:d} {kind:d} {envelope.close(key or KEYS[channel], payload).hex()}"


def up(kind: Kind, payload: bytes, channel: Channel = Channel.COORDINATOR) -> str:
    return f"close {channel:d} {kind:d} {payload.hex() or '-'}"


def damaged(line: str, at: int) -> str:
    """The same with one digit of its body changed."""
    at %= len(line.rsplit(" ", 1)[1])
    at -= len(line.rsplit(" ", 1)[1])
    return line[:at] + ("0" if line[at] != "0" else "1") + (line[at + 1 :] if at + 1 < 0 else "")


@pytest.mark.parametrize("optimization", ["-O0", "-Os", "-O2"])
def test_sealing_opening_refusing_and_taking_a_key_neither_branch_nor_look_up_by_a_key(optimization: str) -> None:
    wait = cbor2.dumps({24: 500})
    lines, expected = [], []
    for sequence, channel in enumerate((Channel.COORDINATOR, Channel.CELL) * 4):
        lines.append(down(channel, Kind.WAIT, wait, sequence))
        expected.append(f"0 {wait.hex()}")
        lines.append(lines[-1])
        expected.append(str(-Status.REPLAY))
    for at in range(0, 2 * (len(wait) + 24), 5):
        lines.append(damaged(down(Channel.COORDINATOR, Kind.WAIT, wait, 60), at))
        expected.append(str(-Status.AUTH))
    for sequence, (kind, payload) in enumerate([(Kind.HELLO, b"\xa0" * 90), (Kind.REPORT, b"\xa1" * 33), (Kind.GET, b"")]):
        lines.append(up(kind, payload))
        expected.append(Envelope(Way.UP, Channel.COORDINATOR, ID, kind, EPOCH, BOOT, sequence).close(KEYS[0], payload).hex())  # type: ignore[index]
    secret = bytes(range(100, 132))
    lines.append(down(Channel.COORDINATOR, Kind.REKEY, cbor2.dumps({FIELDS["secret"].key: secret}), 61))
    expected.append("0 1")
    lines.append(up(Kind.GET, b"\xa0"))
    expected.append(Envelope(Way.UP, Channel.COORDINATOR, ID, Kind.GET, EPOCH, BOOT, 3).close(secret, b"\xa0").hex())
    lines.append(down(Channel.COORDINATOR, Kind.WAIT, wait, 62, secret))
    expected.append(f"0 {wait.hex()}")
    code, said, reported = run(optimization, lines)
    assert said == expected
    assert (code, reported) == (0, "")


@pytest.mark.parametrize(("leak", "words"), [("compare", REPORTED[0]), ("look-up", REPORTED[1])])
def test_a_comparison_that_ends_early_and_a_table_by_a_key_are_reported(leak: str, words: str) -> None:
    code, said, reported = run("-Os", [leak])
    assert said == ["1"]
    assert code == LEAK
    assert words in reported
    assert "leak" in reported
