# SPDX-License-Identifier: Apache-2.0
"""The bad line: what it does is what was asked for, the same for the same seed, and at the line's pace."""

import asyncio
import time

import pytest

from fedmote.errors import ConfigError
from fedmote.wire.frame import Frame, FrameDecoder, encode_frame
from fedmote.wire.schema import Channel
from fedmote_hil.shim import Impairer, Impairment, Shim

_BODIES = [number.to_bytes(4, "little") * 20 for number in range(2000)]
_PIECES = [encode_frame(Frame(Channel.COORDINATOR, 1, number, body)) for number, body in enumerate(_BODIES)]


def _through(impairment, seed=3, pieces=_PIECES):
    impairer = Impairer(impairment, seed)
    out = [piece for number, piece in enumerate(pieces) for piece in impairer.feed(piece, number / 100)]
    return out + impairer.flush(), impairer.counts


def test_a_clean_line_hands_on_every_byte():
    out, counts = _through(Impairment())
    assert out == _PIECES
    assert counts == {"in": 2000, "out": 2000}


@pytest.mark.parametrize(
    "impairment",
    [
        Impairment(loss=0.3),
        Impairment(burst_loss=0.01, burst_pieces=20),
        Impairment(duplicate=0.5, reorder_window=32),
        Impairment(bit_error_rate=1e-3, noise=0.1, drop_run=0.1),
        Impairment(outage_every_s=3.0),
    ],
)
def test_the_same_seed_does_the_same_and_another_one_does_not(impairment):
    assert _through(impairment, 5) == _through(impairment, 5)
    assert _through(impairment, 5)[0] != _through(impairment, 6)[0]


def test_shares_are_those_that_were_asked_for():
    _, lost = _through(Impairment(loss=0.3))
    assert 520 < lost["lost"] < 680
    _, doubled = _through(Impairment(duplicate=0.5))
    assert 900 < doubled["doubled"] < 1100 and doubled["out"] == 2000 + doubled["doubled"]
    _, burst = _through(Impairment(burst_loss=0.01, burst_pieces=20))
    assert burst["lost"] % 20 == 0 and 100 <= burst["lost"] <= 700


def test_reordering_keeps_every_piece_and_changes_their_order():
    out, _ = _through(Impairment(reorder_window=32))
    assert sorted(out) == sorted(_PIECES) and out != _PIECES


def test_flipped_bits_are_as_many_as_the_rate_says():
    out, _ = _through(Impairment(bit_error_rate=1e-3))
    flips = sum(
        (a ^ b).bit_count() for before, after in zip(_PIECES, out, strict=True) for a, b in zip(before, after, strict=True)
    )
    expected = 1e-3 * 8 * sum(map(len, _PIECES))
    assert 0.85 * expected < flips < 1.15 * expected


def test_after_noise_and_lost_runs_every_frame_that_comes_out_is_one_that_went_in():
    out, counts = _through(Impairment(noise=0.2, drop_run=0.2))
    decoder = FrameDecoder()
    bodies = [frame.body for frame in decoder.feed(b"".join(out))]
    assert set(bodies) <= set(_BODIES)
    # Noise ends with a delimiter, so it costs no frame; a lost run costs one, or two where it took a delimiter along.
    assert len(bodies) >= 2000 - 2 * counts["run-dropped"]


def test_what_comes_in_an_outage_is_lost_and_nothing_else():
    out, counts = _through(Impairment(outages=((2.0, 3.0), (5.0, 5.5))))
    assert out == [piece for number, piece in enumerate(_PIECES) if not 200 <= number < 300 and not 500 <= number < 550]
    assert counts["in-outage"] == 150


def test_a_share_above_one_is_refused():
    with pytest.raises(ConfigError, match="loss = 3"):
        Impairment(loss=3)


async def _echo(reader, writer):
    while data := await reader.read(4096):
        writer.write(data)
    writer.close()


async def _with_shim(work, **options):
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Shim(f"tcp://127.0.0.1:{port}", **options) as shim:
        host, number = shim.url.removeprefix("tcp://").split(":")
        try:
            return await work(shim, *await asyncio.open_connection(host, int(number)))
        finally:
            server.close()


def test_bytes_come_out_at_the_pace_of_the_line():
    async def work(shim, reader, writer):
        content = b"".join(_PIECES)[:6000].rpartition(b"\0")[0] + b"\0"
        began = time.monotonic()
        writer.write(content)
        assert await reader.readexactly(len(content)) == content
        return len(content) / (time.monotonic() - began)

    rate = asyncio.run(_with_shim(work, rate_bytes_s=11_520))
    # Two lines one after the other, of which the second begins with the first piece: the rate of one. A busy machine is
    # slower; none is faster, but for the piece that each of the two may be ahead.
    assert rate < 11_520 * (1 + 2 * max(map(len, _PIECES)) / 6000)


def test_a_cut_ends_the_stream_and_blocks_new_ones_for_its_time():
    async def work(shim, reader, writer):
        writer.write(_PIECES[0])
        assert await reader.readexactly(len(_PIECES[0])) == _PIECES[0]
        await shim.cut(block_s=0.2)
        assert await reader.read() == b""
        host, number = shim.url.removeprefix("tcp://").split(":")
        blocked, _ = await asyncio.open_connection(host, int(number))
        assert await blocked.read() == b""
        await asyncio.sleep(0.25)
        again, other = await asyncio.open_connection(host, int(number))
        other.write(_PIECES[1])
        assert await again.readexactly(len(_PIECES[1])) == _PIECES[1]
        other.close()

    asyncio.run(_with_shim(work))


def test_a_stalled_line_loses_what_is_sent_and_stays():
    async def work(shim, reader, writer):
        shim.stall(0.15)
        writer.write(_PIECES[0])
        await asyncio.sleep(0.2)
        writer.write(_PIECES[1])
        assert await reader.readexactly(len(_PIECES[1])) == _PIECES[1]

    asyncio.run(_with_shim(work))


def test_held_pieces_go_on_when_no_other_comes():
    async def work(shim, reader, writer):
        writer.write(b"".join(_PIECES[:5]))
        return await asyncio.wait_for(reader.readexactly(sum(map(len, _PIECES[:5]))), 2)

    out = asyncio.run(_with_shim(work, up=Impairment(reorder_window=32)))
    assert sorted(out.split(b"\0")) == sorted(b"".join(_PIECES[:5]).split(b"\0"))
