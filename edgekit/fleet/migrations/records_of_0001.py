"""What the step to 0002 does with what is stored: texts become numbers, presence a table of its own. Frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

_PROVENANCES = ("measured", "simulated", "estimated", "published")
_NEW_COUNTS = ("inputs_dropped", "answers_lost", "cancelled", "nan_confidences")
_SAME = (
    *("boot", "seq", "device", "at", "received", "uptime_s", "clock_synced", "interval_s"),
    *("requests", "errors", "deadline_missed", "labelled", "correct", "latency", "latency_sum_ms"),
    *("energy_mj", "busy_s", "temperature_c", "throttled", "under_voltage", "memory_mb"),
)
_HEALTH = ("bundle", "policy", "interval_s", "temperature_c", "throttled", "under_voltage", "memory_mb")
_AT_ONCE = 1000


def set_aside(connection: sa.Connection) -> None:
    """Keep the old records and the columns that go in tables of their own."""
    run = connection.exec_driver_sql
    run("CREATE TABLE old_records AS SELECT * FROM records")
    run("DROP TABLE records")
    run("CREATE TABLE old_presence AS SELECT id, online, boot_id, last_seen FROM devices")


def bring_over(connection: sa.Connection) -> None:
    """Fill today's tables from those that were set aside, and drop these."""
    meta = sa.MetaData()
    meta.reflect(connection, only=["devices", "presence", "records", "old_records", "old_presence", "names"])
    tables = meta.tables
    _presence(connection, tables)
    _records(connection, tables)
    connection.exec_driver_sql("DROP TABLE old_records")
    connection.exec_driver_sql("DROP TABLE old_presence")


def _presence(connection: sa.Connection, tables: Mapping[str, sa.Table]) -> None:
    devices, presence, old = tables["devices"], tables["presence"], tables["old_presence"]
    for row in connection.execute(sa.select(devices.c.id, devices.c.info, devices.c.reported)).all():
        info, reported = json.loads(row.info or "{}"), json.loads(row.reported or "{}")
        said = {
            "says_profile": info.get("profile"),
            "runs": reported.get("bundle"),
            "why": reported.get("why"),
        }
        said["settings_refused"] = len(reported.get("config_refused") or {})
        known = {key: value for key, value in said.items() if key in devices.c}
        connection.execute(sa.update(devices).where(devices.c.id == row.id).values(known))
        was = connection.execute(sa.select(old).where(old.c.id == row.id)).one()
        values = {"online": was.online, "boot_id": was.boot_id, "last_seen": was.last_seen, "records": 0}
        connection.execute(
            sa.insert(presence).values(device=row.id, interval_s=reported.get("interval_s"), **values)
        )


def _records(connection: sa.Connection, tables: Mapping[str, sa.Table]) -> None:
    """In the order in which they came, so that numbers grow as if they came today."""
    old, records, presence = tables["old_records"], tables["records"], tables["presence"]
    numbers = _Numbers(connection, tables["names"])
    newest: dict[int, dict[str, Any]] = {}
    order, after = (old.c.received, old.c.boot, old.c.seq), None
    while True:
        query = sa.select(old).order_by(*order).limit(_AT_ONCE)
        if after is not None:
            query = query.where(sa.tuple_(*order) > sa.tuple_(*after))
        rows = connection.execute(query).all()
        if not rows:
            break
        made = [_record(row, numbers) for row in rows]
        connection.execute(sa.insert(records), made)
        for record in made:
            if record["at"] >= newest.get(record["device"], record)["at"]:
                newest[record["device"]] = record
        after = (rows[-1].received, rows[-1].boot, rows[-1].seq)
    for device, record in newest.items():
        health = {name: record[name] for name in _HEALTH} | {"record_at": record["at"]}
        connection.execute(sa.update(presence).where(presence.c.device == device).values(health))


def _record(row: Any, numbers: _Numbers) -> dict[str, Any]:
    exits = {numbers.of("exit", name): times for name, times in json.loads(row.exits).items() if times}
    return {
        **{name: getattr(row, name) for name in _SAME},
        **dict.fromkeys(_NEW_COUNTS, 0),
        "bundle": numbers.of("bundle", row.bundle),
        "policy": numbers.of("policy", row.policy),
        "exits": _packed({number: times for number, times in exits.items() if number is not None}),
        "energy_provenance": row.energy_provenance and _PROVENANCES.index(row.energy_provenance),
        "energy_on": numbers.of("machine", row.energy_on),
        "energy_why": numbers.of("reason", row.energy_why),
    }


class _Numbers:
    """Texts of names as numbers, drawn when they are first met."""

    def __init__(self, connection: sa.Connection, table: sa.Table) -> None:
        self.connection, self.table = connection, table
        self.known: dict[tuple[str, str], int] = {}

    def of(self, kind: str, text: str | None) -> int | None:
        if not text:
            return None
        if (kind, text) not in self.known:
            insert = sa.insert(self.table).values(kind=kind, text=text).returning(self.table.c.id)
            self.known[kind, text] = self.connection.execute(insert).scalar_one()
        return self.known[kind, text]


def _packed(counts: Mapping[int, int]) -> bytes:
    """Pairs of varints: numbers skipped, count."""
    data, last = bytearray(), -1
    for number in sorted(counts):
        for value in (number - last - 1, counts[number]):
            rest = value
            while rest >= 0x80:
                data.append(rest & 0x7F | 0x80)
                rest >>= 7
            data.append(rest)
        last = number
    return bytes(data)
