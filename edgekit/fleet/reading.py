"""Figures of boards and of the fleet, read from the roll-ups and from the records that are not in them yet.

A window begins at a whole minute or hour before the moment asked for: minutes up to three hours, hours beyond. Records
above the mark `rolled` (fleet.rolling) are added one by one; there are few, unless the background process is behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.fleet import schema as db
from edgekit.fleet.figures import Sum
from edgekit.fleet.names import NONE
from edgekit.fleet.store import get_fact

ROLLED = "rolled"  # fact: records up to this id are in the roll-ups
MINUTES_UP_TO_S = 3 * 3600.0
MOST_FRESH = 50_000  # records looked through for some boards; a backlog beyond waits for the roll-ups
MOST_FRESH_OF_ALL = 5_000  # and read one by one for the whole fleet


def step_of(window_s: float) -> int:
    """The length in seconds of the spans that a window of this length is read in."""
    return db.MINUTE_S if window_s <= MINUTES_UP_TO_S else db.HOUR_S


def begin_of(since: float, step: int) -> int:
    """Begin of the span that a moment lies in."""
    return int(since // step) * step


def board_sums(
    connection: sa.Connection, since: float, now: float, devices: Sequence[int]
) -> dict[int, dict[int, Sum]]:
    """Device -> bundle (names.id, 0: none) -> its figures from `since` on. Boards that said nothing are left out."""
    step = step_of(now - since)
    begin = begin_of(since, step)
    table = db.minutes if step == db.MINUTE_S else db.hours
    found: dict[int, dict[int, Sum]] = {}
    query = sa.select(table).where(table.c.device.in_(devices), table.c.at >= begin).order_by(table.c.at)
    for row in connection.execute(query):
        found.setdefault(row.device, {}).setdefault(row.bundle, Sum()).add(row)
    for row in fresh_records(connection, devices):
        if row.at >= begin:
            found.setdefault(row.device, {}).setdefault(row.bundle or NONE, Sum()).add_record(row)
    return found


def board_series(
    connection: sa.Connection, device: int, since: float, now: float, step: int | None = None
) -> list[tuple[int, int, Sum]]:
    """A board's figures over time, oldest first: begin of the span, bundle (names.id), figures."""
    step = step or step_of(now - since)
    begin = begin_of(since, step)
    table = db.minutes if step == db.MINUTE_S else db.hours
    found: dict[tuple[int, int], Sum] = {}
    query = sa.select(table).where(table.c.device == device, table.c.at >= begin)
    for row in connection.execute(query):
        found.setdefault((row.at, row.bundle), Sum()).add(row)
    for row in fresh_records(connection, [device]):
        if row.at >= begin:
            key = (begin_of(row.at, step), row.bundle or NONE)
            found.setdefault(key, Sum()).add_record(row)
    return [(at, bundle, found[at, bundle]) for at, bundle in sorted(found)]


def fleet_series(
    connection: sa.Connection, since: float, now: float, step: int | None = None
) -> list[tuple[int, int, int, Sum]]:
    """All boards' figures over time, oldest first: begin of the span, profile, bundle (names.id), figures."""
    step = step or step_of(now - since)
    begin = begin_of(since, step)
    table = db.fleet_minutes if step == db.MINUTE_S else db.fleet_hours
    found: dict[tuple[int, int, int], Sum] = {}
    for row in connection.execute(sa.select(table).where(table.c.at >= begin)):
        found.setdefault((row.at, row.profile, row.bundle), Sum()).add(row)
    fresh = [row for row in fresh_records(connection) if row.at >= begin]
    profiles = profile_ids(connection, sorted({row.device for row in fresh}))
    for row in fresh:
        key = (begin_of(row.at, step), profiles.get(row.device, NONE), row.bundle or NONE)
        found.setdefault(key, Sum()).add_record(row)
    return [(*key, found[key]) for key in sorted(found)]


def fleet_sums(connection: sa.Connection, since: float, now: float) -> dict[tuple[int, int], Sum]:
    """(profile, bundle) (names.id) -> figures of all boards together from `since` on."""
    found: dict[tuple[int, int], Sum] = {}
    for _, profile, bundle, figures in fleet_series(connection, since, now):
        found.setdefault((profile, bundle), Sum()).merge(figures)
    return found


def fresh_records(connection: sa.Connection, devices: Sequence[int] | None = None) -> Iterator[Any]:
    """Records that are in no roll-up yet, in the order they came; of all boards the first MOST_FRESH_OF_ALL alone.

    Looked for by their number, which is the key: they are a short stretch at the table's end.
    """
    table = db.records
    mark = get_fact(connection, ROLLED) or 0
    most = MOST_FRESH_OF_ALL if devices is None else MOST_FRESH
    query = sa.select(table).where(table.c.id > mark, table.c.id <= mark + most).order_by(table.c.id)
    if devices is not None:
        query = query.where(table.c.device.in_(devices))
    yield from connection.execute(query)


def profile_ids(connection: sa.Connection, devices: Sequence[int]) -> Mapping[int, int]:
    """Device -> names.id of its profile: what its agent says, else as enrolled; none for those that say nothing."""
    table, names = db.devices, db.names
    profile = sa.func.coalesce(table.c.says_profile, table.c.profile)
    query = (
        sa.select(table.c.id, names.c.id)
        .join(names, (names.c.kind == "profile") & (names.c.text == profile))
        .where(table.c.id.in_(devices))
    )
    return {row[0]: row[1] for row in connection.execute(query)}
