# SPDX-License-Identifier: Apache-2.0
"""The whole product, watched: no secret leaves its private file, no process reaches for another machine.

The run happens in a network namespace that has the loopback interface and nothing else, where the system lets us make one.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedmote.config import Credentials, PartnerCredentials, load
from fedmote.transport.broker import find_mosquitto

HERE = Path(__file__).parent
LIMIT_S = 600
# Where secrets belong: credentials, pre-shared keys of the broker, the registry, a backup, identity regions.
HOMES = (
    "desk/broker/credentials/",
    "desk/broker/psk",
    "desk/fleet/",
    "desk/fleet.json",
    "device-state/identity",
    "desk/device-2.bin",
    "revoked/",
)

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system has no /proc to look into"),
]


def namespace() -> list[str] | None:
    """The start of a command that runs in a network namespace with loopback alone; None where that is not allowed."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return None
    shell = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    for way in (["unshare", "-n"], ["unshare", "-rn"]):
        if subprocess.run([*way, *shell, "true"], capture_output=True, check=False).returncode == 0:
            return [*way, *shell]
    return None


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    """The folder that the run left."""
    directory = tmp_path_factory.mktemp("product")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "FEDMOTE_TEST_OUTBOUND": str(directory / "outbound"),
    }
    command = [*(namespace() or []), sys.executable, str(HERE / "product_run.py"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def secrets_of(directory: Path) -> dict[str, bytes]:
    """Every secret that the run made, by name."""
    found: dict[str, bytes] = {}
    for path in (*(directory / "desk/broker/credentials").iterdir(), *(directory / "revoked").iterdir()):
        if path.name.endswith(".keys.toml"):
            keys = load(PartnerCredentials, path)
            found |= {f"{path.name} key": keys.key.encode()}
            found |= {f"{path.name} cell key of {one.id}": one.key.encode() for one in keys.cell_keys}
        elif path.suffix == ".toml":
            credentials = load(Credentials, path)
            for name in ("password", "key", "cell_key", "psk"):
                found[f"{path.name} {name}"] = getattr(credentials, name).encode()
        else:
            found[path.name] = path.read_bytes().strip()
    return found


def spellings(secret: bytes) -> list[bytes]:
    """A secret as it stands, and a key as the bytes, the base64 and the Python text that stand for it."""
    forms = [secret, secret.upper()]
    if len(secret) == 64 and all(digit in b"0123456789abcdef" for digit in secret):
        raw = bytes.fromhex(secret.decode())
        forms += [raw, base64.b64encode(raw).rstrip(b"="), base64.urlsafe_b64encode(raw).rstrip(b"="), repr(raw)[2:-1].encode()]
    return forms


def traces(secrets: dict[str, bytes], content: bytes) -> list[str]:
    return [name for name, secret in secrets.items() if any(form in content for form in spellings(secret))]


def test_the_run_made_secrets_and_the_search_finds_them_where_they_belong(product):
    """A search that finds nothing anywhere would prove nothing."""
    secrets = secrets_of(product)
    assert len(secrets) >= 12
    assert traces(secrets, (product / "desk/broker/credentials/device-1.toml").read_bytes()) != []
    with sqlite3.connect(product / "desk/fleet/registry.sqlite") as connection:
        (key,) = connection.execute("SELECT key FROM participant WHERE id = 'device-1'").fetchone()
    connection.close()
    assert traces(secrets, b"x" + key + b"x") == ["device-1.toml key"]
    assert traces(secrets, (product / "device-state/identity.bin").read_bytes())


def test_no_secret_is_in_what_any_command_said_with_all_logs_on(product):
    secrets = secrets_of(product)
    logs = [path for path in (product / "words").iterdir() if path.is_file()]
    assert len(logs) >= 14
    assert any(b"DEBUG" in path.read_bytes() for path in logs)
    assert {path.name: found for path in logs if (found := traces(secrets, path.read_bytes()))} == {}


def test_no_secret_is_in_a_command_line_or_an_environment(product):
    content = (product / "processes").read_bytes()
    for program in (b"mosquitto", b"fedmote-device", b"serve", b"partner"):
        assert program in content
    assert traces(secrets_of(product), content) == []


def test_every_file_with_a_secret_is_one_of_its_homes_and_private(product):
    secrets, homes = secrets_of(product), set()
    for path in product.rglob("*"):
        if not path.is_file():
            continue
        name = str(path.relative_to(product))
        if traces(secrets, path.read_bytes()):
            assert name.startswith(HOMES), name
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, name
            homes.add(next(home for home in HOMES if name.startswith(home)))
    assert homes == set(HOMES)


def test_keys_of_revoked_devices_are_in_neither_registry_nor_broker(product):
    revoked = {name: one for name, one in secrets_of(product).items() if name.startswith(("device-2.toml", "device-3.toml"))}
    assert len(revoked) == 8
    for path in (*(product / "desk/fleet").iterdir(), product / "desk/broker/psk", product / "desk/broker/passwords"):
        assert traces(revoked, path.read_bytes()) == [], path


def test_no_process_reaches_for_another_machine(product):
    outbound = product / "outbound"
    assert not outbound.exists(), outbound.read_text()


def test_the_product_runs_where_there_is_only_loopback(product):
    if namespace() is None:
        pytest.skip("no right to make a network namespace: the run was watched, but not cut off")
    assert (product / "exported").exists()


@pytest.mark.slow
def test_a_demonstration_keeps_its_secrets_and_stays_on_this_machine(tmp_path):
    out, outbound = tmp_path / "out", tmp_path / "outbound"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE / "loopback"), *(path for path in sys.path if path)]),
        "FEDMOTE_TEST_OUTBOUND": str(outbound),
    }
    entry = "import sys; from fedmote.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["demo", "--rounds", "1", "--boards", "posix", "--out", str(out), "--json"]
    command = [*(namespace() or []), sys.executable, "-c", entry, *arguments]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = out.rglob("broker/credentials")
    secrets = {path.name: path.read_bytes().strip() for path in folder.glob("*.password")}
    for path in folder.glob("*.toml"):
        text = path.read_text(encoding="utf-8")
        secrets |= {
            f"{path.name} {key}": one.encode() for key, one in re.findall(r'^(password|key|cell_key|psk) = "(.+)"', text, re.M)
        }
    assert len(secrets) >= 6
    assert traces(secrets, done.stdout + done.stderr) == []
    found = [path for path in out.rglob("*") if path.is_file() and traces(secrets, path.read_bytes())]
    assert len(found) >= 6
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert path.suffix in (".toml", ".password", ".bin", ".sqlite") or path.name == "psk", path
    assert not outbound.exists(), outbound.read_text()


