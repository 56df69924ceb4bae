# SPDX-License-Identifier: Apache-2.0
import pytest

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board
from fedmote_hil.slots import slots_with_package


def test_a_package_as_large_as_a_slot_allows_fits_and_one_byte_more_does_not():
    board = Board.load("stm32f405")
    room = board.slot_bytes - 48
    assert len(slots_with_package(bytes(room), board)) == 2 * board.slot_bytes
    with pytest.raises(DoesNotFitError) as refusal:
        slots_with_package(bytes(room + 1), board)
    assert (refusal.value.needed, refusal.value.available) == (room + 1, room)
