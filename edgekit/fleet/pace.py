"""How an ingester does: what it took since its start, and of the last minute how fast and how late. Stores nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from edgekit.core.histogram import bucket_of

EVERY_S = 5.0  # how often it is told
WINDOW_S = 60.0


@dataclass
class Slot:
    """What was committed between two tellings."""

    begun: float  # monotonic
    records: int = 0
    lag: dict[int, int] = field(default_factory=dict)  # core.histogram's bucket of ms -> messages


@dataclass
class Pace:
    """Counts since `begun` (monotonic seconds, as every other time here)."""

    begun: float
    messages: int = 0
    records: int = 0
    events: int = 0
    dropped: int = 0
    commits: int = 0
    batch_s: float = 0.0  # in transactions, from the first attempt on
    slots: deque[Slot] = field(default_factory=deque)

    def committed(
        self, arrived: Iterable[float], counts: tuple[int, int, int], began: float, now: float
    ) -> None:
        """A batch is in the store. arrived: when its messages came. counts: its new records, events, what it lost."""
        if not self.slots:
            self.slots.append(Slot(self.begun))
        records, events, dropped = counts
        slot = self.slots[-1]
        for at in arrived:
            bucket = bucket_of(1000 * (now - at))
            slot.lag[bucket] = slot.lag.get(bucket, 0) + 1
            self.messages += 1
        slot.records += records
        self.records += records
        self.events += events
        self.dropped += dropped
        self.commits += 1
        self.batch_s += now - began

    def told(self, now: float) -> dict[str, Any]:
        """The figures as a fact has them; what comes next counts in a slot of its own."""
        while self.slots and self.slots[0].begun < now - WINDOW_S:
            self.slots.popleft()
        lag: dict[int, int] = {}
        for slot in self.slots:
            for bucket, number in slot.lag.items():
                lag[bucket] = lag.get(bucket, 0) + number
        since = max(EVERY_S, now - self.slots[0].begun) if self.slots else EVERY_S
        found = {
            "messages": self.messages,
            "records": self.records,
            "events": self.events,
            "dropped": self.dropped,
            "commits": self.commits,
            "batch_s": self.batch_s,
            "lag": {str(bucket): number for bucket, number in sorted(lag.items())},
            "rate": sum(slot.records for slot in self.slots) / since,
        }
        self.slots.append(Slot(now))
        return found
