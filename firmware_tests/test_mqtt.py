# SPDX-License-Identifier: Apache-2.0
"""The MQTT client of the SDK against a scripted broker in virtual time, and against Mosquitto."""

import itertools
import shutil
import socket
import subprocess
import time

import cbor2
import paho.mqtt.client as paho
import pytest

from fedmote.wire.schema import FIELDS, Kind, Status
from firmware_tests.device_bench import BUSY, IDLE, Device
from firmware_tests.one_round import MODEL_HANDLE, PACKAGE, data, plan_for, undisturbed
from firmware_tests.scripted_peers import CELL, COORDINATOR, Packet, Peers

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP = 1, 2, 3, 4, 8, 9, 12, 13
CONNACK_OK, SUBACK_OK, PINGRESP_OK = bytes([0x20, 2, 0, 0]), bytes([0x90, 4, 0, 1, 1, 1]), bytes([0xD0, 0])
BASE = "fedmote/1/lab/board-1"


def string(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def strings(content: bytes) -> list[bytes]:
    """The end of a packet that consists of strings."""
    found = []
    while content:
        end = 2 + int.from_bytes(content[:2], "big")
        found.append(content[2:end])
        content = content[end:]
    return found


def packet(kind: int, content: bytes, flags: int = 0) -> bytes:
    length, size = b"", len(content)
    while True:
        length += bytes([(size & 0x7F) | (0x80 if size > 0x7F else 0)])
        size >>= 7
        if not size:
            return bytes([kind << 4 | flags]) + length + content


def publish(topic: str, body: bytes, packet_id: int | None = None) -> bytes:
    identifier = packet_id.to_bytes(2, "big") if packet_id else b""
    return packet(PUBLISH, string(topic.encode()) + identifier + body, 2 if packet_id else 0)


def body_of(fields: dict[str, object]) -> bytes:
    return cbor2.dumps({FIELDS[name].key: value for name, value in fields.items()}, canonical=True)


class Broker:
    """Takes packets off the device's stream; tests answer by hand."""

    def __init__(self, **options: object) -> None:
        self.device = Device(*data(), link="mqtt", **options)  # type: ignore[arg-type]
        self.buffer = bytearray()

    def steps(self, count: int = 30) -> list[tuple[int, int, bytes]]:
        """Some steps in which no time passes; returns the packets that were sent: (type, flags, content)."""
        for _ in range(count):
            self.device.step()
        self.buffer += self.device.tx
        self.device.tx.clear()
        packets = []
        while len(self.buffer) >= 2:
            size, at, byte = 0, 1, 0x80
            while byte & 0x80:
                byte = self.buffer[at]
                size |= (byte & 0x7F) << 7 * (at - 1)
                at += 1
            if len(self.buffer) < at + size:
                break
            packets.append((self.buffer[0] >> 4, self.buffer[0] & 15, bytes(self.buffer[at : at + size])))
            del self.buffer[: at + size]
        return packets

    def connect(self) -> bytes:
        """Waits out the back-off; the content of CONNECT."""
        for _ in range(200):
            packets = self.steps()
            if packets:
                [(kind, flags, content)] = packets
                assert (kind, flags) == (CONNECT, 0)
                return content
            self.device.now += 500
        raise AssertionError("no CONNECT")

    def accept(self) -> list[tuple[int, int, bytes]]:
        """Answers CONNECT and SUBSCRIBE; what came after: birth and hello."""
        self.device.rx += CONNACK_OK
        assert [kind for kind, *_ in self.steps()] == [SUBSCRIBE]
        self.device.rx += SUBACK_OK
        return self.steps()

    def open(self) -> list[tuple[int, int, bytes]]:
        self.connect()
        return self.accept()


def published(packets: list[tuple[int, int, bytes]]) -> list[tuple[str, int, dict[int, object]]]:
    """(topic, flags, fields by key) of the PUBLISH packets."""
    found = []
    for kind, flags, content in packets:
        if kind == PUBLISH:
            end = 2 + int.from_bytes(content[:2], "big")
            found.append((content[2:end].decode(), flags, cbor2.loads(content[end + (2 if flags & 6 else 0) :])))
    return found


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_connect_carries_name_will_and_credentials():
    content = Broker(password="secret", keep_alive_s=20).connect()
    assert content[:10] == string(b"MQTT") + bytes([4, 0b11101110, 0, 20])
    name, topic, will, user, password = strings(content[10:])
    assert (name, topic.decode(), user, password) == (b"board-1", f"{BASE}/up/state", b"board-1", b"secret")
    assert cbor2.loads(will)[FIELDS["is_online"].key] == 0


def test_a_device_without_a_password_sends_none():
    content = Broker().connect()
    assert content[7] == 0b10101110
    assert len(strings(content[10:])) == 4


def test_the_longest_names_fit_the_smallest_buffers():
    names = {"identifier": "i" * 32, "site": "s" * 32, "username": "u" * 64, "password": "p" * 64}
    broker = Broker(**names)
    name, topic, _, user, password = strings(broker.connect()[10:])
    assert (name, user, password) == (b"i" * 32, b"u" * 64, b"p" * 64)
    assert topic.decode() == f"fedmote/1/{'s' * 32}/{'i' * 32}/up/state"
    assert published(broker.accept())[1][0] == f"fedmote/1/{'s' * 32}/{'i' * 32}/up/hello"


def test_a_session_begins_with_subscriptions_birth_and_hello():
    broker = Broker()
    will = cbor2.loads(strings(broker.connect()[10:])[2])
    broker.device.rx += CONNACK_OK
    [(kind, flags, content)] = broker.steps()
    filters = b"".join(string(f"{BASE}/{tail}".encode()) + b"\1" for tail in ("dn/#", "cell/dn/#"))
    assert (kind, flags, content) == (SUBSCRIBE, 2, b"\0\1" + filters)
    broker.device.rx += SUBACK_OK
    (birth_topic, birth_flags, birth), (hello_topic, hello_flags, hello) = published(broker.steps())
    boot, is_online = FIELDS["boot"].key, FIELDS["is_online"].key
    assert (birth_topic, birth_flags) == (f"{BASE}/up/state", 0b0011)  # QoS 1, retained
    assert birth == {boot: will[boot], is_online: 1}
    assert (hello_topic, hello_flags, hello[boot]) == (f"{BASE}/up/hello", 0b0010, will[boot])
    assert broker.device.info.is_link_up


HOSTILE = [
    bytes([0x20, 2, 2, 0]), bytes([0x20, 3, 0, 0, 0]), bytes([0x21, 2, 0, 0]), bytes([0x00, 0]), bytes([0xF0, 0]),
    bytes([0x10, 0]), bytes([0x80, 2, 0, 1]), bytes([0xD1, 0]), bytes([0xD0, 1, 0]), bytes([0x40, 1, 0]),
    bytes([0x90, 5, 0, 1, 1, 1, 1]), bytes([0x90, 4, 0, 2, 1, 1]), bytes([0x20, 0xFF, 0xFF, 0xFF, 0xFF, 1]),
    bytes([0x30, 1, 0]), bytes([0x30, 2, 0, 1]), bytes([0x34, 5, 0, 1, 97, 0, 1]), bytes([0x36, 5, 0, 1, 97, 0, 1]),
    bytes([0x32, 5, 0, 1, 97, 0, 0]), bytes([0x32, 4, 0, 1, 97, 0]), bytes([0x30, 4, 0xFF, 0xFF, 97, 97]),
]  # fmt: skip


@pytest.mark.parametrize("answer", [bytes([0x20, 2, 0, 5]), SUBACK_OK, PINGRESP_OK, *HOSTILE], ids=bytes.hex)
def test_a_wrong_answer_to_connect_ends_the_attempt_and_connect_comes_again(answer):
    broker = Broker()
    broker.connect()
    broker.device.rx += answer
    assert broker.steps() == []
    assert not broker.device.info.is_link_up
    assert len(broker.open()) == 2


@pytest.mark.parametrize("answer", [CONNACK_OK, SUBACK_OK, *HOSTILE], ids=bytes.hex)
def test_a_hostile_packet_ends_the_session_and_a_new_one_begins(answer):
    broker = Broker()
    broker.open()
    broker.device.rx += answer
    broker.steps()
    assert not broker.device.info.is_link_up
    assert broker.device.info.link_losses == 1
    assert len(broker.open()) == 2


@pytest.mark.parametrize("codes", [(0x80, 1), (1, 0x80), (2, 1)])
def test_a_refused_subscription_ends_the_session(codes):
    broker = Broker()
    broker.connect()
    broker.device.rx += CONNACK_OK
    broker.steps()
    broker.device.rx += bytes([0x90, 4, 0, 1, *codes])
    assert broker.steps() == []
    assert len(broker.open()) == 2


def test_connect_is_repeated_with_a_growing_jitter_while_nobody_answers():
    broker = Broker(seed=4)
    times = []
    for _ in range(9):
        broker.connect()
        times.append(broker.device.now)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    limits = [min(60_000, 1000 << i) + 5000 + 1000 for i in range(8)]  # 5 s for the answer, then the back-off
    assert all(5000 <= gap <= limit for gap, limit in zip(gaps, limits, strict=True)), gaps
    assert max(gaps) > 15_000


def test_bytes_of_an_earlier_connection_are_thrown_away_before_connect():
    broker = Broker()
    broker.device.rx += publish(f"{BASE}/dn/wait", body_of({"wait_ms": 1}), 7) * 5 + b"\x32\x7f"
    assert len(broker.open()) == 2


# ---- keep-alive ------------------------------------------------------------------------------------------------------


def test_a_ping_goes_out_every_half_of_the_keep_alive_and_its_answer_keeps_the_session():
    broker = Broker(keep_alive_s=20)
    broker.open()
    for _ in range(5):
        broker.device.now += 9_999
        assert PINGREQ not in [kind for kind, *_ in broker.steps()]
        broker.device.now += 1
        assert [kind for kind, *_ in broker.steps()].count(PINGREQ) == 1
        broker.device.rx += PINGRESP_OK
        broker.steps()
    assert broker.device.info.link_losses == 0


def test_a_device_that_sleeps_as_long_as_it_may_keeps_its_session():
    broker = Broker(keep_alive_s=20)
    broker.open()
    broker.device.rx += publish(f"{BASE}/dn/wait", body_of({"wait_ms": 100_000_000}))
    pings = 0
    for _ in range(400):
        while broker.device.step() == BUSY:
            pass
        if PINGREQ in [kind for kind, *_ in broker.steps(0)]:
            pings += 1
            broker.device.rx += PINGRESP_OK
        else:
            broker.device.now += broker.device.wake_ms()  # nothing but the device's own timers wakes it
    assert pings > 50
    assert broker.device.info.link_losses == 0


def test_a_silent_broker_is_noticed_within_the_keep_alive():
    broker = Broker(keep_alive_s=20)
    broker.open()
    broker.device.now += 10_000
    broker.steps()
    broker.device.now += 10_000
    broker.steps()
    assert broker.device.info.link_losses == 1
    assert len(broker.open()) == 2


def test_a_stream_that_takes_nothing_is_noticed_within_the_keep_alive():
    broker = Broker(keep_alive_s=20)
    broker.open()
    broker.device.write_limit = lambda: 0
    broker.device.rx += publish(f"{BASE}/dn/wait", body_of({"wait_ms": 100_000}), 7)
    for _ in range(2):
        broker.steps()
        broker.device.now += 10_000
    broker.steps()
    assert broker.device.info.link_losses == 1


def test_a_stream_error_ends_the_session_and_the_device_connects_anew():
    broker = Broker()
    broker.open()
    broker.device.is_stream_broken = True
    broker.steps()
    assert not broker.device.info.is_link_up
    broker.device.now += 10_000
    broker.steps()
    broker.device.is_stream_broken = False
    assert len(broker.open()) == 2


# ---- packets ---------------------------------------------------------------------------------------------------------


def test_qos_1_is_acknowledged_and_a_repetition_too():
    broker = Broker()
    broker.open()
    for _ in range(2):
        broker.device.rx += publish(f"{BASE}/dn/wait", body_of({"wait_ms": 100_000}), 0x1234)
        assert broker.steps() == [(PUBACK, 0, b"\x12\x34")]


def test_many_qos_1_packets_at_once_are_all_acknowledged_over_a_slow_stream():
    broker = Broker()
    broker.open()
    broker.device.write_limit = broker.device.read_limit = lambda: 1
    for number in range(1, 21):
        broker.device.rx += publish(f"{BASE}/dn/wait", body_of({"wait_ms": 100_000}), number)
    assert [content for kind, _, content in broker.steps(1500) if kind == PUBACK] == [n.to_bytes(2, "big") for n in range(1, 21)]


def test_a_packet_longer_than_the_buffer_is_read_past_counted_and_acknowledged():
    broker = Broker()
    broker.open()
    broker.device.rx += publish(f"{BASE}/dn/data", bytes(100_000), 5)
    broker.device.rx += publish(f"{BASE}/dn/wait", body_of({"wait_ms": 3_000}), 6)
    acknowledged = [content for kind, _, content in broker.steps(2500) if kind == PUBACK]
    assert acknowledged == [b"\0\5", b"\0\6"]
    assert broker.device.info.frame_errors == 1
    assert broker.device.info.link_losses == 0


def test_a_topic_longer_than_the_buffer_is_read_past():
    broker = Broker()
    broker.open()
    broker.device.rx += packet(PUBLISH, string(b"x" * 60_000) + b"\0\1", 2)
    broker.device.rx += publish(f"{BASE}/dn/wait", body_of({"wait_ms": 3_000}), 6)
    assert [content for kind, _, content in broker.steps(1500) if kind == PUBACK] == [b"\0\6"]


@pytest.mark.parametrize("topic", [
    "fedmote/2/lab/board-1/dn/plan", "fedmote/1/lab/board-2/dn/plan", "fedmote/1/other/board-1/dn/plan",
    "fedmote/1/lab/board-1/up/plan", "fedmote/1/lab/board-1/cell/up/plan", "fedmote/1/lab/board-1", "", "a",
    "fedmote/1/lab/board-11/dn/plan", "/fedmote/1/lab/board-1/dn/plan",
])  # fmt: skip
def test_what_is_addressed_to_somebody_else_is_dropped(topic):
    broker = Broker()
    broker.open()
    plan = dict(plan_for(PACKAGE), run=b"run-0001", round=1)
    broker.device.rx += publish(topic, body_of(plan))
    broker.steps()
    assert broker.device.state == "idle"
    assert broker.device.info.frame_errors == 1


@pytest.mark.parametrize("kind", ["nonsense", "plans", "pla", "plan/x", ""])
def test_a_topic_of_an_unknown_kind_is_refused(kind):
    broker = Broker()
    broker.open()
    broker.device.rx += publish(f"{BASE}/cell/dn/{kind}", b"\xa0")
    [(topic, _, fields)] = published(broker.steps())
    assert (topic, fields) == (f"{BASE}/cell/up/refuse", {FIELDS["status"].key: int(Status.UNKNOWN_KIND)})


# ---- whole rounds ----------------------------------------------------------------------------------------------------


class MqttPeers(Peers):
    """The scripted coordinator and partner behind a scripted broker."""

    def __init__(self, broker: Broker, **options: object) -> None:
        super().__init__(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE}, **options)  # type: ignore[arg-type]
        self.broker = broker

    def tell(self, device: Device, message: Packet) -> None:
        self.told.append(message)
        is_bulk = message.kind in (Kind.GET, Kind.DATA)
        topic = f"{BASE}/{'cell/' if message.channel == CELL else ''}dn/{message.kind.name.lower()}"
        device.rx += publish(topic, body_of(message.fields), None if is_bulk else 1 + len(self.told) % 65535)

    def exchange(self, device: Device) -> bool:
        names = {rule.key: name for name, rule in FIELDS.items()}
        packets = self.broker.steps(0)
        for kind, _, _content in packets:
            if kind == CONNECT:
                device.rx += CONNACK_OK
            elif kind == SUBSCRIBE:
                device.rx += SUBACK_OK
            elif kind == PINGREQ:
                device.rx += PINGRESP_OK
        for topic, flags, fields in published(packets):
            name = topic.rsplit("/", 1)[1].upper()
            assert bool(flags & 2) == (name not in ("GET", "DATA"))
            if name != "STATE":
                message = Packet(CELL if "/cell/" in topic else COORDINATOR, Kind[name], {names[k]: v for k, v in fields.items()})
                self.heard.append(message)
                self.answer(device, message)
        return bool(packets) or super().exchange(device)


