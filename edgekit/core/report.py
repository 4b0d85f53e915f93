"""What was measured about one bundle: the report.json inside it. Facts only; its HTML face is host/report_html.py's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.core import checks
from edgekit.core.checks import integer, number, optional, rows, table, text
from edgekit.core.curves import Curves
from edgekit.core.figure import PROVENANCES
from edgekit.core.manifest import METRICS, OperatingPoint


@dataclass(frozen=True)
class Latency:
    """Latency per request in ms; None where nobody measured or predicted it."""

    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    @property
    def typical(self) -> float | None:
        """The median of what was measured, which shrugs a disturbed run off; else the mean that was predicted."""
        return self.mean if self.p50 is None else self.p50

    @classmethod
    def parse(cls, value: object, where: str) -> Latency:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)

        def one(key: str) -> float | None:
            return optional(data.get(key), f"{where}.{key}", lambda v, w: number(v, w, 0.0))

        return cls(one("mean"), one("p50"), one("p95"), one("p99"))

    def to_json(self) -> dict[str, Any]:
        """mean, p50, p95, p99."""
        return {"mean": self.mean, "p50": self.p50, "p95": self.p95, "p99": self.p99}


@dataclass(frozen=True)
class Change:
    """A quantity of the model that came in and of the bundle that went out; None where unknown."""

    before: float | None
    after: float | None

    @classmethod
    def parse(cls, value: object, where: str) -> Change:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            optional(data.get("before"), f"{where}.before", number),
            optional(data.get("after"), f"{where}.after", number),
        )

    def to_json(self) -> dict[str, Any]:
        """Before and after."""
        return {"before": self.before, "after": self.after}


@dataclass(frozen=True)
class ExitReport:
    """One exit used alone on the evaluation data. latency_mean_ms: from request to this exit's answer.

    agreement: share of samples that it answers as the last exit does; None: it gives no classes.
    """

    name: str
    accuracy: float | None
    cost_share: float
    latency_mean_ms: float | None
    agreement: float | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> ExitReport:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            checks.name(data.get("name"), f"{where}.name"),
            optional(data.get("accuracy"), f"{where}.accuracy", number),
            number(data.get("cost_share"), f"{where}.cost_share"),
            optional(data.get("latency_mean_ms"), f"{where}.latency_mean_ms", number),
            optional(data.get("agreement"), f"{where}.agreement", number),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "name": self.name,
            "accuracy": self.accuracy,
            "cost_share": self.cost_share,
            "latency_mean_ms": self.latency_mean_ms,
            "agreement": self.agreement,
        }


@dataclass(frozen=True)
class PolicyReport:
    """What one policy did on the evaluation data. missed: answers after their deadline; None where there was none."""

    policy: str
    requests: int
    accuracy: float | None
    exit_counts: Mapping[str, int]
    latency: Latency
    missed: int | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> PolicyReport:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        counts = table(data.get("exit_counts"), f"{where}.exit_counts")
        return cls(
            text(data.get("policy"), f"{where}.policy"),
            integer(data.get("requests"), f"{where}.requests"),
            optional(data.get("accuracy"), f"{where}.accuracy", number),
            {k: integer(v, f"{where}.exit_counts.{k}") for k, v in counts.items()},
            Latency.parse(data.get("latency_ms"), f"{where}.latency_ms"),
            optional(data.get("deadline_missed"), f"{where}.deadline_missed", integer),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "policy": self.policy,
            "requests": self.requests,
            "accuracy": self.accuracy,
            "exit_counts": dict(self.exit_counts),
            "latency_ms": self.latency.to_json(),
            "deadline_missed": self.missed,
        }


@dataclass(frozen=True)
class LayerReport:
    """One layer of the converted graph. sqnr_db: its output against fp32, on calibration data; None: not measured.

    format: what it computes in. weights: what its weights are stored in, where that is another format. ms: its share of
    a request's time, by the profile's cost model or this machine's profiler (`ms_provenance`). why: this format.
    """

    name: str
    op: str
    format: str
    stage: int
    macs: float
    sqnr_db: float | None
    weights: str | None = None
    ms: float | None = None
    ms_provenance: str | None = None
    why: str | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> LayerReport:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            text(data.get("name"), f"{where}.name"),
            text(data.get("op"), f"{where}.op"),
            text(data.get("format"), f"{where}.format"),
            integer(data.get("stage"), f"{where}.stage"),
            number(data.get("macs"), f"{where}.macs", 0.0),
            optional(data.get("sqnr_db"), f"{where}.sqnr_db", number),
            optional(data.get("weights"), f"{where}.weights", text),
            optional(data.get("ms"), f"{where}.ms", number),
            _provenance(data.get("ms_provenance"), f"{where}.ms_provenance"),
            optional(data.get("why"), f"{where}.why", text),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "name": self.name,
            "op": self.op,
            "format": self.format,
            "stage": self.stage,
            "macs": self.macs,
            "sqnr_db": self.sqnr_db,
            "weights": self.weights,
            "ms": self.ms,
            "ms_provenance": self.ms_provenance,
            "why": self.why,
        }


@dataclass(frozen=True)
class Attempt:
    """One way the network was tried, on validation data. lost: points against the model that came in, None: unknown.

    metric: of `lost`. sqnr_db: of its answers. latency_ms: of a request run to the end, by `provenance`; candidates of
    one search were timed side by side. why: it was chosen, or was not.
    """

    label: str
    metric: str
    lost: float | None
    sqnr_db: float | None
    size_bytes: int
    latency_ms: float | None
    provenance: str | None
    chosen: bool
    why: str

    @classmethod
    def parse(cls, value: object, where: str) -> Attempt:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            text(data.get("label"), f"{where}.label"),
            checks.choice(data.get("metric"), f"{where}.metric", METRICS),
            optional(data.get("lost"), f"{where}.lost", number),
            optional(data.get("sqnr_db"), f"{where}.sqnr_db", number),
            integer(data.get("size_bytes"), f"{where}.size_bytes"),
            optional(data.get("latency_ms"), f"{where}.latency_ms", number),
            _provenance(data.get("provenance"), f"{where}.provenance"),
            checks.flag(data.get("chosen"), f"{where}.chosen"),
            text(data.get("why"), f"{where}.why"),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "label": self.label,
            "metric": self.metric,
            "lost": self.lost,
            "sqnr_db": self.sqnr_db,
            "size_bytes": self.size_bytes,
            "latency_ms": self.latency_ms,
            "provenance": self.provenance,
            "chosen": self.chosen,
            "why": self.why,
        }


@dataclass(frozen=True)
class ExitParity:
    """One exit of one lowering against another. agreement: share of samples with the same top-1; None: no classes.

    max_steps, mean_steps: differences of its answers in 1/255 of what the reference's answers span.
    """

    exit: str
    agreement: float | None
    max_steps: float
    mean_steps: float

    @classmethod
    def parse(cls, value: object, where: str) -> ExitParity:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            checks.name(data.get("exit"), f"{where}.exit"),
            optional(data.get("agreement"), f"{where}.agreement", number),
            number(data.get("max_steps"), f"{where}.max_steps", 0.0),
            number(data.get("mean_steps"), f"{where}.mean_steps", 0.0),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "exit": self.exit,
            "agreement": self.agreement,
            "max_steps": self.max_steps,
            "mean_steps": self.mean_steps,
        }


@dataclass(frozen=True)
class Parity:
    """Two lowerings of the same graph, each exit of them against the other and against the float network.

    float_network: in the order of `backends`.
    """

    backends: tuple[str, ...]
    count: int
    each_other: tuple[ExitParity, ...]
    float_network: tuple[tuple[ExitParity, ...], ...]

    @property
    def agreement(self) -> float | None:
        """Of the last exit's labels between the two."""
        return self.each_other[-1].agreement

    @classmethod
    def parse(cls, value: object, where: str) -> Parity:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            rows(data.get("backends"), f"{where}.backends", text),
            integer(data.get("count"), f"{where}.count"),
            rows(data.get("each_other"), f"{where}.each_other", ExitParity.parse),
            rows(
                data.get("float_network"), f"{where}.float_network", lambda v, w: rows(v, w, ExitParity.parse)
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "backends": list(self.backends),
            "count": self.count,
            "each_other": [row.to_json() for row in self.each_other],
            "float_network": [[row.to_json() for row in each] for each in self.float_network],
        }


