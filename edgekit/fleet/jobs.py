"""Turn "this bundle to those boards" into a job and desired states, or a one-shot. Publishes nothing: ingest does that.

Who is meant says a selector (core.selector); what a job changes for many boards at once is in asking.py.
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
from edgekit.core.selector import KEYS, Selector, parse_selector
from edgekit.core.target import Target, parse_label, target_path
from edgekit.core.trust import REASONS, Board, Running, decide
from edgekit.fleet import asking
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
    bundle: str | None = None  # `name/version` that it says it runs, whether or not it says which content


@dataclass(frozen=True)
class Order:
    """What a job asks of every board it is for."""

    target: Target
    selector: str
    policy: PolicySpec | None = None
    interval_s: float | None = None
    life_s: float = DEFAULT_LIFE_S


def matches(device: Device, selector: Selector) -> bool:
    """Whether a board is meant."""
    return selector.matches(name=device.name, profile=device.profile, tags=device.tags, bundle=device.bundle)


def known_devices(connection: sa.Connection, ids: Sequence[int] | None = None) -> list[Device]:
    """Every enrolled board, or those of `ids`, by name; none that is revoked: it would hear nothing."""
    table = db.devices
    names = ("id", "name", "profile", "says_profile", "tags", "runs", "reported")
    columns = [table.c[name] for name in names]
    query = sa.select(*columns).where(table.c.revoked_at.is_(None)).order_by(table.c.name)
    if ids is not None:
        query = query.where(table.c.id.in_(ids))
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
            "bundle": {device.bundle for device in devices if device.bundle},
        }
        asked = [key for key in KEYS if key in selector.wanted] or KEYS
        known = "; ".join(f"{key}: {_some(has[key])}" for key in asked)
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
    row = job_row(order, now)
    job = asking.new_job(connection, row)
    add_to_job(connection, job, row, order.target, devices, now)
    return str(row["job_id"])


def job_row(order: Order, now: float) -> dict[str, Any]:
    """A new job's row, with an id drawn for it."""
    return {
        "job_id": secrets.token_hex(6),
        "created": now,
        "expires": now + order.life_s,
        "target": order.target.label,
        "selector": order.selector,
        "policy": None if order.policy is None else json.dumps(order.policy.to_json()),
        "interval_s": order.interval_s,
    }


def add_to_job(
    connection: sa.Connection,
    job: int,
    row: Mapping[str, Any],
    target: Target,
    devices: Sequence[Device],
    now: float,
) -> None:
    """Put boards into a job that has none of them yet, and set their desired states."""
    asking.lock_boards(connection, [device.id for device in devices])
    states = {device.id: preview(target, device) or {"state": PENDING} for device in devices}
    asked = [device for device in devices if states[device.id]["state"] == PENDING]
    asking.end_unfinished(connection, [device.id for device in asked], row["job_id"], now)
    asking.add_boards(connection, job, states, now)
    wanted = {key: row[key] for key in ("job_id", "target", "policy", "interval_s", "expires")}
    reported = {device.id: device.reported_rev for device in asked}
    asking.set_desired(connection, dict.fromkeys(reported, wanted), reported, now)


def create_measure(
    connection: sa.Connection, target: Target, device: Device, life_s: float, now: float
) -> str:
    """Store a one-shot job that has one board time a round of candidates, and return the job's id.

    Raises Conflict where the board has such a job that has not ended: it would measure the one through the other.
    """
    asking.lock_boards(connection, [device.id])
    _refuse_second(connection, device)
    row = job_row(Order(target, f"name={device.name}", life_s=life_s), now)
    _add_one_shots(connection, row, MEASURE, {device.id: preview(target, device, MEASURE)}, now)
    return str(row["job_id"])


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
    row = job_row(Order(target, selector, life_s=life_s), now)
    asking.lock_boards(connection, [device.id for device in devices])
    decisions = {device.id: preview(target, device, AGENT) for device in devices}
    asked = [device for device, decision in decisions.items() if decision is None]
    updates = db.job_devices.c.job.in_(sa.select(db.commands.c.job).where(db.commands.c.action == UPDATE))
    asking.end_unfinished(connection, asked, str(row["job_id"]), now, updates)
    _add_one_shots(connection, row, UPDATE, decisions, now)
    return str(row["job_id"])


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
    asking.lock_boards(connection, [device.id for device in having])
    _add_one_shots(connection, row, REFRESH, {device.id: None for device in having}, now)
    return len(having)


def _add_one_shots(
    connection: sa.Connection,
    row: Mapping[str, Any],
    action: str,
    decisions: Mapping[int, Mapping[str, str] | None],
    now: float,
) -> None:
    """A job of one-shots. decisions: board -> why it would refuse, None where it may not."""
    job = asking.new_job(connection, row)
    states = {device: decision or {"state": PENDING} for device, decision in decisions.items()}
    asking.add_boards(connection, job, states, now)
    pending = {device: decision is None for device, decision in decisions.items()}
    asking.add_commands(connection, job, action, pending, now)


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


def _device(row: Any) -> Device:
    reported = json.loads(row.reported or "{}")
    return Device(
        row.id,
        row.name,
        row.says_profile or row.profile,
        frozenset(json.loads(row.tags)),
        _running(reported),
        min(reported.get("rev", 0), _MAX_REV),
        row.runs,
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
