# SPDX-License-Identifier: Apache-2.0
"""What a paced line carries of a package and of an update, by a device that is a process."""

import argparse
import asyncio
import json

import pytest

from fedmote.errors import DoesNotFitError
from fedmote.package.boards import Board
from fedmote.wire.schema import LIMIT_WINDOW
from fedmote_hil.cli.link import SUBJECT
from fedmote_hil.goodput import REQUIRED, measure
from fedmote_hil.shim import Impairment


def test_a_clean_line_carries_more_than_85_percent_payload_in_both_directions():
    down, up = asyncio.run(measure(Board.load("posix"), Impairment(), seed=0, payload_bytes=16_384))
    print(down, up)
    assert (down.direction, up.direction) == ("download", "upload")
    for transfer in (down, up):
        assert REQUIRED[0.0] <= transfer.share < 1  # never faster than the line: the pace is kept
        assert transfer.carried_bytes >= transfer.payload_bytes


@pytest.mark.slow
def test_an_outage_costs_its_time_and_less_than_a_window_of_bytes_that_come_again():
    rate_bytes_s, outages = 46_080, ((0.5, 1.0), (1.9, 2.2), (3.6, 3.9))
    line = Impairment(outages=outages)
    transfers = asyncio.run(measure(Board.load("posix"), line, 0, rate_bytes_s, payload_bytes=65_536))
    print(*transfers, sep="\n")
    for transfer in transfers:
        window_bytes = LIMIT_WINDOW * transfer.chunk_bytes
        # Beside chunks the line carries frames around them, questions, plan and acks: a twentieth, and some hundred bytes.
        assert transfer.carried_bytes <= 1.06 * transfer.payload_bytes + 600 + window_bytes
    down, up = transfers
    quiet_s = 1.1 * 65_536 / rate_bytes_s
    assert down.seconds + up.seconds <= 2 * quiet_s + 2 * sum(end - start for start, end in outages) + 2.0 * len(outages)


def test_a_package_that_no_slot_holds_is_refused_before_anything_is_started():
    with pytest.raises(DoesNotFitError, match="slot"):
        asyncio.run(measure(Board.load("posix"), Impairment(), seed=0, payload_bytes=200_000))


@pytest.mark.slow
def test_every_line_of_the_benchmark_carries_what_is_required(capsys):
    parser = argparse.ArgumentParser()
    SUBJECT.add_arguments(parser)
    assert SUBJECT.run(parser.parse_args(["--json"])) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["loss"] for row in rows} == set(REQUIRED)
    assert all(row["is_met"] for row in rows)
