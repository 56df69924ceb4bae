# SPDX-License-Identifier: Apache-2.0
"""The device's decoder of differences: the shared vectors, what the host makes, and mutants, under AddressSanitizer and UBSan."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fedmote.package.difference import make_difference
from fedmote.wire.schema import Status
from firmware_tests.native import SDK, compile_c
from firmware_tests.one_round import build
from firmware_tests.package_builder import HEAD, MANIFEST, PLAN, WEIGHTS, assemble

VECTORS = json.loads((SDK / "protocol" / "vectors" / "differences.json").read_text(encoding="utf-8"))


@functools.cache
def harness() -> Path:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    return compile_c("differences", [Path(__file__).with_name("differences.c"), SDK / "src" / "difference.c"], flags)


def decode(rows: list[tuple[bytes, bytes]]) -> list[tuple[str, bytes]]:
    """(status, target) of each base and difference, the same for pieces of every size."""
    lines = "".join(f"{base.hex()} {difference.hex()}\n" for base, difference in rows)
    done = subprocess.run([harness(), "vectors"], input=lines, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = []
    for line in done.stdout.splitlines():
        status, _, target = line.partition(" ")
        results.append((Status(-int(status)).name.lower().replace("_", "-"), bytes.fromhex(target)))
    return results


@functools.cache
def answers() -> list[tuple[str, bytes]]:
    return decode([(bytes.fromhex(row["base"]), bytes.fromhex(row["difference"])) for row in VECTORS])


@pytest.mark.parametrize("number", range(len(VECTORS)), ids=[row["name"] for row in VECTORS])
def test_difference_vector(number: int) -> None:
    row = VECTORS[number]
    status, target = answers()[number]
    assert status == row.get("decoder", row["status"])
    if row["status"] == "ok":
        assert target.hex() == row["target"]


def random_pair(rng: np.random.Generator) -> tuple[bytes, bytes]:
    """Two packages of random sections, some of which grew, shrank or changed in all bytes."""
    old = {kind: rng.integers(0, 256, int(rng.integers(1, 400)), np.uint8) for kind in (MANIFEST, PLAN, WEIGHTS, HEAD)}
    new = {}
    for kind, content in old.items():
        steps = (rng.normal(0, rng.choice([0, 0.3, 2, 20, 200]), len(content))).astype(np.int64).astype(np.uint8)
        new[kind] = (content + steps)[: int(rng.integers(1, len(content) + 1))] if rng.random() < 0.3 else content + steps
        if rng.random() < 0.2:
            new[kind] = np.concatenate([new[kind], rng.integers(0, 256, int(rng.integers(1, 900)), np.uint8)])
    base, target = (assemble([(kind, part.tobytes()) for kind, part in one.items()]) for one in (old, new))
    return base, target


def test_whatever_the_host_makes_the_device_decodes() -> None:
    rng = np.random.default_rng(4)
    pairs = [random_pair(rng) for _ in range(300)] + [(build(version), build(version + 1)) for version in range(3)]
    results = decode([(base, make_difference(base, target)) for base, target in pairs])
    for (_, target), (status, made) in zip(pairs, results, strict=True):
        assert (status, made) == ("ok", target)


def run_mutants(count: int, seed: int, directory: Path) -> None:
    rng = np.random.default_rng(seed)
    base, target = random_pair(rng)
    paths = [directory / "base.bin", directory / "difference.fmd"]
    paths[0].write_bytes(base)
    paths[1].write_bytes(make_difference(base, target))
    command = [str(harness()), "mutants", str(count), str(seed), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    made, refused = map(int, done.stdout.split())
    assert made + refused == count
    assert refused > count // 2
    assert made > count // 50, "a stream that is always refused does not get far"


@pytest.mark.parametrize("seed", range(6))
def test_mutants_make_a_target_of_the_right_size_or_are_refused(seed: int, tmp_path: Path) -> None:
    run_mutants(4000, seed, tmp_path)


@pytest.mark.slow
def test_a_hundred_thousand_mutants_do(tmp_path: Path) -> None:
    for seed in range(100, 120):
        run_mutants(5000, seed, tmp_path)
