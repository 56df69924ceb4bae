# SPDX-License-Identifier: Apache-2.0
"""The C device as hundreds of processes: each with its own identity, samples and slots, started without Python in between.

A device's events go to a file of its own, which is how the fleet knows who has a link, who was acknowledged, who is where.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fedmote.supervised import Group
from fedmote_hil.build import build
from fedmote_hil.faults.serving import proportional_bytes

# Events of the device and its states, as device_sdk/include/fedmote/fedmote.h numbers them.
LINK_UP, LINK_DOWN, STATE, PLAN, INSTALLED, ACK, REFUSED, ERROR = 1, 2, 3, 4, 5, 7, 8, 9
IDLE, FETCH, ENCODE, SELECT, TRAIN, REPORT = range(6)


class Device:
    """One device: its files, which outlive power cuts, and its process, which does not."""

    def __init__(self, group: Group, image: Path, directory: Path, id: str, link: Sequence[str], options: Sequence[str]) -> None:
        """Nothing runs yet.

        Args:
            group: what it ends with.
            image: fedmote-device.
            directory: with `identity.bin` and `samples.bin`.
            id: its name.
            link: options of its stream.
            options: further ones.
        """
        self.id = id
        self.directory = directory
        self.events = directory / "events.txt"
        self.link = list(link)
        self.options = list(options)
        self._group, self._image = group, image
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Power on; `options` for this time alone."""
        command: list[str | Path] = [self._image, "--identity", self.directory / "identity.bin"]
        command += ["--samples", self.directory / "samples.bin"]
        command += ["--events", *self.link, *self.options, *options]
        if "--flash" not in command:
            command += ["--flash", self.directory / "flash.bin"]
        with (self.directory / "stdout.txt").open("wb") as out, self.events.open("ab") as events:
            self._process = self._group.start(command, out, events)

    def forget(self) -> None:
        """A new part: its flash is empty, and its events begin anew. It must be off."""
        for file in (self.directory / "flash.bin", self.events):
            file.unlink(missing_ok=True)

    def cut_power(self) -> None:
        """Power off, at once. Harmless where it is off."""
        if self._process is not None:
            if self._process.poll() is None:
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def freeze(self) -> None:
        """It stands still: its connection stays, nothing is answered."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        """Whether it is on."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of a process that ended; None where it runs or never ran."""
        return None if self._process is None else self._process.poll()

    @property
    def pid(self) -> int:
        """Its process id; 0 where it never ran."""
        return 0 if self._process is None else self._process.pid

    def told(self) -> list[tuple[int, int]]:
        """Its events so far, over all its lives: (event, value)."""
        if not self.events.exists():
            return []
        lines = self.events.read_text(encoding="ascii", errors="replace").split("\n")[:-1]
        words = [line.split() for line in lines]
        return [(int(one[0]), int(one[1])) for one in words if len(one) == 2 and one[0].isdigit()]

    def count(self, event: int, value: int | None = None) -> int:
        """How often it told an event, with this value or with any."""
        return sum(one == event and value in (None, number) for one, number in self.told())

    @property
    def is_linked(self) -> bool:
        """Whether the last that it told of its link is that it is up."""
        links = [event for event, _ in self.told() if event in (LINK_UP, LINK_DOWN)]
        return bool(links) and links[-1] == LINK_UP


class Fleet:
    """Devices of one row."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self.devices = list(devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(self.devices)

    def __len__(self) -> int:
        return len(self.devices)

    def __getitem__(self, index: int) -> Device:
        return self.devices[index]

    def start(self) -> None:
        """All on, one right after the other."""
        for device in self.devices:
            device.start()

    def num_linked(self) -> int:
        """How many have a link."""
        return sum(device.is_linked for device in self.devices)

    def counts(self, event: int) -> list[int]:
        """How often each told an event."""
        return [device.count(event) for device in self.devices]

    def bytes_each(self) -> int:
        """Mean memory of a process, shared pages in proportion."""
        return sum(proportional_bytes(device.pid) for device in self.devices) // max(1, len(self.devices))


def image() -> Path:
    """The device's program, built where it is not."""
    return build("posix").path
