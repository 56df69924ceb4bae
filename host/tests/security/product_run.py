# SPDX-License-Identifier: Apache-2.0
"""The product from beginning to end as its users run it, watched: `python product_run.py DIR`.

Whatever stays is a process of its own, started by the real command; verbs that end at once share a process, to save time. What
each wrote, and the command line and the environment of every process that lived meanwhile, are kept in DIR for the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from fedmote.lab.demo.fleet import Fleet
from fedmote.supervised import free_tcp_port

LOOPBACK = Path(__file__).with_name("loopback")
LIMIT_S = 240.0
_SCAN_S = 0.02
_VERBS = "import json, sys; from fedmote.cli import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"


class Watch:
    """Notes command line and environment of every descendant of this process, as long as it is entered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[bytes] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._scan_until_end)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
        self._path.write_bytes(b"\n".join(sorted(self._seen)))

    def _scan_until_end(self) -> None:
        while not self._end.wait(_SCAN_S):
            for process in descendants(os.getpid()):
                for name in ("cmdline", "environ"):
                    try:
                        self._seen.add(name.encode() + b" " + (process / name).read_bytes())
                    except OSError:  # it ended meanwhile
                        continue


def descendants(root: int) -> list[Path]:
    """Folders in /proc of all processes below one."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    below, front = [], {root}
    while front:
        front = {pid for pid, parent in parents.items() if parent in front}
        below += [Path("/proc") / str(pid) for pid in front]
    return below


def run(directory: Path) -> None:
    """Make a fleet, run a round, change the fleet, look at everything."""
    desk, words = directory / "desk", directory / "words"
    port = free_tcp_port()
    with Watch(directory / "processes"), Fleet(words, [LOOPBACK]) as fleet:

        def do(name: str, *commands: list[str | Path]) -> None:
            texts = json.dumps([[str(one) for one in command] for command in commands])
            paths = os.pathsep.join([str(LOOPBACK), os.environ["PYTHONPATH"]])
            with (words / f"{name}.out").open("wb") as out, (words / f"{name}.log").open("wb") as log:
                command = [sys.executable, "-c", _VERBS, texts]
                subprocess.run(
                    command, stdout=out, stderr=log, env={**os.environ, "PYTHONPATH": paths}, timeout=LIMIT_S, check=True
                )

        config = ["--config", desk / "coordinator.toml"]
        image = ["--identity-image", desk / "device-2.bin", "--board", "stm32f405"]
        of_desk = ["--role", "device", "--cell", "desk", *config]
        do(
            "enrol",
            ["new", desk, "--tcp-port", str(port), "--json"],
            ["enroll", "add", "device-2", *of_desk, "--json"],
            ["enroll", "rotate", "device-2", *image, *config],
            ["enroll", "add", "device-3", *of_desk],
            ["enroll", "export", desk / "fleet.json", *config],
        )
        for device in ("device-2", "device-3"):
            keep_secrets(desk, directory / "revoked", device)
        do(
            "revoke",
            ["enroll", "revoke", "device-2", *config, "--json"],
            ["enroll", "revoke", "device-3", *config],
            ["broker", "check", desk / "broker"],
        )
        fleet.start("broker", "broker", "run", desk / "broker")
        fleet.start("partner", "partner", desk / "partner.toml", "--json")
        data = ["--data", desk / "data/device-1.npz", "--send-samples", "--state", directory / "device-state"]
        login = ["--credentials", desk / "broker/credentials/device-1.toml", "--broker", f"mqtt://127.0.0.1:{port}"]
        fleet.start("device", "device", "--board", "posix", "--id", "device-1", *data, *login)
        # The round waits for the slower one, however busy this machine is.
        patience = ["--set", "windows.selection_s=200", "--set", "windows.report_s=200"]
        serve = fleet.start("serve", "serve", desk / "coordinator.toml", "--set", "run.rounds=1", *patience, "--json")
        fleet.watch(serve, LIMIT_S)
        assert json.loads(serve.out.read_text())["rounds"][0]["reported"] == 2
        files = ("coordinator.toml", "partner.toml", "broker/credentials/device-1.toml", "broker/credentials/partner-1.keys.toml")
        do(
            "look",
            *(["config", "show", desk / file, "--json"] for file in files),
            *([verb, "list", *config, "--json"] for verb in ("enroll", "rounds", "checkpoint")),
            ["rounds", "show", "1", *config, "--json"],
            ["checkpoint", "export", "1", "-o", directory / "exported", *config],
        )


def keep_secrets(desk: Path, to: Path, device: str) -> None:
    """Copy credentials that a revocation is about to remove: what they hold must be nowhere else either."""
    to.mkdir(mode=0o700, exist_ok=True)
    source = desk / f"broker/credentials/{device}.toml"
    copy = to / source.name
    copy.touch(mode=0o600)
    copy.write_bytes(source.read_bytes())


if __name__ == "__main__":
    run(Path(sys.argv[1]))
