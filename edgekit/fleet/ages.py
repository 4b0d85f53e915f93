"""How long the store keeps what: ages as configured, shortened while it is larger than its disk budget. No database."""

from __future__ import annotations

from dataclasses import dataclass, replace

HOUR_S, DAY_S = 3600.0, 86_400.0
SHORTER, LONGER = 0.8, 1.1  # what a step makes of an age
ROOM = 0.8  # of the budget: below it ages grow back
LEAST_BYTES = 10**9  # the budget of a small fleet


@dataclass(frozen=True)
class Ages:
    """Seconds after which something is forgotten. Jobs and events, which are capped, give no way to the disk budget."""

    raw_s: float
    minutes_s: float
    hours_s: float
    events_s: float
    jobs_s: float


# What a full disk may shorten, in this order, and how far: the last look at the field costs least, and goes first.
_GIVES_WAY = (("raw_s", HOUR_S), ("minutes_s", 6 * HOUR_S), ("hours_s", 7 * DAY_S))


def budget_bytes(gb_per_1000_boards: float, boards: int) -> float:
    """What the store may take, at least LEAST_BYTES. GB are 10^9 bytes."""
    return max(float(LEAST_BYTES), gb_per_1000_boards * 1e9 * boards / 1000)


def next_ages(now: Ages, wanted: Ages, size: float, budget: float) -> Ages:
    """The ages to keep to from here on: one step shorter above the budget, one step longer where there is room."""
    if size > budget:
        for name, least in _GIVES_WAY:
            age = min(getattr(now, name), getattr(wanted, name))
            if age > least:
                return replace(now, **{name: max(least, age * SHORTER)})
        return now
    if size < ROOM * budget:
        for name, _ in reversed(_GIVES_WAY):
            age, most = getattr(now, name), getattr(wanted, name)
            if age < most:
                return replace(now, **{name: min(most, age * LONGER)})
    return now


def at_most(kept: Ages, wanted: Ages) -> Ages:
    """Ages that were kept to before, within those that are configured now."""
    names = [name for name, _ in _GIVES_WAY]
    return replace(wanted, **{name: min(getattr(kept, name), getattr(wanted, name)) for name in names})


def shortened(now: Ages, wanted: Ages) -> str | None:
    """What is kept for a shorter time than configured, in words; None where nothing is."""
    said = [
        f"{what} for {_words(getattr(now, name))} instead of {_words(getattr(wanted, name))}"
        for (name, _), what in zip(_GIVES_WAY, ("records", "minutes", "hours"), strict=True)
        if getattr(now, name) < getattr(wanted, name)
    ]
    return ", ".join(said) or None


def is_exhausted(now: Ages) -> bool:
    """Whether nothing can be shortened any more."""
    return all(getattr(now, name) <= least for name, least in _GIVES_WAY)


def _words(seconds: float) -> str:
    return f"{seconds / DAY_S:.3g} d" if seconds >= 2 * DAY_S else f"{seconds / HOUR_S:.3g} h"
