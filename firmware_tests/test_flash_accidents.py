# SPDX-License-Identifier: Apache-2.0
"""The client on a model of flash: cut, and failed, at every operation of an installation, a trial and a journal.

The model is `flash_model.c`: units of 8 bytes that are written once, torn writes and erases, units in any order. The story is
told by `flash_accidents.c`, under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest

from fedmote.package.difference import make_difference
from fedmote.wire.schema import LIMIT_WINDOW
from firmware_tests.device_bench import BODY_MAX, CHUNK
from firmware_tests.native import SDK, compile_c
from firmware_tests.one_round import build

HERE = Path(__file__).parent
SEED = 20_261
Result = subprocess.CompletedProcess[str]
TEARS = {"nothing": 0, "prefix": 1, "bits": 2, "unordered": 3}
PACKAGES = [build(version, filler=1000) for version in range(4)]
LARGE = [build(version, filler=6500) for version in range(2)]  # of two windows


# Of the operators the packages here have one.
SOURCES = [
    *sorted((SDK / "src").glob("*.c")),
    *((SDK / "src" / "operators" / f"{name}.c") for name in ("operator", "fully_connected")),
    *(
        (SDK / "src" / "kernels" / f"{name}.c")
        for name in ("fully_connected", "arrangement", "dot", "requantize", "head_rows", "head_tiles")
    ),
    *((HERE / name) for name in ("flash_accidents.c", "flash_model.c")),
]


def compiled(sources: list[Path]) -> Path:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    return compile_c("flash_accidents", sources, [*flags, f"-DFEDMOTE_BODY_MAX={BODY_MAX}"])


@functools.cache
def program() -> Path:
    return compiled(SOURCES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Files of the packages of each story."""
    directory = tmp_path_factory.mktemp("packages")
    paths = [directory / f"{version}.fmp" for version in range(len(PACKAGES))]
    for path, package in zip(paths, PACKAGES, strict=True):
        path.write_bytes(package)
    difference = directory / "difference.fmd"
    difference.write_bytes(make_difference(PACKAGES[0], PACKAGES[1]))
    names = [str(path) for path in paths]
    large = [directory / f"large-{version}.fmp" for version in range(len(LARGE))]
    for path, package in zip(large, LARGE, strict=True):
        path.write_bytes(package)
    return {
        "whole": names[:2],
        "rest": [str(path) for path in large],
        "difference": [*names[:2], str(difference)],
        "journal": names[:1],
        "keys": names[:1],
        "models": names,
    }


def run(path: Path, story: str, files: list[str], what: str, tear: str, erased: int = 0xFF, count: int = 0) -> Result:
    command = [str(path), story, str(erased), str(TEARS[tear]), what, str(SEED + TEARS[tear]), str(count), *files]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def tell(story: str, files: list[str], what: str, tear: str = "nothing", erased: int = 0xFF, count: int = 0) -> dict[str, int]:
    """Figures of one run of the program, which ends with 1 where something is wrong."""
    result = run(program(), story, files, what, tear, erased, count)
    assert result.returncode == 0, result.stdout + result.stderr
    print(f"{story}, {what}, {tear}, erased {erased:#x}, seed {SEED}: {' '.join(result.stdout.split())}")
    return {name: int(value) for name, value in (line.split() for line in result.stdout.splitlines())}


@pytest.mark.parametrize("erased", [0xFF, 0x00])
@pytest.mark.parametrize("tear", TEARS)
@pytest.mark.parametrize("story", ["whole", "rest", "difference", "journal", "keys"])
def test_power_may_fail_at_every_operation(story: str, tear: str, erased: int, files: dict[str, list[str]]) -> None:
    figures = tell(story, files[story], "cuts", tear, erased)
    assert figures["cuts"] == figures["operations"] > 100


@pytest.mark.parametrize("story", ["whole", "rest", "difference", "journal", "keys"])
def test_power_may_fail_between_any_two_steps(story: str, files: dict[str, list[str]]) -> None:
    figures = tell(story, files[story], "steps")
    assert figures["cuts"] == figures["steps"] > 40
    assert figures["recalled"] > 0  # updates that a reset during the upload did not cost


@pytest.mark.parametrize("erased", [0xFF, 0x00])
@pytest.mark.parametrize("story", ["whole", "rest", "difference", "journal", "keys"])
def test_every_operation_may_fail_with_an_error(story: str, erased: int, files: dict[str, list[str]]) -> None:
    figures = tell(story, files[story], "errors", erased=erased)
    assert figures["errors"] == 2 * figures["operations"]
    assert figures["refused"] > 0 or story in ("journal", "keys")


