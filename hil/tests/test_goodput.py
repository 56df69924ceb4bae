# SPDX-License-Identifier: Apache-2.0
"""What a paced line carries of a package and of an update, by a device that is a process."""

import argparse
import asyncio
import json

import pytest

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board
from fedmote_hil.cli.link import SUBJECT
from fedmote_hil.goodput import REQUIRED, measure


def test_a_clean_line_carries_more_than_85_percent_payload_in_both_directions():
    down, up = asyncio.run(measure(Board.load("posix"), 0.0, seed=0, payload_bytes=16_384))
    print(down, up)
    assert (down.direction, up.direction) == ("download", "upload")
    for transfer in (down, up):
        assert REQUIRED[0.0] <= transfer.share < 1  # never faster than the line: the pace is kept
        assert transfer.carried_bytes >= transfer.payload_bytes


def test_a_package_that_no_slot_holds_is_refused_before_anything_is_started():
    with pytest.raises(DoesNotFitError, match="slot"):
        asyncio.run(measure(Board.load("posix"), 0.0, seed=0, payload_bytes=200_000))


@pytest.mark.slow
def test_every_line_of_the_benchmark_carries_what_is_required(capsys):
    parser = argparse.ArgumentParser()
    SUBJECT.add_arguments(parser)
    assert SUBJECT.run(parser.parse_args(["--json"])) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["loss"] for row in rows} == set(REQUIRED)
    assert all(row["is_met"] for row in rows)
