"""Forget what is old, in slices so short that ingest does not wait for them. Nothing that is not rolled up is deleted.

Deleting a raw record must not make it new when its board sends it again: a boot remembers up to which number its
records were forgotten, and ingest drops what comes at or below it. So a record goes only when all before it have come
(`upto`); one behind a gap that nobody filled for STALE_S gives the gap up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from edgekit.core import jobs as job_states
from edgekit.fleet import schema as db
from edgekit.fleet.ages import DAY_S, Ages, at_most, budget_bytes, is_exhausted, next_ages, shortened
from edgekit.fleet.config import Retention
from edgekit.fleet.reading import ROLLED
from edgekit.fleet.store import Store, count, get_fact, put_fact

DISK = "disk"  # fact: {"bytes", "budget", "reached", "why", "ages"}
STALE_S = 7 * DAY_S
MOST_EVENTS, MOST_BOOTS = 10_000, 2_000  # of one board
FORGOTTEN_BOOTS = "boots that were forgotten"
_RECORDS_AT_ONCE, _BOARDS_AT_ONCE, _JOBS_AT_ONCE = 1000, 100, 20
_VACUUM_PAGES = 500
_LOOK_EVERY_S = 60.0  # how often the size is looked at, and so how fast ages may shrink


def ages_of(config: Retention) -> Ages:
    """The ages that are configured."""
    return Ages(
        config.raw_hours * 3600,
        config.minute_days * DAY_S,
        config.hour_days * DAY_S,
        config.event_days * DAY_S,
        config.job_days * DAY_S,
    )


@dataclass
class Forgetting:
    """One pass after another over the store; each `step` is a slice. Where a pass stands is lost with the process."""

    store: Store
    config: Retention
    clock: Callable[[], float]
    record: int = 0  # records up to this number were looked at in this pass
    board: int = 0  # boards up to this one
    looked: float = 0.0
    pass_begun: float = 0.0

    def step(self) -> bool:
        """Forget a slice; False where this pass is at its end, and there is nothing to do for a while."""
        now = self.clock()
        ages = self._ages(now)
        more = [self._records(ages, now), self._boards(ages, now), forget_jobs(self.store, now - ages.jobs_s)]
        if any(more):
            return True
        if now - self.pass_begun >= self.config.pass_every_s:
            self.pass_begun, self.board = now, 0
            forget_fleet(self.store, ages, now)
            forget_small(self.store, ages, now)
            give_back(self.store)
        return False

    def _ages(self, now: float) -> Ages:
        wanted = ages_of(self.config)
        if 0 <= now - self.looked < _LOOK_EVERY_S:
            with self.store.read() as connection:
                kept = get_fact(connection, DISK)
            return wanted if kept is None else at_most(Ages(**kept["ages"]), wanted)
        self.looked = now
        return look_at_disk(self.store, self.config)

    def _records(self, ages: Ages, now: float) -> bool:
        self.record, more = forget_records(
            self.store, self.record, now - ages.raw_s, now - ages.raw_s - STALE_S
        )
        return more

    def _boards(self, ages: Ages, now: float) -> bool:
        last = forget_of_boards(self.store, self.board, ages, now)
        if last is None:
            return False
        self.board = last
        return True


def look_at_disk(store: Store, config: Retention) -> Ages:
    """Compare the store's size with its budget; the ages to keep to, which are kept as a fact."""
    wanted = ages_of(config)
    with store.write() as connection:
        before = get_fact(connection, DISK)
        ages = wanted if before is None else at_most(Ages(**before["ages"]), wanted)
        size = size_of(connection)
        enrolled = sa.select(sa.func.count()).select_from(db.devices).where(db.devices.c.revoked_at.is_(None))
        budget = budget_bytes(config.gb_per_1000_boards, connection.scalar(enrolled) or 0)
        # Files of PostgreSQL do not shrink when rows go, they are filled again: only growth calls for more.
        grows = before is None or size > before["bytes"] or connection.dialect.name == "sqlite"
        if size <= budget or grows:
            ages = next_ages(ages, wanted, size, budget)
        fact = {
            "bytes": size,
            "budget": budget,
            "reached": size > budget and is_exhausted(ages),
            "why": _why(ages, wanted, size, budget),
            "ages": asdict(ages),
        }
        put_fact(connection, DISK, fact)
    return ages