def _provenance(value: object, where: str) -> str | None:
    return optional(value, where, lambda v, w: checks.choice(v, w, PROVENANCES))


@dataclass(frozen=True)
class Dropped:
    """A step that was taken back for a layer (or the whole, layer "*"), and why."""

    layer: str
    step: str
    why: str

    @classmethod
    def parse(cls, value: object, where: str) -> Dropped:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(*(text(data.get(key), f"{where}.{key}") for key in ("layer", "step", "why")))

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {"layer": self.layer, "step": self.step, "why": self.why}


@dataclass(frozen=True)
class DataUse:
    """Which data served for what: thresholds are found on `validation` and judged on `evaluation`."""

    role: str
    source: str
    count: int
    labelled: bool

    @classmethod
    def parse(cls, value: object, where: str) -> DataUse:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            text(data.get("role"), f"{where}.role"),
            text(data.get("source"), f"{where}.source"),
            integer(data.get("count"), f"{where}.count"),
            checks.flag(data.get("labelled"), f"{where}.labelled"),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {"role": self.role, "source": self.source, "count": self.count, "labelled": self.labelled}


@dataclass(frozen=True)
class Report:
    """Everything measured about a bundle, and what could not be.

    accuracy: `metric` of the last exit, fractions 0-1. latency_before: the fp32 model that came in, run whole;
    latency_after: the bundle under the full policy; both with `latency_provenance` on `latency_on`, in one run.
    tried: what the search measured on the way, the chosen one among them. parity: the same graph on two runtimes.
    notes: what the user should know, a sentence each. curves: what the exits are worth, on the evaluation data; None
    where there is one exit, or nothing to compare by.
    """

    bundle: str
    profile: str
    made: str  # ISO time
    versions: Mapping[str, str]
    metric: str
    accuracy: Change
    size_bytes: Change
    latency_before: Latency
    latency_after: Latency
    latency_provenance: str | None
    latency_on: str | None
    exits: tuple[ExitReport, ...]
    policies: tuple[PolicyReport, ...]
    operating_points: tuple[OperatingPoint, ...]
    layers: tuple[LayerReport, ...]
    dropped: tuple[Dropped, ...]
    limits_missed: tuple[str, ...]
    data: tuple[DataUse, ...]
    tried: tuple[Attempt, ...] = ()
    parity: Parity | None = None
    notes: tuple[str, ...] = ()
    curves: Curves | None = None

    @classmethod
    def parse(cls, value: object, where: str = "report.json") -> Report:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        latency = table(data.get("latency_ms"), f"{where}: latency_ms")
        limits = table(data.get("limits"), f"{where}: limits")
        versions = table(data.get("versions"), f"{where}: versions")
        return cls(
            bundle=text(data.get("bundle"), f"{where}: bundle"),
            profile=checks.name(data.get("profile"), f"{where}: profile"),
            made=text(data.get("made"), f"{where}: made"),
            versions={k: text(v, f"{where}: versions.{k}") for k, v in versions.items()},
            metric=checks.choice(data.get("metric"), f"{where}: metric", METRICS),
            accuracy=Change.parse(data.get("accuracy"), f"{where}: accuracy"),
            size_bytes=Change.parse(data.get("size_bytes"), f"{where}: size_bytes"),
            latency_before=Latency.parse(latency.get("before"), f"{where}: latency_ms.before"),
            latency_after=Latency.parse(latency.get("after"), f"{where}: latency_ms.after"),
            latency_provenance=_provenance(latency.get("provenance"), f"{where}: latency_ms.provenance"),
            latency_on=optional(latency.get("on"), f"{where}: latency_ms.on", text),
            exits=rows(data.get("exits"), f"{where}: exits", ExitReport.parse),
            policies=rows(data.get("policies"), f"{where}: policies", PolicyReport.parse),
            operating_points=rows(
                data.get("operating_points"), f"{where}: operating_points", OperatingPoint.parse
            ),
            layers=rows(data.get("layers"), f"{where}: layers", LayerReport.parse),
            dropped=rows(data.get("dropped"), f"{where}: dropped", Dropped.parse),
            limits_missed=rows(limits.get("missed"), f"{where}: limits.missed", text),
            data=rows(data.get("data"), f"{where}: data", DataUse.parse),
            tried=rows(data.get("tried", []), f"{where}: tried", Attempt.parse),
            notes=rows(data.get("notes", []), f"{where}: notes", text),
            parity=optional(data.get("parity"), f"{where}: parity", Parity.parse),
            curves=optional(data.get("curves"), f"{where}: curves", Curves.parse),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse, complete."""
        return {
            "v": 1,
            "bundle": self.bundle,
            "profile": self.profile,
            "made": self.made,
            "versions": dict(self.versions),
            "metric": self.metric,
            "accuracy": self.accuracy.to_json(),
            "size_bytes": self.size_bytes.to_json(),
            "latency_ms": {
                "before": self.latency_before.to_json(),
                "after": self.latency_after.to_json(),
                "provenance": self.latency_provenance,
                "on": self.latency_on,
            },
            "exits": [e.to_json() for e in self.exits],
            "policies": [p.to_json() for p in self.policies],
            "operating_points": [p.to_json() for p in self.operating_points],
            "layers": [layer.to_json() for layer in self.layers],
            "dropped": [d.to_json() for d in self.dropped],
            "limits": {"met": not self.limits_missed, "missed": list(self.limits_missed)},
            "data": [d.to_json() for d in self.data],
            "tried": [t.to_json() for t in self.tried],
            "notes": list(self.notes),
            "parity": None if self.parity is None else self.parity.to_json(),
            "curves": None if self.curves is None else self.curves.to_json(),
        }
