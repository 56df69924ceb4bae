# SPDX-License-Identifier: Apache-2.0
"""A thousand participants in one process, and participants beside a row: asyncio in the background.

`Crowd` is the process: it tells twice a second, in one line of JSON, how many are connected, have a plan, were acknowledged.
`Background` is a loop in a thread of the row, for the few participants that a row wants to talk to.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fedmote.errors import ConfigError
from fedmote.supervised import Group
from fedmote.wire.schema import Role
from fedmote_hil.faults.matrix import NotRunError, VainError
from fedmote_hil.faults.member import Conduct, Member
from fedmote_hil.faults.serving import environment
from fedmote_hil.faults.site import SITE, Site

_SPARE_DESCRIPTORS = 100
_TOLD_EVERY_S = 0.25
_ENTRY = "import sys; from fedmote_hil.faults.crowd import main; main(sys.argv[1])"
_Value = TypeVar("_Value")


class Background:
    """An event loop in a thread. Use as a context manager; what runs in it ends with it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="participants", daemon=True)

    def run(self, work: Coroutine[Any, Any, _Value], timeout_s: float = 60.0) -> _Value:
        """Run something to its end; its value. TimeoutError where it takes longer."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin something that ends with the loop."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def member(site: Site, number: int, conduct: Conduct | None = None) -> Member:
    """A participant in the place of a device of the site."""
    return _participant(site, site.names[number], conduct, Role.DEVICE, "posix")


def partner(site: Site, name: str, conduct: Conduct | None = None) -> Member:
    """A participant in the place of a partner of the site."""
    return _participant(site, name, conduct, Role.PARTNER, "partner")


def _participant(site: Site, name: str, conduct: Conduct | None, role: Role, board: str) -> Member:
    if site.broker is None:
        raise ConfigError("participants in Python speak MQTT: the site needs a broker")
    host, tcp_port = site.address().split(":")
    return Member((host, int(tcp_port)), SITE, name, site.broker.password(name), conduct, role, board)


class Crowd:
    """Many participants as one process that ends with the site.

    Args:
        site: whose devices they are.
        numbers: which.
    """

    def __init__(self, site: Site, numbers: Sequence[int]) -> None:
        if site.broker is None:
            raise ConfigError("participants in Python speak MQTT: the site needs a broker")
        raise_descriptor_limit(len(numbers) + _SPARE_DESCRIPTORS)
        host, tcp_port = site.address().split(":")
        specification = site.directory / "crowd.json"
        names = {site.names[number]: site.broker.password(site.names[number]) for number in numbers}
        content = {"host": host, "port": int(tcp_port), "site": SITE, "names": names}
        specification.write_text(json.dumps(content), encoding="utf-8")
        self._out, log = site.directory / "crowd.out", site.directory / "crowd.log"
        with self._out.open("wb") as out, log.open("wb") as errors:
            group: Group = site.group
            self.process = group.start([sys.executable, "-c", _ENTRY, str(specification)], out, errors, environment())
        self._log = log

    def told(self) -> dict[str, float]:
        """The newest line."""
        lines = self._out.read_text(encoding="utf-8").split("\n")[:-1]
        newest: dict[str, float] = json.loads(lines[-1]) if lines else {"connected": 0, "planned": 0, "acked": 0, "rounds": 0}
        return newest

    def wait(self, what: str, count: int, timeout_s: float) -> float:
        """Wait until a number of the newest line is reached; the monotonic time at which it was.

        Raises:
            VainError: it was not, or the process ended.
        """
        deadline = time.monotonic() + timeout_s
        while (told := self.told())[what] < count:
            if time.monotonic() > deadline or self.process.poll() is not None or told.get("broken"):
                words = self._log.read_text(encoding="utf-8", errors="replace")[-300:]
                raise VainError(f"{what}: {told[what]} of {count} after {timeout_s:g} s {words}")
            time.sleep(0.05)
        return time.monotonic()


def raise_descriptor_limit(count: int) -> None:
    """Let this process and its children have so many descriptors; NotRunError where the machine does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise NotRunError(f"{count} descriptors are needed, the limit is {hard}; see `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def main(path: str) -> None:
    """The process of a crowd."""
    specification = json.loads(Path(path).read_text(encoding="utf-8"))
    asyncio.run(_crowd(specification))


async def _crowd(specification: dict[str, Any]) -> None:
    address = (specification["host"], specification["port"])
    members = [Member(address, specification["site"], id, password) for id, password in specification["names"].items()]
    tasks = [asyncio.create_task(one.run()) for one in members]
    while True:
        told = {
            "connected": sum(one.is_connected for one in members),
            "planned": sum(one.plan is not None for one in members),
            "acked": sum(bool(one.acked) for one in members),
            "rounds": sum(len(one.acked) for one in members),
            "connections": sum(one.num_connections for one in members),
            "refusals": sum(len(one.refusals) for one in members),
            "broken": sum(task.done() for task in tasks),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        await asyncio.sleep(_TOLD_EVERY_S)
