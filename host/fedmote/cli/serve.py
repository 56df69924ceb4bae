# SPDX-License-Identifier: Apache-2.0
"""`fedmote serve`: the coordinator of a fleet."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import FrameType

from fedmote.cli import EXIT_INTERRUPTED
from fedmote.cli.table import say, write_json, write_table
from fedmote.config import BrokerConfig, CoordinatorConfig, load
from fedmote.coordinator import Coordinator, DeployedPartition, RunResult
from fedmote.coordinator.crash import die_at
from fedmote.errors import RoundError
from fedmote.rounds import RunStatus
from fedmote.transport import Transport
from fedmote.transport.link import LinkServer
from fedmote.transport.mqtt import CoordinatorMqtt

SUMMARY = "run the coordinator of a fleet; goes on where it stopped"
EXAMPLES = """examples:
  fedmote serve coordinator.toml                        until the run has all its rounds, or an interrupt
  fedmote serve coordinator.toml --set run.rounds=20    goes on where it stopped, to round 20
  fedmote serve coordinator.toml --fresh --json         begins another run; its result for programs
"""

_COLUMNS = ("round", "phase", "state", "reported", "expected", "accuracy", "seconds", "missing")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("config", type=Path, metavar="coordinator.toml")
    parser.add_argument("--fresh", action="store_true", help="set the run in the state directory aside and begin another one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, e.g. run.rounds=5")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; progress as one per line on stderr")


def run(options: Namespace) -> int:
    """Serve until the run reached its goal, or a signal.

    Returns:
        0 where it did, and after SIGTERM: the run stopped as it was told, and goes on at the next start; 130 after SIGINT.

    Raises:
        RoundError: the run had to be given up, or was stopped in a pause after failed rounds.
    """
    config = load(CoordinatorConfig, options.config, options.set, os.environ)
    partition = DeployedPartition(config.run.partition_directory, config.run.test_data)
    coordinator = Coordinator(
        config,
        transports_of(config),
        partition,
        is_fresh=options.fresh,
        talk=_talk_json if options.json else say,
        tell=_tell_json if options.json else None,
        passing=die_at(os.environ),
    )
    signals: list[int] = []
    result = asyncio.run(_serve(coordinator, signals))
    if options.json:
        write_json(result.to_json())
    else:
        _print(result)
    if result.complaint is not None:
        raise RoundError(result.complaint)
    if not result.is_complete:
        say(f"stopped at checkpoint {result.version}; start again to go on")
        return EXIT_INTERRUPTED if signal.SIGINT in signals else 0
    return 0


def _talk_json(text: str) -> None:
    say(json.dumps({"event": "said", "text": text}))


def _tell_json(status: RunStatus) -> None:
    say(json.dumps({"event": "status", **status.to_json(), "text": status.words()}))


async def _serve(coordinator: Coordinator, signals: list[int]) -> RunResult:
    loop = asyncio.get_running_loop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        """The first signal stops the run where it stands; the second ends the process at once, which is safe at any moment."""
        signals.append(number)
        if len(signals) > 1:
            say("forced")
            os._exit(EXIT_INTERRUPTED)
        say("stopping; once more to force")
        loop.call_soon_threadsafe(coordinator.stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)  # not the loop's own handlers: these would wait for a loop that is busy
    return await coordinator.run()


def transports_of(config: CoordinatorConfig) -> list[Transport]:
    """The ways to participants that a configuration names."""
    transports: list[Transport] = []
    if config.broker is not None:
        transports.append(_mqtt(config.broker, config.run.site))
    if config.listen is not None:
        transports.append(LinkServer(config.listen))
    return transports


def _mqtt(broker: BrokerConfig, site: str) -> CoordinatorMqtt:
    return CoordinatorMqtt(broker.url, site, broker.username, broker.password(os.environ), ca_file=broker.ca_file)


def _print(result: RunResult) -> None:
    rows = [
        (one.round, one.phase, one.state, one.reported, one.expected, one.accuracy, one.seconds, ", ".join(one.missing) or None)
        for one in result.rounds
    ]
    write_table(_COLUMNS, rows)
    say(f"checkpoint {result.version}: {result.checkpoint}")
