"""Change boards' settings, and not what they run: a job whose desired state keeps the rest. Publishes nothing."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from edgekit.core import jobs as job_states
from edgekit.core.policy import PolicySpec
from edgekit.fleet import schema as db
from edgekit.fleet.jobs import DEFAULT_LIFE_S, PENDING, Device, end_unfinished, set_desired

CONFIGURE = "configure"


@dataclass(frozen=True)
class Wanted:
    """config: settings by dotted key, merged into those a board was told before; None as a value takes one back.

    reset: all settings, policy and interval go back to the board's own file first. policy, interval_s: None: unchanged.
    """

    selector: str
    config: Mapping[str, Any]
    policy: PolicySpec | None = None
    interval_s: float | None = None
    reset: bool = False
    life_s: float = DEFAULT_LIFE_S


def create_settings_job(
    connection: sa.Connection,
    wanted: Wanted,
    devices: Sequence[Device],
    now: float,
    revoked: Collection[str] = (),
) -> str:
    """Store the job and each board's next desired state; the job's id. revoked: labels of bundles.

    What a board runs stays: a bundle that is on its way to it still is; one that failed there, or was revoked, is not
    asked for again.
    """
    job_id = secrets.token_hex(6)
    policy = None if wanted.policy is None else json.dumps(wanted.policy.to_json())
    row = {
        "job_id": job_id,
        "created": now,
        "expires": now + wanted.life_s,
        "target": "",  # none
        "selector": wanted.selector,
        "policy": policy,
        "interval_s": wanted.interval_s,
        "config": json.dumps(dict(wanted.config)),
    }
    job = connection.execute(sa.insert(db.jobs).values(row).returning(db.jobs.c.id)).scalar_one()
    for device in devices:
        before = _before(connection, device)
        target = _target(connection, device, before)
        if target in revoked:
            target = None
        end_unfinished(connection, device, job_id, now)
        state = {"job": job, "device": device.id, "updated": now, "state": PENDING}
        connection.execute(sa.insert(db.job_devices).values(state))
        kept = {} if before is None or wanted.reset else before._asdict()
        merged = {**json.loads(kept.get("config") or "{}"), **wanted.config}
        config = {key: value for key, value in merged.items() if value is not None}
        desired = {
            "target": target,
            "policy": policy or kept.get("policy"),
            "interval_s": wanted.interval_s or kept.get("interval_s"),
            "config": json.dumps(config) if config else None,
        }
        set_desired(connection, device, {**row, **desired}, now)
    return job_id


def _before(connection: sa.Connection, device: Device) -> sa.Row[Any] | None:
    return connection.execute(sa.select(db.desired).where(db.desired.c.device == device.id)).one_or_none()


def _target(connection: sa.Connection, device: Device, before: sa.Row[Any] | None) -> str | None:
    """What the board should go on to run: what it was last told, unless that came to a bad end there."""
    if before is None or before.target is None:
        return None
    states, jobs = db.job_devices, db.jobs
    state = connection.scalar(
        sa.select(states.c.state)
        .join(jobs, jobs.c.id == states.c.job)
        .where(jobs.c.job_id == before.job_id, states.c.device == device.id)
    )
    if state in job_states.FINAL and state not in job_states.GOOD:
        return None
    target: str = before.target
    return target
