# SPDX-License-Identifier: Apache-2.0
"""Devices in masked sums: their bytes against a reference in Python, the sum under every loss, and what they refuse."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest

from firmware_tests.device_bench import Device
from firmware_tests.mask_reference import Words, masked_words, quantized
from firmware_tests.masked_peers import CLIP_NORM, Group, sum_of
from firmware_tests.one_round import MODEL_HANDLE, PACKAGE, PARAMETERS, data, finish, head_update, plan_for
from firmware_tests.scripted_peers import Peers

STEPS = (1, 2, 3)
SAMPLED = 60


@functools.cache
def words_of(number: int) -> Words:
    """The words of member `number`, from the update of a device that is in no group and has the same samples and name."""
    x, y = data(seed=number)
    device, peers = Device(x, y, identifier=f"board-{number}"), Peers(plan_for(PACKAGE), {MODEL_HANDLE: PACKAGE})
    finish(device, peers)
    return quantized(head_update(peers.updates[1][0]), CLIP_NORM, 8)


@functools.cache
def after_keys() -> tuple[Group, object]:
    """A group of eight whose members have trained and handed in their keys, and its memory of that."""
    group = Group()
    group.run(1, group.members)
    return group, group.remember()


def test_keys_masked_words_and_shares_of_every_member_are_those_of_the_reference():
    group, memory = after_keys()
    group.come_back(memory)
    for number, blob in group.sum.keys.items():
        assert blob == group.participation(number).keys()
    group.run(2, group.members)
    for number, blob in group.sum.masked.items():
        mask = group.participation(number).mask(group.sum.publics(number), PARAMETERS)
        assert np.array_equal(masked_words(blob), words_of(number) + mask)
    group.run(3, group.members)
    for number, blob in group.sum.shares.items():
        assert blob == group.participation(number).shares(group.sum.peers(number), group.sum.survivors(number))


def losses() -> list[dict[int, int]]:
    """Member -> step that it does not hand in any more: none, every one, every two, and some of three."""

    def of(count: int) -> list[dict[int, int]]:
        return [dict(zip(who, steps, strict=True)) for who in itertools.combinations(range(1, 9), count)
                for steps in itertools.product(STEPS, repeat=count)]  # fmt: skip

    return [{}, *of(1), *of(2), *random.Random(3).sample(of(3), SAMPLED)]


def test_the_sum_is_that_of_the_survivors_whoever_is_lost_at_whichever_step():
    group = Group()
    group.run(1, group.members)
    beginning = group.remember()
    for lost in losses():
        group.come_back(beginning)
        for number, step in lost.items():
            if step == 1:
                del group.sum.keys[number]
        for step in (2, 3):
            group.run(step, [number for number in group.members if lost.get(number, 4) > step])
        survivors = [number for number in group.members if lost.get(number, 4) > 2]
        assert np.array_equal(group.sum.total(), sum_of(words_of(number) for number in survivors)), lost


@pytest.mark.parametrize(("members", "neighbours", "threshold"), [(9, 8, 5), (12, 4, 3), (11, 6, 6)])
def test_rings_of_other_sizes(members, neighbours, threshold):
    group = Group(members, neighbours, threshold)
    for step in STEPS:
        group.run(step, group.members)
    for number, blob in group.sum.keys.items():
        assert blob == group.participation(number).keys()
    parts = []
    for number, blob in group.sum.masked.items():
        parts.append(masked_words(blob) - group.participation(number).mask(group.sum.publics(number), PARAMETERS))
    assert np.array_equal(group.sum.total(), sum_of(parts))
    assert np.abs(np.stack(parts).view(np.int32)).max() <= (2**31 - 1) // members