@pytest.mark.parametrize("erased", [0xFF, 0x00])
@pytest.mark.parametrize("what", ["cuts", "steps"])
def test_after_a_cut_a_package_comes_again_from_its_last_window_on(what: str, erased: int, files: dict[str, list[str]]) -> None:
    """Wherever the cut came, but for the middle of the commit record; units are written or not, none is torn."""
    figures = tell("rest", files["rest"], what, "nothing", erased)
    assert LIMIT_WINDOW * CHUNK < len(LARGE[1]) < 2 * LIMIT_WINDOW * CHUNK
    header = 6 if what == "cuts" else 1  # units, and chunks, without which nothing tells what the slot holds
    assert figures["resumed"] >= len(LARGE[1]) // (8 if what == "cuts" else CHUNK) - header
    assert figures["anew"] == (1 if what == "cuts" else 0)
    assert 0 < figures["again"] <= LIMIT_WINDOW * CHUNK


@pytest.mark.parametrize("tear", ["prefix", "bits", "unordered"])
def test_a_unit_that_a_cut_has_torn_costs_the_package_once_more_at_most(tear: str, files: dict[str, list[str]]) -> None:
    figures = tell("rest", files["rest"], "cuts", tear)
    assert figures["resumed"] >= len(LARGE[1]) // 8 - 32
    assert figures["worst"] <= len(LARGE[1]) + LIMIT_WINDOW * CHUNK


@pytest.mark.parametrize(
    ("story", "count"), [("whole", 1500), ("rest", 300), ("difference", 1200), ("journal", 650), ("keys", 650)]
)
@pytest.mark.parametrize("tear", ["prefix", "bits", "unordered"])
def test_power_may_fail_twice(story: str, count: int, tear: str, files: dict[str, list[str]]) -> None:
    """12,900 random pairs of moments, operations and steps, in all, with a power cut at both."""
    figures = tell(story, files[story], "pairs", tear, count=count)
    assert figures["pairs"] == count
    assert figures["recalled"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("story", "count"), [("whole", 10_000), ("difference", 10_000), ("journal", 10_000), ("keys", 10_000)])
def test_power_may_fail_twice_at_many_more_pairs_of_moments(story: str, count: int, files: dict[str, list[str]]) -> None:
    assert tell(story, files[story], "pairs", "unordered", 0x00, count)["pairs"] == count


def test_a_model_costs_an_erase_of_a_slot_and_a_round_one_small_record(files: dict[str, list[str]]) -> None:
    """Forty rounds, each with another package; 0 and 1 are the slots, 2 and 3 the regions of the journal."""
    rounds = 40
    figures = tell("whole", files["models"], "wear", count=rounds)
    assert figures["erases_0"] + figures["erases_1"] == rounds - 1
    chunks = -(-len(PACKAGES[0]) // CHUNK)
    assert figures["writes_0"] + figures["writes_1"] == (rounds - 1) * (chunks + 3)  # record, trial, confirmation
    updates = 4096 // 320  # that a region holds
    assert figures["erases_2"] + figures["erases_3"] <= rounds // updates + 1


# What the tests above must notice: a line of the SDK, and what it is changed to.
MUTANTS = {
    "a package that ran unconfirmed stays": ("store.c", "trials == 0 && take(", "take("),
    "the place of the confirmed package is used": (
        "store.c",
        "store->is_installed && !store->is_on_trial ? 1 - store->slot",
        "0 ? 1",
    ),
    "a boot is not written": ("journal.c", "return write_head(client, log->region, at, KIND_BOOT, 0);", "return true;"),
    "what a failed write has touched is not passed over": ("journal.c", "    log->tail = at + HEAD;\n", ""),
    "a key is not copied": ("journal.c", "key != NULL && !copy(", "key != NULL && key == NULL && !copy("),
    "noise at the tail is written over": ("journal.c", "        at += size;\n        log->tail = at;", "        at += size;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_stories_notice_a_store_or_a_journal_that_is_wrong(name: str, files: dict[str, list[str]], tmp_path: Path) -> None:
    file, line, changed = MUTANTS[name]
    text = (SDK / "src" / file).read_text(encoding="utf-8")
    assert text.count(line) == 1, "the line is not there any more"
    (tmp_path / file).write_text(text.replace(line, changed), encoding="utf-8")
    path = compiled([tmp_path / file if source.name == file else source for source in SOURCES])
    runs = [(story, what, 0) for story in ("whole", "difference", "journal", "keys") for what in ("cuts", "steps", "errors")]
    runs += [(story, "pairs", 1000) for story in ("whole", "journal")]
    results = [run(path, story, files[story], what, "unordered", count=count) for story, what, count in runs]
    noticed = [result.stdout.splitlines()[-1] for result in results if result.returncode != 0]
    print(name, noticed)
    assert noticed
