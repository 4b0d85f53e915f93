"""Look at power and health now and then; say when throttling begins and ends. Judges no figure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edgekit.runtime.health import Health
from edgekit.runtime.power import EnergyMeter

log = logging.getLogger(__name__)
HEALTH_S = 1.0


class Monitor(threading.Thread):
    """Feeds the energy meter every `sample_s` and looks at the board's health every second or so."""

    def __init__(
        self,
        meter: EnergyMeter,
        health: Callable[[], Health],
        on_throttle: Callable[[bool, Health], None],
        sample_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_throttle: called with True when throttling begins and False when it ends, not in between."""
        super().__init__(name="monitor", daemon=True)
        self._meter = meter
        self._read_health = health
        self._on_throttle = on_throttle
        self._sample_s = sample_s
        self._clock = clock
        self._ended = threading.Event()
        self._throttled = False
        self._looked_s: float | None = None
        self.health: Health = health()

    def run(self) -> None:
        """The thread."""
        while not self._ended.wait(self._sample_s):
            try:
                self.step()
            except Exception:
                log.exception("monitor met a defect and goes on")

    def step(self) -> None:
        """One round: a sample, and a look at the health where it is time."""
        self._meter.sample()
        now = self._clock()
        if self._looked_s is None or now - self._looked_s >= HEALTH_S:
            self._looked_s = now
            self.health = self._read_health()
            throttled = bool(self.health.throttled)  # a board that does not say is not slowed down for it
            if throttled != self._throttled:
                self._throttled = throttled
                self._on_throttle(throttled, self.health)

    def stop(self) -> None:
        """End the thread soon."""
        self._ended.set()
