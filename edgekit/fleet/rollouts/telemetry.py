"""Figures of a wave's boards from the roll-ups, to the minute. Judges nothing; sees no record before its roll-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy as sa

from edgekit.core.figure import PROVENANCES
from edgekit.fleet import schema as db
from edgekit.fleet.asking import parts
from edgekit.fleet.names import texts_of
from edgekit.fleet.packing import unpack_counts
from edgekit.fleet.rollouts.gate import Figures

_ANY_NAME = 2**62
_MINUTES_UP_TO_S = 7200.0
_COLUMNS = ("requests", "errors", "deadline_missed", "exits", "latency")
_ENERGY = ("energy_mj", "energy_requests", "energy_kinds")


def read(
    connection: sa.Connection,
    boards: Mapping[int, str],
    begin: float,
    end: float,
    bundle: int | None = None,
) -> dict[str, Figures]:
    """Profile -> figures of its boards in the minutes from `begin` to `end` (Unix seconds).

    boards: number -> profile. bundle: only of requests to this one (names.id).
    """
    sums: dict[str, Figures] = {}
    exits: dict[str, dict[int, int]] = {}
    for table, since, until in _spans(begin, end):
        for part in parts(sorted(boards)):
            columns = [table.c[name] for name in ("device", *_COLUMNS, *_ENERGY)]
            query = sa.select(*columns).where(
                table.c.device.in_(part), table.c.at >= since, table.c.at < until
            )
            if bundle is not None:
                query = query.where(table.c.bundle == bundle)
            for row in connection.execute(query):
                profile = boards[row.device]
                figures = sums.setdefault(profile, Figures())
                _add(figures, exits.setdefault(profile, {}), row)
    names = texts_of(connection, {key for counts in exits.values() for key in counts})
    for profile, counts in exits.items():
        sums[profile].exits = {names.get(key, str(key)): count for key, count in counts.items()}
    return sums


def _spans(begin: float, end: float) -> Iterator[tuple[sa.Table, int, int]]:
    """Minutes at the edges, whole hours between where that is less to read."""
    minute, hour = db.MINUTE_S, db.HOUR_S
    first, last = int(begin // minute) * minute, int(-(-end // minute)) * minute
    if last - first <= _MINUTES_UP_TO_S:
        yield db.minutes, first, last
        return
    from_hour, to_hour = -(-first // hour) * hour, last // hour * hour
    yield db.minutes, first, from_hour
    yield db.hours, from_hour, to_hour
    yield db.minutes, to_hour, last


def _add(figures: Figures, exits: dict[int, int], row: sa.Row[tuple[object, ...]]) -> None:
    figures.requests += row.requests
    figures.errors += row.errors
    figures.deadline_missed += row.deadline_missed
    for key, count in unpack_counts(row.latency).items():
        figures.latency[key] = figures.latency.get(key, 0) + count
    for key, count in unpack_counts(row.exits, _ANY_NAME).items():
        exits[key] = exits.get(key, 0) + count
    kind = _kind(row.energy_kinds)
    if row.energy_requests and kind is not None:
        known = figures.energy.setdefault(kind, [0.0, 0.0])
        known[0] += row.energy_mj
        known[1] += row.energy_requests


def _kind(bits: int) -> str | None:
    """How an interval's energy came about; None where in more than one way."""
    kinds: Sequence[str] = [name for bit, name in enumerate(PROVENANCES) if bits >> bit & 1]
    return kinds[0] if len(kinds) == 1 else None
