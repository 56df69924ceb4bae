# SPDX-License-Identifier: Apache-2.0
"""What the tests of boards share: small packages and regions, a peer on a socket, and what a machine without tools skips."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import pytest

from fedmote.package.boards import Board, board_names, boards_with
from fedmote.package.file import Package, build_package
from fedmote.package.graph import HeadLayer
from fedmote.package.specimen import random_int8_graph
from fedmote.wire import codec
from fedmote.wire.frame import FrameDecoder
from fedmote.wire.regions import identity_region, samples_region
from fedmote_hil.build import build
from fedmote_hil.virtual import VirtualDevice

_EMULATOR_TOOLS = ("qemu-system-arm", "arm-none-eabi-gcc")
_missing = [tool for tool in _EMULATOR_TOOLS if shutil.which(tool) is None]


def emulator_test(function):
    """Marks a test that needs the emulator; on a machine without it the test is skipped, by the name of what is missing."""
    skipped = pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")(function)
    return pytest.mark.emulator(skipped)


def _emulated(name: str):
    """A board as a parameter of a test, with the marks of `emulator_test`."""
    skipped = pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")
    return pytest.param(name, marks=[pytest.mark.emulator, skipped])


# One parameter per kind of virtual board: those that can be federated devices.
BOARDS = ("posix", *(_emulated(name) for name in boards_with("fedmote-device") if name != "posix"))
# Those that run and count packages alone.
EMULATED_BOARDS = tuple(_emulated(name) for name in board_names() if name not in boards_with("fedmote-device"))


def small_package(seed: int, board: str, classes: int = 3) -> Package:
    """A package of a random encoder and a random head."""
    graph = random_int8_graph(seed)
    features = int(np.prod(graph.activations[graph.output].shape))
    rng = np.random.default_rng(seed)
    head = {
        "head.weight": rng.normal(size=(classes, features)).astype(np.float32),
        "head.bias": rng.normal(size=classes).astype(np.float32),
    }
    layer = HeadLayer("head.weight", "head.bias", features, classes)
    return build_package(None, graph, [layer], head, {}, Board.load(board), "specimen", 1)


def regions(name: str = "board-1", link: str = "serial", count: int = 4, input_bytes: int = 12) -> tuple[bytes, bytes]:
    """Samples and identity of a device."""
    rng = np.random.default_rng(count)
    x = rng.integers(-128, 128, (count, input_bytes)).astype(np.int8)
    return samples_region(x, np.arange(count) % 3), identity_region(name, "lab", link, name, "secret")


def stack_used(device: VirtualDevice) -> int:
    """Bytes of stack that a checked image on an emulated board has touched since its start: memory is zero before."""
    image = build(device.board, is_checked=True)
    listing = subprocess.run(["arm-none-eabi-nm", str(image.path)], capture_output=True, text=True, check=True).stdout
    symbols = {
        name: int(address, 16) for address, _, name in (line.split() for line in listing.splitlines() if len(line.split()) == 3)
    }
    ram, base = device.halt_and_read("ram"), device.board.region("ram").address
    stack = ram[symbols["image_stack_bottom"] - base : symbols["image_stack_top"] - base]
    return len(stack.lstrip(b"\0"))


@contextlib.contextmanager
def listener() -> Iterator[socket.socket]:
    """A socket that waits for a device on a free port of this machine."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(30)
        yield server


def link_of(server: socket.socket) -> str:
    """The link of a device that shall connect there."""
    return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def first_message(connection: socket.socket) -> codec.Message:
    """The first message that comes in serial frames; fails after 30 s."""
    connection.settimeout(30)
    decoder = FrameDecoder()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        received = connection.recv(4096)
        assert received, "the device closed the line"
        for frame in decoder.feed(received):
            return codec.decode(frame.kind, frame.body)
    raise AssertionError("no message within 30 s")
