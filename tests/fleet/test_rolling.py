"""Roll-ups: every record in its minute, its hour and the fleet's, once, however it came."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from agents import until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres import shared_postgres
from servers import NOW

from edgekit.core.histogram import histogram
from edgekit.core.record import Record
from edgekit.fleet import rolling, views
from edgekit.fleet import schema as db
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.enroll import enroll
from edgekit.fleet.intake import Received
from edgekit.fleet.rolling import roll_up
from edgekit.fleet.store import Store, open_store, share_records

pytestmark = pytest.mark.both_databases


def made(seq: int, at: float, **values: Any) -> Record:
    return Record(
        seq,
        60.0 * seq,
        at,
        True,
        60.0,
        "m/1",
        "full",
        2,
        exit_counts={"exit1": 2},
        latency=histogram([1.0, 3.0]),
        **values,
    )


def put(store: Store, *records: Record, device: str = "pi5-a") -> None:
    with store.write() as connection:
        commit_batch(connection, [Received(device, "telemetry", "b1", 1, records=records)], [], NOW)


def shown(store: Store) -> tuple[Any, ...]:
    with store.read() as connection:
        board = views.device_detail(connection, "pi5-a", NOW)
        fleet = views.fleet_status(connection, NOW)
    del fleet["by_profile"]  # a profile gets its number with its first roll-up
    return (
        board["requests"],
        board["latency_ms"],
        board["exit_counts"],
        board["series"],
        board["records"],
        fleet,
    )


@pytest.mark.usefixtures("boards")
def test_what_is_shown_is_the_same_before_and_after_and_in_the_middle_of_rolling_up(store: Store) -> None:
    put(store, *(made(seq, NOW - 60 * seq) for seq in range(1, 31)))
    put(store, *(made(seq, NOW - 600 * seq) for seq in range(1, 11)), device="orin")
    before = shown(store)
    assert before[0] == 60
    assert before[-1]["requests"] == 80
    while roll_up(store, 7):
        assert shown(store) == before
    assert shown(store) == before


@pytest.mark.usefixtures("boards")
def test_late_history_is_added_where_it_belongs(store: Store) -> None:
    put(store, made(2, NOW - 60))
    roll_up(store)
    put(store, made(1, NOW - 7200))
    roll_up(store)
    with store.read() as connection:
        hours = connection.execute(sa.select(db.hours).order_by(db.hours.c.at)).all()
        totals = connection.execute(sa.select(db.fleet_totals)).one()
    assert [row.at for row in hours] == [(NOW - 7200) // 3600 * 3600, (NOW - 60) // 3600 * 3600]
    assert [row.requests for row in hours] == [2, 2]
    assert totals.requests == 4


@pytest.mark.usefixtures("boards")
def test_a_record_that_comes_again_is_not_added_again(store: Store) -> None:
    put(store, made(1, NOW - 60))
    roll_up(store)
    put(store, made(1, NOW - 60), made(2, NOW))
    roll_up(store)
    with store.read() as connection:
        assert connection.scalar(sa.select(sa.func.sum(db.minutes.c.records))) == 2
        assert connection.scalar(sa.select(db.fleet_totals.c.records)) == 2


def sums(store: Store) -> list[tuple[int, int]]:
    """Records and requests of every roll-up."""
    tables = (db.minutes, db.hours, db.fleet_minutes, db.fleet_hours, db.fleet_totals)
    with store.read() as connection:
        return [
            tuple(
                connection.execute(sa.select(*(sa.func.sum(t.c[n]) for n in ("records", "requests")))).one()
            )
            for t in tables
        ]


@pytest.mark.usefixtures("boards")
def test_two_processes_at_once_count_no_record_twice(store: Store) -> None:
    put(store, *(made(seq, NOW - 60 * seq) for seq in range(1, 11)))
    first, second = (rolling._prepare(store, 10**9, 7) for _ in range(2))
    assert first is not None
    assert second is not None
    with store.write() as connection:
        assert rolling._take(connection, first)
    with store.write() as connection:
        assert not rolling._take(connection, second)
    while roll_up(store):
        pass
    assert sums(store) == [(10, 20)] * 5


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A database with one board and nothing else, to be copied."""
    path = tmp_path / "fresh.db"
    store = open_store(f"sqlite:///{path}")
    with store.write() as connection:
        enroll(connection, "pi5-a", "raspberrypi5", [], NOW)
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    return path


class Killed(Exception):
    """The process ends here, and with it its transaction."""


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_in_any_order_replayed_and_killed_anywhere_every_record_counts_once(
    data: st.DataObject, fresh: Path
) -> None:
    path = fresh.with_name("example.db")
    shutil.copy(fresh, path)
    store = open_store(f"sqlite:///{path}")
    seqs = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=10))  # with duplicates, in any order
    for seq in seqs:
        put(store, made(seq, NOW - 1800 * (seq % 3)))
        step = data.draw(st.sampled_from(["", "roll", "kill"]))
        if step == "roll":
            roll_up(store, data.draw(st.integers(1, 4)))
        elif step == "kill":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(rolling, "_count", _killed)
                with contextlib.suppress(Killed):
                    roll_up(store)
    while roll_up(store, 5):
        pass
    number = len(set(seqs))
    assert sums(store) == [(number, 2 * number)] * 5
    store.close()


def _killed(*_: object) -> None:
    raise Killed


def test_on_postgresql_the_mark_does_not_pass_a_number_that_is_not_committed_yet() -> None:
    """An ingester drew a lower number and commits later than another one."""
    server = shared_postgres()
    name = server.new_database()
    store = open_store(server.url(name))
    with store.write() as connection:
        enroll(connection, "pi5-a", "raspberrypi5", [], NOW)
    put(store, made(1, NOW))
    assert roll_up(store) == 1
    with store.read() as connection:
        row = dict(connection.execute(sa.select(db.records)).one()._mapping)
    del row["id"]
    rolled: list[int] = []
    roller = threading.Thread(target=lambda: rolled.append(roll_up(store)))
    with store.write() as slow:
        share_records(slow)
        slow.execute(sa.insert(db.records).values(row | {"seq": 2}))
        with store.write() as quick:
            share_records(quick)
            quick.execute(sa.insert(db.records).values(row | {"seq": 3}))
        roller.start()
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: server.sql(waits) == "1", "the roll-up's waiting for the slow ingester")
        assert rolled == []
    roller.join(20)
    assert rolled == [2]
    assert sums(store) == [(3, 6)] * 5
    store.close()
    server.drop_database(name)
