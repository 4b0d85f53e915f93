"""What people ask of rollouts: make one, pause, resume, abort, roll back. What follows, conduct.py does.

Each works in the caller's write transaction and leaves its line in the audit log there.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgekit.core.target import Target
from edgekit.fleet import jobs
from edgekit.fleet import schema as db
from edgekit.fleet.asking import parts
from edgekit.fleet.rollouts import stored
from edgekit.fleet.rollouts.cohorts import split
from edgekit.fleet.rollouts.plan import Plan
from edgekit.fleet.rollouts.states import OVER, knows
from edgekit.fleet.rollouts.stored import ACCEPTED, BEGUN, LEFT_OUT, Rollout, move, rollout_of, set_wave
from edgekit.fleet.views import Unknown
from edgekit.repo.add import Conflict
from edgekit.repo.metadata import entries, read_current

ALREADY = "it runs it already"
_ONE_AT_A_TIME = 7_041_776  # PostgreSQL's advisory lock: rollouts are made one after the other


def published(repository: Path) -> dict[str, Target]:
    """Every bundle that is published for running, by its label. Raises BadInput, WorldFailed."""
    targets = (entry.target for entry in entries(read_current(repository).targets.signed).values())
    return {target.label: target for target in targets if target.use == "run"}


def sorted_out(
    plan: Plan, target: Target, devices: Sequence[jobs.Device]
) -> tuple[list[jobs.Device], dict[int, str]]:
    """The boards that take part, and why the others do not."""
    left: dict[int, str] = {}
    for device in devices:
        refusal = jobs.preview(target, device)
        if refusal is not None:
            left[device.id] = f"it would refuse it: {refusal['reason']}"
        elif device.bundle == target.label and plan.policy is None and plan.interval_s is None:
            left[device.id] = ALREADY
    return [device for device in devices if device.id not in left], left


def overlapping(connection: sa.Connection, devices: Sequence[int]) -> dict[str, int]:
    """Rollouts that are not over and have boards among these -> how many."""
    boards, rollouts = db.rollout_boards, db.rollouts
    found: dict[str, int] = {}
    for part in parts(devices):
        query = (
            sa.select(rollouts.c.rollout_id, sa.func.count())
            .join(boards, boards.c.rollout == rollouts.c.id)
            .where(rollouts.c.state.not_in(OVER), boards.c.wave != LEFT_OUT, boards.c.device.in_(part))
            .group_by(rollouts.c.rollout_id)
        )
        for rollout_id, number in connection.execute(query):
            found[rollout_id] = found.get(rollout_id, 0) + number
    return found


def create(connection: sa.Connection, plan: Plan, targets: Mapping[str, Target], who: str, now: float) -> str:
    """Store a rollout, its waves and which board is in which; its id. The first wave begins with the next step.

    Raises BadInput (no such target, no such board), Conflict (another rollout has some of its boards).
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ONE_AT_A_TIME)))
    target = jobs.find_target(targets.values(), plan.target)
    devices = jobs.selected(jobs.known_devices(connection), plan.to)
    taking, left = sorted_out(plan, target, devices)
    if not taking:
        raise Conflict(f"none of {len(devices)} boards can be asked: {_reasons(left)}")
    others = overlapping(connection, [device.id for device in taking])
    if others and not plan.overlap:
        shown = ", ".join(f"{rollout_id} ({number})" for rollout_id, number in sorted(others.items())[:5])
        raise Conflict(
            f"boards are in another rollout: {shown}; wait, abort it, or ask for overlap (--overlap)"
        )
    rollout_id = secrets.token_hex(6)
    row = {
        "rollout_id": rollout_id,
        "created": now,
        "created_by": who[:128],
        "target": plan.target,
        "selector": plan.to,
        "plan": json.dumps(plan.to_json()),
        "state": "waiting",
        "why": None,
        "wave": 0,
        "turn": 0,
        "since": now,
        "updated": now,
    }
    number = connection.execute(sa.insert(db.rollouts).values(**row).returning(db.rollouts.c.id)).scalar_one()
    waves = split(plan, {device.name: device.profile for device in taking})
    _insert(connection, number, waves, taking, left, devices)
    rollout = rollout_of(connection.execute(sa.select(db.rollouts).where(db.rollouts.c.id == number)).one())
    text = f"{plan.target} to {plan.to}: {len(taking)} boards in {len(waves)} waves ({_sizes(waves)})"
    text += f"; {len(left)} left out: {_reasons(left)}" if left else ""
    stored.note(connection, rollout, now, "create", text, who=who, plan=plan.to_json())
    return rollout_id


