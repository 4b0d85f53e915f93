"""What an ingester remembers between transactions: numbers of names, and what each board may still bring.

It is bounded, and lost when the process ends: limits begin anew then. A transaction works on a draft, which is kept
once that is committed; what was rolled back was never remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.fleet.config import Limits

RECORDS, EVENTS, BOOTS = "records", "events", "boots"
_MOST_NAMES = 50_000
_HOUR_S, _DAY_S = 3600.0, 86_400.0


@dataclass
class Memory:
    """Of one ingester."""

    limits: Limits = field(default_factory=Limits)
    names: dict[tuple[str, str], int] = field(
        default_factory=dict
    )  # (kind, text) -> number: of committed ones
    buckets: dict[tuple[str, int], tuple[float, float]] = field(
        default_factory=dict
    )  # what is left, and when

    def draft(self) -> Draft:
        """What one transaction works on."""
        return Draft(self)

    def rate(self, kind: str) -> tuple[float, float]:
        """What comes back per second, and what there may be at most."""
        limits = self.limits
        return {
            RECORDS: (limits.records_per_hour / _HOUR_S, float(limits.records_burst)),
            EVENTS: (limits.events_per_hour / _HOUR_S, float(limits.events_burst)),
            BOOTS: (limits.boots_per_day / _DAY_S, float(limits.boots_per_day)),
        }[kind]


@dataclass
class Draft:
    """Changes to a Memory that are not kept yet."""

    memory: Memory
    names: dict[tuple[str, str], int] = field(default_factory=dict)
    buckets: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)

    def number(self, kind: str, text: str) -> int | None:
        """A name's number, None where it is not known here."""
        key = (kind, text)
        return self.memory.names.get(key) or self.names.get(key)

    def take(self, kind: str, device: int, wanted: int, now: float) -> int:
        """How many of `wanted` a board may bring now (a token bucket)."""
        rate, most = self.memory.rate(kind)
        key = (kind, device)
        left, at = self.buckets.get(key) or self.memory.buckets.get(key) or (most, now)
        left = min(most, left + rate * max(0.0, now - at))
        taken = min(wanted, int(left))
        self.buckets[key] = (left - taken, now)
        return taken

    def keep(self) -> None:
        """The transaction is committed."""
        memory = self.memory
        if len(memory.names) + len(self.names) > _MOST_NAMES:
            memory.names.clear()
        memory.names |= self.names
        memory.buckets |= self.buckets
