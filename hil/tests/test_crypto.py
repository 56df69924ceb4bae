# SPDX-License-Identifier: Apache-2.0
import contextlib
import hashlib
import subprocess
import zlib

import pytest

from fedmote.errors import RigError
from fedmote_hil import crypto
from fedmote_hil.build import crypto_sources
from fedmote_hil.virtual import VirtualDevice

from .rig import BOARDS, first_message, link_of, listener, regions, small_package


def _with_wrong_hash(package):
    """The package with a bit of its hash turned over and a checksum that fits."""
    content = bytearray(package)
    content[16] ^= 1
    content[12:16] = zlib.crc32(bytes(content[:12] + content[16:])).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.skipif(crypto_sources() is None, reason="not fetched: python -m fedmote_hil.crypto")
@pytest.mark.parametrize("board", BOARDS)
def test_a_package_with_a_wrong_hash_and_a_right_checksum_is_not_installed(board):
    samples, identity = regions()
    package = small_package(2, board)
    assert hashlib.blake2b(package.device_form()[:12] + package.device_form()[48:], digest_size=32).digest() == package.hash
    for content, is_installed in ((package.device_form(), True), (_with_wrong_hash(package.device_form()), False)):
        with listener() as server, VirtualDevice(board, "d", samples, identity, link_of(server), package=content):
            connection, _ = server.accept()
            with contextlib.closing(connection):
                assert ("model_hash" in first_message(connection)) is is_installed


def test_without_a_network_nothing_is_kept_and_the_reason_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no route to host\n")
    monkeypatch.setattr(crypto.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RigError, match="no route to host"):
        crypto.fetch()
    assert crypto_sources() is None
