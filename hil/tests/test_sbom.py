# SPDX-License-Identifier: Apache-2.0
"""The bill of materials of an image, and a library whose bytes do not depend on where it was built."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fedmote.errors import RigError
from fedmote.package.boards import sdk_root
from fedmote_hil.build import build, crypto_sources, find_tool
from fedmote_hil.crypto import SHA256
from fedmote_hil.sbom import bill_of

has_compiler = shutil.which("arm-none-eabi-gcc") is not None
needs_compiler = pytest.mark.skipif(not has_compiler, reason="arm-none-eabi-gcc is not installed")


@pytest.mark.emulator
@needs_compiler
def test_the_bill_of_an_image_names_every_source_that_was_linked_with_its_hash_and_nothing_else():
    image = build("nrf51822")
    bill = bill_of(image)
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.5", 1)
    product = bill["metadata"]["component"]
    assert product["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(image.binary.read_bytes()).hexdigest()}]
    components = {one["name"]: one for one in bill["components"]}
    files = {one["name"]: one["hashes"][0]["content"] for one in components["fedmote-device-sdk"]["components"]}
    for name, digest in files.items():
        assert hashlib.sha256((sdk_root().parent / name).read_bytes()).hexdigest() == digest
    linked = {"device_sdk/src/client.c", "device_sdk/src/seal.c", "device_sdk/src/provision.c", "device_sdk/ports/nrf51/flash.c"}
    assert linked <= files.keys()
    # The head of a core without an FPU, the kernels of this one, and no cryptography but Monocypher's.
    others = ("src/head_float.c", "src/kernels/dot.c", "ports/mbedtls/mbedtls_port.c")
    assert [name for name in others if f"device_sdk/{name}" in files] == []
    assert {"newlib", "libgcc"} <= components.keys()
    if crypto_sources() is not None:
        assert components["monocypher"]["hashes"] == [{"alg": "SHA-256", "content": SHA256}]
        assert components["monocypher"]["purl"].startswith("pkg:pypi/pymonocypher@")
    references = [one["bom-ref"] for one in bill["components"]]
    assert len(references) == len(set(references))
    assert bill["dependencies"][0] == {"ref": product["bom-ref"], "dependsOn": references}


@pytest.mark.emulator
@needs_compiler
def test_a_bill_is_the_same_each_time_and_a_process_has_none():
    first, second = (json.dumps(bill_of(build("nrf51822"))) for _ in range(2))
    assert first == second
    with pytest.raises(RigError, match="process"):
        bill_of(build("posix"))


def archive(sources: Path, directory: Path, *options: str) -> bytes:
    """The library built from a copy of the SDK at `sources`, in `directory`."""
    shutil.copytree(sdk_root(), sources, ignore=shutil.ignore_patterns("build"))
    ninja = find_tool("ninja")
    configure = [find_tool("cmake"), "-S", str(sources), "-B", str(directory), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for command in ([*configure, *options], [ninja, "-C", str(directory), "fedmote_device"]):
        subprocess.run(command, check=True, capture_output=True)
    return (directory / "libfedmote.a").read_bytes()


@pytest.mark.parametrize("build_type", ["Release", "RelWithDebInfo"])
def test_the_library_has_the_same_bytes_wherever_it_is_built(tmp_path, build_type):
    first = archive(tmp_path / "a" / "device_sdk", tmp_path / "a" / "out", f"-DCMAKE_BUILD_TYPE={build_type}")
    second = archive(tmp_path / "another place" / "sdk", tmp_path / "elsewhere", f"-DCMAKE_BUILD_TYPE={build_type}")
    assert first == second
    assert str(tmp_path).encode() not in first


@pytest.mark.emulator
@needs_compiler
def test_the_library_of_a_part_has_the_same_bytes_wherever_it_is_built(tmp_path):
    toolchain = "-DCMAKE_TOOLCHAIN_FILE={}/cmake/arm-none-eabi.cmake"
    places = [(tmp_path / "a" / "device_sdk", tmp_path / "a" / "out"), (tmp_path / "b" / "sdk", tmp_path / "c")]
    first, second = (
        archive(sources, out, toolchain.format(sources), "-DCMAKE_C_FLAGS=-mcpu=cortex-m4 -mthumb") for sources, out in places
    )
    assert first == second
