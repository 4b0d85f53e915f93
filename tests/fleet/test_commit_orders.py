"""However batches are cut, ordered and repeated. One store for all examples, a board of its own for each."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import NOW

from edgekit.core.messages import Event, JobEvent
from edgekit.core.record import Record
from edgekit.fleet import schema as db
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.enroll import enroll
from edgekit.fleet.intake import Received
from edgekit.fleet.store import Store

SEQS = list(range(1, 13))
BATCHES = st.lists(st.lists(st.sampled_from(SEQS), max_size=6), max_size=12)


def message(name: str, seq: int) -> Received:
    """What the board made under this number."""
    if seq % 4 in {0, 1}:
        record = Record(seq, 1.0, NOW, True, 1.0, "toy/1", "full", requests=1)
        return Received(name, "telemetry", "b1", 1, records=(record,))
    if seq % 4 == 2:
        return Received(name, "event", "b1", events=(Event("b1", seq, "throttle", NOW),))
    return Received(
        name, "job/event", "b1", job_events=(JobEvent("b1", seq, "job", "received", "toy/1", NOW),)
    )


@pytest.fixture
def names() -> itertools.count[int]:
    return itertools.count()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=60,
    deadline=None,
)
@given(batches=BATCHES)
def test_each_number_is_there_once_and_the_ack_ends_before_the_first_gap(
    store: Store, names: itertools.count[int], batches: list[list[int]]
) -> None:
    name = f"board-{next(names)}"
    sent: set[int] = set()
    with store.write() as connection:
        enroll(connection, name, "raspberrypi5", [], NOW)
        for batch in batches:
            outcome = commit_batch(connection, [message(name, seq) for seq in batch], [], NOW)
            sent |= set(batch)
            gapless = next(seq for seq in range(len(SEQS) + 1) if seq + 1 not in sent)
            assert [ack.upto for _, ack in outcome.acks] == ([gapless] if batch else [])
        own = sa.select(db.devices.c.id).where(db.devices.c.name == name).scalar_subquery()
        found = [
            seq
            for table in (db.records, db.events, db.job_events)
            for seq in connection.scalars(sa.select(table.c.seq).where(table.c.device == own))
        ]
    assert sorted(found) == sorted(sent)
