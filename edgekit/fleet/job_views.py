"""What is shown of jobs: the newest, one with its state on boards, those of one board."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput
from edgekit.core.jobs import DONE, STATES
from edgekit.fleet import schema as db
from edgekit.fleet.viewing import Unknown, actions, contains, job_row

_SHOWN = 100
BOARD_STATES = ("pending", *STATES)


def job_rows(connection: sa.Connection) -> list[dict[str, Any]]:
    """The newest jobs with how many boards are in which state."""
    rows: list[dict[str, Any]] = job_page(connection, limit=_SHOWN)["jobs"]
    return rows


def job_page(connection: sa.Connection, *, offset: int = 0, limit: int = 50) -> dict[str, Any]:
    """Jobs, newest first, with how many boards are in which state, and how many jobs there are."""
    jobs = db.jobs
    found = connection.execute(sa.select(jobs).order_by(jobs.c.id.desc()).offset(offset).limit(limit)).all()
    ids = [job.id for job in found]
    counts, done = _counts(connection, ids), actions(connection, ids)
    count = connection.scalar(sa.select(sa.func.count()).select_from(jobs))
    return {
        "total": count or 0,
        "jobs": [job_row(job, done) | {"states": counts.get(job.id, {})} for job in found],
    }


def job_head(connection: sa.Connection, job_id: str) -> dict[str, Any]:
    """A job and how many boards are in which state. Raises Unknown."""
    job = _job(connection, job_id)
    states = _counts(connection, [job.id]).get(job.id, {})
    return job_row(job, actions(connection, [job.id])) | {"states": states}


def job_detail(connection: sa.Connection, job_id: str) -> dict[str, Any]:
    """A job and its state on every board, with what was measured there. Raises Unknown."""
    return job_head(connection, job_id) | {"devices": _by_name(connection, _job(connection, job_id).id)}


def job_with_page(
    connection: sa.Connection,
    job_id: str,
    *,
    state: str | None = None,
    search: str = "",
    offset: int = 0,
    limit: int = 200,
) -> dict[str, Any]:
    """A job with some of its boards in `devices`, by name, and how many these are in `total`. Raises Unknown."""
    found = job_boards(connection, job_id, state=state, search=search, offset=offset, limit=limit)
    boards = {row.pop("name"): row for row in found["devices"]}
    return job_head(connection, job_id) | {"devices": boards, "total": found["total"]}


def job_boards(
    connection: sa.Connection,
    job_id: str,
    *,
    state: str | None = None,
    search: str = "",
    offset: int = 0,
    limit: int = 50,
) -> dict[str, Any]:
    """Some of a job's boards with their state, how many there are in `total`, and in each state. Raises Unknown."""
    job = _job(connection, job_id)
    if state is not None and state not in BOARD_STATES:
        raise BadInput(f"state must be one of {', '.join(BOARD_STATES)}, got {state!r}")
    states, boards = db.job_devices, db.devices
    wanted = [states.c.job == job.id]
    if state is not None:
        wanted.append(states.c.state == state)
    if search:
        wanted.append(contains(boards.c.name, search))
    joined = states.join(boards, boards.c.id == states.c.device)
    counted = joined if search else states
    count = connection.scalar(sa.select(sa.func.count()).select_from(counted).where(*wanted))
    found = _by_name(connection, job.id, wanted, offset, limit)
    return {
        "total": count or 0,
        "states": _counts(connection, [job.id]).get(job.id, {}),
        "devices": [{"name": name, **row} for name, row in found.items()],
    }


def device_job_page(
    connection: sa.Connection, device: str, *, offset: int = 0, limit: int = 50
) -> dict[str, Any]:
    """A board's jobs, newest first, and how many there are. Raises Unknown."""
    states, jobs = db.job_devices, db.jobs
    number = connection.scalar(sa.select(db.devices.c.id).where(db.devices.c.name == device))
    if number is None:
        raise Unknown(f"there is no board called {device!r}")
    query = (
        sa.select(jobs, states.c.state, states.c.reason, states.c.detail, states.c.updated)
        .join(states, states.c.job == jobs.c.id)
        .where(states.c.device == number)
        .order_by(states.c.job.desc())
    )
    rows = connection.execute(query.offset(offset).limit(limit)).all()
    done = actions(connection, [row.id for row in rows])
    count = connection.scalar(sa.select(sa.func.count()).select_from(states).where(states.c.device == number))
    return {"total": count or 0, "jobs": [job_row(row, done) | _state(row) for row in rows]}


def _job(connection: sa.Connection, job_id: str) -> sa.Row[Any]:
    job = connection.execute(sa.select(db.jobs).where(db.jobs.c.job_id == job_id)).one_or_none()
    if job is None:
        raise Unknown(f"there is no job {job_id!r}")
    return job


def _counts(connection: sa.Connection, jobs: Sequence[int]) -> dict[int, dict[str, int]]:
    """Job -> state -> boards, by state."""
    states = db.job_devices
    query = sa.select(states.c.job, states.c.state, sa.func.count()).where(states.c.job.in_(jobs))
    counts: dict[int, dict[str, int]] = {}
    for job, state, number in sorted(connection.execute(query.group_by(states.c.job, states.c.state))):
        counts.setdefault(job, {})[state] = number
    return counts


def _by_name(
    connection: sa.Connection,
    job: int,
    wanted: Sequence[sa.ColumnElement[bool]] | None = None,
    offset: int = 0,
    limit: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Board -> how the job stands there, by name."""
    states, devices, reports = db.job_devices, db.devices, db.job_reports
    query = (
        sa.select(
            devices.c.name,
            states.c.state,
            states.c.reason,
            states.c.detail,
            states.c.updated,
            reports.c.reports,
        )
        .join(devices, devices.c.id == states.c.device)
        .outerjoin(reports, (reports.c.job == states.c.job) & (reports.c.device == states.c.device))
        .where(*([states.c.job == job] if wanted is None else wanted))
        .order_by(devices.c.name)
        .offset(offset)
    )
    rows = connection.execute(query if limit is None else query.limit(limit))
    return {row.name: _state(row) | {"reports": json.loads(row.reports or "[]")} for row in rows}


def _state(row: Any) -> dict[str, Any]:
    return {
        "state": row.state,
        "reason": row.reason,
        "detail": row.detail,
        "updated": row.updated,
        "settings_refused": row.state == DONE and row.reason == "settings-refused",
    }
