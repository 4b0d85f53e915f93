"""The job table: every cell is walked."""

from __future__ import annotations

import pytest

from edgekit.core.jobs import (
    DONE,
    EVENTS,
    FINAL,
    GOOD,
    MEASURED,
    STATES,
    TRANSITIONS,
    IllegalTransition,
    advance,
    title,
)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_every_cell_leads_to_a_state_or_is_refused(state: str, event: str) -> None:
    if event in TRANSITIONS[state]:
        assert advance(state, event) in STATES
    else:
        with pytest.raises(IllegalTransition):
            advance(state, event)


def test_final_states_know_no_event() -> None:
    assert frozenset({"active", "done", "failed", "refused", "expired"}) == FINAL
    assert FINAL >= GOOD == {DONE, MEASURED}


def test_every_job_can_end_and_every_state_is_reached() -> None:
    reached, edge = {"received"}, ["received"]
    while edge:
        for following in TRANSITIONS[edge.pop()].values():
            if following not in reached:
                reached.add(following)
                edge.append(following)
    assert reached == set(STATES)
    for state in STATES:
        seen, todo = {state}, [state]
        while todo:
            for following in TRANSITIONS[todo.pop()].values():
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
        assert seen & FINAL


def test_a_restart_never_ends_a_job_nor_skips_a_check() -> None:
    for state, row in TRANSITIONS.items():
        if state in FINAL:
            continue
        assert row["restart"] in ("received", "rolling_back")


def test_only_a_passed_trial_makes_a_bundle_active() -> None:
    ways = [
        (state, event) for state, row in TRANSITIONS.items() for event, to in row.items() if to == "active"
    ]
    assert ways == [("trial", "pass")]


def test_what_is_measured_never_comes_near_a_slot() -> None:
    """From `measuring` on there is no way to installed, trial or active but through a new beginning."""
    assert set(TRANSITIONS["measuring"].values()) == {"done", "failed", "expired", "received"}
    assert TRANSITIONS["measuring"]["restart"] == "received"


def test_a_title_writes_settings_as_they_are_typed() -> None:
    config = {"log.verbose": True, "trial.requests": None, "update.rate_kb_s": 64}
    job = {"action": "configure", "target": None, "config": config}
    assert title(job) == "configure log.verbose=true, trial.requests=, update.rate_kb_s=64"
