"""Carry rollouts on: what the store says decides what happens next. No thread, no clock, no randomness but job ids.

One step looks, decides, and changes states, jobs and the audit log in one transaction, if nobody changed the rollout
meanwhile. So the server may be killed anywhere: the next step finds the store before a transaction or behind it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edgekit.core.errors import EdgekitError, one_line
from edgekit.core.target import Target
from edgekit.fleet import asking, jobs
from edgekit.fleet import schema as db
from edgekit.fleet.names import BUNDLE, id_of
from edgekit.fleet.rollouts import stored, telemetry
from edgekit.fleet.rollouts.back import step_back
from edgekit.fleet.rollouts.cohorts import UNKNOWN
from edgekit.fleet.rollouts.gate import (
    FAILED,
    OK,
    OPEN,
    Check,
    Counts,
    Figures,
    enough,
    judge_figures,
    judge_results,
)
from edgekit.fleet.rollouts.gate import UNKNOWN as NOT_KNOWN
from edgekit.fleet.rollouts.plan import ROLL_BACK, is_open
from edgekit.fleet.rollouts.states import OVER
from edgekit.fleet.rollouts.stored import BEGUN, PASSED, Rollout, locked, move, set_wave, wave_name
from edgekit.fleet.store import Store

log = logging.getLogger("edgekit.fleet.rollouts")

SLICE = 500  # boards asked in one transaction: ingest waits for it
GRACE_S = 5.0  # what a board said in its last second is on its way
LOOK_EVERY_S = 30.0  # at figures, while there are too few; as often as the soak is long where that is shorter
_IDLE = frozenset({*OVER, "paused"})
Targets = Mapping[str, Target]


def step(store: Store, now: float, targets: Callable[[], Targets]) -> bool:
    """One step of every rollout; True where more is to be done at once. targets: label -> what is published.

    What fails in one rollout is said, and the others go on.
    """
    with store.read() as connection:
        query = sa.select(db.rollouts).where(db.rollouts.c.state.not_in(_IDLE)).order_by(db.rollouts.c.id)
        rows = connection.execute(query).all()
    if not rows:
        return False
    known, more = targets(), False
    for row in rows:
        try:
            more |= step_one(store, stored.rollout_of(row), now, known)
        except EdgekitError as err:
            log.warning("rollout %s: %s", row.rollout_id, one_line(err))
        except Exception:
            log.exception("rollout %s met a defect", row.rollout_id)
    return more


def step_one(store: Store, rollout: Rollout, now: float, targets: Targets) -> bool:
    """One step of one rollout; True where the next may follow at once."""
    if rollout.state == "rolling_back":
        return step_back(store, rollout, now, targets)
    steps = {"waiting": _waiting, "starting": _starting, "running": _running, "soaking": _soaking}
    return steps[rollout.state](store, rollout, now, targets)


def _waiting(store: Store, rollout: Rollout, now: float, targets: Targets) -> bool:
    if not rollout.has_wave:
        with store.write() as connection:
            if locked(connection, rollout):
                move(connection, rollout, "finished", now, "all waves have passed")
        return False
    with store.read() as connection:
        wave = stored.wave_of(connection, rollout)
    if wave.boards == 0:
        return _passed(store, rollout, now, "it has no boards", {})
    problem = _unfit(rollout, targets)
    if problem is not None:
        return _failed(store, rollout, now, problem, {})
    if wave.job_id is not None:  # it was paused on its way
        with store.write() as connection:
            if locked(connection, rollout):
                move(connection, rollout, "open", now, f"{wave_name(rollout.wave)} goes on")
        return True
    if not is_open(rollout.plan, now):
        return False
    with store.write() as connection:
        if locked(connection, rollout):
            order = _order(rollout, targets)
            row = jobs.job_row(order, now)
            asking.new_job(connection, row)
            set_wave(
                connection, rollout, rollout.wave, state=BEGUN, job_id=row["job_id"], started=now, ended=None
            )
            text = f"{wave_name(rollout.wave)} begins: {wave.boards} boards are asked to run {rollout.plan.target}"
            move(connection, rollout, "open", now, text, detail={"boards": wave.boards, "job": row["job_id"]})
    return True


def _order(rollout: Rollout, targets: Targets) -> jobs.Order:
    plan = rollout.plan
    said = f"{plan.to} (rollout {rollout.rollout_id}, {wave_name(rollout.wave)})"
    return jobs.Order(targets[plan.target], said, plan.policy, plan.interval_s, plan.deadline_s)


def _unfit(rollout: Rollout, targets: Targets) -> str | None:
    """Why the target can go to nobody any more."""
    target = targets.get(rollout.plan.target)
    if target is None:
        return f"{rollout.plan.target} is not published any more"
    return f"{rollout.plan.target} was revoked" if target.state == "revoked" else None


def _starting(store: Store, rollout: Rollout, now: float, targets: Targets) -> bool:
    """Ask the next slice of the wave's boards."""
    problem = _unfit(rollout, targets)
    if problem is not None:
        return _failed(store, rollout, now, problem, {})
    boards = db.rollout_boards
    own = (boards.c.rollout == rollout.id) & (boards.c.wave == rollout.wave)
    with store.read() as connection:
        wave = stored.wave_of(connection, rollout)
        query = sa.select(boards.c.device).where(own, ~boards.c.asked).order_by(boards.c.device).limit(SLICE)
        ids = list(connection.scalars(query))
        devices = jobs.known_devices(connection, ids)
    with store.write() as connection:
        if not locked(connection, rollout):
            return True
        if not ids:
            move(connection, rollout, "filled", now, f"{wave_name(rollout.wave)}: every board has been asked")
            return True
        _ask(connection, rollout, wave, devices, now, targets)
        gone = set(ids) - {device.id for device in devices}
        asked = sa.update(boards).where(boards.c.rollout == rollout.id, boards.c.device.in_(ids))
        connection.execute(asked.where(boards.c.device.not_in(gone)).values(asked=True))
        revoked = asked.where(boards.c.device.in_(gone))
        connection.execute(
            revoked.values(wave=stored.LEFT_OUT, why="its credentials were revoked before its wave")
        )
        stored.change(connection, rollout, now)
    return True


