# SPDX-License-Identifier: Apache-2.0
"""The masked sum equals the plain sum for every set of losses up to the threshold, and beyond it nothing is known."""

import copy
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmote.errors import ConfigError, RoundError
from fedmote.privacy import masks, shamir
from fedmote.privacy.fixed_point import FixedPoint
from fedmote.privacy.secure_sum import Advert, Collector, Group, Member, run

SIZE = 11


def entropy_of(name):
    """Bytes that look random and are the same in every run."""
    counter = itertools.count()

    def draw(count):
        return hashlib.shake_256(f"{name}/{next(counter)}".encode()).digest(count)

    return draw


def ids(count):
    return tuple(f"m{index:02}" for index in range(count))


def group_of(count, near=None, threshold=None, least=1):
    near = count - 1 if near is None else near
    return Group(b"run/round/group", ids(count), near, near // 2 + 1 if threshold is None else threshold, SIZE, least)


def cast(group, seed=0):
    generator = np.random.default_rng(seed)
    members = {who: Member(group, who, entropy_of(f"{seed}/{who}")) for who in group.members}
    words = {who: generator.integers(0, 2**32, SIZE, dtype=np.uint32) for who in group.members}
    return members, words


def plain_sum(words, who):
    return np.array([sum(int(words[one][at]) for one in who) % 2**32 for at in range(SIZE)], np.uint32)


def is_recoverable(group, lost):
    """Whether the threshold holds: every mask that is to be taken off has enough neighbours that answer."""

    def lives(who, step):
        return lost.get(who, 5) > step

    adverts = {who for who in group.members if lives(who, 1)}
    sharers = {who for who in adverts if lives(who, 2) and len(adverts & set(group.neighbours(who))) >= group.threshold}
    survivors = {who for who in sharers if lives(who, 3) and len(sharers & set(group.neighbours(who))) >= group.threshold}
    answering = {who for who in survivors if lives(who, 4)}

    def holds(who):
        return len(answering & set(group.neighbours(who))) >= group.threshold

    masks_to_take_off = survivors | {who for who in sharers - survivors if survivors & set(group.neighbours(who))}
    is_sound = len(survivors) >= group.least_members and all(holds(who) for who in masks_to_take_off)
    return is_sound, survivors


def check(group, lost, seed=0):
    members, words = cast(group, seed)
    is_sound, survivors = is_recoverable(group, lost)
    if not is_sound:
        with pytest.raises(RoundError):
            run(group, members, words, lost)
        return 0
    total, summed = run(group, members, words, lost)
    assert summed == survivors
    np.testing.assert_array_equal(total, plain_sum(words, survivors))
    return 1


@pytest.mark.parametrize("count", [3, 4, pytest.param(5, marks=pytest.mark.slow)])
def test_sum_is_exact_for_every_loss_of_every_member_at_every_step(count):
    group = group_of(count)
    steps = itertools.product((1, 2, 3, 4, 5), repeat=count)
    sound = sum(check(group, dict(zip(group.members, one, strict=True))) for one in steps)
    print(f"{count} members: {sound} of {5**count} sets of losses are within the threshold")
    assert 0 < sound < 5**count


class Prepared:
    """A group whose members have all sent their masked update; who is lost then is decided afterwards, set by set."""

    def __init__(self, group):
        self.group = group
        self.members, self.words = cast(group)
        self.adverts = {who: member.advert() for who, member in self.members.items()}
        sealed = {who: member.shares(self.adverts) for who, member in self.members.items()}
        self.masked = {
            who: member.masked(self.words[who], {other: parts[who] for other, parts in sealed.items() if who in parts})
            for who, member in self.members.items()
        }

    def check(self, lost):
        """`lost` by member: 3 (the masked update never came) or 4 (no answer)."""
        is_sound, survivors = is_recoverable(self.group, lost)
        collector = Collector(self.group, self.adverts, set(self.members))
        for who in sorted(survivors):
            collector.add_masked(who, self.masked[who])
        answering = [who for who in sorted(survivors) if who not in lost]
        answers = {who: copy.copy(self.members[who]).answer(survivors) for who in answering}
        if not is_sound:
            with pytest.raises(RoundError):
                collector.result(answers)
            return 0
        np.testing.assert_array_equal(collector.result(answers), plain_sum(self.words, survivors))
        return 1


@pytest.mark.parametrize(("count", "near"), [(5, 4), (6, 5), (7, 6), (8, 4), (8, 7)])
def test_sum_is_exact_for_every_set_of_lost_members(count, near):
    prepared = Prepared(group_of(count, near))
    sets = [
        {who: step for who, gone in zip(prepared.group.members, is_lost, strict=True) if gone}
        for step in (3, 4)
        for is_lost in itertools.product((False, True), repeat=count)
    ]
    sound = sum(prepared.check(lost) for lost in sets)
    print(f"{count} members, {near} neighbours: {sound} of {len(sets)} sets of losses are within the threshold")
    assert 0 < sound < len(sets)


@pytest.mark.slow
@pytest.mark.parametrize("near", [4, 7])
def test_sum_of_eight_is_exact_for_every_loss_before_and_after_masking(near):
    prepared = Prepared(group_of(8, near))
    sets = [
        {who: step for who, step in zip(prepared.group.members, steps, strict=True) if step < 5}
        for steps in itertools.product((3, 4, 5), repeat=8)
    ]
    assert 0 < sum(prepared.check(lost) for lost in sets) < len(sets) == 3**8


@settings(deadline=None, max_examples=15)
@given(data=st.data(), count=st.integers(9, 24), seed=st.integers(0, 2**32 - 1))
def test_sum_of_larger_groups_is_exact_or_abandoned(data, count, seed):
    near = data.draw(st.sampled_from([4, 6, 8]))
    group = group_of(count, near, data.draw(st.integers(near // 2 + 1, near)), least=8)
    lost = data.draw(st.dictionaries(st.sampled_from(group.members), st.integers(1, 4), max_size=count // 2))
    check(group, lost, seed)


def test_masked_update_of_a_member_that_was_called_lost_stays_closed_when_it_comes_after_all():
    group = group_of(8)
    members, words = cast(group)
    adverts = {who: member.advert() for who, member in members.items()}
    sealed = {who: member.shares(adverts) for who, member in members.items()}
    masked = {
        who: members[who].masked(words[who], {other: sealed[other][who] for other in sealed if other != who}) for who in members
    }
    late, others = "m03", set(members) - {"m03"}
    answers = {who: members[who].answer(others) for who in others}
    # The coordinator has every share of the late member's mask key, and takes every pairwise mask off.
    numbers = {other: number for number, other in enumerate(group.neighbours(late), start=1)}
    secret = shamir.join({numbers[who]: answer.mask_keys[late] for who, answer in answers.items()}, group.threshold)
    opened = masked[late]
    for other in others:
        opened = opened - group.pair_mask(secret, adverts[other].mask_key, late, other)
    assert not np.array_equal(opened, words[late])
    assert not any(late in answer.seeds for answer in answers.values())
    # No member gives the other kind of share afterwards, not even the late one.
    for who in members:
        if who != late:
            with pytest.raises(RoundError, match="once"):
                members[who].answer(set(members))
    with pytest.raises(RoundError):
        members[late].answer(others)


def test_shares_of_one_kind_below_the_threshold_say_nothing_about_the_other():
    # 2 t > k: whatever a coordinator tells each neighbour, it cannot gather t shares of both kinds.
    for count, near in ((8, 7), (9, 8), (20, 6)):
        with pytest.raises(ConfigError, match="more than half"):
            group_of(count, near, near // 2)
        group_of(count, near, near // 2 + 1)


def test_single_masked_update_looks_like_noise():
    group = Group(b"noise", ids(8), 7, 4, 20_000)
    members, _ = cast(group)
    adverts = {who: member.advert() for who, member in members.items()}
    sealed = {who: member.shares(adverts) for who, member in members.items()}
    masked = members["m00"].masked(np.zeros(20_000, np.uint32), {who: sealed[who]["m00"] for who in sealed if who != "m00"})
    bits = np.unpackbits(masked.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
    assert len(np.unique(masked)) > 19_900


def test_changed_share_is_found_out():
    group = group_of(4)
    members, words = cast(group)
    adverts = {who: member.advert() for who, member in members.items()}
    sealed = {who: member.shares(adverts) for who, member in members.items()}
    broken = bytearray(sealed["m00"]["m01"])
    broken[5] ^= 1
    with pytest.raises(RoundError, match="shares of m00"):
        members["m01"].masked(words["m01"], {"m00": bytes(broken), "m02": sealed["m02"]["m01"], "m03": sealed["m03"]["m01"]})
    with pytest.raises(RoundError, match="shares of m02"):  # those of another receiver
        members["m03"].masked(words["m03"], {"m02": sealed["m02"]["m01"]})


@pytest.mark.parametrize("kind", ["seeds", "mask_keys"])
def test_member_that_gives_a_false_share_back_is_found_out(kind):
    group = group_of(5, 4, 3)
    members, words = cast(group)
    adverts = {who: member.advert() for who, member in members.items()}
    sealed = {who: member.shares(adverts) for who, member in members.items()}
    collector = Collector(group, adverts, set(members))
    for who in ids(4):
        collector.add_masked(
            who, members[who].masked(words[who], {other: sealed[other][who] for other in sealed if other != who})
        )
    answers = {who: members[who].answer(collector.survivors) for who in ids(4)}
    found = getattr(answers["m00"], kind)
    target = sorted(found)[0]
    found[target] = bytes(32)
    with pytest.raises(RoundError, match="somebody changed one"):
        collector.result(answers)


def test_public_key_that_is_none_is_refused():
    group = group_of(4)
    members, _ = cast(group)
    adverts = {who: member.advert() for who, member in members.items()}
    adverts["m02"] = Advert(bytes(32), bytes(32), bytes(32))
    with pytest.raises(RoundError, match="m02"):
        members["m00"].shares(adverts)


def test_update_of_a_stranger_or_twice_is_refused():
    group = group_of(4)
    collector = Collector(group, {}, {"m00"})
    collector.add_masked("m00", np.zeros(SIZE, np.uint32))
    for who, size in (("m00", SIZE), ("m01", SIZE), ("nobody", SIZE)):
        with pytest.raises(RoundError):
            collector.add_masked(who, np.zeros(size, np.uint32))


@pytest.mark.parametrize(
    ("count", "near", "threshold", "reason"),
    [(7, 6, 4, "at least 8"), (8, 8, 5, "neighbours"), (9, 5, 3, "even"), (9, 4, 5, "threshold"), (9, 4, 2, "more than half")],
)
def test_groups_that_protect_nothing_are_refused_with_the_reason(count, near, threshold, reason):
    with pytest.raises(ConfigError, match=reason):
        Group(b"x", ids(count), near, threshold, SIZE)


@pytest.mark.parametrize(("count", "near"), [(8, 7), (9, 4), (20, 6), (21, 8)])
def test_neighbours_are_mutual_and_everybody_is_reached(count, near):
    group = group_of(count, near)
    reached, front = {"m00"}, {"m00"}
    while front:
        front = {other for who in front for other in group.neighbours(who)} - reached
        reached |= front
    assert reached == set(group.members)
    for who in group.members:
        assert len(set(group.neighbours(who))) == near
        assert all(who in group.neighbours(other) for other in group.neighbours(who))


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
    sealed = masks.seal(b"k" * 32, first.astype("<u4").tobytes())
    assert sealed[:400] == bytes(400)  # the mask is what hides a content under the same key
