"""Turn "this bundle to those boards" into a job and desired states, or a one-shot. Publishes nothing: ingest does that.

A selector is `all`, or `key=value` pairs with commas between: tag, profile, name. Pairs with the same key are
alternatives, different keys must all hold: `tag=site-a,tag=site-b,profile=raspberrypi5`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from edgekit.core import jobs as job_states
from edgekit.core.errors import BadInput
from edgekit.core.policy import PolicySpec
from edgekit.core.selector import KEYS, parse_selector
from edgekit.core.target import Target, parse_label, target_path
from edgekit.core.trust import REASONS, Board, Running, decide
from edgekit.fleet import schema as db
from edgekit.repo.add import Conflict

PENDING = "pending"
DEFAULT_LIFE_S = 86_400.0
AGENT, UPDATE = "agent", "update-agent"  # the use of an environment, and the action that brings it
MEASURE, MEASURE_LIFE_S = "measure", 900.0
REFRESH, REFRESH_LIFE_S = "refresh", 86_400.0  # by then every board has looked by itself
_MAX_REV = 2**31  # a board that claims more does not push its number out of range


@dataclass(frozen=True)
class Device:
    """A board as a rollout sees it. profile: what its agent says, else as enrolled, else None. running: its bundle."""

    id: int
    name: str
    profile: str | None
    tags: frozenset[str]
    running: Running | None
    reported_rev: int


@dataclass(frozen=True)
class Order:
    """What a job asks of every board it is for."""

    target: Target
    selector: str
    policy: PolicySpec | None = None
    interval_s: float | None = None
    life_s: float = DEFAULT_LIFE_S


def matches(device: Device, selector: Mapping[str, frozenset[str]]) -> bool:
    """Whether a board is meant."""
    has = {"tag": device.tags, "profile": {device.profile}, "name": {device.name}}
    return all(wanted & has[key] for key, wanted in selector.items())


def known_devices(connection: sa.Connection) -> list[Device]:
    """Every enrolled board, by name; none that is revoked: it would hear nothing."""
    table = db.devices
    columns = (table.c.id, table.c.name, table.c.profile, table.c.tags, table.c.info, table.c.reported)
    query = sa.select(*columns).where(table.c.revoked_at.is_(None)).order_by(table.c.name)
    return [_device(row) for row in connection.execute(query)]


def selected(devices: Iterable[Device], text: str) -> list[Device]:
    """The boards a selector means. Raises BadInput where it means none."""
    devices = list(devices)
    selector = parse_selector(text)
    found = [device for device in devices if matches(device, selector)]
    if not found:
        has = {
            "tag": {tag for device in devices for tag in device.tags},
            "profile": {device.profile for device in devices if device.profile},
            "name": {device.name for device in devices},
        }
        known = "; ".join(f"{key}: {_some(has[key])}" for key in (selector or KEYS))
        raise BadInput(f"--to {text} means no board ({known})")
    return found


def find_target(targets: Iterable[Target], label: str, use: str = "run") -> Target:
    """The published target called `name/version`. Raises BadInput that lists the newest of what there is."""
    name, version = parse_label(label, "target")
    path = target_path(name, version, use)
    targets = list(targets)
    for target in targets:
        if target.path == path:
            return target
    raise BadInput(f"target {label} is not published ({_some({target.label for target in targets})})")


def create_job(connection: sa.Connection, order: Order, devices: Sequence[Device], now: float) -> str:
    """Store a job and each board's new desired state, and return the job's id.

    A board for which core.trust would refuse the target anyway is listed as refused and left alone. A newer job
    ends what an older one has not finished on the same board.
    """
    job_id = secrets.token_hex(6)
    policy = None if order.policy is None else json.dumps(order.policy.to_json())
    row = {
        "job_id": job_id,
        "created": now,
        "expires": now + order.life_s,
        "target": order.target.label,
        "selector": order.selector,
        "policy": policy,
        "interval_s": order.interval_s,
    }
    job = connection.execute(sa.insert(db.jobs).values(row).returning(db.jobs.c.id)).scalar_one()
    for device in devices:
        state = {"job": job, "device": device.id, "updated": now}
        decision = preview(order.target, device)
        if decision is not None:
            connection.execute(sa.insert(db.job_devices).values(state | decision))
            continue
        end_unfinished(connection, device, job_id, now)
        connection.execute(sa.insert(db.job_devices).values(state | {"state": PENDING}))
        set_desired(connection, device, row, now)
    return job_id


def create_measure(
    connection: sa.Connection, target: Target, device: Device, life_s: float, now: float
) -> str:
    """Store a one-shot job that has one board time a round of candidates, and return the job's id.

    Raises Conflict where the board has such a job that has not ended: it would measure the one through the other.
    """
    _refuse_second(connection, device)
    job_id = secrets.token_hex(6)
    row = {
        "job_id": job_id,
        "created": now,
        "expires": now + life_s,
        "target": target.label,
        "selector": f"name={device.name}",
    }
    job = connection.execute(sa.insert(db.jobs).values(row).returning(db.jobs.c.id)).scalar_one()
    decision = preview(target, device, MEASURE)
    state = decision or {"state": PENDING}
    connection.execute(sa.insert(db.job_devices).values(job=job, device=device.id, updated=now, **state))
    n = _next_n(connection, device, now)
    command = {"job": job, "device": device.id, "action": MEASURE, "n": n, "pending": decision is None}
    connection.execute(sa.insert(db.commands).values(command))
    return job_id


def create_update(
    connection: sa.Connection,
    target: Target,
    selector: str,
    devices: Sequence[Device],
    life_s: float,
    now: float,
) -> str:
    """Store a one-shot job that has boards put their agent into another environment, and return the job's id.

    A newer one ends what an older one has not finished on the same board, which walks both in their order.
    """
    job_id = secrets.token_hex(6)
    row = {
        "job_id": job_id,
        "created": now,
        "expires": now + life_s,
        "target": target.label,
        "selector": selector,
    }
    job = connection.execute(sa.insert(db.jobs).values(row).returning(db.jobs.c.id)).scalar_one()
    for device in devices:
        decision = preview(target, device, AGENT)
        if decision is None:
            _end_updates(connection, device, job_id, now)
        state = decision or {"state": PENDING}
        connection.execute(sa.insert(db.job_devices).values(job=job, device=device.id, updated=now, **state))
        command = {"job": job, "device": device.id, "action": UPDATE, "pending": decision is None}
        connection.execute(sa.insert(db.commands).values(command | {"n": _next_n(connection, device, now)}))
    return job_id


def _end_updates(connection: sa.Connection, device: Device, job_id: str, now: float) -> None:
    states, commands = db.job_devices, db.commands
    same = sa.select(commands.c.job).where(commands.c.device == device.id, commands.c.action == UPDATE)
    connection.execute(
        sa.update(states)
        .where(states.c.device == device.id, states.c.state.not_in(job_states.FINAL))
        .where(states.c.job.in_(same))
        .values(state="failed", reason="superseded", detail=f"job {job_id} took its place", updated=now)
    )


def create_refresh(connection: sa.Connection, label: str, now: float) -> int:
    """Store a one-shot job that has boards look at the repository at once, because `label` was revoked; how many.

    It is for every board that has or is to run it, and for those that did not say what they have.
    """
    having = _boards_with(connection, label)
    if not having:
        return 0
    row = {
        "job_id": secrets.token_hex(6),
        "created": now,
        "expires": now + REFRESH_LIFE_S,
        "target": label,
        "selector": "all",
    }
    job = connection.execute(sa.insert(db.jobs).values(row).returning(db.jobs.c.id)).scalar_one()
    for device in having:
        state = {"job": job, "device": device.id, "updated": now, "state": PENDING}
        connection.execute(sa.insert(db.job_devices).values(state))
        command = {"job": job, "device": device.id, "action": REFRESH, "pending": True}
        connection.execute(sa.insert(db.commands).values(command | {"n": _next_n(connection, device, now)}))
    return len(having)


def _boards_with(connection: sa.Connection, label: str) -> list[Device]:
    said = {row.id: json.loads(row.info or "null") for row in connection.execute(sa.select(db.devices))}
    wanted = {row.device: row.target for row in connection.execute(sa.select(db.desired))}
    found = []
    for device in known_devices(connection):
        info = said[device.id]
        runs = device.running is not None and f"{device.running.name}/{device.running.version}" == label
        has = info is None or label in (*info.get("slots", ()), info.get("environment"))
        if has or runs or wanted.get(device.id) == label:
            found.append(device)
    return found


def _refuse_second(connection: sa.Connection, device: Device) -> None:
    commands, states, jobs = db.commands, db.job_devices, db.jobs
    same = (states.c.job == commands.c.job) & (states.c.device == commands.c.device)
    query = (
        sa.select(jobs.c.job_id)
        .join(commands, commands.c.job == jobs.c.id)
        .join(states, same)
        .where(commands.c.device == device.id, commands.c.action == MEASURE)
        .where(states.c.state.not_in(job_states.FINAL))
    )
    found = connection.scalar(query)
    if found is not None:
        raise Conflict(f"{device.name} measures already (job {found}): wait until that has ended or expired")


def preview(target: Target, device: Device, use: str = "run") -> dict[str, str] | None:
    """Why the board would refuse the target, None where it may accept: what only the board knows counts as accepted."""
    profile = target.profiles[0] if device.profile is None else device.profile
    board = Board(profile, accepts_measure=True, accepts_code=True, name=device.name)
    decision = decide(target, board, device.running if use == "run" else None, use)
    if decision.reason is None:
        return None
    detail = f"{REASONS[decision.reason]} ({decision.detail}); the server did not ask the board"
    return {"state": "refused", "reason": decision.reason, "detail": detail}


def end_unfinished(connection: sa.Connection, device: Device, job_id: str, now: float) -> None:
    """A newer desired state takes the place of the last one. One-shots are no desired states, and go on."""
    states, shots = db.job_devices, sa.select(db.commands.c.job)
    connection.execute(
        sa.update(states)
        .where(states.c.device == device.id, states.c.state.not_in(job_states.FINAL))
        .where(states.c.job.not_in(shots))
        .values(state="failed", reason="superseded", detail=f"job {job_id} took its place", updated=now)
    )


def set_desired(connection: sa.Connection, device: Device, job: Mapping[str, Any], now: float) -> None:
    """The board's next revision. Settings it was told before stay, unless the job brings its own."""
    table = db.devices
    n = _next_n(connection, device, now)
    last = connection.scalar(sa.select(table.c.rev).where(table.c.id == device.id)) or 0
    rev = max(last, device.reported_rev) + 1
    connection.execute(sa.update(table).where(table.c.id == device.id).values(rev=rev))
    values = {key: job[key] for key in ("job_id", "target", "policy", "interval_s", "expires")}
    told = sa.select(db.desired.c.config).where(db.desired.c.device == device.id)
    values["config"] = job["config"] if "config" in job else connection.scalar(told)
    connection.execute(sa.delete(db.desired).where(db.desired.c.device == device.id))
    connection.execute(sa.insert(db.desired).values(device=device.id, rev=rev, n=n, pending=True, **values))


def _next_n(connection: sa.Connection, device: Device, now: float) -> int:
    """The board's next number. It follows the clock, so that it grows even where the database was restored."""
    table = db.devices
    last = connection.scalar(sa.select(table.c.n).where(table.c.id == device.id)) or 0
    n = max(last + 1, int(now * 1000))
    connection.execute(sa.update(table).where(table.c.id == device.id).values(n=n))
    return n


def _device(row: Any) -> Device:
    info, reported = json.loads(row.info or "{}"), json.loads(row.reported or "{}")
    return Device(
        row.id,
        row.name,
        info.get("profile") or row.profile,
        frozenset(json.loads(row.tags)),
        _running(reported),
        min(reported.get("rev", 0), _MAX_REV),
    )


def _running(reported: Mapping[str, Any]) -> Running | None:
    """The bundle a board says it runs; None where it says nothing that names one."""
    try:
        name, version = parse_label(reported.get("bundle"), "reported.bundle")
    except BadInput:
        return None
    content_id = reported.get("content_id")
    return Running(name, version, content_id) if content_id else None


def _some(names: set[str]) -> str:
    shown = sorted(names)[:10]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more if shown else "none"
