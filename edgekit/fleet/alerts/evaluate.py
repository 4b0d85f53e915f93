"""Bring the table of alerts up to what the rules see now. Tells nobody (telling.py), and never holds a lock for long.

All that an alert knows is in the store: a server that is killed goes on where it was. Changes are written some hundred
at a time; what is not written yet is found again by the next evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.fleet import schema as db
from edgekit.fleet.alerts.readings import Reading, Seen
from edgekit.fleet.alerts.rules import Rule
from edgekit.fleet.alerts.states import NONE, OPEN, RESOLVED, Episode, advance, event_of
from edgekit.fleet.store import Store

AT_ONCE = 300  # rows in one transaction: ingest waits for it
REFRESH_S = 60.0  # how old a firing alert's value may be
MOST_OF_A_RULE = 20_000  # alerts that are open
KEEP_RESOLVED_S, MOST_RESOLVED = 30 * 86_400.0, 50_000

Change = tuple[str, dict[str, Any]]  # insert, update, delete; the row's columns


def changes_of(rule: Rule, seen: Seen, known: Sequence[Any], now: float) -> list[Change]:
    """What to write so that the open alerts of a rule are as it sees them. known: its rows that are open."""
    rows = {row.subject: row for row in known}
    found: list[Change] = []
    for reading in seen.readings:
        row = rows.pop(reading.subject, None)
        if row is not None:
            found += _changed(rule, row, reading, now)
        elif len(known) + len(found) < MOST_OF_A_RULE:
            found += _begun(rule, reading, now)
    for row in rows.values():
        found += _changed(rule, row, Reading(row.subject, 0.0, 1.0, 0.5, row.text), now)
    return found


def _begun(rule: Rule, reading: Reading, now: float) -> list[Change]:
    event = event_of(Episode(), reading.value, reading.over, reading.clear, rule.for_s, rule.clear_for_s, now)
    episode = advance(Episode(), event, now)
    if episode.state == NONE:
        return []
    row = {
        "rule": rule.name,
        "subject": reading.subject,
        "state": episode.state,
        "kind": rule.kind,
        "severity": rule.severity,
        "device": None if reading.board is None else reading.board.id,
        "grouped": group_of(rule, reading),
        "value": reading.value,
        "text": reading.text,
        "since": now,
        "updated": now,
    }
    return [("insert", row)]


def _changed(rule: Rule, row: Any, reading: Reading, now: float) -> list[Change]:
    before = Episode(row.state, row.since, row.clear_since)
    over, clear = reading.over, reading.clear
    event = event_of(before, reading.value, over, clear, rule.for_s, rule.clear_for_s, now)
    after = advance(before, event, now)
    if after.state == NONE:
        return [("delete", {"id": row.id})]
    values: dict[str, Any] = {"id": row.id, "value": row.value, "text": row.text}
    if reading.value is not None and reading.value > clear:
        values |= {"value": reading.value, "text": reading.text}
    moved = after.state != row.state
    values |= {
        "state": after.state,
        "clear_since": after.clear_since,
        "updated": now,
        "resolved": now if after.state == RESOLVED else None,
    }
    refreshed = after.state in OPEN and values["text"] != row.text and now - row.updated >= REFRESH_S
    return [("update", values)] if moved or refreshed else []


def group_of(rule: Rule, reading: Reading) -> str:
    """What an alert is told together with."""
    board = reading.board
    if rule.group_by == "rule" or board is None:
        return ""
    if rule.group_by == "profile":
        return board.profile or "unknown profile"
    return (
        ", ".join(sorted(board.tags)) or "no tag" if rule.group_by == "tag" else board.bundle or "no bundle"
    )


def open_alerts(connection: sa.Connection, rule: str) -> Sequence[Any]:
    """The rows of a rule that are pending, firing or clearing."""
    table = db.alerts
    query = sa.select(table).where(table.c.rule == rule, table.c.state.in_(OPEN))
    return connection.execute(query).all()


def write(store: Store, changes: Sequence[Change]) -> None:
    """Apply changes, some hundred in a transaction."""
    for first in range(0, len(changes), AT_ONCE):
        with store.write() as connection:
            _apply(connection, changes[first : first + AT_ONCE])


def _apply(connection: sa.Connection, changes: Iterable[Change]) -> None:
    table = db.alerts
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for kind, values in changes:
        by_kind.setdefault(kind, []).append(values)
    if "insert" in by_kind:
        connection.execute(sa.insert(table), by_kind["insert"])
    if "delete" in by_kind:
        ids = [values["id"] for values in by_kind["delete"]]
        connection.execute(sa.delete(table).where(table.c.id.in_(ids)))
    if "update" in by_kind:
        names = ("state", "value", "text", "clear_since", "updated", "resolved")
        change = sa.update(table).where(table.c.id == sa.bindparam("key"))
        change = change.values({name: sa.bindparam(f"to_{name}") for name in names})
        rows = [
            {"key": values["id"]} | {f"to_{name}": values[name] for name in names}
            for values in by_kind["update"]
        ]
        connection.execute(change, rows)


def forget(store: Store, rules: Mapping[str, Rule], now: float) -> None:
    """End the alerts of rules that are no longer there, untold; forget what was resolved long ago."""
    table = db.alerts
    gone = table.c.state.in_(OPEN) & table.c.rule.not_in(sorted(rules))
    with store.read() as connection:
        anything = connection.scalar(sa.select(sa.func.count()).where(gone))
        kept = sa.select(table.c.id).where(table.c.state == RESOLVED).order_by(table.c.id.desc())
        last = connection.scalar(kept.offset(MOST_RESOLVED).limit(1)) or 0
    old = (table.c.state == RESOLVED) & ((table.c.resolved < now - KEEP_RESOLVED_S) | (table.c.id <= last))
    with store.write() as connection:
        if anything:
            values = {"state": RESOLVED, "resolved": now, "updated": now, "told": RESOLVED}
            connection.execute(sa.update(table).where(gone).values(values))
        some = sa.select(table.c.id).where(old).limit(AT_ONCE).scalar_subquery()
        connection.execute(sa.delete(table).where(table.c.id.in_(some)))
