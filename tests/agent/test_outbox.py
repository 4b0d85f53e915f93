from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from edgekit.agent.outbox import EVENT, JOB, RECORD, Counts, Outbox
from edgekit.core.messages import Event, JobEvent
from edgekit.core.record import Record

BIG = 10**9


def record(requests: int = 1) -> Record:
    return Record(1, 1.0, None, False, 1.0, "toy/1", "full", requests=requests)


def event(kind: str = "throttle") -> Event:
    return Event("?", 1, kind, None)


def job_event(state: str = "active") -> JobEvent:
    return JobEvent("?", 1, "job-1", state, "toy/1", None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


def test_one_sequence_runs_over_records_and_events_and_stands_in_them(path: Path) -> None:
    box = Outbox(path, "boot1", BIG)
    assert [box.put(record()), box.put(job_event()), box.put(event()), box.put(record())] == [1, 2, 3, 4]
    items = box.after("boot1", 0, 10)
    assert [(item.seq, item.kind, item.payload["seq"]) for item in items] == [
        (1, RECORD, 1),
        (2, JOB, 2),
        (3, EVENT, 3),
        (4, RECORD, 4),
    ]
    assert items[1].payload["event_id"] == "boot1-2"
    assert Record.parse(items[3].payload).seq == 4


def test_what_was_put_is_there_after_a_restart_and_numbers_begin_anew(path: Path) -> None:
    box = Outbox(path, "boot1", BIG)
    box.put(record(7))  # and the process is gone: nothing is closed
    again = Outbox(path, "boot2", BIG)
    assert again.put(record(8)) == 1
    assert again.boots() == ("boot1", "boot2")
    assert [item.payload["requests"] for item in again.after("boot1", 0, 10)] == [7]
    assert (again.floor("boot1"), again.floor("boot2"), again.floor("boot3")) == (1, 1, None)


def test_only_an_acknowledgement_deletes_and_only_up_to_its_number(path: Path) -> None:
    box = Outbox(path, "boot1", BIG)
    for _ in range(5):
        box.put(record())
    assert box.counts(RECORD) == Counts(5, 0, 0, 5)
    assert box.release("boot1", 3) == 3
    assert box.release("boot1", 3) == 0
    assert box.release("other", 9) == 0
    assert [item.seq for item in box.after("boot1", 0, 10)] == [4, 5]
    assert (box.floor("boot1"), box.counts(RECORD)) == (4, Counts(5, 3, 0, 2))
    assert box.release("boot1", 2**53) == 2
    assert box.floor("boot1") is None


def test_a_broker_can_release_single_items(path: Path) -> None:
    box = Outbox(path, "boot1", BIG)
    for _ in range(4):
        box.put(record())
    assert box.release_these("boot1", (2, 3)) == 2
    assert [item.seq for item in box.after("boot1", 0, 10)] == [1, 4]


def test_a_full_outbox_drops_the_oldest_records_first_job_events_last_and_counts(path: Path) -> None:
    size = len(json.dumps(record().to_json(), separators=(",", ":")))
    box = Outbox(path, "boot1", 6 * size)
    box.put(job_event("received"))
    box.put(event())
    for _ in range(20):
        box.put(record())
    kinds = [item.kind for item in box.after("boot1", 0, 100)]
    assert kinds[:2] == [JOB, EVENT]
    seqs = [item.seq for item in box.after("boot1", 2, 100)]
    assert seqs == list(range(22 - len(seqs) + 1, 23))
    counts = box.counts(RECORD)
    assert (counts.made, counts.dropped) == (20, 20 - len(seqs))
    assert counts.made == counts.acked + counts.dropped + counts.held
    for _ in range(40):
        box.put(job_event())
    left = {item.kind for item in box.after("boot1", 0, 100)}
    assert left == {JOB}
    assert box.counts(EVENT).dropped == 1


def test_drops_are_told_once_in_an_event(path: Path) -> None:
    size = len(json.dumps(record().to_json(), separators=(",", ":")))
    box = Outbox(path, "boot1", 4 * size)
    box.report_drops(None)
    assert box.counts(EVENT).made == 0
    for _ in range(10):
        box.put(record())
    for _ in range(3):
        box.report_drops(None)
    told = [item.payload for item in box.after("boot1", 0, 100) if item.kind == EVENT]
    dropped = box.counts(RECORD).dropped
    assert dropped >= 6
    assert sum(entry["detail"].get("records", 0) for entry in told) == dropped
    assert told[0]["kind"] == "dropped"


def test_a_full_disk_costs_what_does_not_fit_and_nothing_else(path: Path) -> None:
    box = Outbox(path, "boot1", BIG)
    held = [box.put(record())]
    pages = box._db.execute("PRAGMA page_count").fetchone()[0]
    box._db.execute(f"PRAGMA max_page_count = {pages}")
    while (seq := box.put(record())) is not None:
        held.append(seq)
    assert box.put(Event("?", 1, "throttle", None, {"flags": "x" * 3000})) is None
    assert held == list(range(1, len(held) + 1))
    assert box.counts(RECORD) == Counts(len(held) + 1, 0, 1, len(held))
    assert box.counts(EVENT) == Counts(1, 0, 1, 0)
    box._db.execute("PRAGMA max_page_count = 100000")
    assert box.put(record()) == len(held) + 1, "no number is used up by what was lost"
    assert box.counts(RECORD) == Counts(len(held) + 2, 0, 1, len(held) + 1)
    assert Outbox(path, "boot2", BIG).counts(RECORD).dropped == 1


def test_a_file_that_is_no_database_is_set_aside_and_a_new_one_begins(path: Path) -> None:
    path.write_bytes(b"\x00" * 5000)
    box = Outbox(path, "boot1", BIG)
    assert box.damaged is not None
    assert path.with_name("outbox.db.damaged").exists()
    assert box.put(record()) == 1
    assert Outbox(path, "boot2", BIG).damaged is None


def test_a_torn_database_is_set_aside_and_a_new_one_begins(path: Path) -> None:
    box = Outbox(path, "boot1", BIG)
    for _ in range(200):
        box.put(record())
    box.close()
    data = bytearray(path.read_bytes())
    data[3000:20000] = bytes(17000)
    path.write_bytes(data)
    again = Outbox(path, "boot2", BIG)
    assert again.damaged is not None
    assert again.put(record()) == 1


def test_damage_that_shows_while_running_costs_the_old_items_and_not_the_new_one(path: Path) -> None:
    box = Outbox(path, "boot1", BIG)
    box.put(record())
    box.close()

    class Damaged:
        def execute(self, *_: object) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

        def close(self) -> None:
            pass

    box._db = Damaged()  # type: ignore[assignment]
    assert box.put(record(5)) == 2
    assert box.damaged is not None
    assert [item.payload["requests"] for item in box.after("boot1", 0, 10)] == [5]


def test_a_folder_that_takes_no_file_leaves_an_outbox_in_memory(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "missing" / "outbox.db", "boot1", BIG)
    assert box.put(record()) == 1
    assert box.boots() == ("boot1",)
    assert not box.durable
    assert Outbox(tmp_path / "outbox.db", "boot1", BIG).durable


def test_nobody_else_can_read_what_is_held(path: Path) -> None:
    box = Outbox(path, "boot1", BIG)
    box.put(record())
    path.chmod(0o644)  # as an earlier version left it
    again = Outbox(path, "boot2", BIG)
    again.put(record())
    files = sorted(path.parent.glob("outbox.db*"))
    assert len(files) == 3
    fresh = Outbox(path.with_name("fresh.db"), "boot1", BIG)
    fresh.put(record())
    assert path.stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in path.parent.glob("fresh.db*"))


def test_somebody_is_told_about_new_items(path: Path) -> None:
    told: list[int] = []
    box = Outbox(path, "boot1", BIG, on_put=lambda: told.append(1))
    box.put(record())
    assert told == [1]
