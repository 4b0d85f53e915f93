"""Batches into the store: exactly once, acks without gaps, states in the board's own order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from servers import NOW

from edgekit.core.histogram import histogram
from edgekit.core.messages import Ack, Event, JobEvent, Status, encode
from edgekit.core.record import Record
from edgekit.fleet import schema as db
from edgekit.fleet.commit import RECORD_COLUMNS, Outcome, commit_batch, expire_silent_jobs
from edgekit.fleet.config import Limits
from edgekit.fleet.intake import Malformed, Received, read_message
from edgekit.fleet.memory import Memory
from edgekit.fleet.packing import unpack_counts
from edgekit.fleet.store import Store

pytestmark = pytest.mark.both_databases


def record(seq: int, **fields: Any) -> Record:
    usual = {
        "uptime_s": 1.0,
        "time": NOW,
        "clock_synced": True,
        "interval_s": 1.0,
        "bundle": "toy/1",
        "policy": "full",
    }
    return Record(seq=seq, **(usual | {"requests": 1} | fields))


def telemetry(*seqs: int, device: str = "pi5-a", boot: str = "b1", floor: int = 1, **fields: Any) -> Received:
    records = tuple(record(seq, **fields) for seq in seqs)
    return Received(device, "telemetry", boot, floor, records=records)


def event(seq: int, kind: str = "throttle", boot: str = "b1") -> Received:
    return Received("pi5-a", "event", boot, events=(Event(boot, seq, kind, NOW),))


def job_event(
    seq: int, state: str, job: str = "job", boot: str = "b1", reason: str | None = None
) -> Received:
    events = (JobEvent(boot, seq, job, state, "toy/1", NOW, reason),)
    return Received("pi5-a", "job/event", boot, job_events=events)


def status(online: bool, boot: str = "b1") -> Received:
    return Received("pi5-a", "status", boot, status=Status(online, boot))


def commit(store: Store, *batch: Received, malformed: Sequence[Malformed] = (), now: float = NOW) -> Outcome:
    with store.write() as connection:
        return commit_batch(connection, batch, malformed, now)


def upto(outcome: Outcome, boot: str = "b1") -> int:
    return next(ack.upto for _, ack in outcome.acks if ack.boot_id == boot)


def stored(store: Store, table: sa.Table = db.records) -> list[int]:
    with store.read() as connection:
        return list(connection.execute(sa.select(table.c.seq).order_by(table.c.boot, table.c.seq)).scalars())


def device(store: Store, name: str = "pi5-a") -> Any:
    with store.read() as connection:
        return connection.execute(
            sa.select(db.devices, *(c for c in db.presence.c if c.name != "device"))
            .join(db.presence, db.presence.c.device == db.devices.c.id)
            .where(db.devices.c.name == name)
        ).one()


@pytest.fixture(autouse=True)
def _enrolled(boards: tuple[str, ...]) -> None:
    del boards


def test_a_batch_that_comes_again_changes_nothing_and_is_acknowledged_again(store: Store) -> None:
    batch = telemetry(1, 2, 3)
    assert upto(commit(store, batch)) == 3
    again = telemetry(1, 2, 3, requests=99)
    assert upto(commit(store, again, again)) == 3
    assert counters(store) == {"replays": 6}
    assert stored(store) == [1, 2, 3]
    with store.read() as connection:
        assert connection.scalar(sa.select(sa.func.sum(db.records.c.requests))) == 3


def test_only_what_is_there_without_a_gap_is_acknowledged(store: Store) -> None:
    assert upto(commit(store, telemetry(1, 2, 5))) == 2
    assert upto(commit(store, telemetry(4, 5))) == 2
    assert upto(commit(store, telemetry(3))) == 5
    assert counters(store) == {"replays": 1}


def test_records_and_events_count_in_one_sequence(store: Store) -> None:
    assert upto(commit(store, telemetry(1, 3))) == 1
    assert upto(commit(store, event(2))) == 3
    assert upto(commit(store, job_event(4, "received"), telemetry(5))) == 5


def test_numbers_below_the_boards_floor_are_not_waited_for(store: Store) -> None:
    assert upto(commit(store, telemetry(7, 8, floor=7))) == 8


def test_an_older_message_with_a_lower_floor_takes_no_ack_back(store: Store) -> None:
    commit(store, telemetry(7, 8, floor=7))
    assert upto(commit(store, telemetry(2, 3, floor=1))) == 8
    assert stored(store) == [2, 3, 7, 8]


def test_boots_are_counted_apart(store: Store) -> None:
    outcome = commit(store, telemetry(1, 2), telemetry(1, boot="b2"), telemetry(2, device="pi5-b"))
    assert outcome.acks == (("pi5-a", Ack("b1", 2)), ("pi5-a", Ack("b2", 1)), ("pi5-b", Ack("b1", 0)))


def test_a_record_that_could_not_be_read_does_not_hold_up_what_follows(store: Store) -> None:
    payload = {"boot_id": "b1", "floor": 1, "records": [record(1).to_json(), {"seq": 2}, record(3).to_json()]}
    message = read_message("demo", "edgekit/v1/demo/pi5-a/telemetry", encode(payload))
    assert upto(commit(store, message)) == 3
    assert stored(store) == [1, 3]
    with store.read() as connection:
        left = connection.execute(sa.select(db.events)).one()
    assert (left.seq, left.kind) == (2, "unreadable")
    assert "uptime" in json.loads(left.detail)["why"]
    assert device(store).malformed == 1


def test_malformed_messages_are_counted_by_board_with_the_reason(store: Store) -> None:
    commit(store, telemetry(1), malformed=[Malformed("pi5-a", "not JSON"), Malformed("pi5-a", "too large")])
    assert (device(store).malformed, device(store).malformed_why) == (2, "too large")
    assert device(store, "pi5-b").malformed == 0


def test_strangers_and_foreign_topics_are_counted_and_dropped(store: Store) -> None:
    outcome = commit(
        store, telemetry(1, device="stranger"), malformed=[Malformed(None, "topic"), Malformed("who", "x")]
    )
    assert outcome == Outcome((), frozenset())
    assert stored(store) == []
    with store.read() as connection:
        counted = {row.key: row.count for row in connection.execute(sa.select(db.counters))}
    assert counted == {"messages of boards that are not enrolled": 2, "messages on foreign topics": 1}


def test_a_birth_is_told_and_a_death_is_not(store: Store) -> None:
    assert commit(store, status(True)).births == {"pi5-a"}
    assert device(store).online
    assert commit(store, status(False)).births == frozenset()
    assert not device(store).online


def test_the_will_of_an_older_boot_does_not_show_a_live_board_as_dead(store: Store) -> None:
    commit(store, status(True, "b2"))
    commit(store, status(False, "b1"))
    assert device(store).online


def times(store: Store) -> list[float]:
    with store.read() as connection:
        return list(connection.execute(sa.select(db.records.c.at).order_by(db.records.c.seq)).scalars())


def test_a_record_is_placed_at_the_boards_time_only_where_its_clock_is_trusted(store: Store) -> None:
    said = [
        (1, 86_400.0, False),
        (2, None, False),
        (3, NOW + 9e8, True),
        (4, 86_400.0, True),
        (5, NOW - 50, True),
    ]
    for seq, time, synced in said:
        commit(store, telemetry(seq, time=time, clock_synced=synced))
    assert times(store) == [NOW, NOW, NOW, NOW, NOW - 50]


def test_what_came_before_the_clock_was_set_is_placed_by_uptime_once_the_boots_clock_is_known(
    store: Store,
) -> None:
    early = (
        record(1, time=None, clock_synced=False, uptime_s=60.0),
        record(2, time=7.0, clock_synced=False, uptime_s=120.0),
    )
    late = record(3, time=NOW - 1000, uptime_s=600.0)
    commit(
        store,
        Received("pi5-a", "telemetry", "b1", 1, records=early),
        Received("pi5-a", "telemetry", "b1", 1, records=(late,)),
    )
    commit(store, telemetry(4, time=None, clock_synced=False, uptime_s=660.0))
    assert times(store) == [NOW - 1540, NOW - 1480, NOW - 1000, NOW - 940]


def test_without_any_clock_the_newest_of_a_message_is_from_now_and_the_others_lie_before_it(
    store: Store,
) -> None:
    records = tuple(record(seq, time=None, clock_synced=False, uptime_s=60.0 * seq) for seq in (1, 2, 3))
    commit(store, Received("pi5-a", "telemetry", "b1", 1, records=records))
    assert times(store) == [NOW - 120, NOW - 60, NOW]


def test_what_was_deleted_after_its_time_does_not_come_back_when_it_is_sent_again(store: Store) -> None:
    commit(store, telemetry(1, 2, 3), event(4))
    with store.write() as connection:
        connection.execute(sa.delete(db.records))
        connection.execute(sa.update(db.boots).values(forgotten=3))
    assert upto(commit(store, telemetry(1, 2, 3))) == 4
    assert stored(store) == []
    assert upto(commit(store, telemetry(5))) == 5
    assert stored(store) == [5]


def test_what_was_forgotten_below_a_floor_does_not_come_back_either(store: Store) -> None:
    commit(store, telemetry(7, floor=7))
    with store.write() as connection:
        connection.execute(sa.update(db.boots).values(forgotten=7))
    commit(store, telemetry(2, 3, floor=1))
    assert stored(store) == [7]


# --- limits ---


def limited(store: Store, memory: Memory, *batch: Received, now: float = NOW) -> Outcome:
    draft = memory.draft()
    with store.write() as connection:
        outcome = commit_batch(connection, batch, [], now, draft)
    draft.keep()
    return outcome


def counters(store: Store) -> dict[str, int]:
    with store.read() as connection:
        return {row.key: row.count for row in connection.execute(sa.select(db.counters))}


def test_records_above_a_boards_rate_are_dropped_acknowledged_and_counted(store: Store) -> None:
    memory = Memory(Limits(records_per_hour=3600, records_burst=3))
    outcome = limited(store, memory, telemetry(1, 2, 3, 4, 5), telemetry(1, 2, device="pi5-b"))
    assert [ack.upto for _, ack in outcome.acks] == [5, 2]
    assert upto(limited(store, memory, telemetry(4, 5, 6), now=NOW + 1)) == 6
    assert stored(store) == [1, 2, 3, 6, 1, 2]
    assert counters(store) == {"records above the limit": 2, "replays": 2}
    assert (device(store).malformed, device(store).malformed_why) == (2, "2 records above the limit")


def test_what_is_sent_again_uses_up_nothing(store: Store) -> None:
    memory = Memory(Limits(records_burst=4))
    for _ in range(5):
        limited(store, memory, telemetry(1, 2, 3), telemetry(1, 2, 3))
    assert upto(limited(store, memory, telemetry(4))) == 4
    assert stored(store) == [1, 2, 3, 4]


def test_events_and_boots_have_limits_of_their_own(store: Store) -> None:
    memory = Memory(Limits(events_burst=1, boots_per_day=1))
    assert upto(limited(store, memory, event(1), event(2), telemetry(3))) == 3
    assert upto(limited(store, memory, telemetry(1, 2, boot="b2")), "b2") == 2
    assert (stored(store), stored(store, db.events)) == ([3], [1])
    assert counters(store) == {"boots above the limit": 1, "events above the limit": 1}


def test_names_beyond_a_boards_bound_stand_under_one(store: Store) -> None:
    memory = Memory(Limits(names_per_board=2))
    for seq in range(1, 6):
        limited(store, memory, telemetry(seq, bundle=f"toy/{seq}"))
    limited(store, memory, telemetry(6, bundle="x" * 4000))
    with store.read() as connection:
        texts = [
            row.text for row in connection.execute(sa.select(db.names).where(db.names.c.kind == "bundle"))
        ]
    assert sorted(texts) == ["(more)", "toy/1", "toy/2"]


def test_a_long_text_is_kept_shortened(store: Store) -> None:
    commit(store, telemetry(1, bundle="x" * 4000, energy_why="é" * 4000))
    with store.read() as connection:
        assert {len(row.text) for row in connection.execute(sa.select(db.names))} <= {4, 200}


def test_what_was_rolled_back_is_not_remembered(store: Store) -> None:
    memory = Memory()
    draft = memory.draft()
    with store.engine.connect() as connection, connection.begin() as transaction:
        commit_batch(connection, [telemetry(1, bundle="new/1")], [], NOW, draft)
        transaction.rollback()
    limited(store, memory, telemetry(1, bundle="newer/1"))
    limited(store, memory, telemetry(2, bundle="new/1"))
    with store.read() as connection:
        texts = {row.id: row.text for row in connection.execute(sa.select(db.names))}
        bundles = connection.execute(sa.select(db.records.c.bundle).order_by(db.records.c.seq)).scalars()
        assert [texts[number] for number in bundles] == ["newer/1", "new/1"]


def test_every_column_of_a_record_is_written(store: Store) -> None:
    assert set(RECORD_COLUMNS) == {column.name for column in db.records.c} - {"id"}
    commit(
        store,
        telemetry(1, exit_counts={"a": 2, "b": 0}, latency=histogram([2.0]), memory_mb=5.0, throttled=True),
    )
    with store.read() as connection:
        row = connection.execute(sa.select(db.records)).one()
    assert (row.seq, row.at, row.requests, row.memory_mb, row.throttled) == (1, NOW, 1, 5.0, True)
    assert list(unpack_counts(row.exits, 2**31).values()) == [2]
    assert list(unpack_counts(row.latency).values()) == [1]


# --- jobs ---


def make_job(store: Store, expires: float = NOW + 60) -> None:
    with store.write() as connection:
        row = {"job_id": "job", "created": NOW, "expires": expires, "target": "toy/1", "selector": "all"}
        connection.execute(sa.insert(db.jobs).values(row))
        connection.execute(sa.insert(db.job_devices).values(job=1, device=1, state="pending", updated=NOW))


def job_state(store: Store) -> tuple[str, str | None]:
    with store.read() as connection:
        row = connection.execute(sa.select(db.job_devices)).one()
    return row.state, row.reason


def test_a_job_is_in_the_state_of_the_boards_last_event_whatever_the_order(store: Store) -> None:
    make_job(store)
    commit(store, job_event(2, "refused", reason="wrong-profile"))
    assert job_state(store) == ("refused", "wrong-profile")
    commit(store, job_event(1, "received"))
    assert job_state(store) == ("refused", "wrong-profile")
    commit(store, job_event(2, "refused", reason="wrong-profile"))
    assert job_state(store) == ("refused", "wrong-profile")


def test_a_later_boot_outdoes_an_earlier_one_although_its_numbers_are_lower(store: Store) -> None:
    make_job(store)
    commit(store, job_event(9, "downloading", boot="b1"))
    commit(store, job_event(1, "received", boot="b2"))
    assert job_state(store)[0] == "received"


@pytest.mark.parametrize("reason", ["replayed", "bad-signature", "wrong-board"])
def test_the_refusal_of_a_replayed_command_does_not_undo_the_job_it_names(store: Store, reason: str) -> None:
    make_job(store)
    commit(store, job_event(1, "received"), job_event(2, "active"))
    commit(store, job_event(3, "refused", reason=reason))
    commit(store, job_event(1, "refused", boot="b2", reason=reason))
    assert job_state(store) == ("active", None)


@pytest.mark.parametrize("final", ["active", "failed", "refused", "expired"])
def test_a_final_state_that_the_board_gave_stays(store: Store, final: str) -> None:
    make_job(store)
    commit(store, job_event(1, final, reason="golden"))
    commit(store, job_event(2, "received"), job_event(3, "refused", reason="older"))
    assert job_state(store) == (final, "golden")


def test_a_refused_replay_in_the_middle_of_a_job_does_not_end_it(store: Store) -> None:
    make_job(store)
    commit(store, job_event(1, "downloading"), job_event(2, "refused", reason="replayed"))
    assert job_state(store) == ("downloading", None)
    commit(store, job_event(3, "failed", reason="golden"))
    assert job_state(store) == ("failed", "golden")


def test_a_command_that_only_its_refusal_speaks_of_is_refused(store: Store) -> None:
    make_job(store)
    commit(store, job_event(1, "refused", reason="bad-signature"))
    assert job_state(store) == ("refused", "bad-signature")


def test_what_the_server_ended_itself_gives_way_to_what_the_board_says(store: Store) -> None:
    make_job(store)
    with store.write() as connection:
        ended = {"state": "failed", "reason": "superseded"}
        connection.execute(sa.update(db.job_devices).values(ended))
    commit(store, job_event(1, "active"))
    assert job_state(store) == ("active", None)


def test_an_event_of_a_job_nobody_knows_is_kept_and_does_no_harm(store: Store) -> None:
    assert upto(commit(store, job_event(1, "active", job="unheard-of"))) == 1
    assert stored(store, db.job_events) == [1]


def test_silence_after_a_jobs_end_is_a_failure_until_the_board_says_otherwise(store: Store) -> None:
    make_job(store)
    with store.write() as connection:
        assert expire_silent_jobs(connection, NOW + 61) == 0
        assert expire_silent_jobs(connection, NOW + 900, within_s=600) == 0
        assert expire_silent_jobs(connection, NOW + 121, within_s=600) == 1
    assert job_state(store) == ("expired", "silent")
    commit(store, job_event(1, "active"))
    assert job_state(store) == ("active", None)
