# SPDX-License-Identifier: Apache-2.0
"""Mutants of valid packages: refused with a status, or run within their memory and their declared work (mutants.c)."""

import functools
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from fedmote.package import container
from fedmote.package.compile import compile_graph
from fedmote.package.specimen import random_int8_graph
from fedmote.wire.schema import Status
from firmware_tests import package_builder as fmp
from firmware_tests.native import compile_c, core_sources
from firmware_tests.test_package_equals_host import host_status
from firmware_tests.test_package_reader import package_of_everything

PACKAGES = 24


@functools.cache
def harness() -> Path:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    return compile_c(
        "mutants", [Path(__file__).with_name("mutants.c"), *core_sources()], [*flags, "-fsanitize-coverage=trace-pc"]
    )


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> list[Path]:
    """Of random graphs with few weights, so that edits hit what matters, and one with every operator."""
    directory = tmp_path_factory.mktemp("packages")
    plans = [compile_graph(random_int8_graph(seed)) for seed in range(60)]
    contents = [package_of_everything()]
    for plan in sorted(plans, key=lambda plan: len(plan.weights))[: PACKAGES - 1]:
        head = fmp.head_section(np.zeros((2, plan.header.feature_count)), np.zeros(2))
        sections = [(fmp.MANIFEST, b"\xa0"), (fmp.PLAN, plan.records), (fmp.WEIGHTS, plan.weights), (fmp.HEAD, head)]
        contents.append(fmp.assemble(sections))
    paths = [directory / f"{index}.fmp" for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def run_harness(mode: str, count: int, seed: int, packages: list[Path]) -> bytes:
    done = subprocess.run([str(harness()), mode, str(count), str(seed), *map(str, packages)], capture_output=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:].decode(errors='replace')}"
    return done.stdout


def assert_harmless(count: int, seed: int, packages: list[Path]) -> None:
    refused, run, cut, blocks = run_harness("run", count, seed, packages).split()
    print(f"seed {seed}: {int(refused)} refused, {int(run)} run to their end, {int(cut)} cut short, "
          f"at most {float(blocks)} basic blocks per declared multiply-accumulate")  # fmt: skip
    assert int(refused) + int(run) + int(cut) == count
    assert int(refused) > count // 4 and int(run) > count // 20, "all or none refused proves nothing"


def test_five_thousand_mutants_are_harmless(packages: list[Path]) -> None:
    assert_harmless(5000, 1, packages)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_a_hundred_thousand_mutants_are_harmless(packages: list[Path], seed: int) -> None:
    assert_harmless(10_000, seed, packages)


def test_host_refuses_mutants_with_the_status_of_the_device(packages: list[Path]) -> None:
    blob = run_harness("write", 3000, 2, packages)
    met, offset = set(), 0
    while offset < len(blob):
        size, status = struct.unpack_from("<Ii", blob, offset)
        mutant = blob[offset + 8 : offset + 8 + size]
        offset += 8 + size
        # The hash of the harness is its own; and the host opens packages for kernels that this build does not have.
        if -status in (Status.PACKAGE_HASH, Status.PACKAGE_ARRANGEMENT) or (status == 0 and len(mutant) < container.HEADER_BYTES):
            continue
        if len(mutant) >= container.HEADER_BYTES and has_checksum(mutant):
            mutant = fmp.seal(mutant)
        assert host_status(mutant) == -status, mutant[:64].hex()
        met.add(Status(-status))
    print(f"{len(met)} statuses: {', '.join(sorted(status.name for status in met))}")
    assert len(met) >= 6


def has_checksum(mutant: bytes) -> bool:
    size = struct.unpack_from("<I", mutant, 8)[0]
    if not container.HEADER_BYTES <= size <= len(mutant):
        return False
    return zlib.crc32(mutant[16:size], zlib.crc32(mutant[:12])) == struct.unpack_from("<I", mutant, 12)[0]
