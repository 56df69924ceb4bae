# SPDX-License-Identifier: Apache-2.0
"""`fedmote serve`: the coordinator of a fleet."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType

from fedmote.cli import EXIT_INTERRUPTED
from fedmote.cli.table import say, write_json, write_table
from fedmote.config import BrokerConfig, CellConfig, CoordinatorConfig, load
from fedmote.config.broker import is_plain_text
from fedmote.coordinator import Coordinator, DeployedPartition, RunResult
from fedmote.coordinator.crash import die_at
from fedmote.coordinator.security import PackageSigner, Security
from fedmote.errors import ConfigError, RoundError
from fedmote.fleet import Registry
from fedmote.package.signature import SigningKey
from fedmote.privacy.group import MaskedGroup
from fedmote.rounds import RunStatus
from fedmote.transport import Transport
from fedmote.transport.link import LinkServer
from fedmote.transport.mqtt import CoordinatorMqtt
from fedmote.wire.seal import Seals

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
    config = with_population(load(CoordinatorConfig, options.config, options.set, os.environ), options.config)
    for words in plain_text(config):
        say(f"INSECURE: {words}")
    for words in unmasked_members(config):
        say(f"warning: {words}")
    partition = DeployedPartition(config.run.partition_directory, config.run.test_data)
    security = security_of(config)
    coordinator = Coordinator(
        config,
        transports_of(config, None if security is None else security.seals),
        partition,
        is_fresh=options.fresh,
        talk=_talk_json if options.json else say,
        tell=_tell_json if options.json else None,
        passing=die_at(os.environ),
        security=security,
        group=group_of(config),
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


def with_population(config: CoordinatorConfig, path: Path) -> CoordinatorConfig:
    """The configuration with its cells: those that it names, without who was revoked, or those of the registry.

    Raises:
        ConfigError: nobody is left, or somebody of the cells was never enrolled.
    """
    if config.security.registry is None:
        return config
    with Registry.open(config.security.registry) as registry:
        cells, states = registry.cells(), {entry.id: entry.state for entry in registry.entries()}
    if config.cells:
        named = [member for cell in config.cells for member in cell.participants]
        if strangers := [member for member in named if member not in states]:
            raise ConfigError(f"{path}: cells: {', '.join(strangers)}: not enrolled, so without a key; see `fedmote enroll add`")
        if revoked := [member for member in named if states[member] == "revoked"]:
            say(f"left out, revoked: {', '.join(revoked)}")
        cells = tuple(kept for cell in config.cells if (kept := _without(cell, states)) is not None)
    if not cells:
        raise ConfigError(f"{config.security.registry}: nobody is enrolled; `fedmote enroll add` lets devices and partners in")
    return replace(config, cells=cells)


def _without(cell: CellConfig, states: Mapping[str, str]) -> CellConfig | None:
    """A cell without its revoked members; None where nobody is left."""
    devices = tuple(device for device in cell.devices if states[device] == "active")
    partner = cell.partner if cell.partner is not None and states[cell.partner] == "active" else None
    return CellConfig(cell.name, devices, partner) if devices or partner else None


def plain_text(config: CoordinatorConfig) -> Iterator[str]:
    """Every way in that is plain text beyond loopback, in words."""
    if config.broker is not None and is_plain_text(config.broker.url):
        yield f"broker {config.broker.url} is plain text: whoever can listen on this network reads passwords and messages"
    if config.listen is not None and is_plain_text(config.listen):
        yield f"listen {config.listen} is plain text: whoever can listen on this network reads messages"


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


def security_of(config: CoordinatorConfig) -> Security | None:
    """The keys of the fleet's registry, with the epoch of this start; None where the configuration names no registry."""
    if config.security.registry is None:
        return None
    registry = Registry.open(config.security.registry)
    former = registry.last_epoch()
    security = Security.begin(registry, registry.next_epoch(), time.monotonic, former)
    if config.security.signing_key is not None:
        security.signer = PackageSigner(SigningKey.read(config.security.signing_key), registry.next_epoch)
    return security


def group_of(config: CoordinatorConfig) -> MaskedGroup | None:
    """The group whose updates are summed under masks, without those that were revoked since; None where none is named.

    Raises:
        ConfigError: there is no such group.
    """
    secure = config.strategy.secure_sum
    if secure is None:
        return None
    if config.security.registry is None:
        raise ConfigError(
            f"strategy.secure_sum.group: {secure.group} is in the fleet's registry, and security.registry names none"
        )
    with Registry.open(config.security.registry) as registry:
        group = registry.group(secure.group)
    return MaskedGroup.of(group.name, group.id, group.ring, secure.clip_norm, group.numbers)


def unmasked_members(config: CoordinatorConfig) -> Iterator[str]:
    """Members of groups that this run does not sum under masks, in words: they refuse every plan."""
    if config.security.registry is None:
        return
    summed = None if config.strategy.secure_sum is None else config.strategy.secure_sum.group
    here = {device for cell in config.cells for device in cell.devices}
    with Registry.open(config.security.registry) as registry:
        groups = registry.groups()
    for group in groups:
        members = sorted(here & set(group.numbers))
        if members and group.name != summed:
            yield (
                f"{', '.join(members)} will refuse to take part: they are in group {group.name}, whose updates this run does not "
                "sum under masks (strategy.secure_sum)"
            )


def transports_of(config: CoordinatorConfig, seals: Seals | None = None) -> list[Transport]:
    """The ways to participants that a configuration names."""
    transports: list[Transport] = []
    if config.broker is not None:
        transports.append(_mqtt(config.broker, config.run.site, seals))
    if config.listen is not None:
        transports.append(LinkServer(config.listen, seals=seals))
    return transports


def _mqtt(broker: BrokerConfig, site: str, seals: Seals | None) -> CoordinatorMqtt:
    password = broker.password(os.environ)
    return CoordinatorMqtt(broker.url, site, broker.username, password, ca_file=broker.ca_file, seals=seals)


def _print(result: RunResult) -> None:
    rows = [
        (one.round, one.phase, one.state, one.reported, one.expected, one.accuracy, one.seconds, ", ".join(one.missing) or None)
        for one in result.rounds
    ]
    write_table(_COLUMNS, rows)
    say(f"checkpoint {result.version}: {result.checkpoint}")
