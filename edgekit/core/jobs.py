"""The one table of job states: walked by the agent, mirrored by the fleet. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.core.errors import EdgekitError

# state -> event -> next state. `restart` is the agent coming back after a kill or power cut.
TRANSITIONS: dict[str, dict[str, str]] = {
    "received": {
        "accept": "downloading",
        "present": "verifying",
        "looked": "done",
        "refuse": "refused",
        "fail": "failed",
        "restart": "received",
        "expire": "expired",
    },
    "downloading": {
        "fetched": "verifying",
        "refuse": "refused",
        "fail": "failed",
        "restart": "received",
        "expire": "expired",
    },
    "verifying": {
        "verified": "installed",
        "prepared": "measuring",
        "refuse": "refused",
        "fail": "failed",
        "restart": "received",
        "expire": "expired",
    },
    "installed": {"start": "trial", "fail": "failed", "restart": "received", "expire": "expired"},
    "trial": {"pass": "active", "fail": "rolling_back", "restart": "received"},
    "rolling_back": {"restored": "failed", "restart": "rolling_back"},
    "measuring": {"measured": "done", "fail": "failed", "restart": "received", "expire": "expired"},
    "active": {},
    "done": {},
    "failed": {},
    "refused": {},
    "expired": {},
}
STATES = tuple(TRANSITIONS)
EVENTS = tuple(sorted({event for row in TRANSITIONS.values() for event in row}))
FINAL = frozenset(state for state, row in TRANSITIONS.items() if not row)
DONE = "active"  # of a job that makes a bundle run
MEASURED = "done"  # of one that only measures, or looks at the metadata
GOOD = frozenset({DONE, MEASURED})


class IllegalTransition(EdgekitError):
    """An event came in a state that does not know it: a defect of the caller, never of the user."""


def advance(state: str, event: str) -> str:
    """The next state. Raises IllegalTransition where the table has no cell."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"job event {event!r} is not possible in state {state!r}") from None


def title(job: Mapping[str, Any]) -> str:
    """What a job of the server's API is about, in a few words: a bundle to run, or what else boards should do."""
    if job["action"] == "run":
        return str(job["target"])
    settings = ", ".join(f"{key}={_typed(value)}" for key, value in (job.get("config") or {}).items())
    return " ".join(part for part in (job["action"], job["target"], settings) if part)


def _typed(value: object) -> object:
    """A setting's value as it was typed; nothing for one that is taken back."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
