"""What a job changes for many boards at once, in a handful of statements. Decides nothing about who is asked what.

All of it is in the caller's one transaction. On PostgreSQL, where two may write at once, the boards' rows are locked in
the order of their numbers first, so that two jobs for the same boards follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from edgekit.core import jobs as job_states
from edgekit.fleet import schema as db

AT_ONCE = 500  # boards in one statement
T = TypeVar("T")


def parts(items: Sequence[T], size: int = AT_ONCE) -> Iterator[Sequence[T]]:
    """A list in pieces."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def new_job(connection: sa.Connection, row: Mapping[str, Any]) -> int:
    """Store a job that has no boards yet; its number."""
    made = connection.execute(sa.insert(db.jobs).values(**row).returning(db.jobs.c.id)).scalar_one()
    return int(made)


def add_boards(
    connection: sa.Connection, job: int, states: Mapping[int, Mapping[str, Any]], now: float
) -> None:
    """Put boards into a job. states: board -> `state`, and `reason` and `detail` where it has ended."""
    none = {"reason": None, "detail": None}
    rows = [
        {"job": job, "device": device, "updated": now} | none | dict(state)
        for device, state in states.items()
    ]
    if rows:
        connection.execute(sa.insert(db.job_devices), rows)


def lock_boards(connection: sa.Connection, devices: Sequence[int]) -> None:
    """Have nobody else change these boards before this transaction ends. SQLite has one writer anyway."""
    if connection.dialect.name == "sqlite":
        return
    table = db.devices
    for part in parts(sorted(devices)):
        query = sa.select(table.c.id).where(table.c.id.in_(part)).order_by(table.c.id).with_for_update()
        connection.execute(query).all()


def end_unfinished(
    connection: sa.Connection,
    devices: Sequence[int],
    job_id: str,
    now: float,
    jobs: sa.ColumnElement[bool] | None = None,
) -> None:
    """A newer job takes the place of what these boards have not ended. jobs: which ones; None: all desired states."""
    states = db.job_devices
    if jobs is None:  # one-shots are no desired states, and go on
        jobs = ~sa.exists().where(db.commands.c.job == states.c.job, db.commands.c.device == states.c.device)
    values = {
        "state": "failed",
        "reason": "superseded",
        "detail": f"job {job_id} took its place",
        "updated": now,
    }
    for part in parts(devices):
        change = sa.update(states).where(
            states.c.device.in_(part), states.c.state.not_in(job_states.FINAL), jobs
        )
        connection.execute(change.values(**values))


def next_numbers(
    connection: sa.Connection, devices: Sequence[int], now: float, revs: Mapping[int, int] | None = None
) -> dict[int, tuple[int, int]]:
    """Draw each board's next number of a command, and with `revs` its next revision: board -> (rev, n).

    Numbers follow the clock, so that they grow even where the database was restored; revisions go on above what a board
    reported, which is what `revs` holds.
    """
    table = db.devices
    lowest = int(now * 1000)
    values: dict[str, Any] = {"n": sa.case((table.c.n >= lowest, table.c.n + 1), else_=lowest)}
    if revs is not None:
        values["rev"] = table.c.rev + 1
        ahead = [{"key": device, "said": revs[device]} for device in devices if revs.get(device)]
        if ahead:
            said: sa.BindParameter[int] = sa.bindparam("said")
            lift = sa.update(table).where(table.c.id == sa.bindparam("key"), table.c.rev < said)
            connection.execute(lift.values(rev=said), ahead)
    found: dict[int, tuple[int, int]] = {}
    for part in parts(devices):
        connection.execute(sa.update(table).where(table.c.id.in_(part)).values(**values))
        rows = connection.execute(sa.select(table.c.id, table.c.rev, table.c.n).where(table.c.id.in_(part)))
        found |= {row.id: (row.rev, row.n) for row in rows}
    return found


def set_desired(
    connection: sa.Connection,
    wanted: Mapping[int, Mapping[str, Any]],
    reported: Mapping[int, int],
    now: float,
) -> None:
    """Each board's next desired state. wanted: board -> job_id, target, policy, interval_s, expires, maybe config.

    Settings that a board was told before stay where no `config` is given; all boards of a call give one, or none does.
    reported: board -> the revision it said last.
    """
    if not wanted:
        return
    numbers = next_numbers(connection, sorted(wanted), now, reported)
    rows = [
        {"device": device, "rev": numbers[device][0], "n": numbers[device][1], "pending": True} | dict(values)
        for device, values in sorted(wanted.items())
    ]
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(db.desired)
    changed = {key: insert.excluded[key] for key in rows[0] if key != "device"}
    connection.execute(insert.on_conflict_do_update(index_elements=["device"], set_=changed), rows)


def add_commands(
    connection: sa.Connection, job: int, action: str, pending: Mapping[int, bool], now: float
) -> None:
    """A one-shot for each board of a job. pending: board -> whether it is to be sent."""
    numbers = next_numbers(connection, sorted(pending), now)
    rows = [
        {"job": job, "device": device, "action": action, "n": numbers[device][1], "pending": pending[device]}
        for device in sorted(pending)
    ]
    if rows:
        connection.execute(sa.insert(db.commands), rows)
