"""Records and events that the server has not confirmed: kept until it says so, on disk where that takes time.

One sequence of numbers per start of the agent runs over all of them. What may be lost, and when:

- Events and job events are on disk (fsync) before they are sent.
- Records are on disk at once while no acknowledgements come, but not more than one commit every LINGER_S. While they
  come, a Record waits in memory for its own, LINGER_S at most: nearly all are confirmed before, and are never written.
  A power cut costs those of these last seconds that had not got through; the end of the process does not, they wait in
  memory that outlives it. No number is used for two things: each start draws its own boot_id.
- The files are held to a size in bytes. What goes over it costs the oldest telemetry first and job events last, and
  is counted.
- A disk that takes nothing costs Records and Events beyond those that memory holds; job events are refused: their maker
  keeps them. A damaged file is set aside, one that was removed is written again. None of this ends the agent.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.agent.volatile import Volatile
from edgekit.core.errors import one_line
from edgekit.core.files import sync_folder
from edgekit.core.messages import Event, JobEvent
from edgekit.core.record import Record

log = logging.getLogger(__name__)
RECORD, EVENT, JOB = "record", "event", "job"
KINDS = (RECORD, EVENT, JOB)  # in the order in which a full outbox drops them
LINGER_S = 5.0  # a Record may wait so long for its acknowledgement, or for others to be committed with
MIN_CAP_BYTES = 512 * 1024
_PAGE = 1024  # a Record fits into one: less is written to the card per commit than with larger ones
_WAL_PAGES = (
    64  # copied into the file and begun anew when it is this long: it stays small, and so does the next one
)
_RESERVE_BYTES = 192 * 1024  # of the cap: for the log (WAL) and what one commit may add to it
_MEMORY_ITEMS = 256  # wait here at most, also when the disk takes nothing
_MEMORY_CAP_BYTES = 4 * 2**20  # of the outbox that has no file
_BATCH = 64  # rows per commit when they are many
_RETRY_S = 60.0
_SPLITS = 6  # pages that one insert may add beside its payload: leaves and nodes of two trees
_TABLES = """
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL,
    UNIQUE (boot, seq));
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_INSERT = "INSERT OR IGNORE INTO items (boot, seq, kind, payload) VALUES (?, ?, ?, ?)"


@dataclass(frozen=True)
class Item:
    """One thing to send. payload: what `to_json` of a Record, Event or JobEvent gives."""

    boot_id: str
    seq: int
    kind: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class Counts:
    """Of one kind, over the life of the file: made = acked + dropped + held."""

    made: int
    acked: int
    dropped: int
    held: int


@dataclass(frozen=True)
class _Waiting:
    """Something that is not on disk yet. payload: JSON."""

    kind: str
    payload: str
    since_s: float