@pytest.mark.parametrize("host", ["example.invalid", "192.0.2.1", "2001:db8::1"])
def test_the_watch_on_outbound_attempts_is_awake(tmp_path, host):
    """What it is told to refuse, it refuses and notes, and loopback it lets pass."""
    environment = {**os.environ, "PYTHONPATH": str(HERE / "loopback"), "FEDMOTE_TEST_OUTBOUND": str(tmp_path / "outbound")}
    program = "import socket, sys; socket.create_server(('127.0.0.1', 0)); socket.create_connection((sys.argv[1], 9), 1)"
    done = subprocess.run([sys.executable, "-c", program, host], capture_output=True, text=True, env=environment, check=False)
    assert f"{host} is another machine" in done.stderr
    assert host in (tmp_path / "outbound").read_text()


@pytest.mark.parametrize(
    ("event", "arguments", "host"),
    [
        ("socket.connect", (None, ("127.0.0.1", 1)), None),
        ("socket.connect", (None, ("::1", 1, 0, 0)), None),
        ("socket.connect", (None, "/run/socket"), None),
        ("socket.connect", (None, b"\0abstract"), None),
        ("socket.connect", (None, ("10.0.0.1", 1)), "10.0.0.1"),
        ("socket.sendto", (None, ("10.0.0.1", 1)), "10.0.0.1"),
        ("socket.getaddrinfo", ("localhost", 1, 0, 0, 0), None),
        ("socket.getaddrinfo", (None, 1, 0, 0, 0), None),
        ("socket.getaddrinfo", (b"hub.lan", 1, 0, 0, 0), "hub.lan"),
        ("socket.bind", (None, ("0.0.0.0", 1)), None),
        ("open", ("/etc/hosts", "r", 0), None),
    ],
)
def test_the_watch_tells_this_machine_from_others(event, arguments, host):
    specification = importlib.util.spec_from_file_location("watch", HERE / "loopback/sitecustomize.py")
    watch = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(watch)
    assert watch.outbound(event, arguments) == host
