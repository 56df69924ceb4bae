# SPDX-License-Identifier: Apache-2.0
"""Masked sums: the coordinator learns the sum of a group's updates and no single one (device_sdk/protocol/SPEC.md, section 13).

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017); neighbours on a ring
instead of everybody with everybody from Bell et al. (CCS 2020). Lasting keys, made at enrolment, save the first of their four
messages, and a salt that never comes again the randomness of a round:

    keys       a public key, hash of the own seed, and to each neighbour,   -> passed on as peers
               in a box: a share of the mask secret and one of the seed
    masked     update + own mask + sum of pair masks                        -> summed
    shares     of each neighbour: of its seed where its masked update came, of its mask secret where its keys alone did

Pair masks cancel between two members whose updates came. Of a member that was lost after its keys the mask secret is put
together from its neighbours' shares, and its pair masks are taken off the others.

Why two masks. With pair masks alone a coordinator could call a slow member lost, put its mask secret together, and open its
update when it comes after all. Under the own mask it stays closed: a neighbour gives a share of the seed or of the mask secret
and never both, and both kinds together would take 2 t shares of k neighbours, which 2 t > k forbids. A second message of the
survivors (their pair masks with the lost) would need no shares, but the loss of one more member in that step would lose the
round.

What it does not do. A coordinator that lies and 2 t - k neighbours of a member that work together can open its update. Nobody
can look at a single update, so rules that judge single updates cannot be used, and a member that does not cut its own is found by
the norm of the sum at best.

`Member` is the device's side, as the firmware does it; `Collector` the coordinator's, whose result is a function of blobs that
are journaled. Neither does I/O or has randomness of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fedmote.errors import RemoteWireError, RoundError
from fedmote.privacy import masks, shamir
from fedmote.privacy.masks import Derivation, Purpose, Words
from fedmote.wire import masking
from fedmote.wire.masking import Keys, Membership, Peer, Ring
from fedmote.wire.schema import Status

Blob = TypeVar("Blob")

_MASK_SECRET, _SEED = 0, 1  # the b of coefficients, and the order of two shares in a box


def salt_of(boot: int, number: int) -> bytes:
    """Of the participation of a boot that began `number` masked rounds before: never the same twice for a member."""
    return boot.to_bytes(4, "little") + number.to_bytes(4, "little")


def pair_mask(derivation: Derivation, secret: bytes, public: bytes, own: int, other: int, size: int) -> Words:
    """What member `own` adds for its neighbour `other`, uint32 (size,); what the other adds is its negative.

    ValueError where the public key is none.
    """
    key = derivation.key(masks.agreed_key(secret, public), Purpose.PAIR_MASK, min(own, other), max(own, other))
    mask = masks.keystream(key, size)
    return mask if own < other else np.negative(mask)


def own_mask(derivation: Derivation, seed: bytes, number: int, size: int) -> Words:
    """What a member adds for itself, uint32 (size,)."""
    return masks.keystream(derivation.key(seed, Purpose.OWN_MASK, number), size)


class Member:
    """One member's side of one participation in a round.

    Args:
        membership: what it has from its enrolment.
        run, round: which round; the run's random name has 8 bytes.
        salt: see `salt_of`.
    """

    def __init__(self, membership: Membership, run: bytes, round: int, salt: bytes) -> None:
        self._own = membership
        self._derivation = Derivation(run, round)
        self._salt = salt
        self._neighbours = membership.ring.neighbours(membership.number)
        self._mask_secret = self._derived(Purpose.MASK_SECRET)
        self._seed = self._derived(Purpose.SEED)
        self._held: dict[int, tuple[bytes, bytes]] | None = None
        self._peers: dict[int, Peer] = {}
        self._answered: tuple[int, bytes] | None = None

    def keys(self) -> bytes:
        """The blob of step 1; the same however often it is asked for.

        Raises:
            RemoteWireError: `mask-neighbours` where a neighbour's public key is none.
        """
        parts = [self._split(secret, kind) for kind, secret in ((_MASK_SECRET, self._mask_secret), (_SEED, self._seed))]
        boxes = tuple(
            masks.seal(self._box_key(who, self._own.number, who, self._salt), parts[0][place] + parts[1][place])
            for place, who in enumerate(self._neighbours, start=1)
        )
        public = masks.public_key(self._mask_secret)
        return Keys(self._own.number, self._salt, public, masks.hash_of(self._seed), boxes).to_bytes()

    def take_peers(self, blob: bytes) -> None:
        """Take the peers blob; the first one of a participation counts.

        Raises:
            RemoteWireError: it is none, or `mask-neighbours`: too few neighbours have keys, or a box does not open.
        """
        if self._held is not None:
            return
        listed = zip(self._neighbours, masking.read_peers(blob, self._own.ring), strict=True)
        peers = {who: peer for who, peer in listed if peer is not None}
        if len(peers) < self._own.ring.threshold:
            raise RemoteWireError(
                Status.MASK_NEIGHBOURS, f"keys of {len(peers)} neighbours, {self._own.ring.threshold} are needed"
            )
        self._held = {who: self._opened(who, peer) for who, peer in peers.items()}
        self._peers = peers

    def masked(self, words: Words) -> Words:
        """The update under masks, uint32 (P,), from its words; after `take_peers`.

        Raises:
            RemoteWireError: `state` before the peers came, `mask-neighbours` where a neighbour's X is none.
        """
        if self._held is None:
            raise RemoteWireError(Status.STATE, "no peers yet")
        own, size = self._own.number, words.size
        total = words + own_mask(self._derivation, self._seed, own, size)
        for who, peer in self._peers.items():
            try:
                total = total + pair_mask(self._derivation, self._mask_secret, peer.public, own, who, size)
            except ValueError as error:
                raise RemoteWireError(Status.MASK_NEIGHBOURS, f"{error}: X of member {who}") from error
        return total

    def answer(self, survivors: int) -> bytes:
        """The blob of step 3: of each neighbour one share, never both; the same question has the same answer.

        Args:
            survivors: bit i: neighbour i, counted from 0, is one.

        Raises:
            RemoteWireError: `state` before the peers came; `mask-neighbours` where survivors are among those without keys, or
                too few; `mask-answered` where the question was another one before.
        """
        if self._held is None:
            raise RemoteWireError(Status.STATE, "no peers yet")
        if self._answered is not None:
            if self._answered[0] != survivors:
                raise RemoteWireError(Status.MASK_ANSWERED, "shares were given out for other survivors")
            return self._answered[1]
        alive = [who for place, who in enumerate(self._neighbours) if survivors >> place & 1]
        if survivors >> len(self._neighbours) or not set(alive) <= set(self._held):
            raise RemoteWireError(Status.MASK_NEIGHBOURS, "survivors whose keys never came")
        if len(alive) < self._own.ring.threshold:
            raise RemoteWireError(
                Status.MASK_NEIGHBOURS, f"{len(alive)} neighbours survived, {self._own.ring.threshold} are needed"
            )
        held = self._held
        blob = masking.shares_blob(
            tuple(held[who][_SEED if who in alive else _MASK_SECRET] if who in held else None for who in self._neighbours)
        )
        self._answered = (survivors, blob)
        return blob

    def _derived(self, purpose: Purpose, b: int = 0, i: int = 0) -> bytes:
        return self._derivation.key(self._own.secret, purpose, self._own.number, b, i, self._salt)

    def _split(self, secret: bytes, kind: int) -> dict[int, bytes]:
        threshold = self._own.ring.threshold
        coefficients = b"".join(self._derived(Purpose.COEFFICIENT, kind, j) for j in range(1, threshold))
        return shamir.split(secret, threshold, len(self._neighbours), coefficients)

    def _box_key(self, other: int, sender: int, receiver: int, salt: bytes) -> bytes:
        try:
            shared = masks.agreed_key(self._own.secret, self._own.publics[other])
        except ValueError as error:
            raise RemoteWireError(Status.MASK_NEIGHBOURS, f"{error}: that of member {other}") from error
        return self._derivation.key(shared, Purpose.BOX, sender, receiver, salt=salt)

    def _opened(self, who: int, peer: Peer) -> tuple[bytes, bytes]:
        try:
            content = masks.unseal(self._box_key(who, who, self._own.number, peer.salt), peer.box)
        except ValueError as error:
            raise RemoteWireError(Status.MASK_NEIGHBOURS, f"{error}: that of member {who}") from error
        return content[: masking.KEY_BYTES], content[masking.KEY_BYTES :]


@dataclass(frozen=True)
class Collector:
    """The coordinator's side of one round: pure functions of what members handed in, by their numbers.

    Attributes:
        ring: of the group.
        run, round: which round; the run's random name has 8 bytes.
    """

    ring: Ring
    run: bytes
    round: int

    def peers(self, number: int, keys: Mapping[int, bytes]) -> bytes:
        """The peers blob of a member.

        Args:
            number: whose.
            keys: blobs of step 1.
        """
        found: list[Peer | None] = []
        for who in self.ring.neighbours(number):
            if who not in keys:
                found.append(None)
                continue
            one = Keys.read(keys[who], self.ring, who)
            found.append(Peer(one.salt, one.public, one.boxes[self.ring.neighbours(who).index(number)]))
        return masking.peers_blob(tuple(found))

    def survivor_bits(self, number: int, survivors: Collection[int]) -> int:
        """Which of a member's neighbours survived."""
        return sum(1 << place for place, who in enumerate(self.ring.neighbours(number)) if who in survivors)

    def complaint(self, keyed: Collection[int], survivors: Collection[int], answered: Collection[int]) -> str | None:
        """Why there is no sum, in words; None where there is one if nobody lied.

        Args:
            keyed: whose keys came.
            survivors: whose masked updates came.
            answered: whose shares came.
        """
        if len(survivors) < self.ring.least_members:
            return f"{len(survivors)} masked updates, {self.ring.least_members} are needed"
        lacking = [who for who in sorted(keyed) if self._is_lacking(who, survivors, answered)]
        if not lacking:
            return None
        names = ", ".join(str(who) for who in lacking[:5]) + (" and others" if len(lacking) > 5 else "")
        return f"fewer than {self.ring.threshold} neighbours gave their shares of member {names}"

    def _is_lacking(self, who: int, survivors: Collection[int], answered: Collection[int]) -> bool:
        near = self.ring.neighbours(who)
        if who not in survivors and not any(other in survivors for other in near):
            return False  # nobody in the sum has a mask with it
        return sum(other in answered and other in survivors for other in near) < self.ring.threshold

    def result(self, keys: Mapping[int, bytes], masked: Mapping[int, Words], shares: Mapping[int, bytes]) -> Words:
        """The sum of the survivors' words modulo 2^32, uint32 (P,).

        Args:
            keys: blobs of step 1.
            masked: masked updates, uint32 (P,): of the survivors.
            shares: blobs of step 3.

        Raises:
            RoundError: too few survivors or shares, or somebody gave a false one: nobody's update is known.
        """
        complaint = self.complaint(keys, masked, shares)
        if complaint is not None:
            raise RoundError(complaint)
        derivation = Derivation(self.run, self.round)
        known = {who: Keys.read(blob, self.ring, who) for who, blob in keys.items()}
        given = {who: masking.read_shares(blob, self.ring) for who, blob in shares.items() if who in masked}
        size = next(iter(masked.values())).size
        total = _sum(masked.values(), size)
        for who in sorted(masked):
            seed = self._joined(who, given)
            if masks.hash_of(seed) != known[who].seed_hash:
                raise RoundError(f"shares of the seed of member {who} do not give it: somebody changed one")
            total = total - own_mask(derivation, seed, who, size)
        for who in sorted(known.keys() - masked.keys()):
            near = [other for other in self.ring.neighbours(who) if other in masked]
            if not near:
                continue
            secret = self._joined(who, given)
            if masks.public_key(secret) != known[who].public:
                raise RoundError(f"shares of the mask secret of member {who} do not give it: somebody changed one")
            # Each survivor added the negative of what the lost one would have added for it.
            total = total + _sum((self._pair_mask(derivation, secret, known, who, other, size) for other in near), size)
        return total

    def _pair_mask(
        self, derivation: Derivation, secret: bytes, known: Mapping[int, Keys], who: int, other: int, size: int
    ) -> Words:
        try:
            return pair_mask(derivation, secret, known[other].public, who, other, size)
        except ValueError as error:
            raise RoundError(f"X of member {other}: {error}") from error

    def _joined(self, who: int, given: Mapping[int, tuple[bytes, ...]]) -> bytes:
        """What the shares give that neighbours of a member handed in."""
        shares = {
            place: given[other][self.ring.neighbours(other).index(who)]
            for place, other in enumerate(self.ring.neighbours(who), start=1)
            if other in given
        }
        return shamir.join(shares, self.ring.threshold)


