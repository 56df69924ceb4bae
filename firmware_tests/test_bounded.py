# SPDX-License-Identifier: Apache-2.0
"""Bounded checks of the frame decoder and the chunk reassembler: every input up to a size, every state (bounded/)."""

import functools
import re
import subprocess
from pathlib import Path

import pytest

from firmware_tests.native import SDK, compile_c

BOUNDED = Path(__file__).with_name("bounded")
FLAGS = ["-O2", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@functools.cache
def program(name: str, *sources: str) -> Path:
    return compile_c(f"bounded-{name}", [BOUNDED / f"{name}.c", *(SDK / "src" / f"{source}.c" for source in sources)], FLAGS)


def counts(*command: str | Path) -> list[int]:
    """The numbers that a check prints when it has found nothing."""
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout.strip())
    return [int(number) for number in re.findall(r"\d+", done.stdout)]


def all_streams(length: int, *letters: str) -> None:
    """The smallest frame has 12 bytes on the line: 5 and 1 are lengths of its groups."""
    streams, frames = counts(program("frames", "serial", "link"), "all", str(length), *letters)
    assert streams == len(letters) ** length
    assert frames > 0, "not one good frame among them proves little"


def test_every_stream_of_thirteen_letters_is_decoded_as_specified() -> None:
    all_streams(13, "00", "01", "05")


@pytest.mark.slow
@pytest.mark.parametrize("letters", [("00", "01", "02", "05"), ("00", "01", "05", "FF"), ("00", "01", "04", "05")])
def test_every_stream_over_four_letters_is_decoded_as_specified(letters: tuple[str, ...]) -> None:
    all_streams(12, *letters)


def test_every_small_damage_of_a_frame_is_decoded_as_specified() -> None:
    streams, frames = counts(program("frames", "serial", "link"), "damage")
    assert streams > 100_000
    assert streams // 4 < frames < streams, "a second frame survives most damage to the first, and none comes from nothing"


@pytest.mark.parametrize("window", [1, 2, 3, 5, 32])
def test_every_state_of_a_transfer_keeps_its_promises(window: int) -> None:
    states, _ = counts(program("chunks", "transfer", "wire", "schema"), "9", str(window))
    # Windows are filled one after the other, a window in any order: 2^w - 1 states each, and the end.
    expected = 0
    for chunks in range(1, 10):
        sizes = [min(window, chunks - first) for first in range(0, chunks, window)]
        expected += 3 * (sum(2**size - 1 for size in sizes) + 1)
    assert states == expected
