"""What the API and the page show, as JSON values, computed from the store when asked. Unknown is None."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput
from edgekit.core.policy import PolicySpec
from edgekit.fleet import schema as db
from edgekit.fleet.configure import CONFIGURE
from edgekit.fleet.figures import Sum, total
from edgekit.fleet.names import NONE, texts_of
from edgekit.fleet.reading import ROLLED, board_series, board_sums, fleet_sums
from edgekit.fleet.store import get_fact

DEFAULT_WINDOW_S = 86_400.0
SERIES_POINTS = 60
_MINUTES_SHOWN_S = 2 * 86_400.0  # charts are drawn from minutes up to this window
_SILENT_INTERVALS = (
    3  # a board that missed this many of its intervals is not online, whatever its last status said
)
_SILENT_AT_LEAST_S = 15.0
_EVENTS_SHOWN = 100
_JOBS_SHOWN = 100


class Unknown(BadInput):
    """There is no board or job of that name."""


def device_rows(
    connection: sa.Connection,
    now: float,
    window_s: float = DEFAULT_WINDOW_S,
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """One row per board, by name. Figures are those of the bundle in force, of the last `window_s` seconds."""
    devices, presence = db.devices, db.presence
    own = [column for column in presence.c if column.name != "device"]
    query = (
        sa.select(devices, *own).join(presence, presence.c.device == devices.c.id).order_by(devices.c.name)
    )
    if names is not None:
        query = query.where(devices.c.name.in_(names))
    found = connection.execute(query).all()
    ids = [device.id for device in found]
    wanted = _desired(connection)
    sums = board_sums(connection, now - window_s, now, ids)
    counts = _fresh_counts(connection, ids)
    bundles = {key for part in sums.values() for key in part}
    texts = texts_of(connection, bundles | {d.bundle for d in found} | {d.policy for d in found})
    texts |= texts_of(connection, {n for part in sums.values() for s in part.values() for n in s.names})
    return [
        _device_row(
            device, wanted.get(device.id), counts.get(device.id, 0), sums.get(device.id, {}), texts, now
        )
        for device in found
    ]


def device_detail(
    connection: sa.Connection, name: str, now: float, window_s: float = DEFAULT_WINDOW_S
) -> dict[str, Any]:
    """A board's row with its figures per bundle, over time, its events and its jobs. Raises Unknown."""
    found = device_rows(connection, now, window_s, [name])
    if not found:
        raise Unknown(f"there is no board called {name!r}")
    device = connection.execute(sa.select(db.devices).where(db.devices.c.name == name)).one()
    sums = board_sums(connection, now - window_s, now, [device.id]).get(device.id, {})
    texts = texts_of(connection, {n for s in sums.values() for n in s.names} | set(sums))
    bundles = sorted((texts[key], figures) for key, figures in sums.items() if key in texts)
    return {
        **found[0],
        "info": json.loads(device.info or "null"),
        "reported": json.loads(device.reported or "null"),
        "bundles": [{"bundle": bundle, **figures.summary(texts)} for bundle, figures in bundles],
        "series": device_series(connection, device.id, now - window_s, now),
        "events": _events(connection, device.id),
        "jobs": _device_jobs(connection, device.id),
    }


def fleet_status(connection: sa.Connection, now: float, window_s: float = DEFAULT_WINDOW_S) -> dict[str, Any]:
    """The whole fleet in one object: how many boards, what they did, how ingest is."""
    devices, presence = db.devices, db.presence
    joined = sa.select(devices.c.revoked_at, devices.c.malformed, presence).join(
        presence, presence.c.device == devices.c.id
    )
    rows = connection.execute(joined).all()
    figures = total(fleet_sums(connection, now - window_s, now).values())
    received = sum(row.records for row in rows) + sum(_fresh_counts(connection).values())
    return {
        "window_s": window_s,
        "boards": {
            "enrolled": sum(row.revoked_at is None for row in rows),
            "revoked": sum(row.revoked_at is not None for row in rows),
            "online": sum(_is_online(row, now) for row in rows),
        },
        **figures.summary(texts_of(connection, figures.names)),
        "records": received,
        "malformed": sum(row.malformed for row in rows),
        "dropped": {row.key: row.count for row in connection.execute(sa.select(db.counters))},
        "ingest": get_fact(connection, "ingest"),
    }


