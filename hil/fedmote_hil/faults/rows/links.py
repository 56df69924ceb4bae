# SPDX-License-Identifier: Apache-2.0
"""Bad lines between native devices and a coordinator that listens: serial frames that are lost, doubled, swapped and spoiled."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from fedmote.errors import DeviceError
from fedmote.package.boards import Board
from fedmote.wire.frame import Frame, FrameDecoder, encode_frame
from fedmote.wire.schema import Channel
from fedmote_hil.faults.crowd import Background
from fedmote_hil.faults.matrix import Bench, row
from fedmote_hil.faults.rows.broker import must_be_exact
from fedmote_hil.faults.site import Site
from fedmote_hil.goodput import REQUIRED, measure
from fedmote_hil.shim import Impairer, Impairment, Shim

# Where most hellos are lost, the pause between two of them grows to a minute: the last of a hundred devices takes minutes.
_PATIENCE_S = 600.0
_WINDOW_CHUNKS, _CHUNK_BYTES = 32, 1024
# Units of the hidden layer that make packages of about 64 KiB and 120 KiB.
_PADDING_64_KIB, _PADDING_120_KIB = 1220, 2290
_LINE_BYTES_S = 11_520


class _Line:
    """A site whose coordinator listens, and a bad line in front of it."""

    def __init__(self, bench: Bench, count: int, padding: int = 0) -> None:
        self.site = bench.hold(Site(bench.directory, count, has_broker=False, padding=padding))
        self._background = bench.hold(Background())
        self._bench = bench

    def run(self, name: str, bad: Impairment, rounds: int = 1, rate_bytes_s: float | None = None, seed: int = 1) -> Counter[str]:
        """Serve a run over the line in both directions; what happened to its pieces.

        Raises:
            VainError: it did not come to its end.
        """
        site = self.site
        # Two lines in a row: what is lost is lost where the bytes come out of the paced one.
        pace = Shim(f"tcp://127.0.0.1:{site.tcp_port}", rate_bytes_s=rate_bytes_s)
        self._background.run(pace.start())
        shim = Shim(pace.url, bad, bad, seed=seed)
        self._background.run(shim.start())
        fleet = site.fleet(link=["--connect", shim.url.removeprefix("tcp://")])
        for device in fleet:
            device.forget()
        serving = site.serve(site.configure(name, rounds, windows={"report_s": _PATIENCE_S, "selection_s": _PATIENCE_S}))
        try:
            serving.wait_for_words("listening at", 30.0)
            fleet.start()
            serving.finish(_PATIENCE_S)
        finally:
            for device in fleet:
                device.cut_power()
            self._background.run(shim.close())
            self._background.run(pace.close())
        return shim.up + shim.down

    def served_bytes(self, name: str) -> list[int]:
        """Bytes of package chunks that each device was sent in the first round, what was asked for twice counted twice."""
        rows = self.site.ledger(name, "SELECT json_extract(numbers, '$.package_bytes') FROM \"update\" WHERE round = 1")
        return [int(row[0]) for row in rows]

    def compare(self, bad: Impairment, words: str, rounds: int = 2) -> Counter[str]:
        """State whether a run over a bad line ends with the bytes of one over a clean line."""
        self.run("clean", Impairment(), rounds)
        counts = self.run("bad", bad, rounds)
        self._bench.facts.note(words.format(**{key.replace("-", "_"): value for key, value in counts.items()}))
        must_be_exact(self._bench, self.site.checkpoint("bad", rounds), self.site.checkpoint("clean", rounds))
        return counts


@row(
    1,
    fault="frame loss, both directions",
    injected="30 % of all frames lost in each direction, 100 native devices, each with a line of its own seed, a package of 64 "
    "KiB; goodput of a line of 11,520 B/s with 1 % and 10 % lost",
    required="transfer completes, no operator",
    target="100 of 100 at 30 %; goodput 60 % of the line at 1 %, 35 % at 10 %",
)
def frame_loss(bench: Bench) -> None:
    """Row 1."""
    count, facts = bench.sized(100, 5), bench.facts
    line = _Line(bench, count, _PADDING_64_KIB)
    counts = line.run("loss", Impairment(loss=0.3))
    counted = line.site.num_counted("loss", 1)
    size = len(line.site.model.package)
    facts.must(counted == count, f"{counted} of {count} at {counts['lost'] / counts['in']:.1%} lost, package of {size} bytes")
    asyncio.run(_measure_goodput(bench))


async def _measure_goodput(bench: Bench) -> None:
    """The slowest of some seeds, both directions, all lines at once: each is a process and mostly waits."""
    board = Board.load("posix")
    for loss in (0.01, 0.10):
        try:
            runs = await asyncio.gather(*(measure(board, Impairment(loss=loss), seed) for seed in range(bench.sized(5, 1))))
        except DeviceError as error:
            bench.facts.must(False, f"goodput at {loss:.0%}: {error}")
            continue
        share = min(transfer.share for transfers in runs for transfer in transfers)
        bench.facts.must(share >= REQUIRED[loss], f"goodput at {loss:.0%} lost: {share:.1%} at least")


@row(
    2,
    fault="burst loss",
    injected="outages of 0.2, 2 and 5 s in each direction while 5 native devices pull a package of 120 KiB over lines of "
    "11,520 B/s",
    required="resumes from last acked chunk",
    target="1 window (32 KiB) resent at most for each outage",
)
def burst_loss(bench: Bench) -> None:
    """Row 2."""
    outages = ((2.0, 2.2), (5.0, 7.0), (9.5, 14.5))
    line = _Line(bench, 5, _PADDING_120_KIB)
    line.run("bursts", Impairment(outages=outages), rate_bytes_s=_LINE_BYTES_S)
    size = len(line.site.model.package)
    resent = [served - size for served in line.served_bytes("bursts")]
    window = _WINDOW_CHUNKS * _CHUNK_BYTES
    bench.facts.must(len(resent) == 5, f"{len(resent)} of 5 counted, package of {size} bytes")
    worst = max(resent, default=0) / len(outages)
    bench.facts.must(worst <= window, f"at most {worst / 1024:.1f} KiB resent for each of {len(outages)} outages")


@row(
    3,
    fault="duplicates",
    injected="50 % of all frames doubled, both directions, 10 native devices",
    required="counted once",
    target="exact",
)
def duplicates(bench: Bench) -> None:
    """Row 3."""
    line = _Line(bench, 10)
    line.compare(Impairment(duplicate=0.5), "{doubled} of {in} frames doubled")
    doubled = line.site.ledger("bad", 'SELECT count(*) FROM "update" GROUP BY round, participant HAVING count(*) > 1')
    bench.facts.must(not doubled, "each update counted once")


@row(
    4,
    fault="reordering",
    injected="frames handed on in random order within a window of 32, both directions, 10 native devices, a package of 64 KiB",
    required="chunks and messages are put in their place",
    target="exact",
)
def reordering(bench: Bench) -> None:
    """Row 4."""
    _Line(bench, 10, _PADDING_64_KIB).compare(Impairment(reorder_window=32), "{in} frames through a window of 32")


@row(
    5,
    fault="bit errors",
    injected="bits flipped at rates of 1e-5 and 1e-4 in runs of 10 native devices; at 1e-5, 1e-4 and 1e-3 in 10^6 frames "
    "through the decoder (for 10^7)",
    required="frame dropped, asked again",
    target="exact; 0 corrupt frames accepted",
)
def bit_errors(bench: Bench) -> None:
    """Row 5."""
    line = _Line(bench, 10)
    line.run("clean", Impairment(), 2)
    for number, rate in enumerate((1e-5, 1e-4)):
        counts = line.run(f"flipped-{number}", Impairment(bit_error_rate=rate), 2)
        bench.facts.note(f"rate {rate:g}: {counts['flipped']} of {counts['in']} frames hit")
        must_be_exact(bench, line.site.checkpoint(f"flipped-{number}", 2), line.site.checkpoint("clean", 2))
    total = accepted = corrupt = 0
    for rate in (1e-5, 1e-4, 1e-3):
        for found in (_decode_spoiled(Impairment(bit_error_rate=rate), bench.sized(333_334, 5_000)),):
            total, accepted, corrupt = total + found[0], accepted + found[1], corrupt + found[2]
    bench.facts.must(corrupt == 0 and accepted > 0, f"{corrupt} corrupt of {accepted} frames accepted, {total} sent")


def _decode_spoiled(bad: Impairment, count: int) -> tuple[int, int, int]:
    """Frames through a bad line into the decoder: how many were sent, were accepted, and were none of those that were sent."""
    draw = random.Random(5)
    bodies = [draw.randbytes(draw.randint(1, 120)) for _ in range(500)]
    known = set(bodies)
    impairer, decoder = Impairer(bad, 7), FrameDecoder()
    accepted = corrupt = 0
    for number in range(count):
        piece = encode_frame(Frame(Channel.COORDINATOR, 5, number, bodies[number % len(bodies)]))
        for part in impairer.feed(piece):
            for frame in decoder.feed(part):
                accepted += 1
                corrupt += frame.body not in known or frame.kind != 5
    return count, accepted, corrupt


@row(
    6,
    fault="truncated frames, line noise, ROM boot text",
    injected="random bytes in front of half of all frames, both directions, 10 native devices; 50,000 bursts of noise or boot "
    "text, and 20,000 truncated frames, each followed by one delimiter and a frame",
    required="resync",
    target="exact; next valid frame accepted after 1 delimiter, 100 %",
)
def noise(bench: Bench) -> None:
    """Row 6."""
    _Line(bench, 10).compare(Impairment(noise=0.5), "noise in front of {noise} of {in} frames")
    draw = random.Random(6)
    boot = b"ets Jun  8 2016 00:22:57\r\nrst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n"
    decoder = FrameDecoder()
    accepted, count = 0, bench.sized(70_000, 2_000)
    for number in range(count):
        frame = Frame(Channel.COORDINATOR, 1, number, draw.randbytes(40))
        whole = encode_frame(frame)
        truncated = encode_frame(Frame(Channel.COORDINATOR, 1, number, draw.randbytes(60)))[: draw.randint(1, 60)]
        rubbish = (draw.randbytes(draw.randint(1, 80)), boot[: draw.randint(1, len(boot))], truncated)[number % 7 % 3]
        frames = decoder.feed(rubbish + b"\0" + whole)
        accepted += bool(frames) and frames[-1].body == frame.body
    bench.facts.must(accepted == count, f"{accepted} of {count} frames behind rubbish accepted after one delimiter")


@row(
    7,
    fault="UART overrun",
    injected="a run of up to 16 bytes dropped from 10 % of all frames, both directions, 10 native devices",
    required="as 5",
    target="exact",
)
def overrun(bench: Bench) -> None:
    """Row 7."""
    _Line(bench, 10).compare(Impairment(drop_run=0.1), "{run_dropped} of {in} frames hit")
