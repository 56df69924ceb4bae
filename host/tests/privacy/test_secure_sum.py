# SPDX-License-Identifier: Apache-2.0
"""The masked sum equals the plain sum for every set of losses up to the threshold, and beyond it nothing is known."""

import copy
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmote.errors import ConfigError, RemoteWireError, RoundError
from fedmote.privacy import masks, shamir
from fedmote.privacy.fixed_point import FixedPoint
from fedmote.privacy.masks import Derivation, Purpose
from fedmote.privacy.secure_sum import Collector, Member, own_mask, pair_mask, run, salt_of
from fedmote.wire import masking
from fedmote.wire.masking import Keys, Membership, Peer, Ring
from fedmote.wire.schema import Status

SIZE = 11
RUN = b"run-0001"
ROUND = 7


def secret_of(number):
    """Bytes that look random and are the same in every run."""
    return hashlib.shake_256(f"member {number}".encode()).digest(32)


def ring_of(count, near=None, threshold=None, least=1):
    near = count - 1 if near is None else near
    return Ring(count, near, near // 2 + 1 if threshold is None else threshold, least)


def membership_of(ring, number):
    publics = {who: masks.public_key(secret_of(who)) for who in ring.neighbours(number)}
    return Membership(b"group-01", number, ring, secret_of(number), publics)


def collector_of(ring):
    return Collector(ring, RUN, ROUND)


def numbers_of(ring):
    return range(1, ring.num_members + 1)


def cast(ring, seed=0, size=SIZE):
    generator = np.random.default_rng(seed)
    members = {who: Member(membership_of(ring, who), RUN, ROUND, salt_of(seed, who)) for who in numbers_of(ring)}
    words = {who: generator.integers(0, 2**32, size, dtype=np.uint32) for who in members}
    return members, words


def plain_sum(words, who):
    return np.array([sum(int(words[one][at]) for one in who) % 2**32 for at in range(SIZE)], np.uint32)


def is_recoverable(ring, lost):
    """Whether the threshold holds: every mask that is to be taken off has enough neighbours that answer."""

    def lives(who, step):
        return lost.get(who, 4) > step

    def near(who, found):
        return len(found & set(ring.neighbours(who)))

    keyed = {who for who in numbers_of(ring) if lives(who, 1)}
    survivors = {who for who in keyed if lives(who, 2) and near(who, keyed) >= ring.threshold}
    answering = {who for who in survivors if lives(who, 3) and near(who, survivors) >= ring.threshold}
    masks_to_take_off = survivors | {who for who in keyed - survivors if near(who, survivors)}
    is_sound = len(survivors) >= ring.least_members and all(near(who, answering) >= ring.threshold for who in masks_to_take_off)
    return is_sound, survivors


def check(ring, lost, seed=0):
    members, words = cast(ring, seed)
    is_sound, survivors = is_recoverable(ring, lost)
    if not is_sound:
        with pytest.raises(RoundError):
            run(collector_of(ring), members, words, lost)
        return 0
    total, summed = run(collector_of(ring), members, words, lost)
    assert summed == survivors
    np.testing.assert_array_equal(total, plain_sum(words, survivors))
    return 1


@pytest.mark.parametrize("count", [3, 4, pytest.param(5, marks=pytest.mark.slow)])
def test_sum_is_exact_for_every_loss_of_every_member_at_every_step(count):
    ring = ring_of(count)
    steps = itertools.product((1, 2, 3, 4), repeat=count)
    sound = sum(check(ring, dict(zip(numbers_of(ring), one, strict=True))) for one in steps)
    print(f"{count} members: {sound} of {4**count} sets of losses are within the threshold")
    assert 0 < sound < 4**count


class Prepared:
    """A group whose members have all handed in their masked update; who is lost then is decided afterwards, set by set."""

    def __init__(self, ring, size=SIZE):
        self.ring, self.collector = ring, collector_of(ring)
        self.members, self.words = cast(ring, size=size)
        self.keys = {who: member.keys() for who, member in self.members.items()}
        for who, member in self.members.items():
            member.take_peers(self.collector.peers(who, self.keys))
        self.masked = {who: member.masked(self.words[who]) for who, member in self.members.items()}

    def answer(self, who, survivors):
        return copy.copy(self.members[who]).answer(self.collector.survivor_bits(who, survivors))

    def check(self, lost):
        """`lost` by member: 2 (the masked update never came) or 3 (no shares)."""
        is_sound, survivors = is_recoverable(self.ring, lost)
        masked = {who: self.masked[who] for who in survivors}
        near = {who: len(survivors & set(self.ring.neighbours(who))) for who in survivors}
        shares = {who: self.answer(who, survivors) for who in survivors - set(lost) if near[who] >= self.ring.threshold}
        assert (self.collector.complaint(self.keys, survivors, shares) is None) == is_sound
        if not is_sound:
            with pytest.raises(RoundError):
                self.collector.result(self.keys, masked, shares)
            return 0
        np.testing.assert_array_equal(self.collector.result(self.keys, masked, shares), plain_sum(self.words, survivors))
        return 1


@pytest.mark.parametrize(("count", "near"), [(5, 4), (6, 5), (7, 6), (8, 4), (8, 7)])
def test_sum_is_exact_for_every_set_of_lost_members(count, near):
    prepared = Prepared(ring_of(count, near))
    sets = [
        {who: step for who, gone in zip(prepared.members, is_lost, strict=True) if gone}
        for step in (2, 3)
        for is_lost in itertools.product((False, True), repeat=count)
    ]
    sound = sum(prepared.check(lost) for lost in sets)
    print(f"{count} members, {near} neighbours: {sound} of {len(sets)} sets of losses are within the threshold")
    assert 0 < sound < len(sets)


@pytest.mark.slow
@pytest.mark.parametrize("near", [4, 7])
def test_sum_of_eight_is_exact_for_every_loss_before_and_after_masking(near):
    prepared = Prepared(ring_of(8, near))
    sets = [
        {who: step for who, step in zip(prepared.members, steps, strict=True) if step < 4}
        for steps in itertools.product((2, 3, 4), repeat=8)
    ]
    assert 0 < sum(prepared.check(lost) for lost in sets) < len(sets) == 3**8


@settings(deadline=None, max_examples=15)
@given(data=st.data(), count=st.integers(9, 24), seed=st.integers(0, 2**32 - 1))
def test_sum_of_larger_groups_is_exact_or_abandoned(data, count, seed):
    near = data.draw(st.sampled_from([4, 6, 8]))
    ring = ring_of(count, near, data.draw(st.integers(near // 2 + 1, near)), least=8)
    lost = data.draw(st.dictionaries(st.sampled_from(numbers_of(ring)), st.integers(1, 3), max_size=count // 2))
    check(ring, lost, seed)


def test_a_group_of_eight_on_default_numbers_takes_no_loss_and_larger_ones_do():
    """Fewer than eight updates are never summed: a group of eight needs all of them, and may lose three after that."""
    ring = Ring.of(8)
    assert (ring.num_neighbours, ring.threshold) == (7, 4)
    assert check(ring, {2: 3, 5: 3, 6: 3}) == 1
    assert check(ring, {2: 2}) == 0
    ring = Ring.of(12)
    assert (ring.num_neighbours, ring.threshold) == (8, 5)
    assert check(ring, {1: 1, 4: 2, 7: 2, 10: 3}) == 1


def test_masked_update_of_a_member_that_was_called_lost_stays_closed_when_it_comes_after_all():
    prepared = Prepared(ring_of(8))
    late, others = 4, set(prepared.members) - {4}
    shares = {who: prepared.members[who].answer(prepared.collector.survivor_bits(who, others)) for who in others}
    # The coordinator has every share of the late member's mask secret, and takes every pair mask off.
    near = prepared.ring.neighbours
    given = {
        place: masking.read_shares(shares[who], prepared.ring)[near(who).index(late)]
        for place, who in enumerate(near(late), start=1)
    }
    secret = shamir.join(given, prepared.ring.threshold)
    assert masks.public_key(secret) == Keys.read(prepared.keys[late], prepared.ring, late).public
    opened = prepared.masked[late]
    for other in others:
        public = Keys.read(prepared.keys[other], prepared.ring, other).public
        opened = opened - pair_mask(Derivation(RUN, ROUND), secret, public, late, other, SIZE)
    assert not np.array_equal(opened, prepared.words[late])
    # Only the own mask is left, and no member gives the share that would take it off afterwards, not even the late one.
    for who in others:
        with pytest.raises(RemoteWireError) as refused:
            prepared.members[who].answer(prepared.collector.survivor_bits(who, prepared.members))
        assert refused.value.status is Status.MASK_ANSWERED
        assert prepared.members[who].answer(prepared.collector.survivor_bits(who, others)) == shares[who]


def test_shares_of_one_kind_below_the_threshold_say_nothing_about_the_other():
    # 2 t > k: whatever a coordinator tells each neighbour, it cannot gather t shares of both kinds.
    for count, near in ((8, 7), (9, 8), (20, 6)):
        with pytest.raises(ConfigError, match="more than half"):
            ring_of(count, near, near // 2)
        ring_of(count, near, near // 2 + 1)


def test_single_masked_update_looks_like_noise():
    prepared = Prepared(ring_of(8), 20_000)
    masked = prepared.members[1].masked(np.zeros(20_000, np.uint32))
    bits = np.unpackbits(masked.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
    assert len(np.unique(masked)) > 19_900


def test_every_participation_has_other_keys():
    ring = ring_of(8)
    seen = set()
    for run_name, number, salt in (
        (RUN, 7, salt_of(1, 0)),
        (RUN, 7, salt_of(1, 1)),
        (RUN, 8, salt_of(1, 0)),
        (b"run-0002", 7, salt_of(1, 0)),
    ):
        keys = Keys.read(Member(membership_of(ring, 3), run_name, number, salt).keys(), ring, 3)
        assert keys.salt == salt
        seen |= {keys.public, keys.seed_hash, *keys.boxes}
    assert len(seen) == 4 * 9


def fresh(ring, who):
    return Member(membership_of(ring, who), RUN, ROUND, salt_of(0, who))


def test_box_that_was_changed_or_is_anothers_is_refused():
    ring = ring_of(4)
    prepared = Prepared(ring)
    peers = list(masking.read_peers(prepared.collector.peers(2, prepared.keys), ring))
    one = peers[0]
    box = bytes((*one.box[:5], one.box[5] ^ 1, *one.box[6:]))
    for changed in (
        Peer(one.salt, one.public, box),
        Peer(bytes(8), one.public, one.box),
        Peer(one.salt, one.public, peers[1].box),
    ):
        with pytest.raises(RemoteWireError) as refused:
            fresh(ring, 2).take_peers(masking.peers_blob((changed, *peers[1:])))
        assert refused.value.status is Status.MASK_NEIGHBOURS
    fresh(ring, 2).take_peers(masking.peers_blob(tuple(peers)))


def test_too_few_neighbours_and_survivors_without_keys_are_refused_and_the_first_peers_count():
    ring = ring_of(8)
    prepared = Prepared(ring)
    few = {who: prepared.keys[who] for who in (1, 2, 3, 4)}
    member = fresh(ring, 1)
    with pytest.raises(RemoteWireError) as refused:
        member.take_peers(prepared.collector.peers(1, few))
    assert refused.value.status is Status.MASK_NEIGHBOURS
    some = {who: prepared.keys[who] for who in (1, 2, 3, 4, 5)}
    member.take_peers(prepared.collector.peers(1, some))
    masked = member.masked(prepared.words[1])
    member.take_peers(prepared.collector.peers(1, prepared.keys))
    np.testing.assert_array_equal(member.masked(prepared.words[1]), masked)
    for survivors in ((2, 3, 4, 5, 6), (2, 3, 4)):
        with pytest.raises(RemoteWireError) as refused:
            member.answer(prepared.collector.survivor_bits(1, survivors))
        assert refused.value.status is Status.MASK_NEIGHBOURS


def test_nothing_is_said_before_the_peers_came():
    member = fresh(ring_of(8), 1)
    for ask in (lambda: member.masked(np.zeros(SIZE, np.uint32)), lambda: member.answer(0b1111)):
        with pytest.raises(RemoteWireError) as refused:
            ask()
        assert refused.value.status is Status.STATE


@pytest.mark.parametrize("is_lost", [False, True])
def test_member_that_gives_a_false_share_back_is_found_out(is_lost):
    ring = ring_of(5, 4, 3)
    prepared = Prepared(ring)
    survivors = {1, 2, 3, 4}
    shares = {who: prepared.answer(who, survivors) for who in survivors}
    given = list(masking.read_shares(shares[1], ring))
    given[ring.neighbours(1).index(5 if is_lost else 2)] = bytes(32)
    shares[1] = masking.shares_blob(tuple(given))
    with pytest.raises(RoundError, match=f"{'mask secret' if is_lost else 'seed'} of member .*somebody changed one"):
        prepared.collector.result(prepared.keys, {who: prepared.masked[who] for who in survivors}, shares)


def test_public_key_that_is_none_is_refused():
    ring = ring_of(4)
    one = membership_of(ring, 1)
    broken = Membership(one.group, 1, ring, one.secret, {**one.publics, 3: bytes(32)})
    with pytest.raises(RemoteWireError) as refused:
        Member(broken, RUN, ROUND, salt_of(1, 0)).keys()
    assert refused.value.status is Status.MASK_NEIGHBOURS
    prepared = Prepared(ring)
    peers = list(masking.read_peers(prepared.collector.peers(1, prepared.keys), ring))
    peers[1] = Peer(peers[1].salt, bytes(32), peers[1].box)
    member = fresh(ring, 1)
    member.take_peers(masking.peers_blob(tuple(peers)))
    with pytest.raises(RemoteWireError) as refused:
        member.masked(prepared.words[1])
    assert refused.value.status is Status.MASK_NEIGHBOURS


def test_x_that_is_none_spoils_the_sum_of_those_who_used_it():
    prepared = Prepared(ring_of(5, 4, 3))
    one = Keys.read(prepared.keys[2], prepared.ring, 2)
    keys = prepared.keys | {2: Keys(2, one.salt, bytes(32), one.seed_hash, one.boxes).to_bytes()}
    survivors = {1, 2, 3, 4}
    shares = {who: prepared.answer(who, survivors) for who in survivors}
    with pytest.raises(RoundError, match="X of member 2"):
        prepared.collector.result(keys, {who: prepared.masked[who] for who in survivors}, shares)


# ---- bytes ----------------------------------------------------------------------------------------------------------


def test_blobs_have_the_sizes_of_the_protocol_and_come_back():
    ring = Ring.of(9)
    prepared = Prepared(ring)
    blob = prepared.keys[3]
    assert len(blob) == masking.keys_bytes(ring) == 76 + 80 * 8
    assert blob[:4] == bytes((1, 3, 0, 0))
    assert Keys.read(blob, ring, 3).to_bytes() == blob
    peers = prepared.collector.peers(3, {who: prepared.keys[who] for who in (1, 2, 3, 5, 8)})
    assert len(peers) == 4 + 120 * 8
    assert [one is not None for one in masking.read_peers(peers, ring)] == [
        who in (1, 2, 5, 8) for who in (1, 2, 4, 5, 6, 7, 8, 9)
    ]
    shares = prepared.members[3].answer(0b11111)
    assert len(shares) == masking.shares_bytes(ring) == 4 + 32 * 8
    assert shares[:4] == bytes((1, 8, 0, 0))
    own = membership_of(ring, 3).to_bytes()
    assert len(own) == 44 + 33 * 8
    assert Membership.read(own).to_bytes() == own
    word = masking.Word(b"group-01", 0.5, 2, 0b101, (1, 2, 3))
    assert len(word.to_bytes()) == 28
    assert masking.Word.read(word.to_bytes()) == word


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_heads_that_are_not_those_of_the_protocol_are_refused(number):
    ring = Ring.of(9)
    prepared = Prepared(ring)
    peers, shares = prepared.collector.peers(3, prepared.keys), prepared.members[3].answer(0xFF)
    reads = {
        prepared.keys[3]: lambda blob: Keys.read(blob, ring, 3),
        peers: lambda blob: masking.read_peers(blob, ring),
        shares: lambda blob: masking.read_shares(blob, ring),
    }
    for blob, read in reads.items():
        read(blob)
        changed = bytearray(blob)
        changed[number] ^= 0x40
        for broken in (bytes(changed), blob[:-1], blob + b"\0", b""):
            with pytest.raises(RemoteWireError):
                read(broken)


def test_key_of_a_group_that_is_none_is_refused():
    whole = membership_of(Ring.of(9), 3).to_bytes()
    for at, value in ((8, 0), (8, 4), (8, 10), (9, 7), (9, 10), (10, 7), (11, 4), (11, 9), (44, 3)):
        broken = bytearray(whole)
        broken[at] = value
        with pytest.raises(RemoteWireError):
            Membership.read(bytes(broken))
    for broken in (whole[:-1], whole[:43], b""):
        with pytest.raises(RemoteWireError):
            Membership.read(broken)


def test_keys_are_made_of_the_bytes_that_the_protocol_says():
    text = b"fedmote masking1" + bytes((3, 9, 1, 4)) + RUN + (ROUND).to_bytes(4, "little") + b"12345678"
    expected = hashlib.blake2b(b"k" * 32 + text, digest_size=32).digest()
    assert Derivation(RUN, ROUND).key(b"k" * 32, Purpose.COEFFICIENT, 9, 1, 4, b"12345678") == expected
    key = Derivation(RUN, ROUND).key(b"s" * 32, Purpose.OWN_MASK, 9)
    np.testing.assert_array_equal(own_mask(Derivation(RUN, ROUND), b"s" * 32, 9, 5), masks.keystream(key, 5))


@pytest.mark.parametrize(
    ("count", "near", "threshold", "reason"),
    [
        (7, 6, 4, "at least 8"),
        (256, 8, 5, "255 fit"),
        (8, 8, 5, "neighbours"),
        (9, 5, 3, "even"),
        (20, 10, 6, "up to 8"),
        (9, 4, 5, "threshold"),
        (9, 4, 2, "more than half"),
    ],
)
def test_groups_that_protect_nothing_are_refused_with_the_reason(count, near, threshold, reason):
    with pytest.raises(ConfigError, match=reason):
        Ring(count, near, threshold)


@pytest.mark.parametrize(("count", "near"), [(8, 7), (9, 4), (9, 8), (20, 6), (21, 8), (255, 8)])
def test_neighbours_are_mutual_and_everybody_is_reached(count, near):
    ring = ring_of(count, near)
    reached, front = {1}, {1}
    while front:
        front = {other for who in front for other in ring.neighbours(who)} - reached
        reached |= front
    assert reached == set(numbers_of(ring))
    for who in numbers_of(ring):
        assert len(set(ring.neighbours(who))) == near
        assert list(ring.neighbours(who)) == sorted(ring.neighbours(who))
        assert all(who in ring.neighbours(other) for other in ring.neighbours(who))


# ---- Shamir ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(secret=st.binary(min_size=1, max_size=40), data=st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret, data):
    count = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, count))
    shares = shamir.split(
        secret,
        threshold,
        count,
        data.draw(st.binary(min_size=len(secret) * (threshold - 1), max_size=len(secret) * (threshold - 1))),
    )
    kept = data.draw(st.lists(st.sampled_from(sorted(shares)), min_size=threshold, unique=True))
    assert shamir.join({number: shares[number] for number in kept}, threshold) == secret


def test_fewer_shares_fit_every_secret():
    # Threshold 2: for every secret there is exactly one line through a given share. All lines at once, one per byte.
    secrets, slopes = np.repeat(np.arange(256, dtype=np.uint8), 256), np.tile(np.arange(256, dtype=np.uint8), 256)
    second = np.frombuffer(shamir.split(secrets.tobytes(), 2, 3, slopes.tobytes())[2], np.uint8)
    for share in (0, 1, 0x42, 255):
        np.testing.assert_array_equal(secrets[second == share], np.arange(256))
    with pytest.raises(ValueError, match="1 shares, 2"):
        shamir.join({2: b"x"}, 2)


def test_shares_are_those_of_a_field_that_others_have_computed():
    # 0x53 and 0xca are inverse to each other under AES's polynomial (FIPS 197, section 4.2): 0x53 * 0xca = 1
    assert shamir.split(b"\x00", 2, 0xCA, b"\x53")[0xCA] == b"\x01"


# ---- fixed point ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(count=st.integers(1, 200), clip=st.floats(1e-3, 1e3), seed=st.integers(0, 2**32 - 1), length=st.floats(0, 100))
def test_sum_never_overflows_and_is_off_by_half_a_step_per_member(count, clip, seed, length):
    generator = np.random.default_rng(seed)
    grid = FixedPoint(clip, count)
    rows = generator.normal(size=(count, 5)).astype(np.float32)
    rows *= np.float32(length * clip) / np.linalg.norm(rows, axis=1, keepdims=True)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    cut = rows.astype(np.float64) * np.minimum(1.0, clip / np.maximum(norms, 1e-300))
    total = np.zeros(5, np.uint32)
    for row in rows:
        total = total + grid.quantize(row)
    np.testing.assert_allclose(grid.dequantize(total, count), cut.sum(axis=0), atol=count * grid.step * 0.51, rtol=1e-6)


def test_largest_updates_of_all_members_still_fit():
    for count in (1, 2, 7, 1000, 32_767):
        grid = FixedPoint(1.0, count)
        for sign in (1, -1):
            word = grid.quantize(np.array([sign * 1e30], np.float32))
            total = np.array([int(word[0]) * count % 2**32], np.uint32)
            assert grid.dequantize(total, count)[0] == pytest.approx(sign * count, rel=1e-4)


def test_group_that_leaves_too_few_steps_is_refused():
    with pytest.raises(ConfigError, match="smaller groups"):
        FixedPoint(1.0, 40_000)
    for clip, count in ((0.0, 8), (float("nan"), 8), (float("inf"), 8), (1.0, 0)):
        with pytest.raises(ConfigError):
            FixedPoint(clip, count)


def test_sum_that_honest_members_cannot_have_made_is_found_out():
    grid = FixedPoint(1.0, 8)
    total = grid.quantize(np.array([1.0, 0.0], np.float32)) * np.uint32(3)
    grid.dequantize(total, 3)
    with pytest.raises(ValueError, match="norm"):
        grid.dequantize(total, 2)
    with pytest.raises(ValueError, match="members"):
        grid.dequantize(total, 9)


def test_keystream_is_that_of_the_library_and_of_its_own_key():
    first = masks.keystream(b"k" * 32, 100)
    np.testing.assert_array_equal(first[:50], masks.keystream(b"k" * 32, 50))
    assert not np.array_equal(first, masks.keystream(b"l" * 32, 100))
    sealed = masks.seal(b"k" * 32, first[:64].astype("<u4").tobytes())
    assert sealed[:256] == bytes(256)  # the first piece is what hides a content under the same key
    assert not np.array_equal(first[64:], first[:36])
