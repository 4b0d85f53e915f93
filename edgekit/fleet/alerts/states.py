"""How an alert goes from state to state: one table. Reads no clock and no database.

An episode begins `pending`, is `firing` once the condition has held for the rule's `for`, `clearing` while the figure
is clear, and `resolved` once it has been for the rule's `clear_for`. A pending alert whose condition ends was
never one: it is forgotten. What is unknown changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

NONE, PENDING, FIRING, CLEARING, RESOLVED = "none", "pending", "firing", "clearing", "resolved"
STATES = (NONE, PENDING, FIRING, CLEARING, RESOLVED)
OPEN = (PENDING, FIRING, CLEARING)
ACTIVE = (FIRING, CLEARING)  # somebody is told

OVER, LASTED, BETWEEN, UNDER, RECOVERED, UNKNOWN = (
    "over",
    "lasted",
    "between",
    "under",
    "recovered",
    "unknown",
)
EVENTS = (OVER, LASTED, BETWEEN, UNDER, RECOVERED, UNKNOWN)
"""over: the condition holds. lasted: and has for the rule's `for`. between: neither over nor clear. under: clear.
recovered: and has been for `clear_for`. unknown: nobody knows."""

TABLE = {
    NONE: {OVER: PENDING, LASTED: FIRING, BETWEEN: NONE, UNDER: NONE, RECOVERED: NONE, UNKNOWN: NONE},
    PENDING: {OVER: PENDING, LASTED: FIRING, BETWEEN: NONE, UNDER: NONE, RECOVERED: NONE, UNKNOWN: PENDING},
    FIRING: {
        OVER: FIRING,
        LASTED: FIRING,
        BETWEEN: FIRING,
        UNDER: CLEARING,
        RECOVERED: RESOLVED,
        UNKNOWN: FIRING,
    },
    CLEARING: {
        OVER: FIRING,
        LASTED: FIRING,
        BETWEEN: FIRING,
        UNDER: CLEARING,
        RECOVERED: RESOLVED,
        UNKNOWN: CLEARING,
    },
    RESOLVED: {  # an episode that ended stays what it was; the next one is another row
        OVER: RESOLVED,
        LASTED: RESOLVED,
        BETWEEN: RESOLVED,
        UNDER: RESOLVED,
        RECOVERED: RESOLVED,
        UNKNOWN: RESOLVED,
    },
}


@dataclass(frozen=True)
class Episode:
    """Where an alert stands. since: when it was pending first. clear_since: when clearing first, else None."""

    state: str = NONE
    since: float = 0.0
    clear_since: float | None = None


def event_of(
    episode: Episode,
    value: float | None,
    over: float,
    clear: float,
    for_s: float,
    clear_for_s: float,
    now: float,
) -> str:
    """What a figure means for an episode. It is over above `over` and under at or below `clear` (<= over)."""
    if value is None:
        return UNKNOWN
    if value > over:
        began = episode.since if episode.state in OPEN else now
        return LASTED if now - began >= for_s else OVER
    if value > clear:
        return BETWEEN
    began = now if episode.clear_since is None else episode.clear_since
    return RECOVERED if now - began >= clear_for_s else UNDER


def advance(episode: Episode, event: str, now: float) -> Episode:
    """The episode after an event."""
    state = TABLE[episode.state][event]
    since = now if episode.state == NONE and state != NONE else episode.since
    clear_since = episode.clear_since
    if state == CLEARING and clear_since is None:
        clear_since = now
    elif state == FIRING:
        clear_since = None
    return Episode(state, since, clear_since)
