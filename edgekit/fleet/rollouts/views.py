"""What the API and the page show of rollouts, as JSON values. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.core.target import Target
from edgekit.fleet import audit, jobs
from edgekit.fleet import schema as db
from edgekit.fleet.rollouts.back import back_counts, may_return
from edgekit.fleet.rollouts.cohorts import UNKNOWN, split
from edgekit.fleet.rollouts.commands import overlapping, sorted_out
from edgekit.fleet.rollouts.gate import Counts
from edgekit.fleet.rollouts.plan import Plan, next_open
from edgekit.fleet.rollouts.states import OVER, knows
from edgekit.fleet.rollouts.stored import LEFT_OUT, counts_by_wave, counts_json, kind_of, wave_name
from edgekit.fleet.views import Unknown

_FIRST = 20  # names of boards in a preview
_AUDIT = 200
_ACTIONS = {"pause": "pause", "resume": "resume", "abort": "abort", "rollback": "back"}


def rollout_rows(
    connection: sa.Connection,
    limit: int = 100,
    offset: int = 0,
    *,
    under_way: bool = False,
    bundle: str | None = None,
) -> list[dict[str, Any]]:
    """The newest rollouts first. under_way: only those that are not over. bundle: only this one's, of any version."""
    query = _which(sa.select(db.rollouts), under_way, bundle).order_by(db.rollouts.c.id.desc())
    rows = connection.execute(query.limit(limit).offset(offset)).all()
    sizes = _sizes(connection, [row.id for row in rows])
    return [_row(row, sizes.get(row.id, {}), counts_by_wave(connection, row.id)) for row in rows]


def rollout_count(connection: sa.Connection, *, under_way: bool = False, bundle: str | None = None) -> int:
    """How many `rollout_rows` has without a limit."""
    query = _which(sa.select(sa.func.count()).select_from(db.rollouts), under_way, bundle)
    return connection.scalar(query) or 0


def _which(query: sa.Select[Any], under_way: bool, bundle: str | None) -> sa.Select[Any]:
    table = db.rollouts
    if under_way:
        query = query.where(table.c.state.not_in(OVER))
    if bundle is not None:
        query = query.where(table.c.target.startswith(f"{bundle}/", autoescape=True))
    return query


def rollout_of_job(connection: sa.Connection, job_id: str) -> str | None:
    """The rollout whose wave, or whose way back, the job is; None for a job of its own."""
    table, waves, boards = db.rollouts, db.rollout_waves, db.rollout_boards
    wave = sa.select(waves.c.rollout).where(waves.c.job_id == job_id)
    back = sa.select(boards.c.rollout).where(boards.c.back_job == job_id)
    query = sa.select(table.c.rollout_id).where(table.c.id.in_(wave) | table.c.id.in_(back)).limit(1)
    return connection.scalar(query)


def rollout_detail(connection: sa.Connection, rollout_id: str, now: float) -> dict[str, Any]:
    """A rollout with its waves, their gates, who was left out, how going back stands, and its audit log."""
    row = _found(connection, rollout_id)
    sizes = _sizes(connection, [row.id]).get(row.id, {})
    counts = counts_by_wave(connection, row.id)
    plan = Plan.parse(json.loads(row.plan))
    actions = [action for action, event in _ACTIONS.items() if knows(row.state, event)]
    if "resume" in actions and row.wave < len(plan.sizes):
        actions.insert(1, "accept")
    waiting = row.state == "waiting" and row.wave < len(plan.sizes)
    boards = db.rollout_boards
    left = sa.select(boards.c.why, sa.func.count()).where(
        boards.c.rollout == row.id, boards.c.wave == LEFT_OUT
    )
    return {
        **_row(row, sizes, counts),
        "plan": plan.to_json(),
        "waves": _waves(connection, row.id, counts),
        "left_out": [
            {"why": why, "boards": number} for why, number in connection.execute(left.group_by(boards.c.why))
        ],
        "back": back_counts(connection, row.id),
        "next_window": next_open(plan, now) if waiting else None,
        "actions": actions,
        "audit": _audit(connection, rollout_id),
        "over": row.state in OVER,
        "wave_count": len(plan.sizes),
    }


