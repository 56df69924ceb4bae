# SPDX-License-Identifier: Apache-2.0
"""`fedmote partner`: the phone or PC of a cell, until it is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path

from fedmote.config import PartnerConfig, load
from fedmote.config.broker import is_plain_text
from fedmote.errors import ConfigError

SUMMARY = "run a partner: trains the whole model on what the devices of its cell select"
EXAMPLES = """examples:
  fedmote partner partner.toml                          until it is interrupted
  fedmote partner partner.toml --set torch_threads=4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    parser.add_argument("config", type=Path, metavar="partner.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file, e.g. seed=3"
    )
    parser.add_argument("--json", action="store_true", help="at the end, one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """Takes part in rounds until SIGINT or SIGTERM, which are its orderly end."""
    config = load(PartnerConfig, options.config, options.set, os.environ)
    for url in (config.broker.url if config.broker else None, config.coordinator):
        if url is not None and is_plain_text(url):
            sys.stderr.write(f"INSECURE: {url} is plain text: whoever can listen on this network reads what is sent\n")
    try:
        from fedmote.partner.agent import PartnerAgent
        from fedmote.partner.training import load_factory, use_threads
        from fedmote.partner.update import Trainer, load_own_samples
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigError("a partner trains with torch: pip install 'fedmote[torch]'") from error
    use_threads(config.torch_threads)
    own = None if config.data is None else load_own_samples(config.data)
    agent = PartnerAgent(config, Trainer(load_factory(config.model), own, config.seed))
    sys.stderr.write(
        f"partner {config.id}: devices {', '.join(device.id for device in config.devices) or 'none'}; their samples stay in "
        f"{config.state_directory} until the round that uses them is settled; interrupt to end it\n"
    )
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_until_signalled(agent.run()))
    if options.json:
        sys.stdout.write(json.dumps({"id": config.id, "updates": agent.num_updates}) + "\n")
    return 0


async def _until_signalled(work: Coroutine[object, object, None]) -> None:
    """Awaits the work; SIGINT and SIGTERM cancel it, so that links are closed in order."""
    task = asyncio.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task
