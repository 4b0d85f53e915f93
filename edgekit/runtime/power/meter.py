"""Energy of a stretch of time from a sensor's readings. A gap makes the energy unknown; it is never filled in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgekit.runtime.power.reading import PowerSensor, Reading


@dataclass(frozen=True)
class EnergyWindow:
    """What the board drew from one close_window to the next. energy_mj None: unknown, and `why` says why.

    updates: readings with a value inside the window. For energy per inference a window wants at least 1 s and 20.
    """

    energy_mj: float | None
    seconds: float
    updates: int
    why: str | None = None


class EnergyMeter:
    """Adds a sensor's readings up: the trapezoid rule for power, differences for a counter. Safe from two threads.

    clock: seconds, never going back. The first window starts with the reading that construction takes.
    """

    def __init__(self, sensor: PowerSensor, clock: Callable[[], float]) -> None:
        self._sensor = sensor
        self._clock = clock
        self._lock = threading.Lock()
        self._last, self._last_s = sensor.read(), clock()
        self._begin()

    def sample(self) -> Reading:
        """Take one reading into the window; call it periodically."""
        with self._lock:
            return self._take()

    def close_window(self) -> EnergyWindow:
        """Take a last reading, give the window, and start the next one with that reading."""
        with self._lock:
            self._take()
            seconds = self._last_s - self._start_s
            why = self._why if seconds > 0 else self._why or "no time has passed"
            window = EnergyWindow(self._energy_mj if why is None else None, seconds, self._updates, why)
            self._begin()
            return window

    def _begin(self) -> None:
        self._start_s = self._last_s
        self._energy_mj = 0.0
        self._updates = 0
        self._why = self._last.why or (None if self._last.known else "the sensor gave no reason")

    def _take(self) -> Reading:
        before, before_s = self._last, self._last_s
        self._last, self._last_s = self._sensor.read(), self._clock()
        step = _energy_mj(before, self._last, self._last_s - before_s)
        if self._last.known:
            self._updates += 1
        if step is not None:
            self._energy_mj += step
        elif self._why is None:
            self._why = self._last.why or "the sensor's readings do not fit together"
        return self._last


def _energy_mj(before: Reading, after: Reading, seconds: float) -> float | None:
    if before.energy_mj is not None and after.energy_mj is not None:
        step = after.energy_mj - before.energy_mj
        return step if step >= 0 else None
    if before.power_mw is not None and after.power_mw is not None:
        return (before.power_mw + after.power_mw) / 2 * seconds
    return None
