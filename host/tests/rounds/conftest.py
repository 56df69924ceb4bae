# SPDX-License-Identifier: Apache-2.0
"""A fleet on paper: a machine, a clock that is passed in, and participants that are one line each."""

from dataclasses import dataclass, field

import pytest

from fedmote.config import StrategyConfig, WindowsConfig
from fedmote.rounds import RoundMachine, Rules, Stage, Standing
from fedmote.rounds.events import BlobArrived, CloseRound, Reported, SaidHello, SendPlan, TookPlan
from fedmote.strategies import Cell, load_strategy
from fedmote.wire.schema import Role

RUN = b"run-0001"
CELLS = (Cell("home-1", ("board-1", "board-2"), "phone-1"), Cell("home-2", ("board-3",), "phone-2"))


@dataclass
class Fleet:
    """A machine and the actions it asked for; `now` moves only when a test moves it."""

    machine: RoundMachine
    now: float = 0.0
    log: list = field(default_factory=list)

    def give(self, event):
        actions = self.machine.handle(event, self.now)
        self.log += actions
        return actions

    def wait(self, seconds):
        self.now += seconds
        actions = self.machine.tick(self.now)
        self.log += actions
        return actions

    def role(self, who):
        return Role.PARTNER if who.startswith("phone") else Role.DEVICE

    def hello(self, *names, boot=1):
        return [action for who in names for action in self.give(SaidHello(who, self.role(who), boot))]

    def report(self, who, **changes):
        plan = self.machine.plan
        number, version = (plan.round, plan.version) if plan else (1, 0)
        fields = {"id": who, "handle": 7, "size": 100, "crc": len(who), "run": RUN, "round": number, "version": version}
        return self.give(Reported(**({"num_examples": 5} | fields | changes)))

    def arrive(self, who, handle=7):
        return self.give(BlobArrived(who, handle, content=f"hash-of-{who}"))

    def train(self, *names):
        """Take the plan, train, report, send."""
        actions = []
        for who in names:
            self.give(TookPlan(who))
            self.report(who)
            actions += self.arrive(who)
        return actions

    def join(self, *names, boot=1):
        """Say hello until everybody named has a plan."""
        self.hello(*names, boot=boot)
        return [action for action in self.hello(*names, boot=boot) if isinstance(action, SendPlan)]

    def round(self, *names):
        """A round of these participants, merged."""
        self.join(*names)
        assert isinstance(self.train(*names)[-1], CloseRound)
        actions = self.machine.committed(self.machine.version + 1, self.now)
        self.log += actions
        return actions

    def disorder(self, generator, random_event, most):
        """Give random events, merge what is to be merged, and wait now and then, until the run is done: it must be by then."""
        for _ in range(most):
            if self.machine.stage is Stage.DONE:
                break
            if self.machine.stage is Stage.CLOSING:
                self.log += self.machine.committed(self.machine.version + 1, self.now)
                continue
            self.give(random_event(generator, self.machine))
            if generator.random() < 0.1:
                self.wait(generator.uniform(0, 4))
            assert self.machine.words(self.now)
        assert self.machine.stage is Stage.DONE, "every run ends"


@pytest.fixture
def fleet():
    def make(cells=CELLS, goal=3, strategy=None, standing=None, masked=None, **windows):
        values = {"selection_s": 10.0, "report_s": 60.0, "min_fraction": 0.5, "wait_ms": 500} | windows
        values = {"grace_s": 0.0, "after_failures": "end"} | values
        chosen = load_strategy(strategy or StrategyConfig(), cells)
        rules = Rules(RUN, goal, 42, cells, WindowsConfig(**values), chosen, lambda role: 1000, masked=masked)
        return Fleet(RoundMachine(rules, standing or Standing(), 0.0))

    return make
