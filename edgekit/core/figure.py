"""A measured quantity and how it came about. Refuses a value without provenance; unknown is None, never 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from edgekit.core.errors import BadInput

Provenance = Literal["measured", "simulated", "estimated", "published"]
PROVENANCES: tuple[str, ...] = get_args(Provenance)


@dataclass(frozen=True)
class Figure:
    """A value or None, its unit, and where it comes from.

    value: finite number, or None where nobody knows. unit: SI-like text ("ms", "mJ", "GB/s", "1" for a ratio).
    provenance: measured, simulated, estimated or published; None only where value is None.
    when: ISO date or time, or None. on: the machine or profile it was obtained on, or the source of a published one.
    """

    value: float | None
    unit: str
    provenance: Provenance | None = None
    when: str | None = None
    on: str | None = None

    def __post_init__(self) -> None:
        if self.value is None:
            return
        if (
            isinstance(self.value, bool)
            or not isinstance(self.value, (int, float))
            or not math.isfinite(self.value)
        ):
            raise BadInput(f"figure: value must be a finite number or null, got {self.value!r}")
        if self.provenance not in PROVENANCES:
            wanted = ", ".join(PROVENANCES)
            raise BadInput(f"figure: a value needs a provenance ({wanted}), got {self.provenance!r}")

    def to_json(self) -> dict[str, object]:
        """The five keys, all present; unknown is null."""
        return {
            "value": self.value,
            "unit": self.unit,
            "provenance": self.provenance,
            "when": self.when,
            "on": self.on,
        }

    @classmethod
    def from_json(cls, data: object, where: str = "figure") -> Figure:
        """Parse a mapping with value, unit, provenance, when, on. Errors name `where`."""
        if not isinstance(data, Mapping):
            raise BadInput(f"{where} must be a table with value, unit and provenance, got {data!r}")
        unit = data.get("unit")
        if not isinstance(unit, str):
            raise BadInput(f"{where}.unit must be a text, got {unit!r}")
        try:
            return cls(data.get("value"), unit, data.get("provenance"), data.get("when"), data.get("on"))
        except BadInput as err:
            raise BadInput(f"{where}: {err}") from err


def unknown(unit: str) -> Figure:
    """The figure nobody knows."""
    return Figure(None, unit)
