"""The audit log: who changed what, and when. It is only ever added to; schema.py's triggers hold everybody to that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import printable
from edgekit.fleet.schema import audit

SERVER = "server"  # who did it, where nobody asked for it
MAX_ROWS = 1000
_WHO, _ACTION, _SUBJECT, _DETAIL = 128, 64, 300, 8192


def note(
    connection: sa.Connection,
    at: float,
    who: str,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add a line, in the transaction of what it tells of: both are there or neither.

    at: Unix seconds. who: a user, a token (`token:NAME`), "server token", or SERVER. action: `noun.verb`. subject:
    what it was about, `board:NAME`, `rollout:ID`, `user:NAME`. detail: what JSON can say, no secrets; one that is too
    long is left out, and the line says so.
    """
    text = json.dumps(detail or {}, default=str, sort_keys=True)
    if len(text) > _DETAIL:
        text = json.dumps({"left_out": f"{len(text)} characters"})
    row = {
        "at": at,
        "who": printable(who)[:_WHO],
        "action": action[:_ACTION],
        "subject": printable(subject)[:_SUBJECT],
        "detail": text,
    }
    connection.execute(sa.insert(audit).values(**row))


def lines(
    connection: sa.Connection, subject: str | None = None, before: int | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """The newest lines first. subject: only of this one. before: only older than the line with this id."""
    query = sa.select(audit).order_by(audit.c.id.desc()).limit(min(limit, MAX_ROWS))
    if subject is not None:
        query = query.where(audit.c.subject == subject)
    if before is not None:
        query = query.where(audit.c.id < before)
    return [{**row, "detail": json.loads(row["detail"])} for row in connection.execute(query).mappings()]
