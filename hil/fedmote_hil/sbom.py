# SPDX-License-Identifier: Apache-2.0
"""What is in a board's image: `python -m fedmote_hil.sbom --board stm32f405 > sbom.json`.

A bill of materials in CycloneDX 1.5 (ECMA-424), told from the linker's map: the sources of the SDK that were linked, each with
its hash, the cryptography with its pin, the C library and the compiler. The same tree and the same compiler give the same bytes:
its serial number is made of its content, and it holds no time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedmote.errors import FedmoteError, RigError
from fedmote.package.boards import Board, sdk_root
from fedmote_hil.build import CRYPTO_RELEASE, Image, build, crypto_sources
from fedmote_hil.crypto import SHA256 as CRYPTO_SHA256
from fedmote_hil.sizes import Sizes, compiler_version, read_map

SPEC_VERSION = "1.5"
_VERSION = re.compile(r'#define FEDMOTE_VERSION "([^"]+)"')
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.5.schema.json")
_C_LIBRARIES = {"c_nano": "newlib", "c": "newlib", "m": "newlib", "gcc": "libgcc"}


def bill_of(image: Image) -> dict[str, Any]:
    """The bill of materials of an image.

    Raises:
        RigError: the image is a process, which has no map, or its map names a source that is not there.
    """
    path = image.path.with_suffix(".map")
    if image.binary is None or not path.is_file():
        raise RigError(f"board {image.board.name} is a process of this machine; a bill is made of the image of a part")
    sizes = read_map(path.read_text(encoding="utf-8"))
    sdk = _sdk(_linked_sources(sizes))
    components = [sdk, *_libraries(sizes)]
    product = {"type": "firmware", "bom-ref": image.path.stem, "name": image.path.stem, "version": sdk["version"]}
    product["hashes"] = [_hash(image.binary.read_bytes())]
    product["properties"] = _properties({"board": image.board.name, "compiler": compiler_version()})
    references = [str(one["bom-ref"]) for one in components]
    content = {
        "metadata": {"component": product},
        "components": components,
        "dependencies": [{"ref": product["bom-ref"], "dependsOn": references}, *({"ref": one} for one in references)],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": SPEC_VERSION, "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return head | content


def _linked_sources(sizes: Sizes) -> list[Path]:
    """Sources of the SDK, relative to it, from which something was linked."""
    names = {file for owner, file in (*sizes.flash, *sizes.ram) if owner in ("sdk", "board") and file.endswith(".c")}
    by_name: dict[str, list[Path]] = {}
    for path in sorted(sdk_root().rglob("*.c")):
        by_name.setdefault(path.name, []).append(path.relative_to(sdk_root()))
    missing = sorted(names - by_name.keys())
    if missing:
        raise RigError(f"the map names sources that are not in the SDK: {', '.join(missing)}")
    # Where two files have one name, both are told: the map says no more.
    return sorted(path for name in names for path in by_name[name])


def _sdk(sources: Iterable[Path]) -> dict[str, Any]:
    """The SDK as a component, with its files."""
    header = (sdk_root() / "include" / "fedmote" / "fedmote.h").read_text(encoding="utf-8")
    found = _VERSION.search(header)
    if found is None:
        raise RigError("fedmote.h has no FEDMOTE_VERSION")
    files = [
        {"type": "file", "bom-ref": f"device_sdk/{path.as_posix()}", "name": f"device_sdk/{path.as_posix()}"}
        | {"hashes": [_hash((sdk_root() / path).read_bytes())]}
        for path in sources
    ]
    version = found[1]
    licence = [{"license": {"id": "Apache-2.0"}}]
    head = {"type": "library", "bom-ref": f"fedmote-device-sdk@{version}", "name": "fedmote-device-sdk", "version": version}
    return head | {"licenses": licence, "components": files}


def _libraries(sizes: Sizes) -> list[dict[str, Any]]:
    """Everything else that was linked: Monocypher, and what the compiler brings."""
    libraries = {name.removeprefix("lib") for owner, name in (*sizes.flash, *sizes.ram) if owner == "library"}
    known = {"monocypher", *_C_LIBRARIES}
    if strangers := sorted(libraries - known):
        raise RigError(f"the map names libraries that this program does not know: {', '.join(strangers)}")
    components = []
    if "monocypher" in libraries:
        components.append(_monocypher())
    for name in sorted({_C_LIBRARIES[name] for name in libraries & _C_LIBRARIES.keys()}):
        head = {"type": "library", "bom-ref": name, "name": name, "version": "of the compiler"}
        components.append(head | {"properties": _properties({"compiler": compiler_version()})})
    return components


def _monocypher() -> dict[str, Any]:
    """Monocypher with the pin of the distribution that its two files came in."""
    folder = crypto_sources()
    if folder is None:
        raise RigError("Monocypher was linked and is not here any more: python -m fedmote_hil.crypto")
    package, _, version = CRYPTO_RELEASE.rpartition("-")
    files = [
        {"type": "file", "bom-ref": f"monocypher/{name}", "name": name, "hashes": [_hash((folder / name).read_bytes())]}
        for name in ("monocypher.c", "monocypher.h")
    ]
    return {
        "type": "library",
        "bom-ref": "monocypher",
        "name": "monocypher",
        "version": version,
        "purl": f"pkg:pypi/{package}@{version}",
        "licenses": [{"expression": "BSD-2-Clause OR CC0-1.0"}],
        "hashes": [{"alg": "SHA-256", "content": CRYPTO_SHA256}],
        "components": files,
    }


def _hash(content: bytes) -> dict[str, str]:
    return {"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"fedmote:{name}", "value": value} for name, value in values.items()]


def main() -> int:
    """Write the bill of a board's image to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", required=True)
    options = parser.parse_args()
    try:
        sys.stdout.write(json.dumps(bill_of(build(Board.load(options.board))), indent=1) + "\n")
    except FedmoteError as error:
        sys.stderr.write(f"sbom: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
