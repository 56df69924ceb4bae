# SPDX-License-Identifier: Apache-2.0
"""One MQTT connection in the asyncio loop: paho's client, woken by the loop instead of by a thread.

paho says when its socket opens, closes, wants to write; the loop watches the socket. Connecting blocks inside paho, so
that one call runs in a thread. The connection comes back by itself, with full jitter; a broker that knows neither
session nor subscription any more gets both again, and the retained birth too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fedmote.background import in_background
from fedmote.errors import ConfigError, LoginError, TransportError

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 30
CONNECT_TIMEOUT_S = 5.0
START_TIMEOUT_S = 15.0  # a broker that has not answered by then is not there
BACKOFF_S = (1.0, 60.0)
MAX_UNSENT = 256  # messages that may wait in paho; `publish` waits for room
ROOM_TIMEOUT_S = 1.0  # and no longer: a broker that stands still must not hold its users' deadlines back
MAX_QUEUED = 1000  # of quality 1 that paho keeps while the broker is away
_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
_REFUSED = ("Bad user name or password", "Not authorized", "Client identifier not valid", "Unsupported protocol version")


@dataclass(frozen=True)
class Login:
    """Where and as whom to connect."""

    url: str
    username: str
    password: str
    client_id: str
    ca_file: Path | None = None

    def __repr__(self) -> str:
        return f"{self.url} as {self.username}"

    def address(self) -> tuple[bool, str, int]:
        """Is it TLS, host, port; ConfigError where the URL is none."""
        try:
            parts = urlsplit(self.url)
            if parts.scheme in _DEFAULT_PORTS and parts.hostname:
                return parts.scheme == "mqtts", parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme]
        except ValueError:
            pass
        raise ConfigError(f"broker {self.url!r}: mqtt://host:port or mqtts://host:port expected")


@dataclass(frozen=True)
class Retained:
    """The one retained topic of a participant: what is published there at birth, and by the broker at death."""

    topic: str
    birth: bytes
    death: bytes


def backoff(attempt: int, bounds_s: tuple[float, float], generator: random.Random) -> float:
    """Seconds until the next attempt: full jitter, so that a restarted broker does not meet all its clients at once."""
    low, high = bounds_s
    return generator.uniform(0, min(high, low * 2 ** min(attempt, 16)))


class MqttConnection:
    """One user's connection to a broker.

    Args:
        login: where and as whom.
        filters: topics to subscribe to, at quality 1.
        on_message: called with topic and payload.
        on_fatal: called once when the connection is over for good: closed, or refused by the broker.
        retained: birth and death, for participants.
        is_session_kept: ask the broker to keep messages while we are away; correctness never depends on it.
        backoff_s: shortest and longest pause between two attempts.
        generator: of the jitter.
    """

    def __init__(
        self,
        login: Login,
        filters: Sequence[str],
        on_message: Callable[[str, bytes], None],
        on_fatal: Callable[[TransportError], None],
        *,
        retained: Retained | None = None,
        is_session_kept: bool = False,
        backoff_s: tuple[float, float] = BACKOFF_S,
        generator: random.Random | None = None,
    ) -> None:
        self.login = login
        self._is_tls, self._host, self._port = login.address()
        self._filters = list(filters)
        self._on_message_call = on_message
        self._on_fatal = on_fatal
        self._retained = retained
        self._backoff_s = backoff_s
        self._generator = generator or random.SystemRandom()
        self._client = self._new_client(is_session_kept)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None
        self._is_paused = False
        self._is_closed = False
        self._is_started = False
        self._is_ready = asyncio.Event()
        self._is_down = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_stuck = False
        self._unsent: set[int] = set()
        self._refusal: TransportError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._later: set[asyncio.Task[bool]] = set()

    @property
    def is_ready(self) -> bool:
        """Connected and subscribed?"""
        return self._is_ready.is_set()

    async def start(self) -> None:
        """Connect and subscribe; from then on the connection comes back by itself. May be tried again after an error.

        Raises:
            TransportError: the broker refused the user, or did not answer in time. It names broker and user.
        """
        self._loop = asyncio.get_running_loop()
        self._is_closed, self._refusal = False, None
        self._tasks = [
            asyncio.create_task(self._keep_connected(), name=f"connect {self.login}"),
            asyncio.create_task(self._keep_alive(), name=f"keep {self.login} alive"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._on_task_done)
        ready = asyncio.create_task(self._is_ready.wait())
        await asyncio.wait([ready, self._tasks[0]], timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if self.is_ready:
            self._is_started = True
            return
        ready.cancel()
        await self.close(is_final=False)
        raise self._refusal or TransportError(f"broker {self.login}: no answer in {START_TIMEOUT_S:g} s; is it running there?")

    async def publish(self, topic: str, payload: bytes, quality: int, is_retained: bool = False) -> bool:
        """Publish; waits for room where much is unsent. False, with nothing sent, where the broker is away or stands still."""
        if not self.is_ready or not await self._is_room_made():
            return False
        return self._publish(topic, payload, quality, is_retained)

    async def _is_room_made(self) -> bool:
        """Wait for room, once: until something moves again, nobody else waits for the same broker."""
        try:
            async with asyncio.timeout(0.0 if self._is_stuck else ROOM_TIMEOUT_S):
                while self.is_ready and len(self._unsent) >= MAX_UNSENT:
                    self._has_room.clear()
                    await self._has_room.wait()
        except TimeoutError:
            self._is_stuck = True
        return self.is_ready and len(self._unsent) < MAX_UNSENT

    def _make_room(self) -> None:
        self._is_stuck = False
        self._has_room.set()

    def publish_soon(self, topic: str, payload: bytes, quality: int) -> None:
        """Publish from inside a callback; dropped where the broker is away or much is unsent."""
        if len(self._later) < MAX_UNSENT and self._loop is not None:
            task = self._loop.create_task(self.publish(topic, payload, quality))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    def pause(self) -> None:
        """Stop reading: TCP and then the broker's own limits hold what comes."""
        self._is_paused = True
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        if self._socket is not None and self._loop is not None:
            self._loop.add_reader(self._socket, self._read)

    async def close(self, *, is_final: bool = True) -> None:
        """Publish the death, disconnect, end all tasks."""
        if self.is_ready:
            if self._retained is not None:
                self._publish(self._retained.topic, self._retained.death, 1, is_retained=True)
            await self._flush()
        tasks = [*self._tasks, *self._later]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self._is_closed = True
        if self._client.disconnect() == paho.MQTT_ERR_SUCCESS:
            self._client.loop_write()
        self._drop_socket()
        if is_final:
            self._on_fatal(TransportError(f"the connection to broker {self.login} is closed"))

    # ---- the connection's life ----------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        attempt = 0
        while self._refusal is None:
            self._is_down.clear()
            if await self._connect():
                is_up = await self._wait_until_ready()
                attempt = 0 if is_up else attempt
                if is_up:
                    await self._is_down.wait()
                    log.warning("lost broker %s", self.login)
            self._drop_socket()
            if self._refusal is None:
                await asyncio.sleep(backoff(attempt, self._backoff_s, self._generator))
                attempt += 1
        if self._is_started:
            self._on_fatal(self._refusal)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """A task that fails by our own fault must not leave the reader waiting."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("the connection to %s broke", self.login, exc_info=error)
            self._on_fatal(TransportError(f"broker {self.login}: {error!r}"))

    async def _connect(self) -> bool:
        """Open the socket and send CONNECT; False where nobody answers."""
        try:
            await in_background(lambda: self._client.connect(self._host, self._port, KEEP_ALIVE_S))
        except ssl.SSLError as error:
            self._refusal = TransportError(f"broker {self.login}: TLS failed: {error}; is ca_file the broker's?")
        except OSError as error:
            log.debug("broker %s: %s", self.login, error)
            return False
        return self._refusal is None

    async def _wait_until_ready(self) -> bool:
        """Until CONNACK and SUBACK are here, or the connection is lost, or the time is up."""
        tasks = [asyncio.create_task(event.wait()) for event in (self._is_ready, self._is_down)]
        try:
            await asyncio.wait(tasks, timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return self.is_ready

    async def _keep_alive(self) -> None:
        """Let paho look at its clock: pings, and the answer that never came."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_S / 8)
            self._client.loop_misc()

    async def _flush(self) -> None:
        """Give what is unsent a moment to go out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while self._unsent and self._socket is not None:
                    self._has_room.clear()
                    await self._has_room.wait()

    def _drop_socket(self) -> None:
        """Forget a connection, whatever state it is in."""
        self._go_down()
        if self._socket is not None:
            held = self._socket
            self._unwatch(held, held.fileno())
            held.close()
            self._client.loop_read()  # paho finds its socket closed and clears its own state

    def _go_down(self) -> None:
        self._is_ready.clear()
        self._unsent.clear()
        self._make_room()
        self._is_down.set()

    # ---- paho's callbacks ---------------------------------------------------------------------------------

    def _new_client(self, is_session_kept: bool) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            self.login.client_id,
            clean_session=not is_session_kept,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.username_pw_set(self.login.username, self.login.password)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_queued_messages_set(MAX_QUEUED)
        if self._is_tls:
            client.tls_set(ca_certs=str(self.login.ca_file) if self.login.ca_file else None)
        if self._retained is not None:
            client.will_set(self._retained.topic, self._retained.death, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_socket_register_write
        client.on_socket_unregister_write = self._on_socket_unregister_write
        return client

    def _on_connect(
        self, client: paho.Client, data: object, flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            if str(reason) in _REFUSED:
                self._refusal = LoginError(f"broker {self.login}: {reason}; check user name and password file")
            self._is_down.set()
        elif self._filters:
            client.subscribe([(topic, 1) for topic in self._filters])
        else:
            self._be_ready()

    def _on_subscribe(
        self, client: paho.Client, data: object, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refusal = LoginError(f"broker {self.login}: may not subscribe to {', '.join(self._filters)}")
            self._is_down.set()
        else:
            self._be_ready()

    def _be_ready(self) -> None:
        self._is_ready.set()
        if self._retained is not None:
            self._publish(self._retained.topic, self._retained.birth, 1, is_retained=True)

    def _on_disconnect(
        self, client: paho.Client, data: object, flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._go_down()

    def _on_message(self, client: paho.Client, data: object, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self._on_message_call(topic, bytes(message.payload))

    def _publish(self, topic: str, payload: bytes, quality: int, is_retained: bool) -> bool:
        info = self._client.publish(topic, payload, quality, is_retained)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            return False
        if not info.is_published():
            self._unsent.add(info.mid)
        return True

    def _on_publish(self, client: paho.Client, data: object, mid: int, reason: ReasonCode, properties: Properties) -> None:
        self._unsent.discard(mid)
        self._make_room()

    # paho calls these from our loop's thread, and from the connecting thread while `connect` runs there.

    def _on_socket_open(self, client: paho.Client, data: object, opened: Any) -> None:  # noqa: ANN401 (a socket-like of paho)
        self._call_in_loop(self._watch, opened)

    def _on_socket_close(self, client: paho.Client, data: object, closing: Any) -> None:  # noqa: ANN401
        self._call_in_loop(self._unwatch, closing, closing.fileno())

    def _on_socket_register_write(self, client: paho.Client, data: object, writing: Any) -> None:  # noqa: ANN401
        self._call_in_loop(self._watch_writing, writing)

    def _on_socket_unregister_write(self, client: paho.Client, data: object, writing: Any) -> None:  # noqa: ANN401
        self._call_in_loop(self._unwatch_writing, writing.fileno())

    def _call_in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            is_here = asyncio.get_running_loop() is loop
        except RuntimeError:
            is_here = False
        if is_here:
            call(*arguments)
        else:
            loop.call_soon_threadsafe(call, *arguments)

    def _watch(self, opened: socket.socket) -> None:
        if self._is_closed:  # the connecting thread outlived us
            opened.close()
            return
        self._socket = opened
        if not self._is_paused and self._loop is not None and opened.fileno() >= 0:
            self._loop.add_reader(opened, self._read)

    def _unwatch(self, closing: socket.socket, descriptor: int) -> None:
        if self._socket is closing:
            self._socket = None
        if self._loop is not None and descriptor >= 0:
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)

    def _watch_writing(self, writing: socket.socket) -> None:
        if self._loop is not None and writing.fileno() >= 0:
            self._loop.add_writer(writing, self._client.loop_write)

    def _unwatch_writing(self, descriptor: int) -> None:
        if self._loop is not None and descriptor >= 0:
            self._loop.remove_writer(descriptor)

    def _read(self) -> None:
        self._client.loop_read()
        held = self._socket
        while isinstance(held, ssl.SSLSocket) and held is self._socket and held.pending():
            self._client.loop_read()  # TLS has bytes that select cannot see