def _sum(rows: Iterable[Words], size: int) -> Words:
    total = np.zeros(size, np.uint32)
    for row in rows:
        total = total + row
    return total


def run(
    collector: Collector, members: Mapping[int, Member], words: Mapping[int, Words], lost: Mapping[int, int]
) -> tuple[Words, set[int]]:
    """A whole round in one process.

    Args:
        collector: of the round.
        members: of the group, by number.
        words: every member's update, uint32 (P,).
        lost: step (1 to 3) whose blob a member does not hand in any more; whoever is not named hands in all three. A member that
            refuses a step, because too few neighbours are left, is lost at that step.

    Returns:
        The sum, and whose updates are in it.

    Raises:
        RoundError: there is no sum.
    """

    def handed_in(step: int, who: Iterable[int], make: Callable[[int], Blob]) -> dict[int, Blob]:
        blobs: dict[int, Blob] = {}
        for one in who:
            if lost.get(one, 4) > step:
                with contextlib.suppress(RemoteWireError):
                    blobs[one] = make(one)
        return blobs

    def mask(who: int) -> Words:
        members[who].take_peers(collector.peers(who, keys))
        return members[who].masked(words[who])

    keys = handed_in(1, sorted(members), lambda who: members[who].keys())
    masked = handed_in(2, keys, mask)
    shares = handed_in(3, masked, lambda who: members[who].answer(collector.survivor_bits(who, masked)))
    return collector.result(keys, masked, shares), set(masked)