def _why(ages: Ages, wanted: Ages, size: float, budget: float) -> str | None:
    said = shortened(ages, wanted)
    if said is None:
        return None
    more = "; nothing more gives way" if size > budget and is_exhausted(ages) else ""
    return (
        f"the store takes {size / 1e9:.2f} GB of {budget / 1e9:.2f} GB ([retention] gb_per_1000_boards): "
        f"it keeps {said}{more}"
    )


def disk_problems(connection: sa.Connection) -> list[str]:
    """What the disk budget made shorter than configured, as a line."""
    kept = get_fact(connection, DISK)
    return [kept["why"]] if kept and kept["why"] else []


def size_of(connection: sa.Connection) -> int:
    """What the store's contents take on the disk, in bytes."""
    if connection.dialect.name == "postgresql":
        return int(connection.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0)
    pages, free, size = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def forget_records(store: Store, start: int, before: float, stale: float) -> tuple[int, bool]:
    """Delete a slice of the records that came before `before`, from number `start` on.

    Those behind a gap stay, unless they came before `stale`. Returns where the next slice starts, and whether there is
    one; at the end of a pass it starts anew.
    """
    table, boots = db.records, db.boots
    with store.write() as connection:
        mark = get_fact(connection, ROLLED) or 0
        query = (
            sa.select(table.c.id, table.c.boot, table.c.seq, table.c.received, boots.c.upto)
            .join(boots, boots.c.id == table.c.boot)
            .where(table.c.id > start, table.c.id <= mark)
            .order_by(table.c.id)
            .limit(_RECORDS_AT_ONCE)
        )
        rows = connection.execute(query).all()
        old = [row for row in rows if row.received < before]
        gone = [row for row in old if row.seq <= row.upto or row.received < stale]
        _remember(connection, gone)
        if gone:
            connection.execute(
                sa.delete(table).where(table.c.id == sa.bindparam("key")), [{"key": r.id} for r in gone]
            )
    if not rows or rows[-1].received >= before:
        return 0, False
    return rows[-1].id, True


def _remember(connection: sa.Connection, gone: Sequence[Any]) -> None:
    """Let no number that is deleted count as new again; behind a gap, give the gap up."""
    highest: dict[int, int] = {}
    for row in gone:
        highest[row.boot] = max(highest.get(row.boot, 0), row.seq)
    if not highest:
        return
    table = db.boots
    seq: sa.BindParameter[int] = sa.bindparam("seq")
    values = {
        "forgotten": sa.case((table.c.forgotten < seq, seq), else_=table.c.forgotten),
        "upto": sa.case((table.c.upto < seq, seq), else_=table.c.upto),
        "floor": sa.case((table.c.upto < seq, seq + 1), else_=table.c.floor),
    }
    change = sa.update(table).where(table.c.id == sa.bindparam("key")).values(values)
    connection.execute(change, [{"key": boot, "seq": highest[boot]} for boot in sorted(highest)])


def forget_of_boards(store: Store, start: int, ages: Ages, now: float) -> int | None:
    """Forget what is old of the next boards after number `start`; the last one's number, None after the last board."""
    with store.write() as connection:
        query = sa.select(db.devices.c.id).where(db.devices.c.id > start).order_by(db.devices.c.id)
        devices = connection.execute(query.limit(_BOARDS_AT_ONCE)).scalars().all()
        for table, age in ((db.minutes, ages.minutes_s), (db.hours, ages.hours_s)):
            old = (table.c.device == sa.bindparam("key")) & (table.c.at < int(now - age))
            if devices:
                connection.execute(sa.delete(table).where(old), [{"key": device} for device in devices])
        for device in devices:
            for table in (db.events, db.job_events):
                _forget_events(connection, table, device, now - ages.events_s)
            _forget_boots(connection, device)
    return devices[-1] if devices else None


