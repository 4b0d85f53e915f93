"""What the views have in common: when a board counts as online, in Python and in SQL, and how a job is described."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput
from edgekit.core.policy import PolicySpec
from edgekit.fleet import schema as db
from edgekit.fleet.configure import CONFIGURE

DEFAULT_WINDOW_S = 86_400.0
_SILENT_INTERVALS = (
    3  # a board that missed this many of its intervals is not online, whatever its last status said
)
_SILENT_AT_LEAST_S = 15.0


class Unknown(BadInput):
    """There is no board, job or bundle of that name."""


def is_online(row: Any, now: float) -> bool:
    """Its status says so, and it has not been silent for several of its intervals."""
    if not row.online or row.last_seen is None or row.revoked_at is not None:
        return False
    if not row.interval_s:
        return True
    return bool(now - row.last_seen <= max(_SILENT_INTERVALS * row.interval_s, _SILENT_AT_LEAST_S))


def online(now: float) -> sa.ColumnElement[bool]:
    """The same rule for rows of devices joined with presence."""
    seen = db.presence.c
    patience = _SILENT_INTERVALS * seen.interval_s
    silent = sa.case((patience > _SILENT_AT_LEAST_S, patience), else_=_SILENT_AT_LEAST_S)
    heard = sa.or_(seen.interval_s.is_(None), seen.interval_s == 0, now - seen.last_seen <= silent)
    return sa.and_(
        seen.online.is_(True), seen.last_seen.is_not(None), db.devices.c.revoked_at.is_(None), heard
    )


def policy_text(value: Mapping[str, Any] | None) -> str | None:
    """A policy as commands write it."""
    return None if value is None else str(PolicySpec.parse(value))


def actions(connection: sa.Connection, jobs: Sequence[int]) -> dict[int, str]:
    """What one-shot jobs do; every other makes a bundle run."""
    table = db.commands
    query = sa.select(table.c.job, table.c.action).where(table.c.job.in_(jobs)).distinct()
    return {row.job: row.action for row in connection.execute(query)}


def job_row(job: Any, done: Mapping[int, str]) -> dict[str, Any]:
    """A job without its boards. done: what `actions` gives."""
    return {
        "job_id": job.job_id,
        "action": done.get(job.id, "run" if job.target else CONFIGURE),
        "target": job.target or None,
        "config": json.loads(job.config or "null"),
        "to": job.selector,
        "policy": policy_text(json.loads(job.policy or "null")),
        "interval_s": job.interval_s,
        "created": job.created,
        "expires": job.expires,
    }


def contains(column: Any, text: str) -> sa.ColumnElement[bool]:
    """Whether a column holds a text somewhere, whatever the case of its letters; `%` and `_` stand for themselves."""
    found: sa.ColumnElement[bool] = sa.func.lower(column).contains(text.lower(), autoescape=True)
    return found
