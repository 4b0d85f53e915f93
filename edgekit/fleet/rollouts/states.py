"""The one table of a rollout's states. No I/O, no clock."""

from __future__ import annotations

from edgekit.core.errors import EdgekitError

# state -> event -> next state.
TRANSITIONS: dict[str, dict[str, str]] = {
    "waiting": {  # for the next wave's window
        "open": "starting",
        "finished": "completed",
        "stop": "paused",
        "back": "rolling_back",
        "pause": "paused",
        "abort": "aborted",
    },
    "starting": {  # the wave's boards are being asked, a slice at a time
        "filled": "running",
        "stop": "paused",
        "back": "rolling_back",
        "pause": "paused",
        "abort": "aborted",
    },
    "running": {  # the boards of the wave are at work
        "ended": "soaking",
        "stop": "paused",
        "back": "rolling_back",
        "pause": "paused",
        "abort": "aborted",
    },
    "soaking": {  # they run the bundle, and their figures are waited for
        "passed": "waiting",
        "stop": "paused",
        "back": "rolling_back",
        "pause": "paused",
        "abort": "aborted",
    },
    "paused": {"resume": "waiting", "back": "rolling_back", "abort": "aborted"},
    "rolling_back": {"restored": "rolled_back", "stuck": "failed", "abort": "aborted"},
    "rolled_back": {},
    "completed": {"back": "rolling_back"},
    "aborted": {"back": "rolling_back"},
    "failed": {"back": "rolling_back"},
}
STATES = tuple(TRANSITIONS)
EVENTS = tuple(sorted({event for row in TRANSITIONS.values() for event in row}))
OVER = frozenset({"completed", "rolled_back", "aborted", "failed"})  # nothing happens by itself any more
GOOD = frozenset({"completed"})


class IllegalTransition(EdgekitError):
    """An event came in a state that does not know it: a defect of the caller, never of the user."""


def advance(state: str, event: str) -> str:
    """The next state. Raises IllegalTransition where the table has no cell."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"event {event!r} is not possible for a rollout that is {state}") from None


def knows(state: str, event: str) -> bool:
    """Whether the table has a cell."""
    return event in TRANSITIONS[state]
