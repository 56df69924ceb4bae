# SPDX-License-Identifier: Apache-2.0
"""Updates that are well formed and meant to harm; sums that must hide single updates and survive losses."""

from __future__ import annotations

import importlib.util
import itertools
import math
import signal
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmote.coordinator.crash import VARIABLE
from fedmote.errors import RoundError
from fedmote.package.boards import Board
from fedmote.package.head import head_tensors
from fedmote.privacy import masks
from fedmote.privacy.fixed_point import FixedPoint
from fedmote.privacy.secure_sum import Collector, Member, run, salt_of
from fedmote.store import Checkpoint, Ledger
from fedmote.wire import masking
from fedmote.wire.blobs import decode_head_update, encode_head_update
from fedmote.wire.codec import Message
from fedmote.wire.masking import Membership, Ring
from fedmote_hil.faults import member as member_module
from fedmote_hil.faults.crowd import Background, member
from fedmote_hil.faults.matrix import Bench, NotRunError, VainError, row
from fedmote_hil.faults.member import Conduct
from fedmote_hil.faults.model import HEAD
from fedmote_hil.faults.site import STREET, Site

_PATIENCE_S = 120.0
_MOST_POINTS = 2.0


@row(
    25,
    fault="x1000 update, sign flip, label flip",
    injected="a fleet of 50 devices on the bundled digits, 40 rounds, 10 seeds: 10 % sign flips of five times the norm under "
    "the default rule, 20 % under MultiKrum, 10 % x1000, 20 % flipped labels; one x1000 update among 9 native devices "
    "at a coordinator process",
    required="clipped or filtered",
    target="2 points of accuracy at most with 10 % sign flips (default) and 20 % (MultiKrum)",
)
def attackers(bench: Bench) -> None:
    """Row 25."""
    _one_liar(bench)
    if importlib.util.find_spec("sklearn") is None:
        raise NotRunError("scikit-learn is not installed: its digits are what the fleet learns")
    from fedmote.lab.attacks.experiment import run_attack  # needs scikit-learn

    seeds = range(bench.sized(10, 2))
    for rule, attack, share in (
        ("clipped_mean", "sign-flip", 0.1),
        ("multi_krum", "sign-flip", 0.2),
        ("clipped_mean", "x1000", 0.1),
        ("clipped_mean", "label-flip", 0.2),
    ):
        lost = [run_attack(rule, share, attack, seed) for seed in seeds]
        words = f"{share:.0%} {attack} under {rule}: {statistics.mean(lost):+.2f} points lost"
        bench.facts.must(statistics.mean(lost) <= _MOST_POINTS, words) if attack == "sign-flip" else bench.facts.note(words)


def _one_liar(bench: Bench) -> None:
    """A participant whose update is a thousand times too large must not move the model further than the others do."""
    site = bench.hold(Site(bench.directory, 10))
    background = bench.hold(Background())
    liar = member(site, 0)
    liar.conduct = Conduct(blob=lambda plan: _thousandfold(liar, plan))
    background.begin(liar.run())
    site.fleet(range(1, 10)).start()
    site.serve(site.configure("liar", 1, windows={"report_s": 20.0, "min_fraction": 0.5})).finish(_PATIENCE_S)
    before, after = (Checkpoint.from_bytes(site.checkpoint("liar", version)).tensors for version in (0, 1))
    moved = float(np.sqrt(sum(((after[name] - before[name]) ** 2).sum() for name in ("head.weight", "head.bias"))))
    norms = []
    with Ledger.open(site.state("liar") / "ledger.sqlite", is_read_only=True) as ledger:
        for entry in ledger.updates(1):
            blob = (site.state("liar") / "blobs" / entry.content).read_bytes()
            norms.append((float(np.linalg.norm(decode_head_update(blob))), entry.participant))
    honest = [norm for norm, who in norms if who != liar.id]
    largest = max((norm for norm, who in norms if who == liar.id), default=0.0)
    median = statistics.median(honest)
    words = f"an update of norm {largest:.1f} among {len(honest)} of {median:.2f}: the model moved by {moved:.2f}"
    bench.facts.must(moved <= 1.05 * median, words)


