"""What is old is forgotten, and nothing that is forgotten comes back as new."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from servers import NOW

from edgekit.core.histogram import histogram
from edgekit.core.messages import Event
from edgekit.core.record import Record
from edgekit.fleet import retention
from edgekit.fleet import schema as db
from edgekit.fleet.ages import DAY_S
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.config import Retention
from edgekit.fleet.intake import Received
from edgekit.fleet.retention import FORGOTTEN_BOOTS, Forgetting, disk_problems, look_at_disk
from edgekit.fleet.rolling import roll_up
from edgekit.fleet.store import Store


@pytest.fixture(autouse=True)
def _enrolled(boards: tuple[str, ...]) -> None:
    del boards


def made(seq: int, at: float) -> Record:
    return Record(seq, 60.0 * seq, at, True, 60.0, "m/1", "full", 1, latency=histogram([1.0]))


def put(store: Store, now: float, *seqs: int, boot: str = "b1") -> int:
    """Records as they come; how far the ack goes."""
    records = tuple(made(seq, now) for seq in seqs)
    with store.write() as connection:
        found = commit_batch(connection, [Received("pi5-a", "telemetry", boot, 1, records=records)], [], now)
    return found.acks[0][1].upto


def happened(store: Store, now: float, *seqs: int, boot: str = "b1") -> None:
    events = tuple(Event(boot, seq, "throttle", now, {}) for seq in seqs)
    with store.write() as connection:
        commit_batch(connection, [Received("pi5-a", "event", boot, events=(e,)) for e in events], [], now)


def forget(store: Store, now: float, config: Retention | None = None) -> None:
    """A whole pass."""
    work = Forgetting(store, config or Retention(), lambda: now)
    for _ in range(1000):
        if not work.step():
            return
    raise AssertionError("a pass has no end")


def number(store: Store, table: sa.Table) -> int:
    with store.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def rolled(store: Store) -> int:
    while roll_up(store):
        pass
    with store.read() as connection:
        return int(connection.scalar(sa.select(sa.func.sum(db.fleet_totals.c.records))) or 0)


def test_old_records_go_and_their_sums_stay(store: Store) -> None:
    put(store, NOW, 1, 2, 3)
    assert rolled(store) == 3
    forget(store, NOW + DAY_S + 60)
    assert (number(store, db.records), number(store, db.minutes), number(store, db.hours)) == (0, 1, 1)
    forget(store, NOW + 8 * DAY_S)
    assert (number(store, db.minutes), number(store, db.hours), number(store, db.fleet_minutes)) == (0, 1, 0)
    forget(store, NOW + 800 * DAY_S)
    assert (number(store, db.hours), number(store, db.fleet_hours)) == (0, 0)
    assert rolled(store) == 3


def test_what_is_young_or_not_rolled_up_stays_however_small_the_slices(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_RECORDS_AT_ONCE", 2)
    put(store, NOW, 1, 2, 3, 4, 5)
    forget(store, NOW + 10 * DAY_S)
    assert number(store, db.records) == 5
    rolled(store)
    put(store, NOW + 10 * DAY_S, 6)
    rolled(store)
    forget(store, NOW + 10 * DAY_S)
    assert number(store, db.records) == 1


def test_a_record_that_was_forgotten_and_comes_again_is_acknowledged_and_not_counted(store: Store) -> None:
    put(store, NOW, 1, 2, 3)
    rolled(store)
    forget(store, NOW + 2 * DAY_S)
    assert put(store, NOW + 2 * DAY_S, 1, 2, 3, 4) == 4
    assert rolled(store) == 4
    assert number(store, db.records) == 1


def test_records_behind_a_gap_wait_for_it_and_then_give_it_up(store: Store) -> None:
    assert put(store, NOW, 1, 2, 5, 6) == 2
    rolled(store)
    forget(store, NOW + 2 * DAY_S)
    assert number(store, db.records) == 2
    assert put(store, NOW + 2 * DAY_S, 3, 4) == 6  # the gap is filled: all is there once
    assert rolled(store) == 6
    put(store, NOW + 2 * DAY_S, 9)
    rolled(store)
    forget(store, NOW + 20 * DAY_S)
    assert number(store, db.records) == 0
    assert put(store, NOW + 20 * DAY_S, 10) == 10  # numbers 7 and 8 are not waited for any more


def test_a_board_keeps_its_newest_events_and_none_that_are_old(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_EVENTS", 10)
    happened(store, NOW, *range(1, 5))
    happened(store, NOW + 60 * DAY_S, *range(5, 9))
    forget(store, NOW + 91 * DAY_S)
    assert number(store, db.events) == 4
    for seq in range(9, 40):
        happened(store, NOW + 92 * DAY_S + seq, seq)
    forget(store, NOW + 92 * DAY_S)
    assert number(store, db.events) == 10
    happened(store, NOW + 93 * DAY_S, 1, 2, 3)
    assert number(store, db.events) == 10


def test_a_board_has_a_bounded_number_of_boots(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MOST_BOOTS", 5)
    for boot in range(12):
        put(store, NOW + boot, 1, boot=f"boot-{boot}")
    forget(store, NOW + 100)
    assert number(store, db.boots) == 12  # none is rolled up yet
    assert rolled(store) == 12
    forget(store, NOW + 100)
    assert (number(store, db.boots), number(store, db.records)) == (5, 5)
    with store.read() as connection:
        assert (
            connection.scalar(sa.select(db.counters.c.count).where(db.counters.c.key == FORGOTTEN_BOOTS)) == 7
        )


def test_a_store_above_its_budget_keeps_less_and_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(retention, "size_of", lambda _: sizes[-1])
    sizes.append(3 * 10**8)
    assert look_at_disk(store, Retention()).raw_s == DAY_S
    with store.read() as connection:
        assert disk_problems(connection) == []
    sizes.append(2 * 10**9)
    ages = look_at_disk(store, Retention())
    assert ages.raw_s < DAY_S
    with store.read() as connection:
        (line,) = disk_problems(connection)
    assert "2.00 GB of 1.00 GB" in line
    assert "records for 19.2 h instead of 24 h" in line
    put(store, NOW, 1)
    rolled(store)
    forget(store, NOW + 20 * 3600)  # older than 19.2 h
    assert number(store, db.records) == 0


def test_the_size_is_that_of_what_is_stored(store: Store) -> None:
    with store.read() as connection:
        before = retention.size_of(connection)
    with store.write() as connection:
        rows: list[dict[str, Any]] = [{"key": f"k{n}", "value": "x" * 10_000} for n in range(100)]
        connection.execute(sa.insert(db.facts), rows)
    with store.read() as connection:
        assert retention.size_of(connection) > before


def test_jobs_that_ended_long_ago_go_and_those_in_force_stay(store: Store) -> None:
    from edgekit.core.target import Target
    from edgekit.fleet.jobs import Order, create_job, known_devices

    target = Target("toy", 1, ("raspberrypi5",), "run", "current", "c" * 64)
    with store.write() as connection:
        chosen = [d for d in known_devices(connection) if d.name != "orin"]
        for _ in range(3):
            create_job(connection, Order(target, "all"), chosen, NOW)
    forget(store, NOW + 500 * DAY_S)
    assert number(store, db.jobs) == 1
    assert number(store, db.job_devices) == 2
    assert number(store, db.desired) == 2
