# SPDX-License-Identifier: Apache-2.0
"""When participants come back: spread over time, and not too often after resets.

A fleet that is told "come back in a second" comes back in one second, all of it: after a merge, after the broker's restart, for
ever. So the time grows with the fleet, and each participant gets a share of it that is drawn from the run's seed, its name and
how often it was told: the same events give the same times.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque

from fedmote.config import WindowsConfig

LONGEST_WAIT_S = 3600.0
MINUTE_S = 60.0
# No board starts twice within the first time: boots that are heard so close together waited at a broker or a partner, and are
# one reset. The second one is how long that may go on: it is no way around the limit.
TOGETHER_S = 0.1
BACKLOG_S = 1.0


class Pace:
    """The times that participants with nothing to do are told.

    Args:
        windows: of the run.
        seed: of the run.
        population: participants of the fleet.
    """

    def __init__(self, windows: WindowsConfig, seed: int, population: int) -> None:
        self._seed = seed
        self._told: Counter[str] = Counter()
        # Whoever waits for a round to open has its plan only afterwards: the wait must leave time for the round.
        crowd_s = min(population / windows.max_hellos_per_s, windows.report_s / 4)
        self.spread_s = max(windows.wait_ms / 1000, crowd_s)

    def wait_ms(self, who: str, not_before_s: float = 0.0) -> int:
        """Milliseconds until a participant shall say hello again: `not_before_s`, and half of the spread to one and a half."""
        self._told[who] += 1
        text = f"{self._seed}/{who}/{self._told[who]}".encode()
        draw = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little") / 2**32
        wait_s = min(LONGEST_WAIT_S, max(0.0, not_before_s)) + self.spread_s * (0.5 + draw)
        return max(1, round(1000 * wait_s))


class Resets:
    """Who was reset how often: a part that browns out again and again must not keep everybody busy."""

    def __init__(self, max_per_minute: int) -> None:
        self._max_per_minute = max_per_minute
        self._boots: dict[str, int] = {}
        self._accepted: dict[str, deque[float]] = {}
        self._heard: dict[str, tuple[float, float]] = {}  # the first and the last boot of those that came together
        self._together: set[str] = set()

    def remember(self, who: str, boot: int) -> None:
        """The boot that a participant had before the coordinator's own restart."""
        self._boots[who] = boot

    def is_counted_already(self, who: str) -> bool:
        """Whether the last hello was that of a boot which came together with the one before it."""
        return who in self._together

    def quarantine_s(self, who: str, boot: int, now: float) -> float:
        """Take a hello: 0 where the participant may take part, else the seconds until it may."""
        self._together.discard(who)
        known = self._boots.get(who)
        if known == boot:
            return 0.0
        times = self._accepted.setdefault(who, deque())
        while times and times[0] <= now - MINUTE_S:
            times.popleft()
        began, last = self._heard.get(who, (-math.inf, -math.inf))
        if now - last < TOGETHER_S and now - began < BACKLOG_S:
            self._together.add(who)
        elif known is not None and len(times) >= self._max_per_minute:
            return times[0] + MINUTE_S - now
        else:
            began = now
            times.extend([now] if known is not None else [])
        self._boots[who], self._heard[who] = boot, (began, now)
        return 0.0
