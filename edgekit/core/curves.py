"""What a bundle's exits are worth, as two curves: quality over mean cost, and quality over a deadline. Facts only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.core import checks
from edgekit.core.checks import flag, integer, number, optional, rows, table, text
from edgekit.core.figure import PROVENANCES
from edgekit.core.manifest import METRICS

LEAD_UNTIL = 0.8  # of the full network's cost: up to here the mean lead counts
HOW = ("measured", "replayed")


def _share(value: object, where: str) -> float:
    return number(value, where, 0.0, 1.0)


@dataclass(frozen=True)
class StaticExit:
    """One exit answering everything. ms: typical time from request to it (the median); None: unknown."""

    name: str
    cost_share: float
    quality: float
    ms: float | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> StaticExit:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            checks.name(data.get("name"), f"{where}.name"),
            _share(data.get("cost_share"), f"{where}.cost_share"),
            _share(data.get("quality"), f"{where}.quality"),
            optional(data.get("ms"), f"{where}.ms", number),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {"name": self.name, "cost_share": self.cost_share, "quality": self.quality, "ms": self.ms}


@dataclass(frozen=True)
class BudgetPoint:
    """The whole stream under one budget. budget, cost_share: asked for and come out, shares of the full network's MACs.

    static: quality of the two exits around the same cost, mixed to cost as much. low, high: 95 % interval of
    `quality - static`, paired by sample. ms: mean of the exits taken, each by its typical time;
    None: unknown.
    """

    budget: float
    cost_share: float
    quality: float
    static: float
    low: float
    high: float
    exit_shares: tuple[float, ...]
    ms: float | None = None

    @property
    def lead(self) -> float:
        """How much better than the static exits, 0-1."""
        return self.quality - self.static

    @classmethod
    def parse(cls, value: object, where: str) -> BudgetPoint:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        budget, cost, quality, static = (
            _share(data.get(key), f"{where}.{key}") for key in ("budget", "cost_share", "quality", "static")
        )
        low, high = (number(data.get(key), f"{where}.{key}", -1.0, 1.0) for key in ("low", "high"))
        shares = rows(data.get("exit_shares"), f"{where}.exit_shares", _share)
        return cls(
            budget, cost, quality, static, low, high, shares, optional(data.get("ms"), f"{where}.ms", number)
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "budget": self.budget,
            "cost_share": self.cost_share,
            "quality": self.quality,
            "static": self.static,
            "low": self.low,
            "high": self.high,
            "exit_shares": list(self.exit_shares),
            "ms": self.ms,
        }


@dataclass(frozen=True)
class AnytimePoint:
    """Requests with about this deadline. in_time: share answered before it. ms: their mean latency."""

    deadline_ms: float
    requests: int
    quality: float
    in_time: float
    ms: float
    exit_shares: tuple[float, ...]

    @classmethod
    def parse(cls, value: object, where: str) -> AnytimePoint:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            number(data.get("deadline_ms"), f"{where}.deadline_ms", 0.0),
            integer(data.get("requests"), f"{where}.requests"),
            _share(data.get("quality"), f"{where}.quality"),
            _share(data.get("in_time"), f"{where}.in_time"),
            number(data.get("ms"), f"{where}.ms", 0.0),
            rows(data.get("exit_shares"), f"{where}.exit_shares", _share),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "deadline_ms": self.deadline_ms,
            "requests": self.requests,
            "quality": self.quality,
            "in_time": self.in_time,
            "ms": self.ms,
            "exit_shares": list(self.exit_shares),
        }


@dataclass(frozen=True)
class Lead:
    """The dynamic policy against the static exits: its mean lead from the first exit's cost to `until`, 0-1.

    low, high: its 95 % interval, paired by sample. nowhere_below: no point's interval lies below zero.
    """

    mean: float
    low: float
    high: float
    until: float
    nowhere_below: bool

    @classmethod
    def parse(cls, value: object, where: str) -> Lead:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        mean, low, high = (
            number(data.get(key), f"{where}.{key}", -1.0, 1.0) for key in ("mean", "low", "high")
        )
        until = _share(data.get("until"), f"{where}.until")
        return cls(mean, low, high, until, flag(data.get("nowhere_below"), f"{where}.nowhere_below"))

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "until": self.until,
            "nowhere_below": self.nowhere_below,
        }


@dataclass(frozen=True)
class Curves:
    """Both curves of one bundle on data that found no threshold.

    metric: what quality is. count: samples. budget: the budget policy replayed on every exit's answers, a point per
    budget. anytime: requests with deadlines, by `anytime_how`: really run with deadlines drawn at random, or replayed
    with the stages' times. provenance, on: of the times; None where nobody knows them, and then anytime is empty.
    """

    metric: str
    count: int
    static: tuple[StaticExit, ...]
    budget: tuple[BudgetPoint, ...]
    lead: Lead | None  # None: no budget lies below `until`
    anytime: tuple[AnytimePoint, ...] = ()
    anytime_how: str | None = None
    provenance: str | None = None
    on: str | None = None

    @classmethod
    def parse(cls, value: object, where: str) -> Curves:
        """Read from JSON. Raises BadInput."""
        data = table(value, where)
        return cls(
            checks.choice(data.get("metric"), f"{where}.metric", METRICS),
            integer(data.get("count"), f"{where}.count"),
            rows(data.get("static"), f"{where}.static", StaticExit.parse),
            rows(data.get("budget"), f"{where}.budget", BudgetPoint.parse),
            optional(data.get("lead"), f"{where}.lead", Lead.parse),
            rows(data.get("anytime"), f"{where}.anytime", AnytimePoint.parse),
            optional(data.get("anytime_how"), f"{where}.anytime_how", lambda v, w: checks.choice(v, w, HOW)),
            optional(
                data.get("provenance"), f"{where}.provenance", lambda v, w: checks.choice(v, w, PROVENANCES)
            ),
            optional(data.get("on"), f"{where}.on", text),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse."""
        return {
            "metric": self.metric,
            "count": self.count,
            "static": [entry.to_json() for entry in self.static],
            "budget": [entry.to_json() for entry in self.budget],
            "lead": None if self.lead is None else self.lead.to_json(),
            "anytime": [entry.to_json() for entry in self.anytime],
            "anytime_how": self.anytime_how,
            "provenance": self.provenance,
            "on": self.on,
        }