def _forget_events(connection: sa.Connection, table: sa.Table, device: int, before: float) -> None:
    """Those that are old, and all but a board's newest ones; their numbers do not count as new again."""
    cap = sa.select(table.c.at).where(table.c.device == device).order_by(table.c.at.desc())
    oldest_kept = connection.scalar(cap.offset(MOST_EVENTS).limit(1))
    limit = before if oldest_kept is None else max(before, oldest_kept)
    old = (table.c.device == device) & (table.c.at <= limit)
    query = sa.select(table.c.boot, table.c.seq, db.boots.c.upto).join(
        db.boots, db.boots.c.id == table.c.boot
    )
    rows = [
        row for row in connection.execute(query.where(old).limit(_RECORDS_AT_ONCE)) if row.seq <= row.upto
    ]
    _remember(connection, rows)
    if rows:
        own = (table.c.boot == sa.bindparam("b")) & (table.c.seq == sa.bindparam("s"))
        connection.execute(sa.delete(table).where(own), [{"b": row.boot, "s": row.seq} for row in rows])


def _forget_boots(connection: sa.Connection, device: int) -> None:
    """A board's oldest boots beyond a number, with what is left of them: should it send them again, they are new."""
    table = db.boots
    newest = sa.select(table.c.id).where(table.c.device == device).order_by(table.c.id.desc())
    last = connection.scalar(newest.offset(MOST_BOOTS).limit(1))
    if last is None:
        return
    query = sa.select(table.c.id).where(table.c.device == device, table.c.id <= last).order_by(table.c.id)
    boots = list(connection.execute(query.limit(_BOARDS_AT_ONCE)).scalars())
    for part in (db.records, db.events, db.job_events):
        if part is db.records:  # those that are not rolled up wait for their turn
            mark = get_fact(connection, ROLLED) or 0
            waiting = sa.select(part.c.boot).where(part.c.boot.in_(boots), part.c.id > mark)
            boots = sorted(set(boots) - set(connection.execute(waiting).scalars()))
        connection.execute(sa.delete(part).where(part.c.boot.in_(boots)))
    connection.execute(sa.delete(table).where(table.c.id.in_(boots)))
    count(connection, FORGOTTEN_BOOTS, len(boots))


def forget_jobs(store: Store, before: float) -> bool:
    """A few of the jobs that ended before then and that nothing refers to; whether there may be more."""
    jobs, parts = db.jobs, (db.job_devices, db.commands, db.job_reports)
    in_force = sa.select(db.desired.c.job_id)
    of_waves = sa.select(db.rollout_waves.c.job_id).where(db.rollout_waves.c.job_id.is_not(None))
    going_on = sa.select(db.job_devices.c.job).where(db.job_devices.c.state.not_in(job_states.FINAL))
    with store.write() as connection:
        query = (
            sa.select(jobs.c.id)
            .where(jobs.c.expires < before, jobs.c.job_id.not_in(in_force), jobs.c.job_id.not_in(of_waves))
            .where(jobs.c.id.not_in(going_on))
            .order_by(jobs.c.id)
            .limit(_JOBS_AT_ONCE)
        )
        old = list(connection.execute(query).scalars())
        for table in parts:
            connection.execute(sa.delete(table).where(table.c.job.in_(old)))
        connection.execute(sa.delete(jobs).where(jobs.c.id.in_(old)))
    return len(old) == _JOBS_AT_ONCE


def forget_fleet(store: Store, ages: Ages, now: float) -> None:
    """The whole fleet's roll-ups: few rows, which keep the ages of boards'."""
    with store.write() as connection:
        for table, age in ((db.fleet_minutes, ages.minutes_s), (db.fleet_hours, ages.hours_s)):
            connection.execute(sa.delete(table).where(table.c.at < int(now - age)))


def forget_small(store: Store, ages: Ages, now: float) -> None:
    """Sessions that have ended, alerts that are over, silences that have run out."""
    with store.write() as connection:
        connection.execute(sa.delete(db.sessions).where(db.sessions.c.expires < now))
        over = db.alerts.c.resolved.is_not(None) & (db.alerts.c.resolved < now - ages.events_s)
        connection.execute(sa.delete(db.alerts).where(over))
        connection.execute(sa.delete(db.silences).where(db.silences.c.until < now - ages.events_s))


def give_back(store: Store) -> None:
    """Give pages of SQLite's that are free back to the disk, some at a time."""
    if store.engine.dialect.name == "sqlite":
        with store.write() as connection:
            for _ in range(
                _VACUUM_PAGES
            ):  # Python's driver steps such a statement once, which frees one page
                connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")
