# SPDX-License-Identifier: Apache-2.0
"""The partner as a running program: it feeds the session and performs what the session asks for.

One asyncio loop, one thread for training. The training thread is a daemon: an interrupt ends the partner at once, and a round
that was being trained is trained again, with the same result, after a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Sequence

from fedmote import __version__
from fedmote.config import Credentials, PartnerConfig, PartnerCredentials, load
from fedmote.errors import ConfigError, ConversionError, FedmoteError, LoginError, RemoteWireError, TransportError
from fedmote.partner.session import (
    Action,
    DropOffers,
    DropPending,
    KeepCheckpoint,
    KeepOffer,
    KeepPending,
    Send,
    Session,
    Train,
    Trained,
)
from fedmote.partner.state import PartnerState
from fedmote.partner.update import Trainer
from fedmote.transport.base import Inbox, Received, Transport
from fedmote.transport.link import SerialLink
from fedmote.transport.mqtt import PartnerMqtt
from fedmote.transport.relay import Relay
from fedmote.wire.codec import Message
from fedmote.wire.schema import LIMIT_BODY_CEILING, Channel, Kind, Status
from fedmote.wire.seal import BootEnd, EpochEnd, FixedKeys, Seals

log = logging.getLogger(__name__)

# A coordinator or a board that is started a little later than the partner is waited for.
START_PATIENCE_S = 60.0
START_RETRY_S = 0.5


class Links:
    """All links of one partner: to the coordinator, and to the devices on its serial lines; one inbox.

    Args:
        config: of the partner.
        boot: nonce, or with keys the number, of this start.
        seals: the keys; none: messages are not sealed.
    """

    def __init__(self, config: PartnerConfig, boot: int, seals: Seals | None) -> None:
        self.inbox = Inbox()
        self.is_new_link = False
        self._id = config.id
        serial = [device.id for device in config.devices if device.link == "serial"]
        self._relays = {device: _relay(config, device, self.inbox, seals) for device in serial}
        self._up = self._upward(config, boot, seals)
        self._up.set_max_body(config.id, LIMIT_BODY_CEILING)

    async def start(self) -> None:
        """Open all links; TransportError where one of them cannot be had within `START_PATIENCE_S`."""
        for link in (self._up, *self._relays.values()):
            await _start_patiently(link)

    async def send(self, id: str, channel: Channel, message: Message) -> None:
        """Send to the coordinator, or to a device on the cell channel; what cannot be sent is dropped and said again later."""
        link = self._relays.get(id) if channel is Channel.CELL else None
        await (link or self._up).send(id, channel, message)

    async def close(self) -> None:
        """Close all links."""
        for link in (*self._relays.values(), self._up):
            await link.close()

    def _upward(self, config: PartnerConfig, boot: int, seals: Seals | None) -> Transport:
        if config.broker is None:
            return SerialLink(config.coordinator or "", config.id, self.inbox, on_lost=self._on_lost, seals=seals)
        broker = config.broker
        devices = [device.id for device in config.devices if device.link == "mqtt"]
        password, username = broker.password(), broker.username
        return PartnerMqtt(
            broker.url,
            config.site,
            config.id,
            devices,
            password,
            username,
            self.inbox,
            boot=boot,
            ca_file=broker.ca_file,
            seals=seals,
        )

    def _on_lost(self) -> None:
        self.is_new_link = True


def _relay(config: PartnerConfig, device_id: str, inbox: Inbox, seals: Seals | None) -> Relay:
    device = next(one for one in config.devices if one.id == device_id)
    credentials = None if device.credentials_file is None else load(Credentials, device.credentials_file)
    return Relay(
        device.id,
        device.port or "",
        broker_url=None if config.broker is None else config.broker.url,
        coordinator_url=config.coordinator,
        credentials=credentials,
        inbox=inbox,
        baud=device.baud,
        ca_file=None if config.broker is None else config.broker.ca_file,
        seals=seals,
    )


def _seals(config: PartnerConfig, credentials: PartnerCredentials, start: int, former: int) -> Seals:
    """Both channels of the start of this number, after another one (0: none)."""
    if credentials.id != config.id:
        raise ConfigError(f"credentials_file {config.credentials_file}: keys of {credentials.id}; those of {config.id} expected")
    keys: dict[str, bytes] = {}
    for device in config.devices:
        key = credentials.cell_key(device.id)
        if key is None:
            raise ConfigError(f"credentials_file {config.credentials_file}: no cell key of device {device.id}")
        keys[device.id] = key
    return Seals(
        coordinator=BootEnd(config.id, Channel.COORDINATOR, credentials.key_bytes, start),
        cell=EpochEnd(Channel.CELL, FixedKeys(keys), start, time.monotonic, former),
    )


async def _start_patiently(link: Transport) -> None:
    deadline, told = time.monotonic() + START_PATIENCE_S, ""
    while True:
        try:
            return await link.start()
        except LoginError:
            raise
        except TransportError as error:
            if time.monotonic() + START_RETRY_S > deadline:
                raise
            if str(error) != told:
                log.warning("not yet: %s", error)
                told = str(error)
            await asyncio.sleep(START_RETRY_S)


class PartnerAgent:
    """One partner.

    Args:
        config: `partner.toml`.
        trainer: answers `Train`.

    Attributes:
        num_updates: updates that were trained since the start.
    """

    def __init__(self, config: PartnerConfig, trainer: Trainer) -> None:
        self.num_updates = 0
        self._id = config.id
        self._trainer = trainer
        self._state = PartnerState(config.state_directory)
        boot, seals = secrets.randbits(32), None
        if config.credentials_file is not None:
            boot, former = self._state.next_start()
            seals = _seals(config, load(PartnerCredentials, config.credentials_file), boot, former)
        else:
            log.warning("messages are not authenticated, and samples travel readable: there is no credentials_file")
        self._links = Links(config, boot, seals)
        devices = [device.id for device in config.devices]
        self._session = Session(config.id, devices, boot, f"fedmote {__version__}", self._state.load())
        self._is_training = False
        self._next_training: Train | None = None
        self._trainings: asyncio.Queue[tuple[Message, Trained | FedmoteError]] = asyncio.Queue()

    async def run(self) -> None:
        """Take part until cancelled."""
        try:
            await self._links.start()
            log.info("partner started id=%s", self._id)
            await self._serve()
        finally:
            await self._links.close()

    async def _serve(self) -> None:
        receiving = asyncio.create_task(self._links.inbox.get())
        training = asyncio.create_task(self._trainings.get())
        try:
            while True:
                pause = min(max(0.0, self._session.wake_at() - time.monotonic()), START_PATIENCE_S)
                await asyncio.wait({receiving, training}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if receiving.done():
                    await self._perform(self._handle(receiving.result()))
                    receiving = asyncio.create_task(self._links.inbox.get())
                if training.done():
                    await self._perform(self._finish(*training.result()))
                    training = asyncio.create_task(self._trainings.get())
                if self._links.is_new_link:
                    self._links.is_new_link = False
                    await self._perform(self._session.connected(time.monotonic()))
                await self._perform(self._session.tick(time.monotonic()))
        finally:
            receiving.cancel()
            training.cancel()

    def _handle(self, received: Received) -> list[Action]:
        if received.message.kind is Kind.REFUSE:
            number = received.message["status"]
            status = Status(number).name.lower() if number in tuple(Status) else str(number)  # of a newer peer
            log.warning("refused by=%s status=%s reason=%s", received.id, status, received.message.get("reason", ""))
        return self._session.handle(received, time.monotonic())

    def _finish(self, plan: Message, result: Trained | FedmoteError) -> list[Action]:
        self._is_training, order, self._next_training = False, self._next_training, None
        if order is not None:
            self._begin_training(order)
        if isinstance(result, Trained):
            self.num_updates += 1
            log.info("trained round=%d examples=%d", plan["round"], result.numbers["num_examples"])
            return self._session.trained(plan, result, time.monotonic())
        log.error("cannot train round=%d: %s", plan["round"], result)
        status = result.status if isinstance(result, RemoteWireError) else Status.WRONG_MODEL
        return self._session.failed(plan, status, str(result), time.monotonic())

    async def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send(id=id, channel=channel, message=message):
                    await self._links.send(id, channel, message)
                case KeepCheckpoint(blob=blob):
                    self._state.keep_checkpoint(blob)
                case KeepOffer(offer=offer):
                    self._state.keep_offer(offer)
                    log.info("samples device=%s round=%d bytes=%d", offer.device, offer.round, len(offer.blob))
                case DropOffers(devices=devices):
                    self._state.drop_offers(devices)
                case KeepPending(pending=pending):
                    self._state.keep_pending(pending)
                case DropPending():
                    self._state.drop_pending()
                case Train():
                    self._begin_training(action)

    def _begin_training(self, order: Train) -> None:
        """Train in a thread, one at a time: while one runs whose round is over, only the newest order waits for its end."""
        if self._is_training:
            self._next_training = order
            return
        self._is_training = True
        loop = asyncio.get_running_loop()

        def work() -> None:
            result: Trained | FedmoteError
            try:
                result = self._trainer.update(self._id, order.plan, order.checkpoint, order.offers)
            except (RemoteWireError, ConfigError, ConversionError) as error:
                result = error
            except Exception as error:  # the thread's only way to say so; the plan is refused, the partner lives on
                log.exception("training failed round=%d", order.plan["round"])
                result = ConfigError(f"training failed: {type(error).__name__}: {error}")
            with contextlib.suppress(RuntimeError):  # the loop was closed: the partner has ended
                loop.call_soon_threadsafe(self._trainings.put_nowait, (order.plan, result))

        threading.Thread(target=work, name=f"train {self._id}", daemon=True).start()
