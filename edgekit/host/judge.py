"""Measure what went in and what came out, on the same data, and write the Report. Chooses nothing."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.core.cost import Work, predict
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure, unknown
from edgekit.core.manifest import Manifest
from edgekit.core.policy import Budget, PolicySpec
from edgekit.core.profile import Profile
from edgekit.core.report import Change, Dropped, ExitReport, Latency, LayerReport, PolicyReport, Report
from edgekit.host.bench import interleaved
from edgekit.host.datasets import Datasets, labelled_by
from edgekit.host.graph import Graph
from edgekit.host.limits import Limits
from edgekit.host.pack import Draft, Finished
from edgekit.host.sqnr import layer_sqnr
from edgekit.host.watch import Watch
from edgekit.host.work import layers
from edgekit.runtime.command import runner
from edgekit.runtime.data import Data
from edgekit.runtime.energy import with_energy
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

POLICIES = (PolicySpec("full"), PolicySpec("budget", Budget(32.0, "%")), PolicySpec("confidence"))
_PACKAGES = ("edgekit", "numpy", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True)
class Judged:
    """What is judged, and what it is compared with. whole: the network that came in, as one stage."""

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


def judge(subject: Judged, watch: Watch) -> Report:
    """Run both networks over the evaluation data through the Session, and say what came of it.

    Accuracy is always measured here. Times are the target's only where it is this machine; else the cost model's
    estimate for the profile, or unknown.
    """
    data, manifest = subject.data.evaluation, subject.finished.manifest
    whole, session = subject.whole.open(), subject.finished.open()
    with watch("judge the model that came in", data.count) as tick:
        before = exit_table(whole, data, tick)
    metric, judged = _judged_data(data, before)
    with watch("judge the bundle", data.count) as tick:
        after = exit_table(session, judged, tick)
    if subject.on_this_machine:
        policies = _policies(session, judged, watch)
        times = _Times.measured(whole, session, data)
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
        layers=_layer_reports(subject),
        dropped=subject.dropped,
        limits_missed=subject.limits.missed(accuracy, times.after.mean, energy, size.after),
        data=subject.data.uses(),
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
    policy = make_policy(spec, manifest, None)
    last = len(manifest.exits) - 1
    taken = np.full(len(table.predicted), last)
    for row, confidences in enumerate(table.confidence[:, :last].tolist()):
        taken[row] = next((k for k, value in enumerate(confidences) if policy.leave(k, value, 0.0)), last)
        policy.observe(int(taken[row]), 0.0)
    counts = {leaving.name: int((taken == index).sum()) for index, leaving in enumerate(manifest.exits)}
    answers = table.predicted[np.arange(len(taken)), taken]
    return PolicyReport(str(spec), len(taken), _accuracy(answers, judged), counts, Latency())


@dataclass(frozen=True)
class _Times:
    """Latencies before and after, to each exit after, and where they come from."""

    before: Latency
    after: Latency
    exits_ms: tuple[float | None, ...]
    provenance: str | None
    on: str | None

    @classmethod
    def measured(cls, whole: Session, session: Session, data: Data) -> _Times:
        """Interleaved on this machine."""
        before, after = interleaved((whole, session), data)
        exits = tuple(after.mean(axis=0).tolist())
        return cls(latency_of(before[:, -1]), latency_of(after[:, -1]), exits, "measured", machine_name())

    @classmethod
    def estimated(cls, subject: Judged) -> _Times:
        """From the profile's cost model; unknown where it lacks a coefficient."""
        profile = subject.profile
        before = predict(profile, _all_work(subject.whole.manifest, len(subject.whole.manifest.stages)))
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
    return tuple(
        ExitReport(leaving.name, _accuracy(table.predicted[:, index], judged), leaving.cost_share, latency_ms)
        for index, (leaving, latency_ms) in enumerate(zip(manifest.exits, times.exits_ms, strict=True))
    )


def _layer_reports(subject: Judged) -> tuple[LayerReport, ...]:
    sqnr = layer_sqnr(subject.plain, subject.graph, subject.data.calibration)
    return tuple(
        LayerReport(layer.name, layer.op, layer.format, stage.index, layer.macs, sqnr.get(layer.output))
        for stage in subject.made.stages
        for layer in layers(stage.model)
    )
