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
from edgekit.fleet import asking
from edgekit.fleet import schema as db
from edgekit.fleet.jobs import DEFAULT_LIFE_S, PENDING, Device

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
    job = asking.new_job(connection, row)
    asking.lock_boards(connection, [device.id for device in devices])
    told = _told(connection, [device.id for device in devices])
    states = {device.id: {"state": PENDING} for device in devices}
    asking.end_unfinished(connection, list(states), job_id, now)
    asking.add_boards(connection, job, states, now)
    common = {"job_id": job_id, "expires": row["expires"]}
    desired = {device: common | _desired(told.get(device), wanted, policy, revoked) for device in states}
    asking.set_desired(connection, desired, {device.id: device.reported_rev for device in devices}, now)
    return job_id


def _desired(
    told: sa.Row[Any] | None, wanted: Wanted, policy: str | None, revoked: Collection[str]
) -> dict[str, Any]:
    """What a board is to do now, given what it was told before."""
    target = _target(told)
    kept = {} if told is None or wanted.reset else told._asdict()
    merged = {**json.loads(kept.get("config") or "{}"), **wanted.config}
    config = {key: value for key, value in merged.items() if value is not None}
    return {
        "target": None if target in revoked else target,
        "policy": policy or kept.get("policy"),
        "interval_s": wanted.interval_s or kept.get("interval_s"),
        "config": json.dumps(config) if config else None,
    }


def _told(connection: sa.Connection, devices: Sequence[int]) -> dict[int, sa.Row[Any]]:
    """Board -> its desired state, with what became of its job there."""
    desired, states, jobs = db.desired, db.job_devices, db.jobs
    found: dict[int, sa.Row[Any]] = {}
    query = (
        sa.select(desired, states.c.state)
        .outerjoin(jobs, jobs.c.job_id == desired.c.job_id)
        .outerjoin(states, (states.c.job == jobs.c.id) & (states.c.device == desired.c.device))
    )
    for part in asking.parts(devices):
        found |= {row.device: row for row in connection.execute(query.where(desired.c.device.in_(part)))}
    return found


def _target(told: sa.Row[Any] | None) -> str | None:
    """What the board should go on to run: what it was last told, unless that came to a bad end there."""
    if told is None or (told.state in job_states.FINAL and told.state not in job_states.GOOD):
        return None
    target: str | None = told.target
    return target
