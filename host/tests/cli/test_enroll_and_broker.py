# SPDX-License-Identifier: Apache-2.0
"""`fedmote broker` and `fedmote enroll` with a real Mosquitto: who gets in, who does not, how fast a revocation holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import sys
import threading
import time

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fedmote.cli import main
from fedmote.config import BrokerConfig, Credentials, PartnerCredentials, load
from fedmote.errors import LoginError, TransportError
from fedmote.fleet import Registry
from fedmote.fleet.broker_files import BrokerFiles
from fedmote.package.boards import Board
from fedmote.package.signature import SigningKey
from fedmote.supervised import free_tcp_port
from fedmote.transport.broker import find_mosquitto
from fedmote.transport.mqtt_connection import Login, MqttConnection
from fedmote.wire.regions import read_identity_region

SITE = "lab"
REVOCATION_LIMIT_S = 5.0
NEVER_S = 1.5  # how long is waited for what must not come
NOT_AUTHORIZED = 5

needs_broker = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
pytestmark = pytest.mark.broker

COORDINATOR = """\
[run]
site = "lab"
name = "first"
state_directory = "state"
partition_directory = "model"
[broker]
url = "{url}"
username = "coordinator"
password_file = "broker/credentials/coordinator.password"
{ca_line}
[security]
registry = "fleet"
broker_files = "broker"
"""


class Project:
    """A directory with broker files, registry and coordinator.toml, and its broker."""

    def __init__(self, directory, is_tls: bool) -> None:
        self.directory = directory
        self.ports = [free_tcp_port() for _ in range(3)]
        plain, tls, psk = self.ports
        names = ["--bind", "127.0.0.1", "--name", "localhost", "--name", "127.0.0.1"] if is_tls else []
        ports = ["--tcp-port", plain, "--tls-port", tls, "--psk-port", psk]
        assert run("broker", "init", directory / "broker", "--site", SITE, "--registry", directory / "fleet", *names, *ports) == 0
        self.url = f"mqtts://localhost:{tls}" if is_tls else f"mqtt://127.0.0.1:{plain}"
        self.ca = directory / "broker/tls/ca.crt"
        text = COORDINATOR.format(url=self.url, ca_line='ca_file = "broker/tls/ca.crt"' if is_tls else "")
        (directory / "coordinator.toml").write_text(text)
        self.files = BrokerFiles(directory / "broker", SITE)
        for arguments in (("board-1", "--role", "device"), ("board-2", "--role", "device"), ("phone-1", "--role", "partner")):
            assert self.enroll("add", *arguments, "--cell", "desk") == 0

    def enroll(self, *arguments) -> int:
        return run("enroll", *arguments, "--config", self.directory / "coordinator.toml")

    def credentials(self, device: str) -> Credentials:
        return load(Credentials, self.files.credentials_file(device))

    @contextlib.contextmanager
    def running(self):
        """The broker, started as an operator does."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = "import sys; from fedmote.cli import main; sys.exit(main(['broker', 'run', sys.argv[1]]))"
        log = (self.directory / "log").open("wb")
        process = subprocess.Popen([sys.executable, "-c", command, self.files.directory], stderr=log, env=environment)
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[0]), 1):
                    break
                time.sleep(0.02)
            yield self
        finally:
            process.terminate()
            process.wait(10)
            log.close()


def run(*arguments) -> int:
    return main([str(one) for one in arguments])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with Project(tmp_path_factory.mktemp("plain"), is_tls=False).running() as project:
        yield project


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    with Project(tmp_path_factory.mktemp("tls"), is_tls=True).running() as project:
        yield project


def connack(project, user: str | None, password: str | None) -> int | None:
    """The code of an MQTT 3.1.1 CONNACK over plain text; None where the broker said nothing."""
    with socket.create_connection(("127.0.0.1", project.ports[0]), 5) as connection:
        connection.sendall(connect_packet(user, password))
        answer = connection.recv(4)
    return answer[3] if len(answer) == 4 else None