def test_a_round_over_mqtt_gives_what_serial_gives():
    broker = Broker()
    peers = MqttPeers(broker)
    peers.run(broker.device, lambda: broker.device.info.rounds_done == 1 and bool(peers.samples))
    assert (peers.updates[1][0], peers.samples[1][0]) == undisturbed()[:2]


def test_a_round_over_mqtt_survives_the_loss_of_the_stream_in_every_state():
    for state in ("fetch", "encode", "select", "train", "report"):
        broker = Broker()
        peers = MqttPeers(broker)
        peers.run(broker.device, lambda broker=broker, state=state: broker.device.state == state)
        broker.device.rx += bytes([0xF0, 0])  # what follows is a new connection
        peers.run(broker.device, lambda broker=broker: not broker.device.info.is_link_up or not broker.device.rx)
        broker.device.rx.clear()
        broker.buffer.clear()
        peers.run(broker.device, lambda broker=broker, peers=peers: broker.device.info.rounds_done == 1 and bool(peers.samples))
        assert (peers.updates[1][0], peers.samples[1][-1]) == undisturbed()[:2], state


# ---- Mosquitto -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mosquitto(tmp_path):
    """Port of a private broker on loopback."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tcp_port = probe.getsockname()[1]
    configuration = tmp_path / "mosquitto.conf"
    configuration.write_text(f"listener {tcp_port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([program, "-c", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield tcp_port
    process.terminate()
    process.wait(10)


def connected(tcp_port: int) -> socket.socket:
    """A stream to the broker, as soon as it listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            stream = socket.create_connection(("127.0.0.1", tcp_port), timeout=1)
        except OSError:
            assert time.monotonic() < deadline, "mosquitto does not listen"
        else:
            stream.settimeout(0.01)
            return stream


