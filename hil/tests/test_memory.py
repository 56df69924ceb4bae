# SPDX-License-Identifier: Apache-2.0
"""What a whole coordinator takes while many updates are offered to it at once (security target S5)."""

import time

import numpy as np
import pytest

from fedmote.tensors import dump_safetensors, load_safetensors
from fedmote.transport.broker import find_mosquitto
from fedmote.wire.schema import Role
from fedmote_hil.faults.crowd import Background
from fedmote_hil.faults.member import Conduct, Member
from fedmote_hil.faults.site import SITE, Site

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed; on Debian: apt install mosquitto"),
]

COUNT, LIMIT = 24, 8
PADDING = 20_000  # units of a layer: an update of three megabytes
HELLO = {"max_body": 8192}  # the largest that a coordinator asks for
TIMEOUT_S = 120.0


class Offering(Member):
    """A partner that offers its update, if it has one, as soon as it has a plan, whatever the model is."""

    async def _begin(self, plan):
        if self._update is None and self.conduct.blob is not None:
            self.plan = plan
            blob = self.conduct.blob(plan)
            self._update, self._report_at = (self.report(plan, blob), blob), 0.0


def offering(site, number, blob):
    host, tcp_port = site.address().split(":")
    name = f"partner-{number}"
    conduct = Conduct(hello=HELLO, blob=None if blob is None else lambda plan: blob)
    return Offering((host, int(tcp_port)), SITE, name, site.broker.password(name), conduct, Role.PARTNER, "partner")


def update_of(tensors, seed):
    generator = np.random.default_rng(seed)
    return dump_safetensors({name: generator.normal(0, 0.01, one.shape).astype(np.float32) for name, one in tensors.items()})


def peak_bytes(site, name, updates, limit):
    """Most memory of a coordinator until all these updates count; one participant never reports, so that nothing is merged."""
    windows = {"selection_s": 5.0, "report_s": 600.0}
    config = site.configure(name, 1, windows=windows, strategy={"preset": "fedavg"}, run={"max_pulls_at_once": limit})
    with Background() as background:
        for number, blob in enumerate([*updates, None]):
            background.begin(offering(site, number, blob).run())
        serving = site.serve(config)
        deadline = time.monotonic() + TIMEOUT_S
        while site.num_counted(name, 1) < len(updates):
            assert serving.is_running and time.monotonic() < deadline, serving.quote()
            time.sleep(0.05)
        peak = serving.peak_rss_bytes
        serving.kill9()
    return peak


def test_memory_of_a_coordinator_is_bounded_by_the_largest_update_times_the_pulls_at_once(tmp_path):
    partners = {number: f"partner-{number}" for number in range(COUNT + 1)}
    with Site(tmp_path, COUNT + 1, partners=partners, padding=PADDING) as site:
        tensors = load_safetensors((site.model.partition / "checkpoint.safetensors").read_bytes())
        updates = [update_of(tensors, seed) for seed in range(COUNT)]
        size = len(updates[0])
        base = peak_bytes(site, "one", updates[:1], LIMIT)
        bounded = peak_bytes(site, "bounded", updates, LIMIT) - base
        unbounded = peak_bytes(site, "all-at-once", updates, COUNT) - base
    print(f"update {size}, one: {base}, {LIMIT} of {COUNT} at once: +{bounded}, all at once: +{unbounded} bytes")
    assert bounded <= 1.2 * LIMIT * size
    assert unbounded > 1.2 * LIMIT * size  # it is the limit that keeps it so low
