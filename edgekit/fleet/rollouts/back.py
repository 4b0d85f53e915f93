"""Take the boards of a rollout back to what they ran before. Waits for no window: going back is always due.

Who goes back: boards that took the bundle, and boards that might still take it (at work, or silent). Who does not, and
is counted with the reason: boards that a newer job has taken over, boards that failed (they went back by themselves),
boards that had no bundle before, and boards that core.trust would have refuse it (what was before was revoked, or is
not `allowed` any more).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.core import jobs as job_states
from edgekit.core.policy import PolicySpec
from edgekit.core.target import Target
from edgekit.core.trust import Running
from edgekit.fleet import asking, jobs
from edgekit.fleet import schema as db
from edgekit.fleet.rollouts import stored
from edgekit.fleet.rollouts.stored import Rollout, locked, move
from edgekit.fleet.store import Store

SLICE = 500
LIFE_S = 7 * 86_400.0  # a board that is away now still hears of it
_Targets = Mapping[str, Target]


def step_back(store: Store, rollout: Rollout, now: float, targets: _Targets) -> bool:
    """Ask the next slice to go back, or look whether all have; True where more is to be done at once."""
    with store.read() as connection:
        rows = _undecided(connection, rollout)
        known = {device.id: device for device in jobs.known_devices(connection, [row.device for row in rows])}
    if not rows:
        return _look(store, rollout, now)
    with store.write() as connection:
        if not locked(connection, rollout):
            return True
        asking.lock_boards(connection, sorted(known))
        groups: dict[tuple[Any, ...], list[jobs.Device]] = {}
        left: dict[str, list[int]] = {}
        for row in rows:
            device = known.get(row.device)
            why = "its credentials were revoked" if device is None else why_not(rollout, row, device, targets)
            if why is None and device is not None:
                groups.setdefault((row.before, row.before_policy, row.before_interval_s), []).append(device)
            else:
                left.setdefault(why or "", []).append(row.device)
        boards = db.rollout_boards
        for why, ids in sorted(left.items()):
            own = sa.update(boards).where(boards.c.rollout == rollout.id, boards.c.device.in_(ids))
            connection.execute(own.values(back_why=why))
        for key, devices in sorted(groups.items(), key=str):
            _send_back(connection, rollout, key, devices, now, targets)
        stored.change(connection, rollout, now)
    return True


def _undecided(connection: sa.Connection, rollout: Rollout) -> Sequence[Any]:
    boards, desired = db.rollout_boards, db.desired
    asked = stored.asked_boards(rollout.id).add_columns(desired.c.target.label("wanted"))
    query = (
        asked.outerjoin(desired, desired.c.device == boards.c.device)
        .where(boards.c.back_job.is_(None), boards.c.back_why.is_(None))
        .order_by(boards.c.device)
        .limit(SLICE)
    )
    return connection.execute(query).all()


def why_not(rollout: Rollout, row: Any, device: jobs.Device, targets: _Targets) -> str | None:
    """Why a board is not taken back; None where it is."""
    kind = stored.kind_of(row.state, row.reason)
    if kind == "refused":
        return "it refused the bundle"
    if kind == "failed":
        return "it failed, and went back by itself"
    if row.wanted != rollout.plan.target:
        return "a newer job has taken it over"
    if row.before is None:
        return "it had no bundle before"
    if row.before == rollout.plan.target:
        return "it ran the same bundle before"
    return may_return(row.before, device, rollout.plan.target, targets)


def may_return(before: str, device: jobs.Device, after: str, targets: _Targets) -> str | None:
    """Why core.trust would have a board that runs `after` refuse `before`; None where it may return."""
    target, new = targets.get(before), targets.get(after)
    if target is None:
        return f"{before} is not published any more"
    running = device.running
    if new is not None and (running is None or device.bundle != before):
        running = Running(new.name, new.version, new.content_id)
    as_then = jobs.Device(
        device.id, device.name, device.profile, device.tags, running, device.reported_rev, device.bundle
    )
    decision = jobs.preview(target, as_then)
    return None if decision is None else f"{before}: {decision['reason']}"


def _send_back(
    connection: sa.Connection,
    rollout: Rollout,
    key: tuple[Any, ...],
    devices: Sequence[jobs.Device],
    now: float,
    targets: _Targets,
) -> None:
    """Into the one job of all boards that go back to the same."""
    before, policy, interval_s = key
    boards, table = db.rollout_boards, db.jobs
    spec = None if policy is None else PolicySpec.parse(json.loads(policy))
    said = f"back from {rollout.plan.target} (rollout {rollout.rollout_id})"
    row = jobs.job_row(jobs.Order(targets[before], said, spec, interval_s, LIFE_S), now)
    ours = sa.select(boards.c.back_job).where(boards.c.rollout == rollout.id, boards.c.back_job.is_not(None))
    same = (table.c.target == before) & (table.c.policy.is_not_distinct_from(row["policy"]))
    same &= table.c.interval_s.is_not_distinct_from(interval_s)
    known = connection.execute(sa.select(table).where(table.c.job_id.in_(ours), same)).first()
    if known is None:
        job = asking.new_job(connection, row)
    else:
        job, row = known.id, row | {"job_id": known.job_id}
    jobs.add_to_job(connection, job, row, targets[before], devices, now)
    ids = [device.id for device in devices]
    own = sa.update(boards).where(boards.c.rollout == rollout.id, boards.c.device.in_(ids))
    connection.execute(own.values(back_job=row["job_id"]))
    if known is None:
        text = f"boards that ran {before} go back to it (job {row['job_id']})"
        stored.note(connection, rollout, now, "back-job", text, job=row["job_id"], target=before)


def back_counts(connection: sa.Connection, rollout: int) -> dict[str, Any]:
    """How going back stands: asked, back, open, failed, took_open (took it and is not back), left: [{why, boards}]."""
    boards, table, now_in = db.rollout_boards, db.jobs, db.job_devices
    rows = stored.asked_boards(rollout).subquery()
    query = (
        sa.select(rows.c.state.label("was"), now_in.c.state, sa.func.count())
        .select_from(rows)
        .join(table, table.c.job_id == rows.c.back_job)
        .join(now_in, (now_in.c.job == table.c.id) & (now_in.c.device == rows.c.device))
        .group_by(rows.c.state, now_in.c.state)
    )
    found = {"asked": 0, "back": 0, "open": 0, "failed": 0, "took_open": 0, "took_failed": 0}
    for was, state, number in connection.execute(query):
        kind = "back" if state == job_states.DONE else "failed" if state in job_states.FINAL else "open"
        found["asked"] += number
        found[kind] += number
        if was == job_states.DONE and kind != "back":
            found[f"took_{kind}"] += number
    why = (
        sa.select(boards.c.back_why, sa.func.count())
        .where(boards.c.rollout == rollout, boards.c.back_why.is_not(None))
        .group_by(boards.c.back_why)
    )
    left = [{"why": text, "boards": number} for text, number in connection.execute(why)]
    return found | {"left": sorted(left, key=lambda entry: str(entry["why"]))}


def _look(store: Store, rollout: Rollout, now: float) -> bool:
    """It is over when every board that took the bundle is back, or the deadline has passed."""
    with store.read() as connection:
        found = back_counts(connection, rollout.id)
    over = now > rollout.since + rollout.plan.deadline_s
    if found["took_open"] and not over:
        return False
    stuck = found["took_open"] + found["took_failed"]
    left = "".join(f"; {entry['boards']} left: {entry['why']}" for entry in found["left"])
    silent = found["open"] - found["took_open"]
    waiting = f", {silent} that never said they took it have been told and were silent" if silent else ""
    text = f"{found['back']} of {found['asked']} boards are back{waiting}{left}"
    if stuck:
        text = f"{stuck} boards that took {rollout.plan.target} did not come back in time: {text}"
    why = f"{rollout.why}. {text}" if rollout.why else text
    with store.write() as connection:
        if locked(connection, rollout):
            event = "stuck" if stuck else "restored"
            move(connection, rollout, event, now, why[:2000], detail={"back": found})
    return False