def rollout_boards(
    connection: sa.Connection,
    rollout_id: str,
    wave: int | None = None,
    state: str | None = None,
    search: str = "",
    offset: int = 0,
    limit: int = 50,
) -> dict[str, Any]:
    """Its boards by name, a page of them. state: a name of what became of them, or waiting."""
    row = _found(connection, rollout_id)
    boards, devices, waves, table, states = (
        db.rollout_boards,
        db.devices,
        db.rollout_waves,
        db.jobs,
        db.job_devices,
    )
    in_wave = (waves.c.rollout == boards.c.rollout) & (waves.c.wave == boards.c.wave)
    query = (
        sa.select(boards, devices.c.name, states.c.state, states.c.reason, states.c.detail, states.c.updated)
        .join(devices, devices.c.id == boards.c.device)
        .outerjoin(waves, in_wave)
        .outerjoin(table, table.c.job_id == waves.c.job_id)
        .outerjoin(states, (states.c.job == table.c.id) & (states.c.device == boards.c.device))
        .where(boards.c.rollout == row.id, boards.c.wave != LEFT_OUT)
    )
    if wave is not None:
        query = query.where(boards.c.wave == wave)
    if search:
        query = query.where(devices.c.name.contains(search, autoescape=True))
    if state is not None:
        query = query.where(_of_kind(state, boards, states))
    total = connection.scalar(sa.select(sa.func.count()).select_from(query.subquery()))
    found = connection.execute(query.order_by(devices.c.name).offset(offset).limit(limit))
    return {"total": total or 0, "boards": [_board(entry) for entry in found]}


def _of_kind(state: str, boards: sa.Table, states: sa.Table) -> sa.ColumnElement[bool]:
    plain = {"took": "active", "refused": "refused", "silent": "expired"}
    if state == "waiting":
        return ~boards.c.asked
    if state in plain:
        return states.c.state == plain[state]
    superseded = sa.func.coalesce(states.c.reason, "") == "superseded"
    if state in {"failed", "superseded"}:
        return (states.c.state == "failed") & (superseded if state == "superseded" else ~superseded)
    return boards.c.asked & states.c.state.not_in(["failed", *plain.values()])


def _board(row: Any) -> dict[str, Any]:
    return {
        "name": row.name,
        "profile": row.profile,
        "wave": row.wave,
        "state": kind_of(row.state, row.reason) if row.asked else "waiting",
        "reason": row.reason,
        "detail": row.detail,
        "updated": row.updated,
        "before": row.before,
        "back": row.back_job or row.back_why,
    }


def preview(connection: sa.Connection, plan: Plan, targets: Mapping[str, Target]) -> dict[str, Any]:
    """What a plan would do: boards per wave and profile, who is left out, who could go back, what to know before."""
    target = jobs.find_target(targets.values(), plan.target)
    devices = jobs.selected(jobs.known_devices(connection), plan.to)
    taking, left = sorted_out(plan, target, devices)
    profiles = {device.name: device.profile for device in taking}
    waves = split(plan, profiles)
    back = _returns(taking, plan.target, targets)
    others = overlapping(connection, [device.id for device in taking])
    names = {device.id: device.name for device in devices}
    reasons = sorted(set(left.values()))
    return {
        "boards": len(taking),
        "waves": [
            {
                "wave": number,
                "name": wave_name(number),
                "boards": len(members),
                "profiles": _tally(profiles[name] or UNKNOWN for name in members),
                "first": sorted(members)[:_FIRST],
            }
            for number, members in enumerate(waves)
        ],
        "left_out": [
            {
                "why": why,
                "boards": sum(reason == why for reason in left.values()),
                "names": sorted(names[key] for key, reason in left.items() if reason == why)[:_FIRST],
            }
            for why in reasons
        ],
        "back": back,
        "warnings": _warnings(plan, profiles, waves, back),
        "overlaps": [{"rollout_id": key, "boards": number} for key, number in sorted(others.items())],
    }


def _returns(
    taking: Sequence[jobs.Device], label: str, targets: Mapping[str, Target]
) -> list[dict[str, Any]]:
    """What boards would go back to -> how many, and why some may not."""
    counts: dict[tuple[str | None, str | None], int] = {}
    for device in taking:
        before = device.bundle
        why = "it has no bundle now" if before is None else may_return(before, device, label, targets)
        counts[before, why] = counts.get((before, why), 0) + 1
    return [
        {"before": before, "boards": number, "why": why}
        for (before, why), number in sorted(counts.items(), key=str)
    ]


