# SPDX-License-Identifier: Apache-2.0
"""Places at which the coordinator may be killed without harm, by name, and a way to be killed there.

`Run` and `Coordinator` say the name of each place when they pass it. In a test the hook raises; in a real process the environment
variable `FEDMOTE_DIE_AT="PLACE#N"` makes it send itself SIGKILL at the n-th passing, which nothing can catch: whatever is not
on the disk by then is lost, as with a power cut of the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Final

from fedmote.errors import ConfigError

VARIABLE: Final = "FEDMOTE_DIE_AT"


def _around(*actions: str) -> tuple[str, ...]:
    return tuple(f"{when} {action}" for action in actions for when in ("before", "after"))


# By what the coordinator is at; a run of one round with a participant passes each of them.
PLACES: Final[dict[str, tuple[str, ...]]] = {
    "beginning": ("first-checkpoint-written", "run-begun"),
    "selection": _around("OpenRound", "SendWait"),
    "configuration": _around("JournalPlan", "SendPlan"),
    "reporting": (*_around("Pull"), "update-decoded", "blob-stored", *_around("JournalUpdate", "SendAck")),
    "merging": (*_around("CloseRound"), "round-closed", "merge-computed"),
    "committing": ("checkpoint-written", "round-committed", "checkpoint-shown", *_around("Stop")),
}
# Passed in rounds alone in which updates are summed under masks.
MASKED_PLACES: Final = _around("JournalMaskBlob", "EndMaskStep")
ALL_PLACES: Final = tuple(place for places in PLACES.values() for place in places)


def die_at(environment: Mapping[str, str]) -> Callable[[str], None] | None:
    """The hook that the environment asks for; None where it asks for none.

    Raises:
        ConfigError: it names no place.
    """
    wanted = environment.get(VARIABLE)
    if not wanted:
        return None
    place, _, number = wanted.partition("#")
    places = (*ALL_PLACES, *MASKED_PLACES)
    if place not in places or not (number or "1").isdecimal():
        raise ConfigError(f"{VARIABLE}={wanted}: expected PLACE#N, a place of {', '.join(places)}")
    left = int(number or "1")

    def passing(passed: str) -> None:
        nonlocal left
        left -= passed == place
        if passed == place and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return passing
