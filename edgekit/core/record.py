"""What one interval on one board brought: counts, histogram, energy, health. Unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.core import checks
from edgekit.core.checks import choice, flag, integer, number, optional, table, text
from edgekit.core.figure import PROVENANCES, Figure, unknown
from edgekit.core.histogram import Histogram

_MAX_EXITS = 64


@dataclass(frozen=True)
class Record:
    """One interval. `seq` counts within a boot and never repeats; `time` is None while the clock is not trusted."""

    seq: int
    uptime_s: float
    time: float | None  # Unix seconds at the interval's end
    clock_synced: bool
    interval_s: float
    bundle: str | None  # name/version that served; None: nothing is installed
    policy: str | None
    requests: int = 0
    errors: int = 0
    deadline_missed: int = 0
    labelled: int = 0  # requests whose source knew the label
    correct: int = 0
    exit_counts: Mapping[str, int] = field(default_factory=dict)
    latency: Histogram = field(default_factory=Histogram)
    energy: Figure = field(default_factory=lambda: unknown("mJ"))  # energy of the whole interval
    energy_why: str | None = None  # why it is unknown
    energy_updates: int | None = None  # how often the sensor had something new; an energy wants 20 and 1 s
    idle_power_mw: float | None = None  # of the board doing nothing, measured lately; in no figure subtracted
    busy_s: float = 0.0  # time spent inside inferences
    temperature_c: float | None = None
    throttled: bool | None = None
    under_voltage: bool | None = None
    memory_mb: float | None = None  # resident memory of the agent
    inputs_dropped: int = 0  # before they were requests: replaced camera frames, refused messages
    answers_lost: int = 0  # that a sink could not give
    cancelled: int = 0  # requests dropped from the queue because their client hung up
    nan_confidences: int = 0  # exits that gave no number for a confidence, and were passed by

    def to_json(self) -> dict[str, Any]:
        """Every key present; unknown is null."""
        return {
            "seq": self.seq,
            "uptime": self.uptime_s,
            "time": self.time,
            "clock_synced": self.clock_synced,
            "interval_s": self.interval_s,
            "bundle": self.bundle,
            "policy": self.policy,
            "requests": self.requests,
            "errors": self.errors,
            "deadline_missed": self.deadline_missed,
            "labelled": self.labelled,
            "correct": self.correct,
            "exit_counts": dict(self.exit_counts),
            "latency": self.latency.to_json(),
            "energy_mj": self.energy.value,
            "energy_provenance": self.energy.provenance,
            "energy_on": self.energy.on,
            "energy_why": self.energy_why,
            "energy_updates": self.energy_updates,
            "idle_power_mw": self.idle_power_mw,
            "busy_s": self.busy_s,
            "temperature_c": self.temperature_c,
            "throttled": self.throttled,
            "under_voltage": self.under_voltage,
            "memory_mb": self.memory_mb,
            "inputs_dropped": self.inputs_dropped,
            "answers_lost": self.answers_lost,
            "cancelled": self.cancelled,
            "nan_confidences": self.nan_confidences,
        }

    @classmethod
    def parse(cls, value: object, where: str = "record") -> Record:
        """Read from JSON as a board sent it. Raises BadInput."""
        data = table(value, where)
        exits = table(data.get("exit_counts", {}), f"{where}.exit_counts")
        if len(exits) > _MAX_EXITS:
            raise checks.wrong(f"{where}.exit_counts", f"of at most {_MAX_EXITS} exits", len(exits))
        provenance = optional(
            data.get("energy_provenance"),
            f"{where}.energy_provenance",
            lambda v, w: choice(v, w, PROVENANCES),
        )
        energy = optional(data.get("energy_mj"), f"{where}.energy_mj", lambda v, w: number(v, w, 0.0))
        if energy is not None and provenance is None:
            raise checks.wrong(f"{where}.energy_provenance", "given where energy_mj is", None)
        return cls(
            seq=integer(data.get("seq"), f"{where}.seq", 1),
            uptime_s=number(data.get("uptime"), f"{where}.uptime", 0.0),
            time=optional(data.get("time"), f"{where}.time", lambda v, w: number(v, w, 0.0, 1e11)),
            clock_synced=flag(data.get("clock_synced"), f"{where}.clock_synced"),
            interval_s=number(data.get("interval_s"), f"{where}.interval_s", 0.0),
            bundle=optional(data.get("bundle"), f"{where}.bundle", text),
            policy=optional(data.get("policy"), f"{where}.policy", text),
            requests=integer(data.get("requests", 0), f"{where}.requests"),
            errors=integer(data.get("errors", 0), f"{where}.errors"),
            deadline_missed=integer(data.get("deadline_missed", 0), f"{where}.deadline_missed"),
            labelled=integer(data.get("labelled", 0), f"{where}.labelled"),
            correct=integer(data.get("correct", 0), f"{where}.correct"),
            exit_counts={
                checks.name(k, f"{where}.exit_counts"): integer(v, f"{where}.exit_counts.{k}")
                for k, v in exits.items()
            },
            latency=Histogram.parse(data.get("latency"), f"{where}.latency"),
            energy=Figure(
                energy,
                "mJ",
                provenance if energy is not None else None,  # type: ignore[arg-type]  # checked by choice
                None,
                optional(data.get("energy_on"), f"{where}.energy_on", text),
            ),
            energy_why=optional(data.get("energy_why"), f"{where}.energy_why", text),
            energy_updates=optional(data.get("energy_updates"), f"{where}.energy_updates", integer),
            idle_power_mw=optional(
                data.get("idle_power_mw"), f"{where}.idle_power_mw", lambda v, w: number(v, w, 0.0)
            ),
            busy_s=number(data.get("busy_s", 0.0), f"{where}.busy_s", 0.0),
            temperature_c=optional(data.get("temperature_c"), f"{where}.temperature_c", number),
            throttled=optional(data.get("throttled"), f"{where}.throttled", flag),
            under_voltage=optional(data.get("under_voltage"), f"{where}.under_voltage", flag),
            memory_mb=optional(data.get("memory_mb"), f"{where}.memory_mb", number),
            inputs_dropped=integer(data.get("inputs_dropped", 0), f"{where}.inputs_dropped"),
            answers_lost=integer(data.get("answers_lost", 0), f"{where}.answers_lost"),
            cancelled=integer(data.get("cancelled", 0), f"{where}.cancelled"),
            nan_confidences=integer(data.get("nan_confidences", 0), f"{where}.nan_confidences"),
        )
