"""Energy of x86 processor packages from Linux's powercap counters (Intel RAPL; AMD uses the same names).

Counts the packages only: their parts are inside them, `psys` contains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.runtime.command import CommandRunner
from edgekit.runtime.power.reading import Reading, SameRails, no_selector
from edgekit.runtime.sysfs import Unreadable, read_number, read_text


@dataclass
class _Counter:
    last_uj: float
    wraps_uj: float = 0.0


class Rapl:
    """Sum of the `package-*` zones' counters, each unwrapped at its own max_energy_range_uj."""

    name = "rapl"

    def __init__(self, root: Path) -> None:
        self._folder = root / "sys/class/powercap"
        self._counters: dict[str, _Counter] = {}
        self._same = SameRails()

    def read(self) -> Reading:
        try:
            zones = self._zones()
            if not zones and not self._counters:
                return Reading(why=f"no package zone in {self._folder}")
            raw = {name: read_number(zone / "energy_uj") for name, zone in zones.items()}
            changed = self._same.change(raw)
            if changed is not None:
                return Reading(why=changed)
            for name, value in raw.items():
                self._unwrap(name, value, zones[name])
        except Unreadable as err:
            return Reading(why=str(err))
        return Reading(energy_mj=sum(c.wraps_uj + c.last_uj for c in self._counters.values()) / 1e3)

    def _zones(self) -> dict[str, Path]:
        """Package name -> folder. Raises Unreadable where a zone's name is missing: it might be a package."""
        outer = (zone for zone in sorted(self._folder.glob("intel-rapl:*")) if zone.name.count(":") == 1)
        named = {read_text(zone / "name"): zone for zone in outer}
        return {name: zone for name, zone in named.items() if name.startswith("package-")}

    def _unwrap(self, name: str, value: float, zone: Path) -> None:
        counter = self._counters.setdefault(name, _Counter(value))
        if value < counter.last_uj:
            counter.wraps_uj += read_number(zone / "max_energy_range_uj")
        counter.last_uj = value


def open_rapl(root: Path, run: CommandRunner, selector: str) -> Rapl:
    """Factory of `rapl`."""
    no_selector("rapl", selector)
    return Rapl(root)