def job_rows(connection: sa.Connection) -> list[dict[str, Any]]:
    """The newest jobs with how many boards are in which state."""
    states, jobs = db.job_devices, db.jobs
    newest = connection.execute(sa.select(jobs).order_by(jobs.c.id.desc()).limit(_JOBS_SHOWN)).all()
    counted = sa.select(states.c.job, states.c.state, sa.func.count()).group_by(states.c.job, states.c.state)
    counts: dict[int, dict[str, int]] = {}
    for job, state, number in connection.execute(counted.where(states.c.job.in_([j.id for j in newest]))):
        counts.setdefault(job, {})[state] = number
    actions = _actions(connection, [job.id for job in newest])
    return [_job(job, actions) | {"states": dict(sorted(counts.get(job.id, {}).items()))} for job in newest]


def job_detail(connection: sa.Connection, job_id: str) -> dict[str, Any]:
    """A job and its state on each board, with what was measured there. Raises Unknown."""
    states, jobs, devices, reports = db.job_devices, db.jobs, db.devices, db.job_reports
    job = connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id)).one_or_none()
    if job is None:
        raise Unknown(f"there is no job {job_id!r}")
    rows = connection.execute(
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
        .where(states.c.job == job.id)
        .order_by(devices.c.name)
    )
    devices_by_name = {
        row.name: {
            "state": row.state,
            "reason": row.reason,
            "detail": row.detail,
            "updated": row.updated,
            "reports": json.loads(row.reports or "[]"),
        }
        for row in rows
    }
    return _job(job, _actions(connection, [job.id])) | {"devices": devices_by_name}


