# SPDX-License-Identifier: Apache-2.0
"""The manifests of the ecosystems agree on the version, and the library builds and installs as a CMake package."""

import json
import re
import subprocess
import tomllib

from fedmote.package.boards import sdk_root
from fedmote_hil.build import find_tool

_CONSUMER = """
cmake_minimum_required(VERSION 3.21)
project(consumer LANGUAGES C)
find_package(fedmote REQUIRED)
add_executable(consumer main.c)
target_link_libraries(consumer PRIVATE fedmote::device)
"""


def _found(pattern, path):
    found = re.search(pattern, (sdk_root() / path).read_text(encoding="utf-8"))
    assert found is not None, path
    return found[1]


def test_all_manifests_have_the_version_of_the_distribution():
    version = tomllib.loads((sdk_root().parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert _found(r'FEDMOTE_VERSION "(.+)"', "include/fedmote/fedmote.h") == version
    assert _found(r"project\(fedmote VERSION (\S+)", "CMakeLists.txt") == version
    assert _found(r'version: "(.+)"', "idf_component.yml") == version
    assert json.loads((sdk_root() / "library.json").read_text(encoding="utf-8"))["version"] == version


def test_an_installed_library_is_found_and_linked_by_another_project(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "CMakeLists.txt").write_text(_CONSUMER)
    (tmp_path / "app" / "main.c").write_text(
        '#include "fedmote/fedmote.h"\nint main(void) { return fedmote_step(0) > 0 ? 0 : 1; }\n'
    )
    cmake = find_tool("cmake")
    ninja = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}"]
    steps = [
        [cmake, "-S", sdk_root(), "-B", tmp_path / "sdk", *ninja, f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'prefix'}"],
        [cmake, "--build", tmp_path / "sdk", "--target", "install"],
        [
            cmake,
            "-S",
            tmp_path / "app",
            "-B",
            tmp_path / "app" / "b",
            "-G",
            "Ninja",
            f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}",
        ],
        [cmake, "--build", tmp_path / "app" / "b"],
    ]
    for step in steps:
        result = subprocess.run([str(part) for part in step], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
