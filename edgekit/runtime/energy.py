"""Energy of a piece of work on this machine: the energy of a window over what was done in it. Subtracts nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure
from edgekit.core.profile import Power
from edgekit.runtime.data import Data
from edgekit.runtime.policy import StageCosts
from edgekit.runtime.power import EnergyMeter, EnergyWindow, PowerSensor
from edgekit.runtime.power.meter import MIN_UPDATES, MIN_WINDOW_S
from edgekit.runtime.session import Clock, Session

T = TypeVar("T")
SAMPLE_S = 0.03
_WINDOWS_S = (2.5, 10.0)  # the longer one where a slow sensor gave too few figures in the first


@dataclass(frozen=True)
class EnergyPer:
    """mJ of one unit of work. None: unknown, and `why` says why."""

    mj: float | None
    why: str | None = None


def metered(
    sensor: PowerSensor, work: Callable[[], T], clock: Clock = time.monotonic
) -> tuple[T, EnergyWindow]:
    """Do `work` while the sensor is read every 30 ms; its result and the window's energy."""
    meter, done = EnergyMeter(sensor, clock), threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            meter.sample()

    thread = threading.Thread(target=sample, name="energy", daemon=True)
    thread.start()
    try:
        result = work()
    finally:
        done.set()
        thread.join()
    return result, meter.close_window()


def per_unit(window: EnergyWindow, units: float) -> EnergyPer:
    """A window's energy over what was done in it; unknown for a window too short to mean anything."""
    if window.energy_mj is None:
        return EnergyPer(None, window.why)
    if window.seconds < MIN_WINDOW_S or window.updates < MIN_UPDATES:
        return EnergyPer(
            None,
            f"{window.seconds:.1f} s with {window.updates} sensor updates is too short: "
            f"{MIN_WINDOW_S:g} s and {MIN_UPDATES} are needed",
        )
    return EnergyPer(window.energy_mj / units if units else None, None if units else "nothing was done")


def estimated(power: Power, seconds: float, busy_s: float, profile: str) -> Figure:
    """Energy of a stretch of time on a board without a sensor, in mJ, from its profile; unknown without its figures.

    The board is taken to draw `idle_w`, and `busy_w` for as long as it was inside inferences.
    """
    idle_w, busy_w = power.idle_w.value, power.busy_w.value
    if idle_w is None or busy_w is None:
        return Figure(None, "mJ")
    busy_s = min(busy_s, seconds)
    return Figure(1e3 * (idle_w * (seconds - busy_s) + busy_w * busy_s), "mJ", "estimated", on=profile)


def with_energy(costs: StageCosts, session: Session, data: Data, sensor: PowerSensor) -> StageCosts:
    """`costs` with mJ per ms of inference, from running the whole network for 2.5 seconds, or 10.

    Raises BadInput where the sensor gives no figure.
    """

    def work(seconds: float) -> float:
        busy_ms, row, end = 0.0, 0, time.monotonic() + seconds
        while time.monotonic() < end:
            *_, (_, elapsed) = session.stages(data.inputs(row % data.count))
            busy_ms, row = busy_ms + elapsed, row + 1
        return busy_ms

    for seconds in _WINDOWS_S:
        busy_ms, window = metered(sensor, partial(work, seconds))
        energy = per_unit(window, busy_ms)
        if energy.mj is not None or window.energy_mj is None:
            break
    if energy.mj is None:
        raise BadInput(
            f"a budget in mJ needs a power sensor that can be read: {energy.why}; use ms, MMAC or %"
        )
    return replace(costs, mj_per_ms=energy.mj)
