"""Power sensors by name: one sensor a file, a table, and the entry-point group `edgekit.power_sensors`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

from edgekit.core.errors import BadInput, one_line
from edgekit.core.registry import pick
from edgekit.runtime.command import CommandRunner
from edgekit.runtime.power.hwmon import open_hwmon
from edgekit.runtime.power.ina3221 import open_ina3221
from edgekit.runtime.power.meter import EnergyMeter, EnergyWindow
from edgekit.runtime.power.none import open_none
from edgekit.runtime.power.rapl import open_rapl
from edgekit.runtime.power.reading import PowerSensor, Reading, SensorFactory
from edgekit.runtime.power.rpi5_pmic import open_rpi5_pmic

__all__ = [
    "SENSORS",
    "EnergyMeter",
    "EnergyWindow",
    "PowerSensor",
    "Reading",
    "SensorFactory",
    "known_sensors",
    "open_sensor",
]

ENTRY_POINTS = "edgekit.power_sensors"
SENSORS: Mapping[str, SensorFactory] = {
    "hwmon": open_hwmon,
    "ina3221": open_ina3221,
    "none": open_none,
    "rapl": open_rapl,
    "rpi5_pmic": open_rpi5_pmic,
}


def known_sensors() -> tuple[str, ...]:
    """The names `open_sensor` takes: ours, and those that installed packages bring."""
    return tuple(sorted({*SENSORS, *(entry.name for entry in entry_points(group=ENTRY_POINTS))}))


def open_sensor(name: str, root: Path, run: CommandRunner) -> PowerSensor:
    """The sensor called `name`, or `name:selector` (see hwmon). Opening reads nothing and cannot fail for hardware.

    Raises BadInput: an unknown name lists the known ones; a package's sensor that cannot be loaded says so.
    """
    kind, _, selector = name.partition(":")
    if kind in SENSORS:
        return SENSORS[kind](root, run, selector)
    return _outside(kind)(root, run, selector)


def _outside(name: str) -> SensorFactory:
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    entry = pick("power sensor", {**dict.fromkeys(SENSORS), **found}, name)
    if entry is None:
        raise BadInput(f"power sensor {name!r} is built in")
    try:
        factory: SensorFactory = entry.load()
    except Exception as err:
        raise BadInput(f"power sensor {name}: {entry.value} cannot be loaded: {one_line(err)}") from err
    return factory
