# SPDX-License-Identifier: Apache-2.0
"""Masked sums in a real process over real links: `fedmote enroll group`, `fedmote serve`, kill -9 at each step, the verbs."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from fedmote.config import Credentials, load
from fedmote.coordinator.crash import MASKED_PLACES, VARIABLE
from fedmote.fleet import Registry
from fedmote.fleet.enrolment import Enrolment
from fedmote.store import Ledger
from fedmote.supervised import free_tcp_port
from fedmote.wire.masking import Membership
from fedmote.wire.schema import Role

from .conversion import HEAD_NAMES, tensors, write_conversion
from .masked import MaskedActor
from .test_links import MAIN, Lines, checkpoint_bytes, verb

NAMES = tuple(f"board-{number}" for number in range(1, 10))
PATIENCE_S = 90.0


def write_config(directory, name):
    port = free_tcp_port()
    path = directory / f"{name}.toml"
    path.write_text(
        f'listen = "tcp://127.0.0.1:{port}"\n'
        f'[run]\nsite = "site"\nname = "run"\nstate_directory = "{name}"\npartition_directory = "tiny"\n'
        'test_data = "tiny/test.npz"\nrounds = 1\nseed = 3\n'
        "[windows]\nselection_s = 30\nreport_s = 60\nwait_ms = 50\n"
        '[strategy]\naggregation = "mean"\n[strategy.secure_sum]\ngroup = "street"\nclip_norm = 2.0\n'
        '[security]\nregistry = "fleet"\n'
    )
    return path, f"tcp://127.0.0.1:{port}"


class Street:
    """Nine devices with keys, a group of them, and the actors that speak for them."""

    def __init__(self, directory):
        self.directory = directory
        write_conversion(directory / "tiny")
        with Registry.open(directory / "fleet", is_made=True) as registry:
            enrolment = Enrolment(registry, "site", None)
            for who in NAMES:
                enrolment.add(who, Role.DEVICE, f"cell-{who}")
            enrolment.group("street", NAMES)
            self.credentials = {who: load(Credentials, enrolment.files.credentials_file(who)) for who in NAMES}
        self.boot = 0

    def actors(self):
        self.boot += 1  # of each run: numbers of boots only rise
        made = [
            MaskedActor(
                who,
                Role.DEVICE,
                boot=self.boot,
                hello_s=0.1,
                tensors=tensors(),
                head=HEAD_NAMES,
                key=one.key_bytes,
                membership=Membership.read(one.group_key_bytes),
            )
            for who, one in self.credentials.items()
        ]
        return {actor.id: actor for actor in made}

    def serve(self, name, die_at=None):
        """The exit codes of the processes that it took, and the result of the last one."""
        return asyncio.run(asyncio.wait_for(self._serve(name, die_at), PATIENCE_S))

    async def _serve(self, name, die_at):
        path, url = write_config(self.directory, name)
        lines, codes, tasks = Lines(url=url), [], []
        try:
            while True:
                environment = {**os.environ} if die_at is None or codes else {**os.environ, VARIABLE: die_at}
                command = (sys.executable, "-c", MAIN, "serve", str(path), "--json")
                process = await asyncio.create_subprocess_exec(
                    *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
                )
                try:
                    while (line := await process.stderr.readline()) and b"listening" not in line:
                        pass
                    if not tasks:
                        tasks = [asyncio.create_task(actor.run(lines)) for actor in self.actors().values()]
                    out, _ = await process.communicate()
                finally:
                    if process.returncode is None:
                        process.kill()
                codes.append(process.returncode)
                if codes[-1] != -signal.SIGKILL:
                    return codes, json.loads(out)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in lines.ends:
                await end.close()


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    return Street(tmp_path_factory.mktemp("street"))


@pytest.fixture(scope="module")
def quiet(street):
    codes, result = street.serve("quiet")
    assert codes == [0]
    return result


def test_a_group_that_was_enrolled_merges_its_sum_in_a_real_process(street, quiet):
    assert quiet["is_complete"]
    (only,) = quiet["rounds"]
    shares = only["masked"].pop("shares")
    assert only["masked"] == {"group": "street", "members": 9, "keys": 9, "survivors": 9, "left_out": None}
    assert shares >= 6
    shown = verb("rounds", "show", "1", "--state", str(street.directory / "quiet"))
    assert "masked sum of 9 of 9 in group street" in shown.stderr
    secrets = [Membership.read(one.group_key_bytes).secret for one in street.credentials.values()]
    kept = b"".join(path.read_bytes() for path in (street.directory / "quiet").rglob("*") if path.is_file())
    assert not any(secret in kept for secret in secrets)


# Of nine members: the first keys, the last ones, the second shares; the end of either step.
KILLS = (
    ("before JournalMaskBlob", 1),
    ("after JournalMaskBlob", 9),
    ("before JournalMaskBlob", 11),
    ("before EndMaskStep", 1),
    ("after EndMaskStep", 1),
    ("before EndMaskStep", 2),
    ("after EndMaskStep", 2),
)


@pytest.mark.parametrize(("place", "number"), KILLS)
def test_kill_9_at_each_masked_step_leaves_the_same_bytes(street, quiet, place, number):
    assert place in MASKED_PLACES
    name = f"{place.replace(' ', '-').lower()}-{number}"
    codes, result = street.serve(name, f"{place}#{number}")
    assert codes == [-signal.SIGKILL, 0]
    assert result["is_complete"]
    assert checkpoint_bytes(street.directory / name) == checkpoint_bytes(street.directory / "quiet")
    with Ledger.open(street.directory / name / "ledger.sqlite", is_read_only=True) as ledger:
        assert [update.participant for update in ledger.updates(1)] == list(NAMES)
