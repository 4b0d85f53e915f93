"""What a power sensor is and what one reading says. Reads nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgekit.core.errors import BadInput
from edgekit.runtime.command import CommandRunner


@dataclass(frozen=True)
class Reading:
    """One look at a sensor. Both None: unknown, and `why` says why; a sensor gives power or energy, never both.

    power_mw: now. energy_mj: a counter since some moment, unwrapped: it never falls while the sensor is open.
    period_s: how often the sensor itself takes a new figure, where it says so.
    """

    power_mw: float | None = None
    energy_mj: float | None = None
    why: str | None = None
    period_s: float | None = field(default=None, compare=False)

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.power_mw is not None or self.energy_mj is not None


class PowerSensor(Protocol):
    """Says what the board draws. `read` never raises for what hardware or permissions do: it says why not."""

    @property
    def name(self) -> str:
        """The name it was opened by."""
        ...

    def read(self) -> Reading:
        """One reading, now."""
        ...


SensorFactory = Callable[[Path, CommandRunner, str], PowerSensor]
"""(root of the file system, runner of programs, selector or "") -> sensor. Opening reads nothing."""


def no_selector(name: str, selector: str) -> None:
    """Refuse a selector where a sensor has nothing to select."""
    if selector:
        raise BadInput(f"power sensor {name} takes nothing after a colon, got {selector!r}")


class SameRails:
    """Holds a sum to the rails it began with: a sum over fewer rails would look like less power."""

    def __init__(self) -> None:
        self._rails: frozenset[str] | None = None

    def change(self, rails: Iterable[str]) -> str | None:
        """None while the rails are those of the first call; otherwise what changed, in words."""
        now = frozenset(rails)
        if self._rails is None:
            self._rails = now
        gone, new = sorted(self._rails - now), sorted(now - self._rails)
        if gone:
            return f"{', '.join(gone)} no longer there"
        return f"{', '.join(new)} was not there before" if new else None
