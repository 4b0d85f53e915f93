"""Scale a profile's costs to what boards of that profile measured. Measures nothing; asks no server.

A board says the mean latency of an hour and its exit mix, never what one operator took. So work is brought together in
groups (operator and number format; all that the profile prices by its general roofline is one group), and each group
gets one factor. A row's prediction is the mix's mean of what its exits run: measured mean = sum of factor x predicted
time of the group. Where exit mixes and bundles do not tell two groups apart (their columns are almost parallel) they
share a factor; what is a small part of the time everywhere keeps factor 1. The factors are a least-squares fit of
relative errors, drawn to 1 (ridge regression: Hoerl, Kennard 1970), and judged on bundles, or boards, held out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.core.cost import SIDE_WORK, Work, measured_class, predict
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure
from edgekit.core.profile import Costs, OpCosts, Profile

GENERAL = ("general", "")  # what the profile has no class of its own for
PULL = 1e-3  # towards factor 1, in squared relative errors a row
PARALLEL = 0.995  # cosine between two groups' columns from which the data do not tell them apart
LEAST_SHARE = 0.03  # of the time of some row; below, a group's factor is 1
LOW, HIGH = 0.1, 10.0  # factors beyond are no refinement
MOST_MISSED = 0.25  # median relative error of the fit itself, above which the figures contradict each other
GAIN = 0.9  # the error on what was held out must fall to this share: less may be chance
LEAST_ROW = 50  # requests of a row

Group = tuple[str, str]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A mean latency in ms of `requests` with one exit mix on one board. parts: group -> ms as the profile predicts."""

    board: str
    bundle: str
    requests: int
    mean_ms: float
    parts: Mapping[Group, float]


@dataclass(frozen=True)
class Refined:
    """What came of it. factors: groups that share a factor -> it. Errors: median relative, on what was held out."""

    profile: Profile
    factors: tuple[tuple[tuple[Group, ...], float], ...]
    untouched: tuple[Group, ...]
    requests: int
    boards: int
    bundles: int
    held_out: str
    before: float
    after: float


def rows_of(profile: Profile, figures: Mapping[str, Any]) -> list[Row]:
    """The server's figures with what the profile predicts for each; rows that it cannot predict are left out."""
    bundles = {entry["bundle"]: entry for entry in figures["bundles"]}
    cumulative = {label: _exit_parts(profile, entry) for label, entry in bundles.items()}
    found = []
    for row in figures["rows"]:
        exits = cumulative.get(row["bundle"])
        number = sum(row["exits"].values())
        if (
            exits is None
            or row["requests"] < LEAST_ROW
            or number < 0.99 * row["requests"]
            or row["sum_ms"] <= 0
        ):
            continue
        if not set(row["exits"]) <= set(exits):
            continue
        parts: dict[Group, float] = {}
        for name, count in row["exits"].items():
            for group, ms in exits[name].items():
                parts[group] = parts.get(group, 0.0) + ms * count / number
        mean = row["sum_ms"] / row["requests"]
        found.append(Row(row["board"], row["bundle"], row["requests"], mean, parts))
    return found


def _exit_parts(profile: Profile, bundle: Mapping[str, Any]) -> dict[str, dict[Group, float]] | None:
    """Exit -> group -> predicted ms of all stages up to it; None where a figure that is needed is unknown."""
    stages = [[Work.from_json(entry) for entry in stage] for stage in bundle["stages"]]
    found = {}
    for entry in bundle["exits"]:
        parts: dict[Group, float] = {}
        for work in (work for stage in stages[: entry["stage"] + 1] for work in stage):
            ms = predict(profile, [work]).value
            if ms is None:
                return None
            group = group_of(profile.cost, work)
            if group is not None:
                parts[group] = parts.get(group, 0.0) + ms
        if not sum(parts.values()) > 0:
            return None
        found[entry["name"]] = parts
    return found


def group_of(costs: Costs, work: Work) -> Group | None:
    """What shares a factor with it; None where the profile charges nothing for it."""
    root = work.op.partition(".")[0]
    if measured_class(costs, work.op, work.format) is not None:
        return (root, work.format)
    return None if root in SIDE_WORK else GENERAL


