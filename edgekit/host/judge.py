"""Measure what went in and what came out, on the same data, and write the Report. Chooses nothing."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.core.cost import Work, predict
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure, Provenance, unknown
from edgekit.core.manifest import Manifest
from edgekit.core.policy import Budget, PolicySpec
from edgekit.core.profile import Profile
from edgekit.core.report import (
    Attempt,
    Change,
    Dropped,
    ExitReport,
    Latency,
    LayerReport,
    Parity,
    PolicyReport,
    Report,
)
from edgekit.host.bench import Bench, interleaved, timed_there
from edgekit.host.datasets import Datasets, labelled_by
from edgekit.host.graph import Graph
from edgekit.host.limits import Limits
from edgekit.host.lower import onnxruntime, problems
from edgekit.host.memory import memory_mb
from edgekit.host.node_times import times_of
from edgekit.host.pack import Draft, Finished
from edgekit.host.parity import parity
from edgekit.host.sqnr import layer_sqnr, spread
from edgekit.host.stored import stored_weights
from edgekit.host.watch import Watch
from edgekit.host.work import layers, work
from edgekit.runtime.backends import is_installed
from edgekit.runtime.command import runner
from edgekit.runtime.curves import Times, curves, replayed
from edgekit.runtime.data import Data
from edgekit.runtime.energy import with_energy
from edgekit.runtime.interleave import ROUNDS
from edgekit.runtime.measure import (
    ExitTable,
    exit_table,
    latency_of,
    machine_name,
    measure_policy,
    stage_costs,
)
from edgekit.runtime.policy import make_policy
from edgekit.runtime.power import open_sensor
from edgekit.runtime.session import Session

_OTHER = "litert"
_PARITY = 200  # samples on which two runtimes are compared
_TIMED = 4  # samples on which layers are timed
POLICIES = (PolicySpec("full"), PolicySpec("budget", Budget(32.0, "%")), PolicySpec("confidence"))
_PACKAGES = ("edgekit", "numpy", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class Modelled:
    """What a model of the hardware says of one request run to the end. on: which model, and what it assumes."""

    ms: float
    on: str


@dataclass(frozen=True)
class Judged:
    """What is judged, and what it is compared with. whole: the network that came in, as one stage.

    plain: the float network that was rounded, layer by layer the same as `graph`: pruned where that was pruned.
    """

    profile: Profile
    on_this_machine: bool
    whole: Draft
    size_before: int
    plain: Graph
    graph: Graph
    made: Draft
    finished: Finished
    data: Datasets
    dropped: tuple[Dropped, ...]
    limits: Limits
    tried: tuple[Attempt, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rounds: int = ROUNDS
    hurried: bool = False
    bench: Bench | None = None  # the board that was asked for; None: this machine, or nobody
    layers: tuple[LayerReport, ...] | None = None  # None: found out from the graph's stages
    modelled: Modelled | None = None  # a better estimate than the profile's, for boards that are not here


def judge(subject: Judged, watch: Watch) -> Report:
    """Run both networks over the evaluation data through the Session, and say what came of it.

    Accuracy is always measured here. Times are the target's where it is this machine, or a board that is asked; else
    the cost model's estimate for the profile, or unknown.
    """
    data, manifest = subject.data.evaluation, subject.finished.manifest
    whole, session = subject.whole.open(), subject.finished.open()
    with watch("judge the model that came in", data.count) as tick:
        before = exit_table(whole, data, tick)
    metric, judged = _judged_data(data, before)
    with watch("judge the bundle", data.count) as tick:
        after = exit_table(session, judged, tick)
    if subject.bench is not None:
        policies = tuple(replay(spec, manifest, after, judged) for spec in _specs(manifest))
        times = _Times.there(subject, subject.bench)
    elif subject.on_this_machine:
        policies = _policies(session, judged, watch)
        times = _Times.measured(whole, session, data, subject.rounds)
    else:
        policies = tuple(replay(spec, manifest, after, judged) for spec in _specs(manifest))
        times = _Times.estimated(subject)
    energy = _energy(subject, session, times)
    accuracy = Change(_last_accuracy(before, judged), _last_accuracy(after, judged))
    size = Change(float(subject.size_before), float(subject.made.size_bytes))
    exits = _exit_reports(manifest, after, judged, times)
    return Report(
        bundle=f"{manifest.name}/{manifest.version}",
        profile=subject.profile.name,
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        metric=metric,
        accuracy=accuracy,
        size_bytes=size,
        latency_before=times.before,
        latency_after=times.after,
        latency_provenance=times.provenance,
        latency_on=times.on,
        exits=exits,
        policies=policies,
        operating_points=manifest.operating_points,
        layers=_layer_reports(subject) if subject.layers is None else subject.layers,
        dropped=subject.dropped,
        limits_missed=subject.limits.missed(
            accuracy, times.after.typical, energy, size.after, memory_mb(subject.finished, subject.limits)
        ),
        data=subject.data.uses(),
        tried=subject.tried,
        parity=_parity(subject),
        notes=(*subject.notes, *_out_of_reach(manifest)),
        curves=curves(manifest, after, times.known, metric),
    )


def _judged_data(data: Data, before: ExitTable) -> tuple[str, Data]:
    """The labels to judge by: the data's own, else the answers of the model that came in."""
    answers = before.predicted[:, -1]
    if (answers < 0).any():  # no classes: nothing to compare by
        return "agreement", labelled_by(data, None)
    return ("top1", data) if data.labels is not None else ("agreement", labelled_by(data, answers))