def _insert(
    connection: sa.Connection,
    rollout: int,
    waves: Sequence[Sequence[str]],
    taking: Sequence[jobs.Device],
    left: Mapping[int, str],
    devices: Sequence[jobs.Device],
) -> None:
    rows = [
        {"rollout": rollout, "wave": wave, "state": stored.WAITING, "boards": len(names)}
        for wave, names in enumerate(waves)
    ]
    connection.execute(sa.insert(db.rollout_waves), rows)
    wave_of = {name: wave for wave, names in enumerate(waves) for name in names}
    boards: list[dict[str, Any]] = [
        {
            "rollout": rollout,
            "device": device.id,
            "wave": wave_of.get(device.name, LEFT_OUT),
            "profile": device.profile,
            "why": left.get(device.id),
            "asked": False,
        }
        for device in devices
    ]
    for part in parts(boards, 2000):
        connection.execute(sa.insert(db.rollout_boards), list(part))


def pause(connection: sa.Connection, rollout_id: str, who: str, now: float) -> None:
    """Begin no new wave and judge nothing; boards that were asked go on. Raises Unknown, Conflict."""
    rollout = _held(connection, rollout_id, "pause", "paused")
    move(connection, rollout, "pause", now, f"paused by {who}", who=who)


def resume(connection: sa.Connection, rollout_id: str, who: str, now: float, accept: bool = False) -> None:
    """Go on. accept: take the current wave for good whatever its gate says; else it is judged once more.

    Raises Unknown, Conflict.
    """
    rollout = _held(connection, rollout_id, "resume", "resumed")
    if accept and rollout.has_wave:
        set_wave(connection, rollout, rollout.wave, state=ACCEPTED)
        text = f"{stored.wave_name(rollout.wave)} accepted by {who}, whatever its gate said"
        move(connection, rollout, "resume", now, text, who=who, action="accept", wave=rollout.wave + 1)
        return
    if rollout.has_wave:
        waves = db.rollout_waves
        own = (
            (waves.c.rollout == rollout.id)
            & (waves.c.wave == rollout.wave)
            & (waves.c.state == stored.FAILED)
        )
        again = {"state": BEGUN, "judged": None}
        connection.execute(sa.update(waves).where(own).values(**again))
    move(connection, rollout, "resume", now, f"resumed by {who}", who=who)


def abort(connection: sa.Connection, rollout_id: str, who: str, now: float) -> None:
    """Begin no new wave, ever. Boards that were asked go on and keep what they took. Raises Unknown, Conflict."""
    rollout = _held(connection, rollout_id, "abort", "aborted")
    move(
        connection,
        rollout,
        "abort",
        now,
        f"aborted by {who}; boards that were asked keep the bundle",
        who=who,
    )


def roll_back(connection: sa.Connection, rollout_id: str, who: str, now: float) -> None:
    """Take every board that was asked back to what it ran before; also after the end. Raises Unknown, Conflict."""
    rollout = _held(connection, rollout_id, "back", "rolled back")
    move(connection, rollout, "back", now, f"rolled back by {who}", who=who, action="roll-back")


def _held(connection: sa.Connection, rollout_id: str, event: str, done: str) -> Rollout:
    table = db.rollouts
    query = sa.select(table).where(table.c.rollout_id == rollout_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise Unknown(f"there is no rollout {rollout_id!r}")
    if not knows(row.state, event):
        raise Conflict(f"rollout {rollout_id} is {row.state.replace('_', ' ')}: it cannot be {done}")
    return rollout_of(row)


def _reasons(left: Mapping[int, str]) -> str:
    counts: dict[str, int] = {}
    for why in left.values():
        counts[why] = counts.get(why, 0) + 1
    return ", ".join(f"{number} ({why})" for why, number in sorted(counts.items()))


def _sizes(waves: Sequence[Sequence[str]]) -> str:
    return ", ".join(f"{stored.wave_name(wave)} {len(names)}" for wave, names in enumerate(waves))
