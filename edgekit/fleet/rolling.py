"""Roll-ups: records added to their minute, their hour and the fleet's, each exactly once. Deletes nothing.

A record belongs where its own time is, however late it comes: a roll-up is a sum that grows. Which records are in it
says one mark, the highest `records.id` taken, moved in the same transaction. Sums are made and packed before that
transaction, which only writes them, so that ingest waits a few milliseconds for it; it writes nothing where somebody
else moved the mark meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from edgekit.fleet import schema as db
from edgekit.fleet.figures import Sum
from edgekit.fleet.names import NONE, PROFILE, all_of, ids_of
from edgekit.fleet.reading import ROLLED, begin_of
from edgekit.fleet.store import Store, get_fact, insert_new, put_rows, records_up_to

AT_ONCE = 1000  # records in one transaction: ingest waits for it
_KEYS_AT_ONCE = 300
_BOARD_KEY, _FLEET_KEY = ("device", "at", "bundle"), ("at", "profile", "bundle")

_Sums = dict[tuple[int, int, int], Sum]  # by the key of a roll-up


@dataclass(frozen=True)
class _Batch:
    """Records from a mark up to another, and what becomes of the roll-ups' rows with them."""

    mark: int
    upto: int
    records: int
    rows: Mapping[sa.Table, Sequence[Mapping[str, Any]]]
    counts: Mapping[int, int]  # device -> records


def roll_up(store: Store, most: int = AT_ONCE) -> int:
    """Take the next `most` records into the roll-ups; how many there were. 0 too where another process took them."""
    with store.read() as connection:
        mark = get_fact(connection, ROLLED) or 0
        top = connection.scalar(sa.select(sa.func.max(db.records.c.id))) or 0
    if top <= mark:
        return 0
    if store.engine.dialect.name == "postgresql":
        top = records_up_to(store) or 0
    batch = _prepare(store, top, most)
    if batch is None:
        return 0
    with store.write() as connection:
        return batch.records if _take(connection, batch) else 0


def _prepare(store: Store, top: int, most: int) -> _Batch | None:
    """Read the next records up to number `top` and the rows they belong to, and add them up."""
    table = db.records
    with store.read() as connection:
        mark = get_fact(connection, ROLLED) or 0
        wanted = (table.c.id > mark) & (table.c.id <= top)
        rows = connection.execute(sa.select(table).where(wanted).order_by(table.c.id).limit(most)).all()
        profiles = _profiles(connection, {row.device for row in rows})
    if not rows:
        return None
    numbers = {device: known for device, known in profiles.items() if isinstance(known, int)}
    new = {device: text for device, text in profiles.items() if isinstance(text, str)}
    if new:  # profiles that nobody named before; what a board calls itself may change with every message
        with store.write() as connection:
            for device, text in sorted(new.items()):
                numbers[device] = ids_of(connection, PROFILE, [text], device)[text]
    sums = _sums(rows, numbers)
    counts: dict[int, int] = {}
    for row in rows:
        counts[row.device] = counts.get(row.device, 0) + 1
    with store.read() as connection:
        made = {table: _merged(connection, table, key, part) for table, (key, part) in sums.items()}
    return _Batch(mark, rows[-1].id, len(rows), made, counts)


def _sums(rows: Iterable[Any], profiles: Mapping[int, int]) -> dict[sa.Table, tuple[tuple[str, ...], _Sums]]:
    """What records add up to, per roll-up. A record is unpacked once: the others are sums of the minutes."""
    minutes: _Sums = {}
    for row in rows:
        key = (row.device, begin_of(row.at, db.MINUTE_S), row.bundle or NONE)
        minutes.setdefault(key, Sum()).add_record(row)
    hours: _Sums = {}
    fleet_minutes: _Sums = {}
    for (device, at, bundle), part in sorted(minutes.items(), key=lambda item: item[0][1]):
        hours.setdefault((device, begin_of(at, db.HOUR_S), bundle), Sum()).merge(part)
        fleet_minutes.setdefault((at, profiles.get(device, NONE), bundle), Sum()).merge(part)
    fleet_hours: _Sums = {}
    totals: _Sums = {}
    for (at, profile, bundle), part in sorted(fleet_minutes.items()):
        fleet_hours.setdefault((begin_of(at, db.HOUR_S), profile, bundle), Sum()).merge(part)
        totals.setdefault((0, profile, bundle), Sum()).merge(part)
    return {
        db.minutes: (_BOARD_KEY, minutes),
        db.hours: (_BOARD_KEY, hours),
        db.fleet_minutes: (_FLEET_KEY, fleet_minutes),
        db.fleet_hours: (_FLEET_KEY, fleet_hours),
        db.fleet_totals: (_FLEET_KEY, totals),
    }


def _merged(
    connection: sa.Connection, table: sa.Table, key: tuple[str, ...], sums: _Sums
) -> list[Mapping[str, Any]]:
    """Sums together with the rows that have their key, as rows."""
    columns = sa.tuple_(*(table.c[name] for name in key))
    keys = sorted(sums)
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        part = keys[first : first + _KEYS_AT_ONCE]
        for row in connection.execute(sa.select(table).where(columns.in_(part))):
            sums[getattr(row, key[0]), getattr(row, key[1]), getattr(row, key[2])].add(row)
    return [dict(zip(key, values, strict=True)) | sums[values].values() for values in keys]


def _take(connection: sa.Connection, batch: _Batch) -> bool:
    """Write a batch, and move the mark; False where it was moved meanwhile, and nothing is written."""
    table = db.facts
    insert_new(connection, table, [{"key": ROLLED, "value": json.dumps(0)}])
    here = (table.c.key == ROLLED) & (table.c.value == json.dumps(batch.mark))
    moved = connection.execute(sa.update(table).where(here).values(value=json.dumps(batch.upto)))
    if moved.rowcount != 1:
        return False
    for rolled, rows in batch.rows.items():
        put_rows(connection, rolled, rows)
    _count(connection, batch.counts)
    return True


def _profiles(connection: sa.Connection, devices: Iterable[int]) -> dict[int, int | str]:
    """Device -> names.id of its profile, or the profile itself where it has no number yet."""
    table = db.devices
    profile = sa.func.coalesce(table.c.says_profile, table.c.profile)
    query = sa.select(table.c.id, profile.label("profile")).where(table.c.id.in_(sorted(devices)))
    numbers = {text: number for number, text in all_of(connection, PROFILE).items()}
    return {row.id: numbers.get(row.profile, row.profile) for row in connection.execute(query) if row.profile}


def _count(connection: sa.Connection, counts: Mapping[int, int]) -> None:
    table = db.presence
    change = sa.update(table).where(table.c.device == sa.bindparam("key"))
    change = change.values(records=table.c.records + sa.bindparam("by"))
    connection.execute(change, [{"key": device, "by": by} for device, by in sorted(counts.items())])
