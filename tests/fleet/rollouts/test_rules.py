"""The rules of rollouts, as pure functions: states, cohorts, windows, gates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.core.errors import BadInput
from edgekit.core.histogram import histogram
from edgekit.fleet.rollouts.cohorts import place, split
from edgekit.fleet.rollouts.gate import (
    FAILED,
    OK,
    OPEN,
    UNKNOWN,
    Counts,
    Figures,
    judge_figures,
    judge_results,
)
from edgekit.fleet.rollouts.plan import Gate, Plan, is_open, next_open
from edgekit.fleet.rollouts.states import EVENTS, OVER, STATES, TRANSITIONS, IllegalTransition, advance

MONDAY = 1_799_625_600.0  # 2027-01-11 00:00 UTC


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_every_cell_of_the_table_leads_to_a_state_or_is_refused(state: str, event: str) -> None:
    if event in TRANSITIONS[state]:
        assert advance(state, event) in STATES
    else:
        with pytest.raises(IllegalTransition, match=state):
            advance(state, event)


def test_what_is_over_goes_on_only_by_rolling_back() -> None:
    assert {event for state in OVER for event in TRANSITIONS[state]} == {"back"}
    assert all(
        {"back", "abort"} <= set(TRANSITIONS[state]) for state in set(STATES) - OVER - {"rolling_back"}
    )


def plan(**more: Any) -> Plan:
    return Plan.parse({"target": "toy/3", "to": "all", **more})


def test_a_boards_place_is_the_same_on_every_server() -> None:
    assert place("toy/3", "pi5-a") == pytest.approx(place("toy/3", "pi5-a"))
    assert round(place("toy/3", "pi5-a"), 6) != round(place("toy/4", "pi5-a"), 6)
    assert place("a:b", "c") != place("a", "b:c")


@settings(max_examples=60, deadline=None)
@given(
    profiles=st.lists(st.sampled_from(["x", "y", "z", None]), min_size=1, max_size=80),
    canary=st.one_of(st.integers(1, 20), st.sampled_from(["1%", "5%", "33.3%"])),
    salt=st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=5),
)
def test_every_board_is_in_one_wave_and_the_canary_has_each_profile(
    profiles: list[str | None], canary: int | str, salt: str
) -> None:
    boards = {f"b{number}": profile for number, profile in enumerate(profiles)}
    waves = split(plan(canary=canary, waves=["50%"], salt=salt), boards)
    assert sorted(name for wave in waves for name in wave) == sorted(boards)
    assert {boards[name] for name in waves[0]} == set(profiles)
    assert split(plan(canary=canary, waves=["50%"], salt=salt), dict(reversed(boards.items()))) == waves


def test_a_growing_fleet_moves_nobody_to_an_earlier_wave_by_more_than_its_share() -> None:
    boards = dict.fromkeys((f"b{number}" for number in range(200)), "x")
    assert [len(wave) for wave in split(plan(canary="5%", waves=["25%"]), boards)] == [10, 40, 150]
    assert [len(wave) for wave in split(plan(canary=3, waves=[50]), boards)] == [3, 47, 150]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"canary": "0%"}, "canary must be a share"),
        ({"canary": "150%"}, "canary must be a share"),
        ({"canary": "30%", "waves": ["25%"]}, "must grow"),
        ({"gate": {"p98_ratio": 2}}, "gate does not know the key p98_ratio"),
        ({"gate": {"p99_ratio": float("nan")}}, "a finite number"),
        ({"windows": [{"from": "25:00", "until": "05:00"}]}, "a time of day"),
        ({"time_zone": "Mars/Base"}, "time_zone must be one such as"),
        ({"to": "everything"}, "--to must be"),
        ({"colour": 1}, "does not know the key colour"),
    ],
)
def test_a_plan_that_cannot_be_read_says_where(more: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        plan(**more)


def test_a_plan_reads_what_it_writes() -> None:
    whole = plan(
        canary=5,
        waves=["20%", "50%"],
        windows=[{"days": ["mon"], "from": "22:00", "until": "05:00"}],
        interval_s=5,
    )
    assert Plan.parse(whole.to_json()) == whole
    assert whole.canary_gate.on_failure == "roll-back"
    assert whole.gate.on_failure == "pause"


def test_a_window_over_midnight_belongs_to_the_day_it_began_on() -> None:
    night = plan(windows=[{"days": ["mon"], "from": "22:00", "until": "05:00"}])
    assert not is_open(night, MONDAY + 4 * 3600)  # of the night before
    assert is_open(night, MONDAY + 23 * 3600)
    assert is_open(night, MONDAY + 28 * 3600)
    assert not is_open(night, MONDAY + 29 * 3600)
    assert next_open(night, MONDAY + 30) == MONDAY + 22 * 3600


def test_a_window_follows_its_time_zone_through_summer_time() -> None:
    zone = plan(windows=[{"from": "08:00", "until": "09:00"}], time_zone="Europe/Berlin")
    assert is_open(zone, MONDAY + 7.5 * 3600)
    assert is_open(zone, MONDAY + 180 * 86400 + 6.5 * 3600)


@pytest.mark.parametrize(
    ("counts", "over", "verdict"),
    [
        (Counts(took=95, failed=5), False, OK),
        (Counts(took=80, failed=5, open=15), False, OPEN),
        (Counts(took=80, failed=5, open=15), True, FAILED),  # silence is no success
        (Counts(took=92, failed=5, open=3), False, OK),  # even if the rest failed
        (Counts(failed=11, open=89), False, FAILED),  # whatever the rest does
        (Counts(refused=50, superseded=50), False, FAILED),  # nobody took it
        (Counts(took=9, failed=1, refused=90), False, OK),  # refusals are counted apart
        (Counts(), False, FAILED),
    ],
)
def test_a_waves_boards_are_judged_as_soon_as_the_rest_can_change_nothing(
    counts: Counts, over: bool, verdict: str
) -> None:
    assert judge_results(Gate(), counts, over=over)[0] == verdict


def figures(requests: int = 1000, factor: float = 1.0, **more: Any) -> Figures:
    slow = max(1, requests * 3 // 100)
    counts = histogram([2.0 * factor] * (requests - slow) + [4.0 * factor] * slow).counts
    return Figures(requests, latency=dict(counts), exits={"a": requests}, **more)


def verdicts(before: Figures, after: Figures, **gate: Any) -> dict[str, tuple[str, bool]]:
    checks = judge_figures(Gate(**gate), {"x": before}, {"x": after})
    return {check.figure: (check.verdict, check.blocks) for check in checks}


def test_a_doubled_p99_fails_and_an_equal_one_does_not() -> None:
    assert verdicts(figures(), figures(factor=2.0))["p99"][0] == FAILED
    assert verdicts(figures(), figures())["p99"][0] == OK


def test_one_profile_among_many_is_seen() -> None:
    many = {name: figures(100_000) for name in ("a", "b")} | {"c": figures(500)}
    after = {name: figures(100_000) for name in ("a", "b")} | {"c": figures(500, 2.0)}
    failed = {check.scope for check in judge_figures(Gate(), many, after) if check.verdict == FAILED}
    assert failed == {"c"}


def test_a_few_slow_requests_are_chance_and_too_few_requests_are_no_verdict() -> None:
    after = figures()
    after.latency = dict(histogram([2.0] * 985 + [9.0] * 15).counts)
    assert verdicts(figures(), after)["p99"][0] == OK
    assert verdicts(figures(), figures(3))["requests"] == (UNKNOWN, True)
    assert verdicts(figures(), figures(3), unknown="pass")["requests"] == (UNKNOWN, False)
    assert verdicts(figures(3), figures(3))["requests"] == (UNKNOWN, False)
    assert verdicts(figures(3), figures(3), unknown="strict")["requests"] == (UNKNOWN, True)


def test_energy_is_compared_only_where_it_came_about_in_the_same_way() -> None:
    measured, more = {"measured": [4000.0, 1000.0]}, {"measured": [8000.0, 1000.0]}
    simulated = {"simulated": [1.0, 1000.0]}
    assert verdicts(figures(energy=measured), figures(energy=more))["energy"][0] == FAILED
    assert verdicts(figures(energy=measured), figures(energy=simulated))["energy"] == (UNKNOWN, True)
    assert verdicts(figures(), figures(energy=measured))["energy"] == (UNKNOWN, False)


def test_errors_missed_deadlines_and_the_mix_of_exits_are_held_against_before() -> None:
    assert verdicts(figures(errors=50), figures(errors=55))["errors"][0] == OK
    assert verdicts(figures(), figures(errors=50))["errors"][0] == FAILED
    assert verdicts(figures(), figures(deadline_missed=100))["missed deadlines"][0] == FAILED
    other = figures()
    other.exits = {"a": 500, "b": 500}
    assert verdicts(figures(), other)["exit mix"][0] == FAILED