def _last_accuracy(table: ExitTable, judged: Data) -> float | None:
    return _accuracy(table.predicted[:, -1], judged)


def _accuracy(predicted: NDArray[np.int64], judged: Data) -> float | None:
    if judged.labels is None or (predicted < 0).any():
        return None
    return float((predicted == judged.labels).mean())


def _out_of_reach(manifest: Manifest) -> Iterator[str]:
    """Budgets that this bundle cannot keep, however easy its inputs are."""
    first = manifest.exits[0]
    for spec in _specs(manifest):
        budget = spec.budget
        if budget is not None and budget.unit == "%" and budget.value < 100 * first.cost_share:
            yield f"policy {spec}: {first.name} alone costs {first.cost_share:.1%}, so it is not held"


def _specs(manifest: Manifest) -> tuple[PolicySpec, ...]:
    return POLICIES if len(manifest.exits) > 1 else POLICIES[:1]


def _policies(session: Session, judged: Data, watch: Watch) -> tuple[PolicyReport, ...]:
    """Every policy over the whole stream, timed."""
    reports = []
    for spec in _specs(session.manifest):
        with watch(f"policy {spec}", judged.count) as tick:
            reports.append(measure_policy(session, judged, spec, None, tick))
    return tuple(reports)


def replay(spec: PolicySpec, manifest: Manifest, table: ExitTable, judged: Data) -> PolicyReport:
    """What the policy does with confidences already seen, for a board whose times this machine cannot know.

    The same controller decides on the same numbers in the same order; only for policies that do not look at the clock.
    """
    taken = replayed(make_policy(spec, manifest, None), table)
    counts = {leaving.name: int((taken == index).sum()) for index, leaving in enumerate(manifest.exits)}
    answers = table.predicted[np.arange(len(taken)), taken]
    return PolicyReport(str(spec), len(taken), _accuracy(answers, judged), counts, Latency())


@dataclass(frozen=True)
class _Times:
    """Latencies before and after, to each exit after, and where they come from. energy_mj: where a board said it.

    requests: what is known of single requests, for the curves; None: only means are.
    """

    before: Latency
    after: Latency
    exits_ms: tuple[float | None, ...]
    provenance: str | None
    on: str | None
    energy_mj: float | None = None
    requests: Times | None = None

    @property
    def known(self) -> Times | None:
        """For the curves; None where the time to an exit is unknown."""
        exits = [value for value in self.exits_ms if value is not None]
        if self.requests is not None or self.provenance is None or len(exits) < len(self.exits_ms):
            return self.requests
        return Times(tuple(exits), tuple(np.diff(exits, prepend=0.0).tolist()), self.provenance, self.on)

    @classmethod
    def there(cls, subject: Judged, bench: Bench) -> _Times:
        """On the board, side by side. Raises BadInput where the bundle cannot be used there."""
        before, after = timed_there(bench, (subject.whole, subject.finished), subject.data.validation)
        exits = tuple(latency.mean for latency in after.exits)
        on = f"{after.device}, {after.on}"
        p50 = tuple(latency.p50 for latency in after.exits if latency.p50 is not None)
        p95 = tuple(stage.p95 for stage in after.stages if stage.p95 is not None)
        complete = len(p50) == len(p95) == len(exits)
        requests = Times(p50, p95, after.provenance, on) if complete else None
        return cls(before.latency, after.latency, exits, after.provenance, on, after.energy_mj, requests)

    @classmethod
    def measured(cls, whole: Session, session: Session, data: Data, rounds: int) -> _Times:
        """Interleaved on this machine."""
        before, after = interleaved((whole, session), data, rounds)
        return cls(
            latency_of(before[:, -1]),
            latency_of(after[:, -1]),
            tuple(after.mean(axis=0).tolist()),
            "measured",
            machine_name(),
            requests=Times.of(after, "measured", machine_name()),
        )

    @classmethod
    def estimated(cls, subject: Judged) -> _Times:
        """From the profile's cost model; unknown where it lacks a coefficient."""
        profile, modelled = subject.profile, subject.modelled
        before = predict(profile, _all_work(subject.whole.manifest, len(subject.whole.manifest.stages)))
        if modelled is not None:
            return cls(Latency(), Latency(mean=modelled.ms), (modelled.ms,), "estimated", modelled.on)
        stages = len(subject.finished.manifest.stages)
        exits = tuple(
            predict(profile, _all_work(subject.finished.manifest, index + 1)).value for index in range(stages)
        )
        known = before.value is not None or exits[-1] is not None
        return cls(
            Latency(mean=before.value),
            Latency(mean=exits[-1]),
            exits,
            "estimated" if known else None,
            f"profile {profile.name}" if known else None,
        )


