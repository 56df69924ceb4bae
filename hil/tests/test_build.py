# SPDX-License-Identifier: Apache-2.0
import concurrent.futures
import shutil

import pytest

from fedmote.errors import RigError
from fedmote.package import boards
from fedmote.package.boards import Board, sdk_root
from fedmote_hil import build as build_module
from fedmote_hil.build import build, find_tool


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_missing_tool_is_an_error_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RigError, match=r"arm-none-eabi-gcc is missing: apt-get install gcc-arm-none-eabi"):
        find_tool("arm-none-eabi-gcc")


def test_a_build_without_the_cross_compiler_is_refused_before_anything_is_made(cache, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RigError, match="arm-none-eabi-gcc is missing"):
        build("stm32f405")
    assert not list(cache.rglob("build.ninja"))


def test_parallel_callers_share_one_build(cache):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: build("posix"), range(4)))
    assert len({image.path for image in images}) == 1
    assert images[0].path.stat().st_mode & 0o100
    assert len(list(cache.glob("fedmote/build/*/done"))) == 1


def test_another_source_is_another_build_and_its_mistakes_are_shown(cache, monkeypatch, tmp_path):
    copy = tmp_path / "device_sdk"
    shutil.copytree(sdk_root(), copy, ignore=shutil.ignore_patterns("build"))
    monkeypatch.setattr(boards, "sdk_root", lambda: copy)
    monkeypatch.setattr(build_module, "sdk_root", lambda: copy)
    broken = copy / "src" / "schema.c"
    broken.write_text(broken.read_text() + "\nint broken = no_such_name;\n")
    with pytest.raises(RigError, match="no_such_name"):
        build(Board.load("posix"))
