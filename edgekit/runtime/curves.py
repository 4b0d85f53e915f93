"""What exits are worth: quality over mean cost and over a deadline, by the real policies. Finds no threshold.

The thresholds come from validation data; the tables here must be of other data. A curve is what the policy does to the
whole stream, beside the static exits: each exit alone, and between two of them the mix that costs as much.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.core.curves import LEAD_UNTIL, AnytimePoint, BudgetPoint, Curves, Lead, StaticExit
from edgekit.core.manifest import METRICS, Manifest
from edgekit.core.policy import Budget, PolicySpec
from edgekit.runtime.data import Data
from edgekit.runtime.measure import ExitTable, Tick
from edgekit.runtime.policy import Policy, StageCosts, make_policy
from edgekit.runtime.session import Session

LEVELS = 20
BUCKETS = 10  # of deadlines drawn at random
LONGEST = 1.2  # times the full network's time
PASSES_S = 10.0  # how long to begin another pass over the data
_PERCENTILES = (99, 95, 90, 75, 50)
_NOTHING = 1e-9  # what is left of zero after rounding
_Z = 1.959963984540054  # two-sided 95 %
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Times:
    """How long the exits take on some machine, in ms.

    exits: typical time from request to each, the median where requests were measured. p95: of each stage alone.
    latency: real requests' times to each exit, (requests, exits), given to the samples in turn; None: the typical
    times stand for all of them.
    """

    exits: tuple[float, ...]
    p95: tuple[float, ...]
    provenance: str
    on: str | None
    latency: Floats | None = None

    @classmethod
    def of(cls, latency_ms: Floats, provenance: str, on: str | None) -> Times:
        """Of what an exit table measured."""
        stages = np.diff(latency_ms, axis=1, prepend=0.0)
        p95 = np.percentile(stages, 95, axis=0)
        return cls(
            tuple(np.median(latency_ms, axis=0).tolist()), tuple(p95.tolist()), provenance, on, latency_ms
        )

    @property
    def costs(self) -> StageCosts:
        """For a policy; a new one each time, so that none learns from another's requests."""
        return StageCosts(tuple(np.diff(self.exits, prepend=0.0).tolist()), self.p95)


def curves(
    manifest: Manifest, table: ExitTable, times: Times | None, metric: str | None = None
) -> Curves | None:
    """Both curves, replayed on every exit's answers; None where there is nothing to choose or to compare by.

    table: of data that found no threshold. metric: what `table.correct` is; top1 where nothing is said, agreement with
    the last exit without labels.
    """
    if len(manifest.exits) < 2 or not manifest.operating_points or (table.predicted < 0).any():
        return None
    good = _good(table)
    static = tuple(
        StaticExit(
            leaving.name,
            leaving.cost_share,
            float(good[:, k].mean()),
            None if times is None else times.exits[k],
        )
        for k, leaving in enumerate(manifest.exits)
    )
    budget, lead = _budget(manifest, table, good, times)
    return Curves(
        metric=metric or METRICS[0 if table.correct is not None else 1],
        count=len(good),
        static=static,
        budget=budget,
        lead=lead,
        anytime=() if times is None else _anytime(manifest, table, good, times),
        anytime_how=None if times is None else "replayed",
        provenance=None if times is None else times.provenance,
        on=None if times is None else times.on,
    )


def replayed(policy: Policy, table: ExitTable, elapsed_ms: Floats | None = None) -> Ints:
    """The exit each sample leaves at when `policy` decides on what is in the table, in its order.

    elapsed_ms: (samples, exits), for policies that look at the clock.
    """
    last = table.confidence.shape[1] - 1
    taken = np.full(len(table.confidence), last)
    none = [0.0] * (last + 1)
    for row, confidences in enumerate(table.confidence[:, :last].tolist()):
        elapsed = none if elapsed_ms is None else elapsed_ms[row].tolist()
        at = next((k for k, value in enumerate(confidences) if policy.leave(k, value, elapsed[k])), last)
        policy.observe(at, elapsed[at])
        taken[row] = at
    return taken


def _good(table: ExitTable) -> Floats:
    good = table.correct if table.correct is not None else table.agreement
    return good.astype(np.float64)


# --- quality over mean cost ---------------------------------------------------------------------------------


def _budget(
    manifest: Manifest, table: ExitTable, good: Floats, times: Times | None
) -> tuple[tuple[BudgetPoint, ...], Lead | None]:
    shares = np.array([leaving.cost_share for leaving in manifest.exits])
    rows = np.arange(len(good))
    points, leads = [], []
    for level in np.linspace(shares[0], 1.0, LEVELS).tolist():
        policy = make_policy(PolicySpec("budget", Budget(100 * level, "%")), manifest, None)
        taken = replayed(policy, table)
        cost = min(1.0, float(shares[taken].mean()))
        static = good @ mix(shares, cost)
        lead = good[rows, taken] - static
        low, high = interval(lead)
        exit_shares = np.bincount(taken, minlength=len(shares)) / len(taken)
        ms = None if times is None else float(exit_shares @ np.array(times.exits))
        quality = float(good[rows, taken].mean())
        points.append(
            BudgetPoint(
                level, cost, quality, float(static.mean()), low, high, tuple(exit_shares.tolist()), ms
            )
        )
        leads.append(lead)
    return tuple(points), _lead(points, leads)


def mix(shares: Floats, cost: float) -> Floats:
    """Weights of the exits, two neighbours' only, whose mean cost is `cost`.

    A sample's static correctness at that cost is the weighted mean of the two exits': each answers its share.
    """
    weights = np.zeros(len(shares))
    above = min(max(int(np.searchsorted(shares, cost)), 1), len(shares) - 1)
    gap = shares[above] - shares[above - 1]
    part = 1.0 if gap <= 0 else float(np.clip((cost - shares[above - 1]) / gap, 0.0, 1.0))
    weights[above - 1], weights[above] = 1 - part, part
    return weights


