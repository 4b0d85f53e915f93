"""Roll-ups: every record in its minute, its hour and the fleet's, once, however it came."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from servers import NOW

from edgekit.core.histogram import histogram
from edgekit.core.record import Record
from edgekit.fleet import schema as db
from edgekit.fleet import views
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.intake import Received
from edgekit.fleet.rolling import roll_up
from edgekit.fleet.store import Store

pytestmark = pytest.mark.both_databases


@pytest.fixture(autouse=True)
def _enrolled(boards: tuple[str, ...]) -> None:
    del boards


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
    return (
        board["requests"],
        board["latency_ms"],
        board["exit_counts"],
        board["series"],
        board["records"],
        fleet,
    )


def test_what_is_shown_is_the_same_before_and_after_and_in_the_middle_of_rolling_up(store: Store) -> None:
    put(store, *(made(seq, NOW - 60 * seq) for seq in range(1, 31)))
    put(store, *(made(seq, NOW - 600 * seq) for seq in range(1, 11)), device="orin")
    before = shown(store)
    assert before[0] == 60
    assert before[-1]["requests"] == 80
    while roll_up(store, 7):
        assert shown(store) == before
    assert shown(store) == before


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


def test_a_record_that_comes_again_is_not_added_again(store: Store) -> None:
    put(store, made(1, NOW - 60))
    roll_up(store)
    put(store, made(1, NOW - 60), made(2, NOW))
    roll_up(store)
    with store.read() as connection:
        assert connection.scalar(sa.select(sa.func.sum(db.minutes.c.records))) == 2
        assert connection.scalar(sa.select(db.fleet_totals.c.records)) == 2
