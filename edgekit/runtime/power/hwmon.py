"""Power from one hwmon chip that measures it (INA219, INA226 and the like), found by name, never by number.

The selector is a chip's name or a channel's label, with `@ADDRESS` of the bus device where several carry it:
`hwmon`, `hwmon:ina226`, `hwmon:ina226@1-0040`, `hwmon:VIN_12V`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.runtime.command import CommandRunner
from edgekit.runtime.power.reading import Reading
from edgekit.runtime.sysfs import Unreadable, number_or_none, read_number, text_or_none

PREFERRED = ("ina219", "ina220", "ina226", "ina228", "ina230", "ina231", "ina238")


@dataclass(frozen=True)
class Channel:
    """One power input: its chip's name and address on the bus, and its own label; None: it has none."""

    chip: str | None
    address: str | None
    label: str | None
    path: Path

    def matches(self, selector: str) -> bool:
        """Whether the selector means this channel."""
        what, _, address = selector.partition("@")
        return what in {self.chip, self.label} and address in {"", self.address}

    def __str__(self) -> str:
        """The selector that means this channel, as far as there is one."""
        return (self.label or self.chip or "a chip without a name") + (
            f"@{self.address}" if self.address else ""
        )


class Hwmon:
    """One channel's power, looked up again at each reading: numbers change when a driver is bound again."""

    def __init__(self, root: Path, selector: str) -> None:
        self._folder = root / "sys/class/hwmon"
        self._selector = selector
        self.name = f"hwmon:{selector}" if selector else "hwmon"

    def read(self) -> Reading:
        found = channels(self._folder)
        if self._selector:
            found = [channel for channel in found if channel.matches(self._selector)]
        else:
            found = [channel for channel in found if channel.chip in PREFERRED] or found
        if not found:
            wanted = self._selector or "a power input"
            return Reading(why=f"no hwmon chip here has {wanted}")
        if len(found) > 1:
            names = ", ".join(str(channel) for channel in found)
            return Reading(why=f"several hwmon channels fit, name one: {names}")
        if not self._selector and found[0].chip is not None:  # from now on this one and no other
            self._selector = str(found[0])
        try:
            power_mw = read_number(found[0].path) / 1e3
            return Reading(power_mw, period_s=update_period_s(found[0].path.parent))
        except Unreadable as err:
            return Reading(why=str(err))


def update_period_s(chip: Path) -> float | None:
    """What the kernel's driver says of how often the chip renews its figures (update_interval, ms)."""
    interval_ms = number_or_none(chip / "update_interval")
    return interval_ms / 1e3 if interval_ms is not None and interval_ms > 0 else None


def channels(folder: Path) -> list[Channel]:
    """The power inputs under /sys/class/hwmon. A power chip has one even where its file is missing just now."""
    found = []
    for chip in sorted(folder.glob("hwmon*")):
        name, device = text_or_none(chip / "name"), chip / "device"
        address = device.resolve().name if device.exists() else None
        expected = {chip / "power1_input"} if name in PREFERRED else set()
        for path in sorted({*chip.glob("power[0-9]*_input"), *expected}):
            label = text_or_none(path.with_name(path.name.replace("_input", "_label")))
            found.append(Channel(name, address, label, path))
    return found


def open_hwmon(root: Path, run: CommandRunner, selector: str) -> Hwmon:
    """Factory of `hwmon`."""
    return Hwmon(root, selector)
