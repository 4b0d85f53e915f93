from __future__ import annotations

import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from outboxes import Clock, record, size_on_disk

from edgekit.agent.outbox import EVENT, JOB, KINDS, LINGER_S, MIN_CAP_BYTES, RECORD, Counts, Outbox
from edgekit.core.messages import Event, JobEvent
from edgekit.core.record import Record

BIG = 10**9


def event(kind: str = "throttle") -> Event:
    return Event("?", 1, kind, None)


def job_event(state: str = "active", detail: str | None = None) -> JobEvent:
    return JobEvent("?", 1, "job-1", state, "toy/1", None, detail=detail)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder / "outbox.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def box(path: Path, clock: Clock) -> Outbox:
    return Outbox(path, "boot1", BIG, clock=clock)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "edgekit-test", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs (root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def after_a_kill(path: Path) -> Path:
    """What SIGKILL would leave of the files: a copy, as they are now."""
    folder = Path(tempfile.mkdtemp(dir=path.parents[1]))
    for file in path.parent.glob("outbox.db*"):
        shutil.copy(file, folder)
    return folder / path.name


def held(path: Path) -> list[tuple[str, int]]:
    """Everything that an outbox opened there holds."""
    box = Outbox(path, "reader", BIG)
    found = [(boot, item.seq) for boot in box.boots() for item in box.after(boot, 0, 10**6)]
    box.close()
    return found


def test_one_sequence_runs_over_records_and_events_and_stands_in_them(box: Outbox) -> None:
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


def test_what_was_put_is_there_after_a_kill_and_numbers_begin_anew(path: Path, box: Outbox) -> None:
    box.put(record(7))
    again = Outbox(after_a_kill(path), "boot2", BIG)
    assert again.put(record(8)) == 1
    assert again.boots() == ("boot1", "boot2")
    assert [item.payload["requests"] for item in again.after("boot1", 0, 10)] == [7]
    assert (again.floor("boot1"), again.floor("boot2"), again.floor("boot3")) == (1, 1, None)


def test_only_an_acknowledgement_deletes_and_only_up_to_its_number(box: Outbox, clock: Clock) -> None:
    for _ in range(3):
        box.put(record())
        clock.now += 60
    assert box.release("boot1", 2) == 2
    for _ in range(2):
        box.put(record())  # in memory: the rule is the same
    assert box.counts(RECORD) == Counts(5, 2, 0, 3)
    assert box.release("boot1", 4) == 2
    assert box.release("boot1", 4) == 0
    assert box.release("other", 9) == 0
    assert [item.seq for item in box.after("boot1", 0, 10)] == [5]
    assert (box.floor("boot1"), box.counts(RECORD)) == (5, Counts(5, 4, 0, 1))
    assert box.release("boot1", 2**53) == 1
    assert (box.floor("boot1"), box.boots()) == (None, ())


def test_a_broker_can_release_single_items(box: Outbox, clock: Clock) -> None:
    for _ in range(4):
        box.put(record())
        clock.now += 3
    assert box.release_these("boot1", (2, 3)) == 2
    assert [item.seq for item in box.after("boot1", 0, 10)] == [1, 4]


def test_hundreds_of_items_are_released_at_once(box: Outbox, path: Path) -> None:
    for _ in range(500):
        box.put(event())
    assert box.release("boot1", 499) == 499
    assert box.counts(EVENT) == Counts(500, 499, 0, 1)
    assert size_on_disk(path) < 10**6, "and their deletion did not blow up the log"


# --- what is on disk, and when ---------------------------------------------------------------------------------------


def test_without_a_line_to_the_broker_a_record_is_on_disk_at_once(
    path: Path, box: Outbox, clock: Clock
) -> None:
    for count in range(1, 4):
        clock.now += 60
        box.put(record())
        assert len(held(after_a_kill(path))) == count


def test_over_a_line_a_record_that_is_confirmed_soon_is_never_written(
    path: Path, box: Outbox, clock: Clock
) -> None:
    box.put(record())
    box.release("boot1", 1)
    before = file_state(path)
    for seq in range(2, 100):
        clock.now += 60
        assert box.put(record()) == seq
        box.step()
        assert [item.seq for item in box.after("boot1", 0, 9)] == [seq]
        assert box.release("boot1", seq) == 1
        clock.now += LINGER_S
        box.step()
    assert file_state(path) == before
    box.close()
    assert Outbox(path, "boot2", BIG).counts(RECORD) == Counts(99, 99, 0, 0), "but it was counted"


def acknowledged_so_far(box: Outbox) -> None:
    """Acknowledgements come: an event was put, and released."""
    box.release("boot1", box.put(event()) or 0)


def test_a_record_without_an_answer_is_the_last_one_that_waits_for_it(
    path: Path, box: Outbox, clock: Clock
) -> None:
    acknowledged_so_far(box)
    for number in range(1, 4):
        clock.now += 60
        box.put(record(number))
        assert len(held(after_a_kill(path))) == (0 if number == 1 else number)


def file_state(path: Path) -> list[tuple[str, int, bytes]]:
    return [(file.name, file.stat().st_mtime_ns, file.read_bytes()) for file in path.parent.glob("outbox*")]


def test_over_a_line_a_record_without_an_answer_is_written_after_a_few_seconds(
    path: Path, box: Outbox, clock: Clock
) -> None:
    acknowledged_so_far(box)
    box.put(record())
    assert box.step() == LINGER_S
    clock.now += LINGER_S - 1
    assert box.step() == 1
    assert held(after_a_kill(path)) == []
    clock.now += 1
    assert box.step() is None
    assert held(after_a_kill(path)) == [("boot1", 2)]


def test_when_the_line_breaks_what_waits_is_written(path: Path, box: Outbox) -> None:
    acknowledged_so_far(box)
    box.put(record())
    box.line_is_lost()
    assert held(after_a_kill(path)) == [("boot1", 2)]


@pytest.mark.parametrize("make", [event, job_event])
def test_events_are_on_disk_at_once_and_take_waiting_records_with_them(
    path: Path, box: Outbox, make: object
) -> None:
    acknowledged_so_far(box)
    box.put(record())
    box.put(make())  # type: ignore[operator]
    assert held(after_a_kill(path)) == [("boot1", 2), ("boot1", 3)]


def test_many_short_intervals_share_a_commit(path: Path, clock: Clock) -> None:
    box = Outbox(path, "boot1", BIG, clock=clock)
    commits = 0
    before = file_state(path)
    for seq in range(1, 401):
        clock.now += 0.1
        assert box.put(record()) == seq
        after = file_state(path)
        commits, before = commits + (after != before), after
    assert 7 <= commits <= 10
    assert len(held(after_a_kill(path))) >= 350
    box.close()
    assert len(held(path)) == 400


def test_closing_writes_what_waits(path: Path, box: Outbox) -> None:
    acknowledged_so_far(box)
    box.put(record())
    box.close()
    assert held(path) == [("boot1", 2)]


# --- the cap ---------------------------------------------------------------------------------------------------------


def test_a_full_outbox_drops_the_oldest_records_first_job_events_last_and_counts(
    path: Path, clock: Clock
) -> None:
    box = Outbox(path, "boot1", MIN_CAP_BYTES, clock=clock)
    box.put(job_event("received"))
    box.put(event())
    largest = 0
    for _ in range(500):
        clock.now += 60
        box.put(record())
        largest = max(largest, size_on_disk(path))
    items = box.after("boot1", 0, 10**4)
    assert [item.kind for item in items[:2]] == [JOB, EVENT]
    seqs = [item.seq for item in items[2:]]
    assert seqs == list(range(503 - len(seqs), 503))
    assert MIN_CAP_BYTES / 2 < largest <= MIN_CAP_BYTES, "file and log together"
    counts = box.counts(RECORD)
    assert counts == Counts(500, 0, 500 - len(seqs), len(seqs))
    assert counts.held > 200
    for _ in range(800):
        box.put(job_event(detail="x" * 400))
        largest = max(largest, size_on_disk(path))
    assert {item.kind for item in box.after("boot1", 0, 10**4)} == {JOB}
    assert box.counts(EVENT).dropped == 1
    assert 0 < box.counts(JOB).dropped < 801
    assert largest <= MIN_CAP_BYTES


def test_an_outbox_from_a_time_of_a_larger_cap_shrinks_to_it(path: Path) -> None:
    box = Outbox(path, "boot1", BIG)
    for _ in range(2000):
        box.put(Event("?", 1, "throttle", None, {"why": "x" * 400}))
    box.put(job_event())
    box.close()
    assert size_on_disk(path) > MIN_CAP_BYTES
    small = Outbox(path, "boot2", MIN_CAP_BYTES)
    assert size_on_disk(path) <= MIN_CAP_BYTES
    assert small.counts(JOB).held == 1
    counts = small.counts(EVENT)
    assert counts == Counts(2000, 0, 2000 - counts.held, counts.held)
    assert counts.held > 200


def test_drops_are_told_once_in_an_event(path: Path, clock: Clock) -> None:
    box = Outbox(path, "boot1", MIN_CAP_BYTES, clock=clock)
    box.report_drops(None)
    assert box.counts(EVENT).made == 0
    for _ in range(600):
        clock.now += 60
        box.put(record())
    for _ in range(3):
        box.report_drops(None)
    told = [item.payload for item in box.after("boot1", 0, 10**4) if item.kind == EVENT]
    dropped = box.counts(RECORD).dropped
    assert dropped > 100
    assert sum(entry["detail"].get("records", 0) for entry in told) == dropped
    assert told[0]["kind"] == "dropped"
    box.close()
    again = Outbox(path, "boot2", MIN_CAP_BYTES)
    again.report_drops(None)
    assert again.boots() == ("boot1",), "what was told stays told"


# --- disks that fail -------------------------------------------------------------------------------------------------


class Failing:
    """A connection that fails: every commit, or everything, with that error."""

    def __init__(self, true: sqlite3.Connection, err: sqlite3.Error, only: str = "") -> None:
        self.true, self.err, self.only = true, err, only

    def execute(self, sql: str, *values: object) -> object:
        if sql.startswith(self.only):
            raise self.err
        return self.true.execute(sql, *values)

    def __getattr__(self, name: str) -> object:
        return getattr(self.true, name)


@pytest.mark.parametrize(
    "why", ["disk I/O error", "database or disk is full", "attempt to write a readonly database"]
)
def test_a_disk_that_takes_nothing_costs_only_what_memory_cannot_hold(
    path: Path, box: Outbox, clock: Clock, why: str
) -> None:
    box.put(record())
    true = box._db
    box._db = Failing(true, sqlite3.OperationalError(why), "COMMIT")  # type: ignore[assignment]
    for seq in range(2, 402):
        clock.now += 60
        assert box.put(record()) == seq
    assert box.put(job_event()) is None, "whoever made it must know that it is not safe"
    assert box.counts(JOB) == Counts(0, 0, 0, 0)
    counts = box.counts(RECORD)
    assert (counts.made, counts.held + counts.dropped) == (401, 401)
    assert 200 < counts.held < 300
    items = box.after("boot1", 1, 1000)
    assert [item.seq for item in items] == list(range(402 - len(items), 402)), (
        "the newest, and they can be sent"
    )
    assert box.release("boot1", 301) > 0
    box._db = true
    clock.now += 60
    assert box.put(job_event()) == 402, "no number was used up by what was not taken"
    assert [seq for _, seq in held(after_a_kill(path))][-101:] == [*range(302, 402), 402]
    total = box.counts(RECORD, JOB)
    assert total.made == total.acked + total.dropped + total.held


def test_a_file_system_without_room_is_waited_out(clock: Clock, tmpfs: Path) -> None:
    box = Outbox(tmpfs / "outbox.db", "boot1", BIG, clock=clock)
    ballast = tmpfs / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2**21))
    for _ in range(100):
        clock.now += 60
        box.put(record())
    box.put(event())
    assert box.put(job_event()) is None
    assert box.counts(RECORD, EVENT).held == 101
    ballast.unlink()
    clock.now += 60
    assert box.step() is None, "written as soon as there is room"
    assert len(held(after_a_kill(tmpfs / "outbox.db"))) == 101


