"""Look at power and health now and then; say when something begins that slows the board, and when it is over.

A sensor that hangs costs its own figures: everything is read in this thread, and nobody waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgekit.runtime.health import CONDITIONS, HAS_HAPPENED, OVER_CURRENT, Health
from edgekit.runtime.power import EnergyMeter

log = logging.getLogger(__name__)
HEALTH_S = 2.0
CLEAR_S = 6.0  # a condition is over when it was not seen for so long: one that comes and goes is one episode
UNKNOWN = Health(None, None, None, (), None)


@dataclass(frozen=True)
class Change:
    """What is different since the last look. words: condition -> whether it began (True) or is over.

    slowed: whether any condition holds. turned: that is new.
    """

    words: Mapping[str, bool]
    slowed: bool
    turned: bool
    health: Health


@dataclass
class Episodes:
    """Which conditions hold. A short one between two looks is one as well: its has-happened bit tells."""

    seen_s: dict[str, float] = field(default_factory=dict)  # condition -> when it was last seen
    before: Health | None = None

    def look(self, health: Health, now: float) -> Change | None:
        """Take another look into account. None: nothing began and nothing is over."""
        words: dict[str, bool] = {}
        slowed = bool(self.seen_s)
        for word in CONDITIONS:
            if self._holds(word, health):
                if word not in self.seen_s:
                    words[word] = True
                self.seen_s[word] = now
            elif word in self.seen_s and now - self.seen_s[word] >= CLEAR_S:
                words[word] = False
                del self.seen_s[word]
        self.before = health
        holds = bool(self.seen_s)
        return Change(words, holds, holds != slowed, health) if words else None

    def _holds(self, word: str, health: Health) -> bool:
        if word in health.flags:
            return True
        if self.before is None:
            return False  # what happened before this start is in the flags, and no news
        if word == OVER_CURRENT:  # a counter: what it says is how often, not that it holds
            then, now = self.before.over_current_events, health.over_current_events
            return then is not None and now is not None and now > then
        happened = f"{word}{HAS_HAPPENED}"
        known = self.before.throttled is not None
        return known and happened in health.flags and happened not in self.before.flags


class Monitor(threading.Thread):
    """Feeds the energy meter every `sample_s` and looks at the board's health every other second."""

    def __init__(
        self,
        meter: EnergyMeter,
        health: Callable[[], Health],
        on_change: Callable[[Change], None],
        sample_s: float,
        clock: Callable[[], float] = time.monotonic,
        activity: Callable[[], int] = lambda: 0,
    ) -> None:
        """on_change: called when a condition begins or is over, not in between.

        activity: a number that is odd while a request is being answered, and grows with each; what the board draws
        while it stands still is its idle power.
        """
        super().__init__(name="monitor", daemon=True)
        self._meter = meter
        self._read_health = health
        self._on_change = on_change
        self.sample_s = sample_s
        self._clock = clock
        self._activity = activity
        self._was_active = -1
        self._ended = threading.Event()
        self._episodes = Episodes()
        self._looked_s: float | None = None
        self.health: Health = UNKNOWN

    def run(self) -> None:
        """The thread."""
        while not self._ended.is_set():
            try:
                self.step()
            except Exception:
                log.exception("monitor met a defect and goes on")
            self._ended.wait(self.sample_s)

    def step(self) -> None:
        """One round: a sample, and a look at the health where it is time."""
        active = self._activity()
        self._meter.sample(idle=active == self._was_active and active % 2 == 0)
        self._was_active = self._activity()
        now = self._clock()
        if self._looked_s is None or now - self._looked_s >= HEALTH_S:
            self._looked_s = now
            self.health = self._read_health()
            change = self._episodes.look(self.health, self._clock())
            if change is not None:
                self._on_change(change)

    def stop(self) -> None:
        """End the thread soon."""
        self._ended.set()
