"""Power of a Raspberry Pi 5 from its power chip, through `vcgencmd pmic_read_adc`. Leaves out what USB ports feed.

Each rail has a line for its current (`VDD_CORE_A current(7)=…A`) and one for its voltage (`VDD_CORE_V volt(15)=…V`);
their numbers do not match, so they are paired by name. EXT5V and BATT have a voltage only and do not count.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from edgekit.core.errors import WorldFailed
from edgekit.runtime.command import CommandRunner
from edgekit.runtime.power.reading import Reading, SameRails, no_selector

_LINE = re.compile(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(\S*?)[AV]?")


class Rpi5Pmic:
    """Sum of voltage times current over the rails that have both."""

    name = "rpi5_pmic"

    def __init__(self, run: CommandRunner) -> None:
        self._run = run
        self._same = SameRails()

    def read(self) -> Reading:
        try:
            text = self._run(("vcgencmd", "pmic_read_adc"))
        except WorldFailed as err:
            return Reading(why=str(err))
        amperes: dict[str, float] = {}
        volts: dict[str, float] = {}
        for line in text.splitlines():
            match = _LINE.fullmatch(line.strip())
            if match is None:
                continue
            rail, kind, number = match.groups()
            value = _finite(number)
            if value is None:
                return Reading(why=f"vcgencmd pmic_read_adc says {number!r} for {rail}_{kind}")
            (amperes if kind == "A" else volts)[rail] = value
        if not amperes:
            return Reading(why="vcgencmd pmic_read_adc names no current: not a Raspberry Pi 5?")
        unpaired = sorted(set(amperes) - set(volts))
        changed = f"{unpaired[0]} has a current and no voltage" if unpaired else self._same.change(amperes)
        if changed is not None:
            return Reading(why=changed)
        return Reading(power_mw=1e3 * sum(current * volts[rail] for rail, current in amperes.items()))


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def open_rpi5_pmic(root: Path, run: CommandRunner, selector: str) -> Rpi5Pmic:
    """Factory of `rpi5_pmic`."""
    no_selector("rpi5_pmic", selector)
    return Rpi5Pmic(run)
