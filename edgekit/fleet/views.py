"""What the API and the page show, as JSON values, computed from the store when asked.

Percentiles come from added-up histogram buckets, never from other percentiles. Unknown is None. An energy figure says
how it came about; where it came about in more than one way, it says `mixed`, and which.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import BadInput
from edgekit.core.histogram import Histogram
from edgekit.core.policy import PolicySpec
from edgekit.fleet import schema as db
from edgekit.fleet.configure import CONFIGURE
from edgekit.fleet.exits import exit_order
from edgekit.fleet.packing import unpack_counts
from edgekit.fleet.store import get_fact

DEFAULT_WINDOW_S = 86_400.0
MIXED = "mixed"
SERIES_POINTS = 60
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
    query = sa.select(db.devices).order_by(db.devices.c.name)
    if names is not None:
        query = query.where(db.devices.c.name.in_(names))
    devices = connection.execute(query).all()
    wanted = _desired(connection)
    counts = _record_counts(connection)
    records = _records(connection, now - window_s, [d.id for d in devices] if names is not None else None)
    return [
        _device_row(device, wanted.get(device.id), counts.get(device.id, 0), records.get(device.id, []), now)
        for device in devices
    ]


def device_detail(
    connection: sa.Connection, name: str, now: float, window_s: float = DEFAULT_WINDOW_S
) -> dict[str, Any]:
    """A board's row with its figures per bundle, over time, its events and its jobs. Raises Unknown."""
    found = device_rows(connection, now, window_s, [name])
    if not found:
        raise Unknown(f"there is no board called {name!r}")
    device = connection.execute(sa.select(db.devices).where(db.devices.c.name == name)).one()
    records = _records(connection, now - window_s, [device.id]).get(device.id, [])
    bundles = sorted({r.bundle for r in records if r.bundle})
    return {
        **found[0],
        "info": json.loads(device.info or "null"),
        "reported": json.loads(device.reported or "null"),
        "bundles": [{"bundle": b, **summary([r for r in records if r.bundle == b])} for b in bundles],
        "series": series(records, now - window_s, now),
        "events": _events(connection, device.id),
        "jobs": _device_jobs(connection, device.id),
    }


