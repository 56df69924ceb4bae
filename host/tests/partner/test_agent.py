# SPDX-License-Identifier: Apache-2.0
"""A partner as a program: a coordinator and a device on real sockets, one round from hello to ack."""

import asyncio
import zlib

import numpy as np
import pytest

from fedmote.config import PartnerConfig, PartnerDevice
from fedmote.lab.models import digits_cnn
from fedmote.package.boards import Board
from fedmote.partner.agent import PartnerAgent
from fedmote.partner.session import blob_hash
from fedmote.partner.state import PartnerState
from fedmote.partner.training import read_tensors
from fedmote.partner.update import MANIFEST_KEY, Trainer
from fedmote.supervised import free_tcp_port
from fedmote.tensors import dump_safetensors, load_safetensors
from fedmote.transport.link import LinkServer, SerialLink
from fedmote.wire.blobs import encode_selected_samples
from fedmote.wire.codec import Message
from fedmote.wire.schema import Channel, Kind, Phase, Role
from fedmote.wire.transfer import BlobSink, BlobSource
from fedmote_convert.convert import convert

RUN = b"run-0001"
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def checkpoint():
    x = np.random.default_rng(0).random((20, 1, 8, 8), np.float32)
    manifest = convert(digits_cnn(), x, [Board.load("posix")], model_id="m").package.host
    return dump_safetensors(read_tensors(digits_cnn()), {MANIFEST_KEY: manifest.to_bytes().decode()})


def samples(count=12):
    numbers = np.arange(count, dtype=np.uint32)
    x = np.random.default_rng(1).integers(-128, 128, (count, 64)).astype(np.int8)
    return encode_selected_samples(numbers, numbers % 10, np.full(count, 3, np.uint32), x)


def plan_for(checkpoint):
    return Message.of(
        Kind.PLAN,
        run=RUN,
        round=1,
        phase=Phase.SIMULTANEOUS,
        version=0,
        remaining_ms=50_000,
        model_hash=blob_hash(checkpoint),
        model_handle=77,
        model_size=len(checkpoint),
        seed=3,
        epochs=2,
        batch=8,
        learning_rate_micro=10_000,
        momentum_micro=0,
    )


async def device(port):
    """Offers samples on the cell channel until they are acknowledged; everything that it heard."""
    link = SerialLink(f"tcp://127.0.0.1:{port}", "device-a")
    while True:
        try:
            await link.start()
            break
        except Exception:
            await asyncio.sleep(0.02)
    blob = samples()
    crc = zlib.crc32(blob)
    hello = Message.of(Kind.HELLO, device="device-a", role=Role.DEVICE, boot=1, protocol=1, board="posix", sdk="t", max_body=200)
    offer = Message.of(Kind.SAMPLES, handle=crc, run=RUN, round=1, size=len(blob), crc=crc, count=12, input_bytes=64)
    link.set_max_body("device-a", 1000)
    await link.send("device-a", Channel.COORDINATOR, hello)
    await link.send("device-a", Channel.CELL, offer)
    heard = []
    while not heard or heard[-1].kind is not Kind.ACK:
        received = await link.receive()
        if received.channel is Channel.CELL:
            heard.append(received.message)
            if received.message.kind is Kind.GET:
                for answer in BlobSource(crc, blob).answer(received.message, 144):
                    await link.send("device-a", Channel.CELL, answer)
    await link.close()
    return heard


async def coordinator(server, checkpoint):
    """Gives the partner a plan, serves the checkpoint, pulls the update, acknowledges; the update and all that arrived."""
    sink, heard = None, []
    while True:
        received = await server.receive()
        message = received.message
        heard.append((received.id, message))
        if received.id != "phone":
            continue
        answers = []
        if message.kind is Kind.HELLO and sink is None:
            answers = [plan_for(checkpoint)]
        elif message.kind is Kind.GET:
            answers = BlobSource(77, checkpoint).answer(message, 65_535)
        elif message.kind is Kind.REPORT and sink is None:
            sink = BlobSink(message["handle"], message["size"], message["crc"], 4096)
            answers = sink.start(0.0)
        elif message.kind is Kind.DATA and sink is not None:
            answers = sink.accept(message, 0.0)
            if sink.is_complete:
                answers = [Message.of(Kind.ACK, handle=sink.handle, run=RUN, round=1)]
        for answer in answers:
            await server.send("phone", Channel.COORDINATOR, answer)
        if sink is not None and sink.is_complete:
            return sink.blob(), heard


async def one_round(directory, checkpoint):
    server = LinkServer("tcp://127.0.0.1:0")
    await server.start()
    port = free_tcp_port()
    config = PartnerConfig(
        id="phone",
        site="lab",
        model="fedmote.lab.models:digits_cnn",
        state_directory=directory,
        coordinator=server.url,
        devices=(PartnerDevice("device-a", "serial", f"listen://127.0.0.1:{port}"),),
    )
    running = asyncio.create_task(PartnerAgent(config, Trainer(digits_cnn, None, 0)).run())
    try:
        async with asyncio.timeout(LIMIT_S):
            heard, (update, arrived) = await asyncio.gather(device(port), coordinator(server, checkpoint))
            while any((directory / "samples").iterdir()) or (directory / "update.pending").exists():
                await asyncio.sleep(0.02)  # the ack is under way
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.close()
    return heard, update, arrived


def test_a_round_from_hello_to_ack_over_sockets(tmp_path, checkpoint):
    heard, update, arrived = asyncio.run(one_round(tmp_path, checkpoint))
    assert heard[-1].kind is Kind.ACK
    deltas = load_safetensors(update)
    assert {"conv1.weight", "bn1.running_mean", "head.weight"} <= deltas.keys()
    assert np.abs(deltas["conv1.weight"]).max() > 0
    report = next(message for id, message in arrived if message.kind is Kind.REPORT)
    assert (report["num_examples"], report["trained"]) == (12, 24)
    assert {id for id, _ in arrived} <= {"phone", "device-a"}  # the device's hello is relayed
    assert all(message.kind is not Kind.SAMPLES for _, message in arrived)
    assert not PartnerState(tmp_path).load().offers
