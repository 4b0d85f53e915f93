"""The assignment of formats is the best there is, whatever the times, conversions and harms."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.host.assign import Choice, Link, assign

MS = st.floats(0.0, 1.0)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Choice], list[Link], float]:
    names = [f"n{index}" for index in range(draw(st.integers(1, 6)))]
    choices = [Choice(name, draw(MS), draw(st.none() | MS), draw(MS)) for name in names]
    ends = st.sampled_from([None, *names])
    links = draw(st.lists(st.builds(Link, ends, ends, MS, MS), max_size=10))
    return choices, links, draw(st.sampled_from([0.0, 0.5, 3.0]))


def cost(chosen: set[str], choices: list[Choice], links: list[Link], weight: float) -> float:
    total = 0.0
    for choice in choices:
        if choice.name not in chosen:
            total += choice.float_ms
        elif choice.int8_ms is None:
            return 1e9
        else:
            total += choice.int8_ms + weight * choice.harm
    for link in links:
        if (link.maker in chosen) != (link.reader in chosen):
            total += link.convert_ms + (weight * link.harm if link.maker in chosen else 0.0)
    return total


@settings(max_examples=150, deadline=None)
@given(problems())
def test_no_other_assignment_is_better(problem: tuple[list[Choice], list[Link], float]) -> None:
    choices, links, weight = problem
    names = [choice.name for choice in choices]
    every = (set(some) for count in range(len(names) + 1) for some in itertools.combinations(names, count))
    best = min(cost(some, choices, links, weight) for some in every)
    assert abs(cost(set(assign(choices, links, weight)), choices, links, weight) - best) < 1e-6


def test_a_slow_layer_between_fast_ones_stays_int8_where_conversions_cost_more() -> None:
    choices = [Choice("a", 1.0, 0.2), Choice("b", 0.10, 0.15), Choice("c", 1.0, 0.2)]
    dear = [Link("a", "b", 0.04), Link("b", "c", 0.04)]
    cheap = [Link("a", "b", 0.01), Link("b", "c", 0.01)]
    assert assign(choices, dear) == {"a", "b", "c"}
    assert assign(choices, cheap) == {"a", "c"}


def test_harm_outweighs_gain_when_it_is_weighted() -> None:
    choices = [Choice("a", 1.0, 0.5, harm=0.9), Choice("b", 1.0, 0.5, harm=0.1)]
    assert assign(choices, [], 0.0) == {"a", "b"}
    assert assign(choices, [], 1.0) == {"b"}
    assert assign(choices, [], 100.0) == frozenset()
