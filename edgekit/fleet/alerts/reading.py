"""Alerts as the API and the page show them: JSON values. Changes nothing."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput
from edgekit.fleet import schema as db
from edgekit.fleet.alerts.rules import KINDS
from edgekit.fleet.alerts.silences import silence_rows, silencer
from edgekit.fleet.alerts.states import CLEARING, FIRING, OPEN, PENDING, RESOLVED
from edgekit.fleet.alerts.world import look
from edgekit.fleet.store import get_fact

FACT = "alerts"  # what the background process last said: problems, rules, receivers
FILTERS = ("open", PENDING, FIRING, CLEARING, RESOLVED)
MOST = 1000


def alert_page(
    connection: sa.Connection,
    now: float,
    *,
    state: str | None = None,
    rule: str | None = None,
    severity: str | None = None,
    subject: str | None = None,
    offset: int = 0,
    limit: int = 50,
) -> dict[str, Any]:
    """Some alerts: firing first, then clearing, pending and resolved, the newest of each first.

    state: one of FILTERS, None: all. Raises BadInput.
    """
    if state is not None and state not in FILTERS:
        raise BadInput(f"state must be one of {', '.join(FILTERS)}, got {state!r}")
    table = db.alerts
    where = [
        column == value
        for column, value in ((table.c.rule, rule), (table.c.severity, severity), (table.c.subject, subject))
        if value is not None
    ]
    if state is not None:
        where.append(table.c.state.in_(OPEN if state == "open" else (state,)))
    order = sa.case({FIRING: 0, CLEARING: 1, PENDING: 2}, value=table.c.state, else_=3)
    query = sa.select(table).where(*where).order_by(order, table.c.since.desc(), table.c.id.desc())
    rows = connection.execute(query.offset(offset).limit(min(limit, MOST))).all()
    total = connection.scalar(sa.select(sa.func.count()).select_from(table).where(*where)) or 0
    kept = silence_rows(connection, now)
    is_silenced = silencer(kept, look(connection, now)) if kept else lambda _: False
    return {
        "total": total,
        "counts": _counts(connection),
        "alerts": [_shown(row, silenced=is_silenced(row)) for row in rows],
    }


def _counts(connection: sa.Connection) -> dict[str, int]:
    table = db.alerts
    query = sa.select(table.c.state, sa.func.count()).group_by(table.c.state)
    found = {row[0]: row[1] for row in connection.execute(query)}
    return {state: found.get(state, 0) for state in (PENDING, FIRING, CLEARING, RESOLVED)}


def _shown(row: Any, *, silenced: bool) -> dict[str, Any]:
    kind = KINDS.get(row.kind)
    board = row.subject.removeprefix("board:") if row.subject.startswith("board:") else None
    names = ("id", "rule", "kind", "severity", "subject", "state", "value", "text", "since", "updated")
    return {
        **{name: getattr(row, name) for name in names},
        "board": board,
        "unit": None if kind is None else kind.unit,
        "resolved": row.resolved,
        "sent": row.sent,
        "silenced": silenced,
    }


def rule_rows(connection: sa.Connection) -> list[dict[str, Any]]:
    """The rules in force, with what each cannot see; none before the background process has looked."""
    return list((get_fact(connection, FACT) or {}).get("rules", []))


def receiver_rows(connection: sa.Connection) -> list[dict[str, Any]]:
    """Who is told: id and address without secrets."""
    return list((get_fact(connection, FACT) or {}).get("receivers", []))


def alert_problems(connection: sa.Connection) -> list[str]:
    """One line for each thing that keeps somebody from being told."""
    return [str(line) for line in (get_fact(connection, FACT) or {}).get("problems", [])]


def message_rows(
    connection: sa.Connection, batch: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """The newest messages, or those of one batch."""
    table = db.notifications
    query = sa.select(table).order_by(table.c.id.desc()).limit(min(limit, MOST))
    if batch is not None:
        query = query.where(table.c.batch == batch)
    shown = {row["id"]: row["shown"] for row in receiver_rows(connection)}
    names = ("id", "batch", "created", "severity", "title", "body", "attempts", "why", "sent")
    return [
        {name: getattr(row, name) for name in names} | {"to": shown.get(row.receiver, "an address of before")}
        for row in connection.execute(query)
    ]