def test_a_read_only_file_system_leaves_an_outbox_in_memory_until_it_is_not(
    tmpfs: Path, clock: Clock
) -> None:
    path = tmpfs / "outbox.db"
    Outbox(path, "boot1", BIG).close()
    subprocess.run(["mount", "-o", "remount,ro", str(tmpfs)], check=True)
    box = Outbox(path, "boot2", BIG, clock=clock)
    assert box.put(event()) == 1
    assert not box.durable
    subprocess.run(["mount", "-o", "remount,rw", str(tmpfs)], check=True)
    clock.now += 61
    box.put(record())
    assert box.durable
    assert held(after_a_kill(path)) == [("boot2", 1), ("boot2", 2)]
    box.close()


def test_a_file_that_is_no_database_is_set_aside_and_a_new_one_begins(path: Path) -> None:
    path.write_bytes(b"\x00" * 5000)
    box = Outbox(path, "boot1", BIG)
    assert box.damaged is not None
    assert path.with_name("outbox.db.damaged").exists()
    assert box.put(record()) == 1
    box.close()
    assert Outbox(path, "boot2", BIG).damaged is None


def test_a_torn_database_is_set_aside_and_a_new_one_begins(path: Path, box: Outbox) -> None:
    for _ in range(200):
        box.put(event())
    box.close()
    data = bytearray(path.read_bytes())
    data[3000:20000] = bytes(17000)
    path.write_bytes(data)
    again = Outbox(path, "boot2", BIG)
    assert again.damaged is not None
    assert again.put(record()) == 1


