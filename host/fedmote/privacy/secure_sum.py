# SPDX-License-Identifier: Apache-2.0
"""Secure aggregation: the coordinator learns the sum of a group's updates and no single one.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017); neighbours instead of
everybody with everybody from Bell et al. (CCS 2020). Each step is a message of every member that still lives:

    adverts    two public keys, hash of the own seed       -> everybody's are sent to everybody
    shares     to each neighbour, sealed: a share of the   -> passed on
               mask key and one of the own seed
    masked     update + own mask + sum of pairwise masks   -> summed
    answers    of each neighbour: the share of its own seed where its masked update came, of its mask key where not

Pairwise masks cancel between two members whose updates came. Of a member that was lost after `shares` the mask key is put
together from its neighbours' shares, and its masks are taken off the others.

Why two masks. With pairwise masks alone a coordinator could call a slow member lost, put its mask key together, and open its
update when it comes after all. Under the own mask it stays closed: a neighbour gives a share of the seed or of the mask key and
never both, and both kinds together would take 2 t shares of k neighbours, which 2 t > k forbids. A second message of the
survivors (their pairwise masks with the lost) would need no shares, but the loss of one more member in that step would lose the
round.

What it does not do. A coordinator and 2 t - k neighbours of a member that work together can open its update; so can a coordinator
that invents members, unless their keys are proved. Nobody can look at a single update, so rules that judge single updates cannot
be used, and a member that does not cut its own is found by the norm of the sum at best.

No I/O and no randomness of its own: whoever calls passes both in.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmote.errors import ConfigError, RoundError
from fedmote.privacy import masks, shamir

# Fewer members would hide a single one among too few.
LEAST_MEMBERS = 8

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class Group:
    """What every member of a group knows before the first message.

    Attributes:
        label: of run, round and group: no two groups share one.
        members: ids, ascending.
        num_neighbours: k; even, or everybody else.
        threshold: t: so many of a member's neighbours must answer.
        size: words of an update.
        least_members: fewer than so many updates are not summed.

    Raises:
        ConfigError: numbers that protect nothing or cannot work; the message says why.
    """

    label: bytes
    members: tuple[str, ...]
    num_neighbours: int
    threshold: int
    size: int
    least_members: int = LEAST_MEMBERS

    def __post_init__(self) -> None:
        count, near, needed = len(self.members), self.num_neighbours, self.threshold
        if list(self.members) != sorted(set(self.members)):
            raise ConfigError("members of a group: ids in ascending order, each once, are expected")
        if count < self.least_members:
            raise ConfigError(f"a group of {count} members: at least {self.least_members} are needed to hide one among them")
        if not 1 <= near < count or (near % 2 and near != count - 1) or near > shamir.MAX_SHARES:
            raise ConfigError(f"{near} neighbours in a group of {count}: an even number, or all {count - 1}, are expected")
        if not near < 2 * needed <= 2 * near:
            raise ConfigError(
                f"threshold {needed} of {near} neighbours: more than half are needed, or their shares could open an update that "
                "was called lost"
            )

    def neighbours(self, who: str) -> tuple[str, ...]:
        """Neighbours of a member, ascending; whoever is one's neighbour has one for a neighbour.

        A ring in an order that the label decides, each one with the k/2 before and behind it.
        """
        if self.num_neighbours == len(self.members) - 1:
            return tuple(one for one in self.members if one != who)
        ring = sorted(self.members, key=self._place)
        at, half = ring.index(who), self.num_neighbours // 2
        return tuple(sorted(ring[(at + offset) % len(ring)] for offset in range(-half, half + 1) if offset))

    def _place(self, who: str) -> bytes:
        return hashlib.blake2b(who.encode(), key=hashlib.blake2b(self.label, digest_size=32).digest(), digest_size=16).digest()

    def pair_mask(self, secret: bytes, public: bytes, own: str, other: str) -> Words:
        """What `own` adds for its neighbour `other`; what the other adds is its negative."""
        names = (min(own, other), max(own, other))
        mask = masks.keystream(masks.agreed_key(secret, public, self.label, "mask", names), self.size)
        return mask if own < other else np.negative(mask)

    def own_mask(self, seed: bytes, who: str) -> Words:
        """What a member adds for itself."""
        return masks.keystream(masks.own_key(seed, self.label, who), self.size)


@dataclass(frozen=True)
class Advert:
    """What everybody may know of a member.

    Attributes:
        mask_key, share_key: X25519 public keys, for pairwise masks and for sealing shares.
        seed_hash: BLAKE2b-256 of its own seed, so that a seed that was put together from changed shares is found out.
    """

    mask_key: bytes
    share_key: bytes
    seed_hash: bytes


@dataclass(frozen=True)
class Answer:
    """Shares that a member gives back: of seeds of members whose updates came, of mask keys of those that were lost."""

    seeds: Mapping[str, bytes]
    mask_keys: Mapping[str, bytes]


class Member:
    """One member's side of one round.

    Args:
        group: of the round.
        id: of the member.
        entropy: gives so many fresh random bytes.
    """

    def __init__(self, group: Group, id: str, entropy: Callable[[int], bytes]) -> None:
        self._group = group
        self._id = id
        self._neighbours = group.neighbours(id)
        self._mask_secret, self._share_secret, self._seed = (entropy(masks.KEY_BYTES) for _ in range(3))
        self._entropy = entropy
        self._adverts: dict[str, Advert] = {}
        self._held: dict[str, tuple[bytes, bytes]] = {}
        self._is_done = False

    def advert(self) -> Advert:
        """First message."""
        return Advert(masks.public_key(self._mask_secret), masks.public_key(self._share_secret), _hash(self._seed))

    def shares(self, adverts: Mapping[str, Advert]) -> dict[str, bytes]:
        """Second message, by receiver.

        Raises:
            RoundError: too few neighbours are there.
        """
        self._adverts = {who: adverts[who] for who in self._neighbours if who in adverts}
        self._refuse_few(self._adverts)
        threshold, near = self._group.threshold, len(self._neighbours)
        parts = [
            shamir.split(secret, threshold, near, self._entropy((threshold - 1) * masks.KEY_BYTES))
            for secret in (self._mask_secret, self._seed)
        ]
        return {
            who: masks.seal(self._share_key(who, (self._id, who)), parts[0][number] + parts[1][number])
            for number, who in enumerate(self._neighbours, start=1)
            if who in self._adverts
        }

    def masked(self, words: Words, shares: Mapping[str, bytes]) -> Words:
        """Third message: the update under masks.

        Args:
            words: the update in fixed point, uint32 (size,).
            shares: that neighbours sealed for this member, by sender.

        Raises:
            RoundError: too few neighbours sent shares, or some were changed on their way.
        """
        for who in self._neighbours:
            if who in shares and who in self._adverts:
                self._held[who] = self._opened(who, shares[who])
        self._refuse_few(self._held)
        if words.shape != (self._group.size,) or words.dtype != np.uint32:
            raise ValueError(f"words {words.dtype} {words.shape}, uint32 {(self._group.size,)} expected")
        total = words + self._group.own_mask(self._seed, self._id)
        for who in self._held:
            total = total + self._group.pair_mask(self._mask_secret, self._adverts[who].mask_key, self._id, who)
        return total

    def answer(self, survivors: Collection[str]) -> Answer:
        """Fourth message, given once: of each neighbour one share, never both.

        Args:
            survivors: whose masked updates came.

        Raises:
            RoundError: asked a second time, or the survivors are too few, or not this group's.
        """
        if self._is_done:
            raise RoundError("shares of a round are given back once: a second answer could open an update")
        if self._id not in survivors or not set(survivors) <= set(self._group.members):
            raise RoundError("the survivors that were named are not of this group")
        if len(set(survivors)) < self._group.least_members:
            raise RoundError(f"{len(set(survivors))} survivors, {self._group.least_members} are needed")
        self._is_done = True
        return Answer(
            {who: seed for who, (_, seed) in self._held.items() if who in survivors},
            {who: mask_key for who, (mask_key, _) in self._held.items() if who not in survivors},
        )

    def _share_key(self, other: str, names: tuple[str, str]) -> bytes:
        return self._agreed(other, self._adverts[other].share_key, names)

    def _agreed(self, other: str, public: bytes, names: tuple[str, str]) -> bytes:
        try:
            return masks.agreed_key(self._share_secret, public, self._group.label, "share", names)
        except ValueError as error:
            raise RoundError(f"keys of {other}: {error}") from error

    def _opened(self, who: str, sealed: bytes) -> tuple[bytes, bytes]:
        try:
            content = masks.unseal(self._share_key(who, (who, self._id)), sealed)
        except ValueError as error:
            raise RoundError(f"shares of {who}: {error}") from error
        return content[: masks.KEY_BYTES], content[masks.KEY_BYTES :]

    def _refuse_few(self, found: Collection[str]) -> None:
        if len(found) < self._group.threshold:
            raise RoundError(f"{len(found)} neighbours of {self._id} are there, {self._group.threshold} are needed")


@dataclass
class Collector:
    """The coordinator's side of one round.

    Attributes:
        group: of the round.
        adverts: that came, by member.
        sharers: members whose shares were passed on.
        masked: sums of what came, and whose.
    """

    group: Group
    adverts: dict[str, Advert] = field(default_factory=dict)
    sharers: set[str] = field(default_factory=set)
    survivors: set[str] = field(default_factory=set)
    _total: Words | None = None

    def add_masked(self, who: str, words: Words) -> None:
        """A masked update came. Only the sum is kept."""
        if who not in self.sharers or who in self.survivors or words.shape != (self.group.size,):
            raise RoundError(f"no masked update of {who} is expected, or not this one")
        self.survivors.add(who)
        self._total = words.copy() if self._total is None else self._total + words

    def result(self, answers: Mapping[str, Answer]) -> Words:
        """The sum of the survivors' words modulo 2^32.

        Args:
            answers: by member.

        Raises:
            RoundError: too few survivors or answers: the round is abandoned, and nobody's update is known.
        """
        if self._total is None or len(self.survivors) < self.group.least_members:
            raise RoundError(f"{len(self.survivors)} masked updates, {self.group.least_members} are needed")
        total = self._total
        for who in sorted(self.survivors):
            shares = {other: answer.seeds[who] for other, answer in answers.items() if who in answer.seeds}
            seed = self._joined(who, "seed", shares)
            if _hash(seed) != self.adverts[who].seed_hash:
                raise RoundError(f"shares of the seed of {who} do not give it: somebody changed one")
            total = total - self.group.own_mask(seed, who)
        for who in sorted(self.sharers - self.survivors):
            near = [other for other in self.group.neighbours(who) if other in self.survivors]
            if not near:
                continue
            shares = {other: answer.mask_keys[who] for other, answer in answers.items() if who in answer.mask_keys}
            secret = self._joined(who, "mask key", shares)
            if masks.public_key(secret) != self.adverts[who].mask_key:
                raise RoundError(f"shares of the mask key of {who} do not give its key: somebody changed one")
            # Each survivor added the negative of what the lost one would have added for it.
            total = total + _sum(
                (self.group.pair_mask(secret, self.adverts[other].mask_key, who, other) for other in near), self.group.size
            )
        return total

    def _joined(self, who: str, what: str, shares: Mapping[str, bytes]) -> bytes:
        numbers = {other: number for number, other in enumerate(self.group.neighbours(who), start=1)}
        try:
            return shamir.join(
                {numbers[other]: share for other, share in shares.items() if other in numbers}, self.group.threshold
            )
        except ValueError as error:
            raise RoundError(f"the {what} of {who} cannot be put together: {error}") from error


def _hash(seed: bytes) -> bytes:
    return hashlib.blake2b(seed, digest_size=32).digest()


def _sum(rows: Iterable[Words], size: int) -> Words:
    total = np.zeros(size, np.uint32)
    for row in rows:
        total = total + row
    return total


def run(
    group: Group, members: Mapping[str, Member], words: Mapping[str, Words], lost: Mapping[str, int]
) -> tuple[Words, set[str]]:
    """A whole round in one process.

    Args:
        group: of the round.
        members: of the group, by id.
        words: every member's update.
        lost: step (1 to 4) whose message a member does not send any more; whoever is not named sends all four. A member that
            refuses a step, because too few neighbours are left, is lost at that step.

    Returns:
        The sum, and whose updates are in it.

    Raises:
        RoundError: the round is abandoned.
    """

    def lives(who: str, step: int) -> bool:
        return lost.get(who, 5) > step

    collector = Collector(group, {who: member.advert() for who, member in members.items() if lives(who, 1)})
    sealed: dict[str, dict[str, bytes]] = {}
    for who in collector.adverts:
        if lives(who, 2):
            with contextlib.suppress(RoundError):
                shares = members[who].shares(collector.adverts)
                collector.sharers.add(who)
                for receiver, content in shares.items():
                    sealed.setdefault(receiver, {})[who] = content
    for who in sorted(collector.sharers):
        if lives(who, 3):
            with contextlib.suppress(RoundError):
                collector.add_masked(who, members[who].masked(words[who], sealed.get(who, {})))
    if len(collector.survivors) < group.least_members:
        raise RoundError(f"{len(collector.survivors)} masked updates, {group.least_members} are needed")
    answers = {who: members[who].answer(collector.survivors) for who in sorted(collector.survivors) if lives(who, 4)}
    return collector.result(answers), collector.survivors