def interval(differences: Floats) -> tuple[float, float]:
    """95 % interval of the mean of paired differences, by their own spread."""
    mean = float(differences.mean())
    count = len(differences)
    half = _Z * float(differences.std(ddof=1)) / count**0.5 if count > 1 else 1.0
    return max(-1.0, mean - half), min(1.0, mean + half)


def _lead(points: Sequence[BudgetPoint], leads: Sequence[Floats]) -> Lead | None:
    """The mean lead over cost up to LEAD_UNTIL, by the trapezoid rule, sample by sample for its interval."""
    inside = [index for index, point in enumerate(points) if point.cost_share <= LEAD_UNTIL]
    inside.sort(key=lambda index: points[index].cost_share)
    if not inside:
        return None
    weights = np.zeros(len(points))
    for left, right in itertools.pairwise(inside):
        weights[[left, right]] += points[right].cost_share - points[left].cost_share
    if not weights.sum() > 0:
        weights[inside] = 1.0
    each = np.tensordot(weights / weights.sum(), np.array(leads), 1)
    low, high = interval(each)
    return Lead(float(each.mean()), low, high, LEAD_UNTIL, all(point.high > -_NOTHING for point in points))


# --- quality over a deadline --------------------------------------------------------------------------------


def _anytime(manifest: Manifest, table: ExitTable, good: Floats, times: Times) -> tuple[AnytimePoint, ...]:
    """Every sample under each deadline, decided by the real policy with the stages' times."""
    known = np.array([times.exits]) if times.latency is None else times.latency
    elapsed = np.resize(known, table.confidence.shape)  # from the first row again when they are used up
    shortest = max(times.exits[0], times.p95[0])
    points = []
    for deadline in np.linspace(shortest, max(shortest, LONGEST * times.exits[-1]), LEVELS).tolist():
        policy = make_policy(PolicySpec("anytime", None, deadline), manifest, times.costs)
        taken = replayed(policy, table, elapsed)
        rows = np.arange(len(taken))
        points.append(
            _point(deadline, deadline, good[rows, taken], elapsed[rows, taken], taken, len(times.exits))
        )
    return tuple(points)


def _point(
    deadline_ms: float, deadlines: Floats | float, good: Floats, latency_ms: Floats, taken: Ints, exits: int
) -> AnytimePoint:
    return AnytimePoint(
        deadline_ms=deadline_ms,
        requests=len(taken),
        quality=min(1.0, max(0.0, float(good.mean()))),
        in_time=float((latency_ms <= deadlines).mean()),
        ms=float(latency_ms.mean()),
        exit_shares=tuple((np.bincount(taken, minlength=exits) / len(taken)).tolist()),
    )


def deadline_edges(latency_ms: Floats) -> Floats:
    """Borders of the buckets: even from the first stage's p99 to LONGEST times the full network's median.

    latency_ms: (requests, exits) of an exit table made on the same machine just before. Where the machine is so
    disturbed that the p99 lies above the full network's median, the highest lower percentile that does not is the
    first border: else there would be nothing to see.
    """
    full = float(np.median(latency_ms[:, -1]))
    candidates = np.percentile(latency_ms[:, 0], _PERCENTILES).tolist()
    shortest = next((value for value in candidates if value < full), full)
    return np.linspace(shortest, max(LONGEST * full, shortest * (1 + 1e-6)), BUCKETS + 1)


def measured_anytime(
    session: Session,
    data: Data,
    table: ExitTable,
    costs: StageCosts,
    tick: Tick,
    *,
    seed: int = 0,
    limit_s: float = PASSES_S,
) -> tuple[AnytimePoint, ...]:
    """Really run requests under deadlines drawn at random; a point per bucket of deadlines.

    In each pass every sample is run once, in the bucket after its last one: after BUCKETS passes all buckets have seen
    all samples. No pass begins after `limit_s`; what buckets with other samples would differ by then is taken out, by
    the full network's answers to them. table: every exit's answers to the same data, made on this machine just before:
    whether an exit is right stands in it, since a stage gives the same answer to the same sample.
    """
    end = time.perf_counter() + limit_s
    rng, edges = np.random.default_rng(seed), deadline_edges(table.latency_ms)
    places, deadlines, taken, latency = ([[] for _ in range(BUCKETS)] for _ in range(4))  # type: ignore[var-annotated]
    for turn in range(BUCKETS):
        if turn and time.perf_counter() > end:
            break
        for row in rng.permutation(data.count).tolist():
            bucket = (row + turn) % BUCKETS
            deadline = float(rng.uniform(edges[bucket], edges[bucket + 1]))
            policy = make_policy(PolicySpec("anytime", None, deadline), session.manifest, costs)
            answer = session.run(data.inputs(row), policy)
            places[bucket].append(row)
            deadlines[bucket].append(deadline)
            taken[bucket].append(answer.exit_index)
            latency[bucket].append(answer.latency_ms)
            tick(1)
    good, points = _good(table), []
    for index in range(BUCKETS):
        if places[index]:
            rows, exits, drawn = np.array(places[index]), np.array(taken[index]), np.array(deadlines[index])
            correct = good[:, -1].mean() + good[rows, exits] - good[rows, -1]
            ms = np.array(latency[index])
            points.append(_point(float(drawn.mean()), drawn, correct, ms, exits, len(session.exits)))
    return tuple(points)


def with_measured(curves: Curves, anytime: tuple[AnytimePoint, ...]) -> Curves:
    """The curves with requests that were really run under deadlines."""
    return replace(curves, anytime=anytime, anytime_how="measured")