def test_damage_that_shows_while_running_costs_the_old_items_and_not_the_new_ones(
    path: Path, box: Outbox
) -> None:
    box.put(event())
    box._db = Failing(box._db, sqlite3.DatabaseError("database disk image is malformed"))  # type: ignore[assignment]
    assert box.put(event("new")) == 2
    assert box.damaged is not None
    assert [item.payload["kind"] for item in box.after("boot1", 0, 10)] == ["new"]
    assert held(after_a_kill(path)) == [("boot1", 2)]


@pytest.mark.parametrize("harm", ["zeroed", "torn", "emptied"])
def test_a_file_harmed_while_it_is_open_ends_nothing(
    path: Path, box: Outbox, clock: Clock, harm: str
) -> None:
    for _ in range(300):
        box.put(event())
    data = path.read_bytes()
    harmed = {"zeroed": bytes(len(data)), "torn": data[: len(data) // 2], "emptied": b""}[harm]
    descriptor = open(path, "r+b", buffering=0)  # noqa: SIM115, PTH123  (closing it takes SQLite's locks away)
    descriptor.truncate(len(harmed))
    descriptor.write(harmed)
    for _ in range(60):
        clock.now += 60
        box.put(event())
        box.release("boot1", 5)
        box.boots(), box.floor("boot1"), box.after("boot1", 0, 1000), box.counts(*KINDS)
    descriptor.close()
    newest = [item.seq for item in box.after("boot1", 0, 10**4)][-1]
    assert newest == 360
    box.close()
    again = Outbox(path, "boot2", BIG)
    assert again.put(event()) == 1
    again.close()
    assert (harm == "zeroed") != (("boot1", 360) in held(path)), "a file that lost its size is written again"


@pytest.mark.parametrize("files", [["outbox.db"], ["outbox.db-wal"], ["outbox.db", "outbox.db-wal"]])
def test_a_file_removed_while_it_is_open_is_written_again_with_what_it_held(
    path: Path, box: Outbox, clock: Clock, files: list[str]
) -> None:
    for _ in range(300):
        box.put(event())
    for file in files:
        (path.parent / file).unlink()
    clock.now += 60
    box.put(record())
    clock.now += 60
    box.put(event())
    assert [seq for _, seq in held(after_a_kill(path))] == list(range(1, 303))
    assert box.counts(EVENT).made == 301
    box.close()
    assert len(held(path)) == 302


def test_a_folder_that_takes_no_file_leaves_an_outbox_in_memory_until_it_does(
    tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "missing/outbox.db"
    box = Outbox(path, "boot1", BIG, clock=clock)
    assert box.put(record()) == 1
    assert box.boots() == ("boot1",)
    assert not box.durable
    path.parent.mkdir()
    clock.now += 30
    box.put(event())
    assert not box.durable, "tried once a minute"
    clock.now += 31
    box.put(event())
    assert box.durable
    assert held(after_a_kill(path)) == [("boot1", 1), ("boot1", 2), ("boot1", 3)]
    assert Outbox(tmp_path / "outbox.db", "boot1", BIG).durable


def test_a_file_that_somebody_else_has_open_is_gone_back_to(path: Path, clock: Clock) -> None:
    first = Outbox(path, "boot1", BIG, clock=clock)
    first.put(event())
    second = Outbox(path, "boot2", BIG, clock=clock)
    second.put(event())
    assert (first.durable, second.durable) == (True, False)
    first.close()
    clock.now += 61
    second.put(event())
    assert held(after_a_kill(path)) == [("boot1", 1), ("boot2", 1), ("boot2", 2)]


def test_nobody_else_can_read_what_is_held(path: Path) -> None:
    Outbox(path, "boot1", BIG).close()
    path.chmod(0o644)  # as an earlier version left it
    again = Outbox(path, "boot2", BIG)
    again.put(event())
    fresh = Outbox(path.with_name("fresh.db"), "boot1", BIG)
    fresh.put(event())
    files = [*path.parent.glob("outbox.db*"), *path.parent.glob("fresh.db*")]
    assert len(files) == 4
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_somebody_is_told_about_new_items(path: Path) -> None:
    told: list[int] = []
    box = Outbox(path, "boot1", BIG, on_put=lambda: told.append(1))
    box.put(record())
    assert told == [1]