class Outbox:
    """One SQLite file (WAL, nobody else's while it is open), one connection, any number of threads."""

    def __init__(
        self,
        path: Path,
        boot_id: str,
        cap_bytes: int,
        on_put: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        volatile: Volatile | None = None,
    ) -> None:
        """Open or make `path`. on_put: called after something new is in.

        cap_bytes: of the file and its log together, at least MIN_CAP_BYTES. damaged: why the file that was here had to
        be set aside, None when all was well. durable: what is held outlives the process; not so where no file could be
        opened; that is tried again every minute.
        """
        self._path = path
        self.boot_id = boot_id
        self._cap_bytes = cap_bytes
        self._on_put = on_put
        self._clock = clock
        self._lock = threading.RLock()
        self._waiting: dict[int, _Waiting] = {}  # by number, ascending
        self._uncounted: Counter[str] = Counter()  # what the next commit adds to the counters
        self._acks_come = False
        self._wrote_s = self._failed_s = clock() - LINGER_S
        self._tried_s = clock()
        self._complaint: str | None = None
        self._next_seq = 1
        self.damaged: str | None = None
        self.durable = True
        self._db = self._open()
        self._shrink()
        self._seen = self._look()
        self._volatile = Volatile(path) if volatile is None else volatile
        self._take_over()

    # --- in ------------------------------------------------------------------------------------------------------

    def put(self, item: Record | JobEvent | Event) -> int | None:
        """Take it under the next number, which is set in it, and drop what goes over the cap.

        Returns the number; None where a job event could not be written: it is not taken, and no number is used up.
        """
        with self._lock:
            seq, now = self._next_seq, self._clock()
            kind, payload = _payload(item, self.boot_id, seq)
            self._waiting[seq] = _Waiting(kind, payload, now)
            self._uncounted[f"made_{kind}"] += 1
            may_wait = kind == RECORD and (self._acks_come or now - self._wrote_s < LINGER_S)
            if now - self._failed_s < LINGER_S:  # the disk takes nothing: trying costs time
                may_wait = kind != JOB
            elif self._oldest_s() <= now - LINGER_S or len(self._waiting) > _BATCH:
                may_wait = self._acks_come = False
            if not may_wait:
                written = self._flush()
                if not written and kind == JOB:
                    del self._waiting[seq]
                    self._uncounted[f"made_{kind}"] -= 1
                    return None
            self._drop_waiting(len(self._waiting) - _MEMORY_ITEMS)
            self._note_waiting(seq)
            self._next_seq = seq + 1
        self._on_put()
        return seq

    def line_is_lost(self) -> None:
        """No acknowledgement can come: nothing waits for one."""
        with self._lock:
            self._acks_come = False
            self._flush()

    def step(self) -> float | None:
        """Write what has waited long enough. Returns the seconds until there is more to do; None: nothing waits."""
        with self._lock:
            if not self._waiting:
                return None
            left = max(self._oldest_s(), self._failed_s) + LINGER_S - self._clock()
            if left > 0:
                return left
            self._acks_come = False
            self._flush()
            return LINGER_S if self._waiting else None

    def close(self) -> None:
        """Write what waits, and close the file."""
        with self._lock:
            self._flush()
            self._volatile.close()
            with suppress(sqlite3.Error):
                self._db.close()

    # --- out -----------------------------------------------------------------------------------------------------

    def boots(self) -> tuple[str, ...]:
        """The starts of the agent of which something is held, the oldest first."""
        with self._lock:
            rows = self._read("SELECT boot FROM items GROUP BY boot ORDER BY MIN(id)")
            return tuple(dict.fromkeys([row[0] for row in rows] + [self.boot_id] * bool(self._waiting)))

    def floor(self, boot_id: str) -> int | None:
        """The lowest number of that start that is held; None where nothing is."""
        with self._lock:
            rows = self._read("SELECT MIN(seq) FROM items WHERE boot = ?", boot_id)
            found = [rows[0][0]] if rows and rows[0][0] is not None else []
            if boot_id == self.boot_id:
                found += list(self._waiting)[:1]
            return min(found, default=None)

    def after(self, boot_id: str, seq: int, limit: int) -> tuple[Item, ...]:
        """At most `limit` items of that start with higher numbers, in order."""
        query = "SELECT seq, kind, payload FROM items WHERE boot = ? AND seq > ? ORDER BY seq LIMIT ?"
        with self._lock:
            rows = self._read(query, boot_id, seq, limit)
            if boot_id == self.boot_id:  # what waits is newer than what is written
                rows += [(n, entry.kind, entry.payload) for n, entry in self._waiting.items() if n > seq]
        return tuple(Item(boot_id, row[0], row[1], json.loads(row[2])) for row in rows[:limit])

    def release(self, boot_id: str, upto: int) -> int:
        """The server has everything of that start up to `upto`. Returns how many that let go."""
        return self._release(boot_id, range(upto + 1))

    def release_these(self, boot_id: str, seqs: Sequence[int]) -> int:
        """The broker has these, ascending (`ack = "broker"` only). Returns how many that let go."""
        return self._release(boot_id, seqs)

    # --- counts --------------------------------------------------------------------------------------------------

    def counts(self, *kinds: str) -> Counts:
        """What happened to everything of these kinds since the file was made.

        A Record that came and went in memory is counted with the next commit; SIGKILL before it forgets both.
        """
        with self._lock:
            total = self._counters()
            held = Counter(dict(self._read("SELECT kind, COUNT(*) FROM items GROUP BY kind")))
            held.update(entry.kind for entry in self._waiting.values())
        made, acked, dropped = (
            sum(total[f"{what}_{kind}"] for kind in kinds) for what in ("made", "acked", "dropped")
        )
        return Counts(made, acked, dropped, sum(held[kind] for kind in kinds))

    def report_drops(self, time: float | None) -> None:
        """Put one Event that says how much was dropped since the last one; none when nothing was."""
        with self._lock:
            total = self._counters()
            new = {kind: total[f"dropped_{kind}"] - total[f"told_{kind}"] for kind in KINDS}
            if (
                not any(new.values()) or self._complaint is not None
            ):  # while the disk fails, it would only drop more
                return
            detail = {f"{kind}s": count for kind, count in new.items() if count}
            detail["total"] = sum(total[f"dropped_{kind}"] for kind in KINDS)
            for kind, count in new.items():  # written with the event, in one commit
                self._uncounted[f"told_{kind}"] += count
            self.put(Event(self.boot_id, 1, "dropped", time, detail))
        log.warning("outbox dropped %s", detail)

    def _counters(self) -> Counter[str]:
        total = Counter(dict(self._read("SELECT name, value FROM counters")))
        total.update(self._uncounted)
        return total

    # --- to disk -------------------------------------------------------------------------------------------------

    def _oldest_s(self) -> float:
        return next(iter(self._waiting.values())).since_s

    def _flush(self) -> bool:
        """Write what waits, in one commit. False: the disk took nothing, and it still waits."""
        self._find_the_file_again()
        if not (self._waiting or self._uncounted):
            return True
        try:
            self._write()
        except sqlite3.Error as err:
            damaged, self._failed_s = self._failed("what is new", err), self._clock()
            if not damaged:
                return False
            try:
                self._write()
            except sqlite3.Error as again:
                self._failed("what is new", again)
                return False
            self._failed_s -= LINGER_S
        self._complaint = None
        return True

    def _write(self) -> None:
        with self._transaction() as (db, counted):
            for seq, entry in self._waiting.items():
                self._make_room(db, counted, len(entry.payload))
                db.execute(_INSERT, (self.boot_id, seq, entry.kind, entry.payload))
        self._waiting.clear()
        self._volatile.clear()
        self._wrote_s = self._clock()
        self._seen = self._look()

    def _make_room(self, db: sqlite3.Connection, counted: Counter[str], size: int) -> None:
        """Drop the oldest of the least important until `size` bytes more keep the files below the cap."""
        cap = (self._cap_bytes if self.durable else min(self._cap_bytes, _MEMORY_CAP_BYTES)) - _RESERVE_BYTES
        allowed = max(cap, MIN_CAP_BYTES - _RESERVE_BYTES) // _PAGE - _SPLITS - size // (_PAGE - 4)
        kinds = iter(KINDS)
        kind = next(kinds)
        while _pages(db) > allowed:
            query = "SELECT id FROM items WHERE kind = ? ORDER BY id LIMIT 4"
            victims = db.execute(query, (kind,)).fetchall()
            if victims:
                db.executemany("DELETE FROM items WHERE id = ?", victims)
                counted[f"dropped_{kind}"] += len(victims)
                continue
            following = next(kinds, None)
            if following is None:
                return
            kind = following

    def _shrink(self) -> None:
        """A file from the time of a larger cap: drop what is over, and give the disk its room back."""
        try:
            if int(self._db.execute("PRAGMA page_count").fetchone()[0]) * _PAGE <= self._cap_bytes:
                return
            with self._transaction() as (db, counted):
                self._make_room(db, counted, 0)
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as err:
            log.warning("outbox %s is over its cap, and stays so: %s", self._path, one_line(err))

    def _drop_waiting(self, excess: int) -> None:
        """The disk takes nothing, and memory holds enough: what is least important goes, the oldest first."""
        for kind in KINDS if excess > 0 else ():
            for seq in [n for n, entry in self._waiting.items() if entry.kind == kind][:excess]:
                del self._waiting[seq]
                self._uncounted[f"dropped_{kind}"] += 1
                excess -= 1

    def _release(self, boot_id: str, seqs: Sequence[int]) -> int:
        """Delete what is held of these numbers (ascending) and count it as acknowledged."""
        if not seqs:
            return 0
        query = "SELECT id, kind, seq FROM items WHERE boot = ? AND seq BETWEEN ? AND ?"
        with self._lock:
            self._acks_come = True
            gone = [n for n in self._waiting if n in seqs] if boot_id == self.boot_id else []
            for seq in gone:
                self._uncounted[f"acked_{self._waiting.pop(seq).kind}"] += 1
            if gone and not self._waiting:
                self._volatile.clear()
            rows = [row for row in self._read(query, boot_id, seqs[0], seqs[-1]) if row[2] in seqs]
            deleted = 0
            try:
                for begin in range(0, len(rows), _BATCH):
                    batch = rows[begin : begin + _BATCH]
                    with self._transaction() as (db, counted):
                        db.executemany("DELETE FROM items WHERE id = ?", [(row[0],) for row in batch])
                        counted.update(f"acked_{row[1]}" for row in batch)
                    deleted += len(batch)
            except sqlite3.Error as err:
                self._failed("what was acknowledged", err)
            return len(gone) + deleted

    def _read(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as err:
                self._failed("what is held", err)
                return []

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, Counter[str]]]:
        """One commit; the counters' changes go with it, and count only when it did."""
        counted = Counter(self._uncounted)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db, counted
            for name, by in counted.items():
                if by:
                    _count(self._db, name, by)
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._uncounted.clear()

    def _note_waiting(self, new: int) -> None:
        """Have what waits outlive the process."""
        numbers: Sequence[int] = [new] if new in self._waiting else ()
        if self._volatile.full:
            self._volatile.clear()
            numbers = list(self._waiting)
        for seq in numbers:
            entry = self._waiting[seq]
            row = {"boot": self.boot_id, "seq": seq, "kind": entry.kind, "payload": entry.payload}
            self._volatile.add(json.dumps(row).encode())

    def _take_over(self) -> None:
        """What an agent that was killed still had in memory goes to disk."""
        rows = []
        for line in self._volatile.lines():
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                if row["kind"] in KINDS and isinstance(json.loads(row["payload"]), dict):
                    rows.append((str(row["boot"]), int(row["seq"]), str(row["kind"]), str(row["payload"])))
        if not rows:
            return
        try:
            with self._transaction() as (db, counted):
                for row in rows:
                    self._make_room(db, counted, len(row[3]))
                    if db.execute(_INSERT, row).rowcount:
                        counted[f"made_{row[2]}"] += 1
            self._volatile.clear()
        except sqlite3.Error as err:
            self._failed("what the last agent left", err)

    # --- when the disk fails -------------------------------------------------------------------------------------

    def _failed(self, what: str, err: sqlite3.Error) -> bool:
        """A full or failing disk is waited out; a damaged file is replaced, and then this returns True."""
        if one_line(err) != self._complaint:  # once, not at every try
            log.error("outbox %s: %s: %s", self._path, what, one_line(err))
        self._complaint = one_line(err)
        if not _is_damage(err):
            return False
        with suppress(sqlite3.Error):
            self._db.close()
        self._db = self._replace(err)
        self._seen = self._look()
        return True

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.Error as err:
            return self._replace(err) if _is_damage(err) else self._in_memory(err)

    def _replace(self, err: sqlite3.Error) -> sqlite3.Connection:
        """Set the damaged file aside (one is kept) and begin a new one."""
        self.damaged = one_line(err)
        log.error("outbox %s is damaged (%s): set aside, a new one begins", self._path, self.damaged)
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            with suppress(OSError):
                part.replace(self._path.with_name(f"{self._path.name}.damaged{suffix}"))
        try:
            return _connect(self._path)
        except sqlite3.Error as again:
            return self._in_memory(again)

    def _in_memory(self, err: sqlite3.Error) -> sqlite3.Connection:
        log.error("outbox %s cannot be opened (%s): it is in memory until it can", self._path, one_line(err))
        self.durable = False
        return _connect(":memory:")

    def _look(self) -> tuple[tuple[int, int], ...]:
        """Inode and size of the file and of its log. Never opens them: closing would take SQLite's locks away."""
        found = []
        for suffix in ("", "-wal"):
            status = None
            with suppress(OSError):
                status = self._path.with_name(self._path.name + suffix).stat()
            found.append((0, 0) if status is None else (status.st_ino, status.st_size))
        return tuple(found)

    def _find_the_file_again(self) -> None:
        """Go back to a file, once a minute where there was none; at once where somebody removed or cut it."""
        if self.durable:
            (file, log_file), (was_file, was_log) = self._look(), self._seen
            harmed = file[0] != was_file[0] or file[1] < was_file[1] or log_file[0] != was_log[0]
        else:
            harmed = self._clock() - self._tried_s >= _RETRY_S
        if not harmed:
            return
        self._tried_s = self._clock()
        try:
            self._db = self._write_again() if self.durable else self._moved_to(self._path)
        except (sqlite3.Error, OSError) as err:
            if self.durable:
                log.error("outbox %s was removed or cut: %s", self._path, one_line(err))  # noqa: TRY400
            return
        log.warning(
            "outbox %s %s",
            self._path,
            "was removed or cut; it was written again" if self.durable else "is on disk now",
        )
        self.durable = True
        self._seen = self._look()

    def _moved_to(self, path: Path) -> sqlite3.Connection:
        """A connection to `path`, into which everything was put that the present one still can read."""
        new = _connect(path)
        try:
            try:
                rows = self._db.execute("SELECT boot, seq, kind, payload FROM items ORDER BY id")
                while batch := rows.fetchmany(_BATCH):
                    new.execute("BEGIN IMMEDIATE")
                    new.executemany(_INSERT, batch)
                    new.execute("COMMIT")
                for name, value in self._db.execute("SELECT name, value FROM counters").fetchall():
                    _count(new, name, value)
            except sqlite3.DatabaseError as err:
                if not _is_damage(err):
                    raise
                self.damaged = one_line(err)
        except BaseException:
            new.close()
            raise
        return new

    def _write_again(self) -> sqlite3.Connection:
        """The file was removed or cut under the connection, which still has what was in it.

        Under another name first: closing a database deletes what has the name of its log.
        """
        beside = self._path.with_name(self._path.name + ".new")
        for suffix in ("", "-wal"):
            beside.with_name(beside.name + suffix).unlink(missing_ok=True)
        self._moved_to(beside).close()
        self._db.close()
        self._path.with_name(self._path.name + "-wal").unlink(missing_ok=True)
        beside.replace(self._path)
        sync_folder(self._path.parent)
        return _connect(self._path)


