# SPDX-License-Identifier: Apache-2.0
"""`fedmote new`: a directory from which a coordinator, a partner and a device start; nothing is fetched from anywhere."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from fedmote.config import CellConfig, CoordinatorConfig, Credentials, PartnerConfig, PartnerCredentials, load
from fedmote.config.table import require_identifier
from fedmote.errors import ConfigError
from fedmote.fleet.broker_files import Binding, BrokerFiles, write_configuration
from fedmote.fleet.enrolment import Enrolment
from fedmote.fleet.registry import Registry
from fedmote.package.signature import SigningKey
from fedmote.private_files import make_private_directory

SUMMARY = "write configurations, credentials, a small model and data for one cell into a new directory"
EXAMPLES = """examples:
  fedmote new my-cell                             it says what to start there
  fedmote new my-cell --site barn --tcp-port 1884  another fleet beside it, with a broker of its own
"""

CELL = CellConfig("desk", ("device-1",), "partner-1")
# The boards that packages are made for: a process of any machine, and the reference board.
BOARDS = ("posix", "stm32f405")

_COORDINATOR = """\
# The coordinator: fedmote serve coordinator.toml
# `fedmote config show coordinator.toml` prints every key with its value and where it came from.

[run]
site = "{site}"
name = "first-run"
state_directory = "state"        # ledger, checkpoints, blobs; the run goes on from here after a stop
partition_directory = "model"    # what `fedmote convert` wrote
test_data = "data/test.npz"      # accuracy after every round
rounds = 10

[broker]
url = "{url}"
username = "coordinator"
password_file = "broker/credentials/coordinator.password"

[strategy]
preset = "centaur"
form = "simultaneous"
learning_rate = {learning_rate}
partner_learning_rate = {partner_learning_rate}
partner_momentum = {partner_momentum}
is_sending_samples = true        # devices may send selected samples to their own partner; off unless written

[windows]
report_s = 120.0                 # deadline of a round

[security]
registry = "fleet"               # the population and its keys: fedmote enroll list | add | rotate | revoke
broker_files = "broker"          # accounts and access lists, which `fedmote enroll` keeps
signing_key = "signing.key"      # devices that were enrolled with it take only packages that it signed
"""

_PARTNER = """\
# The partner of cell {cell}: fedmote partner partner.toml

id = "{partner}"
site = "{site}"
model = "{model}"                # function that returns the torch module
state_directory = "partner-state"
credentials_file = "broker/credentials/{partner}.keys.toml"

[broker]
url = "{url}"
username = "{partner}"
password_file = "broker/credentials/{partner}.password"

[[devices]]
id = "{device}"
link = "mqtt"                    # or "serial", with port and credentials_file
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the verb."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="new, or empty")
    parser.add_argument("--site", default="home", help="name of the fleet (default: home)")
    parser.add_argument("--tcp-port", type=int, default=1883, metavar="N", help="where the broker listens (default: 1883)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """Writes everything into a directory beside, checks it, and puts it in place: a failure leaves nothing."""
    target: Path = options.directory.absolute()
    require_identifier("--site", options.site)
    if not 1 <= options.tcp_port <= 65_535:
        raise ConfigError(f"--tcp-port {options.tcp_port}: 1 to 65535 is expected")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is not empty; a new directory is expected")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staging:
            model = _write_model_and_data(Path(staging) / "work", Path(staging) / "made")
            if target.exists():
                target.rmdir()
            (Path(staging) / "made").replace(target)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror})") from error
    files = _write_configuration(target, options.site, options.tcp_port, model)
    _print(target, files, options.json)
    return 0


def _write_model_and_data(work: Path, made: Path) -> str:
    """A digits model, pre-trained on half of the classes, converted; data of one device and a test set.

    Returns the name of the model's function.
    """
    try:
        from fedmote.lab.demo.data import DIGITS, load, split
        from fedmote.lab.demo.fleet import Fleet
        from fedmote.lab.demo.prepare import prepare
        from fedmote.lab.demo.settings import DemoSettings
        from fedmote.package.boards import Board
    except ModuleNotFoundError as error:
        raise ConfigError(f"the example model needs {error.name}: pip install 'fedmote[demo]'") from error
    sys.stderr.write("training and converting a small model of handwritten digits\n")
    data, settings = load(DIGITS), DemoSettings()
    limit = min(Board.load(board).max_samples for board in BOARDS)
    parts = split(data, settings.split, settings.seed, limit)
    with Fleet(work) as fleet:
        materials = prepare(data, parts, settings, BOARDS, work, fleet.run)
    (made / "data").mkdir(parents=True)
    materials.partition.replace(made / "model")
    shutil.move(materials.test, made / "data" / "test.npz")
    shutil.move(materials.devices["a"], made / "data" / f"{CELL.devices[0]}.npz")
    return materials.model.spec


def _write_configuration(target: Path, site: str, tcp_port: int, model: str) -> BrokerFiles:
    from fedmote.lab.demo.settings import FederationSettings

    federation = FederationSettings()
    files = _enrol(target, site, tcp_port)
    names = {
        "site": site,
        "url": files.url,
        "cell": CELL.name,
        "device": CELL.devices[0],
        "partner": CELL.partner,
        "model": model,
        # Chosen by simulation for this model and these data, see there.
        "learning_rate": federation.learning_rate,
        "partner_learning_rate": federation.partner_learning_rate,
        "partner_momentum": federation.partner_momentum,
    }
    for name, template in (("coordinator.toml", _COORDINATOR), ("partner.toml", _PARTNER)):
        (target / name).write_text(template.format(**names), encoding="utf-8")
    # What we wrote is read as the commands will read it.
    load(CoordinatorConfig, target / "coordinator.toml")
    load(PartnerConfig, target / "partner.toml")
    load(Credentials, files.credentials_file(CELL.devices[0]))
    load(PartnerCredentials, files.keys_file(str(CELL.partner)))
    return files


def _enrol(target: Path, site: str, tcp_port: int) -> BrokerFiles:
    """Registry, broker and credentials of the cell."""
    binding = Binding(tcp_port=tcp_port)
    files = BrokerFiles((target / "broker").resolve(), site, binding.url)
    make_private_directory(files.credentials)
    write_configuration(files, binding)
    key = SigningKey.make(target / "signing.key")
    with Registry.open(target / "fleet", is_made=True) as registry:
        Enrolment(registry, site, files.directory, verify_key=key.verify_key).add_cells([CELL])
    return files


def _print(target: Path, files: BrokerFiles, is_json: bool) -> None:
    device = CELL.devices[0]
    commands = [
        "fedmote broker run broker",
        "fedmote serve coordinator.toml",
        "fedmote partner partner.toml",
        f"fedmote device --board posix --id {device} --data data/{device}.npz --send-samples "
        f"--credentials broker/credentials/{device}.toml --broker {files.url}",
    ]
    if is_json:
        sys.stdout.write(
            json.dumps({"directory": str(target), "site": files.site, "broker": files.url, "start": commands}) + "\n"
        )
        return
    sys.stdout.write(f"{target} is ready. In it, each in a terminal of its own:\n\n" + "".join(f"  {one}\n" for one in commands))