def connect_packet(user: str | None, password: str | None, client_id: str = "x") -> bytes:
    def text(one: str) -> bytes:
        return struct.pack(">H", len(one.encode())) + one.encode()

    flags = 2 | (0x80 if user is not None else 0) | (0x40 if password is not None else 0)
    body = text("MQTT") + bytes([4, flags]) + struct.pack(">H", 30) + text(client_id)
    body += b"".join(text(one) for one in (user, password) if one is not None)
    return bytes([0x10, len(body)]) + body


class Client:
    """An MQTT 5 client, to which the broker says why it refuses."""

    def __init__(self, project, user: str, password: str) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, user, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set(user, password)
        self._client.on_connect = lambda *given: (self.codes.append(given[3].value), self.event.set())
        self._client.on_publish = lambda *given: (self.codes.append(given[3].value), self.event.set())
        self._client.on_disconnect = lambda *given: self.gone.set()
        self.codes: list[int] = []
        self.event, self.gone = threading.Event(), threading.Event()
        self._client.connect("127.0.0.1", project.ports[0])
        self._client.loop_start()
        assert self._wait() == 0

    def publish(self, topic: str) -> int:
        """The reason code of the broker's acknowledgement; 135: not authorised."""
        self._client.publish(topic, b"x", qos=1)
        return self._wait()

    def _wait(self) -> int:
        assert self.event.wait(10)
        self.event.clear()
        return self.codes.pop()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


async def log_in(login: Login) -> None:
    connection = MqttConnection(login, [f"fedmote/1/{SITE}/{login.username}/dn/#"], lambda *_: None, lambda error: None)
    try:
        await connection.start()
        assert connection.is_ready
    finally:
        await connection.close()


# ---- who gets in ----------------------------------------------------------------------------------------------------


@needs_broker
def test_nobody_is_anonymous_and_nobody_gets_in_with_another_ones_password(plain):
    mine, other = plain.credentials("board-1"), plain.credentials("board-2")
    assert connack(plain, mine.username, mine.password) == 0
    for user, password in ((None, None), ("board-1", None), ("board-1", other.password), ("stranger", mine.password), ("", "")):
        assert connack(plain, user, password) == NOT_AUTHORIZED, user


@needs_broker
def test_a_device_may_not_write_to_anothers_topic_nor_the_coordinator_to_a_cell(plain):
    client = Client(plain, "board-1", plain.credentials("board-1").password)
    assert client.publish(f"fedmote/1/{SITE}/board-1/up/hello") in (0, 16)  # 16: nobody listens
    for topic in ("board-2/up/hello", "board-2/cell/up/hello", "board-1/dn/wait", "board-1/cell/dn/wait"):
        assert client.publish(f"fedmote/1/{SITE}/{topic}") == 135, topic
    client.close()
    password = plain.files.password_file("coordinator").read_text().strip()
    client = Client(plain, "coordinator", password)
    assert client.publish(f"fedmote/1/{SITE}/board-1/dn/wait") in (0, 16)
    for topic in ("board-1/cell/dn/wait", "board-1/cell/up/hello", "board-1/up/hello"):
        assert client.publish(f"fedmote/1/{SITE}/{topic}") == 135, topic
    client.close()


@needs_broker
def test_nobody_takes_over_anothers_session_by_its_client_id(plain):
    """Client ids are replaced by user names: a device that calls itself the coordinator cuts nobody off."""
    client = Client(plain, "coordinator", plain.files.password_file("coordinator").read_text().strip())
    with socket.create_connection(("127.0.0.1", plain.ports[0]), 5) as connection:
        connection.sendall(connect_packet("board-2", plain.credentials("board-2").password, client_id="coordinator"))
        assert connection.recv(4)[3] == 0
        assert not client.gone.wait(NEVER_S)
    client.close()