def refine(profile: Profile, figures: Mapping[str, Any], min_requests: int, when: str) -> Refined:
    """The profile with its costs scaled. Raises BadInput where figures are too few, contradict, or do not help."""
    if not figures["rows"] and figures["simulated"]:
        raise BadInput(
            f"{profile.name}: nothing was measured: all {figures['simulated']} boards of this profile are simulated "
            "(info.simulated), and what they say refines no profile"
        )
    rows = rows_of(profile, figures)
    requests = sum(row.requests for row in rows)
    if requests < min_requests:
        raise BadInput(
            f"{profile.name}: {min_requests} requests (--min-requests) measured on this profile are wanted, of bundles "
            f"whose work is known; there are {requests}"
        )
    kind = "bundle" if len({row.bundle for row in rows}) > 1 else "board"
    holds = sorted({getattr(row, kind) for row in rows})
    if len(holds) < 2:
        raise BadInput(
            f"{profile.name}: figures of two bundles or two boards are wanted, to try factors on what they were not "
            "fitted to; there is one of each"
        )
    before = median(_missed(rows, {}))
    tried = []
    for held in holds:
        rest = [row for row in rows if getattr(row, kind) != held]
        tried += _missed([row for row in rows if getattr(row, kind) == held], _flat(fit(rest)[0]))
    after = median(tried)
    factors, untouched = fit(rows)
    if median(_missed(rows, _flat(factors))) > MOST_MISSED:
        raise BadInput(
            f"{profile.name}: the figures contradict each other: the best factors still miss them by "
            f"{median(_missed(rows, _flat(factors))):.0%} (median): are all these boards alike, and not busy otherwise?"
        )
    if after > GAIN * before:
        raise BadInput(
            f"{profile.name}: scaled costs predict a held-out {kind} no better ({after:.1%} median error, "
            f"{before:.1%} as it is): the profile stays"
        )
    boards = len({row.board for row in rows})
    source = f"{profile.name}, {boards} boards of a fleet"
    return Refined(
        replace(profile, cost=scaled(profile.cost, _flat(factors), source, when)),
        factors,
        untouched,
        requests,
        boards,
        len({row.bundle for row in rows}),
        kind,
        before,
        after,
    )


def fit(rows: Sequence[Row]) -> tuple[tuple[tuple[tuple[Group, ...], float], ...], tuple[Group, ...]]:
    """Groups with their common factor, and the groups that the rows say too little of (factor 1)."""
    groups = sorted({group for row in rows for group in row.parts})
    table = np.array([[row.parts.get(group, 0.0) / row.mean_ms for group in groups] for row in rows])
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1e-12)
    enough = share.max(axis=0) >= LEAST_SHARE
    known = [index for index, good in enumerate(enough) if good]
    rest: Floats = table[:, ~enough].sum(axis=1)
    members = [[index] for index in known]
    columns = [table[:, index] for index in known]
    weights = np.sqrt(np.minimum([row.requests for row in rows], 10_000) / 10_000.0)
    while (pair := _parallel(columns)) is not None:
        one, other = pair
        members[one] += members.pop(other)
        columns[one] = columns[one] + columns.pop(other)
    matrix = np.array(columns).T * weights[:, None]
    goal = (1.0 - rest) * weights
    pull = PULL * float((weights**2).sum())
    gram = matrix.T @ matrix + pull * np.eye(len(columns))
    found = np.clip(np.linalg.solve(gram, matrix.T @ goal + pull), LOW, HIGH)
    factors = tuple(
        (tuple(groups[index] for index in sorted(part)), float(factor))
        for part, factor in zip(members, found, strict=True)
    )
    return factors, tuple(group for group, good in zip(groups, enough, strict=True) if not good)


def _parallel(columns: Sequence[Floats]) -> tuple[int, int] | None:
    """The two columns that the rows tell apart least, where that is too little."""
    best, pair = PARALLEL, None
    for one in range(len(columns)):
        for other in range(one + 1, len(columns)):
            size = float(np.linalg.norm(columns[one]) * np.linalg.norm(columns[other]))
            cosine = float(columns[one] @ columns[other]) / max(size, 1e-300)
            if cosine > best:
                best, pair = cosine, (one, other)
    return pair


def _flat(factors: Sequence[tuple[tuple[Group, ...], float]]) -> dict[Group, float]:
    return {group: factor for groups, factor in factors for group in groups}


def _missed(rows: Sequence[Row], factors: Mapping[Group, float]) -> list[float]:
    """Relative errors, without their sign."""
    return [
        abs(sum(ms * factors.get(group, 1.0) for group, ms in row.parts.items()) / row.mean_ms - 1)
        for row in rows
    ]


def scaled(costs: Costs, factors: Mapping[Group, float], on: str, when: str) -> Costs:
    """Costs of which each group takes `factor` times as long. What was scaled is measured `on` these boards."""

    def slower(figure: Figure, factor: float, *, rate: bool) -> Figure:
        if figure.value is None or factor == 1.0:
            return figure
        value = figure.value / factor if rate else figure.value * factor
        return Figure(float(f"{value:.4g}"), figure.unit, "measured", when, on)

    def own(op: str, fmt: str, entry: OpCosts) -> OpCosts:
        factor = factors.get((op.partition(".")[0], fmt), 1.0)
        general = costs.macs_per_second.get(fmt, entry.macs_per_second)
        parts = (  # what it took from the general figures stays what it was
            (entry.macs_per_second, general, True),
            (entry.bytes_per_second, costs.bytes_per_second, True),
            (entry.call_overhead_us, costs.call_overhead_us, False),
        )
        return OpCosts(*(slower(a if a.value is not None else b, factor, rate=rate) for a, b, rate in parts))

    factor = factors.get(GENERAL, 1.0)
    return replace(
        costs,
        macs_per_second={fmt: slower(f, factor, rate=True) for fmt, f in costs.macs_per_second.items()},
        bytes_per_second=slower(costs.bytes_per_second, factor, rate=True),
        call_overhead_us=slower(costs.call_overhead_us, factor, rate=False),
        operators={
            op: {fmt: own(op, fmt, entry) for fmt, entry in by_format.items()}
            for op, by_format in costs.operators.items()
        },
    )
