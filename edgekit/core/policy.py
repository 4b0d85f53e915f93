"""Which exit policy is wanted, as people and messages write it. The decisions themselves are runtime/policy.py's."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from edgekit.core import checks
from edgekit.core.errors import BadInput

KINDS = ("full", "anytime", "budget", "confidence")
_BUDGET = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|mJ|MMAC|%)")
DEFAULT_MAX_DROP = 0.5  # points of accuracy the confidence policy may give away


@dataclass(frozen=True)
class Budget:
    """Mean cost per request: `value` in ms, mJ, MMAC (millions of multiply-accumulates), or % of the full network."""

    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"


def parse_budget(text: object, where: str = "budget") -> Budget:
    """Read `3ms`, `5mJ`, `2MMAC` or `40%`. Raises BadInput."""
    match = _BUDGET.fullmatch(text) if isinstance(text, str) else None
    if match is None or not float(match[1]) > 0:
        raise checks.wrong(where, "a positive amount such as 3ms, 5mJ, 2MMAC or 40%", text)
    return Budget(float(match[1]), match[2])


@dataclass(frozen=True)
class PolicySpec:
    """kind and its one parameter: budget, deadline_ms (anytime) or max_drop in points (confidence)."""

    kind: str = "full"
    budget: Budget | None = None
    deadline_ms: float | None = None
    max_drop: float = DEFAULT_MAX_DROP

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise checks.wrong("policy", "one of " + ", ".join(KINDS), self.kind)
        if (self.kind == "budget") != (self.budget is not None):
            raise BadInput(
                f"policy {self.kind}: a budget goes with the budget policy, and it needs one (such as 3ms)"
            )
        if (self.kind == "anytime") != (self.deadline_ms is not None):
            raise BadInput(
                f"policy {self.kind}: a deadline in ms goes with the anytime policy, and it needs one"
            )
        if self.deadline_ms is not None and not 0 < self.deadline_ms < math.inf:
            raise checks.wrong("deadline_ms", "a positive number of ms", self.deadline_ms)
        if not 0 <= self.max_drop < math.inf:
            raise checks.wrong("max_drop", "a number of points from 0", self.max_drop)

    def __str__(self) -> str:
        """Short text for tables: `full`, `budget 3ms`, `anytime 5ms`, `confidence 0.5pt`."""
        if self.budget is not None:
            return f"budget {self.budget}"
        if self.deadline_ms is not None:
            return f"anytime {self.deadline_ms:g}ms"
        return f"confidence {self.max_drop:g}pt" if self.kind == "confidence" else self.kind

    def to_json(self) -> dict[str, Any]:
        """The inverse of parse; only what the kind uses."""
        data: dict[str, Any] = {"kind": self.kind}
        if self.budget is not None:
            data["budget"] = str(self.budget)
        if self.deadline_ms is not None:
            data["deadline_ms"] = self.deadline_ms
        if self.kind == "confidence":
            data["max_drop"] = self.max_drop
        return data

    @classmethod
    def parse(cls, value: object, where: str = "policy") -> PolicySpec:
        """Read from JSON or TOML. Raises BadInput."""
        data = checks.table(value, where)
        return cls(
            checks.choice(data.get("kind"), f"{where}.kind", KINDS),
            checks.optional(data.get("budget"), f"{where}.budget", parse_budget),
            checks.optional(
                data.get("deadline_ms"), f"{where}.deadline_ms", lambda v, w: checks.number(v, w, 1e-6)
            ),
            checks.number(data.get("max_drop", DEFAULT_MAX_DROP), f"{where}.max_drop", 0.0, 100.0),
        )


def policy_from_options(
    kind: str | None, budget: str | None, deadline_ms: float | None, max_drop: float | None = None
) -> PolicySpec:
    """The policy for `--policy`, `--budget`, `--deadline-ms`, `--max-drop`, see policy_told."""
    return policy_told(
        kind, None if budget is None else parse_budget(budget, "--budget"), deadline_ms, max_drop
    )


def policy_told(
    kind: str | None, budget: Budget | None, deadline_ms: float | None, max_drop: float | None
) -> PolicySpec:
    """The policy that somebody asks for; without a kind one of the others names it, and nothing at all means full.

    Raises BadInput where they do not go together.
    """
    told = {
        "budget": budget is not None,
        "anytime": deadline_ms is not None,
        "confidence": max_drop is not None,
    }
    if kind is None:
        named = [name for name, given in told.items() if given]
        if len(named) > 1:
            raise BadInput(
                f"policy must be one, got what asks for {' and '.join(named)}: leave out all but one"
            )
        kind = named[0] if named else "full"
    if max_drop is not None and kind != "confidence":
        raise BadInput(f"policy {kind}: max_drop goes with the confidence policy, and with no other")
    return PolicySpec(kind, budget, deadline_ms, DEFAULT_MAX_DROP if max_drop is None else max_drop)


def tightened(spec: PolicySpec, factor: float) -> PolicySpec:
    """The policy of a board that must spend less: its cost times `factor` (0-1], a deadline as it was.

    `full` and `confidence` have no cost of their own to cut: they become a budget of that share of the full network.
    """
    if spec.budget is not None:
        return PolicySpec("budget", Budget(spec.budget.value * factor, spec.budget.unit))
    return spec if spec.kind == "anytime" else PolicySpec("budget", Budget(100 * factor, "%"))
