"""Judge a wave: what became of its boards, and their figures against the same boards before. Pure; reads no store.

Chance is not held against a bundle. A share (requests slower than the allowed p99, errors, missed deadlines) counts as
too high only where it is above the limit by more than 2.33 standard deviations of a binomial share at that limit (one
in a hundred good waves would be stopped by that, were requests independent), and nothing is judged on fewer than
`min_requests` requests. A p99 is above R times the one before exactly where more than 1 % of the requests take longer
than R times the p99 before, which is what is counted. Figures are looked at once, when the soak is over: looking again
and again until something is significant would find something.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.core.histogram import Histogram, edge_ms
from edgekit.fleet.rollouts.plan import LOST, STRICT, Gate

ALL = "all"  # the scope of all profiles together
OK, FAILED, UNKNOWN, OPEN = "ok", "failed", "unknown", "open"
_Z = 2.33
_TAIL = 0.01  # of requests are slower than p99


@dataclass(frozen=True)
class Counts:
    """Boards that were asked, by what became of it. open: at work, or silent before the deadline."""

    took: int = 0
    failed: int = 0
    silent: int = 0
    refused: int = 0
    superseded: int = 0
    open: int = 0

    @property
    def asked(self) -> int:
        """Those that count: a refusal and a newer job say nothing about the bundle."""
        return self.took + self.failed + self.silent + self.open


@dataclass
class Figures:
    """Sums of the requests of some boards. energy: how it came about -> [mJ, requests]."""

    requests: int = 0
    errors: int = 0
    deadline_missed: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    energy: dict[str, list[float]] = field(default_factory=dict)

    def merge(self, other: Figures) -> None:
        """Add another sum."""
        self.requests += other.requests
        self.errors += other.errors
        self.deadline_missed += other.deadline_missed
        for bucket, count in other.latency.items():
            self.latency[bucket] = self.latency.get(bucket, 0) + count
        for name, count in other.exits.items():
            self.exits[name] = self.exits.get(name, 0) + count
        for kind, (energy_mj, requests) in other.energy.items():
            known = self.energy.setdefault(kind, [0.0, 0.0])
            known[0] += energy_mj
            known[1] += requests


@dataclass(frozen=True)
class Check:
    """One figure of one scope (a profile, or all) held against its limit."""

    scope: str
    figure: str
    verdict: str  # ok, failed, unknown
    text: str
    before: float | None = None
    after: float | None = None
    limit: float | None = None
    blocks: bool = False  # an unknown one that stops the wave

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)


def judge_results(gate: Gate, counts: Counts, *, over: bool) -> tuple[str, str]:
    """ok, failed or open, and why. over: the deadline has passed, and those that are not done are silent.

    It is decided early where the rest can change nothing: `ok` when even if all of them failed the gate would hold.
    """
    bad = counts.failed + counts.silent + (counts.open if over else 0)
    rest = 0 if over else counts.open
    allowed = math.floor(gate.max_failed_percent / 100 * counts.asked + 1e-9)
    if gate.max_failed is not None:
        allowed = min(allowed, gate.max_failed)
    silent = counts.silent + (counts.open if over else 0)
    said = f"of {counts.asked} boards {counts.took} took it, {counts.failed} failed, {silent} were silent"
    said += f", {rest} are still at work" if rest else ""
    limit = f"allowed are {allowed} ({gate.max_failed_percent:g} %)"
    if bad > allowed:
        return FAILED, f"{said}: {bad} did not take it, {limit}"
    if counts.took < gate.min_successes and counts.took + rest < gate.min_successes:
        return FAILED, f"{said}: {gate.min_successes} must take it"
    if bad + rest > allowed or counts.took < gate.min_successes:
        return OPEN, said
    return OK, f"{said}; {limit}"


def judge_figures(
    gate: Gate, before: Mapping[str, Figures], after: Mapping[str, Figures]
) -> tuple[Check, ...]:
    """Every limit of the gate on every profile and on all together. before, after: profile -> figures."""
    checks: list[Check] = []
    profiles = sorted({*before, *after})
    scopes = [(ALL, _total(before), _total(after))] if len(profiles) != 1 else []
    scopes += [(name, before.get(name, Figures()), after.get(name, Figures())) for name in profiles]
    for scope, old, new in scopes:
        checks += _judge(gate, scope, old, new)
    return tuple(checks)


def enough(gate: Gate, before: Mapping[str, Figures], after: Mapping[str, Figures]) -> bool:
    """Whether every profile that served before the wave has served enough since."""
    return bool(after) and all(
        after.get(name, Figures()).requests >= gate.min_requests
        for name, figures in before.items()
        if figures.requests >= gate.min_requests
    )


def _total(figures: Mapping[str, Figures]) -> Figures:
    found = Figures()
    for part in figures.values():
        found.merge(part)
    return found


def _judge(gate: Gate, scope: str, old: Figures, new: Figures) -> list[Check]:
    if new.requests < gate.min_requests:
        known = old.requests >= gate.min_requests
        why = f"{new.requests} requests since, {gate.min_requests} are wanted ({old.requests} before)"
        blocks = gate.unknown == STRICT or (gate.unknown == LOST and known)
        return [
            Check(scope, "requests", UNKNOWN, f"{scope}: {why}", old.requests, new.requests, blocks=blocks)
        ]
    checks = []
    if gate.p99_ratio is not None:
        checks.append(_p99(gate, scope, old, new, gate.p99_ratio))
    if gate.energy_ratio is not None:
        checks.append(_energy(gate, scope, old, new, gate.energy_ratio))
    shares = (
        ("missed deadlines", "deadline_missed", gate.deadline_points),
        ("errors", "errors", gate.error_points),
    )
    for title, name, points in shares:
        if points is not None:
            checks.append(_share(scope, title, getattr(old, name), getattr(new, name), old, new, points))
    if gate.exit_mix is not None:
        checks.append(_mix(gate, scope, old, new, gate.exit_mix))
    return checks


def _unknown(gate: Gate, scope: str, figure: str, why: str, limit: float, *, lost: bool) -> Check:
    blocks = gate.unknown == STRICT or (gate.unknown == LOST and lost)
    return Check(scope, figure, UNKNOWN, f"{scope}: {figure} not judged: {why}", limit=limit, blocks=blocks)


def _above(count: int, requests: int, share: float) -> bool:
    """Whether a share is above a limit by more than chance."""
    return count > requests * share + _Z * math.sqrt(requests * share * (1 - share))


def _p99(gate: Gate, scope: str, old: Figures, new: Figures, limit: float) -> Check:
    if old.requests < gate.min_requests or not old.latency:
        return _unknown(gate, scope, "p99", f"{old.requests} requests before", limit, lost=False)
    if not new.latency:
        return _unknown(gate, scope, "p99", "no latencies since", limit, lost=True)
    was, now = (Histogram(part.latency).percentile_ms(99) or 0.0 for part in (old, new))
    slow = sum(count for bucket, count in new.latency.items() if edge_ms(bucket - 1) >= limit * was)
    measured = sum(new.latency.values())
    bad = now > limit * was and _above(slow, measured, _TAIL)
    text = f"{scope}: p99 {was:.3g} ms before, {now:.3g} ms now ({now / was:.2f} times; limit {limit:g})"
    return Check(scope, "p99", FAILED if bad else OK, text, was, now, limit)


def _energy(gate: Gate, scope: str, old: Figures, new: Figures, limit: float) -> Check:
    """Only figures that came about in the same way are compared."""
    known = [
        {kind: sums for kind, sums in part.energy.items() if sums[1] >= gate.min_requests}
        for part in (old, new)
    ]
    both = sorted(set(known[0]) & set(known[1]))
    if not both:
        kinds = [", ".join(sorted(part)) or "unknown" for part in known]
        why = f"{kinds[0]} before, {kinds[1]} now"
        return _unknown(gate, scope, "energy", why, limit, lost=bool(known[0]))
    compared = []
    for kind in both:
        was, now = (part[kind][0] / part[kind][1] for part in known)
        compared.append((now / was if was > 0 else (math.inf if now > 0 else 1.0), was, now, kind))
    ratio, was, now, kind = max(compared)
    times = f"{ratio:.2f} times" if math.isfinite(ratio) else "from nothing"
    text = (
        f"{scope}: energy {was:.3g} mJ a request before, {now:.3g} mJ now, {kind} ({times}; limit {limit:g})"
    )
    return Check(scope, "energy", FAILED if ratio > limit else OK, text, was, now, limit)


def _share(scope: str, title: str, was: int, now: int, old: Figures, new: Figures, points: float) -> Check:
    """A share of requests, held against the one before; against none where nothing was before."""
    before = was / old.requests if old.requests else 0.0
    after = now / new.requests
    bad = _above(now, new.requests, min(1.0, before + points / 100))
    text = f"{scope}: {title} {100 * before:.2f} % before, {100 * after:.2f} % now (limit {points:g} points more)"
    return Check(scope, title, FAILED if bad else OK, text, before, after, points)


def _mix(gate: Gate, scope: str, old: Figures, new: Figures, limit: float) -> Check:
    totals = [sum(part.exits.values()) for part in (old, new)]
    if totals[0] < gate.min_requests:
        return _unknown(gate, scope, "exit mix", f"{totals[0]} exits before", limit, lost=False)
    if totals[1] < gate.min_requests:
        return _unknown(gate, scope, "exit mix", f"{totals[1]} exits since", limit, lost=True)
    away = distance(old.exits, new.exits)
    text = f"{scope}: exit mix {away:.2f} away from before (limit {limit:g})"
    return Check(scope, "exit mix", FAILED if away > limit else OK, text, 0.0, away, limit)


def distance(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Total variation of two mixes: the share of requests that leave elsewhere, 0-1."""
    totals = [sum(mix.values()) or 1 for mix in (one, other)]
    keys = {*one, *other}
    return sum(abs(one.get(key, 0) / totals[0] - other.get(key, 0) / totals[1]) for key in keys) / 2
