# SPDX-License-Identifier: Apache-2.0
"""`fedmote new`: what it writes can be started; what exists is not touched."""

import json
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from fedmote.cli import main
from fedmote.config import CoordinatorConfig, Credentials, PartnerConfig, PartnerCredentials, load
from fedmote.fleet import Registry
from fedmote.lab.demo.settings import FederationSettings
from fedmote.package.partition import Partition
from fedmote.package.signature import SigningKey
from fedmote.transport.broker import find_mosquitto


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    target = tmp_path_factory.mktemp("new") / "desk"
    assert main(["new", str(target), "--tcp-port", "18999", "--json"]) == 0
    return target


def test_the_configurations_are_sound_and_agree(made):
    coordinator = load(CoordinatorConfig, made / "coordinator.toml")
    partner = load(PartnerConfig, made / "partner.toml")
    credentials = load(Credentials, made / "broker/credentials/device-1.toml")
    assert coordinator.run.site == partner.site == credentials.site
    with Registry.open(coordinator.security.registry) as registry:
        (cell,) = registry.cells()
        assert registry.key(credentials.id) == credentials.key_bytes
        keys = load(PartnerCredentials, partner.credentials_file)
        assert registry.key(partner.id) == keys.key_bytes
    assert cell.devices == tuple(device.id for device in partner.devices) == (credentials.id,)
    assert cell.partner == partner.id == keys.id
    assert keys.cell_key(credentials.id) == credentials.cell_key_bytes is not None
    assert coordinator.broker.url == partner.broker.url == "mqtt://127.0.0.1:18999"
    assert main(["config", "check", str(made / "coordinator.toml"), str(made / "partner.toml")]) == 0


def test_strategy_is_the_one_that_was_chosen_for_this_model_and_these_data(made):
    written, chosen = load(CoordinatorConfig, made / "coordinator.toml").strategy, FederationSettings()
    for name in ("form", "learning_rate", "momentum", "epochs", "batch", "partner_learning_rate", "partner_momentum"):
        assert getattr(written, name) == getattr(chosen, name), name


def test_partition_and_data_belong_together(made):
    package = Partition.load(made / "model").packages["stm32f405"]
    with np.load(made / "data/device-1.npz") as data:
        assert data["x"].dtype == np.int8
        assert data["x"][0].size == package.header.input_count
        assert 0 < len(data["x"]) <= 256


def test_secrets_are_for_the_owner_alone(made):
    for path in (*(made / "broker").rglob("*"), *(made / "fleet").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_directory_with_content_is_refused_and_left_alone(made, capsys):
    before = sorted(made.rglob("*"))
    assert main(["new", str(made)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert sorted(made.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--site", "Not A Site"], ["--tcp-port", "0"]])
def test_bad_arguments_leave_nothing_behind(tmp_path, arguments):
    assert main(["new", str(tmp_path / "desk"), *arguments]) == 2
    assert not list(tmp_path.iterdir())


REVOCATION_LIMIT_S = 5.0


def await_line(process, words: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while words not in process.log.read_text():
        assert time.monotonic() < deadline, process.quote()
        time.sleep(0.02)


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_broker_coordinator_partner_and_device_start_from_it_and_merge_rounds_until_one_is_revoked(tmp_path):
    from fedmote.lab.demo.fleet import Fleet
    from fedmote.supervised import free_tcp_port

    port = free_tcp_port()
    target = tmp_path / "desk"
    assert main(["new", str(target), "--tcp-port", str(port)]) == 0
    credentials = load(Credentials, target / "broker/credentials/device-1.toml")
    assert credentials.verify_key_bytes == SigningKey.read(target / "signing.key").verify_key, "its packages must be signed"
    with Fleet(tmp_path / "logs") as fleet:
        fleet.start("broker", "broker", "run", target / "broker")
        fleet.start("partner", "partner", target / "partner.toml")
        data = ["--data", target / "data/device-1.npz", "--send-samples"]
        login = ["--credentials", target / "broker/credentials/device-1.toml", "--broker", f"mqtt://127.0.0.1:{port}"]
        fleet.start("device", "device", "--board", "posix", "--id", "device-1", *data, *login)
        patience = ["--set", "windows.selection_s=100"]  # the first round waits for the slower one
        serve = fleet.start("serve", "serve", target / "coordinator.toml", "--set", "run.rounds=2", *patience, "--json")
        fleet.watch(serve, 120.0)
        result = json.loads(serve.out.read_text())
        again = fleet.start("again", "serve", target / "coordinator.toml", "--set", "run.rounds=100000")
        await_line(again, "round 3", 60.0)
        start = time.monotonic()
        assert main(["enroll", "revoke", "device-1", "--config", str(target / "coordinator.toml")]) == 0
        await_line(again, "device-1: its key was revoked", REVOCATION_LIMIT_S - (time.monotonic() - start))
        print(f"the coordinator acts on a revocation after {time.monotonic() - start:.2f} s")
        again.stop()
    assert result["is_complete"]
    assert [one["reported"] for one in result["rounds"]] == [2, 2]
    sent = [update["sent"] for update in result["rounds"][0]["updates"] if update["role"] == "device"]
    assert sent[0] > 0
    examples = [update["num_examples"] for update in result["rounds"][0]["updates"] if update["role"] == "partner"]
    assert examples[0] > 0


def test_a_process_of_the_fleet_ends_with_it(tmp_path):
    from fedmote.lab.demo.fleet import Fleet

    with Fleet(tmp_path) as fleet:
        process = fleet.start("doctor", "doctor", "--json")
        assert process.exit_code is None or process.exit_code in (0, 1)
    assert process.exit_code is not None


def test_processes_of_a_killed_demonstration_end_by_themselves(tmp_path):
    """The parent is killed without any chance to clean up; its child, which would run for ever, must go."""
    listening = "import socket,sys; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); s.accept()"
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom fedmote.lab.demo import fleet\n"
        f"fleet._ENTRY = {listening!r}\n"
        "f = fleet.Fleet(Path(sys.argv[1]))\np = f.start('child')\nprint(p.first_line(30), flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    port = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    import socket

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
            # The child took our call and ends by itself: ask again at the listening port, which must be gone.
        time.sleep(0.1)
    pytest.fail("the child outlived its parent")