def _ask(
    connection: sa.Connection,
    rollout: Rollout,
    wave: Any,
    devices: Sequence[jobs.Device],
    now: float,
    targets: Targets,
) -> None:
    """Put boards into the wave's job, keeping what they had before. Each has the whole deadline from now on."""
    boards, desired, known = db.rollout_boards, db.desired, db.devices
    ids = [device.id for device in devices]
    asking.lock_boards(connection, ids)
    kept = sa.update(boards).where(boards.c.rollout == rollout.id, boards.c.device.in_(ids))
    columns = {"before": "target", "before_policy": "policy", "before_interval_s": "interval_s"}
    values: dict[str, Any] = {
        name: sa.select(desired.c[column]).where(desired.c.device == boards.c.device).scalar_subquery()
        for name, column in columns.items()
    }
    runs = sa.select(known.c.runs).where(known.c.id == boards.c.device).scalar_subquery()
    values["before"] = sa.func.coalesce(runs, values["before"])
    connection.execute(kept.values(**values))
    expires = now + rollout.plan.deadline_s
    connection.execute(sa.update(db.jobs).where(db.jobs.c.id == wave.job).values(expires=expires))
    row = jobs.job_row(_order(rollout, targets), now) | {"job_id": wave.job_id}
    jobs.add_to_job(connection, wave.job, row, targets[rollout.plan.target], devices, now)


def _running(store: Store, rollout: Rollout, now: float, targets: Targets) -> bool:
    """Wait for the boards' word."""
    with store.read() as connection:
        wave = stored.wave_of(connection, rollout)
        counts = stored.counts_by_wave(connection, rollout.id).get(rollout.wave, Counts())
    problem = _unfit(rollout, targets)
    if problem is not None:
        return _failed(store, rollout, now, problem, {})
    gate = rollout.plan.gate_of(rollout.wave)
    verdict, why = judge_results(gate, counts, over=now > wave.expires + GRACE_S)
    results = stored.counts_json(counts)
    if verdict == FAILED:
        return _failed(store, rollout, now, why, {"results": results})
    if verdict == OPEN:
        return False
    with store.write() as connection:
        if locked(connection, rollout):
            if wave.ended is None:
                set_wave(connection, rollout, rollout.wave, ended=now)
            text = f"{wave_name(rollout.wave)}: {why}. Its figures are waited for, {gate.soak_s:g} s"
            move(connection, rollout, "ended", now, text, detail={"results": results})
    return True


def _soaking(store: Store, rollout: Rollout, now: float, targets: Targets) -> bool:
    """Judge the figures, once the soak is over and there are enough requests."""
    gate = rollout.plan.gate_of(rollout.wave)
    problem = _unfit(rollout, targets)
    with store.read() as connection:
        wave = stored.wave_of(connection, rollout)
        counts = stored.counts_by_wave(connection, rollout.id).get(rollout.wave, Counts())
    verdict, why = judge_results(gate, counts, over=now > wave.expires + GRACE_S)
    results = stored.counts_json(counts)
    if problem is not None or verdict == FAILED:
        return _failed(store, rollout, now, problem or why, {"results": results})
    if now < wave.ended + gate.soak_s:
        return False
    pause = min(LOOK_EVERY_S, max(1.0, gate.soak_s))
    if wave.judged is not None and now < wave.judged + pause and now < wave.ended + gate.wait_s:
        return False
    with store.read() as connection:
        before, after = _figures(connection, rollout, wave, now)
    if not enough(gate, before, after) and now < wave.ended + max(gate.soak_s, gate.wait_s):
        with store.write() as connection:
            if locked(connection, rollout):
                set_wave(connection, rollout, rollout.wave, judged=now)
        return False
    checks = judge_figures(gate, before, after)
    return _judged(store, rollout, now, why, {"results": results}, checks)


