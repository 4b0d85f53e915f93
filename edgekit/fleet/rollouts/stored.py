"""A rollout as the store holds it: rows, counts, and the one way in which its state changes. Decides nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from edgekit.core import jobs as job_states
from edgekit.fleet import audit
from edgekit.fleet import schema as db
from edgekit.fleet.rollouts.gate import Counts
from edgekit.fleet.rollouts.plan import Plan
from edgekit.fleet.rollouts.states import advance

LEFT_OUT = -1  # the wave of boards that are asked nothing
WAITING, BEGUN, PASSED, ACCEPTED, FAILED = "waiting", "begun", "passed", "accepted", "failed"  # of waves


@dataclass(frozen=True)
class Rollout:
    """A row of the table, its plan parsed."""

    id: int
    rollout_id: str
    plan: Plan
    state: str
    why: str | None
    wave: int
    turn: int
    since: float

    @property
    def subject(self) -> str:
        """As the audit log calls it."""
        return f"rollout:{self.rollout_id}"

    @property
    def has_wave(self) -> bool:
        """Whether the current wave is one: behind the last there is none."""
        return self.wave < len(self.plan.sizes)


def rollout_of(row: Any) -> Rollout:
    """A row as a Rollout."""
    plan = Plan.parse(json.loads(row.plan))
    return Rollout(row.id, row.rollout_id, plan, row.state, row.why, row.wave, row.turn, row.since)


def wave_name(wave: int) -> str:
    """As people call it."""
    return "canary" if wave == 0 else f"wave {wave}"


def locked(connection: sa.Connection, rollout: Rollout) -> bool:
    """Hold the rollout's row; False where somebody changed it since it was read."""
    query = sa.select(db.rollouts.c.turn).where(db.rollouts.c.id == rollout.id).with_for_update()
    return connection.scalar(query) == rollout.turn


def change(connection: sa.Connection, rollout: Rollout, now: float, **values: Any) -> None:
    """Change the row. Every change counts as one turn."""
    table = db.rollouts
    if values.get("state", rollout.state) != rollout.state:
        values["since"] = now
    wanted = sa.update(table).where(table.c.id == rollout.id)
    connection.execute(wanted.values(turn=rollout.turn + 1, updated=now, **values))


def move(
    connection: sa.Connection,
    rollout: Rollout,
    event: str,
    now: float,
    why: str,
    *,
    who: str = audit.SERVER,
    action: str | None = None,
    detail: Mapping[str, Any] | None = None,
    **values: Any,
) -> None:
    """Go through the table of states, and say so in the audit log."""
    state = advance(rollout.state, event)
    change(connection, rollout, now, state=state, why=why, **values)
    note(connection, rollout, now, action or event, why, who=who, state=state, **(detail or {}))


def note(
    connection: sa.Connection,
    rollout: Rollout,
    now: float,
    action: str,
    text: str,
    *,
    who: str = audit.SERVER,
    **detail: Any,
) -> None:
    """A line in the audit log: what was decided, in words, and the figures it was decided on."""
    said = {"text": text[:2000], "wave": wave_name(rollout.wave), **detail}
    audit.note(connection, now, who, f"rollout.{action}", rollout.subject, said)


def set_wave(connection: sa.Connection, rollout: Rollout, wave: int, **values: Any) -> None:
    """Change a wave's row."""
    table = db.rollout_waves
    wanted = sa.update(table).where(table.c.rollout == rollout.id, table.c.wave == wave)
    connection.execute(wanted.values(**values))


def wave_of(connection: sa.Connection, rollout: Rollout) -> Any:
    """The current wave's row, with its job's number and end."""
    waves, jobs = db.rollout_waves, db.jobs
    query = (
        sa.select(waves, jobs.c.id.label("job"), jobs.c.expires)
        .outerjoin(jobs, jobs.c.job_id == waves.c.job_id)
        .where(waves.c.rollout == rollout.id, waves.c.wave == rollout.wave)
    )
    return connection.execute(query).one()


def kind_of(state: str | None, reason: str | None) -> str:
    """What a job's state on a board means to a rollout: a field of Counts."""
    if state == job_states.DONE:
        return "took"
    if state == "refused":
        return "refused"
    if state == "expired":
        return "silent"
    if state == "failed":
        return "superseded" if reason == "superseded" else "failed"
    return "open"


def asked_boards(rollout: int) -> sa.Select[Any]:
    """Every board that was asked, with its state in its wave's job."""
    boards, waves, jobs, states = db.rollout_boards, db.rollout_waves, db.jobs, db.job_devices
    return (
        sa.select(boards, states.c.state, states.c.reason)
        .join(waves, (waves.c.rollout == boards.c.rollout) & (waves.c.wave == boards.c.wave))
        .join(jobs, jobs.c.job_id == waves.c.job_id)
        .join(states, (states.c.job == jobs.c.id) & (states.c.device == boards.c.device))
        .where(boards.c.rollout == rollout, boards.c.asked)
    )


def counts_by_wave(connection: sa.Connection, rollout: int) -> dict[int, Counts]:
    """Wave -> what became of its boards, of waves that have begun."""
    rows = asked_boards(rollout).subquery()
    query = sa.select(rows.c.wave, rows.c.state, rows.c.reason, sa.func.count())
    found: dict[int, dict[str, int]] = {}
    for wave, state, reason, number in connection.execute(
        query.group_by(rows.c.wave, rows.c.state, rows.c.reason)
    ):
        kinds = found.setdefault(wave, {})
        kind = kind_of(state, reason)
        kinds[kind] = kinds.get(kind, 0) + number
    return {wave: Counts(**kinds) for wave, kinds in found.items()}


def counts_json(counts: Counts) -> dict[str, int]:
    """By name."""
    return asdict(counts)
