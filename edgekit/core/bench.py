"""What timing one candidate bundle on one machine brought: it travels from a board to the converter. Facts only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.core import checks
from edgekit.core.checks import integer, number, optional, rows, table, text
from edgekit.core.errors import BadInput
from edgekit.core.figure import PROVENANCES
from edgekit.core.report import Latency

MAX_CANDIDATES = 64  # in one round
MAX_REPORTS_BYTES = 512 * 1024  # of one round's reports, as canonical JSON


@dataclass(frozen=True)
class BenchReport:
    """One candidate on one machine.

    exits: ms from the request to each exit, all stages run. stages: each stage's own ms. Both are empty where the
    candidate could not be timed. turns_ms: the median ms of the whole network in each turn; the candidates of a round
    took their turns one after the other, so turn i of all of them met the machine in the same state: compare by these.
    requests: how many were timed. energy_mj: of a request run to the end; None: unknown, and energy_why says why.
    memory_mb: what opening the candidate and running it once added to the process, for the first one of a round with
    what its runtime allocates once; None: the system does not say.
    problems: why it must not be used; none where its golden cases held, or it has none. provenance, on: of all figures.
    throttled: the machine was slowed during the round; None: it does not say. busy: it served a bundle meanwhile.
    """

    content_id: str
    exits: tuple[Latency, ...] = ()
    stages: tuple[Latency, ...] = ()
    turns_ms: tuple[float, ...] = ()
    requests: int = 0
    energy_mj: float | None = None
    energy_why: str | None = None
    memory_mb: float | None = None
    providers: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    provenance: str = "measured"
    on: str | None = None
    device: str | None = None  # None: the machine that converts
    profile: str | None = None
    throttled: bool | None = None
    busy: bool = False

    @property
    def latency(self) -> Latency:
        """Of a request run to the end; all None where the candidate could not be timed."""
        return self.exits[-1] if self.exits else Latency()

    @classmethod
    def parse(cls, value: object, where: str) -> BenchReport:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            content_id=checks.sha256(data.get("content_id"), f"{where}.content_id"),
            exits=rows(data.get("exits"), f"{where}.exits", Latency.parse),
            stages=rows(data.get("stages"), f"{where}.stages", Latency.parse),
            turns_ms=rows(data.get("turns_ms"), f"{where}.turns_ms", lambda v, w: number(v, w, 0.0)),
            requests=integer(data.get("requests"), f"{where}.requests"),
            energy_mj=optional(data.get("energy_mj"), f"{where}.energy_mj", number),
            energy_why=optional(data.get("energy_why"), f"{where}.energy_why", text),
            memory_mb=optional(data.get("memory_mb"), f"{where}.memory_mb", number),
            providers=rows(data.get("providers"), f"{where}.providers", text),
            problems=rows(data.get("problems"), f"{where}.problems", text),
            provenance=checks.choice(data.get("provenance"), f"{where}.provenance", PROVENANCES),
            on=optional(data.get("on"), f"{where}.on", text),
            device=optional(data.get("device"), f"{where}.device", checks.name),
            profile=optional(data.get("profile"), f"{where}.profile", checks.name),
            throttled=optional(data.get("throttled"), f"{where}.throttled", checks.flag),
            busy=checks.flag(data.get("busy"), f"{where}.busy"),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "content_id": self.content_id,
            "exits": [entry.to_json() for entry in self.exits],
            "stages": [entry.to_json() for entry in self.stages],
            "turns_ms": list(self.turns_ms),
            "requests": self.requests,
            "energy_mj": self.energy_mj,
            "energy_why": self.energy_why,
            "memory_mb": self.memory_mb,
            "providers": list(self.providers),
            "problems": list(self.problems),
            "provenance": self.provenance,
            "on": self.on,
            "device": self.device,
            "profile": self.profile,
            "throttled": self.throttled,
            "busy": self.busy,
        }


def parse_reports(value: object, where: str) -> tuple[BenchReport, ...]:
    """One round's reports. Raises BadInput, also for more than a message carries."""
    found = rows(value, where, BenchReport.parse)
    if len(found) > MAX_CANDIDATES:
        raise checks.wrong(where, f"at most {MAX_CANDIDATES} reports", len(found))
    size = len(checks.canonical_json(reports_json(found)))
    if size > MAX_REPORTS_BYTES:
        raise BadInput(f"{where} must be at most {MAX_REPORTS_BYTES} bytes of JSON, got {size}")
    return found


def reports_json(reports: tuple[BenchReport, ...]) -> list[Mapping[str, Any]]:
    """The inverse of parse_reports."""
    return [report.to_json() for report in reports]