def _all_work(manifest: Manifest, stages: int) -> list[Work]:
    return [entry for stage in manifest.stages[:stages] for entry in stage.work]


def _energy(subject: Judged, session: Session, times: _Times) -> Figure:
    """mJ of one request run to the end, found out only where a limit asks for it."""
    mean = times.after.mean
    if subject.limits.max_energy_mj is None or mean is None:
        return unknown("mJ")
    if subject.bench is not None:
        provenance = cast("Provenance | None", times.provenance)
        energy = times.energy_mj
        return unknown("mJ") if energy is None else Figure(energy, "mJ", provenance, None, times.on)
    if not subject.on_this_machine:
        watts = subject.profile.power.busy_w.value
        return unknown("mJ") if watts is None else Figure(watts * mean, "mJ", "estimated", None, times.on)
    try:
        sensor = open_sensor(subject.profile.power.sensor, Path("/"), runner())
        costs = with_energy(
            stage_costs(session, subject.data.validation), session, subject.data.validation, sensor
        )
    except BadInput:
        return unknown("mJ")
    per_ms = costs.mj_per_ms
    return unknown("mJ") if per_ms is None else Figure(per_ms * mean, "mJ", "measured", None, times.on)


def _exit_reports(
    manifest: Manifest, table: ExitTable, judged: Data, times: _Times
) -> tuple[ExitReport, ...]:
    agreement = (
        [None] * len(manifest.exits) if (table.predicted < 0).any() else table.agreement.mean(axis=0).tolist()
    )
    return tuple(
        ExitReport(
            leaving.name,
            _accuracy(table.predicted[:, index], judged),
            leaving.cost_share,
            latency_ms,
            agreement[index],
        )
        for index, (leaving, latency_ms) in enumerate(zip(manifest.exits, times.exits_ms, strict=True))
    )


def _parity(subject: Judged) -> Parity | None:
    """How the bundle's graph does on the two runtimes it can be lowered to; None where it cannot, or in a hurry."""
    other = next((entry for entry in subject.profile.backends if entry.name == _OTHER), None)
    if subject.hurried or other is None or not is_installed(_OTHER) or problems(subject.graph, other):
        return None
    data = subject.data.validation
    try:
        return parity(subject.graph, subject.plain, data.subset(spread(data.count, _PARITY)))
    except BadInput:  # what an operator table cannot tell
        return None


def _layer_reports(subject: Judged) -> tuple[LayerReport, ...]:
    sqnr = layer_sqnr(subject.plain, subject.graph, subject.data.calibration)
    times, provenance = _layer_times(subject)
    return tuple(
        LayerReport(
            layer.name,
            layer.op,
            layer.format,
            stage.index,
            layer.macs,
            sqnr.get(layer.output),
            weights.get(layer.name),
            times.get(layer.name),
            provenance if layer.name in times else None,
            subject.why.get(layer.name),
        )
        for stage in subject.made.stages
        for weights in [_weights(stage.model)]
        for layer in layers(stage.model)
    )


def _weights(model: ir.Model) -> Mapping[str, str | None]:
    """Node -> what its weights are stored in, where that is no float32."""
    return {node.name or node.op_type: stored_weights(node) for node in model.graph}


def _layer_times(subject: Judged) -> tuple[Mapping[str, float], str | None]:
    """ms of each layer: by this machine's profiler where it is the target, else by the profile's cost model."""
    found: dict[str, float] = {}
    if subject.on_this_machine:
        session, data = subject.made.open(), subject.data.validation
        samples = [data.inputs(index) for index in spread(data.count, _TIMED)]
        known = [{**sample, **session.run_all(sample)} for sample in samples]
        for part in (part for stage in subject.made.manifest.stages for part in stage.parts):
            if part.backend == onnxruntime.NAME:
                inputs = [{part.in_file(t.name): values[t.name] for t in part.inputs} for values in known]
                found.update(times_of(subject.made.files[part.file], inputs))
        return found, "measured"
    for stage in subject.made.stages:
        for layer in layers(stage.model):
            ms = predict(subject.profile, work([layer])).value
            if ms is not None:
                found[layer.name] = ms
    return found, "estimated"
