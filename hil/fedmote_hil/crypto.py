# SPDX-License-Identifier: Apache-2.0
"""Fetches Monocypher for the images: `python -m fedmote_hil.crypto`.

The library's two C files travel in the source distribution of `pymonocypher` (PyPI), which is pinned by its hash. They are
put where builds look for them; images that are built before, or without a network, check packages by CRC-32 alone and say
so in their status.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from fedmote.errors import FedmoteError, RigError
from fedmote_hil.build import CRYPTO_RELEASE, cache_directory, crypto_sources

SHA256 = "5e56e3d3eb770a53e0b9f6274146663c11a11f3d0de5cd48e3be0428d1b07a4a"
_FILES = ("monocypher.c", "monocypher.h")


def fetch() -> Path:
    """Puts the two files into the cache, if they are not there, and returns their folder.

    Raises:
        RigError: the distribution cannot be fetched, or is not the pinned one.
    """
    if (present := crypto_sources()) is not None:
        return present
    folder = cache_directory() / CRYPTO_RELEASE
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedmote-crypto-") as temporary:
        archive = _download(Path(temporary))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise RigError(f"{archive.name} is not the pinned one: its SHA-256 is not {SHA256}")
        with tarfile.open(archive) as files:
            for name in _FILES:
                member = files.extractfile(f"{CRYPTO_RELEASE}/{name}")
                if member is None:
                    raise RigError(f"{archive.name} has no {name}")
                whole = folder / f"{name}.{os.getpid()}"
                whole.write_bytes(member.read())
                whole.rename(folder / name)  # at once: a build beside us sees all of it or nothing
    return folder


def _download(directory: Path) -> Path:
    name, _, version = CRYPTO_RELEASE.rpartition("-")
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{name}=={version} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name]
    command += ["--require-hashes", "--dest", str(directory), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = directory / f"{CRYPTO_RELEASE}.tar.gz"
    if result.returncode != 0 or not archive.is_file():
        said = result.stderr.strip().splitlines()
        raise RigError(f"pip could not fetch {CRYPTO_RELEASE}: {said[-1] if said else 'it says nothing'}")
    return archive


if __name__ == "__main__":
    try:
        sys.stderr.write(f"Monocypher is in {fetch()}\n")
    except FedmoteError as error:
        sys.exit(f"crypto: {error}")
