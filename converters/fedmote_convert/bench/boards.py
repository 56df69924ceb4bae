# SPDX-License-Identifier: Apache-2.0
"""The board that benchmarks convert for: a host process without the bounds that a package slot and an arena usually have."""

from __future__ import annotations

from dataclasses import replace

from fedmote.package.boards import Board

BOARD = "posix"


def roomy_board() -> Board:
    """Board `posix` whose slot is its whole flash and whose arena is its whole memory."""
    board = Board.load(BOARD)
    return replace(board, slot_bytes=board.flash_bytes, arena_bytes=board.ram_bytes)
