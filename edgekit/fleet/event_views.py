"""What is shown of events: of one board, or of all of them, newest first."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from edgekit.core.events import words
from edgekit.fleet import schema as db
from edgekit.fleet.viewing import Unknown


def event_page(
    connection: sa.Connection,
    *,
    kind: str | None = None,
    device: str | None = None,
    since: float | None = None,
    before: float | None = None,
    offset: int = 0,
    limit: int = 100,
) -> dict[str, Any]:
    """Events and how many there are of them; `text` says them in words. Raises Unknown: no such board."""
    table, boards = db.events, db.devices
    wanted = [] if kind is None else [table.c.kind == kind]
    if device is not None:
        number = connection.scalar(sa.select(boards.c.id).where(boards.c.name == device))
        if number is None:
            raise Unknown(f"there is no board called {device!r}")
        wanted.append(table.c.device == number)
    if since is not None:
        wanted.append(table.c.at >= since)
    if before is not None:
        wanted.append(table.c.at < before)
    query = sa.select(table.c.at, table.c.kind, table.c.detail, table.c.device).where(*wanted)
    query = (
        query.order_by(table.c.at.desc(), table.c.boot.desc(), table.c.seq.desc()).offset(offset).limit(limit)
    )
    rows = connection.execute(query).all()
    ids = {row.device for row in rows}
    query = sa.select(boards.c.id, boards.c.name).where(boards.c.id.in_(ids))
    names = {row.id: row.name for row in connection.execute(query)}
    count = connection.scalar(sa.select(sa.func.count()).select_from(table).where(*wanted))
    return {"total": count or 0, "events": [_event(row, names[row.device]) for row in rows]}


def _event(row: Any, device: str) -> dict[str, Any]:
    detail = json.loads(row.detail)
    return {
        "at": row.at,
        "device": device,
        "kind": row.kind,
        "detail": detail,
        "text": words(row.kind, detail),
    }
