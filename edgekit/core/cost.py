"""Predict what work costs on a board from its profile alone. No graph, no clock: board and server agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgekit.core.checks import integer, table, text
from edgekit.core.figure import Figure, unknown
from edgekit.core.profile import Costs, Profile


@dataclass(frozen=True)
class Work:
    """What one kind of operator in one number format does for one input.

    op: the operator's name ("Conv"). format: the number format it computes in ("float32", "float16", "int8",
    "binary"). macs: multiply-accumulates. bytes: weights and activations, read or written. calls: of kernels.
    """

    op: str
    format: str
    macs: int
    bytes: int
    calls: int

    def to_json(self) -> dict[str, object]:
        """The five keys as they stand in a bundle's manifest."""
        return {
            "op": self.op,
            "format": self.format,
            "macs": self.macs,
            "bytes": self.bytes,
            "calls": self.calls,
        }

    @classmethod
    def from_json(cls, data: object, where: str = "work") -> Work:
        """Parse one entry of a manifest's `work`. Raises BadInput naming `where`."""
        entry = table(data, where)
        return cls(
            text(entry.get("op"), f"{where}.op"),
            text(entry.get("format"), f"{where}.format"),
            integer(entry.get("macs"), f"{where}.macs"),
            integer(entry.get("bytes"), f"{where}.bytes"),
            integer(entry.get("calls"), f"{where}.calls"),
        )


def predict(profile: Profile, work: Iterable[Work]) -> Figure:
    """Latency in ms of one input on `profile`, estimated; unknown as soon as one needed coefficient is.

    Each entry costs max(macs / macs_per_second, bytes / bytes_per_second) + calls * call_overhead (the
    roofline model: Williams, Waterman, Patterson 2009), on `profile.cost.threads` threads. No work: unknown.
    """
    parts = [_seconds(profile.cost, entry) for entry in work]
    known = [seconds for seconds in parts if seconds is not None]
    if not known or len(known) != len(parts):
        return unknown("ms")
    return Figure(sum(known) * 1e3, "ms", "estimated", on=profile.name)


def macs(work: Iterable[Work]) -> int:
    """All multiply-accumulates for one input."""
    return sum(entry.macs for entry in work)


def _seconds(cost: Costs, entry: Work) -> float | None:
    parts: list[float] = []
    rates = ((entry.macs, cost.macs_per_second.get(entry.format)), (entry.bytes, cost.bytes_per_second))
    for amount, rate in rates:
        if amount == 0:
            continue
        if rate is None or rate.value is None:
            return None
        parts.append(amount / rate.value)
    seconds = max(parts, default=0.0)
    if entry.calls == 0:
        return seconds
    if cost.call_overhead_us.value is None:
        return None
    return seconds + entry.calls * cost.call_overhead_us.value * 1e-6