def _warnings(
    plan: Plan,
    profiles: Mapping[str, str | None],
    waves: Sequence[Sequence[str]],
    back: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What somebody should know before it begins."""
    found = [
        f"{entry['boards']} boards could not be rolled back: {entry['why']}" for entry in back if entry["why"]
    ]
    missing = {profile or UNKNOWN for profile in profiles.values()}
    missing -= {profiles[name] or UNKNOWN for name in waves[0]}
    if missing:
        found.append(f"the canary has no board of {', '.join(sorted(missing))}: it says nothing about them")
    if plan.canary.boards is not None and len(waves[0]) > plan.canary.boards:
        found.append(
            f"the canary is {len(waves[0])} boards and not {plan.canary.boards}: one of each profile at least"
        )
    return found


def _tally(words: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return dict(sorted(found.items()))


def _found(connection: sa.Connection, rollout_id: str) -> Any:
    row = connection.execute(
        sa.select(db.rollouts).where(db.rollouts.c.rollout_id == rollout_id)
    ).one_or_none()
    if row is None:
        raise Unknown(f"there is no rollout {rollout_id!r}")
    return row


def _sizes(connection: sa.Connection, rollouts: Sequence[int]) -> dict[int, dict[int, int]]:
    """Rollout -> wave -> boards."""
    boards = db.rollout_boards
    query = sa.select(boards.c.rollout, boards.c.wave, sa.func.count()).where(boards.c.rollout.in_(rollouts))
    found: dict[int, dict[int, int]] = {}
    for rollout, wave, number in connection.execute(query.group_by(boards.c.rollout, boards.c.wave)):
        found.setdefault(rollout, {})[wave] = number
    return found


def _row(row: Any, sizes: Mapping[int, int], counts: Mapping[int, Counts]) -> dict[str, Any]:
    states = _added(counts.values())
    return {
        "rollout_id": row.rollout_id,
        "target": row.target,
        "to": row.selector,
        "state": row.state,
        "why": row.why,
        "created": row.created,
        "created_by": row.created_by,
        "since": row.since,
        "updated": row.updated,
        "wave": row.wave,
        "waves": len(json.loads(row.plan)["waves"]) + 1,
        "boards": {
            "total": sum(number for wave, number in sizes.items() if wave != LEFT_OUT),
            "left_out": sizes.get(LEFT_OUT, 0),
            "asked": sum(states.values()),
            **states,
        },
    }


def _added(counts: Any) -> dict[str, int]:
    found = counts_json(Counts())
    for part in counts:
        for key, number in counts_json(part).items():
            found[key] += number
    return found


def _waves(connection: sa.Connection, rollout: int, counts: Mapping[int, Counts]) -> list[dict[str, Any]]:
    waves, table, boards = db.rollout_waves, db.jobs, db.rollout_boards
    query = sa.select(waves, table.c.expires).outerjoin(table, table.c.job_id == waves.c.job_id)
    profiles: dict[int, dict[str, int]] = {}
    by_profile = sa.select(boards.c.wave, boards.c.profile, sa.func.count()).where(
        boards.c.rollout == rollout
    )
    for wave, profile, number in connection.execute(by_profile.group_by(boards.c.wave, boards.c.profile)):
        profiles.setdefault(wave, {})[profile or UNKNOWN] = number
    found = []
    for row in connection.execute(query.where(waves.c.rollout == rollout).order_by(waves.c.wave)):
        states = counts_json(counts.get(row.wave, Counts()))
        found.append(
            {
                "wave": row.wave,
                "name": wave_name(row.wave),
                "state": row.state,
                "boards": row.boards,
                "profiles": dict(sorted(profiles.get(row.wave, {}).items())),
                "job_id": row.job_id,
                "started": row.started,
                "ended": row.ended,
                "deadline": row.expires,
                "states": states | {"waiting": max(0, row.boards - sum(states.values()))},
                "verdict": json.loads(row.verdict or "null"),
            }
        )
    return found


def _audit(connection: sa.Connection, rollout_id: str) -> list[dict[str, Any]]:
    """Newest first."""
    found = []
    for entry in audit.lines(connection, f"rollout:{rollout_id}", limit=_AUDIT):
        detail = dict(entry["detail"])
        text = detail.pop("text", "")
        found.append(
            {
                "at": entry["at"],
                "who": entry["who"],
                "action": entry["action"],
                "text": text,
                "detail": detail,
            }
        )
    return found
