"""Roll-ups: records added to their minute, their hour and the fleet's, each exactly once. Deletes nothing.

A record belongs where its own time is, however late it comes: a roll-up is a sum that grows. Which records are in it
says one mark, the highest `records.id` taken, moved in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.fleet import schema as db
from edgekit.fleet.figures import Sum
from edgekit.fleet.names import NONE, PROFILE, ids_of
from edgekit.fleet.reading import ROLLED, begin_of
from edgekit.fleet.store import Store, get_fact, insert_new, put_fact

AT_ONCE = 1000  # records in one transaction: ingest waits for it
_BOARD_TABLES = ((db.MINUTE_S, db.minutes), (db.HOUR_S, db.hours))
_FLEET_TABLES = ((db.MINUTE_S, db.fleet_minutes), (db.HOUR_S, db.fleet_hours), (None, db.fleet_totals))


def roll_up(store: Store, most: int = AT_ONCE) -> int:
    """Take the next `most` records into the roll-ups; how many there were."""
    with store.write() as connection:
        mark = get_fact(connection, ROLLED) or 0
        table = db.records
        query = sa.select(table).where(table.c.id > mark).order_by(table.c.id).limit(most)
        rows = connection.execute(query).all()
        if not rows:
            return 0
        _add_to_boards(connection, rows)
        _add_to_fleet(connection, rows)
        _count(connection, rows)
        put_fact(connection, ROLLED, rows[-1].id)
        return len(rows)


def _add_to_boards(connection: sa.Connection, rows: Sequence[Any]) -> None:
    for step, table in _BOARD_TABLES:
        sums: dict[tuple[int, ...], Sum] = {}
        for row in rows:
            key = (row.device, begin_of(row.at, step), row.bundle or NONE)
            sums.setdefault(key, Sum()).add_record(row)
        _merge(connection, table, ("device", "at", "bundle"), sums)


def _add_to_fleet(connection: sa.Connection, rows: Sequence[Any]) -> None:
    profiles = _profiles(connection, {row.device for row in rows})
    for step, table in _FLEET_TABLES:
        sums: dict[tuple[int, ...], Sum] = {}
        for row in rows:
            at = 0 if step is None else begin_of(row.at, step)
            key = (at, profiles.get(row.device, NONE), row.bundle or NONE)
            sums.setdefault(key, Sum()).add_record(row)
        _merge(connection, table, ("at", "profile", "bundle"), sums)


def _merge(
    connection: sa.Connection, table: sa.Table, key: tuple[str, ...], sums: Mapping[tuple[int, ...], Sum]
) -> None:
    """Add sums to the rows with their key, making those that are not there yet."""
    columns = [table.c[name] for name in key]
    for first in sorted(sums):
        found = connection.execute(
            sa.select(table).where(*(column == value for column, value in zip(columns, first, strict=True)))
        ).one_or_none()
        if found is not None:
            sums[first].add(found)
    rows = [dict(zip(key, values, strict=True)) | sums[values].values() for values in sorted(sums)]
    there = sa.delete(table).where(*(column == sa.bindparam(f"k_{column.name}") for column in columns))
    connection.execute(there, [{f"k_{name}": row[name] for name in key} for row in rows])
    insert_new(connection, table, rows)


def _profiles(connection: sa.Connection, devices: Iterable[int]) -> dict[int, int]:
    """Device -> names.id of its profile, drawn now where it is new."""
    table = db.devices
    profile = sa.func.coalesce(table.c.says_profile, table.c.profile)
    query = sa.select(table.c.id, profile.label("profile")).where(table.c.id.in_(sorted(devices)))
    said = {row.id: row.profile for row in connection.execute(query) if row.profile}
    ids = ids_of(connection, PROFILE, sorted(set(said.values())))
    return {device: ids[profile] for device, profile in said.items()}


def _count(connection: sa.Connection, rows: Sequence[Any]) -> None:
    table = db.presence
    counts: dict[int, int] = {}
    for row in rows:
        counts[row.device] = counts.get(row.device, 0) + 1
    change = sa.update(table).where(table.c.device == sa.bindparam("key"))
    change = change.values(records=table.c.records + sa.bindparam("by"))
    connection.execute(change, [{"key": device, "by": by} for device, by in sorted(counts.items())])