@needs_broker
@needs_openssl
def test_a_host_logs_in_with_tls_and_not_with_another_authority_or_name(tls, tmp_path):
    broker = BrokerConfig(tls.url, "phone-1", tls.files.password_file("phone-1"), ca_file=tls.ca)
    good = Login(broker.url, broker.username, broker.password(), "phone-1", broker.ca_file)
    asyncio.run(log_in(good))
    other = tmp_path / "other"
    assert run("broker", "init", other, "--site", SITE, "--registry", tmp_path / "fleet", "--bind", "127.0.0.1") == 0
    for wrong in (other / "tls/ca.crt", None):
        with pytest.raises(TransportError, match=r"TLS failed.*certificate verify failed"):
            asyncio.run(log_in(Login(good.url, good.username, good.password, "phone-1", wrong)))
    with pytest.raises(LoginError):
        asyncio.run(log_in(Login(good.url, good.username, "guess", "phone-1", good.ca_file)))
    context = ssl.create_default_context(cafile=str(tls.ca))
    with (
        socket.create_connection(("127.0.0.1", tls.ports[1]), 5) as raw,
        pytest.raises(ssl.SSLCertVerificationError, match="not valid for"),
    ):
        context.wrap_socket(raw, server_hostname="elsewhere.example")


@needs_broker
@needs_openssl
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_older_than_1_2_is_refused(tls, version):
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", tls.ports[1]), 5) as raw, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(raw, server_hostname="localhost")


