# SPDX-License-Identifier: Apache-2.0
"""A broker that lets users in and then stands still costs one short wait, not one for every message."""

import asyncio
import socket
import subprocess
import sys
import time

from fedmote.transport import mqtt_connection
from fedmote.transport.mqtt_connection import MAX_UNSENT, Login, MqttConnection

_CONNACK, _SUBACK = bytes.fromhex("20020000"), bytes.fromhex("90030001" + "01")
_ROOM_TIMEOUT_S = 0.2


async def _stand_still(reader, writer):
    """Takes CONNECT and SUBSCRIBE, and then acknowledges nothing."""
    await reader.read(4096)
    writer.write(_CONNACK)
    await reader.read(4096)
    writer.write(_SUBACK)
    while await reader.read(4096):
        pass
    writer.close()


def test_a_broker_that_stands_still_holds_a_sender_once_and_drops_the_rest(kit, monkeypatch):
    monkeypatch.setattr(mqtt_connection, "ROOM_TIMEOUT_S", _ROOM_TIMEOUT_S)

    async def story():
        server = await asyncio.start_server(_stand_still, "127.0.0.1", 0)
        url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        connection = MqttConnection(Login(url, "user", "word", "me", None), ["a"], lambda text, body: None, lambda error: None)
        await kit.soon(connection.start())
        sent = [await connection.publish("b", b"1", 1) for _ in range(MAX_UNSENT)]
        began = time.monotonic()
        dropped = [await connection.publish("b", b"1", 1) for _ in range(50)]
        took_s = time.monotonic() - began
        began = time.monotonic()
        await connection.close()
        server.close()
        return sent, dropped, took_s, time.monotonic() - began

    sent, dropped, took_s, close_s = kit.run(story())
    assert all(sent)
    assert not any(dropped)
    assert _ROOM_TIMEOUT_S <= took_s <= 3 * _ROOM_TIMEOUT_S
    assert close_s <= 2.0


_END_WHILE_CONNECTING = """
import asyncio, sys
from fedmote.transport.mqtt_connection import Login, MqttConnection

async def story():
    login = Login(sys.argv[1], "user", "word", "me", None)
    connection = MqttConnection(login, ["a"], lambda text, body: None, lambda error: None)
    starting = asyncio.create_task(connection.start())
    await asyncio.sleep(0.2)
    print("connecting", flush=True)
    starting.cancel()
    await connection.close()

asyncio.run(story())
"""


def test_a_broker_that_answers_no_connection_does_not_keep_a_process_from_ending():
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):  # nobody accepts: the queue is full, and the next one gets no answer
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"mqtt://127.0.0.1:{full.getsockname()[1]}"
        command = [sys.executable, "-c", _END_WHILE_CONNECTING, url]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "connecting\n"
        began = time.monotonic()
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - began <= 2.0
