# SPDX-License-Identifier: Apache-2.0
"""Runs over real links and in a real process: broker and direct links at once, kill -9, SIGTERM, the verbs afterwards."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from fedmote.config import CellConfig, CoordinatorConfig, RunConfig, WindowsConfig
from fedmote.coordinator import Coordinator, DeployedPartition
from fedmote.fleet.registry import Registry
from fedmote.store import Ledger
from fedmote.transport.broker import PrivateBroker, find_mosquitto
from fedmote.transport.link import LinkServer, SerialLink
from fedmote.transport.mqtt import CoordinatorMqtt, PartnerMqtt
from fedmote.wire.schema import Role

from .conftest import CELLS, Actor
from .conversion import HEAD_NAMES, tensors, write_conversion

MAIN = "import sys; from fedmote.cli import main; sys.exit(main())"


class Lines:
    """Ends of participants over TCP or MQTT, as the actors ask for them."""

    def __init__(self, url=None, broker=None):
        self.url, self.broker = url, broker
        self.ends = []

    def participant(self, id, seals=None):
        if self.broker is None:
            end = SerialLink(self.url, id, seals=seals)
        else:
            end = PartnerMqtt(self.broker.url, "site", id, [], self.broker.password(id), seals=seals)
        self.ends.append(end)
        return end


def real_actors(names, hello_s=0.1, keys=None):
    made = {}
    for who in names:
        role = Role.PARTNER if who.startswith("phone") else Role.DEVICE
        actor = Actor(who, role, hello_s=hello_s, tensors=tensors(), head=HEAD_NAMES, activations=("x", "f"))
        actor.board = "partner" if role is Role.PARTNER else "posix"
        actor.key = None if keys is None else keys[who]
        made[who] = actor
    return made


NAMES = [who for cell in CELLS for who in cell.participants]


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_broker_and_direct_links_are_one_fleet(tmp_path):
    directory = write_conversion(tmp_path / "tiny")
    config = CoordinatorConfig(
        run=RunConfig("site", "run", tmp_path / "state", directory, directory / "test.npz", rounds=2, seed=1),
        cells=CELLS,
        listen="tcp://127.0.0.1:0",
        windows=WindowsConfig(selection_s=20.0, report_s=20.0, wait_ms=50),
    )
    cells = (CellConfig("home-1", ("board-1", "board-2"), "phone-1"),)

    async def serve(broker):
        server = LinkServer("tcp://127.0.0.1:0")
        mqtt = CoordinatorMqtt(broker.url, "site", "coordinator", broker.password("coordinator"))
        coordinator = Coordinator(config, [mqtt, server], DeployedPartition(directory, directory / "test.npz"))
        running = asyncio.create_task(coordinator.run())
        while server.url.endswith(":0"):
            await asyncio.sleep(0.01)
        actors = real_actors(NAMES)
        lines, mqtts = Lines(url=server.url), Lines(broker=broker)
        tasks = [
            asyncio.create_task(actor.run(mqtts if who in cells[0].participants else lines)) for who, actor in actors.items()
        ]
        try:
            return await asyncio.wait_for(running, 60)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in [*lines.ends, *mqtts.ends]:
                await end.close()

    with PrivateBroker(tmp_path / "broker", "site", cells) as broker:
        result = asyncio.run(serve(broker))
    assert result.is_complete
    assert [entry.reported for entry in result.rounds] == [3, 2]
    assert all(0.0 <= entry.accuracy <= 1.0 for entry in result.rounds)


def write_config(tmp_path, name, rounds):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tcp_port = probe.getsockname()[1]
    cells = "".join(
        f'[[cells]]\nname = "{cell.name}"\ndevices = {json.dumps(list(cell.devices))}\npartner = "{cell.partner}"\n'
        for cell in CELLS
    )
    path = tmp_path / f"{name}.toml"
    path.write_text(
        f'listen = "tcp://127.0.0.1:{tcp_port}"\n'
        f'[run]\nsite = "site"\nname = "run"\nstate_directory = "{name}"\npartition_directory = "tiny"\n'
        f'test_data = "tiny/test.npz"\nrounds = {rounds}\nseed = 3\n'
        f"[windows]\nselection_s = 30\nreport_s = 60\nwait_ms = 50\n{cells}"
    )
    return path, f"tcp://127.0.0.1:{tcp_port}"


class Served:
    """`fedmote serve` in a process of its own, with participants in this one."""

    def __init__(self, path, url, keys=None):
        self.path, self.url, self.keys = path, url, keys

    def start(self, *arguments, program=MAIN):
        return subprocess.Popen(
            [sys.executable, "-c", program, "serve", str(self.path), "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    async def run(self, on_line, actors=None):
        """Participants meet the process; `on_line(process, line)` sees its talk and returns the process to go on with."""
        process = self.start()
        loop = asyncio.get_running_loop()
        tasks = []
        lines = Lines(url=self.url)
        try:
            while True:
                line = await loop.run_in_executor(None, process.stderr.readline)
                if not line:
                    break
                if "listening" in line and not tasks:
                    met = actors or real_actors(NAMES, keys=self.keys)
                    tasks = [asyncio.create_task(actor.run(lines)) for actor in met.values()]
                process = on_line(process, line)
            return await loop.run_in_executor(None, process.communicate), process.returncode
        finally:
            process.kill()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in lines.ends:
                await end.close()

    def serve(self, on_line=lambda process, line: process, actors=None):
        (out, _), code = asyncio.run(asyncio.wait_for(self.run(on_line, actors), 120))
        return (json.loads(out) if out else None), code


def checkpoint_bytes(directory):
    return {path.name: path.read_bytes() for path in sorted((directory / "checkpoints").iterdir())}


def enrolled(tmp_path, path):
    """Give everybody a key, and the configuration a registry."""
    with Registry.open(tmp_path / "fleet", is_made=True) as registry:
        roles = {who: Role.PARTNER if who == cell.partner else Role.DEVICE for cell in CELLS for who in cell.participants}
        keys = {who: registry.add(who, roles[who], cell.name) for cell in CELLS for who in cell.participants}
    with path.open("a") as file:
        file.write('[security]\nregistry = "fleet"\n')
    return keys


@pytest.mark.parametrize("is_sealed", [False, True], ids=["readable", "sealed"])
def test_kill_9_of_the_real_process_costs_nothing(tmp_path, is_sealed):
    """In sealed messages the participants live on with the epoch of a dead coordinator, and learn that of the next one."""
    write_conversion(tmp_path / "tiny")
    quiet = Served(*write_config(tmp_path, "quiet", 2))
    result, code = quiet.serve()
    assert (code, result["is_complete"]) == (0, True)

    path, url = write_config(tmp_path, "killed", 2)
    killed = Served(path, url, enrolled(tmp_path, path) if is_sealed else None)
    kills = []

    def kill(process, line):
        """The first time an update was journaled, and again in the partner round."""
        word = "1 of 3 reported" if not kills else "1 of 2 reported"
        if len(kills) < 2 and word in line:
            kills.append(line)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return killed.start()
        return process

    again, code = killed.serve(kill)
    assert len(kills) == 2
    assert (code, again["is_complete"]) == (0, True)
    assert checkpoint_bytes(tmp_path / "killed") == checkpoint_bytes(tmp_path / "quiet")
    with Ledger.open(tmp_path / "killed" / "ledger.sqlite", is_read_only=True) as ledger:
        assert [len(ledger.updates(number)) for number in (1, 2)] == [3, 2]


def verb(*arguments):
    return subprocess.run([sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, env=dict(os.environ))


def test_sigterm_stops_quickly_with_code_0_and_the_next_start_goes_on(tmp_path):
    write_conversion(tmp_path / "tiny")
    served = Served(*write_config(tmp_path, "state", 2))
    stopped = []

    def stop(process, line):
        if "checkpoint 1" in line and not stopped:
            stopped.append(time.monotonic())
            process.send_signal(signal.SIGTERM)
        return process

    result, code = served.serve(stop)
    assert code == 0
    assert not result["is_complete"]
    again, code = served.serve()
    assert (code, again["is_complete"], again["run"]) == (0, True, result["run"])

    listed = verb("rounds", "list", "--config", str(served.path), "--json")
    assert [entry["state"] for entry in json.loads(listed.stdout)["rounds"]] == ["committed", "committed"]
    assert "partner" in verb("rounds", "list", "--config", str(served.path)).stdout
    assert "board-1" in verb("rounds", "show", "1", "--state", str(tmp_path / "state")).stdout
    assert verb("rounds", "show", "9", "--state", str(tmp_path / "state")).returncode == 2
    listed = verb("checkpoint", "list", "--config", str(served.path), "--json")
    assert [entry["version"] for entry in json.loads(listed.stdout)["checkpoints"]] == [0, 1, 2]
    exported = verb("checkpoint", "export", "2", "--config", str(served.path), "-o", str(tmp_path / "out"), "--json")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert exported.returncode == 0
    assert names == ["checkpoint.safetensors", "tiny-posix.fmp", "tiny-stm32f405.fmp"]
    DeployedPartition(tmp_path / "out", tmp_path / "tiny" / "test.npz")  # an export is a conversion again
    one = verb("checkpoint", "export", "1", "--config", str(served.path), "-o", str(tmp_path / "m.safetensors"))
    assert one.returncode == 0
    assert (tmp_path / "m.safetensors").exists()


@contextlib.contextmanager
def waiting_process(tmp_path, program=MAIN):
    """A coordinator that listens, and nobody comes."""
    write_conversion(tmp_path / "tiny")
    served = Served(*write_config(tmp_path, "state", 2))
    process = served.start(program=program)
    try:
        while "listening" not in process.stderr.readline():
            pass
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_process_within_two_seconds_with_its_code(tmp_path, number, code):
    with waiting_process(tmp_path) as process:
        began = time.monotonic()
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
        assert time.monotonic() - began <= 2.0
        assert process.returncode == code
        assert json.loads(out)["version"] == 0


def test_a_second_interrupt_forces_the_end_although_everything_is_stuck(tmp_path):
    stuck = "import time; from fedmote.coordinator import Coordinator; Coordinator.stop = lambda self: time.sleep(60); "
    with waiting_process(tmp_path, stuck + MAIN) as process:
        process.send_signal(signal.SIGINT)
        while "once more to force" not in process.stderr.readline():
            pass
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert time.monotonic() - began <= 2.0


def test_run_that_is_given_up_ends_with_code_1_and_one_line(tmp_path):
    write_conversion(tmp_path / "tiny")
    path, _ = write_config(tmp_path, "state", 2)
    short = [
        "--set",
        "windows.selection_s=0",
        "--set",
        "windows.report_s=0.1",
        "--set",
        "windows.max_failed_rounds=2",
        "--set",
        "windows.after_failures=end",
    ]
    done = verb("serve", str(path), "--json", *short)
    assert done.returncode == 1
    assert json.loads(done.stdout)["complaint"]
    assert done.stderr.splitlines()[-1].startswith("fedmote: 2 rounds in a row failed")