@contextlib.contextmanager
def psk_session(project, identity: str, psk: str, cipher: str = "PSK"):
    """`openssl s_client` with a pre-shared key: what it is given is MQTT."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{project.ports[2]}", "-tls1_2", "-quiet", "-cipher", cipher]
    command += ["-psk_identity", identity, "-psk", psk]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def publish_packet(topic: str) -> bytes:
    body = struct.pack(">H", len(topic)) + topic.encode() + b"x"
    return bytes([0x30, len(body)]) + body


@needs_broker
@needs_openssl
def test_a_device_logs_in_with_its_pre_shared_key_alone_and_is_who_its_identity_says(tls):
    psk = tls.credentials("board-1").psk
    with psk_session(tls, "board-1", psk) as session:
        session.stdin.write(connect_packet(None, None))
        assert session.stdout.read(4)[3] == 0
    with psk_session(tls, "board-1", psk, "PSK-AES128-CCM8:@SECLEVEL=0") as session:  # the suite that small TLS stacks have
        session.stdin.write(connect_packet(None, None))
        assert session.stdout.read(4)[3] == 0
    for identity, wrong in (
        ("board-1", tls.credentials("board-2").psk),
        ("stranger", psk),
        ("coordinator", psk),
        ("phone-1", psk),
    ):
        with psk_session(tls, identity, wrong) as session, contextlib.suppress(BrokenPipeError):
            session.stdin.write(connect_packet(None, None))
            assert session.stdout.read(4) == b"", identity
    heard = threading.Event()
    listener = paho.Client(CallbackAPIVersion.VERSION2, "coordinator")
    listener.username_pw_set("coordinator", tls.files.password_file("coordinator").read_text().strip())
    ready = threading.Event()
    listener.on_subscribe = lambda *_: ready.set()
    topics = []
    listener.on_message = lambda client, data, message: (topics.append(message.topic), heard.set())
    listener.connect("127.0.0.1", tls.ports[0])
    listener.loop_start()
    listener.subscribe(f"fedmote/1/{SITE}/+/up/#", 1)
    assert ready.wait(10)
    with psk_session(tls, "board-1", psk) as session:
        session.stdin.write(connect_packet("board-2", None))  # the user name that it claims is not what counts
        assert session.stdout.read(4)[3] == 0
        session.stdin.write(publish_packet(f"fedmote/1/{SITE}/board-2/up/hello"))
        session.stdin.write(publish_packet(f"fedmote/1/{SITE}/board-1/up/hello"))
        assert heard.wait(10)
    listener.disconnect()
    listener.loop_stop()
    assert topics == [f"fedmote/1/{SITE}/board-1/up/hello"]


# ---- who is put out -------------------------------------------------------------------------------------------------


@needs_broker
def test_a_revoked_device_is_cut_off_and_refused_within_five_seconds_and_after_a_restart(tmp_path):
    project = Project(tmp_path, is_tls=False)
    old = project.credentials("board-1")
    with project.running():
        client = Client(project, "board-1", old.password)
        bystander = Client(project, "board-2", project.credentials("board-2").password)
        start = time.monotonic()
        assert project.enroll("revoke", "board-1") == 0
        assert client.gone.wait(REVOCATION_LIMIT_S - (time.monotonic() - start))
        while connack(project, "board-1", old.password) == 0:
            assert time.monotonic() - start < REVOCATION_LIMIT_S
        print(f"revoked, cut off and refused after {time.monotonic() - start:.2f} s")
        assert not bystander.gone.is_set()
        client.close()
        bystander.close()
    with project.running():
        assert connack(project, "board-1", old.password) == NOT_AUTHORIZED
        assert connack(project, "board-2", project.credentials("board-2").password) == 0
    with Registry.open(tmp_path / "fleet") as registry:
        assert registry.is_revoked("board-1")


@needs_broker
@needs_openssl
def test_a_revoked_device_with_a_pre_shared_key_may_do_nothing_within_five_seconds_even_where_its_connection_stands(tmp_path):
    project = Project(tmp_path, is_tls=True)
    psk = project.credentials("board-1").psk
    with project.running():
        password = project.files.password_file("coordinator").read_text().strip()
        listener = paho.Client(CallbackAPIVersion.VERSION2, "coordinator")
        listener.username_pw_set("coordinator", password)
        heard = threading.Event()
        listener.on_message = lambda *_: heard.set()
        listener.on_connect = lambda client, *_: client.subscribe(f"fedmote/1/{SITE}/+/up/#", 1)
        listener.connect("127.0.0.1", project.ports[0])
        listener.loop_start()
        with psk_session(project, "board-1", psk) as session:
            session.stdin.write(connect_packet(None, None))
            assert session.stdout.read(4)[3] == 0
            hello = publish_packet(f"fedmote/1/{SITE}/board-1/up/hello")
            deadline = time.monotonic() + 10
            while not heard.wait(0.1):  # until the subscription is there
                assert time.monotonic() < deadline
                session.stdin.write(hello)
            start = time.monotonic()
            assert project.enroll("revoke", "board-1") == 0
            while heard.is_set():  # until one of its messages does not arrive any more
                assert time.monotonic() - start < REVOCATION_LIMIT_S
                heard.clear()
                session.stdin.write(hello)
                heard.wait(NEVER_S)
            assert time.monotonic() - start < REVOCATION_LIMIT_S + NEVER_S
        with psk_session(project, "board-1", psk) as session, contextlib.suppress(BrokenPipeError):
            session.stdin.write(connect_packet(None, None))
            assert session.stdout.read(4) == b""
        listener.disconnect()
        listener.loop_stop()


@needs_broker
def test_a_rotation_refuses_the_old_password_at_once_and_takes_the_new_one(tmp_path):
    project = Project(tmp_path, is_tls=False)
    with project.running():
        old = project.credentials("board-1")
        start = time.monotonic()
        assert project.enroll("rotate", "board-1") == 0
        while connack(project, "board-1", old.password) == 0:
            assert time.monotonic() - start < REVOCATION_LIMIT_S
        assert connack(project, "board-1", project.credentials("board-1").password) == 0


@needs_broker
def test_somebody_who_is_added_while_the_broker_runs_gets_in_without_a_restart(plain):
    assert plain.enroll("add", "late-1", "--role", "device", "--cell", "desk") == 0
    late, deadline = plain.credentials("late-1"), time.monotonic() + REVOCATION_LIMIT_S
    while connack(plain, "late-1", late.password) != 0:
        assert time.monotonic() < deadline


# ---- the files ------------------------------------------------------------------------------------------------------


@needs_openssl
def test_broker_init_may_be_repeated_and_keeps_accounts_and_authority(tmp_path, capsys):
    project = Project(tmp_path, is_tls=True)
    tls = project.files.tls
    before = {name: (tls / name).read_bytes() for name in ("ca.crt", "ca.key", "server.crt", "server.key")}
    passwords = project.files.passwords.read_text()
    start = ["broker", "init", tmp_path / "broker", "--site", SITE, "--registry", tmp_path / "fleet", "--bind", "127.0.0.1"]
    assert run(*start, "--name", "127.0.0.1") == 0
    assert {name: (tls / name).read_bytes() for name in before} == before
    assert run(*start, "--name", "hub.local") == 0
    assert (tls / "ca.crt").read_bytes() == before["ca.crt"]
    assert (tls / "server.crt").read_bytes() != before["server.crt"]
    assert project.files.passwords.read_text() == passwords
    assert run("broker", "check", tmp_path / "broker") == 0
    (tls / "ca.key").unlink()
    capsys.readouterr()
    assert run(*start, "--name", "other.local") == 2
    assert "ca.key" in capsys.readouterr().err
    for path in (tmp_path / "broker").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bind", "0.0.0.0"], "needs --name"),
        (["--insecure"], "belongs to --bind"),
        (["--name", "hub"], "belongs to --bind"),
        (["--bind", "127.0.0.1", "--insecure"], "loopback"),
        (["--bind", "0.0.0.0", "--name", "a b"], "host names"),
        (["--bind", "0.0.0.0", "--name", "hub", "--tls-port", "1883"], "different ones"),
        (["--tcp-port", "0"], "from 1 to 65535"),
        (["--max-connections", "0"], "at least 1"),
        (["--site", "The Lab"], "a-z"),
    ],
)
def test_what_broker_init_cannot_do_is_told(tmp_path, capsys, arguments, words):
    assert run("broker", "init", tmp_path / "broker", "--site", SITE, "--registry", tmp_path / "fleet", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "broker" / "mosquitto.conf").exists()


def test_plain_text_beyond_loopback_is_spelled_out_at_init_and_at_every_start(tmp_path, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append(arguments))
    monkeypatch.setattr("fedmote.cli.broker.find_mosquitto", lambda: "mosquitto")
    start = ["broker", "init", tmp_path / "broker", "--site", SITE, "--registry", tmp_path / "fleet"]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    assert run(*start, "--bind", "0.0.0.0", "--name", "hub", "--insecure") == 0
    assert "INSECURE: plain text at 0.0.0.0:1883" in capsys.readouterr().err
    assert run("broker", "check", tmp_path / "broker", "--json") == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert len(findings) == 1 and "listener 1883 0.0.0.0: plain text beyond loopback" in findings[0]
    assert run("broker", "run", tmp_path / "broker") == 2
    assert "--insecure" in capsys.readouterr().err
    assert started == []
    for _ in range(2):
        run("broker", "run", tmp_path / "broker", "--insecure")
        assert "INSECURE: " in capsys.readouterr().err
    assert len(started) == 2
    assert run(*start, "--bind", "0.0.0.0", "--name", "hub") == 0
    assert run("broker", "check", tmp_path / "broker") == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("allow_anonymous false", "allow_anonymous true"), "allow_anonymous true: false is expected"),
        (("allow_anonymous false\n", ""), "allow_anonymous is missing"),
        (("password_file", "#password_file"), "everybody could log in"),
        (("acl_file", "#acl_file"), "everybody could read all"),
        (("127.0.0.1", "192.168.1.1"), "plain text beyond loopback"),
        (("listener 1883 127.0.0.1", "listener 1883"), "plain text beyond loopback"),
        (("listener 1883 127.0.0.1", ""), "listener is missing"),
    ],
)
def test_a_configuration_that_was_weakened_is_found_and_not_started(tmp_path, capsys, change, words):
    assert run("broker", "init", tmp_path / "broker", "--site", SITE, "--registry", tmp_path / "fleet") == 0
    path = tmp_path / "broker/mosquitto.conf"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    capsys.readouterr()
    assert run("broker", "check", tmp_path / "broker") == 1
    assert words in capsys.readouterr().out
    assert run("broker", "run", tmp_path / "broker") == 2
    assert words in capsys.readouterr().err


def test_secret_files_that_others_may_read_stop_the_broker_with_path_and_mode(tmp_path, capsys):
    assert run("broker", "init", tmp_path / "broker", "--site", SITE, "--registry", tmp_path / "fleet") == 0
    (tmp_path / "broker/passwords").chmod(0o644)
    assert run("broker", "run", tmp_path / "broker") == 2
    assert "broker/passwords: holds secrets and has mode 0644" in capsys.readouterr().err


# ---- the verb -------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A project without a broker that runs; the working directory."""
    project = Project(tmp_path, is_tls=False)
    monkeypatch.chdir(tmp_path)
    return project


