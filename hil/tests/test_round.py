# SPDX-License-Identifier: Apache-2.0
"""One round of one device, on every board and over every link, against a scripted coordinator and a reference in NumPy."""

import asyncio
import contextlib
import time
import zlib

import numpy as np
import pytest

from fedmote.config import CellConfig
from fedmote.errors import RigError, TransportError
from fedmote.package.boards import Board
from fedmote.package.execute import run_int8
from fedmote.package.specimen import random_samples
from fedmote.transport.broker import PrivateBroker, find_mosquitto
from fedmote.transport.link import LinkServer
from fedmote.transport.mqtt import CoordinatorMqtt
from fedmote.wire.blobs import decode_head_update
from fedmote.wire.codec import Message
from fedmote.wire.regions import identity_region, samples_region
from fedmote.wire.schema import Channel, Kind, Phase, Status
from fedmote.wire.seal import EpochEnd, FixedKeys, Seals
from fedmote.wire.transfer import BlobSink, BlobSource
from fedmote_hil.virtual import VirtualDevice

from .rig import BOARDS, small_package, stack_used

_RUN = b"testrun1"
_SAMPLES, _CLASSES, _EPOCHS, _BATCH, _RATE, _MOMENTUM = 40, 3, 3, 8, 0.05, 0.9
_TIMEOUT_S = 90


def _plan(package, round_number):
    blob = package.device_form()
    return Message.of(
        Kind.PLAN,
        run=_RUN,
        round=round_number,
        phase=Phase.DEVICE,
        version=1,
        remaining_ms=60_000,
        model_hash=package.hash,
        model_handle=zlib.crc32(blob),
        model_size=len(blob),
        seed=7,
        epochs=_EPOCHS,
        batch=_BATCH,
        learning_rate_micro=round(_RATE * 1e6),
        momentum_micro=round(_MOMENTUM * 1e6),
        # All draws off: every sample is trained here.
        alpha_milli=0,
        beta_milli=0,
        gamma_milli=0,
    )


async def _train_once(transport, package, round_number, is_fetch_expected=True):
    """Leads the device through one round; returns its report and the head update."""
    source, sink, report = BlobSource(zlib.crc32(package.device_form()), package.device_form()), None, None
    max_body = 0

    async def say(messages):
        for message in messages:
            await transport.send("board-1", Channel.COORDINATOR, message)

    while sink is None or not sink.is_complete:
        message = (await transport.receive()).message
        if message.kind is Kind.HELLO:
            max_body = message["max_body"]
            await say([_plan(package, round_number)])
        elif message.kind is Kind.GET:
            assert is_fetch_expected, "the device asks for a package that it should have"
            await say(source.answer(message, max_body))
        elif message.kind is Kind.REPORT and sink is None:
            report = message
            sink = BlobSink(message["handle"], message["size"], message["crc"], max_body)
            await say(sink.start(time.monotonic()))
        elif message.kind is Kind.DATA and sink is not None:
            await say(sink.accept(message, time.monotonic()))
        else:
            assert message.kind is not Kind.REFUSE, message
    await say([Message.of(Kind.ACK, handle=report["handle"], run=_RUN, round=round_number)])
    return report, decode_head_update(sink.blob())


def _reference(package, x, y):
    """The head's change by mini-batch SGD with momentum in float64, as torch.optim.SGD does it."""
    header = package.header
    features = (
        run_int8(package.graph, x).reshape(len(x), -1).astype(np.float64) - header.feature_zero_point
    ) * header.feature_scale
    weights, bias = (part.astype(np.float64) for part in (package.head[0].weights, package.head[0].bias))
    start = np.concatenate([weights.ravel(), bias])
    velocity_w, velocity_b = np.zeros_like(weights), np.zeros_like(bias)
    for _ in range(_EPOCHS):
        for first in range(0, len(x), _BATCH):
            a, target = features[first : first + _BATCH], y[first : first + _BATCH]
            z = a @ weights.T + bias
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(a)), target] -= 1
            velocity_w = _MOMENTUM * velocity_w + p.T @ a / len(a)
            velocity_b = _MOMENTUM * velocity_b + p.sum(axis=0) / len(a)
            weights, bias = weights - _RATE * velocity_w, bias - _RATE * velocity_b
    return np.concatenate([weights.ravel(), bias]) - start