def pump(device: Device, stream: socket.socket) -> None:
    """Device and socket exchange what they have; the virtual clock keeps to the real one."""
    device.now = int(time.monotonic() * 1000)
    while device.step() == BUSY:
        pass
    stream.sendall(bytes(device.tx))
    device.tx.clear()
    try:
        device.rx += stream.recv(65536)
    except TimeoutError:
        assert device.step() in (IDLE, BUSY)


@pytest.mark.broker
def test_a_round_runs_over_mosquitto_and_a_death_leaves_the_will(mosquitto):
    broker = Broker()
    device = broker.device
    stream = connected(mosquitto)
    states, peers = [], Peers(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE})
    names = {rule.key: name for name, rule in FIELDS.items()}
    host = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="host")

    def tell(_device, message):
        topic = f"{BASE}/{'cell/' if message.channel == CELL else ''}dn/{message.kind.name.lower()}"
        host.publish(topic, body_of(message.fields), qos=0 if message.kind in (Kind.GET, Kind.DATA) else 1)

    def hear(_client, _data, received):
        name = received.topic.rsplit("/", 1)[1].upper()
        fields = {names[key]: value for key, value in cbor2.loads(received.payload).items()}
        if name == "STATE":
            states.append(fields["is_online"])
        else:
            peers.answer(device, Packet(CELL if "/cell/" in received.topic else COORDINATOR, Kind[name], fields))

    peers.tell, host.on_message = tell, hear
    host.connect("127.0.0.1", mosquitto)
    host.subscribe([(f"{BASE}/up/#", 1), (f"{BASE}/cell/up/#", 1)])
    deadline = time.monotonic() + 60
    while not (device.info.rounds_done == 1 and peers.samples and states):
        assert time.monotonic() < deadline, (device.state, device.info.error)
        pump(device, stream)
        host.loop(0.001)
        for pull in peers.pulls.values():
            if not pull.is_complete and device.now - pull.asked_at >= 1000:
                pull.asked_at = device.now
                tell(device, pull.get())
    assert (peers.updates[1][0], peers.samples[1][0]) == undisturbed()[:2]
    assert states == [1]
    stream.close()
    while states[-1] == 1:
        assert time.monotonic() < deadline, "no will"
        host.loop(0.05)
    host.disconnect()