def test_listing_and_changing_speak_json_without_secrets(here, capsys):
    capsys.readouterr()
    assert run("enroll", "rotate", "board-1", "--json") == 0
    told = capsys.readouterr()
    done = json.loads(told.out)
    assert (done["id"], done["role"], done["state"], done["key_version"]) == ("board-1", "device", "active", 2)
    assert done["broker"] == "not running here"
    assert "reload it" in told.err
    assert run("enroll", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["participants"]
    assert [one["id"] for one in listed] == ["board-1", "board-2", "phone-1"]
    assert run("enroll", "list") == 0
    table = capsys.readouterr().out
    credentials = here.credentials("board-1")
    for secret in (credentials.key, credentials.cell_key, credentials.psk, credentials.password):
        assert secret not in told.out + told.err + json.dumps(listed) + table


def test_the_doctor_examines_the_secret_files_of_a_fleet(here, capsys):
    def findings() -> dict[str, dict]:
        capsys.readouterr()
        run("doctor", "--config", "coordinator.toml", "--for", "serve", "--json")
        return {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"]}

    names = (
        "registry",
        "password of the coordinator",
        "broker files",
        "credentials board-1.toml",
        "credentials phone-1.password",
    )
    assert all(findings()[name]["is_present"] for name in names)
    here.files.credentials_file("board-1").chmod(0o644)
    here.files.psk.chmod(0o640)
    (here.directory / "fleet/registry.sqlite").chmod(0o604)
    here.files.configuration.write_text(here.files.configuration.read_text().replace("allow_anonymous false", ""))
    found = findings()
    assert "mode 0644" in found["credentials board-1.toml"]["remedy"]
    assert "mode 0604" in found["registry"]["remedy"]
    assert "allow_anonymous is missing" in found["broker files"]["remedy"]
    assert found["password of the coordinator"]["is_present"]


def test_an_identity_image_holds_who_the_device_is_and_is_private(here, capsys):
    image = here.directory / "image.bin"
    arguments = ["--identity-image", image, "--board", "stm32f405", "--link", "mqtt", "--send-samples"]
    assert run("enroll", "add", "board-7", "--role", "device", "--cell", "desk", *arguments) == 0
    assert stat.S_IMODE(image.stat().st_mode) == 0o600
    identity, credentials = read_identity_region(image.read_bytes()), here.credentials("board-7")
    assert (identity.id, identity.site, identity.link, identity.is_sending_samples) == ("board-7", SITE, "mqtt", True)
    assert (identity.username, identity.password) == ("board-7", credentials.password)
    assert (identity.key, identity.cell_key) == (credentials.key_bytes, credentials.cell_key_bytes)
    assert len(image.read_bytes()) <= Board.load("stm32f405").region("identity").bytes
    assert "0x080A0000" in capsys.readouterr().err


def test_devices_of_a_fleet_that_signs_packages_get_the_verify_key_and_never_the_signing_key(here):
    key = SigningKey.make(here.directory / "signing.key")
    with (here.directory / "coordinator.toml").open("a") as file:
        file.write('signing_key = "signing.key"\n')  # the last table is [security]
    image = here.directory / "image.bin"
    assert run("enroll", "add", "board-8", "--role", "device", "--cell", "desk", "--identity-image", image) == 0
    assert run("enroll", "rotate", "board-1") == 0
    assert here.credentials("board-8").verify_key_bytes == here.credentials("board-1").verify_key_bytes == key.verify_key
    assert read_identity_region(image.read_bytes()).verify_key == key.verify_key
    assert here.credentials("board-2").verify_key is None
    for path in here.files.credentials.iterdir():
        assert key.seed.hex() not in path.read_text()


def test_a_token_is_the_key_of_an_image_and_said_to_be_one(here, capsys):
    image = here.directory / "board-9.bin"
    arguments = ["--role", "device", "--cell", "desk", "--expires", "30m", "--identity-image", image]
    assert run("enroll", "token", "board-9", *arguments, "--json") == 0
    told = capsys.readouterr()
    done = json.loads(told.out)
    assert (done["key_state"], done["key_version"]) == ("token", 1)
    assert "a token, for one board" in done["notes"][0]
    assert "within 0:30:00" in done["notes"][0]
    with Registry.open(here.directory / "fleet") as registry:
        token = registry.key("board-9")
        assert read_identity_region(image.read_bytes()).key == token
        assert token.hex() not in told.out + told.err
        lasting = registry.next_key("board-9", 5)
        registry.renewed("board-9")
    assert run("enroll", "list") == 0
    assert "lasting" in capsys.readouterr().out
    assert run("enroll", "rotate", "board-9", "--over-the-air", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["key_state"], done["files"]) == ("rotating", [])
    with Registry.open(here.directory / "fleet") as registry:
        assert registry.key("board-9") == lasting


def test_a_time_that_is_none_is_told(here, capsys):
    for time_ in ("24", "0h", "1w", "-1h"):
        with pytest.raises(SystemExit):
            run("enroll", "token", "b", "--role", "device", "--cell", "desk", f"--expires={time_}")
        assert "such as 24h" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "board-1", "--role", "device", "--cell", "desk"], "enrolled already"),
        (["add", "Board", "--role", "device", "--cell", "desk"], "a-z"),
        (["add", "b", "--role", "device", "--cell", "desk", "--board", "posix"], "--identity-image"),
        (["add", "b", "--role", "partner", "--cell", "d", "--identity-image", "x"], "no identity region"),
        (["add", "b", "--role", "device", "--cell", "d", "--identity-image", "no/x"], "no such directory"),
        (["add", "b", "--role", "device", "--cell", "d", "--identity-image", "x", "--board", "nope"], "nope"),
        (["token", "b", "--role", "partner", "--cell", "desk"], "tokens are for devices"),
        (["token", "board-1", "--role", "device", "--cell", "desk"], "enrolled already"),
        (["rotate", "board-1", "--over-the-air", "--identity-image", "x"], "nothing is flashed"),
        (["rotate", "phone-1", "--over-the-air"], "a partner"),
        (["revoke", "stranger"], "not enrolled"),
        (["rotate", "stranger"], "not enrolled"),
        (["list", "--config", "nowhere.toml"], "nowhere.toml"),
        (["import", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_enroll_cannot_do_is_told_and_changes_nothing(here, capsys, arguments, words):
    assert run("enroll", "list", "--json") == 0
    before = capsys.readouterr().out.splitlines()[-1]
    assert run("enroll", *arguments) == 2
    assert words in capsys.readouterr().err
    assert run("enroll", "list", "--json") == 0
    assert capsys.readouterr().out.splitlines()[-1] == before


def test_a_configuration_without_a_registry_is_told(here, capsys):
    path = here.directory / "coordinator.toml"
    text = path.read_text()
    path.write_text(text[: text.index("[security]")] + '[[cells]]\nname = "desk"\ndevices = ["board-1"]\n')
    assert run("enroll", "list") == 2
    assert "security.registry is missing" in capsys.readouterr().err


def test_export_and_import_go_through_a_private_file_and_say_that_it_is_not_encrypted(here, capsys):
    assert run("enroll", "export", "fleet.json") == 0
    assert "not encrypted" in capsys.readouterr().err
    assert stat.S_IMODE((here.directory / "fleet.json").stat().st_mode) == 0o600
    assert run("enroll", "list", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    shutil.rmtree(here.directory / "fleet")
    assert run("enroll", "import", "fleet.json", "--json") == 0
    assert json.loads(capsys.readouterr().out) == before
    assert load(PartnerCredentials, here.files.keys_file("phone-1")).id == "phone-1"