@contextlib.asynccontextmanager
async def _coordinator(broker):
    transport = CoordinatorMqtt(broker.url, "lab", "coordinator", broker.password("coordinator"))
    await transport.start()
    try:
        yield transport
    finally:
        with contextlib.suppress(TransportError):  # a dead broker hears no farewell
            await transport.close()


def _data(board):
    package = small_package(0, board, _CLASSES)
    x = random_samples(package.graph, _SAMPLES, 8)
    y = np.random.default_rng(8).integers(0, _CLASSES, _SAMPLES)
    return package, x, y


def _check(board, package, x, y, report, delta):
    assert (report["trained"], report["num_examples"], report["discarded"]) == (_SAMPLES * _EPOCHS, _SAMPLES, 0)
    expected = _reference(package, x, y)
    if Board.load(board).arithmetic == "int16":  # weights of 16 bits, rounded at random: as near as the tests of the head demand
        assert np.linalg.norm(delta - expected) <= 0.05 * np.linalg.norm(expected)
    else:
        np.testing.assert_allclose(delta, expected, rtol=2e-4, atol=2e-5)


def _check_stack(device):
    """An emulated board has kept to the stack that board.toml reserves."""
    if device.board.emulator is not None:
        used = stack_used(device)
        print(f"{device.board.name}: {used} bytes of stack, {device.board.stack_bytes} are reserved")
        assert 256 < used <= device.board.stack_bytes


@contextlib.asynccontextmanager
async def _on_serial_line(board, x, y, key=None):
    """A device on a serial line, and the server at its other end; with a key in sealed messages."""
    keys = FixedKeys({"board-1": key})
    seals = None if key is None else Seals(EpochEnd(Channel.COORDINATOR, keys, 1, time.monotonic))
    server = LinkServer("tcp://127.0.0.1:0", seals=seals)
    await server.start()
    try:
        identity = identity_region("board-1", "lab", "serial", key=key)
        with VirtualDevice(board, "board-1", samples_region(x, y), identity, server.url, is_checked=True) as device:
            yield server, device
    finally:
        await server.close()


@pytest.mark.parametrize("board", BOARDS)
def test_a_round_over_serial_frames_trains_what_the_reference_trains(board, tmp_path):
    package, x, y = _data(board)

    async def run():
        async with _on_serial_line(board, x, y) as (server, device):
            first = await asyncio.wait_for(_train_once(server, package, 1), _TIMEOUT_S)
            # The package of round 1 is installed: round 2 trains on it, from the head inside it, to the same end.
            second = await asyncio.wait_for(_train_once(server, package, 2), _TIMEOUT_S)
            assert device.is_running
            _check_stack(device)
            return first, second

    (report, delta), (_, again) = asyncio.run(run())
    _check(board, package, x, y, report, delta)
    assert np.array_equal(delta, again)


@pytest.mark.parametrize("board", [board for board in BOARDS if board == "posix" or board.values[0] != "lm3s6965"])
def test_sealed_rounds_train_the_same_within_the_reserved_stack_and_survive_a_restart(board):
    """Of the boards that can count their boots; the emulated lm3s6965 has no memory for it."""
    package, x, y = _data(board)

    async def run():
        async with _on_serial_line(board, x, y, bytes(range(32))) as (server, device):
            first = await asyncio.wait_for(_train_once(server, package, 1), _TIMEOUT_S)
            _check_stack(device)
            device.restart()
            second = await asyncio.wait_for(_train_once(server, package, 2, Board.load(board).name == "stm32f405"), _TIMEOUT_S)
            assert server.errors.keys() <= {Status.FRAME_COBS, Status.FRAME_LENGTH, Status.FRAME_CRC}
            return first, second

    (report, delta), (_, again) = asyncio.run(run())
    _check(board, package, x, y, report, delta)
    assert np.array_equal(delta, again)