def device_series(
    connection: sa.Connection, device: int, start: float, end: float, points: int = SERIES_POINTS
) -> list[dict[str, Any]]:
    """A board's figures over time, in at most `points` spans that hold something, oldest first."""
    step = db.MINUTE_S if end - start <= _MINUTES_SHOWN_S else db.HOUR_S
    found = board_series(connection, device, start, end, step)
    if not found:
        return []
    width = max(1, math.ceil((found[-1][0] - found[0][0] + step) / step / points)) * step
    spans: dict[int, list[tuple[int, Sum]]] = {}
    for at, bundle, figures in found:
        spans.setdefault(at // width * width, []).append((bundle, figures))
    sums = {at: total(figures for _, figures in parts) for at, parts in spans.items()}
    texts = texts_of(connection, {n for s in sums.values() for n in s.names} | {key for _, key, _ in found})
    return [
        {
            "at": at + width / 2,
            "bundle": texts.get(spans[at][-1][0]),
            "throttled": figures.throttled_s > 0,
            "temperature_c": figures.temperature_c,
        }
        | {key: value for key, value in figures.summary(texts).items() if key in _SERIES_KEYS}
        for at, figures in sorted(sums.items())
    ]


_SERIES_KEYS = ("requests", "latency_ms", "exit_counts", "accuracy", "energy_mj", "deadline_missed", "errors")


def _fresh_counts(connection: sa.Connection, devices: Sequence[int] | None = None) -> dict[int, int]:
    """Device -> how many of its records are not in `presence.records` yet."""
    table = db.records
    query = sa.select(table.c.device, sa.func.count()).where(table.c.id > (get_fact(connection, ROLLED) or 0))
    if devices is not None:
        query = query.where(table.c.device.in_(devices))
    return {row[0]: row[1] for row in connection.execute(query.group_by(table.c.device))}


def _desired(connection: sa.Connection) -> dict[int, sa.Row[Any]]:
    return {row.device: row for row in connection.execute(sa.select(db.desired))}


def _device_row(
    device: sa.Row[Any],
    desired: sa.Row[Any] | None,
    fresh: int,
    sums: Mapping[int, Sum],
    texts: Mapping[int, str],
    now: float,
) -> dict[str, Any]:
    info, reported = json.loads(device.info or "{}"), json.loads(device.reported or "{}")
    bundle = reported.get("bundle") or texts.get(device.bundle or NONE)
    own = next((figures for key, figures in sums.items() if texts.get(key) == bundle), Sum())
    return {
        "name": device.name,
        "profile": info.get("profile") or device.profile,
        "tags": json.loads(device.tags),
        "online": _is_online(device, now),
        "revoked_at": device.revoked_at,
        "certificate_expires": device.certificate_expires,
        "last_seen": device.last_seen,
        "bundle": bundle,
        "policy": _policy_text(reported.get("policy")) or texts.get(device.policy or NONE),
        "why": reported.get("why"),
        "rev": reported.get("rev"),
        "desired": desired and {"rev": desired.rev, "target": desired.target, "job": desired.job_id},
        "agent": info.get("agent"),
        "sensors": info.get("sensors"),
        "simulated": info.get("simulated"),
        "accepts_measure": info.get("accepts_measure"),
        "records": device.records + fresh,
        "malformed": device.malformed,
        "malformed_why": device.malformed_why,
        "temperature_c": device.temperature_c,
        "throttled": device.throttled,
        "under_voltage": device.under_voltage,
        "memory_mb": device.memory_mb,
        "idle_power_mw": device.idle_power_mw,
        **own.summary(texts),
    }


def _is_online(row: Any, now: float) -> bool:
    """Its status says so, and it has not been silent for several of its intervals."""
    if not row.online or row.last_seen is None or row.revoked_at is not None:
        return False
    if not row.interval_s:
        return True
    return bool(now - row.last_seen <= max(_SILENT_INTERVALS * row.interval_s, _SILENT_AT_LEAST_S))


def _policy_text(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else str(PolicySpec.parse(value))


def _actions(connection: sa.Connection, jobs: Sequence[int]) -> dict[int, str]:
    """What one-shot jobs do; every other makes a bundle run."""
    table = db.commands
    query = sa.select(table.c.job, table.c.action).where(table.c.job.in_(jobs))
    return {row.job: row.action for row in connection.execute(query)}


def _job(job: sa.Row[Any], actions: Mapping[int, str]) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "action": actions.get(job.id, "run" if job.target else CONFIGURE),
        "target": job.target or None,
        "config": json.loads(job.config or "null"),
        "to": job.selector,
        "policy": _policy_text(json.loads(job.policy or "null")),
        "interval_s": job.interval_s,
        "created": job.created,
        "expires": job.expires,
    }


def _events(connection: sa.Connection, device: int) -> list[dict[str, Any]]:
    table = db.events
    query = sa.select(table).where(table.c.device == device).order_by(table.c.at.desc(), table.c.seq.desc())
    rows = connection.execute(query.limit(_EVENTS_SHOWN))
    return [{"at": row.at, "kind": row.kind, "detail": json.loads(row.detail)} for row in rows]


def _device_jobs(connection: sa.Connection, device: int) -> list[dict[str, Any]]:
    states, jobs = db.job_devices, db.jobs
    query = (
        sa.select(jobs, states.c.state, states.c.reason, states.c.detail, states.c.updated)
        .join(states, states.c.job == jobs.c.id)
        .where(states.c.device == device)
        .order_by(jobs.c.id.desc())
        .limit(_JOBS_SHOWN)
    )
    rows = connection.execute(query).all()
    actions = _actions(connection, [row.id for row in rows])
    return [
        _job(row, actions)
        | {"state": row.state, "reason": row.reason, "detail": row.detail, "updated": row.updated}
        for row in rows
    ]
