"""How policies are written by people and messages."""

from __future__ import annotations

import math

import pytest

from edgekit.core.errors import BadInput
from edgekit.core.policy import Budget, PolicySpec, parse_budget, policy_from_options, tightened


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("3ms", Budget(3, "ms")),
        ("0.5 mJ", Budget(0.5, "mJ")),
        ("2MMAC", Budget(2, "MMAC")),
        ("40%", Budget(40, "%")),
    ],
)
def test_budgets_are_an_amount_and_a_unit(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "3", "ms", "-3ms", "0ms", "3 s", "3ms4", None, 3, "1e3ms", "inf%"])
def test_anything_else_is_no_budget(text: object) -> None:
    with pytest.raises(BadInput, match="such as 3ms"):
        parse_budget(text)


def test_a_budget_or_deadline_alone_names_its_policy() -> None:
    assert policy_from_options(None, "3ms", None) == PolicySpec("budget", Budget(3, "ms"))
    assert policy_from_options(None, None, 5.0) == PolicySpec("anytime", None, 5.0)
    assert policy_from_options(None, None, None, 1.0) == PolicySpec("confidence", max_drop=1.0)
    assert policy_from_options(None, None, None) == PolicySpec("full")


@pytest.mark.parametrize("amount", [math.nan, math.inf, -1.0])
def test_deadlines_and_drops_that_are_no_amounts_are_refused(amount: float) -> None:
    with pytest.raises(BadInput, match="deadline_ms must be a positive number of ms"):
        policy_from_options(None, None, amount)
    with pytest.raises(BadInput, match="max_drop must be a number of points from 0"):
        policy_from_options(None, None, None, amount)


def test_a_drop_with_another_policy_is_refused() -> None:
    with pytest.raises(BadInput, match="goes with the confidence policy"):
        policy_from_options("full", None, None, 1.0)
    with pytest.raises(BadInput, match="goes with the confidence policy"):
        policy_from_options("budget", "3ms", None, 1.0)


def test_amounts_of_several_policies_are_refused_where_none_was_named() -> None:
    with pytest.raises(BadInput, match="budget and anytime: leave out all but one"):
        policy_from_options(None, "3ms", 1.0)
    with pytest.raises(BadInput, match="anytime and confidence"):
        policy_from_options(None, None, 1.0, 0.5)


@pytest.mark.parametrize(
    ("kind", "budget", "deadline"),
    [
        ("budget", None, None),
        ("anytime", None, None),
        ("full", "3ms", None),
        ("full", None, 1.0),
        ("budget", "3ms", 1.0),
    ],
)
def test_a_policy_without_its_parameter_or_with_anothers_is_refused(
    kind: str, budget: str | None, deadline: float | None
) -> None:
    with pytest.raises(BadInput, match=kind):
        policy_from_options(kind, budget, deadline)


@pytest.mark.parametrize(
    "spec",
    [
        PolicySpec(),
        PolicySpec("budget", Budget(3, "ms")),
        PolicySpec("anytime", None, 2.5),
        PolicySpec("confidence", max_drop=1),
    ],
)
def test_a_policy_survives_json(spec: PolicySpec) -> None:
    assert PolicySpec.parse(spec.to_json()) == spec


def test_tightening_costs_less_for_every_kind_but_a_deadline() -> None:
    assert tightened(PolicySpec("budget", Budget(3, "ms")), 0.5) == PolicySpec("budget", Budget(1.5, "ms"))
    assert tightened(PolicySpec("full"), 0.6) == PolicySpec("budget", Budget(60, "%"))
    assert tightened(PolicySpec("anytime", None, 2.0), 0.6) == PolicySpec("anytime", None, 2.0)