def _flash_boards():
    """Boards whose flash is emulated."""
    return [board for board in BOARDS if board != "posix" and "ram_slots" not in Board.load(board.values[0]).regions]


@pytest.mark.parametrize("board", _flash_boards())
def test_a_pushed_package_outlives_a_reset_and_a_power_cut_in_emulated_flash(board):
    package, x, y = _data(board)

    async def run():
        async with _on_serial_line(board, x, y) as (server, device):
            deltas = [await asyncio.wait_for(_train_once(server, package, 1), _TIMEOUT_S)]
            for number, interrupt in enumerate((device.reset, device.restart), 2):
                interrupt()
                deltas.append(await asyncio.wait_for(_train_once(server, package, number, False), _TIMEOUT_S))
            with pytest.raises(RigError, match="began with slots or journal from files"):
                device.reset()
            return deltas

    first, *others = asyncio.run(run())
    _check(board, package, x, y, *first)
    assert all(np.array_equal(delta, first[1]) for _, delta in others)


@pytest.mark.parametrize("board", _flash_boards())
def test_a_power_cut_within_a_fetch_leaves_the_installed_package_in_emulated_flash(board):
    package, x, y = _data(board)
    other = small_package(3, board, _CLASSES)
    source = BlobSource(zlib.crc32(other.device_form()), other.device_form())

    async def fetch_a_part(server):
        """Plans the other package, and gives the device half of it: until it asks for the rest."""
        is_half_sent = False
        while True:
            message = (await server.receive()).message
            if message.kind is Kind.HELLO:
                max_body = message["max_body"]
                await server.send("board-1", Channel.COORDINATOR, _plan(other, 2))
            elif message.kind is Kind.GET:
                if is_half_sent:
                    return
                chunks = source.answer(message, max_body)
                for chunk in chunks[: len(chunks) // 2]:
                    await server.send("board-1", Channel.COORDINATOR, chunk)
                is_half_sent = True

    async def run():
        async with _on_serial_line(board, x, y) as (server, device):
            first = await asyncio.wait_for(_train_once(server, package, 1), _TIMEOUT_S)
            await asyncio.wait_for(fetch_a_part(server), _TIMEOUT_S)
            device.restart()
            return first, await asyncio.wait_for(_train_once(server, package, 3, False), _TIMEOUT_S)

    (_, delta), (_, again) = asyncio.run(run())
    assert np.array_equal(delta, again)


@pytest.mark.broker
@pytest.mark.skipif(find_mosquitto() is None, reason="not installed: mosquitto")
@pytest.mark.parametrize("board", BOARDS)
def test_a_round_over_mqtt_survives_a_broker_that_dies_before_it(board, tmp_path):
    package, x, y = _data(board)

    async def until_it_is_there(broker):
        async with _coordinator(broker) as transport:
            message = (await asyncio.wait_for(transport.receive(), _TIMEOUT_S)).message
            assert message.kind in (Kind.HELLO, Kind.STATE)
            broker.kill9()

    async def run(broker):
        # An emulated board learns of the broker's death only by its own keep-alive.
        identity = identity_region("board-1", "lab", "mqtt", "board-1", broker.password("board-1"), keep_alive_s=2)
        with VirtualDevice(board, "board-1", samples_region(x, y), identity, broker.url, is_checked=True) as device:
            await until_it_is_there(broker)
            broker.restart()
            async with _coordinator(broker) as transport:
                results = await asyncio.wait_for(_train_once(transport, package, 1), _TIMEOUT_S)
            _check_stack(device)
            return results

    with PrivateBroker(tmp_path / "broker", "lab", [CellConfig("cell", ("board-1",))]) as broker:
        report, delta = asyncio.run(run(broker))
    _check(board, package, x, y, report, delta)
