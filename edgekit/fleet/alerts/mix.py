"""The exit mix a bundle expects with a policy, from its operating points, and how far a board's is from it. No I/O."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from edgekit.core.errors import BadInput
from edgekit.core.manifest import Manifest, cheapest_point
from edgekit.core.policy import DEFAULT_MAX_DROP, PolicySpec, parse_budget


def parse_policy(text: str) -> PolicySpec | None:
    """What a record's policy says (`full`, `budget 40%`, `anytime 5ms`, `confidence 0.5pt`); None: it is no policy."""
    kind, _, value = text.partition(" ")
    try:
        if kind == "budget":
            return PolicySpec(kind, parse_budget(value))
        if kind == "anytime":
            return PolicySpec(kind, deadline_ms=float(value.removesuffix("ms")))
        drop = float(value.removesuffix("pt")) if kind == "confidence" and value else DEFAULT_MAX_DROP
        return PolicySpec(kind, max_drop=drop)
    except (BadInput, ValueError):
        return None


def expected_mix(manifest: Manifest, policy: str) -> tuple[dict[str, float] | None, str]:
    """Exit -> expected share of the requests; None where nobody can know it, with why.

    full: all leave at the last exit. confidence: the point that the board chooses. budget in % or MMAC: what mixes the
    two points around the budget. A budget in ms or mJ depends on the board, and with a deadline time decides.
    """
    names = [entry.name for entry in manifest.exits]
    spec = parse_policy(policy)
    if spec is None:
        return None, "the policy is not known"
    if spec.kind == "full" or len(names) == 1:
        return _named(names, (0.0,) * (len(names) - 1) + (1.0,)), ""
    if spec.kind == "anytime":
        return None, "with a deadline it depends on the board's speed"
    if not manifest.operating_points:
        return None, "the bundle has no operating points"
    if spec.kind == "confidence":
        return _named(names, cheapest_point(manifest.operating_points, spec.max_drop / 100).exit_shares), ""
    if spec.budget is None or spec.budget.unit not in {"%", "MMAC"}:
        return None, "a budget in ms or mJ depends on the board's speed"
    scale = 100.0 if spec.budget.unit == "%" else manifest.macs / 1e6
    return _named(names, _mixed(manifest, spec.budget.value, scale)), ""


def _mixed(manifest: Manifest, budget: float, scale: float) -> Sequence[float]:
    """Exit shares of the mixture of two neighbouring points whose mean cost is the budget, as the controller's is."""
    costs = [scale * entry.cost_share for entry in manifest.exits]
    points = sorted(
        (sum(s * c for s, c in zip(point.exit_shares, costs, strict=True)), point.exit_shares)
        for point in manifest.operating_points
    )
    if budget <= points[0][0]:
        return points[0][1]
    for (low, below), (high, above) in itertools.pairwise(points):
        if budget <= high:
            part = (budget - low) / (high - low) if high > low else 1.0
            return [(1 - part) * b + part * a for b, a in zip(below, above, strict=True)]
    return points[-1][1]


def total_variation(counts: Mapping[str, int], expected: Mapping[str, float]) -> float:
    """Half the sum of the differences between two mixes: the share of requests that left elsewhere. 0 of nothing."""
    number = sum(counts.values())
    if not number:
        return 0.0
    names = {*counts, *expected}
    return 0.5 * sum(abs(counts.get(name, 0) / number - expected.get(name, 0.0)) for name in names)


def _named(names: Sequence[str], shares: Sequence[float]) -> dict[str, float]:
    return dict(zip(names, shares, strict=True))
