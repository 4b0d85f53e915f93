"""What records add up to: sums, histograms and mixes, and what is shown of them. Reads no database.

Percentiles come from added-up buckets, never from other percentiles. Unknown is None. An energy figure says how it
came about; where it came about in more than one way, it says `mixed`, and which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.core.figure import PROVENANCES
from edgekit.core.histogram import Histogram
from edgekit.fleet.exits import exit_order
from edgekit.fleet.packing import add_counts, pack_counts

MIXED = "mixed"
COUNTS = (
    "records",
    "requests",
    "errors",
    "deadline_missed",
    "labelled",
    "correct",
    "inputs_dropped",
    "answers_lost",
    "cancelled",
    "nan_confidences",
)
_SECONDS = (
    "latency_sum_ms",
    "energy_mj",
    "energy_requests",
    "busy_s",
    "span_s",
    "throttled_s",
    "under_voltage_s",
)
_HIGHEST = ("temperature_c", "memory_mb")
_LAST = ("energy_on", "energy_why")


@dataclass(slots=True)
class Sum:
    """A growing sum of records and of other sums; its fields are the columns of a roll-up (fleet.schema)."""

    records: int = 0
    requests: int = 0
    errors: int = 0
    deadline_missed: int = 0
    labelled: int = 0
    correct: int = 0
    inputs_dropped: int = 0
    answers_lost: int = 0
    cancelled: int = 0
    nan_confidences: int = 0
    latency_sum_ms: float = 0.0
    energy_mj: float = 0.0  # of intervals with requests whose energy is known
    energy_requests: int = 0  # of those intervals
    energy_kinds: int = 0  # bit n: PROVENANCES[n] is among them
    busy_s: float = 0.0
    span_s: float = 0.0
    throttled_s: float = 0.0
    under_voltage_s: float = 0.0
    temperature_c: float | None = None  # the highest
    memory_mb: float | None = None  # the highest
    energy_on: int | None = None  # names.id, the last one
    energy_why: int | None = None  # names.id, the last one
    exits: dict[int, int] = field(default_factory=dict)  # names.id -> count
    latency: dict[int, int] = field(default_factory=dict)  # bucket -> count

    def add_record(self, row: Any) -> None:
        """Add a row of the table `records`."""
        requests = row.requests
        self.records += 1
        self.requests += requests
        self.errors += row.errors
        self.deadline_missed += row.deadline_missed
        self.labelled += row.labelled
        self.correct += row.correct
        self.inputs_dropped += row.inputs_dropped
        self.answers_lost += row.answers_lost
        self.cancelled += row.cancelled
        self.nan_confidences += row.nan_confidences
        add_counts(self.exits, row.exits)
        add_counts(self.latency, row.latency)
        self.latency_sum_ms += row.latency_sum_ms
        if requests:
            if row.energy_mj is not None:
                self.energy_mj += row.energy_mj
                self.energy_requests += requests
                self.energy_kinds |= 1 << row.energy_provenance
                self.energy_on = row.energy_on or self.energy_on
            self.energy_why = row.energy_why or self.energy_why
        self.busy_s += row.busy_s
        self.span_s += row.interval_s
        self.throttled_s += row.interval_s if row.throttled else 0.0
        self.under_voltage_s += row.interval_s if row.under_voltage else 0.0
        self._raise(row)

    def add(self, row: Any) -> None:
        """Add a row of a roll-up, or another Sum's `row`."""
        self._add_plain(row)
        add_counts(self.exits, row.exits)
        add_counts(self.latency, row.latency)

    def merge(self, other: Sum) -> None:
        """Add another sum."""
        self._add_plain(other)
        _add_counts(self.exits, other.exits)
        _add_counts(self.latency, other.latency)

    def _add_plain(self, row: Any) -> None:
        """All but the counts. Written out: thousands of rows are added for one answer."""
        self.records += row.records
        self.requests += row.requests
        self.errors += row.errors
        self.deadline_missed += row.deadline_missed
        self.labelled += row.labelled
        self.correct += row.correct
        self.inputs_dropped += row.inputs_dropped
        self.answers_lost += row.answers_lost
        self.cancelled += row.cancelled
        self.nan_confidences += row.nan_confidences
        self.latency_sum_ms += row.latency_sum_ms
        self.energy_mj += row.energy_mj
        self.energy_requests += row.energy_requests
        self.busy_s += row.busy_s
        self.span_s += row.span_s
        self.throttled_s += row.throttled_s
        self.under_voltage_s += row.under_voltage_s
        self.energy_kinds |= row.energy_kinds
        self.energy_on = row.energy_on or self.energy_on
        self.energy_why = row.energy_why or self.energy_why
        self._raise(row)

    def _raise(self, row: Any) -> None:
        value = row.temperature_c
        if value is not None and (self.temperature_c is None or value > self.temperature_c):
            self.temperature_c = value
        value = row.memory_mb
        if value is not None and (self.memory_mb is None or value > self.memory_mb):
            self.memory_mb = value

    def values(self) -> dict[str, Any]:
        """The columns of a roll-up."""
        plain = (*COUNTS, *_SECONDS, *_HIGHEST, *_LAST, "energy_kinds")
        packed = {"exits": pack_counts(self.exits), "latency": pack_counts(self.latency)}
        return {name: getattr(self, name) for name in plain} | packed

    @property
    def histogram(self) -> Histogram:
        """Latencies of all requests."""
        return Histogram(self.latency, self.latency_sum_ms)

    @property
    def names(self) -> set[int]:
        """The numbers of names that `summary` wants texts for."""
        return {number for number in (*self.exits, self.energy_on, self.energy_why) if number}

    def summary(self, names: Mapping[int, str]) -> dict[str, Any]:
        """The figures as the API and the page show them. names: number -> text, as fleet.names has them."""
        exits = {names.get(number, str(number)): count for number, count in self.exits.items()}
        return {
            "requests": self.requests,
            "errors": self.errors,
            "deadline_missed": self.deadline_missed,
            "latency_ms": self.histogram.summary(),
            "exit_counts": {name: exits[name] for name in exit_order(exits)},
            "labelled": self.labelled,
            "accuracy": self.correct / self.labelled if self.labelled else None,
            "energy_mj": self._energy(names),
            "utilisation": self.busy_s / self.span_s if self.span_s else None,
            "throttled_s": self.throttled_s,
            "under_voltage_s": self.under_voltage_s,
            "span_s": self.span_s,
            **{name: getattr(self, name) for name in COUNTS[6:]},
        }

    def _energy(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Energy per request in mJ: what intervals with requests used, idle share included, over those requests.

        mean is None where no interval knows; `requests`: how many it speaks of. provenance: one word, `mixed` where
        `provenances` has several, None where unknown, with `why`.
        """
        kinds = sorted(kind for bit, kind in enumerate(PROVENANCES) if self.energy_kinds >> bit & 1)
        return {
            "mean": self.energy_mj / self.energy_requests if self.energy_requests else None,
            "provenance": None if not kinds else kinds[0] if len(kinds) == 1 else MIXED,
            "provenances": kinds,
            "on": names.get(self.energy_on) if self.energy_on else None,
            "requests": self.energy_requests,
            "why": names.get(self.energy_why) if self.energy_why and not kinds else None,
        }


def total(sums: Iterable[Sum]) -> Sum:
    """What several sums add up to."""
    found = Sum()
    for part in sums:
        found.merge(part)
    return found


def _add_counts(into: dict[int, int], counts: Mapping[int, int]) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count