def _thousandfold(liar: member_module.Member, plan: Message) -> bytes:
    delta = decode_head_update(liar.learn(plan))
    return encode_head_update(np.asarray(1000 * 10 * delta, np.float32))


@row(
    40,
    fault="masked group dropouts",
    injected="groups of 4 to 8 members whose updates are masked: every subset of members lost, at each of the 3 steps; 9 native "
    "devices at a coordinator process that is killed at each step, while up to 5 of them lose their power for good",
    required="exact sum or abandon",
    target="the masked sum equals the plain one for every set up to the threshold, exhaustively for 8 members; nothing beyond it",
)
def masked_dropouts(bench: Bench) -> None:
    """Row 40."""
    _on_paper(bench)
    if not Board.load("posix").is_masking:
        bench.facts.note("no devices: their image takes part in no masked sums")
        return
    _among_devices(bench)


def _on_paper(bench: Bench) -> None:
    exact = abandoned = wrong = 0
    for count in range(4, bench.sized(8, 5) + 1):
        near = count - 1
        ring = Ring(count, near, near // 2 + 1, least_members=1)
        members = range(1, count + 1)
        for step in (1, 2, 3):
            for size in range(count + 1):
                for lost in itertools.combinations(members, size):
                    outcome = _sum(ring, dict.fromkeys(lost, step))
                    exact, abandoned, wrong = exact + (outcome == 1), abandoned + (outcome == 0), wrong + (outcome == -1)
                    # Where every member that is left has enough neighbours that are left, there must be a sum.
                    wrong += outcome != 1 and count - size - 1 >= ring.threshold
    bench.facts.must(
        wrong == 0 and exact > 0, f"{exact + abandoned} sets of losses: {exact} exact, {abandoned} abandoned, {wrong} wrong"
    )


def _sum(ring: Ring, lost: dict[int, int]) -> int:
    """1 where the masked sum is the plain one of those that it says it sums, 0 where it is refused, -1 where it is another."""
    generator = np.random.default_rng(40)
    secrets = {who: generator.bytes(masking.KEY_BYTES) for who in range(1, ring.num_members + 1)}
    publics = {who: masks.public_key(secret) for who, secret in secrets.items()}
    words = {who: generator.integers(0, 2**32, 16, dtype=np.uint32) for who in secrets}
    members = {
        who: Member(
            Membership(b"group-40", who, ring, secret, {other: publics[other] for other in ring.neighbours(who)}),
            b"run-0040",
            1,
            salt_of(1, 0),
        )
        for who, secret in secrets.items()
    }
    try:
        total, summed = run(Collector(ring, b"run-0040", 1), members, words, lost)
    except RoundError:
        return 0
    plain = sum((words[who].astype(np.uint64) for who in summed), np.zeros(16, np.uint64)) % 2**32
    return 1 if bool((total == plain.astype(np.uint32)).all()) and summed else -1


@dataclass(frozen=True)
class _Loss:
    """Devices that are lost for good at a step of a masked round.

    Attributes:
        words: what is lost.
        place: where the coordinator is killed meanwhile; it goes on afterwards.
        count: devices that are lost.
        summed: devices that are in the sum; 0: there is none.
    """

    words: str
    place: str
    count: int
    summed: int


_NUM_MASKED, _CLIP_NORM = 9, 0.5
# Each member has eight neighbours, of whom five must answer.
_LOSSES = (
    _Loss("nobody", "after JournalMaskBlob#1", 0, 9),
    _Loss("1 before its keys", "before JournalMaskBlob#1", 1, 8),
    _Loss("1 before its update", "after EndMaskStep#1", 1, 8),
    _Loss("3 before their shares", "after EndMaskStep#2", 3, 9),
    _Loss("2 before their updates", "after EndMaskStep#1", 2, 0),
    _Loss("5 before their shares", "after EndMaskStep#2", 5, 0),
)


def _among_devices(bench: Bench) -> None:
    """Native devices of a group against the same devices without one, whose updates can be read one by one."""
    plain = _plain_updates(bench)
    exact = 0
    losses = _LOSSES[:4:3] if bench.is_quick else _LOSSES
    for number, loss in enumerate(losses):
        with Site(bench.directory / f"masked-{number}", _NUM_MASKED, num_masked=_NUM_MASKED) as site:
            found, allowed = _lose(site, loss, plain)
            exact += found <= allowed
            bench.say(f"{loss.words}: off by {found:.2g}, at most {allowed:.2g}")
    bench.facts.must(exact == len(losses), f"{exact} of {len(losses)} losses among {_NUM_MASKED} native devices as the ring says")


def _plain_updates(bench: Bench) -> dict[str, NDArray[np.float64]]:
    """What each device learns in the first round, cut to the clip norm."""
    with Site(bench.directory / "plain", _NUM_MASKED) as site:
        site.fleet().start()
        site.serve(site.configure("plain", 1, strategy={"aggregation": "mean"})).finish(_PATIENCE_S)
        updates, norms = {}, []
        with Ledger.open(site.state("plain") / "ledger.sqlite", is_read_only=True) as ledger:
            for entry in ledger.updates(1):
                blob = (site.state("plain") / "blobs" / entry.content).read_bytes()
                delta = decode_head_update(blob).astype(np.float64)
                norms.append(float(np.linalg.norm(delta)))
                updates[entry.participant] = delta * min(1.0, _CLIP_NORM / norms[-1])
    bench.facts.note(f"updates of norm {min(norms):.2f} to {max(norms):.2f}, cut to {_CLIP_NORM:g}")
    return updates


def _lose(site: Site, loss: _Loss, plain: Mapping[str, NDArray[np.float64]]) -> tuple[float, float]:
    """How far the merged head is from the mean of the survivors' plain updates, and how far rounding alone may bring it.

    Where there must be no sum, whether there was one: 0 or 1, of 0.
    """
    fleet = site.fleet()
    fleet.start()
    windows = {"report_s": 20.0, "min_fraction": 0.5, "max_failed_rounds": 1, "after_failures": "end"}
    config = site.configure("masked", 1, windows=windows, strategy={"aggregation": "mean"})
    group = {"group": STREET, "clip_norm": _CLIP_NORM, "keys_fraction": 0.5, "shares_fraction": 1.0}
    options = [word for key, value in group.items() for word in ("--set", f"strategy.secure_sum.{key}={value}")]
    code = site.serve(config, variables={VARIABLE: loss.place}, options=options).wait(_PATIENCE_S)
    if code != -signal.SIGKILL:
        raise VainError(f"the coordinator ended with exit code {code} before {loss.place}")
    for device in fleet.devices[: loss.count]:
        device.cut_power()
    code = site.serve(config, options=options).wait(_PATIENCE_S)
    if loss.summed == 0:
        return float((code, site.round_states("masked")) != (1, ["abandoned"])), 0.0
    left = [name for name in site.names if loss.summed == _NUM_MASKED or name not in site.names[: loss.count]]
    if code != 0 or site.round_states("masked") != ["committed"] or site.num_counted("masked", 1) != loss.summed:
        return math.inf, 0.0
    before, after = (Checkpoint.from_bytes(site.checkpoint("masked", version)).tensors for version in (0, 1))
    mean = head_tensors(HEAD, np.mean([plain[name] for name in left], axis=0).astype(np.float32))
    off = max(float(np.abs(after[name].astype(np.float64) - before[name] - mean[name]).max()) for name in mean)
    # A step of the grid; roundings of float32 on the device, at most four, and one each in the mean and in the model.
    largest = max(float(np.abs(delta).max()) for delta in plain.values())
    largest = max(largest, *(float(np.abs(after[name]).max()) for name in mean))
    return off, FixedPoint(_CLIP_NORM, _NUM_MASKED).step + 6 * largest * 2.0**-24
