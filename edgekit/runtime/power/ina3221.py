"""Power of an NVIDIA Jetson from its INA3221 chips, in the layouts of JetPack 4 and of JetPack 5 and 6.

VDD_IN (or POM_5V_IN) is the module's total and the others are inside it; where there is no total, the rails are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit.runtime.command import CommandRunner
from edgekit.runtime.power.hwmon import update_period_s
from edgekit.runtime.power.reading import Reading, SameRails, no_selector
from edgekit.runtime.sysfs import Unreadable, read_number, read_text

TOTALS = ("VDD_IN", "POM_5V_IN")
UNCONNECTED = "NC"


@dataclass(frozen=True)
class Channel:
    """One input of a chip: where its label stands, and the files whose product is its power."""

    label: Path
    factors: tuple[Path, ...]  # mW alone, or mV and mA
    scale: float

    def power_mw(self) -> float:
        """Raises Unreadable."""
        product = self.scale
        for factor in self.factors:
            product *= read_number(factor)
        return product


class Ina3221:
    """The total rail's power, or the sum of the rails. Chips and channels are found by label at each reading."""

    name = "ina3221"

    def __init__(self, root: Path) -> None:
        self._root = root
        self._same = SameRails()

    def read(self) -> Reading:
        try:
            rails = self._rails()
            if not rails:
                return Reading(why="no INA3221 channel under /sys/bus/i2c/drivers")
            total = next((label for label in TOTALS if label in rails), None)
            counted = {total: rails[total]} if total is not None else rails
            changed = self._same.change(counted)
            if changed is not None:
                return Reading(why=changed)
            periods = [update_period_s(channel.label.parent) for channel in counted.values()]
            known = [period for period in periods if period is not None]
            power_mw = sum(channel.power_mw() for channel in counted.values())
            return Reading(power_mw, period_s=max(known) if len(known) == len(periods) else None)
        except Unreadable as err:
            return Reading(why=str(err))

    def _rails(self) -> dict[str, Channel]:
        """Label -> channel. A channel whose label is missing might be the total or a part: then all is unknown."""
        rails: dict[str, Channel] = {}
        missing: Unreadable | None = None
        for channel in (*_jetpack4(self._root), *_jetpack5(self._root)):
            try:
                label = read_text(channel.label)
            except Unreadable as err:
                missing = err
                continue
            if label == UNCONNECTED:
                continue
            if label in rails:
                raise Unreadable(f"two INA3221 channels are labelled {label}")
            rails[label] = channel
        if missing is not None and not any(label in rails for label in TOTALS):
            raise missing
        return rails


def _jetpack4(root: Path) -> Iterator[Channel]:
    for device in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*-*/iio:device*")):
        for number in _numbers(device, "in_power[0-2]_input", "rail_name_[0-2]"):
            yield Channel(device / f"rail_name_{number}", (device / f"in_power{number}_input",), 1.0)


def _jetpack5(root: Path) -> Iterator[Channel]:
    for chip in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*-*/hwmon/hwmon*")):
        for number in _numbers(chip, "in[1-3]_input", "in[1-3]_label", "curr[1-3]_input"):
            factors = (chip / f"in{number}_input", chip / f"curr{number}_input")
            yield Channel(chip / f"in{number}_label", factors, 1e-3)


def _numbers(folder: Path, *patterns: str) -> list[str]:
    """The channels that at least one file speaks of: a missing file must not make a channel go unnoticed."""
    names = (path.name for pattern in patterns for path in folder.glob(pattern))
    return sorted({digit for name in names for digit in name if digit.isdigit()})


def open_ina3221(root: Path, run: CommandRunner, selector: str) -> Ina3221:
    """Factory of `ina3221`."""
    no_selector("ina3221", selector)
    return Ina3221(root)
