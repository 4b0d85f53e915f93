"""Energy of a stretch of time from a sensor's readings. A gap makes the energy unknown; it is never filled in."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edgekit.runtime.power.reading import PowerSensor, Reading

MIN_WINDOW_S = 1.0
MIN_UPDATES = 20
PATIENCE_S = 0.5
_IDLE_S = 120.0  # of idle time that the idle power is the mean of


@dataclass(frozen=True)
class EnergyWindow:
    """What the board drew from one close_window to the next. energy_mj None: unknown, and `why` says why.

    updates: how often the sensor itself had something new inside the window, as far as readings can tell: they changed,
    or the period passed that the sensor names. For energy per inference a window wants at least 1 s and 20 of them.
    """

    energy_mj: float | None
    seconds: float
    updates: int
    why: str | None = None


@dataclass(frozen=True)
class _Stretch:
    seconds: float
    energy_mj: float
    updated: bool


class EnergyMeter:
    """Adds a sensor's readings up: the trapezoid rule for power, differences for a counter. Safe from two threads.

    clock: seconds, never going back. The first window starts with the reading that construction takes. idle_power_mw:
    the mean while the board did nothing, lately; None until that was 1 s and 20 updates, and without a sensor.
    """

    def __init__(self, sensor: PowerSensor, clock: Callable[[], float]) -> None:
        self._sensor = sensor
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: deque[_Stretch] = deque()
        self.idle_power_mw: float | None = None
        self._missed = False
        self._last, self._last_s = sensor.read(), clock()
        self._updated_s = self._last_s
        self._begin()

    def sample(self, *, idle: bool = False) -> Reading:
        """Take one reading into the window; call it periodically. idle: the board did nothing since the last one."""
        with self._lock:
            return self._take(idle=idle)

    def close_window(self) -> EnergyWindow:
        """Take a last reading, give the window, and start the next one with that reading.

        Where a reading hangs in another thread, this one does not wait for it: the energy is unknown then, and so is
        the next window's, which holds a part of this one.
        """
        if not self._lock.acquire(timeout=PATIENCE_S):
            self._missed = True
            return EnergyWindow(None, 0.0, 0, "the power sensor does not answer")
        try:
            self._take(idle=False)
            seconds = self._last_s - self._start_s
            why = self._why if seconds > 0 else self._why or "no time has passed"
            if self._missed:
                self._missed, why = False, why or "the power sensor did not answer in time"
            window = EnergyWindow(self._energy_mj if why is None else None, seconds, self._updates, why)
            self._begin()
            return window
        finally:
            self._lock.release()

    def _begin(self) -> None:
        self._start_s = self._last_s
        self._energy_mj = 0.0
        self._updates = 0
        self._why = self._last.why or (None if self._last.known else "the sensor gave no reason")

    def _take(self, *, idle: bool) -> Reading:
        before, before_s = self._last, self._last_s
        self._last, self._last_s = self._sensor.read(), self._clock()
        seconds = self._last_s - before_s
        step = _energy_mj(before, self._last, seconds)
        updated = self._last.known and self._is_new(before)
        if updated:
            self._updates += 1
            self._updated_s = self._last_s
        if step is not None:
            self._energy_mj += step
            if idle and seconds > 0:
                self._note_idle(_Stretch(seconds, step, updated))
        elif self._why is None:
            self._why = self._last.why or "the sensor's readings do not fit together"
        return self._last

    def _is_new(self, before: Reading) -> bool:
        period = self._last.period_s
        return before != self._last or (period is not None and self._last_s - self._updated_s >= period)

    def _note_idle(self, stretch: _Stretch) -> None:
        self._idle.append(stretch)
        while sum(entry.seconds for entry in self._idle) > _IDLE_S and len(self._idle) > MIN_UPDATES:
            self._idle.popleft()
        seconds = sum(entry.seconds for entry in self._idle)
        if seconds >= MIN_WINDOW_S and sum(entry.updated for entry in self._idle) >= MIN_UPDATES:
            self.idle_power_mw = sum(entry.energy_mj for entry in self._idle) / seconds


def _energy_mj(before: Reading, after: Reading, seconds: float) -> float | None:
    if before.energy_mj is not None and after.energy_mj is not None:
        step = after.energy_mj - before.energy_mj
        return step if step >= 0 else None
    if before.power_mw is not None and after.power_mw is not None:
        return (before.power_mw + after.power_mw) / 2 * seconds
    return None