def _connect(path: Path | str) -> sqlite3.Connection:
    if isinstance(path, Path):
        _make_private(path)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    try:
        db.execute(f"PRAGMA page_size = {_PAGE}")
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # no -shm file, which would be written at every commit
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {2 * _WAL_PAGES * _PAGE}")
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check found damage")
        db.executescript(_TABLES)
    except BaseException:
        db.close()
        raise
    return db


def _pages(db: sqlite3.Connection) -> int:
    """In use; those that are free are used before the file grows."""
    return int(
        db.execute("PRAGMA page_count").fetchone()[0] - db.execute("PRAGMA freelist_count").fetchone()[0]
    )


def _make_private(path: Path) -> None:
    """SQLite makes files by the umask, and the ones beside them as the first is. Failing here is left to SQLite."""
    with suppress(OSError):
        if path.is_file():
            path.chmod(0o600)  # no descriptor: closing one would take SQLite's locks away
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _is_damage(err: sqlite3.Error) -> bool:
    """Whether the file itself is wrong. Full disks and locks are OperationalErrors."""
    return isinstance(err, sqlite3.DatabaseError) and not isinstance(
        err, (sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.ProgrammingError)
    )


def _count(db: sqlite3.Connection, name: str, by: int) -> None:
    db.execute(
        "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        (name, by),
    )


def _payload(item: Record | JobEvent | Event, boot_id: str, seq: int) -> tuple[str, str]:
    if isinstance(item, Record):
        kind, numbered = RECORD, replace(item, seq=seq).to_json()
    else:
        kind = JOB if isinstance(item, JobEvent) else EVENT
        numbered = replace(item, boot_id=boot_id, seq=seq).to_json()
    return kind, json.dumps(numbered, separators=(",", ":"), allow_nan=False)