def _figures(
    connection: sa.Connection, rollout: Rollout, wave: Any, now: float
) -> tuple[dict[str, Figures], dict[str, Figures]]:
    """Of the boards of the wave that took the bundle: before it began, and on the bundle since."""
    rows = stored.asked_boards(rollout.id).subquery()
    query = sa.select(rows.c.device, rows.c.profile).where(
        rows.c.wave == rollout.wave, rows.c.state == "active"
    )
    took = {device: profile or UNKNOWN for device, profile in connection.execute(query)}
    begun = wave.started // 60 * 60
    gate = rollout.plan.gate_of(rollout.wave)
    before = telemetry.read(connection, took, begun - gate.before_s, begun)
    bundle = id_of(connection, BUNDLE, rollout.plan.target)
    after = {} if bundle is None else telemetry.read(connection, took, begun, now + 60, bundle)
    return before, after


def _judged(
    store: Store, rollout: Rollout, now: float, why: str, seen: dict[str, Any], checks: Sequence[Check]
) -> bool:
    verdict = {**seen, "checks": [check.to_json() for check in checks]}
    bad = [check.text for check in checks if check.verdict == FAILED]
    blocking = [check.text for check in checks if check.verdict == NOT_KNOWN and check.blocks]
    noted = [check.text for check in checks if check.verdict == NOT_KNOWN and not check.blocks]
    if bad:
        return _failed(store, rollout, now, "; ".join(bad), verdict)
    if blocking:
        text = "too little is known: " + "; ".join(blocking)
        return _failed(store, rollout, now, text, verdict, known=False)
    good = [check.text for check in checks if check.verdict == OK]
    return _passed(store, rollout, now, "; ".join([why, *good, *noted]), verdict)


def _passed(store: Store, rollout: Rollout, now: float, why: str, verdict: dict[str, Any]) -> bool:
    """On to the next wave."""
    name = wave_name(rollout.wave)
    with store.write() as connection:
        if not locked(connection, rollout):
            return True
        kept = _kept(verdict, ok=True, why=why, now=now)
        set_wave(connection, rollout, rollout.wave, state=PASSED, verdict=kept, judged=now)
        text = f"{name} passed its gate: {why}"
        if rollout.state == "waiting":  # an empty wave
            stored.change(connection, rollout, now, wave=rollout.wave + 1)
            stored.note(connection, rollout, now, "passed", text)
        else:
            detail = _short(verdict)
            move(connection, rollout, "passed", now, text, detail=detail, wave=rollout.wave + 1)
    return True


def _failed(
    store: Store, rollout: Rollout, now: float, why: str, verdict: dict[str, Any], *, known: bool = True
) -> bool:
    """Stop, or go back. What is not known is no reason to go back: it stops."""
    back = known and rollout.plan.gate_of(rollout.wave).on_failure == ROLL_BACK
    with store.write() as connection:
        if not locked(connection, rollout):
            return True
        kept = _kept(verdict, ok=False, why=why, now=now)
        set_wave(connection, rollout, rollout.wave, state=stored.FAILED, verdict=kept, judged=now)
        what = "every board that was asked goes back" if back else "the rollout is paused; nobody goes back"
        text = f"{wave_name(rollout.wave)} failed its gate: {why}. So {what}"
        move(
            connection,
            rollout,
            "back" if back else "stop",
            now,
            text,
            action="gate-failed",
            detail=_short(verdict),
        )
    return True


def _kept(verdict: Mapping[str, Any], *, ok: bool, why: str, now: float) -> str:
    return json.dumps({"ok": ok, "why": why, "at": now, "results": None, "checks": [], **verdict})


def _short(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """For the audit log, whose lines are bounded: the checks that did not pass come first."""
    found = dict(verdict)
    order = {FAILED: 0, NOT_KNOWN: 1, OK: 2}
    checks = sorted(found.pop("checks", []), key=lambda check: order[check["verdict"]])
    keys = ("scope", "figure", "verdict", "before", "after", "limit")
    return {**found, "checks": [{key: check[key] for key in keys} for check in checks[:20]]}
