"""An alert's states: the whole table."""

from __future__ import annotations

import pytest

from edgekit.fleet.alerts import states
from edgekit.fleet.alerts.states import Episode, advance, event_of

WANTED = {
    "none": "pending firing none none none none",
    "pending": "pending firing none none none pending",
    "firing": "firing firing firing clearing resolved firing",
    "clearing": "firing firing firing clearing resolved clearing",
    "resolved": "resolved resolved resolved resolved resolved resolved",
}


@pytest.mark.parametrize(
    ("state", "event", "then"),
    [
        (state, event, then)
        for state, row in WANTED.items()
        for event, then in zip(states.EVENTS, row.split(), strict=True)
    ],
)
def test_every_cell_of_the_table(state: str, event: str, then: str) -> None:
    assert states.TABLE[state][event] == then
    assert set(states.TABLE) == set(states.STATES)
    assert all(set(row) == set(states.EVENTS) for row in states.TABLE.values())


def walk(values: list[float | None], *, for_s: float = 20.0, clear_for_s: float = 20.0) -> list[str]:
    """The states of one figure looked at every 10 s; over 10, clear at 5."""
    episode, found = Episode(), []
    for index, value in enumerate(values):
        now = 10.0 * index
        episode = advance(episode, event_of(episode, value, 10, 5, for_s, clear_for_s, now), now)
        found.append(episode.state)
    return found


def test_a_figure_must_stay_over_for_a_while_and_clear_for_a_while() -> None:
    assert walk([11, 11, 11, 4, 4, 4]) == ["pending", "pending", "firing", "clearing", "clearing", "resolved"]


def test_a_figure_that_swings_between_the_thresholds_neither_fires_again_nor_resolves() -> None:
    assert walk([11, 11, 11, 7, 11, 7, 4, 7, 4, 11])[2:] == [
        *("firing", "firing", "firing", "firing"),
        *("clearing", "firing", "clearing", "firing"),
    ]


def test_a_figure_that_was_over_only_briefly_is_forgotten() -> None:
    assert walk([11, 7, 11, 4]) == ["pending", "none", "pending", "none"]


def test_what_is_unknown_changes_nothing() -> None:
    assert walk([11, None, 11, None, 4, None, 4]) == [
        *("pending", "pending", "firing", "firing"),
        *("clearing", "clearing", "resolved"),
    ]


def test_durations_of_nothing_fire_and_resolve_at_once() -> None:
    assert walk([11, 4], for_s=0, clear_for_s=0) == ["firing", "resolved"]