def fleet_status(connection: sa.Connection, now: float, window_s: float = DEFAULT_WINDOW_S) -> dict[str, Any]:
    """The whole fleet in one object: how many boards, what they did, how ingest is."""
    devices = connection.execute(sa.select(db.devices)).all()
    records = [r for rows in _records(connection, now - window_s).values() for r in rows]
    intervals = {device.id: _interval_s(device, None) for device in devices}
    counters = {row.key: row.count for row in connection.execute(sa.select(db.counters))}
    return {
        "window_s": window_s,
        "boards": {
            "enrolled": sum(device.revoked_at is None for device in devices),
            "revoked": sum(device.revoked_at is not None for device in devices),
            "online": sum(_is_online(d, intervals[d.id], now) for d in devices),
        },
        **summary(records),
        "records": sum(_record_counts(connection).values()),
        "malformed": sum(device.malformed for device in devices),
        "dropped": counters,
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


def summary(records: Sequence[Any]) -> dict[str, Any]:
    """What some records add up to."""
    buckets: dict[int, int] = {}
    exits: dict[str, int] = {}
    for record in records:
        for bucket, count in unpack_counts(record.latency).items():
            buckets[bucket] = buckets.get(bucket, 0) + count
        for name, count in json.loads(record.exits).items():
            exits[name] = exits.get(name, 0) + count
    latency = Histogram(buckets, sum(record.latency_sum_ms for record in records))
    labelled = sum(r.labelled for r in records)
    span = sum(r.interval_s for r in records)
    return {
        "requests": sum(r.requests for r in records),
        "errors": sum(r.errors for r in records),
        "deadline_missed": sum(r.deadline_missed for r in records),
        "latency_ms": latency.summary(),
        "exit_counts": {name: exits[name] for name in exit_order(exits)},
        "labelled": labelled,
        "accuracy": sum(r.correct for r in records) / labelled if labelled else None,
        "energy_mj": energy(records),
        "utilisation": sum(r.busy_s for r in records) / span if span else None,
    }


def energy(records: Iterable[Any]) -> dict[str, Any]:
    """Energy per request in mJ: what intervals with requests used, idle share included, over those requests.

    mean is None where no interval knows; `requests`: how many it speaks of. provenance: one word, `mixed` where
    `provenances` has several, None where unknown, with `why`.
    """
    records = [r for r in records if r.requests]
    known = [r for r in records if r.energy_mj is not None]
    requests = sum(r.requests for r in known)
    kinds = sorted({r.energy_provenance for r in known})
    why = next((r.energy_why for r in reversed(records) if r.energy_why), None)
    return {
        "mean": sum(r.energy_mj for r in known) / requests if requests else None,
        "provenance": None if not kinds else kinds[0] if len(kinds) == 1 else MIXED,
        "provenances": kinds,
        "on": ", ".join(sorted({r.energy_on for r in known if r.energy_on})) or None,
        "requests": requests,
        "why": None if known else why,
    }


def series(
    records: Sequence[Any], start: float, end: float, points: int = SERIES_POINTS
) -> list[dict[str, Any]]:
    """The records over time, in at most `points` spans that hold something, oldest first."""
    if not records:
        return []
    first = max(start, min(r.at for r in records))
    last = max(r.at for r in records)
    span = max((min(last, end) - first) / points, 1e-3)
    spans: dict[int, list[Any]] = {}
    for record in records:
        spans.setdefault(max(0, min(points - 1, int((record.at - first) / span))), []).append(record)
    return [
        {
            "at": first + (index + 0.5) * span,
            "bundle": rows[-1].bundle,
            "throttled": any(r.throttled for r in rows),
        }
        | {key: value for key, value in summary(rows).items() if key in _SERIES_KEYS}
        for index, rows in sorted(spans.items())
    ]


_SERIES_KEYS = ("requests", "latency_ms", "exit_counts", "accuracy", "energy_mj", "deadline_missed")


def _records(
    connection: sa.Connection, since: float, devices: Sequence[int] | None = None
) -> dict[int, list[sa.Row[Any]]]:
    """Device -> its records since then, oldest first."""
    table = db.records
    query = sa.select(table).where(table.c.at >= since).order_by(table.c.device, table.c.at, table.c.seq)
    if devices is not None:
        query = query.where(table.c.device.in_(devices))
    found: dict[int, list[sa.Row[Any]]] = {}
    for row in connection.execute(query):
        found.setdefault(row.device, []).append(row)
    return found


def _record_counts(connection: sa.Connection) -> dict[int, int]:
    table = db.records
    number = sa.func.count().label("number")
    rows = connection.execute(sa.select(table.c.device, number).group_by(table.c.device))
    return {row.device: row.number for row in rows}


def _desired(connection: sa.Connection) -> dict[int, sa.Row[Any]]:
    return {row.device: row for row in connection.execute(sa.select(db.desired))}


def _device_row(
    device: sa.Row[Any], desired: sa.Row[Any] | None, count: int, records: Sequence[Any], now: float
) -> dict[str, Any]:
    info, reported = json.loads(device.info or "{}"), json.loads(device.reported or "{}")
    last = records[-1] if records else None
    bundle = reported.get("bundle") or (last.bundle if last else None)
    return {
        "name": device.name,
        "profile": info.get("profile") or device.profile,
        "tags": json.loads(device.tags),
        "online": _is_online(device, _interval_s(device, last), now),
        "revoked_at": device.revoked_at,
        "certificate_expires": device.certificate_expires,
        "last_seen": device.last_seen,
        "bundle": bundle,
        "policy": _policy_text(reported.get("policy")) or (last.policy if last else None),
        "why": reported.get("why"),
        "rev": reported.get("rev"),
        "desired": desired and {"rev": desired.rev, "target": desired.target, "job": desired.job_id},
        "agent": info.get("agent"),
        "sensors": info.get("sensors"),
        "simulated": info.get("simulated"),
        "accepts_measure": info.get("accepts_measure"),
        "records": count,
        "malformed": device.malformed,
        "malformed_why": device.malformed_why,
        "temperature_c": last.temperature_c if last else None,
        "throttled": last.throttled if last else None,
        "under_voltage": last.under_voltage if last else None,
        "memory_mb": last.memory_mb if last else None,
        **summary([record for record in records if record.bundle == bundle]),
    }


def _interval_s(device: sa.Row[Any], last: Any) -> float | None:
    """How often the board says it reports; None where it never said."""
    reported = json.loads(device.reported or "{}")
    interval = reported.get("interval_s") or (last.interval_s if last else None)
    return float(interval) if interval else None


def _is_online(device: sa.Row[Any], interval_s: float | None, now: float) -> bool:
    """Its status says so, and it has not been silent for several of its intervals."""
    if not device.online or device.last_seen is None or device.revoked_at is not None:
        return False
    if interval_s is None:
        return True
    return bool(now - device.last_seen <= max(_SILENT_INTERVALS * interval_s, _SILENT_AT_LEAST_S))


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
