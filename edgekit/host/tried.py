"""One way to make the bundle, tried: what its answers lost on validation data, what it weighs, how long it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgekit.core.cost import Work, predict
from edgekit.core.manifest import Manifest
from edgekit.core.profile import Backend, Profile
from edgekit.core.report import Attempt
from edgekit.host.bench import Bench
from edgekit.host.datasets import Datasets
from edgekit.host.effort import Effort
from edgekit.host.graph import Graph
from edgekit.host.limits import DEFAULT_MAX_DISAGREEMENT, DEFAULT_MAX_DROP, Limits
from edgekit.host.pack import Draft, draft
from edgekit.host.passes import Context, Step, run_steps
from edgekit.host.split import split
from edgekit.host.sqnr import Answers, answers_of, check_finite, sqnr_of
from edgekit.runtime.data import Data
from edgekit.runtime.measure import ExitTable, exit_table

MIN_SQNR_DB = 20.0  # how close answers that are no classes must stay to the float network's
_ASKED_DB = 3.0  # what formats may add to the error of a network that the user already changed
_CLOSENESS_SAMPLES = 256


@dataclass(frozen=True)
class Setting:
    """What a search works with. plain: the float network that came in, folded: what everything is compared with.

    samples: of the validation data, which candidates are compared on. bench: times candidates on the target; None: that
    is a board which is not here, and the profile's cost model must do.
    """

    profile: Profile
    backend: Backend
    plain: Graph
    data: Datasets
    samples: Data
    context: Context
    limits: Limits
    effort: Effort
    bench: Bench | None
    until: float  # by time.monotonic: after it nothing new is tried
    others: tuple[Backend, ...]  # runtimes that may be tried besides
    here: bool  # this machine is the target: its own profiler may speak
    name: str
    version: int
    _memo: dict[str, Answers] = field(default_factory=dict, repr=False, compare=False)

    def float_answers(self) -> Answers:
        """What the float network answers to some of the samples, found out once. Raises BadInput: not finite."""
        if "float" not in self._memo:
            answers = answers_of(self.plain, self.samples, _CLOSENESS_SAMPLES)
            check_finite(self.plain, answers, self.samples)
            self._memo["float"] = answers
        return self._memo["float"]


@dataclass(frozen=True)
class Tried:
    """A list of steps, what they made of the network for one backend, and what that is worth.

    lost: points of `metric` against the float network, None where its answers are no classes; lost_error: the standard
    error of that figure, from the answers that differ. ratio: of its latency to the float network's, timed side by side
    or estimated; None: unknown; infinite where the target cannot use it, and then problem says why.
    why: node -> the reason for its format.
    """

    label: str
    steps: tuple[Step, ...]
    backend: str
    graph: Graph
    made: Draft
    validated: ExitTable
    metric: str
    lost: float | None
    lost_error: float
    sqnr_db: float
    latency_ms: float | None = None
    ratio: float | None = None
    provenance: str | None = None
    why: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None

    def attempt(self, *, chosen: bool, why: str) -> Attempt:
        """For the report."""
        return Attempt(
            self.label,
            self.metric,
            self.lost,
            self.sqnr_db,
            self.made.size_bytes,
            self.latency_ms,
            self.provenance,
            chosen,
            why,
        )


def try_steps(
    setting: Setting,
    label: str,
    steps: Sequence[Step],
    stayed: Tried | None,
    graph: Graph | None = None,
    why: Mapping[str, str] | None = None,
) -> Tried:
    """Take the steps from the float network on, lower, and run the validation samples. stayed: the float network's own.

    graph: what the steps make, where that is known already. Raises BadInput where a step cannot be taken.
    """
    if graph is None:
        graph = run_steps(setting.plain, steps, setting.context)
    made = draft(graph, split(graph), setting.backend, setting.name, setting.version, setting.profile.name)
    with setting.context.watch(f"try {label}", setting.samples.count) as tick:
        validated = exit_table(made.open(), setting.samples, tick)
    metric = "agreement" if validated.correct is None else "top1"
    lost, error = _lost((stayed.validated if stayed else validated), validated)
    close = sqnr_of(setting.float_answers(), answers_of(graph, setting.samples, _CLOSENESS_SAMPLES))
    return Tried(
        label,
        tuple(steps),
        setting.backend.name,
        graph,
        made,
        validated,
        metric,
        lost,
        error,
        close,
        why=why or {},
    )


def _lost(stayed: ExitTable, tried: ExitTable) -> tuple[float | None, float]:
    """Points of accuracy, without labels of agreement, lost at the last exit, and their standard error.

    None where answers are no classes. The error is that of the mean of paired differences.
    """
    before, after = stayed.predicted[:, -1], tried.predicted[:, -1]
    if (before < 0).any():
        return None, 0.0
    if stayed.correct is not None and tried.correct is not None:
        worse = stayed.correct[:, -1].astype(np.float64) - tried.correct[:, -1]
    else:
        worse = (before != after).astype(np.float64)
    return 100 * float(worse.mean()), 100 * float(worse.std()) / math.sqrt(len(worse))


def harm_of(setting: Setting, tried: Tried, asked: Tried | None = None) -> str | None:
    """Why its answers are too bad; None where they are good enough. Judged on validation data alone.

    asked: what the user made of the network first; what that lost is not held against `tried`. A limit on accuracy that
    nobody set allows for chance: one standard error of the loss. Agreement needs none: no label is wrong there.
    """
    if tried.lost is None:
        wanted = MIN_SQNR_DB if asked is None else min(MIN_SQNR_DB, asked.sqnr_db - _ASKED_DB)
        if tried.sqnr_db < wanted:
            return (
                f"its answers are off by {tried.sqnr_db:.1f} dB on the validation data, {wanted:g} are wanted"
            )
        return None
    limit = allowed(setting, tried.metric)
    lost = tried.lost - (0.0 if asked is None else asked.lost or 0.0)
    by_chance = tried.metric == "top1" and setting.limits.max_drop is None
    if lost > limit + (tried.lost_error if by_chance else 1e-9):
        what = "accuracy" if tried.metric == "top1" else "agreement"
        return f"it costs {lost:.2f} points of {what} on the validation data, more than {limit:g}"
    return None


def allowed(setting: Setting, metric: str) -> float:
    """How many points may be lost."""
    if setting.limits.max_drop is not None:
        return setting.limits.max_drop
    return DEFAULT_MAX_DROP if metric == "top1" else DEFAULT_MAX_DISAGREEMENT


def timed(setting: Setting, candidates: Sequence[Tried]) -> list[Tried]:
    """The candidates with their latencies, the first the float network: side by side on the target, or estimated."""
    if setting.bench is None:
        return [_estimated(setting.profile, tried, candidates[0]) for tried in candidates]
    reports = setting.bench([tried.made for tried in candidates], setting.samples)
    first = np.array(reports[0].turns_ms)
    found = []
    for tried, report in zip(candidates, reports, strict=True):
        turns = np.array(report.turns_ms)
        count = min(len(turns), len(first))
        ratio = float(np.median(turns[:count] / first[:count])) if count else None
        said = replace(tried, latency_ms=report.latency.p50, ratio=ratio, provenance=report.provenance)
        found.append(_unusable(tried, report.problems) if report.problems else said)
    return found


def _unusable(tried: Tried, problems: Sequence[str]) -> Tried:
    """Its runtime refuses it on the target, or its golden cases do not hold there."""
    return replace(tried, ratio=math.inf, provenance=None, problem="; ".join(problems))


def _estimated(profile: Profile, tried: Tried, first: Tried) -> Tried:
    mine, other = (predict(profile, work_of(entry.made.manifest)).value for entry in (tried, first))
    if mine is None or not other:
        return replace(tried, latency_ms=mine, provenance=None if mine is None else "estimated")
    return replace(tried, latency_ms=mine, ratio=mine / other, provenance="estimated")


def work_of(manifest: Manifest, stages: int | None = None) -> list[Work]:
    """All work of the first `stages` stages, of all where None."""
    return [entry for stage in manifest.stages[:stages] for entry in stage.work]
