"""How the board is: temperature, throttling, supply voltage, free memory. What it does not say is None, never fine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.core.errors import WorldFailed
from edgekit.runtime.command import CommandRunner
from edgekit.runtime.sysfs import number_or_none, text_or_none

# Raspberry Pi firmware, bits of get_throttled: now, and 16 bits higher "has happened since boot".
_BITS = {0: "under-voltage", 1: "frequency-capped", 2: "throttled", 3: "soft-temperature-limit"}
_SLOWED = 0b1110
_HAPPENED = 16
HAS_HAPPENED = "-has-happened"
OVER_CURRENT = "over-current"
CONDITIONS = (*_BITS.values(), OVER_CURRENT)
"""What slows a board down, or is about to: the firmware and the power chip cut the clock by themselves."""
_GET_THROTTLED = (
    "sys/devices/platform/*/*firmware/get_throttled",
    "sys/devices/platform/*firmware/get_throttled",
)
# A thermal zone counts when its type begins like this. Jetson's PMIC-Die reads 100 degrees whatever happens.
_CPU_ZONES = ("cpu", "soc", "tj", "x86_pkg")


@dataclass(frozen=True)
class Health:
    """One look at the board; None: the board does not say.

    throttled, under_voltage: now. flags: sorted words, those of now and those with `-has-happened` since boot.
    over_current_events: Jetson's over-current counters added up, since boot.
    """

    temperature_c: float | None
    throttled: bool | None
    under_voltage: bool | None
    flags: tuple[str, ...]
    memory_available_mb: float | None
    over_current_events: int | None = None


def read_health(root: Path, run: CommandRunner) -> Health:
    """One look at the board under `root`. Never raises for what hardware or permissions do."""
    bits = _throttle_bits(root, run)
    flags: set[str] = set()
    throttled = under_voltage = None
    if bits is not None:
        throttled = bool(bits & _SLOWED)
        under_voltage = bool(bits & 1)
        flags |= {word for bit, word in _BITS.items() if bits >> bit & 1}
        flags |= {f"{word}{HAS_HAPPENED}" for bit, word in _BITS.items() if bits >> (bit + _HAPPENED) & 1}
    alarm = _chip_number(root, "rpi_volt", "in0_lcrit_alarm")
    if alarm is not None:
        under_voltage = bool(under_voltage) or alarm != 0
        flags |= {"under-voltage"} if alarm else set()
    events = _over_current_events(root)
    if events:
        flags.add(f"{OVER_CURRENT}{HAS_HAPPENED}")
    return Health(
        temperature_c=_temperature_c(root),
        throttled=throttled,
        under_voltage=under_voltage,
        flags=tuple(sorted(flags)),
        memory_available_mb=_memory_available_mb(root),
        over_current_events=events,
    )


def _throttle_bits(root: Path, run: CommandRunner) -> int | None:
    for pattern in _GET_THROTTLED:
        for path in sorted(root.glob(pattern)):
            bits = _hexadecimal(text_or_none(path))
            if bits is not None:
                return bits
    try:
        return _hexadecimal(run(("vcgencmd", "get_throttled")).strip().removeprefix("throttled="))
    except WorldFailed:
        return None


def _hexadecimal(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None


def _chips(root: Path, name: str) -> list[Path]:
    return [
        chip for chip in sorted(root.glob("sys/class/hwmon/hwmon*")) if text_or_none(chip / "name") == name
    ]


def _chip_number(root: Path, chip_name: str, file: str) -> float | None:
    numbers = (number_or_none(chip / file) for chip in _chips(root, chip_name))
    return next((number for number in numbers if number is not None), None)


def _over_current_events(root: Path) -> int | None:
    counts = [
        number_or_none(path)
        for chip in _chips(root, "soctherm_oc")
        for path in sorted(chip.glob("oc[1-9]_event_cnt"))
    ]
    known = [int(count) for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _temperature_c(root: Path) -> float | None:
    zones = sorted(root.glob("sys/class/thermal/thermal_zone*"))
    kinds = {zone: (text_or_none(zone / "type") or "").lower() for zone in zones}
    of_cpu = [zone for zone, kind in kinds.items() if kind.startswith(_CPU_ZONES)]
    untyped = [zone for zone, kind in kinds.items() if not kind and zone.name == "thermal_zone0"]
    readings = (number_or_none(zone / "temp") for zone in of_cpu or untyped)
    known = [value / 1e3 for value in readings if value is not None]
    return max(known) if known else _xadc_c(root)


def _xadc_c(root: Path) -> float | None:
    """Zynq's own converter: m°C = (raw + offset) * scale."""
    for device in sorted(root.glob("sys/bus/iio/devices/iio:device*")):
        if text_or_none(device / "name") not in {"xadc", "ams"}:
            continue
        raw, offset, scale = (
            number_or_none(device / f"in_temp0_{part}") for part in ("raw", "offset", "scale")
        )
        if raw is not None and offset is not None and scale is not None:
            return (raw + offset) * scale / 1e3
    return None


def _memory_available_mb(root: Path) -> float | None:
    for line in (text_or_none(root / "proc/meminfo") or "").splitlines():
        key, _, rest = line.partition(":")
        amount = rest.split()
        if key == "MemAvailable" and amount and amount[0].isdigit():
            return int(amount[0]) / 1024
    return None
